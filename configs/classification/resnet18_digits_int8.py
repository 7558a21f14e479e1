_base_ = ['./resnet18_digits_fp32.py', '../_base_/int8.py']
