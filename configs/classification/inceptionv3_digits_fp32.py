# InceptionV3 of a quarter of the usual width, with a stem for pictures of 32 pixels: on 64 it learned
# more slowly in trials, of which no record was kept.
_base_ = [
    '../_base_/datasets/digits_classification_32.py',
    '../_base_/schedules/adamw_cosine.py',
    '../_base_/runtimes/classification.py',
]

model = dict(
    type='daq_mm.models.ImageClassifier',
    data_preprocessor=dict(
        type='ImgDataPreprocessor',
        mean=[127.5, 127.5, 127.5],
        std=[64.0, 64.0, 64.0],
        bgr_to_rgb=True),
    backbone=dict(
        type='daq_mm.models.InceptionV3', width=0.25, stem_strides=(1, 1, 2)),
    head=dict(type='daq_mm.models.ClassificationHead', in_channels=512, num_classes=10, dropout=0.2))
train_cfg = dict(max_epochs=5)
# 512 features: at the rate of the rest the head turns too fast
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'head': dict(lr_mult=0.1)}))
