"""daq_mm: Distribution Adaptive INT8 training of CNNs, a plugin for OpenMMLab.

Importing it registers the INT8 layers and the hook with mmengine, where that is installed.
"""

import importlib.util

from . import autotune, wgmma_switch
from .channels_last import to_channels_last
from .config import DAQConfig
from .conv import DAQConv1d, DAQConv2d, DAQConv3d
from .convert import convert_model, revert_model
from .version import __version__

__all__ = [
    "DAQConfig",
    "DAQConv1d",
    "DAQConv2d",
    "DAQConv3d",
    "DAQHook",
    "__version__",
    "convert_model",
    "revert_model",
    "to_channels_last",
]

autotune.enable_from_environment()
wgmma_switch.set_from_environment()

if importlib.util.find_spec("mmengine") is not None:
    from . import compat
    from .hook import DAQHook
    from .registration import register_all

    compat.install()
    register_all()
else:

    def __getattr__(name: str):
        if name == "DAQHook":
            raise ImportError("DAQHook needs mmengine, which is not installed")
        raise AttributeError(f"module 'daq_mm' has no attribute {name!r}")
