# mobilenetv2_digits with mmaction's implementation of the same network, whose names of weights
# TSM-MobileNetV2 shares: what tsm_mobilenetv2_digits_shape_finetune starts from.
_base_ = './mobilenetv2_digits_fp32.py'

model = dict(backbone=dict(type='mmaction.MobileNetV2'))
