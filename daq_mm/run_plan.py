"""Running blocks by their plans (`daq_mm.plan`), and the layout of tensors between them.

Units compute channels-last; networks are mostly built contiguous, and a module that was written for
contiguous tensors must get them. So a plan that was called with a contiguous tensor returns
contiguous tensors, and gives them to every module that it does not know. Between two blocks that it
calls, and through PyTorch's own layers, tensors stay channels-last.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .conv import DAQConv2d, DAQConv3d, _Int8Mixin
from .glue import fused_unit
from .norm import is_batch_norm
from .ops.layout import channels_last_format
from .plan import CallStep, Plan, UnitStep, Value
from .pool import compact_max_pool, pools_compactly
from .twin import move_twin

Tensor = torch.Tensor

#: PyTorch's layers that compute the same in any layout and keep that of their input.
_ANY_LAYOUT = frozenset(
    (DAQConv2d, DAQConv3d, nn.Conv2d, nn.Conv3d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    + (nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool2d, nn.AvgPool3d)
    + (nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)
    + (nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.Sigmoid, nn.Identity)
    + (nn.Dropout, nn.Dropout2d, nn.Dropout3d)
)

#: The attribute of a module that its plan is kept in.
PLAN = "_daq_plan"

#: The argument by which a plan tells one that it calls that the network is built contiguous.
_CONTIGUOUS = "_daq_contiguous"


def is_fused(module: nn.Module) -> bool:
    """Whether the block has a plan."""
    return PLAN in module.__dict__


# Its name is what pickle looks up on the class: a model that is pickled whole comes back unfused.
def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Run a block by its plan, or as it was written where the plan does not hold."""
    plan: Plan = self.__dict__[PLAN]
    contiguous = kwargs.pop(_CONTIGUOUS, False)
    # The plan that tells so has looked whether this one holds.
    if not contiguous and (kwargs or not _plan_holds(self, plan, args)):
        return type(self).forward(self, *args, **kwargs)
    if plan.checkpointed and self.with_cp and torch.is_grad_enabled():
        return checkpoint(_run, self, plan, contiguous, *args, use_reentrant=False)
    return _run(self, plan, contiguous, *args)


def _plan_holds(module: nn.Module, plan: Plan, args: tuple) -> bool:
    """Whether the plan may run: floats of a batch, no hooks inside, no warm-up, same layers."""
    if torch.compiler.is_compiling() or len(args) != len(plan.inputs):
        return False
    if not all(isinstance(x, Tensor) and x.is_floating_point() and x.numel() for x in args):
        return False
    if torch.nn.modules.module._has_any_global_hook():
        return False
    if any(_has_hooks(_submodule(module, path)) for path in plan.covered):
        return False
    inputs = dict(zip(plan.inputs, args))
    for unit in plan.units:
        if unit.conv is not None:
            conv = _submodule(module, unit.conv)
            if type(conv) not in (DAQConv2d, DAQConv3d) or conv.in_warmup():
                return False
            # What an addition of two dtypes gives depends on whether it works in place, which
            # tracing does not tell.
            added = inputs.get(unit.residual)
            if added is not None and added.dtype != conv.out_dtype(added):
                return False
        if unit.norm is not None and not is_batch_norm(_submodule(module, unit.norm)):
            return False
    return True


def _submodule(module: nn.Module, path: str) -> nn.Module:
    """`get_submodule`, which takes several times as long, once for each layer and call."""
    found = module
    try:
        for name in path.split(".") if path else ():
            found = found._modules[name]
    except (KeyError, AttributeError):
        return module.get_submodule(path)
    return found


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def _run(module: nn.Module, plan: Plan, contiguous: bool, *args: Tensor) -> Any:
    """Run a plan; `contiguous`: the network is built so, although these arguments are not."""
    gives_back = not _is_channels_last(args[0])
    contiguous |= gives_back
    values = dict(zip(plan.inputs, args))
    for step in plan.steps:
        if isinstance(step, UnitStep):
            values[step.out] = _run_unit(module, step, values)
        elif contiguous and step.kind == "module":
            values[step.out] = _call_module(module, step, values)
        else:
            values[step.out] = _call(module, step, values, contiguous)
        for name in step.free:
            del values[name]
    return _resolve(plan.output, values, gives_back)


