_base_ = ['./vgg16_digits_fp32.py', '../_base_/int8.py']
