_base_ = ['./tsm_r50_kinetics400_fp32.py', '../_base_/datasets/ucf101.py']

model = dict(cls_head=dict(num_classes=101))
train_dataloader = dict(dataset=_base_.ucf101_train)
val_dataloader = dict(dataset=_base_.ucf101_val)
test_dataloader = dict(dataset=_base_.ucf101_val)
