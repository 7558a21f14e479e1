_base_ = [
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/imagenet_100e.py',
    '../_base_/runtimes/classification.py',
]

model = dict(
    type='daq_mm.models.ImageClassifier',
    data_preprocessor=dict(
        type='ImgDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True),
    backbone=dict(type='mmdet.MobileNetV2', out_indices=(7, )),
    head=dict(type='daq_mm.models.ClassificationHead', in_channels=1280, num_classes=1000, dropout=0.2))

# the rate falls by 2% an epoch, for 300 epochs
train_cfg = dict(max_epochs=300)
param_scheduler = dict(
    _delete_=True, type='StepLR', by_epoch=True, step_size=1, gamma=0.98)
optim_wrapper = dict(optimizer=dict(lr=0.045, weight_decay=4e-5))
