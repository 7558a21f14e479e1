_base_ = ['./faster_rcnn_r50_fpn_digits_fp32.py', '../_base_/int8.py']
