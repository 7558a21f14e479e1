_base_ = ['./i3d_r50_kinetics400_fp32.py', '../_base_/int8.py']
