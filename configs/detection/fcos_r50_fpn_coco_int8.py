_base_ = ['./fcos_r50_fpn_coco_fp32.py', '../_base_/int8.py']
