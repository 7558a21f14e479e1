_base_ = ['./resnet50_imagenet_fp32.py', '../_base_/int8.py']
