# VGG-16 of half the usual width with batch norm, on pictures of 32 pixels, with one linear layer
# instead of three.
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
    backbone=dict(type='daq_mm.models.NarrowVGG', base_channels=32),
    head=dict(type='daq_mm.models.ClassificationHead', in_channels=256, num_classes=10, dropout=0.2))

train_cfg = dict(max_epochs=8)
