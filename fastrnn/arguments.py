"""The arguments of a layer's constructor: what each must be, and what the layer makes of it.

A check takes what error messages begin with ("LSTM"), the argument's name and the value given. It returns the
value that the layer keeps, or raises TypeError, ValueError, or NotImplementedError for what isn't supported
yet. A new argument needs a line in `CHECKS`.
"""

from __future__ import annotations

import numbers
import operator
import re
import reprlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from fastrnn import constraints, initializers, regularizers

__all__ = ["CHECKS", "SETTABLE", "LayerDType", "show", "to_config"]

Check = Callable[[str, str, Any], Any]
LayerDType = DTypeLike | dict[str, Any]  # the dict: the config of a DTypePolicy of Keras

# The names that Keras knows: the difference between a typing error and what fastrnn doesn't have yet.
_KERAS_ACTIVATIONS = frozenset(
    """celu elu exponential gelu glu hard_shrink hard_sigmoid hard_silu hard_swish hard_tanh leaky_relu
    linear log_sigmoid log_softmax mish relu relu6 selu sigmoid silu soft_shrink softmax softplus softsign
    sparse_plus sparse_sigmoid sparsemax squareplus swish tanh tanh_shrink threshold""".split()
)


def _must(where: str, argument: str, what: str, value: object, advice: str) -> str:
    return f"{where}: {argument} must be {what}, got {reprlib.repr(value)}; {advice}"


def _not_supported(where: str, argument: str, value: object, default: object) -> NotImplementedError:
    return NotImplementedError(
        f"{where}: {argument}={reprlib.repr(value)} is not supported yet; leave it at {default!r}"
    )


def _flag(where: str, argument: str, value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(_must(where, argument, "True or False", value, "write bool(...) around it"))
    return bool(value)


def _no_flag_yet(where: str, argument: str, value: Any) -> bool:
    if _flag(where, argument, value):
        raise _not_supported(where, argument, value, False)
    return False


def _integer(where: str, argument: str, value: Any, what: str, least: int) -> int:
    """`value` as an int of at least `least`; True and 3.0 are no ints."""
    try:
        integer = operator.index(value)
    except TypeError:
        integer = None
    if integer is None or isinstance(value, (bool, np.bool_)):
        raise TypeError(_must(where, argument, what, value, "pass an int"))
    if integer < least:
        raise ValueError(_must(where, argument, what, value, f"pass {least} or more"))
    return integer


def _units(where: str, argument: str, value: Any) -> int:
    return _integer(where, argument, value, "a positive integer", 1)


def _seed(where: str, argument: str, value: Any) -> int | None:
    return None if value is None else _integer(where, argument, value, "None or a non-negative integer", 0)


def _activation(only: str) -> Check:
    def check(where: str, argument: str, value: Any) -> str:
        if isinstance(value, str) and value == only:
            return value
        if value is None or callable(value) or (isinstance(value, str) and value in _KERAS_ACTIVATIONS):
            raise _not_supported(where, argument, value, only)
        error = ValueError if isinstance(value, str) else TypeError
        raise error(_must(where, argument, "the name of an activation", value, f'use "{only}"'))

    return check


def _found_by(get: Callable[[Any], Any]) -> Check:
    def check(where: str, argument: str, value: Any) -> Any:
        try:
            return get(value)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{where}: {argument}: {error}") from None

    return check


_initializer = _found_by(initializers.get)
_regularizer = _found_by(regularizers.get)
_constraint = _found_by(constraints.get)


def _rate_not_yet(where: str, argument: str, value: Any) -> float:
    what = "a number from 0 to 1"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(_must(where, argument, what, value, "pass a float"))
    if value < 0 or not value <= 1:  # NaN is neither
        raise ValueError(_must(where, argument, what, value, "it is a fraction"))
    if value:
        raise _not_supported(where, argument, value, 0.0)
    return 0.0


def _cudnn(where: str, argument: str, value: Any) -> bool | str:
    if value is False or (isinstance(value, str) and value == "auto"):
        return value
    raise ValueError(_must(where, argument, '"auto" or False', value, "there is no GPU here"))


def _dtype(where: str, argument: str, value: Any) -> str:
    """The dtype's name, of a name, a NumPy dtype or type, or a DTypePolicy of Keras or its config."""
    if value is None:
        return "float32"
    name = value
    if isinstance(value, dict) and isinstance(value.get("config"), dict):
        name = value["config"].get("name")
    elif not isinstance(value, str):
        name = getattr(value, "name", None) or getattr(value, "__name__", None)
    if name in ("float32", "float64"):
        return str(name)
    if name in ("float16", "bfloat16", "mixed_float16", "mixed_bfloat16"):
        raise _not_supported(where, argument, name, "float32")
    raise ValueError(_must(where, argument, '"float32" or "float64"', value, "use one of these"))


def _name(where: str, argument: str, value: Any) -> str:
    if value is None:
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", where).lower()
    if not isinstance(value, str) or "/" in value:
        error = ValueError if isinstance(value, str) else TypeError
        raise error(_must(where, argument, 'a str without "/"', value, "choose another name"))
    return value


CHECKS: dict[str, Check] = {
    "units": _units,
    "activation": _activation("tanh"),
    "recurrent_activation": _activation("sigmoid"),
    "use_bias": _flag,
    "kernel_initializer": _initializer,
    "recurrent_initializer": _initializer,
    "bias_initializer": _initializer,
    "unit_forget_bias": _flag,
    "kernel_regularizer": _regularizer,
    "recurrent_regularizer": _regularizer,
    "bias_regularizer": _regularizer,
    "activity_regularizer": _regularizer,
    "kernel_constraint": _constraint,
    "recurrent_constraint": _constraint,
    "bias_constraint": _constraint,
    "dropout": _rate_not_yet,
    "recurrent_dropout": _rate_not_yet,
    "seed": _seed,
    "return_sequences": _flag,
    "return_state": _flag,
    "go_backwards": _flag,
    "stateful": _flag,
    "unroll": _flag,
    "reset_after": _flag,
    "use_cudnn": _cudnn,
    "zero_output_for_mask": _no_flag_yet,
    "trainable": _flag,
    "dtype": _dtype,
    "name": _name,
}
# What may be changed on a layer, as in Keras: how it is called, not what it is.
SETTABLE = {"return_sequences", "return_state", "go_backwards", "unroll", "trainable"}


_SERIALIZE: dict[str, Callable[[Any], Any]] = {
    "initializer": initializers.serialize,
    "regularizer": regularizers.serialize,
    "constraint": constraints.serialize,
}


def to_config(argument: str, value: Any) -> Any:
    """An argument's value in a layer's config: JSON-able.

    Raises:
        TypeError: it is an object of one's own that can't be written down.
    """
    serialize = _SERIALIZE.get(argument.rpartition("_")[2])
    return serialize(value) if serialize else value


def show(argument: str, value: Any) -> str:
    """An argument's value in a layer's repr."""
    try:
        return repr(to_config(argument, value))
    except TypeError:
        return getattr(value, "__name__", None) or repr(value)
