# TSN-R18 on three frames of 40 pixels of the videos whose class is the digit alone.
_base_ = [
    '../_base_/datasets/digits_shape_video.py',
    '../_base_/schedules/adamw_cosine.py',
    '../_base_/runtimes/mmaction_digits.py',
]

model = dict(
    type='Recognizer2D',
    backbone=dict(type='ResNet', depth=18, norm_eval=False),
    cls_head=dict(
        type='TSNHead',
        num_classes=10,
        in_channels=512,
        spatial_type='avg',
        consensus=dict(type='AvgConsensus', dim=1),
        dropout_ratio=0.2,
        init_std=0.01,
        average_clips='prob'),
    data_preprocessor=dict(
        type='ActionDataPreprocessor',
        mean=[127.5, 127.5, 127.5],
        std=[64.0, 64.0, 64.0],
        format_shape='NCHW'))

small = dict(type='Resize', scale=(40, 40), keep_ratio=False)
train_pipeline = [*_base_.train_pipeline[:3], small, *_base_.train_pipeline[3:]]
test_pipeline = [*_base_.test_pipeline[:3], small, *_base_.test_pipeline[3:]]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))

# the head, which has many features, turns too fast at the rate of the rest
optim_wrapper = dict(
    optimizer=dict(lr=7e-4), paramwise_cfg=dict(custom_keys={'cls_head': dict(lr_mult=0.1)}))
train_cfg = dict(max_epochs=2)
