_base_ = ['./ssd_vgg16_digits_fp32.py', '../_base_/int8.py']
