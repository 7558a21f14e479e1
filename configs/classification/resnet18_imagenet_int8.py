_base_ = ['./resnet18_imagenet_fp32.py', '../_base_/int8.py']
