"""Plans of blocks: which convolutions, norms, additions and activations run as one unit.

A block's own `forward` is traced symbolically (torch.fx), so one mechanism reads every residual
block, ConvModule and Sequential, whoever wrote it. What cannot be traced has no plan and runs as
it always did. Plans name modules by their path within the block, so that they survive deepcopy.
"""

from __future__ import annotations

import contextlib
import inspect
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import nn

from .conv import DAQConv2d, DAQConv3d
from .norm import is_batch_norm

_ADDITIONS = (operator.add, torch.add)
_ADDITIONS_IN_PLACE = (operator.iadd,)
_ACTIVATION_FUNCTIONS = {F.relu: "relu", torch.relu: "relu", F.relu6: "relu6"}
_ACTIVATION_METHODS = {"relu": "relu", "relu_": "relu"}
_ACTIVATION_MODULES = {nn.ReLU: "relu", nn.ReLU6: "relu6"}
#: Nodes by which torch.fx checks that arguments have the values that were traced.
_CHECKS = (torch._assert, torch.fx._symbolic_trace._assert_is_none, operator.eq)


@dataclass(frozen=True)
class Value:
    """Reference to a value of the plan, by name."""

    name: str


@dataclass(frozen=True)
class CallStep:
    """Anything that is called as it stands in the block.

    Attributes:
        out: name of the result.
        kind: 'module', 'function', 'method' or 'attribute'.
        target: path of the module or attribute, the function, or the method's name.
        args, kwargs: with `Value`s in the place of tensors.
        free: values that nobody reads afterwards.
    """

    out: str
    kind: str
    target: Any
    args: tuple
    kwargs: dict[str, Any]
    free: tuple[str, ...] = ()


@dataclass(frozen=True)
class UnitStep:
    """A fused unit.

    Attributes:
        out, x, residual: names of the result, the input, and the value added, or None.
        conv, norm: paths of the modules, or None.
        act: 'none', 'relu' or 'relu6'.
        want_out: whether anything but INT8 convolutions of this plan reads the result.
        allow_unsigned, saved_output: settings of DAQConfig that hold for the result.
        members: the calls that the unit stands for, run one by one where it cannot serve.
        free: values that nobody reads afterwards.
    """

    out: str
    x: str
    conv: str | None
    norm: str | None
    act: str
    residual: str | None
    want_out: bool
    allow_unsigned: bool
    saved_output: str
    members: tuple[CallStep, ...]
    free: tuple[str, ...] = ()

    def words(self) -> str:
        """For reports: conv2+bn2+relu."""
        parts = [self.conv, self.norm, "add" if self.residual else None]
        parts.append(None if self.act == "none" else self.act)
        return "+".join(part for part in parts if part)


@dataclass(frozen=True)
class Plan:
    """How to run one block.

    Attributes:
        inputs: names of its positional arguments.
        steps: in order of execution.
        output: nested tuples, lists and dicts with `Value`s.
        covered: paths of modules that are not called any more: members of units and the
            containers between.
        checkpointed: run under activation checkpointing while the block's `with_cp` says so.
    """

    inputs: tuple[str, ...]
    steps: tuple[CallStep | UnitStep, ...]
    output: Any
    covered: tuple[str, ...]
    checkpointed: bool = False

    @property
    def units(self) -> list[UnitStep]:
        return [step for step in self.steps if isinstance(step, UnitStep)]

    def called(self) -> list[str]:
        """Paths of the modules that are called as they stand, in order of execution."""
        calls = [step for step in self.steps if isinstance(step, CallStep)]
        return [step.target for step in calls if step.kind == "module"]


class NoPlan(Exception):
    """A block that cannot be planned; the message says why."""


class _Tracer(torch.fx.Tracer):
    """Traces one block; of its children only those that `inline` accepts."""

    def __init__(self, inline: Callable[[nn.Module], bool]) -> None:
        super().__init__()
        self.inline = inline
        self.inlined: list[str] = []

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        if not self.inline(module):
            return True
        self.inlined.append(name)
        return False


