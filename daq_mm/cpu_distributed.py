"""Distributed training without GPUs: what mmengine's launcher lacks for it.

mmengine's 'pytorch' launcher selects a CUDA device in any case, and wraps the model with
`device_ids`, which a model on the CPU must not have. Joining the process group beforehand and
naming the wrapper in the config gets round both; with GPUs nothing changes.
"""

from __future__ import annotations

import datetime
import gc
import os
from collections.abc import MutableMapping
from typing import Any

import torch


def prepare(settings: MutableMapping[str, Any]) -> bool:
    """Join the gloo group and set the model's wrapper, if this run is torchrun's on CPUs.

    Args:
        settings: a mmengine Config; `launcher` decides, and
            `env_cfg.dist_cfg.timeout` (seconds) is obeyed. `model_wrapper_cfg` may be added.

    Returns:
        whether anything was done.
    """
    if settings.get("launcher", "none") != "pytorch" or torch.cuda.is_available():
        return False
    if "RANK" not in os.environ:
        raise RuntimeError(
            "launcher='pytorch' needs torchrun's environment (RANK, WORLD_SIZE, ...); "
            "start through tools/dist_train.sh"
        )
    distributed = (settings.get("env_cfg") or {}).get("dist_cfg") or {}
    timeout = datetime.timedelta(seconds=distributed.get("timeout", 1800))
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", timeout=timeout)
    if settings.get("model_wrapper_cfg") is None:
        settings["model_wrapper_cfg"] = {
            "type": "MMDistributedDataParallel",
            "device_ids": None,
            "broadcast_buffers": False,
            "find_unused_parameters": settings.get("find_unused_parameters", False),
        }
    return True


def leave() -> None:
    """Leave the gloo group that `prepare` joined; the last thing a run that succeeded does.

    Without it a thread of gloo that still holds a tensor while Python ends aborts the process, a
    finished run included ("terminate called without an active exception"). The threads end with
    the last reference to the group, and the model's wrapper holds one: the caller drops its
    runner and model before. Does nothing without a gloo group. Not for a run that fails: waiting
    for work that a lost rank never does would hide the failure until the timeout.
    """
    if torch.distributed.is_initialized() and torch.distributed.get_backend() == "gloo":
        # A runner and its loops refer to each other. Their reference must not be the last one:
        # it would end the group with the interpreter's lock held, which gloo's thread may want.
        gc.collect()
        torch.distributed.destroy_process_group()
