_base_ = ['./tsn_r50_kinetics400_fp32.py', '../_base_/int8.py']
