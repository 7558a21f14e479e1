# SlowOnly-R18 for clips of 8 frames of 56 pixels, trained from scratch: a quarter of the usual
# width, temporal kernels in all stages, and time halved in the second and third. The head starts
# with larger weights than usual and without dropout: what keeps the first gradients from drowning.
model = dict(
    type='Recognizer3D',
    backbone=dict(
        type='ResNet3dSlowOnly',
        depth=18,
        pretrained=None,
        lateral=False,
        base_channels=16,
        conv1_kernel=(1, 7, 7),
        conv1_stride_t=1,
        pool1_stride_t=1,
        inflate=(1, 1, 1, 1),
        temporal_strides=(1, 2, 2, 1),
        zero_init_residual=False,
        norm_eval=False),
    cls_head=dict(
        type='I3DHead',
        in_channels=128,
        num_classes=24,
        spatial_type='avg',
        dropout_ratio=0.0,
        init_std=0.05,
        average_clips='prob'),
    data_preprocessor=dict(
        type='ActionDataPreprocessor',
        mean=[127.5, 127.5, 127.5],
        std=[64.0, 64.0, 64.0],
        format_shape='NCTHW'))
