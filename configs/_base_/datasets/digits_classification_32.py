# The generated pictures at 32 pixels, CIFAR's size.
_base_ = './digits_classification.py'

resize = dict(type='Resize', scale=(32, 32), interpolation='area')
train_pipeline = [
    dict(type='LoadImageFromFile'), resize,
    dict(type='daq_mm.models.PaddedRandomCrop', padding=2, mode='reflect'),
    dict(type='daq_mm.models.PackImage')
]
test_pipeline = [
    dict(type='LoadImageFromFile'), resize,
    dict(type='daq_mm.models.PackImage')
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
