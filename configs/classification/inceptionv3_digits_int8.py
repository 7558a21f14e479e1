_base_ = ['./inceptionv3_digits_fp32.py', '../_base_/int8.py']
