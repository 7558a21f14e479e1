"""DAQHook: the one line that makes a mmengine run train in INT8."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.hooks import EMAHook, Hook
from mmengine.model import is_model_wrapper
from torch import nn

from . import autotune, ops
from .channels_last import to_channels_last
from .config import DAQConfig
from .convert import ConversionReport, convert_model, int8_layers, set_iteration
from .observe import Observer, merge
from .quantizers import quantizers_of, synchronize


class DAQHook(Hook):
    """Convert the runner's model, warm up, agree across ranks, log.

    It runs before EMAHook copies the model, because that hook pairs buffers by position. What a
    checkpoint needs is in the layers' buffers, so saving and resuming take no part here.

    Args:
        config: DAQConfig, a dict of its fields (with an optional 'recipe'), a recipe's name, or
            None for the recipe 'daq'.
        interval: training iterations between two observations for the log, at least 1. An
            observed iteration costs several passes over the tensors more.
        allow_reference: train even where no compiled kernels serve the model's device or the
            config's settings (`DAQConfig.without_kernels`); the reference gives the same numbers,
            many times slower.
        autotune: measure the CUDA kernels' tiles and splits where the cache on disk does not know
            them (`daq_mm.autotune.enable`); it stays on after the run. For models on a GPU alone.
        channels_last: lay the weights of convolutions out channels-last, so that every activation
            after the first convolution is, as the kernels compute (`to_channels_last`). Faster;
            off by default, because a module that calls `view` on a feature map may refuse it.
    """

    priority = "HIGH"

    def __init__(
        self,
        config: DAQConfig | Mapping[str, Any] | str | None = None,
        *,
        interval: int = 50,
        allow_reference: bool = False,
        autotune: bool = False,
        channels_last: bool = False,
    ) -> None:
        self.config = DAQConfig.make(config)
        if not isinstance(interval, int) or interval < 1:
            raise ValueError(f"interval={interval!r} must be an integer of at least 1")
        for name, value in (("autotune", autotune), ("channels_last", channels_last)):
            if not isinstance(value, bool):
                raise ValueError(f"{name}={value!r} is not allowed: True or False")
        self.interval = interval
        self.autotune = autotune
        self.channels_last = channels_last
        self.allow_reference = allow_reference
        self.report: ConversionReport | None = None

    def before_run(self, runner) -> None:
        """Convert the model; also fires before validation and test, where it changes nothing."""
        model = _plain(runner.model)
        self._check_backend(model)
        if self.autotune:
            self._enable_autotune(model)
        if self.channels_last:
            to_channels_last(model)
        report = convert_model(model, self.config)
        first_time = self.report is None
        if first_time:
            self.report = report
            runner.logger.info(f"{report}\nINT8 recipe: {self.config}")
        if not any(True for _ in int8_layers(model)):
            raise ValueError(
                "DAQHook converted no convolution of the model; see the settings include, "
                f"exclude and convert_first:\n{report}"
            )
        if first_time:
            backend, reason = self._backend(model)
            runner.logger.info(f"INT8 backend: {backend} ({reason})")
            runner.message_hub.update_info("daq_backend", backend)

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        """Count the warm-up; on observed iterations, hand each layer an observer."""
        model = _plain(runner.model)
        set_iteration(model, runner.iter)
        if self.every_n_train_iters(runner, self.interval):
            for layer in int8_layers(model):
                layer.observer = Observer()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """Make the ranks' thresholds agree, and log what was observed."""
        model = _plain(runner.model)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            synchronize(model)
        if self.every_n_train_iters(runner, self.interval):
            for name, value in self._observed(model).items():
                runner.message_hub.update_scalar(f"train/daq_{name}", value)

    def before_val_epoch(self, runner) -> None:
        """EMAHook averages buffers when asked to; thresholds must not be averaged."""
        self._restore_averaged_thresholds(runner)

    def before_save_checkpoint(self, runner, checkpoint) -> None:
        """As before_val_epoch: the averaged model is saved too. So is what was measured."""
        self._restore_averaged_thresholds(runner)
        if self.autotune:
            autotune.save()

    def after_run(self, runner) -> None:
        """Write what was measured to the cache on disk."""
        if self.autotune:
            autotune.save()

    def _observed(self, model: nn.Module) -> dict[str, float]:
        observers = [layer.observer for layer in int8_layers(model) if layer.observer]
        for layer in int8_layers(model):
            layer.observer = None
        values = merge(observers)
        gaussian = torch.cat([q.gaussian()[:-1] for q in quantizers_of(model).values()])
        share = gaussian.float().mean().item()
        scales = [q.update_scale() for q in quantizers_of(model).values()]
        scales = [scale for scale in scales if scale is not None]
        if scales:
            values["update_scale"] = torch.cat(scales).mean().item()
        return {"gaussian_share": share, "inverted_t_share": 1.0 - share, **values}

    @staticmethod
    def _enable_autotune(model: nn.Module) -> None:
        device = next(model.parameters()).device
        if device.type != "cuda":
            raise RuntimeError(
                f"autotune=True measures the CUDA kernels, and the model is on {device}: train it "
                "on a GPU, or leave autotune out of DAQHook"
            )
        if not autotune.enabled():
            autotune.enable()

    def _backend(self, model: nn.Module) -> tuple[str, str]:
        tensor = next(model.parameters())
        return ops.backend_of(tensor), ops.kernels_built(tensor.device.type)[1]

    def _check_backend(self, model: nn.Module) -> None:
        if self.allow_reference:
            ops.allow_reference()
        backend, reason = self._backend(model)
        if backend == "reference" and not self.allow_reference:
            raise RuntimeError(
                f"no INT8 kernels for this run: {reason}. To train with the slow reference all "
                "the same, set allow_reference=True in DAQHook"
            )
        settings = self.config.without_kernels()
        if settings and not self.allow_reference:
            raise RuntimeError(
                f"no kernels quantize by {', '.join(settings)}: the reference does, slowly. To "
                "train with it all the same, set allow_reference=True in DAQHook"
            )

    @staticmethod
    def _restore_averaged_thresholds(runner) -> None:
        source = quantizers_of(_plain(runner.model))
        for hook in runner.hooks:
            if isinstance(hook, EMAHook) and hasattr(hook, "ema_model"):
                for name, averaged in quantizers_of(hook.ema_model.module).items():
                    if name in source:
                        averaged.load_state_dict(source[name].state_dict())


def _plain(model: nn.Module) -> nn.Module:
    """The model without the wrapper of distributed training."""
    return model.module if is_model_wrapper(model) else model
