# SGD with momentum and adamw_cosine.py's warm-up and cosine, for networks that learn too slowly under
# AdamW. In short trials, of which no record was kept, MobileNetV2 was at 22 % after two epochs of this
# and at 16 % after seven of AdamW; InceptionV3's loss fell below 2.1 in its second epoch (rate 0.1) and
# in its third. The head, which has many features, turns too fast at the rate of the rest.
_base_ = './adamw_cosine.py'

optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='SGD', lr=0.2, momentum=0.9, weight_decay=1e-4),
    paramwise_cfg=dict(custom_keys={'head': dict(lr_mult=0.1)}))
