_base_ = ['./tsm_r18_digits_shape_fp32.py', '../_base_/int8.py']
