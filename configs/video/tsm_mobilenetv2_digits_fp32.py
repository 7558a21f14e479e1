# TSM-MobileNetV2 of half the usual width on eight frames of 56 pixels, trained from scratch.
_base_ = [
    '../_base_/datasets/digits_video_frames.py',
    '../_base_/schedules/adamw_cosine.py',
    '../_base_/runtimes/mmaction_digits.py',
]

model = dict(
    type='Recognizer2D',
    backbone=dict(
        type='MobileNetV2TSM', widen_factor=0.5, num_segments=8, shift_div=8, is_shift=True,
        pretrained2d=False),
    cls_head=dict(
        type='TSMHead',
        num_classes=24,
        in_channels=1280,
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
train_cfg = dict(max_epochs=3)
