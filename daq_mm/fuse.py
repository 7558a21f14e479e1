"""Fusing blocks of a converted model, in place: plans are installed, run, and taken away again."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .config import DAQConfig
from .conv import DAQConv2d, DAQConv3d, _Int8Mixin
from .glue import fused_unit
from .norm import is_batch_norm
from .plan import CallStep, NoPlan, Plan, UnitStep, Value, make_plan
from .pool import compact_max_pool, pools_compactly
from .twin import move_twin

Tensor = torch.Tensor

_PLAN = "_daq_plan"


def fuse_model(
    model: nn.Module, config: DAQConfig
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Give every block of a converted model that has one a plan; idempotent.

    Blocks are visited from the innermost outwards. A block with a plan of one unit, and a
    Sequential, is looked into again when the block around it is planned: a residual block then
    fuses across its ConvModules. Their own plans serve where the outer one steps aside.

    Args:
        model: after `convert_model`; any module.
        config: settings of units without an INT8 convolution.

    Returns:
        (name, units in words) of the blocks that have units of their own, and
        (name, reason) of those with INT8 convolutions and norms of their own and no plan.
    """
    plans: dict[nn.Module, Plan] = {}
    reasons: dict[nn.Module, str] = {}
    for module in _innermost_first(model):
        if "forward" in module.__dict__ and not is_fused(module):
            reasons[module] = "its forward is replaced on the instance"
            continue
        try:
            plans[module] = make_plan(
                module,
                lambda child: _looked_into(child, plans),
                allow_unsigned=config.unsigned_activations,
                saved_output=config.saved_output,
            )
        except NoPlan as error:
            reasons[module] = str(error)
    names = {module: name for name, module in model.named_modules()}
    fused, inside = [], set()
    for module, plan in plans.items():
        if plan.units:
            setattr(module, _PLAN, plan)
            module.forward = MethodType(forward, module)
    for module, plan in reversed(plans.items()):
        if plan.units and module not in inside:
            fused.append((names[module], ", ".join(unit.words() for unit in plan.units)))
            inside.update(module.get_submodule(path) for path in plan.covered)
    unplanned = [(names[module], reason) for module, reason in reasons.items() if _is_block(module)]
    return sorted(fused), sorted(unplanned)


def unfuse_model(model: nn.Module) -> None:
    """Take every plan away; blocks run as they were written."""
    for module in model.modules():
        if is_fused(module):
            del module.forward
            delattr(module, _PLAN)


def is_fused(module: nn.Module) -> bool:
    """Whether the block has a plan."""
    return _PLAN in module.__dict__


# Its name is what pickle looks up on the class: a model that is pickled whole comes back unfused.
def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Run a block by its plan, or as it was written where the plan does not hold."""
    plan: Plan = self.__dict__[_PLAN]
    if kwargs or not _plan_holds(self, plan, args):
        return type(self).forward(self, *args, **kwargs)
    if plan.checkpointed and self.with_cp and torch.is_grad_enabled():
        return checkpoint(_run, self, plan, *args, use_reentrant=False)
    return _run(self, plan, *args)


def _innermost_first(model: nn.Module) -> list[nn.Module]:
    """Modules that contain convolutions or norms with children, children before parents."""
    order = []

    def visit(module: nn.Module) -> bool:
        relevant = [visit(child) for child in module.children()]
        if isinstance(module, _Int8Mixin) or is_batch_norm(module):
            return True
        if any(relevant) and module not in seen:
            seen.add(module)
            order.append(module)
        return any(relevant)

    seen: set[nn.Module] = set()
    visit(model)
    return order


def _looked_into(child: nn.Module, plans: dict[nn.Module, Plan]) -> bool:
    plan = plans.get(child)
    if plan is None:
        return False
    return type(child).forward is nn.Sequential.forward or len(plan.units) <= 1


def _is_block(module: nn.Module) -> bool:
    """Whether it has an INT8 convolution and a norm as children, so that fusing was to be hoped."""
    children = list(module.children())
    has_conv = any(isinstance(child, _Int8Mixin) for child in children)
    return has_conv and any(is_batch_norm(child) for child in children)


def _plan_holds(module: nn.Module, plan: Plan, args: tuple) -> bool:
    """Whether the plan may run: floats of a batch, no hooks inside, no warm-up, same layers."""
    if torch.compiler.is_compiling() or len(args) != len(plan.inputs):
        return False
    if not all(isinstance(x, Tensor) and x.is_floating_point() and x.numel() for x in args):
        return False
    if torch.nn.modules.module._has_any_global_hook():
        return False
    if any(_has_hooks(module.get_submodule(path)) for path in plan.covered):
        return False
    inputs = dict(zip(plan.inputs, args))
    for unit in plan.units:
        if unit.conv is not None:
            conv = module.get_submodule(unit.conv)
            if type(conv) not in (DAQConv2d, DAQConv3d) or conv.in_warmup():
                return False
            # What an addition of two dtypes gives depends on whether it works in place, which
            # tracing does not tell.
            added = inputs.get(unit.residual)
            if added is not None and added.dtype != conv.out_dtype(added):
                return False
        if unit.norm is not None and not is_batch_norm(module.get_submodule(unit.norm)):
            return False
    return True


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def _run(module: nn.Module, plan: Plan, *args: Tensor) -> Any:
    channels_last = _is_channels_last(args[0])
    values = dict(zip(plan.inputs, args))
    for step in plan.steps:
        if isinstance(step, UnitStep):
            values[step.out] = _run_unit(module, step, values)
        else:
            # Modules that were written for contiguous tensors get what they would get unfused.
            values[step.out] = _call(module, step, values, contiguous=not channels_last)
        for name in step.free:
            del values[name]
    return _resolve(plan.output, values, contiguous=not channels_last)


def _run_unit(module: nn.Module, unit: UnitStep, values: dict[str, Any]) -> Tensor:
    x = values[unit.x]
    residual = None if unit.residual is None else values[unit.residual]
    conv = None if unit.conv is None else module.get_submodule(unit.conv)
    if not _serves(conv, x, residual):
        for member in unit.members:
            values[member.out] = _call(module, member, values)
        return values[unit.out]
    if conv is not None:
        conv._check_input(x)
    return fused_unit(
        x,
        conv,
        None if unit.norm is None else module.get_submodule(unit.norm),
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
        return getattr(module.get_submodule(owner), name)
    args = _resolve(step.args, values, contiguous)
    kwargs = _resolve(step.kwargs, values, contiguous)
    if step.kind == "module":
        child = module.get_submodule(step.target)
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


def _is_channels_last(x: Tensor) -> bool:
    return x.dim() in (4, 5) and x.stride(1) == 1 and x.shape[1] > 1
