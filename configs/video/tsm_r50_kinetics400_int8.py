_base_ = ['./tsm_r50_kinetics400_fp32.py', '../_base_/int8.py']
