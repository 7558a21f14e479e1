_base_ = ['./resnet50_digits_fp32.py', '../_base_/int8.py']
