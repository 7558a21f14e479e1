"""Fusing blocks of a converted model, in place: plans are installed and taken away again."""

from __future__ import annotations

from types import MethodType

from torch import nn

from .config import DAQConfig
from .conv import _Int8Mixin
from .norm import is_batch_norm
from .plan import NoPlan, Plan, make_plan
from .run_plan import PLAN, forward, is_fused


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
        if plan.units or _joins_blocks(module, plan, plans):
            setattr(module, PLAN, plan)
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
            delattr(module, PLAN)


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


def _joins_blocks(module: nn.Module, plan: Plan, plans: dict[nn.Module, Plan]) -> bool:
    """Whether a plan without units calls two blocks with units, between which layouts can stay."""
    called = [module.get_submodule(path) for path in plan.called()]
    return sum(child in plans and bool(plans[child].units) for child in called) >= 2


def _is_block(module: nn.Module) -> bool:
    """Whether it has an INT8 convolution and a norm as children, so that fusing was to be hoped."""
    children = list(module.children())
    has_conv = any(isinstance(child, _Int8Mixin) for child in children)
    return has_conv and any(is_batch_norm(child) for child in children)
