_base_ = ['./c3d_ucf101_fp32.py', '../_base_/int8.py']
