_base_ = ['./mobilenet_v2_cifar10_fp32.py', '../_base_/int8.py']
