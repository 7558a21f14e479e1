"""The ops as PyTorch sees them: schemas, shape functions and mutation, by torch's own check."""

import pytest
import torch

from daq_mm import ops
from devices import DEVICE

GEOMETRY = ([1, 2], [1, 0, 1, 0], [1, 1], 2)


def operands():
    x = torch.randn(2, 4, 6, 7).contiguous(memory_format=torch.channels_last)
    w = torch.randn(6, 2, 3, 3)
    y, q_x, x_qparams = torch.ops.daq_mm.conv_forward(x, w, None, *GEOMETRY, True, torch.float32)
    g = torch.randn_like(y)
    q_w, w_step = ops.quantize_w(w)
    threshold = torch.cat([g.abs().amax((0, 2, 3)), g.abs().amax().view(1)])
    q_g = ops.quantize_g(g, threshold[:-1])
    return locals()


def glue_calls(v: dict) -> dict:
    y, stats, affine = v["y"], ops.stats_of(v["y"]), [torch.rand(6) for _ in range(4)]
    forward = (y, stats, *affine, v["g"], 1, True, True, True, True)
    *_, codes, grid, mask = torch.ops.daq_mm.norm_act_forward(*forward)
    backward = (v["g"], mask, codes, grid, torch.randn(3, 6))
    maximum = v["threshold"]
    state = (torch.rand(7), torch.rand(7), torch.zeros(1, dtype=torch.int64))
    return {
        "conv_forward_stats": (
            v["q_x"],
            v["x_qparams"],
            v["w"],
            torch.randn(6),
            *GEOMETRY,
            torch.bfloat16,
            True,
        ),
        "stats_of": (y,),
        "batch_norm_statistics": (stats, 84.0, torch.zeros(6), torch.ones(6), 0.1, 1e-5),
        "norm_act_forward": forward,
        "norm_act_reduce": (v["g"], y, mask, codes, grid, *affine[2:], True),
        "grad_input_reduce": (
            *(v["q_g"], v["q_w"], v["w_step"], [2, 4, 6, 7], *GEOMETRY, torch.bfloat16),
            *(None, None, None, None, None, None),
        ),
        "norm_backward_apply": backward,
        "norm_backward_maxima": backward,
        "norm_backward_quantize": (*backward, maximum[:-1], torch.tensor([7])),
        "norm_backward_thresholds": (*backward, *state, True, 0.2, 0.8, True, 0.3, 50),
        "thresholds_from_maxima": (maximum, *state, True, 0.2, 0.8, True, 0.3),
    }


def calls():
    v = operands()
    f32 = torch.float32
    return {
        **glue_calls(v),
        "quantize_x": (v["x"], True),
        "quantize_w": (v["w"],),
        "quantize_w_folded": (v["w"], v["threshold"][:-1], 2),
        "quantize_g": (v["g"], v["threshold"][:-1], torch.tensor([7])),
        "update_thresholds": (
            v["g"],
            torch.rand(7),
            torch.ones(7),
            torch.zeros(1, dtype=torch.int64),
            True,
            0.2,
            0.8,
            True,
            0.3,
            2,
        ),
        "forward": (v["q_x"], v["x_qparams"], v["q_w"], v["w_step"], None, *GEOMETRY, f32),
        "grad_input": (v["q_g"], v["q_w"], v["w_step"], [2, 4, 6, 7], *GEOMETRY, f32),
        "grad_weight": (
            v["q_x"],
            v["x_qparams"],
            v["q_g"],
            v["threshold"][:-1],
            [3, 3],
            *GEOMETRY,
            f32,
        ),
        "byte_sums": (v["q_g"].flatten(1),),
        "window_sums": (v["q_x"], v["x_qparams"], [3, 3], *GEOMETRY[:3]),
        "conv_forward": (v["x"], v["w"], torch.randn(6), *GEOMETRY, True, torch.bfloat16),
        "conv_backward": (
            v["g"],
            v["q_x"],
            v["x_qparams"],
            v["w"],
            v["threshold"],
            None,
            *GEOMETRY,
            True,
            True,
            [True, True, False],
            f32,
        ),
        "update_direction_threshold": (
            v["g"],
            torch.zeros(7),
            torch.zeros(1),
            torch.zeros(1, dtype=torch.int64),
            10,
            8,
        ),
        "composed_forward": (v["x"], v["w"], torch.randn(6), *GEOMETRY, True, f32, 5, 4),
        "composed_backward": (
            v["g"],
            v["q_x"],
            v["x_qparams"],
            v["w"],
            v["threshold"],
            torch.tensor([7]),
            *GEOMETRY,
            "sample",
            "sample",
            [True, True, True],
            f32,
            5,
            4,
            False,
        ),
    }


@pytest.mark.parametrize("name", sorted(calls()))
def test_opcheck(backend, name):
    op = getattr(torch.ops.daq_mm, name).default
    torch.library.opcheck(
        op, calls()[name], test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_static")
    )


def test_backend_is_named():
    built, reason = ops.kernels_built(DEVICE)
    assert reason
    name = ops.backend_of(torch.zeros(1))
    own = f"cpu/{ops.cpu_capability()}" if DEVICE == "cpu" else DEVICE
    assert name == (own if built else "reference")
    assert ops.backend_of(torch.zeros(1, device="meta")) == "reference"


def test_unknown_capability_is_refused():
    if not ops.kernels_built("cpu")[0]:
        pytest.skip(ops.kernels_built("cpu")[1])
    with pytest.raises(ValueError, match="CPU capability 'sse9' is not available; allowed"):
        ops.set_cpu_capability("sse9")
