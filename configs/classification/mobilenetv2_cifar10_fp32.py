# MobileNetV2 keeps its strides, so CIFAR's 32 pixels end as one.
_base_ = [
    '../_base_/datasets/cifar10.py',
    '../_base_/schedules/cifar10_200e.py',
    '../_base_/runtimes/classification.py',
]

model = dict(
    type='daq_mm.models.ImageClassifier',
    data_preprocessor=dict(
        type='ImgDataPreprocessor',
        mean=[125.307, 122.961, 113.8575],
        std=[51.5865, 50.847, 51.255],
        bgr_to_rgb=True),
    backbone=dict(type='mmdet.MobileNetV2', out_indices=(7, )),
    head=dict(type='daq_mm.models.ClassificationHead', in_channels=1280, num_classes=10, dropout=0.2))
