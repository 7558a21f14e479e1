# mmaction's stock runtime with a seed, and hooks for short runs.
_base_ = 'mmaction::_base_/default_runtime.py'

randomness = dict(seed=0, deterministic=False)
default_hooks = dict(
    logger=dict(interval=20),
    # two: a kill while the second is written leaves the first
    checkpoint=dict(interval=1, max_keep_ckpts=2))
