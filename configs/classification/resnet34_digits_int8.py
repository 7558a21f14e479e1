_base_ = ['./resnet34_digits_fp32.py', '../_base_/int8.py']
