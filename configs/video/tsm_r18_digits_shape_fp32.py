# TSM-R18 on four frames of 40 pixels of the videos whose class is the digit alone. In trials, of which
# no record was kept, it did not begin to learn the directions of `digits_video` in a few minutes.
_base_ = './tsn_r18_digits_shape_fp32.py'

segments = 4
model = dict(
    backbone=dict(
        _delete_=True,
        type='ResNetTSM',
        depth=18,
        num_segments=segments,
        shift_div=8,
        pretrained2d=False,
        norm_eval=False),
    cls_head=dict(type='TSMHead', num_segments=segments, is_shift=True))

frames = dict(type='SampleFrames', clip_len=1, frame_interval=1, num_clips=segments)
train_pipeline = [_base_.train_pipeline[0], frames, *_base_.train_pipeline[2:]]
test_pipeline = [
    _base_.test_pipeline[0],
    dict(test_mode=True, **frames), *_base_.test_pipeline[2:]
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
