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
    backbone=dict(type='daq_mm.models.CIFARResNet', depth=20),
    head=dict(type='daq_mm.models.ClassificationHead', in_channels=64, num_classes=10))
