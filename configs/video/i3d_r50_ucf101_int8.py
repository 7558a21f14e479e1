_base_ = ['./i3d_r50_ucf101_fp32.py', '../_base_/int8.py']
