# InceptionV3 of a quarter of the usual width, with a stem for pictures of 64 pixels.
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
    backbone=dict(
        type='daq_mm.models.InceptionV3', width=0.25, stem_strides=(1, 2, 2)),
    head=dict(type='daq_mm.models.ClassificationHead', in_channels=512, num_classes=10, dropout=0.2))
train_cfg = dict(max_epochs=4)
optim_wrapper = dict(optimizer=dict(lr=0.1))  # the rate that was tried
