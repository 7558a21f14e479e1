_base_ = ['./resnet20_cifar10_fp32.py', '../_base_/int8.py']
