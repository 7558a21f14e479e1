"""DAQConfig: every setting of the method, frozen and checked, with the recipes by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

#: Names that `gradient_quantizer` may have; `daq_mm.quantizers.register` adds to it.
GRADIENT_QUANTIZERS: set[str] = {"mcs", "absmax", "ui8"}

#: Bits that a grid may have; kernels that quantize serve 8.
BITS = (4, 5, 6, 7, 8)

_CHOICES = {
    "grad_weight": ("channel", "tensor", "sample", "float"),
    "grad_input": ("folded", "global", "sample"),
    "rounding": ("nearest", "stochastic"),
    "activation_bits": BITS,
    "weight_bits": BITS,
    "gradient_bits": BITS,
    "saved_output": ("int8", "float"),
}


@dataclass(frozen=True, kw_only=True)
class DAQConfig:
    """Settings of Distribution Adaptive INT8 training; the defaults are the recipe `daq`.

    Attributes:
        recipe: name of the recipe these settings started from; words for logs, without effect.
        gradient_quantizer: how thresholds of the output gradient are found: 'mcs'
            (Magnitude-aware Clipping Strategy with the gradient discriminator; paper, section
            3.3), 'absmax' (absolute maximum), 'ui8' (the threshold of smallest cosine distance,
            Zhu et al., CVPR 2020), or a name added by `daq_mm.quantizers.register`.
        grad_weight: thresholds of the gradient in grad-weight: one a 'channel' (Gradient
            Vectorized Quantization; paper, section 3.2), one a 'tensor' or one a 'sample'
            (DoReFa; always the absolute maximum); 'float' computes this product in floating
            point and keeps the float activation for it (SwitchBack).
        grad_input: thresholds of the gradient in grad-input: 'folded' (one a channel, folded
            into the weights), 'global' (one a tensor; the paper) or 'sample' (as above).
        gradient_zero: whether the gradient's grid has a point at zero. False is DoReFa's grid of
            2**bits points at odd multiples of half a step, for grad_weight and grad_input 'sample'.
        activation_bits, weight_bits, gradient_bits: of the grids, 4 to 8. Fewer than 8 are
            stored in 8 bits and quantized by the reference: for accuracy, not for speed.
        unsigned_activations: put an activation without negative values on the grid 0..255
            instead of -127..127.
        keep_gradient_mean: put the mean, channel by channel, of what quantization takes from the
            gradient back into grad-weight, for grad_weight 'channel' or 'tensor'. Not in the
            paper.
        rounding: of the gradient: 'nearest' (ties to even) or 'stochastic'.
        rounding_seed: seed of stochastic rounding, an int of at most 31 bits.
        mcs_lambda: a channel is Gaussian where P(|g| > sigma) exceeds it, in [0, 1).
        mcs_k, mcs_a: k and A of the inverted-T recursion s_t = (1 - kA) s_(t-1) + A max|g|_t;
            k > 0, 0 < A <= 1 and kA <= 1.
        cap_at_maximum: never let the recursion's threshold exceed max|g|_t, above which it only
            coarsens the grid. It matters where one layer sees gradients of several scales, as a
            detector's head does that is shared by the levels of a pyramid. Not in the paper.
        discriminator_interval: gradients between two evaluations of the discriminator, >= 1.
        ui8_interval: gradients between two searches of 'ui8' for its threshold, >= 1.
            Use 1 where a layer runs on several feature maps a step, as a detector's head does.
        ui8_alpha, ui8_beta: of the factor max(exp(-alpha d_c), beta) on the layer's weight and
            bias gradients; alpha >= 0 and 0 < beta <= 1. beta = 1 turns it off.
        warmup_iters: training iterations in floating point before INT8 begins, >= 0.
        include: shell-style patterns of layer names to convert; ('*',) is all of them.
        exclude: shell-style patterns of layer names to leave in floating point.
        convert_first: convert the network's first convolution as well.
        convert_depthwise: convert depthwise convolutions too (one input channel a group). They
            are the least accurate in 8 bits; False leaves them in floating point, which is slower.
        fuse: compute a convolution with the batch norm, residual addition and activation after
            it as one, with activations that travel in 8 bits; False leaves them apart.
        saved_output: what a fused batch norm keeps of its input for the backward pass: 'int8'
            (8 bits on a grid of its own for each channel) or 'float' (as it is).

    Raises:
        ValueError: a value that is not allowed; TypeError: an unknown setting or a wrong type.
    """

    recipe: str = "daq"
    gradient_quantizer: str = "mcs"
    grad_weight: str = "channel"
    grad_input: str = "folded"
    unsigned_activations: bool = True
    gradient_zero: bool = True
    keep_gradient_mean: bool = False
    rounding: str = "nearest"
    rounding_seed: int = 0
    mcs_lambda: float = 0.3
    mcs_k: float = 1.0
    mcs_a: float = 0.8
    cap_at_maximum: bool = True
    discriminator_interval: int = 50
    activation_bits: int = 8
    weight_bits: int = 8
    gradient_bits: int = 8
    ui8_interval: int = 100
    ui8_alpha: float = 20.0
    ui8_beta: float = 0.1
    warmup_iters: int = 0
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    convert_first: bool = False
    convert_depthwise: bool = True
    fuse: bool = True
    saved_output: str = "int8"

    def __post_init__(self) -> None:
        for name in ("include", "exclude"):
            self._normalize_patterns(name)
        for field in dataclasses.fields(self):
            self._check_type(field.name, getattr(self, field.name), type(field.default))
        for name, allowed in _CHOICES.items():
            _check_choice(name, getattr(self, name), allowed)
        _check_choice("gradient_quantizer", self.gradient_quantizer, sorted(GRADIENT_QUANTIZERS))
        _check(0 <= self.mcs_lambda < 1, "mcs_lambda", self.mcs_lambda, "in [0, 1)")
        _check(self.mcs_k > 0, "mcs_k", self.mcs_k, "greater than 0")
        _check(0 < self.mcs_a <= 1, "mcs_a", self.mcs_a, "in (0, 1]")
        product = self.mcs_k * self.mcs_a
        _check(product <= 1, "mcs_k * mcs_a", product, "at most 1, or thresholds turn negative")
        interval = self.discriminator_interval
        _check(interval >= 1, "discriminator_interval", interval, "at least 1")
        if self.keep_gradient_mean and self.grad_weight in ("sample", "float"):
            raise ValueError(
                f"keep_gradient_mean=True is not made for grad_weight={self.grad_weight!r}; "
                "allowed with it: channel, tensor"
            )
        if not self.gradient_zero and not self.grad_weight == self.grad_input == "sample":
            raise ValueError(
                "gradient_zero=False is made for grad_weight='sample' and grad_input='sample'; "
                f"got {self.grad_weight!r} and {self.grad_input!r}"
            )
        _check(self.ui8_interval >= 1, "ui8_interval", self.ui8_interval, "at least 1")
        finite = 0 <= self.ui8_alpha < float("inf")
        _check(finite, "ui8_alpha", self.ui8_alpha, "at least 0 and finite")
        _check(0 < self.ui8_beta <= 1, "ui8_beta", self.ui8_beta, "in (0, 1]")
        _check(self.warmup_iters >= 0, "warmup_iters", self.warmup_iters, "at least 0")
        seed = self.rounding_seed
        _check(0 <= seed < 2**31, "rounding_seed", seed, "in [0, 2**31)")

    def _normalize_patterns(self, name: str) -> None:
        """Lists become tuples, as mmengine's configs write lists."""
        value = getattr(self, name)
        if isinstance(value, str):
            raise TypeError(f"{name}={value!r} must be a list of patterns, not a string")
        if isinstance(value, (list, tuple)):
            if not all(isinstance(pattern, str) for pattern in value):
                raise TypeError(f"{name}={value!r} must hold strings only")
            object.__setattr__(self, name, tuple(value))

    def _check_type(self, name: str, value: Any, expected: type) -> None:
        if expected is float and isinstance(value, int) and not isinstance(value, bool):
            object.__setattr__(self, name, float(value))
        elif not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
            raise TypeError(
                f"{name}={value!r} has type {type(value).__name__}; expected {expected.__name__}"
            )

    @classmethod
    def from_recipe(cls, name: str, **overrides: Any) -> DAQConfig:
        """The settings of a named recipe, with some of them replaced.

        Args:
            name: one of `RECIPES`.
            overrides: fields of this class.
        """
        _check_choice("recipe", name, sorted(RECIPES))
        return cls._from_fields({"recipe": name, **RECIPES[name], **overrides})

    @classmethod
    def make(cls, config: DAQConfig | Mapping[str, Any] | str | None = None) -> DAQConfig:
        """Whatever a user may write: a DAQConfig, a recipe's name, a dict, or None for `daq`.

        A dict has an optional key 'recipe' (default 'daq') and fields of this class.
        """
        if config is None:
            return cls()
        if isinstance(config, cls):
            return config
        if isinstance(config, str):
            return cls.from_recipe(config)
        if isinstance(config, Mapping):
            fields = dict(config)
            return cls.from_recipe(fields.pop("recipe", "daq"), **fields)
        raise TypeError(
            f"config has type {type(config).__name__}; allowed: DAQConfig, dict, recipe name, None"
        )

    @classmethod
    def _from_fields(cls, fields: dict[str, Any]) -> DAQConfig:
        allowed = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(fields) - set(allowed))
        if unknown:
            raise TypeError(f"unknown setting {', '.join(unknown)}; allowed: {', '.join(allowed)}")
        return cls(**fields)

    def without_kernels(self) -> list[str]:
        """The settings, as 'name=value', whose quantizers run in the reference on every device."""
        names = ("activation_bits", "weight_bits", "gradient_bits")
        names = [name for name in names if getattr(self, name) != 8]
        names += [name for name in ("grad_input", "grad_weight") if getattr(self, name) == "sample"]
        return [f"{name}={getattr(self, name)!r}" for name in names]

    def suits_units(self) -> bool:
        """Whether fused units can compute by these settings, from 8-bit twins of activations."""
        return self.grad_weight != "float" and not self.without_kernels()

    def summary(self) -> str:
        """One phrase for print(model): the recipe and what differs from it."""
        base = RECIPES.get(self.recipe, {})
        own = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name != "recipe" and value != base.get(field.name, field.default):
                own.append(f"{field.name}={value!r}")
        return ", ".join([self.recipe, *own])


