# InceptionV3 at 299 pixels, without the auxiliary classifier.
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
    backbone=dict(type='daq_mm.models.InceptionV3'),
    head=dict(type='daq_mm.models.ClassificationHead', in_channels=2048, num_classes=1000, dropout=0.5, label_smoothing=0.1))

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='daq_mm.models.RandomResizedCrop', scale=299),
    dict(type='RandomFlip', prob=0.5),
    dict(type='daq_mm.models.PackImage')
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='daq_mm.models.ResizeShortSide', side=342),
    dict(type='CenterCrop', crop_size=(299, 299)),
    dict(type='daq_mm.models.PackImage')
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
