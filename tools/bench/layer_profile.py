"""Where an iteration's time goes: by kind of work, and by convolution, from torch.profiler."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from .training import Trainer

#: Kinds of work; an event belongs to the first whose pattern is found in its own name or in that
#: of an event around it.
KINDS = (
    ("optimizer", re.compile(r"^Optimizer\.")),
    ("compiled graph", re.compile(r"CompiledFunction|Torch-Compiled Region|inductor")),
    ("quantization", re.compile(r"daq_mm::(quantize|update_thresholds|thresholds_from)")),
    # What stands between convolutions and is fused: its norm_backward_quantize writes g on 8 bits.
    ("fused glue", re.compile(r"daq_mm::(norm_|batch_norm_|stats_of)")),
    ("convolution", re.compile(r"conv(?!ert)|daq_mm::grad_(input|weight)", re.IGNORECASE)),
    ("norm", re.compile(r"(batch|group|layer)_?norm", re.IGNORECASE)),
    ("activation", re.compile(r"relu|threshold_backward|hardtanh|clamp|sigmoid", re.IGNORECASE)),
    ("pooling", re.compile(r"pool|mean|interpolate|upsample", re.IGNORECASE)),
    ("addition", re.compile(r"aten::add_?$|AddBackward")),
    ("cast", re.compile(r"aten::(to|_to_copy|copy_)$|ToCopyBackward")),
)
_BACKWARD = re.compile(r"Backward|AccumulateGrad|_backward$")

#: A convolution's outermost op, by name: direction and the positions of x and w in its inputs.
_CONVOLUTIONS = {
    "aten::convolution": ("forward", 0, 1),
    "aten::convolution_backward": ("backward", 1, 2),
    "daq_mm::conv_forward": ("forward", 0, 1),
    "daq_mm::conv_forward_stats": ("forward", 0, 2),
    "daq_mm::conv_backward": ("backward", 1, 3),
}
#: The backward pass of a fused unit, and where its parts have w and the 8-bit x.
_UNIT_BACKWARD = "_UnitBackward"
_W_IN_UNIT = ("daq_mm::quantize_w_folded", "daq_mm::quantize_w")
_X_IN_UNIT = "daq_mm::grad_weight"


def profile_iterations(trainer: Trainer, *, iterations: int = 3) -> dict[str, Any]:
    """Profile whole iterations of a warm trainer.

    Returns:
        'by_kind': seconds an iteration by 'kind direction'; 'by_convolution': records with
        'x_size', 'w_size', 'calls', 'forward_s', 'backward_s' an iteration, slowest first
        (thresholds and quantization included, of fused units the glue's backward pass too; none
        for compiled modes).
    """
    cuda = trainer.device.type == "cuda"
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if cuda else [])
    with profile(activities=activities, record_shapes=True) as profiler:
        for _ in range(iterations):
            trainer.step()
        if cuda:
            torch.cuda.synchronize()
    events = [e for e in profiler.events() if e.device_type == torch.autograd.DeviceType.CPU]
    by_kind: dict[str, float] = defaultdict(float)
    layers: dict[tuple, dict[str, Any]] = {}
    for event in events:
        seconds = event.self_device_time_total if cuda else event.self_cpu_time_total
        by_kind[_kind(event)] += seconds * 1e-6 / iterations
        if event.name in _CONVOLUTIONS and not _inside_own_op(event):
            direction, x_at, w_at = _CONVOLUTIONS[event.name]
            sizes = tuple(event.input_shapes[x_at]), tuple(event.input_shapes[w_at])
            _add_time(layers, sizes, direction, _whole(event), cuda, iterations)
        elif event.name == _UNIT_BACKWARD:
            sizes = _sizes_in_unit(event)
            if sizes is not None:
                _add_time(layers, sizes, "backward", event, cuda, iterations)
    ordered = sorted(layers.values(), key=lambda r: -(r["forward_s"] + r["backward_s"]))
    return {
        "by_kind": dict(sorted(by_kind.items(), key=lambda item: -item[1])),
        "by_convolution": ordered,
    }


def _inside_own_op(event: Any) -> bool:
    """Whether an op of daq_mm called it: the reference computes by PyTorch's convolution."""
    return any(name.startswith("daq_mm::") for name in _chain(event)[1:])


def _chain(event: Any) -> list[str]:
    """Names of an event and of those around it, innermost first."""
    chain = []
    while event is not None:
        chain.append(event.name)
        event = event.cpu_parent
    return chain


def _kind(event: Any) -> str:
    chain = _chain(event)
    kind = next((k for k, pattern in KINDS if any(map(pattern.search, chain))), "other")
    if kind == "optimizer":
        return kind
    return f"{kind} {'backward' if any(map(_BACKWARD.search, chain)) else 'forward'}"


def _whole(event: Any) -> Any:
    """The event of the autograd function around an op of daq_mm: it updates thresholds as well."""
    around = event.cpu_parent
    own = event.name.startswith("daq_mm::") and around is not None
    return around if own and "_Int8Convolution" in around.name else event


def _sizes_in_unit(event: Any) -> tuple[tuple, tuple] | None:
    """Sizes of x and w of a fused unit's backward pass; None where it computed only one product."""
    parts = {child.name: child for child in event.cpu_children}
    w = next((parts[name] for name in _W_IN_UNIT if name in parts), None)
    if w is None or _X_IN_UNIT not in parts:
        return None
    return tuple(parts[_X_IN_UNIT].input_shapes[0]), tuple(w.input_shapes[0])


def _add_time(
    layers: dict,
    sizes: tuple[tuple, tuple],
    direction: str,
    event: Any,
    cuda: bool,
    iterations: int,
) -> None:
    x_size, w_size = sizes
    layer = layers.setdefault(
        sizes,
        {"x_size": x_size, "w_size": w_size, "calls": 0.0, "forward_s": 0.0, "backward_s": 0.0},
    )
    seconds = event.device_time_total if cuda else event.cpu_time_total
    layer[f"{direction}_s"] += seconds * 1e-6 / iterations
    if direction == "forward":
        layer["calls"] += 1 / iterations
