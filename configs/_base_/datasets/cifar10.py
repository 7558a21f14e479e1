# CIFAR-10 from its Python files; `python tools/prepare_data.py check cifar10` tells if they are there.
dataset_type = 'daq_mm.models.CIFAR10'
data_root = 'data/cifar-10-batches-py'

train_pipeline = [
    dict(type='daq_mm.models.PaddedRandomCrop', padding=4),
    dict(type='RandomFlip', prob=0.5),
    dict(type='daq_mm.models.PackImage')
]
test_pipeline = [dict(type='daq_mm.models.PackImage')]

train_dataloader = dict(
    batch_size=128,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type=dataset_type, data_root=data_root, pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=250,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type=dataset_type, data_root=data_root, pipeline=test_pipeline, test_mode=True))
test_dataloader = val_dataloader

val_evaluator = dict(type='daq_mm.models.Accuracy')
test_evaluator = val_evaluator
