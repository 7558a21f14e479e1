# SGD with momentum, for networks that stay at the loss of guessing under AdamW with the same warm-up
# and cosine: MobileNetV2 and InceptionV3 left it after some 250 iterations with this, and not in
# 1,300 and 400 with AdamW at 5e-4 to 8e-3. The head, which has many features, turns too fast at the
# rate of the rest.
_base_ = './adamw_cosine.py'

optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='SGD', lr=0.2, momentum=0.9, weight_decay=1e-4),
    paramwise_cfg=dict(custom_keys={'head': dict(lr_mult=0.1)}))
