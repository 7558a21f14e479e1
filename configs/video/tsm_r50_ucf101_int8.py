_base_ = ['./tsm_r50_ucf101_fp32.py', '../_base_/int8.py']
