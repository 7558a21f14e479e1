_base_ = ['./mobilenetv2_imagenet_fp32.py', '../_base_/int8.py']
