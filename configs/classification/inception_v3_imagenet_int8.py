_base_ = ['./inception_v3_imagenet_fp32.py', '../_base_/int8.py']