_PAPER = {
    "grad_input": "global",
    "unsigned_activations": False,
    "cap_at_maximum": False,
    "saved_output": "float",
}

#: Recipes by name; each lists what differs from DAQConfig's defaults.
RECIPES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        # Ours: folded grad-input, unsigned activations and capped thresholds on top of the paper.
        "daq": {},
        # Faithful in every point: GVQ and MCS, global grad-input, signed activations.
        "paper": _PAPER,
        # The paper's ablation: vectorized quantization alone, clipping alone, neither.
        "gvq": {**_PAPER, "gradient_quantizer": "absmax"},
        "mcs": {**_PAPER, "grad_weight": "tensor"},
        "global": {**_PAPER, "gradient_quantizer": "absmax", "grad_weight": "tensor"},
        # Other papers' treatment of the gradient, on the forward pass of `paper`, so that a
        # difference in accuracy comes from the gradient. README.md here tells each deviation.
        #
        # UI8: one threshold a layer, of the smallest cosine distance; stochastic rounding; the
        # layer's update scaled down by that distance (alpha = 20, beta = 0.1 are the paper's).
        "ui8": {
            **_PAPER,
            "gradient_quantizer": "ui8",
            "grad_weight": "tensor",
            "rounding": "stochastic",
        },
        # DoReFa: each sample scaled by its maximum, 2**bits points without zero, noise of half a
        # step each way. Its weights (tanh, scaled to [-1, 1]) and activations (cut to [0, 1]) are
        # left out on purpose: they make another network, which needs batch norm everywhere.
        "dorefa": {
            **_PAPER,
            "gradient_quantizer": "absmax",
            "grad_weight": "sample",
            "grad_input": "sample",
            "gradient_zero": False,
            "rounding": "stochastic",
        },
        # SwitchBack: grad-weight in floating point, the other two products in INT8. One threshold
        # a tensor for x and g on purpose, where a linear layer has one a row; see README.md.
        "switchback": {**_PAPER, "gradient_quantizer": "absmax", "grad_weight": "float"},
    }
)


def _check(condition: bool, name: str, value: Any, allowed: str) -> None:
    if not condition:
        raise ValueError(f"{name}={value!r} must be {allowed}")


def _check_choice(name: str, value: Any, allowed) -> None:
    if value not in allowed:
        words = ", ".join(map(str, allowed))
        raise ValueError(f"{name}={value!r} is unknown; allowed: {words}")
