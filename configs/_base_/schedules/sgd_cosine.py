# SGD with momentum and adamw_cosine.py's warm-up and cosine, for MobileNetV2: in trials, of which no
# record was kept, it left the loss of guessing later under AdamW, and at three times this rate. The
# head, which has many features, turns too fast at the rate of the rest.
_base_ = './adamw_cosine.py'

optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='SGD', lr=0.07, momentum=0.9, weight_decay=1e-4),
    paramwise_cfg=dict(custom_keys={'head': dict(lr_mult=0.1)}))
