# TSM-MobileNetV2 of half the usual width on four frames of 56 pixels of the videos whose class is
# the digit alone, trained from scratch. In trials, of which no record was kept, it did not begin to
# learn the directions of `digits_video` in a few minutes. When it leaves the loss of guessing is
# chance here too, in FP32 as in INT8 (results/analysis); batches of 8 take twice the steps of 16.
_base_ = [
    '../_base_/datasets/digits_shape_video.py',
    '../_base_/schedules/sgd_cosine.py',
    '../_base_/runtimes/mmaction_digits.py',
]

segments = 4
model = dict(
    type='Recognizer2D',
    backbone=dict(
        type='MobileNetV2TSM', widen_factor=0.5, num_segments=segments, shift_div=8, is_shift=True,
        pretrained2d=False),
    cls_head=dict(
        type='TSMHead',
        num_classes=10,
        in_channels=1280,
        num_segments=segments,
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

frames = dict(type='SampleFrames', clip_len=1, frame_interval=1, num_clips=segments)
train_pipeline = [_base_.train_pipeline[0], frames, *_base_.train_pipeline[2:]]
test_pipeline = [
    _base_.test_pipeline[0],
    dict(test_mode=True, **frames), *_base_.test_pipeline[2:]
]
train_dataloader = dict(batch_size=8, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))

optim_wrapper = dict(optimizer=dict(lr=0.05))
train_cfg = dict(max_epochs=5)
