"""The activations of recurrent cells, each defined once: its value and its slope, element by element.

A layer takes an activation's name ("tanh"), an `Activation` with parameters of its own, a config, a function of
`keras.activations`, or a pair of Python callables (function, derivative); `get` makes an activation of each of
them, `serialize` turns it back. Names, defaults and values are those of Keras 3 (keras.activations); "affine",
"scaled_tanh", "thresholded_relu", and the parameters alpha, beta and clip are those of ONNX (RNN, GRU, LSTM).

An `Activation` is exactly (name, alpha, beta, clip). Its name stands for a kind, a formula in alpha and beta:
"relu" and "relu6" are the kind "hard_tanh" with other limits. To add an activation, write its value and slope
and one line in `_KINDS`, or, if it is a case of a kind that exists, one line in `_CASES`.
"""

from __future__ import annotations

import math
import numbers
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy import tanh
from numpy.typing import NDArray

__all__ = ["KINDS", "NAMES", "Activation", "ActivationLike", "CustomActivation", "get", "serialize"]

Array = NDArray[np.floating[Any]]


# ---- Values and slopes; a is the pre-activation, p and q are the parameters alpha and beta, s is the slope


def _sigmoid(a: Array) -> Array:
    """1 / (1 + exp(-a)), from exp(-|a|): nothing overflows, a small result keeps its digits, NaN stays NaN."""
    e = np.exp(-np.abs(a))
    y: Array = np.where(a < 0, e, 1) / (1 + e)
    return y


def _sigmoid_slope(a: Array) -> Array:
    e = np.exp(-np.abs(a))
    slope: Array = e / (1 + e) ** 2
    return slope


def _tanh_slope(a: Array) -> Array:
    y = tanh(a)
    return 1 - y * y


def _softplus(a: Array) -> Array:
    """log(1 + exp(a))."""
    return np.logaddexp(a, 0).astype(a.dtype)


def _between(a: Array, lower: float, upper: float) -> Array:
    """1 inside of the limits, 0 outside and on them; an infinite limit is none."""
    above, below = lower == -math.inf or lower < a, upper == math.inf or a < upper
    return np.logical_and(above, below).astype(a.dtype)


def _hard_sigmoid(a: Array, p: float, q: float) -> Array:
    y: Array = np.clip(p * a + q, 0, 1)
    return y


def _hard_sigmoid_slope(a: Array, p: float, q: float) -> Array:
    return p * _between(p * a + q, 0, 1)


def _normal(a: Array) -> Array:
    """The distribution function of the normal distribution, in double precision."""
    erfc = np.vectorize(math.erfc, otypes=[np.float64])
    y: Array = (erfc(-a / math.sqrt(2)) / 2).astype(a.dtype)
    return y


def _normal_slope(a: Array) -> Array:
    slope: Array = np.exp(-a * a / 2) / math.sqrt(2 * math.pi)
    return slope


def _mish_slope(a: Array) -> Array:
    y = tanh(_softplus(a))
    slope: Array = y + a * (1 - y * y) * _sigmoid(a)
    return slope


def _sparse_plus(a: Array) -> Array:
    return np.where(a < 1, np.clip(a + 1, 0, None) ** 2 / 4, a)


class _Kind(NamedTuple):
    value: Callable[[Array, float, float], Any]
    slope: Callable[[Array, float, float], Any]
    alpha: float | None = None  # the parameters' defaults, None if there is no such parameter
    beta: float | None = None


