_base_ = ['./mobilenetv2_cifar10_fp32.py', '../_base_/int8.py']
