"""Option --autotune of the benchmarks: the CUDA kernels' tiles and splits by measurement."""

from __future__ import annotations

from typing import Any

import torch

from daq_mm import autotune

HELP = (
    "choose the CUDA kernels' tiles and splits by measuring them, before anything is timed "
    "(daq_mm.autotune, with its cache on disk)"
)


def start(wanted: bool, device: torch.device) -> None:
    """Switch it on if wanted.

    Raises:
        ValueError: there is nothing to tune on that device.
    """
    if not wanted:
        return
    if device.type != "cuda":
        raise ValueError(
            f"--autotune measures the CUDA kernels: it needs --device cuda, not {device}"
        )
    try:
        autotune.enable()
    except RuntimeError as error:
        raise ValueError(f"--autotune: {error}") from None


def record() -> list[dict[str, Any]] | None:
    """The choices of this process for the document, None where it is off; saves them."""
    if not autotune.enabled():
        return None
    autotune.save()
    return autotune.choices()
