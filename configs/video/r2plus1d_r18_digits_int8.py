_base_ = ['./r2plus1d_r18_digits_fp32.py', '../_base_/int8.py']