def _call_module(module: nn.Module, step: CallStep, values: dict[str, Any]) -> Any:
    """Call a module of a network built contiguous, with tensors laid out as it takes them."""
    child = _submodule(module, step.target)
    if _has_hooks(child):
        return _call(module, step, values, contiguous=True)
    if type(child) in _ANY_LAYOUT:
        return _call(module, step, values)
    if is_fused(child) and not step.kwargs:
        args = _resolve(step.args, values)
        if _plan_holds(child, child.__dict__[PLAN], args):
            return child(*(_to_channels_last(x) for x in args), **{_CONTIGUOUS: True})
    return _call(module, step, values, contiguous=True)


def _run_unit(module: nn.Module, unit: UnitStep, values: dict[str, Any]) -> Tensor:
    x = values[unit.x]
    residual = None if unit.residual is None else values[unit.residual]
    conv = None if unit.conv is None else _submodule(module, unit.conv)
    if not _serves(conv, x, residual):
        for member in unit.members:
            values[member.out] = _call(module, member, values)
        return values[unit.out]
    if conv is not None:
        conv._check_input(x)
    return fused_unit(
        x,
        conv,
        None if unit.norm is None else _submodule(module, unit.norm),
        unit.act,
        residual,
        want_out=unit.want_out,
        allow_unsigned=unit.allow_unsigned,
        saved_output=unit.saved_output,
    )


def _serves(conv: _Int8Mixin | None, x: Tensor, residual: Any) -> bool:
    """Whether the unit computes what its members would: batches, and an addition of equals."""
    if not x.numel() or x.dim() not in (4, 5):
        return False
    if conv is not None and x.dim() != len(conv.kernel_size) + 2:
        return False
    if residual is None:
        return True
    size, dtype = (x.shape, x.dtype) if conv is None else (conv.out_size(x), conv.out_dtype(x))
    return isinstance(residual, Tensor) and residual.shape == size and residual.dtype == dtype


def _call(
    module: nn.Module, step: CallStep, values: dict[str, Any], contiguous: bool = False
) -> Any:
    if step.kind == "attribute":
        owner, _, name = step.target.rpartition(".")
        return getattr(_submodule(module, owner), name)
    args = _resolve(step.args, values, contiguous)
    kwargs = _resolve(step.kwargs, values, contiguous)
    if step.kind == "module":
        child = _submodule(module, step.target)
        if pools_compactly(child, args, kwargs):
            return compact_max_pool(child, args[0])
        return child(*args, **kwargs)
    if step.kind == "method":
        return getattr(args[0], step.target)(*args[1:], **kwargs)
    return step.target(*args, **kwargs)


def _resolve(args: Any, values: dict[str, Any], contiguous: bool = False) -> Any:
    """Arguments with values in the place of their names."""
    if isinstance(args, Value):
        value = values[args.name]
        if contiguous and isinstance(value, Tensor):
            return move_twin(value, value.contiguous())
        return value
    if isinstance(args, dict):
        return {key: _resolve(value, values, contiguous) for key, value in args.items()}
    if isinstance(args, (tuple, list)):
        return type(args)(_resolve(value, values, contiguous) for value in args)
    if isinstance(args, slice):
        return slice(*_resolve((args.start, args.stop, args.step), values))
    return args


def _to_channels_last(x: Tensor) -> Tensor:
    """x, which a unit that reads it would turn in any case, with its twin."""
    if x.dim() not in (4, 5):
        return x
    return move_twin(x, x.contiguous(memory_format=channels_last_format(x.dim() - 2)))


def _is_channels_last(x: Tensor) -> bool:
    return x.dim() in (4, 5) and x.stride(1) == 1 and x.shape[1] > 1
