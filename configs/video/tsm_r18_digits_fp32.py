# TSM-R18 on eight frames of 32 pixels, trained from scratch.
_base_ = [
    '../_base_/datasets/digits_video_frames.py',
    '../_base_/schedules/adamw_cosine.py',
    '../_base_/runtimes/mmaction_digits.py',
]

model = dict(
    type='Recognizer2D',
    backbone=dict(
        type='ResNetTSM', depth=18, num_segments=8, shift_div=8, pretrained2d=False,
        norm_eval=False),
    cls_head=dict(
        type='TSMHead',
        num_classes=24,
        in_channels=512,
        num_segments=8,
        spatial_type='avg',
        consensus=dict(type='AvgConsensus', dim=1),
        dropout_ratio=0.2,
        init_std=0.01,
        is_shift=True,
        average_clips='prob'),
    data_preprocessor=dict(
        type='ActionDataPreprocessor',
        mean=[127.5, 127.5, 127.5],
        std=[64.0, 64.0, 64.0],
        format_shape='NCHW'))

small = dict(type='Resize', scale=(32, 32), keep_ratio=False)
train_pipeline = [*_base_.train_pipeline[:3], small, *_base_.train_pipeline[3:]]
test_pipeline = [*_base_.test_pipeline[:3], small, *_base_.test_pipeline[3:]]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

train_cfg = dict(max_epochs=3)
