"""Autotuner of the CUDA products: measures tiles and splits, and keeps what it found on disk.

    with daq_mm.autotune.enable():
        ...                                   # train; new shapes are measured when they are met

    daq_mm.autotune.enable(measure=False)     # use what the cache knows, measure nothing

Off, a heuristic chooses; results have the same bits either way, but for the last ones of batch
norm's sums (float32, added in the order of tiles). A shape is measured once in each product, on the
operands at hand, which takes some tens of milliseconds and waits for the device; shapes that
change all the time are therefore better left to the heuristic. While a CUDA graph is captured
nothing is measured: run an iteration before. Depthwise convolutions have nothing to choose.

`DAQ_MM_AUTOTUNE=1` in the environment calls `enable()` when CUDA is first used.
"""

from __future__ import annotations

import atexit
import os
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import autotune_cache, ops
from .autotune_cache import Choices, Kind

VARIABLE = "DAQ_MM_AUTOTUNE"


@dataclass(frozen=True)
class _Gpu:
    index: int
    kind: Kind


@dataclass
class _Session:
    """Where choices are kept, and what is there already, by device index."""

    folder: Path
    gpus: list[_Gpu]
    known: dict[int, Choices]
    measure: bool


class Enabled:
    """What `enable()` returns: a context that calls `disable()` at its end."""

    def __enter__(self) -> Enabled:
        return self

    def __exit__(self, *_: object) -> None:
        disable()


_session: _Session | None = None
_lock = threading.RLock()


def enable(cache: str | os.PathLike | None = None, *, measure: bool = True) -> Enabled:
    """Use the choices of a cache for all products that run from now on, on every GPU.

    It initializes CUDA, and ends an earlier session, saving it.

    Args:
        cache: folder of the files, one for each kind of GPU and build; made if need be. None:
            `$DAQ_MM_CACHE`, else `$XDG_CACHE_HOME/daq_mm`, else `~/.cache/daq_mm`.
        measure: measure products that the cache does not know. False: nothing waits for the device
            and nothing is written.

    Returns:
        a context manager that calls `disable()`; ignore it to leave things on.

    Raises:
        ValueError: a setting of a type that is not allowed.
        RuntimeError: no GPU, or a build without CUDA kernels.
        OSError: the folder cannot be made.
    """
    global _session
    if cache is not None and not isinstance(cache, (str, os.PathLike)):
        raise ValueError(
            f"cache={cache!r} is not allowed: a folder's path, or None for the default"
        )
    if not isinstance(measure, bool):
        raise ValueError(f"measure={measure!r} is not allowed: True or False")
    folder = autotune_cache.default_folder() if cache is None else Path(cache).expanduser()
    gpus = _gpus()
    if measure:
        folder.mkdir(parents=True, exist_ok=True)
    with _lock:
        disable()
        library = _library()
        known = {gpu.index: autotune_cache.load(folder, gpu.kind) for gpu in gpus}
        for index, choices in known.items():
            library.load_plans(index, autotune_cache.to_numbers(choices))
        library.tune_plans(measure)
        atexit.unregister(_save_at_exit)
        atexit.register(_save_at_exit)
        _session = _Session(folder, gpus, known, measure)
    return Enabled()


def disable() -> None:
    """Save, and go back to the heuristic; nothing happens if it is off.

    Raises:
        OSError: new choices cannot be written; it is off all the same.
    """
    global _session
    with _lock:
        if _session is None:
            return
        try:
            save()
        finally:
            _session = None
            _library().tune_plans(False)
            _library().clear_plans()


def save() -> int:
    """Write what was measured since the last time; how many choices that were.

    Another process's choices in the file stay. Nothing happens if it is off or does not measure.
    It is called by `disable()`, and at the process's end.

    Raises:
        OSError: the folder cannot be written.
    """
    with _lock:
        if _session is None or not _session.measure:
            return 0
        count = 0
        for gpu in _session.gpus:
            known = _session.known[gpu.index]
            table = autotune_cache.from_numbers(_library().plan_table(gpu.index))
            new = {key: choice for key, choice in table.items() if known.get(key) != choice}
            if new:
                autotune_cache.add(_session.folder, gpu.kind, new)
                known.update(new)
                count += len(new)
        return count


def enabled() -> bool:
    """Whether choices of a cache are in use."""
    return _session is not None


def choices() -> list[dict[str, Any]]:
    """What is chosen for each product that was loaded or measured; empty if it is off.

    Returns:
        dicts with the GPU's 'device' index and the FIELDS of `autotune_cache`, e.g. 'product',
        'n', 'ci', 'co', 'kernel_h', 'tile', 'splits'.
    """
    with _lock:
        if _session is None:
            return []
        return [
            {"device": gpu.index, **entry}
            for gpu in _session.gpus
            for entry in autotune_cache.in_words(
                autotune_cache.from_numbers(_library().plan_table(gpu.index))
            )
        ]


def enable_from_environment() -> None:
    """Do as DAQ_MM_AUTOTUNE says; the package calls it when it is imported.

    Nothing initializes CUDA here: `enable()` waits for its first use.

    Raises:
        ValueError: a value that is not allowed.
    """
    value = os.environ.get(VARIABLE, "0")
    if value not in ("0", "1"):
        raise ValueError(f"{VARIABLE}={value!r} is not allowed: 0 or 1")
    if value == "0":
        return
    built, reason = ops.kernels_built("cuda")
    if not built:
        warnings.warn(f"{VARIABLE}=1 has no effect: {reason}", stacklevel=2)
        return
    torch.cuda._lazy_call(enable)


def _library() -> Any:
    """Where the ops of csrc/cuda/ops_tune.cpp are; a test has others."""
    return torch.ops.daq_mm


def _gpus() -> list[_Gpu]:
    built, reason = ops.kernels_built("cuda")
    if not built:
        raise RuntimeError(f"autotuning measures the CUDA kernels: {reason}")
    if not torch.cuda.is_available():
        raise RuntimeError(
            "autotuning measures the CUDA kernels, and torch sees no CUDA device here: run it on a "
            "machine with a GPU, or leave it off"
        )
    kernels = _library().kernels_version()
    found = []
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        kind = Kind(
            card.name,
            f"{card.major}.{card.minor}",
            card.multi_processor_count,
            kernels,
            torch.version.cuda,
        )
        found.append(_Gpu(index, kind))
    return found


def _save_at_exit() -> None:
    try:
        save()
    except OSError as error:
        warnings.warn(f"what the autotuner measured is lost: {error}", stacklevel=2)