_SIXTH, _HALF = 1 / 6, 1 / 2
_KINDS = {
    "tanh": _Kind(lambda a, p, q: tanh(a), lambda a, p, q: _tanh_slope(a)),
    "sigmoid": _Kind(lambda a, p, q: _sigmoid(a), lambda a, p, q: _sigmoid_slope(a)),
    "affine": _Kind(lambda a, p, q: p * a + q, lambda a, p, q: np.full_like(a, p), 1.0, 0.0),
    "hard_tanh": _Kind(lambda a, p, q: np.clip(a, p, q), _between, -1.0, 1.0),
    "leaky_relu": _Kind(
        lambda a, p, q: np.where(a > 0, a, p * a), lambda a, p, q: np.where(a > 0, 1, p), 0.2
    ),
    "hard_sigmoid": _Kind(_hard_sigmoid, _hard_sigmoid_slope, _SIXTH, _HALF),
    "softsign": _Kind(lambda a, p, q: a / (1 + np.abs(a)), lambda a, p, q: (1 + np.abs(a)) ** -2.0),
    "softplus": _Kind(lambda a, p, q: _softplus(a), lambda a, p, q: _sigmoid(a)),
    "log_sigmoid": _Kind(lambda a, p, q: -_softplus(-a), lambda a, p, q: _sigmoid(-a)),
    "elu": _Kind(
        lambda a, p, q: np.where(a > 0, q * a, p * np.expm1(a)),
        lambda a, p, q: np.where(a > 0, q, p * np.exp(a)),
        1.0,
        1.0,
    ),
    "celu": _Kind(
        lambda a, p, q: np.where(a > 0, a, p * np.expm1(a / p)),
        lambda a, p, q: np.where(a > 0, 1, np.exp(a / p)),
        1.0,
    ),
    "exponential": _Kind(lambda a, p, q: np.exp(a), lambda a, p, q: np.exp(a)),
    "silu": _Kind(lambda a, p, q: a * _sigmoid(a), lambda a, p, q: _sigmoid(a) + a * _sigmoid_slope(a)),
    "gelu": _Kind(lambda a, p, q: a * _normal(a), lambda a, p, q: _normal(a) + a * _normal_slope(a)),
    "mish": _Kind(lambda a, p, q: a * tanh(_softplus(a)), lambda a, p, q: _mish_slope(a)),
    "hard_silu": _Kind(
        lambda a, p, q: a * _hard_sigmoid(a, p, q),
        lambda a, p, q: _hard_sigmoid(a, p, q) + np.where(_between(p * a + q, 0, 1) > 0, p * a, 0),
        _SIXTH,
        _HALF,
    ),
    "tanh_shrink": _Kind(lambda a, p, q: a - tanh(a), lambda a, p, q: tanh(a) ** 2),
    "scaled_tanh": _Kind(
        lambda a, p, q: p * tanh(q * a), lambda a, p, q: p * q * _tanh_slope(q * a), 1.0, 1.0
    ),
    "thresholded_relu": _Kind(lambda a, p, q: np.where(a <= p, 0, a), lambda a, p, q: a > p, 1.0),
    "soft_shrink": _Kind(lambda a, p, q: a - np.clip(a, -p, p), lambda a, p, q: ~(np.abs(a) <= p), 0.5),
    "hard_shrink": _Kind(
        lambda a, p, q: np.where(np.abs(a) <= p, 0, a), lambda a, p, q: ~(np.abs(a) <= p), 0.5
    ),
    "squareplus": _Kind(
        lambda a, p, q: (a + np.hypot(a, math.sqrt(p))) / 2,
        lambda a, p, q: (1 + a / np.hypot(a, math.sqrt(p))) / 2,
        4.0,
    ),
    "sparse_plus": _Kind(lambda a, p, q: _sparse_plus(a), lambda a, p, q: np.clip((a + 1) / 2, 0, 1)),
}
KINDS = tuple(_KINDS)
"""The kinds in the order of their integer codes: `KINDS[activation.code] == activation.kind`."""

_SELU_SCALE, _SELU_ALPHA = 1.0507009873554805, 1.6732632423543772
# Names whose parameters cannot be changed: (kind, alpha, beta).
_CASES: dict[str, tuple[str, float, float]] = {
    "linear": ("affine", 1.0, 0.0),
    "relu": ("hard_tanh", 0.0, math.inf),
    "relu6": ("hard_tanh", 0.0, 6.0),
    "sparse_sigmoid": ("hard_sigmoid", 0.5, 0.5),
    "selu": ("elu", _SELU_SCALE * _SELU_ALPHA, _SELU_SCALE),
}
_OF_ROWS = ("softmax", "log_softmax", "sparsemax", "glu")  # of Keras, that recurrent cells have no use for
_ALIASES = {"swish": "silu", "hard_swish": "hard_silu"}
NAMES: dict[str, tuple[str, float, float]] = {
    name: (name, kind.alpha or 0.0, kind.beta or 0.0) for name, kind in _KINDS.items()
} | _CASES
"""The table of all activations: name -> (kind, alpha, beta); a parameter that the kind hasn't is 0."""


