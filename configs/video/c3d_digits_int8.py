_base_ = ['./c3d_digits_fp32.py', '../_base_/int8.py']
