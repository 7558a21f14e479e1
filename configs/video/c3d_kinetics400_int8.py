_base_ = ['./c3d_kinetics400_fp32.py', '../_base_/int8.py']
