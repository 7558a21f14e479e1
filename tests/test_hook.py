"""DAQHook in real mmengine runs: conversion, warm-up, logs, checkpoints, EMA, resuming."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from daq_mm import DAQConv2d, DAQHook, autotune, ops
from daq_mm.quantizers import quantizers_of
from toy_runner import ToyModel, needs_resume, toy_runner

REFERENCE = not ops.kernels_built("cpu")[0]
HOOK = dict(interval=4, allow_reference=REFERENCE)


def scalars(work_dir):
    """The lines of mmengine's scalar log."""
    path = next(Path(work_dir).glob("*/vis_data/scalars.json"))
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_trains_converts_and_logs(tmp_path):
    runner = toy_runner(tmp_path, hook=HOOK, epochs=3)
    model = runner.train()
    assert type(model.stem) is nn.Conv2d and type(model.body) is DAQConv2d
    lines = scalars(tmp_path)
    for key in ("gaussian_share", "inverted_t_share", "clipped_share"):
        assert 0 <= lines[0][f"daq_{key}"] <= 1, key
    for role in "xwg":
        assert 20 < lines[0][f"daq_snr_{role}_db"] < 70
    assert lines[-1]["loss"] < lines[0]["loss"]
    log = next(Path(tmp_path).glob("*/*.log")).read_text()
    assert "2 converted" in log and "INT8 backend:" in log
    assert runner.message_hub.get_info("daq_backend") == ops.backend_of(torch.zeros(1))


def test_inside_a_run_it_is_the_same_as_by_hand(tmp_path):
    """Conversion by the hook keeps the optimizer's Parameters."""
    runner = toy_runner(tmp_path, hook=HOOK, epochs=1)
    before = [p.detach().clone() for p in runner.model.parameters()]
    model = runner.train()
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters()))


def test_warmup(tmp_path):
    seen = []

    class Spy(DAQHook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            super().before_train_iter(runner, batch_idx, data_batch)
            seen.append(runner.model.body.in_warmup())

    runner = toy_runner(tmp_path, epochs=1)
    runner.register_hook(Spy(dict(warmup_iters=3), **HOOK))
    runner.train()
    assert seen == [True] * 3 + [False] * 5


def test_conv_cfg_builds_the_layer():
    from mmcv.cnn import build_conv_layer

    layer = build_conv_layer(dict(type="DAQConv2d", config=dict(recipe="paper")), 4, 8, 3)
    assert type(layer) is DAQConv2d and layer.config.recipe == "paper"


def test_nothing_to_convert_is_an_error(tmp_path):
    runner = toy_runner(tmp_path, hook=dict(config=dict(include=["stem"]), **HOOK))
    with pytest.raises(ValueError, match="DAQHook converted no convolution"):
        runner.train()


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (dict(config=dict(recipe="papr")), ValueError, "recipe='papr' is unknown; allowed: daq"),
        (dict(config=dict(clip=1)), TypeError, "unknown setting clip; allowed: recipe"),
        (dict(interval=0), ValueError, "interval=0 must be an integer of at least 1"),
        (dict(autotune=1), ValueError, "autotune=1 is not allowed: True or False"),
        (dict(channels_last="yes"), ValueError, "channels_last='yes' is not allowed: True or"),
    ],
)
def test_wrong_settings_are_told_at_once(arguments, error, words):
    with pytest.raises(error) as raised:
        DAQHook(**arguments)
    assert words in str(raised.value)


def test_channels_last_is_the_same_training(tmp_path):
    """Weights are turned before the first iteration, in the checkpoint too; values stay."""
    ends, states = [], []
    for channels_last in (False, True):
        torch.manual_seed(0)
        work_dir = tmp_path / str(channels_last)
        hook = dict(HOOK, channels_last=channels_last)
        model = toy_runner(work_dir, hook=hook, epochs=1).train()
        ends.append([p.detach().clone() for p in model.parameters()])
        states.append(torch.load(work_dir / "epoch_1.pth", weights_only=False)["state_dict"])
        for name in ("stem", "body", "head"):
            for weight in (model.get_submodule(name).weight, states[-1][f"{name}.weight"]):
                assert weight.stride(1) == (1 if channels_last else weight[0, 0].numel())
    for a, b in zip(*ends):
        torch.testing.assert_close(a, b, rtol=0.02, atol=2e-3)
    ToyModel().load_state_dict(
        {k: v for k, v in states[1].items() if "gradient_quantizer" not in k}, strict=True
    )


def test_autotuning_is_refused_on_a_cpu(tmp_path):
    runner = toy_runner(tmp_path, hook=dict(HOOK, autotune=True), epochs=1)
    with pytest.raises(RuntimeError, match="autotune=True measures the CUDA .*model is on cpu"):
        runner.train()


