_base_ = [
    '../_base_/models/slowonly_r18_digits.py',
    '../_base_/datasets/digits_video.py',
    '../_base_/schedules/digits_video_2e.py',
    '../_base_/runtimes/mmaction_digits.py',
]
