# ImageNet (ILSVRC2012), one folder a class in train/ and val/;
# `python tools/prepare_data.py check imagenet` tells if it is there.
dataset_type = 'daq_mm.models.ImageFolder'
data_root = 'data/imagenet/'

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='daq_mm.models.RandomResizedCrop', scale=224),
    dict(type='RandomFlip', prob=0.5),
    dict(type='daq_mm.models.PackImage')
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='daq_mm.models.ResizeShortSide', side=256),
    dict(type='CenterCrop', crop_size=(224, 224)),
    dict(type='daq_mm.models.PackImage')
]

# 32 pictures on each of 8 processes
train_dataloader = dict(
    batch_size=32,
    num_workers=5,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix=dict(img_path='train'),
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=32,
    num_workers=5,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix=dict(img_path='val'),
        pipeline=test_pipeline,
        test_mode=True))
test_dataloader = val_dataloader

val_evaluator = dict(type='daq_mm.models.Accuracy', topk=(1, 5))
test_evaluator = val_evaluator
