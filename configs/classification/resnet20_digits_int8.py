_base_ = ['./resnet20_digits_fp32.py', '../_base_/int8.py']
