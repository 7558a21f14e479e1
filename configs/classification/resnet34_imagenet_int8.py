_base_ = ['./resnet34_imagenet_fp32.py', '../_base_/int8.py']
