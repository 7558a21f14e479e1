_base_ = ['./inceptionv3_imagenet_fp32.py', '../_base_/int8.py']
