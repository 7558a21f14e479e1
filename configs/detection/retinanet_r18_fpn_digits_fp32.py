_base_ = [
    '../_base_/models/retinanet_r18_fpn_digits.py',
    '../_base_/datasets/digits_detection.py',
    '../_base_/schedules/digits_detection_3e.py',
    '../_base_/runtimes/mmdet_digits.py',
]
