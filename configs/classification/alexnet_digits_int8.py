_base_ = ['./alexnet_digits_fp32.py', '../_base_/int8.py']
