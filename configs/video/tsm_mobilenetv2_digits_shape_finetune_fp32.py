# TSM-MobileNetV2 from a backbone that knows the digits of still pictures, as TSM is trained in
# practice (from ImageNet); from scratch, when it begins to learn is chance. The start is made by
# `python tools/prepare_start.py configs/classification/mobilenetv2_mmaction_digits_fp32.py`.
_base_ = './tsm_mobilenetv2_digits_shape_fp32.py'

model = dict(
    backbone=dict(pretrained='data/starts/mobilenetv2_mmaction_digits.pth', pretrained2d=True))

train_dataloader = dict(batch_size=16)
optim_wrapper = dict(optimizer=dict(lr=0.02))
train_cfg = dict(max_epochs=2)
