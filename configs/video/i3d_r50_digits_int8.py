_base_ = ['./i3d_r50_digits_fp32.py', '../_base_/int8.py']
