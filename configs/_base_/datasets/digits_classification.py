# Generated pictures of handwritten digits, one folder a class:
# `python tools/prepare_data.py classification`.
dataset_type = 'daq_mm.models.ImageFolder'
data_root = 'data/digits_classification/'

# no flip: a mirrored digit is another sign
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='daq_mm.models.PaddedRandomCrop', padding=4, mode='reflect'),
    dict(type='daq_mm.models.PackImage')
]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='daq_mm.models.PackImage')]

# workers that start with each epoch are seeded anew, so a resumed run sees the same pictures
train_dataloader = dict(
    batch_size=32,
    num_workers=1,
    persistent_workers=False,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix=dict(img_path='train'),
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=50,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix=dict(img_path='val'),
        pipeline=test_pipeline,
        test_mode=True))
test_dataloader = val_dataloader

val_evaluator = dict(type='daq_mm.models.Accuracy')
test_evaluator = val_evaluator
