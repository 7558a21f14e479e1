# The model of retinanet_r18_fpn_digits with a ResNet-50 of half the usual width, and twice its FPN.
_base_ = [
    '../_base_/models/retinanet_r18_fpn_digits.py',
    '../_base_/datasets/digits_detection.py',
    '../_base_/schedules/adamw_cosine.py',
    '../_base_/runtimes/mmdet_digits.py',
]

model = dict(
    backbone=dict(depth=50, base_channels=32),
    neck=dict(in_channels=[128, 256, 512, 1024], out_channels=128),
    bbox_head=dict(in_channels=128, feat_channels=128))
train_cfg = dict(max_epochs=3, val_interval=3)