def make_plan(
    module: nn.Module,
    inline: Callable[[nn.Module], bool],
    *,
    allow_unsigned: bool,
    saved_output: str,
) -> Plan:
    """Plan a block.

    Args:
        module: the block.
        inline: which of its descendants are looked into; others are called as they are.
        allow_unsigned, saved_output: settings for units without a convolution.

    Raises:
        NoPlan: its forward cannot be traced, or depends on the mode of training.
    """
    checkpointed = _checkpoints_itself(module, inline)
    graphs = []
    for training in (False, True):
        with _in_mode(module, training), _without_checkpointing(module, checkpointed):
            graphs.append(_trace(module, inline))
    (graph, _), (other, inlined) = graphs
    if str(graph) != str(other):
        raise NoPlan("its forward is not the same in training and evaluation")
    return _Planner(module, other, allow_unsigned, saved_output).plan(inlined, checkpointed)


def _checkpoints_itself(module: nn.Module, inline: Callable[[nn.Module], bool]) -> bool:
    """Whether forward looks at its `with_cp`, which a backbone may have for its blocks alone."""
    if getattr(module, "with_cp", False) is not True:
        return False
    with _without_checkpointing(module, True):
        without, _ = _trace(module, inline)
    try:
        return str(_trace(module, inline)[0]) != str(without)
    except NoPlan:
        return True


@contextlib.contextmanager
def _in_mode(module: nn.Module, training: bool) -> Iterator[None]:
    """Training flags of all descendants set, without calling train(), which models override."""
    before = [(m, m.training) for m in module.modules()]
    try:
        for m, _ in before:
            m.training = training
        yield
    finally:
        for m, flag in before:
            m.training = flag


@contextlib.contextmanager
def _without_checkpointing(module: nn.Module, active: bool) -> Iterator[None]:
    if active:
        module.with_cp = False
    try:
        yield
    finally:
        if active:
            module.with_cp = True


def _trace(module: nn.Module, inline) -> tuple[torch.fx.Graph, list[str]]:
    tracer = _Tracer(inline)
    attributes = {m: dict(m.__dict__) for m in module.modules()}
    try:
        graph = tracer.trace(module, concrete_args=_defaults(module))
    # Tracing runs a stranger's forward on stand-ins for tensors: it may raise anything.
    except Exception as error:
        reason = str(error).strip().splitlines() or [""]
        raise NoPlan(
            f"its forward cannot be traced ({type(error).__name__}: {reason[0][:120]})"
        ) from error
    finally:
        for m, before in attributes.items():
            # What forward stored on itself while it was traced are stand-ins.
            m.__dict__.clear()
            m.__dict__.update(before)
    return graph, tracer.inlined


def _defaults(module: nn.Module) -> dict[str, Any]:
    """Optional arguments of forward with their defaults: a plan is for calls without them."""
    parameters = inspect.signature(type(module).forward).parameters.values()
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise NoPlan("its forward takes any number of arguments")
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


@dataclass
class _Chain:
    """The nodes of one unit while it is being found."""

    x: torch.fx.Node
    nodes: list[torch.fx.Node] = field(default_factory=list)
    conv: str | None = None
    norm: str | None = None
    act: str = "none"
    residual: torch.fx.Node | None = None


