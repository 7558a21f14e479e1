_base_ = [
    '../_base_/models/ssd_vgg16_digits.py',
    '../_base_/datasets/digits_detection.py',
    '../_base_/schedules/adamw_cosine.py',
    '../_base_/runtimes/mmdet_digits.py',
]

train_cfg = dict(max_epochs=3, val_interval=3)
