_base_ = [
    '../_base_/models/ssdlite_mobilenetv2_digits.py',
    '../_base_/datasets/digits_detection.py',
    '../_base_/schedules/adamw_cosine.py',
    '../_base_/runtimes/mmdet_digits.py',
]

train_cfg = dict(max_epochs=4, val_interval=4)