# ---- Activations


def _checked(name: str, parameter: str, value: Any, default: float | None) -> float:
    """The parameter's value; `default` stands for None, and is None where the value is fixed."""
    if default is None:
        raise ValueError(f'Activation("{name}"): it has no {parameter}, got {value!r}; leave {parameter} out')
    positive = parameter == "clip" or name == "celu"
    least = "0 or more" if name == "squareplus" else ""
    kind = "a positive number" if positive else f"a number of {least}" if least else "a number"
    what = f'Activation("{name}"): {parameter} must be {kind}, got {reprlib.repr(value)}; pass a float, or leave it out'
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        raise TypeError(what)
    try:
        number = float(value)
    except OverflowError:  # an int that no float can hold
        raise ValueError(what) from None
    if math.isnan(number) or (positive and number <= 0) or (least and number < 0):
        raise ValueError(what)
    return number


class _Clipped:
    """What all activations share: value and gradient, with the pre-activation clipped to [-clip, clip]."""

    clip: float | None

    def _value(self, a: Array) -> Any:
        raise NotImplementedError

    def _slope(self, a: Array) -> Any:
        raise NotImplementedError

    def _apply(self, function: Callable[[Array], Any], a: Array) -> Array:
        """function(a), with the limits of the formulas such as exp(-1e4) = 0 and without warnings of them."""
        if self.clip is not None:
            a = np.clip(a, -self.clip, self.clip)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            result = np.asarray(function(a))
        if result.shape != a.shape:
            raise ValueError(
                f"{self!r}: the function must return an array of its argument's shape {a.shape}, "
                f"got {result.shape}; compute element by element"
            )
        return result.astype(a.dtype, copy=False)

    def __call__(self, a: Array) -> Array:
        """The activation's values.

        Args:
            a: pre-activations, an array of any shape, float32, float64 or longdouble. NaN stays NaN.

        Returns:
            An array of the shape and dtype of `a`.
        """
        return self._apply(self._value, a)

    def gradient(self, a: Array, dy: Array) -> Array:
        """The gradient of the loss with respect to the pre-activations.

        Where a formula has a kink, its slope there is that of PyTorch (0 for relu at 0).

        Args:
            a: pre-activations, as in the call.
            dy: gradient of the loss with respect to the values, shaped as `a`.

        Returns:
            dy times the slope at `a`; 0 where `a` is outside of [-clip, clip], or with a clip NaN.
        """
        da = dy * self._apply(self._slope, a)
        return da if self.clip is None else np.where(np.abs(a) <= self.clip, da, da.dtype.type(0))


