_base_ = ['./r2plus1d_r34_kinetics400_fp32.py', '../_base_/int8.py']