class _Planner:
    def __init__(
        self, module: nn.Module, graph: torch.fx.Graph, allow_unsigned: bool, saved_output: str
    ) -> None:
        self.module = module
        self.allow_unsigned = allow_unsigned
        self.saved_output = saved_output
        self.nodes = self._needed(graph)
        self.output = next(node for node in graph.nodes if node.op == "output")

    def plan(self, inlined: list[str], checkpointed: bool) -> Plan:
        """Match units and order the steps."""
        chains = self._chains()
        last = {chain.nodes[-1]: chain for chain in chains}
        members = {node for chain in chains for node in chain.nodes}
        read_as_int8 = {chain.x: [] for chain in chains if chain.conv}
        for chain in chains:
            if chain.conv:
                read_as_int8[chain.x].append(chain)
        steps, inputs, covered = [], [], list(inlined)
        for node in self.nodes:
            if node.op == "placeholder":
                inputs.append(node.name)
            elif node in last:
                steps.append(self._unit(last[node], read_as_int8.get(node, [])))
            elif node not in members:
                steps.append(self._call(node))
        for chain in chains:
            covered += [node.target for node in chain.nodes if node.op == "call_module"]
        return Plan(
            inputs=tuple(inputs),
            steps=tuple(self._with_frees(steps)),
            output=_values(self.output.args[0]),
            covered=tuple(dict.fromkeys(covered)),
            checkpointed=checkpointed,
        )

    def _needed(self, graph: torch.fx.Graph) -> list[torch.fx.Node]:
        """Nodes without the checks of specialised arguments.

        Raises:
            NoPlan: some other result is not used, as of an operation that works in place on what
                is read later; the order of effects is then not in the graph.
        """
        checks = {n for n in graph.nodes if n.op == "call_function" and n.target in _CHECKS}
        nodes = []
        for node in graph.nodes:
            if node.op == "output" or node in checks:
                continue
            users = [user for user in node.users if user not in checks]
            if node.op == "placeholder" and not users and (node.args or len(node.users)):
                continue  # an optional argument
            if not users and node.op not in ("placeholder", "get_attr"):
                raise NoPlan(f"its forward does not use the result of {node.name}")
            nodes.append(node)
        return nodes

    def _chains(self) -> list[_Chain]:
        chains, taken = [], set()
        for node in self.nodes:
            if node in taken or node.op != "call_module":
                continue
            chain = self._chain_from(node, taken)
            if chain is not None:
                chains.append(chain)
                taken.update(chain.nodes)
        return chains

    def _chain_from(self, node: torch.fx.Node, taken: set[torch.fx.Node]) -> _Chain | None:
        """The unit that begins with this call, if there is one; `taken` nodes are others'."""
        if len(node.args) != 1 or node.kwargs or not isinstance(node.args[0], torch.fx.Node):
            return None
        chain = _Chain(x=node.args[0])
        module = self._module(node)
        if type(module) in (DAQConv2d, DAQConv3d):
            fusible = module.config.fuse and module.config.suits_units()
            if not fusible or module.padding_mode != "zeros":
                return None
            chain.conv = node.target
            chain.nodes.append(node)
            following = self._only_user(node)
            if following is not None and self._is_norm(following):
                chain.norm = following.target
                chain.nodes.append(following)
        elif is_batch_norm(module):
            chain.norm = node.target
            chain.nodes.append(node)
        else:
            return None
        self._skip_identities(chain)
        self._add_residual(chain, taken)
        self._add_activation(chain)
        if chain.conv is None and chain.act == "none" and chain.residual is None:
            return None
        if chain.conv is not None and chain.norm is None and chain.act == "none":
            return None
        return chain

    def _is_norm(self, node: torch.fx.Node) -> bool:
        return (
            node.op == "call_module"
            and is_batch_norm(self._module(node))
            and len(node.args) == 1
            and not node.kwargs
        )

    def _add_residual(self, chain: _Chain, taken: set[torch.fx.Node]) -> None:
        current = chain.nodes[-1]
        user = self._only_user(current)
        if user is None or user in taken or len(user.args) != 2 or user.kwargs:
            return
        in_place = user.op == "call_function" and user.target in _ADDITIONS_IN_PLACE
        in_place |= user.op == "call_method" and user.target == "add_"
        apart = user.op == "call_function" and user.target in _ADDITIONS
        apart |= user.op == "call_method" and user.target == "add"
        if not (in_place or apart):
            return
        first, second = user.args
        other = second if first is current else first
        if not isinstance(other, torch.fx.Node) or other is current:
            return
        if in_place and first is not current and len(other.users) > 1:
            return  # somebody else reads what the addition changes
        chain.residual = other
        chain.nodes.append(user)

    def _skip_identities(self, chain: _Chain) -> None:
        """Modules that do nothing, as a DropPath of rate 0 often is, belong to the unit."""
        user = self._only_user(chain.nodes[-1])
        while user is not None and user.op == "call_module":
            if type(self._module(user)) is not nn.Identity:
                break
            chain.nodes.append(user)
            user = self._only_user(user)

    def _add_activation(self, chain: _Chain) -> None:
        user = self._only_user(chain.nodes[-1])
        act = None if user is None else self._activation(user)
        if act is not None:
            chain.act = act
            chain.nodes.append(user)

    def _activation(self, node: torch.fx.Node) -> str | None:
        if node.op == "call_module":
            return _ACTIVATION_MODULES.get(type(self._module(node)))
        if node.op == "call_function":
            return _ACTIVATION_FUNCTIONS.get(node.target)
        if node.op == "call_method" and len(node.args) == 1:
            return _ACTIVATION_METHODS.get(node.target)
        return None

    def _only_user(self, node: torch.fx.Node) -> torch.fx.Node | None:
        return next(iter(node.users)) if len(node.users) == 1 else None

    def _module(self, node: torch.fx.Node) -> nn.Module:
        return self.module.get_submodule(node.target)

    def _unit(self, chain: _Chain, readers: list[_Chain]) -> UnitStep:
        """The step of a chain; `readers` are the units whose convolutions read its result."""
        last = chain.nodes[-1]
        grids = {self.module.get_submodule(r.conv).config.unsigned_activations for r in readers}
        # Without a float output, every use must be one of those convolutions, on one grid.
        as_input = {reader.nodes[0] for reader in readers}
        as_residual = any(reader.residual is last for reader in readers)
        want_out = not (readers and set(last.users) == as_input and len(grids) == 1)
        config = None if chain.conv is None else self.module.get_submodule(chain.conv).config
        allow_unsigned = self.allow_unsigned if config is None else config.unsigned_activations
        if len(grids) == 1:
            allow_unsigned = grids.pop()
        return UnitStep(
            out=last.name,
            x=chain.x.name,
            conv=chain.conv,
            norm=chain.norm,
            act=chain.act,
            residual=None if chain.residual is None else chain.residual.name,
            want_out=want_out or as_residual,
            allow_unsigned=allow_unsigned,
            saved_output=self.saved_output if config is None else config.saved_output,
            members=tuple(self._call(node) for node in chain.nodes),
        )

    def _call(self, node: torch.fx.Node) -> CallStep:
        kind = {
            "call_module": "module",
            "call_function": "function",
            "call_method": "method",
            "get_attr": "attribute",
        }[node.op]
        kwargs = {key: _values(value) for key, value in node.kwargs.items()}
        return CallStep(node.name, kind, node.target, _values(node.args), kwargs)

    def _with_frees(self, steps: list) -> list:
        """Each step with the values that it is the last to read."""
        alive = set(_names(_values(self.output.args[0])))
        result = []
        for step in reversed(steps):
            read = _reads(step)
            free = tuple(name for name in dict.fromkeys(read) if name not in alive)
            alive.update(read)
            result.append(replace(step, free=free))
        return result[::-1]


def _values(args: Any) -> Any:
    """Arguments of a node, with `Value`s for nodes."""
    return torch.fx.node.map_arg(args, lambda node: Value(node.name)) if args is not None else None


def _names(args: Any) -> list[str]:
    if isinstance(args, Value):
        return [args.name]
    if isinstance(args, dict):
        return [name for value in args.values() for name in _names(value)]
    if isinstance(args, (tuple, list)):
        return [name for value in args for name in _names(value)]
    if isinstance(args, slice):
        return _names((args.start, args.stop, args.step))
    return []


def _reads(step: CallStep | UnitStep) -> list[str]:
    if isinstance(step, UnitStep):
        return [step.x] + ([step.residual] if step.residual else [])
    return _names(step.args) + _names(step.kwargs)