@dataclass(frozen=True)
class Activation(_Clipped):
    """An activation by name, with its parameters.

    Args:
        name: a key of `NAMES`, or "swish" for "silu" and "hard_swish" for "hard_silu".
        alpha: first parameter of the formula, a number; None for the default.
        beta: second parameter of the formula, a number; None for the default.
        clip: None, or a positive number: the pre-activation is clipped to [-clip, clip] first.

    Attributes:
        kind: the name of the formula.
        code: its number, which the kernels know it by: `KINDS.index(kind)`.

    Raises:
        ValueError: there is no such name, or it has no such parameter, or the value is impossible.
        TypeError: a parameter is no number.

    Formulas and defaults (a is the pre-activation):

        tanh                tanh(a)
        sigmoid             1 / (1 + exp(-a))
        affine              alpha a + beta                             1, 0; linear
        hard_tanh           clip(a, alpha, beta)                       -1, 1; relu: 0, inf; relu6: 0, 6
        leaky_relu          a if a > 0 else alpha a                    0.2
        hard_sigmoid        clip(alpha a + beta, 0, 1)                 1/6, 1/2; sparse_sigmoid: 1/2, 1/2
        softsign            a / (1 + |a|)
        softplus            log(1 + exp(a))
        log_sigmoid         -log(1 + exp(-a))
        elu                 beta a if a > 0 else alpha (exp(a) - 1)    1, 1; selu: 1.7581, 1.0507
        celu                a if a > 0 else alpha (exp(a / alpha) - 1) 1
        exponential         exp(a)
        silu                a sigmoid(a)
        gelu                a Phi(a), Phi the distribution function of the normal distribution
        mish                a tanh(softplus(a))
        hard_silu           a clip(alpha a + beta, 0, 1)               1/6, 1/2
        tanh_shrink         a - tanh(a)
        scaled_tanh         alpha tanh(beta a)                         1, 1
        thresholded_relu    a if a > alpha else 0                      1
        soft_shrink         a - clip(a, -alpha, alpha)                 0.5
        hard_shrink         a if |a| > alpha else 0                    0.5
        squareplus          (a + sqrt(a^2 + alpha)) / 2                4
        sparse_plus         0 if a < -1, (a + 1)^2 / 4 if a < 1, else a

    keras.activations; ONNX operators RNN, GRU and LSTM (activation_alpha, activation_beta, clip).

    >>> leaky = Activation("leaky_relu", alpha=0.01)
    >>> leaky(np.ones((2, 3))).shape, leaky.gradient(np.ones((2, 3)), np.ones((2, 3))).shape
    ((2, 3), (2, 3))
    >>> get("relu")
    Activation(name='relu', alpha=0.0, beta=inf, clip=None)
    """

    name: str
    alpha: float = None  # type: ignore[assignment]  # None becomes the default
    beta: float = None  # type: ignore[assignment]
    clip: float | None = None

    def __post_init__(self) -> None:
        name = _ALIASES.get(self.name, self.name)
        if name not in NAMES:
            known = ", ".join(f'"{n}"' for n in sorted(NAMES))
            kind = " of single units (it mixes those of a row)" if name in _OF_ROWS else ""
            raise ValueError(
                f"there is no activation {reprlib.repr(self.name)}{kind}; the known ones are {known}, "
                "and a pair of callables (function, derivative) will do"
            )
        kind, *defaults = NAMES[name]
        values: dict[str, Any] = {"name": name}
        for parameter, default in zip(("alpha", "beta"), defaults, strict=True):
            value = getattr(self, parameter)
            if value is None or value == default:
                values[parameter] = default
            else:
                free = None if name in _CASES else getattr(_KINDS[kind], parameter)
                values[parameter] = _checked(name, parameter, value, free)
        if self.clip is not None:
            values["clip"] = _checked(name, "clip", self.clip, 0.0)
        if kind == "hard_tanh" and values["alpha"] > values["beta"]:
            raise ValueError(
                f'Activation("{name}"): alpha, the lower limit, must be at most beta, the upper one, got '
                f"{values['alpha']} and {values['beta']}; swap them"
            )
        for field, value in values.items():
            object.__setattr__(self, field, value)

    @property
    def kind(self) -> str:
        """The name of the formula."""
        return NAMES[self.name][0]

    @property
    def code(self) -> int:
        """The number of the formula."""
        return KINDS.index(self.kind)

    @property
    def numbers(self) -> tuple[int, float, float, float]:
        """What the kernels know it by: code, alpha, beta, clip."""
        return self.code, self.alpha, self.beta, np.inf if self.clip is None else self.clip

    def _value(self, a: Array) -> Any:
        return _KINDS[self.kind].value(a, self.alpha, self.beta)

    def _slope(self, a: Array) -> Any:
        return _KINDS[self.kind].slope(a, self.alpha, self.beta)


