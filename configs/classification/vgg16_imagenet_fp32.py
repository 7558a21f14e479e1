# VGG-16 with batch norm.
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
    init_cfg=dict(type='Kaiming', layer='Conv2d'),
    backbone=dict(type='mmcv.cnn.VGG', depth=16, with_bn=True, bn_eval=False, out_indices=(4, )),
    head=dict(type='daq_mm.models.ClassificationHead', in_channels=512, num_classes=1000, pool_size=7, hidden=(4096, 4096), dropout=0.5))
optim_wrapper = dict(optimizer=dict(lr=0.01, weight_decay=5e-4))
