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
    backbone=dict(
        type='mmdet.ResNet',
        depth=18,
        out_indices=(3, ),
        norm_eval=False,
        zero_init_residual=False,
        style='pytorch'),
    head=dict(type='daq_mm.models.ClassificationHead', in_channels=512, num_classes=1000))
