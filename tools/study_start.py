#!/usr/bin/env python
"""Does quantization change how a training starts? Loss curves and gradients, recipe by recipe.

Curves: the first iterations of a config by several recipes from the same seeds; `exit` is the
iteration at which the smoothed loss first falls below --exit-loss. The control `fp32~1e-6` is FP32
from weights that differ by a millionth: as far as it departs from `fp32`, a departure is chance.

Gradients: FP32 trains for --gradients-at iterations; then every recipe computes the weight
gradients g' of the same batches from the same weights, beside FP32's g. Of each layer, means over
batches: `error` |g' - g| / |g|; `kept` <g', g> / <g, g>, the share of g that is left; `noise` what
g' has besides that share, over |g|; `between_batches` |g - h| / |g| of the gradients g, h of two
batches, which is 1.41 if they have nothing in common.

A recipe may carry settings: daq:unsigned_activations=False,rounding=stochastic. And only:x, only:w
and so on (analysis/operands.py) quantize one operand and nothing else: which of them an error, or a
delay, comes from. The record's `medians` are over layers: all, and depthwise ones apart.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import statistics
import sys
import tempfile
from pathlib import Path

import torch
from mmengine.config import DictAction
from mmengine.hooks import Hook
from mmengine.runner import Runner

import daq_mm
from analysis.operands import quantize_part
from bench import allocator
from common.configs import UsageError, check_data, load_config, set_recipe
from common.provenance import provenance, write_json
from common.recipes import split_recipe
from daq_mm.amp import BF16OptimWrapper
from daq_mm.reproducible import EpochSeedHook

CONTROL = "fp32~1e-6"
ONLY = "only"
SMOOTHING = 20
#: What is told of the gradients of each layer.
COMPARED = ("error", "kept", "noise", "kept_of_mean", "noise_of_mean")


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="an FP32 config")
    parser.add_argument("--recipes", nargs="+", default=["fp32", CONTROL, "bf16", "paper", "daq"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, default=200, help="of a curve; 0: no curves")
    parser.add_argument("--exit-loss", type=float, help="loss that tells that a plateau is left")
    parser.add_argument("--gradients-at", type=int, help="iterations of FP32 before the gradients")
    parser.add_argument("--batches", type=int, default=12, help="batches of the gradients")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, help="key=value overrides")
    return parser.parse_args(arguments)


class StopHook(Hook):
    """Collect the loss of each iteration and end the training after so many."""

    def __init__(self, iterations: int) -> None:
        self.iterations = iterations
        self.losses: list[float] = []

    def before_train(self, runner) -> None:
        """The schedule was built for the whole training; only the loop ends early."""
        runner.train_loop._max_epochs = -(-self.iterations // len(runner.train_dataloader))

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """Keep the loss; the iterations that an epoch has too many are not used."""
        self.losses.append(float(runner.message_hub.get_scalar("train/loss").current()))
        if len(self.losses) == self.iterations:
            raise StopIteration


def train(args: argparse.Namespace, text: str, seed: int, iterations: int) -> tuple:
    """The runner after so many iterations by a recipe, and its losses."""
    recipe, settings = split_recipe(text)
    cfg = load_config(args.config, copy.deepcopy(args.cfg_options))
    set_recipe(cfg, "fp32" if recipe in (CONTROL, ONLY) else recipe)
    for hook in cfg.custom_hooks:
        if hook["type"] == "DAQHook":
            hook["config"].update(settings)
    check_data(cfg, ("train",))
    cfg.work_dir, cfg.log_level = tempfile.mkdtemp(prefix="study_start_"), "ERROR"
    cfg.experiment_name = f"{recipe}-{seed}-{Path(cfg.work_dir).name}"
    cfg.randomness.seed = seed
    cfg.default_hooks.pop("checkpoint", None)
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.test_cfg = cfg.test_dataloader = cfg.test_evaluator = None
    runner = Runner.from_cfg(cfg)
    torch.set_num_threads(args.threads)
    if recipe == CONTROL:
        generator = torch.Generator().manual_seed(seed)
        runner.model.init_weights()
        runner.model.init_weights = lambda: None
        for weight in runner.model.parameters():
            weight.data *= 1 + 1e-6 * torch.randn(weight.shape, generator=generator)
    if recipe == ONLY:
        with_part(runner.model, text, in_place=True)
    stop = StopHook(iterations)
    runner.register_hook(EpochSeedHook())
    runner.register_hook(stop, priority="LOWEST")
    try:
        runner.train()
    except StopIteration:
        pass
    return runner, stop.losses


def exit_iteration(losses: list[float], limit: float) -> int | None:
    """First iteration at which the mean of the last `SMOOTHING` losses is below the limit."""
    for i in range(SMOOTHING, len(losses) + 1):
        if statistics.fmean(losses[i - SMOOTHING : i]) < limit:
            return i
    return None


def curves(args: argparse.Namespace) -> list[dict]:
    """A row for each recipe and seed: losses, and the iteration at which the plateau is left."""
    rows = []
    for seed in args.seeds:
        for text in args.recipes:
            losses = train(args, text, seed, args.iterations)[1]
            row = {"recipe": text, "seed": seed, "losses": [round(v, 4) for v in losses]}
            row["last_loss"] = statistics.fmean(losses[-SMOOTHING:])
            if args.exit_loss is not None:
                row["exit"] = exit_iteration(losses, args.exit_loss)
            rows.append(row)
            print(f"{text:40} seed {seed}: exit {row.get('exit')}, last {row['last_loss']:.3f}")
    return rows


def weight_gradients(model, batch, recipe: str, seed: int) -> dict[str, torch.Tensor]:
    """float32 gradient of each convolution's weight in one batch, by name."""
    torch.manual_seed(seed)  # dropout
    model.zero_grad()
    data = model.data_preprocessor(copy.deepcopy(batch), True)
    with precision(model, recipe):
        loss, _ = model.parse_losses(model(**data, mode="loss"))
    loss.backward()
    return {
        name: module.weight.grad.detach().clone()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.modules.conv._ConvNd)
    }


