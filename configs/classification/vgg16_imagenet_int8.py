_base_ = ['./vgg16_imagenet_fp32.py', '../_base_/int8.py']
