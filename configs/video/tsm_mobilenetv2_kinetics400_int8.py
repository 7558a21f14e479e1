_base_ = ['./tsm_mobilenetv2_kinetics400_fp32.py', '../_base_/int8.py']
