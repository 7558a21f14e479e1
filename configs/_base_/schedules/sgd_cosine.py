# SGD with momentum and adamw_cosine.py's warm-up and cosine, for MobileNetV2, whose loss stays that of
# guessing under AdamW. Much higher rates keep it there for longer. The head, which has many features,
# turns too fast at the rate of the rest.
_base_ = './adamw_cosine.py'

optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='SGD', lr=0.07, momentum=0.9, weight_decay=1e-4),
    paramwise_cfg=dict(custom_keys={'head': dict(lr_mult=0.1)}))
