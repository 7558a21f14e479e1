# AlexNet on pictures of 64 pixels, with linear layers of 512 instead of 4096.
_base_ = [
    '../_base_/datasets/digits_classification.py',
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
    init_cfg=dict(type='Kaiming', layer='Conv2d', mode='fan_in'),
    backbone=dict(type='mmcv.cnn.AlexNet'),
    head=dict(type='daq_mm.models.ClassificationHead', in_channels=256, num_classes=10, hidden=(512, 512), dropout=0.3))
train_cfg = dict(max_epochs=14)
# without batch norm
optim_wrapper = dict(optimizer=dict(lr=5e-4))