def test_autotuning_begins_with_a_model_on_a_gpu_and_is_saved(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(autotune, "enabled", lambda: "enable" in done)
    monkeypatch.setattr(autotune, "enable", lambda: done.append("enable"))
    monkeypatch.setattr(autotune, "save", lambda: done.append("save"))
    monkeypatch.setattr(DAQHook, "_enable_autotune", staticmethod(_as_on_a_gpu))
    toy_runner(tmp_path / "off", hook=HOOK, epochs=1).train()
    assert not done
    toy_runner(tmp_path / "on", hook=dict(HOOK, autotune=True), epochs=2).train()
    assert done == ["enable", "save", "save", "save"]  # two checkpoints, and the end


_enable_autotune = DAQHook._enable_autotune


def _as_on_a_gpu(model):
    """The hook's own function on a model that says that it is on a GPU."""
    parameter = SimpleNamespace(device=torch.device("cuda"))
    for _ in range(2):  # before_run fires again for validation
        _enable_autotune(SimpleNamespace(parameters=lambda: iter([parameter])))


def test_reference_is_refused_unless_allowed(tmp_path, monkeypatch):
    monkeypatch.setattr(ops.backend, "_KERNELS", None)
    with pytest.raises(RuntimeError, match="daq_mm._C was not built; rebuild.*allow_reference"):
        toy_runner(tmp_path, hook={}).train()


@pytest.mark.parametrize("config", [dict(gradient_bits=5), dict(recipe="dorefa")])
def test_settings_that_kernels_lack_are_refused_unless_allowed(tmp_path, config):
    hook = dict(config=config, interval=4)
    if not REFERENCE:
        with pytest.raises(RuntimeError, match="no kernels quantize by gr.*allow_reference"):
            toy_runner(tmp_path / "refused", hook=hook).train()
    runner = toy_runner(tmp_path, hook=dict(hook, allow_reference=True), epochs=3)
    runner.train()
    lines = scalars(tmp_path)
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_ui8_logs_its_scale_of_updates(tmp_path):
    toy_runner(tmp_path, hook=dict(config="ui8", **HOOK), epochs=3).train()
    lines = scalars(tmp_path)
    assert all(0.1 <= line["daq_update_scale"] <= 1 for line in lines)
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_checkpoint_holds_thresholds_and_test_loads_it(tmp_path):
    runner = toy_runner(tmp_path, hook=HOOK, epochs=1)
    model = runner.train()
    state = torch.load(tmp_path / "epoch_1.pth", weights_only=False)["state_dict"]
    name = "body.gradient_quantizer.threshold"
    assert torch.equal(state[name], model.body.gradient_quantizer.threshold)
    assert state["body.gradient_quantizer.iteration"] == 16  # 8 iterations, used twice in each
    plain = ToyModel()
    missing, _ = plain.load_state_dict(state, strict=False)
    assert not missing


@needs_resume
@pytest.mark.parametrize("recipe", ["paper", "daq", "ui8"])
def test_resumed_run_ends_like_an_uninterrupted_one(tmp_path, recipe):
    hook = dict(config=dict(recipe=recipe, rounding="stochastic"), **HOOK)
    whole = toy_runner(tmp_path / "whole", hook=hook, epochs=4).train()
    toy_runner(tmp_path / "part", hook=hook, epochs=2).train()
    resumed = toy_runner(tmp_path / "part", hook=hook, epochs=4, resume=True).train()
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values()):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("update_buffers", [False, True])
def test_ema_does_not_average_thresholds(tmp_path, update_buffers):
    ema = dict(type="EMAHook", momentum=0.3, update_buffers=update_buffers)
    runner = toy_runner(tmp_path, hook=HOOK, hooks=[ema], epochs=2)
    plain = toy_runner(tmp_path / "plain", hook=HOOK, epochs=2)
    model = runner.train()
    without = plain.train()
    checkpoint = torch.load(tmp_path / "epoch_2.pth", weights_only=False)
    for name, quantizer in quantizers_of(model).items():
        for key, value in quantizer.state_dict().items():
            assert torch.equal(value, checkpoint["ema_state_dict"][f"module.{name}.{key}"])
            assert torch.equal(value, checkpoint["state_dict"][f"{name}.{key}"])
            assert torch.equal(value, quantizers_of(without)[name].state_dict()[key])


def test_amp_wrapper_and_gradient_accumulation(tmp_path):
    optim = dict(
        type="BF16OptimWrapper",
        accumulative_counts=2,
        optimizer=dict(type="SGD", lr=0.05, momentum=0.9),
    )
    toy_runner(tmp_path, hook=HOOK, epochs=3, optim_wrapper=optim).train()
    lines = scalars(tmp_path)
    assert lines[-1]["loss"] < lines[0]["loss"]
