_base_ = [
    '../_base_/models/slowonly_r18_digits.py',
    '../_base_/datasets/digits_video.py',
    '../_base_/schedules/digits_video_2e.py',
    '../_base_/runtimes/mmaction_digits.py',
]

train_dataloader = dict(batch_size=12)  # more, smaller steps: it leaves the initial plateau sooner
