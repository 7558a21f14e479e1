_base_ = ['./tsm_mobilenetv2_digits_shape_finetune_fp32.py', '../_base_/int8.py']