@dataclass(frozen=True)
class CustomActivation(_Clipped):
    """An activation in Python: two callables that take an array and return one of its shape.

    Args:
        function: the values, `function(a)`.
        derivative: the slopes, `derivative(a)`.
        clip: as in Activation.

    Raises:
        TypeError: one of the two is not callable.

    >>> sine = CustomActivation(np.sin, np.cos)
    >>> sine(np.zeros((2, 3))).shape
    (2, 3)
    """

    function: Callable[[Array], Any]
    derivative: Callable[[Array], Any]
    clip: float | None = None

    def __post_init__(self) -> None:
        for field in ("function", "derivative"):
            if not callable(value := getattr(self, field)):
                raise TypeError(
                    f"CustomActivation: {field} must be callable, got {reprlib.repr(value)}; "
                    "pass (function, derivative), both from an array to an array of its shape"
                )
        if self.clip is not None:
            object.__setattr__(self, "clip", _checked("custom", "clip", self.clip, 0.0))

    def _value(self, a: Array) -> Any:
        return self.function(a)

    def _slope(self, a: Array) -> Any:
        return self.derivative(a)


Callables = tuple[Callable[[Array], Any], Callable[[Array], Any]]
ActivationLike = str | dict[str, Any] | Activation | CustomActivation | Callables | Callable[..., Any] | None


def _from_config(config: dict[str, Any]) -> Activation:
    name, settings = config.get("class_name"), config.get("config")
    if name == "function" and isinstance(settings, str):  # how Keras writes a function
        return Activation(settings)
    known = {"alpha", "beta", "clip"}
    if not isinstance(name, str) or not isinstance(settings, dict) or not settings.keys() <= known:
        raise ValueError(
            f"an activation's config must have a class_name and a config with some of {sorted(known)}, "
            f'got {reprlib.repr(config)}; pass for example {{"class_name": "elu", "config": {{"alpha": 0.5}}}}'
        )
    return Activation(name, **settings)


def get(identifier: ActivationLike) -> Activation | CustomActivation:
    """The activation that `identifier` stands for.

    Args:
        identifier: a name; None for "linear"; an activation of this module; a config of this module or of
            Keras; a function of keras.activations; or a pair of callables (function, derivative).

    Returns:
        An Activation, or a CustomActivation for a pair of callables.

    Raises:
        ValueError: there is no such activation.
        TypeError: `identifier` is none of these.

    >>> get(None)
    Activation(name='linear', alpha=1.0, beta=0.0, clip=None)
    >>> get({"class_name": "leaky_relu", "config": {"alpha": 0.5}}).alpha
    0.5
    """
    if isinstance(identifier, (Activation, CustomActivation)):
        return identifier
    if identifier is None:
        return Activation("linear")
    if isinstance(identifier, str):
        return Activation(identifier)
    if isinstance(identifier, dict):
        return _from_config(identifier)
    if isinstance(identifier, (tuple, list)) and len(identifier) == 2:
        return CustomActivation(*identifier)
    if str(getattr(identifier, "__module__", "")).startswith("keras.src.activations."):  # of Keras 3
        return Activation(str(getattr(identifier, "__name__", identifier)))
    raise TypeError(
        "an activation must be a name, an Activation, a config, a function of keras.activations or a pair "
        f"(function, derivative), got {reprlib.repr(identifier)}; a function alone has no derivative"
    )


def serialize(activation: ActivationLike) -> str | dict[str, Any]:
    """What a config holds of an activation: its name, and its parameters if they are not the defaults.

    Args:
        activation: what `get` takes.

    Returns:
        A str or a dict, which `get` turns into an equal activation.

    Raises:
        TypeError: it consists of Python callables.

    >>> serialize("swish"), serialize(Activation("elu", alpha=0.5))
    ('silu', {'class_name': 'elu', 'config': {'alpha': 0.5}})
    """
    activation = get(activation)
    if isinstance(activation, CustomActivation):
        raise TypeError(
            f"an activation of Python callables cannot be written into a config, got {activation!r}; "
            f"use one of {', '.join(sorted(NAMES))}"
        )
    default = Activation(activation.name)
    settings = {
        field: value
        for field in ("alpha", "beta", "clip")
        if (value := getattr(activation, field)) != getattr(default, field)
    }
    return {"class_name": activation.name, "config": settings} if settings else activation.name
