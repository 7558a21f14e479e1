"""Make mmengine's registries know the layers and the hook; mmdet's and mmaction's inherit them."""

from mmengine.registry import HOOKS, MODELS

from . import amp  # noqa: F401  (registers BF16OptimWrapper)
from .conv import INT8_CLASSES
from .hook import DAQHook
from .reproducible import EpochSeedHook


def register_all() -> None:
    """Register `conv_cfg=dict(type='DAQConv2d')` and `custom_hooks=[dict(type='DAQHook')]`."""
    for layer in INT8_CLASSES.values():
        if layer.__name__ not in MODELS.module_dict:
            MODELS.register_module(module=layer)
    for hook in (DAQHook, EpochSeedHook):
        if hook.__name__ not in HOOKS.module_dict:
            HOOKS.register_module(module=hook)
