# Generated videos whose class is the digit alone: `python tools/prepare_data.py shape_video`.
# For 2D networks, which see three single frames of each.
dataset_type = 'VideoDataset'
data_root = 'data/digits_shape_video/'

# no flip: a mirrored digit is another sign
train_pipeline = [
    dict(type='DecordInit', io_backend='disk'),
    dict(type='SampleFrames', clip_len=1, frame_interval=1, num_clips=3),
    dict(type='DecordDecode'),
    dict(type='FormatShape', input_format='NCHW'),
    dict(type='PackActionInputs')
]
test_pipeline = [
    dict(type='DecordInit', io_backend='disk'),
    dict(type='SampleFrames', clip_len=1, frame_interval=1, num_clips=3, test_mode=True),
    dict(type='DecordDecode'),
    dict(type='FormatShape', input_format='NCHW'),
    dict(type='PackActionInputs')
]

# workers that start with each epoch are seeded anew, so a resumed run sees the same clips
train_dataloader = dict(
    batch_size=16,
    num_workers=1,
    persistent_workers=False,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type=dataset_type,
        ann_file=data_root + 'train.txt',
        data_prefix=dict(video=data_root + 'train'),
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=16,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        ann_file=data_root + 'val.txt',
        data_prefix=dict(video=data_root + 'val'),
        pipeline=test_pipeline,
        test_mode=True))

# more clips than validation has, of its digits: `python tools/prepare_data.py shape_video_test`
test_root = 'data/digits_shape_video_test/'
test_dataloader = dict(
    batch_size=50,
    num_workers=1,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        ann_file=test_root + 'test.txt',
        data_prefix=dict(video=test_root + 'test'),
        pipeline=test_pipeline,
        test_mode=True))

val_evaluator = dict(type='AccMetric')
test_evaluator = val_evaluator
