_base_ = ['./tsm_mobilenetv2_ucf101_fp32.py', '../_base_/int8.py']