def precision(model, recipe: str):
    """The context of the forward pass: bfloat16 autocast, as in a training, or nothing."""
    if recipe != "bf16":
        return contextlib.nullcontext()
    return BF16OptimWrapper(optimizer=torch.optim.SGD(model.parameters(), 0.0)).optim_context(model)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """|a - b| / |b|."""
    return float((a - b).norm() / b.norm().clamp_min(1e-30))


def kept_and_noise(found: torch.Tensor, exact: torch.Tensor) -> tuple[float, float]:
    """The share of `exact` in `found`, and what is beside it, relative to `exact`."""
    kept = float((found * exact).sum() / exact.square().sum())
    return kept, float((found - kept * exact).norm() / exact.norm())


def compare(found: list[torch.Tensor], exact: list[torch.Tensor]) -> dict[str, float]:
    """Means over batches of error, share kept and noise beside it; the latter two of means too."""
    kept, noise = zip(*map(kept_and_noise, found, exact))
    of_mean = kept_and_noise(torch.stack(found).mean(0), torch.stack(exact).mean(0))
    values = (statistics.fmean(map(distance, found, exact)), *map(statistics.fmean, (kept, noise)))
    return dict(zip(COMPARED, (*values, *of_mean)))


def gradients(args: argparse.Namespace) -> dict:
    """For each recipe and layer: error in a batch, bias over batches; and the noise of batches."""
    runner, losses = train(args, "fp32", args.seeds[0], args.gradients_at)
    loader = iter(runner.train_dataloader)
    batches = [next(loader) for _ in range(args.batches + 2)]
    found = {}
    for text in ["fp32", *(r for r in args.recipes if r not in ("fp32", CONTROL))]:
        model = copied_by(text, runner.model).train()
        recipe = split_recipe(text)[0]
        steps = [weight_gradients(model, b, recipe, i) for i, b in enumerate(batches)]
        found[text] = steps[2:]  # thresholds have settled after two
    exact = found.pop("fp32")
    layers = list(exact[0])
    noise = {
        name: statistics.fmean(distance(a[name], b[name]) for a, b in zip(exact[1:], exact))
        for name in layers
    }
    table = {
        text: {name: compare([s[name] for s in steps], [e[name] for e in exact]) for name in layers}
        for text, steps in found.items()
    }
    apart = depthwise(runner.model)
    medians = {text: medians_of(rows, apart) for text, rows in table.items()}
    for text, groups in medians.items():
        words = ", ".join(f"{key} {value:.3f}" for key, value in groups["all"].items())
        print(f"{text:40} medians over layers: {words}")
    print(f"between batches: median {statistics.median(noise.values()):.3f}")
    return {
        "seed": args.seeds[0],
        "iterations": args.gradients_at,
        "batches": args.batches,
        "loss": statistics.fmean(losses[-SMOOTHING:]),
        "between_batches_median": statistics.median(noise.values()),
        "medians": medians,
        "between_batches": noise,
        "recipes": table,
    }


def copied_by(text: str, model) -> torch.nn.Module:
    """A copy of the model that computes by a recipe, or with one operand quantized."""
    recipe, settings = split_recipe(text)
    if recipe == ONLY:
        return with_part(model, text)
    model = copy.deepcopy(model)
    if recipe not in ("fp32", "bf16"):
        daq_mm.convert_model(model, {"recipe": recipe, **settings})
    return model


def with_part(model, text: str, in_place: bool = False) -> torch.nn.Module:
    """`quantize_part` of 'only:PART'."""
    try:
        return quantize_part(model, text.partition(":")[2], in_place)
    except ValueError as error:
        raise UsageError(str(error)) from error


def depthwise(model) -> set[str]:
    """Names of the convolutions with a group for each channel."""
    return {
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.modules.conv._ConvNd)
        and 1 < module.groups == module.in_channels
    }


def medians_of(rows: dict[str, dict[str, float]], apart: set[str]) -> dict[str, dict[str, float]]:
    """Medians over all layers, and over those apart and the others where there are some apart."""
    groups = {
        "all": list(rows),
        "depthwise": [name for name in rows if name in apart],
        "others": [name for name in rows if name not in apart],
    }
    return {
        group: {key: statistics.median(rows[name][key] for name in names) for key in COMPARED}
        for group, names in groups.items()
        if names and (group == "all" or apart)
    }


def main(arguments: list[str] | None = None) -> None:
    """Study, print and write the record."""
    args = parse_args(arguments)
    allocator.configure("heap")
    record = {"config": args.config}
    if args.iterations:
        record["curves"] = curves(args)
    if args.gradients_at is not None:
        record["gradients"] = gradients(args)
    settings = {name: value for name, value in vars(args).items() if name != "out"}
    write_json(args.out, {**record, **provenance(settings)})


if __name__ == "__main__":
    try:
        main()
    except UsageError as error:
        sys.exit(f"error: {error}")
