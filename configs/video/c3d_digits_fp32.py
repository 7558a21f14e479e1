# C3D of a quarter of the usual width with batch norm on clips of 8 frames of 56 pixels, with average
# pooling instead of the two linear layers.
_base_ = [
    '../_base_/datasets/digits_video.py',
    '../_base_/schedules/adamw_cosine.py',
    '../_base_/runtimes/mmaction_digits.py',
]

model = dict(
    type='Recognizer3D',
    backbone=dict(
        type='daq_mm.models.NarrowC3D', base_channels=16, temporal_strides=(1, 2, 2, 2, 1)),
    cls_head=dict(
        type='I3DHead',
        num_classes=24,
        in_channels=128,
        spatial_type='avg',
        dropout_ratio=0.2,
        init_std=0.01,
        average_clips='prob'),
    data_preprocessor=dict(
        type='ActionDataPreprocessor',
        mean=[127.5, 127.5, 127.5],
        std=[64.0, 64.0, 64.0],
        format_shape='NCTHW'))
train_cfg = dict(max_epochs=2)
