# MobileNetV2 of half the usual width, on pictures of 64 pixels.
_base_ = [
    '../_base_/datasets/digits_classification.py',
    '../_base_/schedules/sgd_cosine.py',
    '../_base_/runtimes/classification.py',
]

model = dict(
    type='daq_mm.models.ImageClassifier',
    data_preprocessor=dict(
        type='ImgDataPreprocessor',
        mean=[127.5, 127.5, 127.5],
        std=[64.0, 64.0, 64.0],
        bgr_to_rgb=True),
    backbone=dict(type='mmdet.MobileNetV2', widen_factor=0.5, out_indices=(7, )),
    head=dict(type='daq_mm.models.ClassificationHead', in_channels=1280, num_classes=10, dropout=0.2))
train_cfg = dict(max_epochs=6)
