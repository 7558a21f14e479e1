_base_ = ['./mobilenetv2_mmaction_digits_fp32.py', '../_base_/int8.py']
