"""The arguments of a layer's constructor: what each must be, and what the layer makes of it.

A check takes what error messages begin with ("LSTM"), the argument's name and the value given. It returns the
value that the layer keeps, or raises TypeError, ValueError, or NotImplementedError for what isn't supported
yet. A new argument needs a line in `CHECKS`.

Regularizers and constraints of weights that Keras' layers don't have are no parameters of the constructors, which take them
as further keywords, `**of_weights`. They are listed here; a layer class has attributes for those that it takes.
"""

from __future__ import annotations

import numbers
import operator
import re
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, TypedDict

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fastrnn import activations, constraints, initializers, regularizers
from fastrnn.constraints import ConstraintLike
from fastrnn.regularizers import RegularizerLike

__all__ = [
    "CHECKS",
    "OF_WEIGHTS",
    "SETTABLE",
    "LayerDType",
    "OfLSTMWeights",
    "OfWeights",
    "floating",
    "given_of_weights",
    "ids",
    "plain",
    "show",
    "to_config",
]

Check = Callable[[str, str, Any], Any]
LayerDType = DTypeLike | dict[str, Any]  # the dict: the config of a DTypePolicy of Keras


class OfWeights(TypedDict, total=False):
    """What the constructors take for weights that Keras' layers don't have; see `LSTM` for the weights."""

    layer_norm_regularizer: RegularizerLike
    layer_norm_constraint: ConstraintLike
    embedding_regularizer: RegularizerLike
    embedding_constraint: ConstraintLike


class OfLSTMWeights(OfWeights, total=False):
    """The same of LSTM."""

    peephole_regularizer: RegularizerLike
    peephole_constraint: ConstraintLike
    projection_regularizer: RegularizerLike
    projection_constraint: ConstraintLike
    gate_regularizer: RegularizerLike
    gate_constraint: ConstraintLike
    cell_norm_regularizer: RegularizerLike
    cell_norm_constraint: ConstraintLike


OF_WEIGHTS = frozenset(OfLSTMWeights.__annotations__)


def given_of_weights(where: str, layer_class: type, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a constructor's further keywords that are not None.

    Raises:
        TypeError: one is no argument of this class.
    """
    for name in keywords:
        if name not in OF_WEIGHTS or not hasattr(layer_class, name):
            raise TypeError(
                f"{where}: got an unexpected keyword argument {name!r}; see the docstring of {where}"
            )
    return {name: value for name, value in keywords.items() if value is not None}


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


def _proj_size(where: str, argument: str, value: Any) -> int | None:
    return None if value is None else _integer(where, argument, value, "None or a positive integer", 1)


def _seed(where: str, argument: str, value: Any) -> int | None:
    return None if value is None else _integer(where, argument, value, "None or a non-negative integer", 0)


def _found_by(get: Callable[[Any], Any]) -> Check:
    def check(where: str, argument: str, value: Any) -> Any:
        try:
            return get(value)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{where}: {argument}: {error}") from None

    return check


_activation = _found_by(activations.get)
_initializer = _found_by(initializers.get)
_regularizer = _found_by(regularizers.get)
_constraint = _found_by(constraints.get)


def _rate(where: str, argument: str, value: Any) -> float:
    what = "a number from 0 to less than 1"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(_must(where, argument, what, value, "pass a float"))
    rate = float(value)
    if not 0 <= rate < 1:  # NaN isn't either
        kept = "keeps its state" if argument == "zoneout" else "is left out"
        raise ValueError(_must(where, argument, what, value, f"it is the fraction that {kept}"))
    return rate


def _variant(where: str, argument: str, value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value  # which ones there are the functional layer knows
    raise TypeError(_must(where, argument, "None or a str", value, 'use for example "cifg"'))


def _embedding(where: str, argument: str, value: Any) -> Any:
    """None, the shape (V, I) as a tuple, or a copy of the array [V, I]."""
    if value is None:
        return None
    what = "an array [V, I] of floats, or its shape (V, I)"
    array = plain(where, argument, value)
    if array.shape == (2,) and array.dtype.kind in "iu":
        rows, columns = map(int, array)
        if min(rows, columns) < 0:
            raise ValueError(_must(where, argument, what, value, "sizes are 0 or more"))
        return rows, columns
    if array.dtype.kind != "f" or array.ndim != 2:
        error = TypeError if array.dtype.kind not in "fiu" else ValueError
        raise error(_must(where, argument, what, value, "a row of it is the input of a step"))
    return array.copy()


def _flag_or_none(where: str, argument: str, value: Any) -> bool | None:
    return None if value is None else _flag(where, argument, value)


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


def plain(where: str, what: str, value: Any) -> NDArray[Any]:
    """`value` as an array; one with a mask, which would be lost, and rows of several lengths are refused."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{where}: {what} must be a plain array, got a masked array; fill it with numpy.ma.filled(...)"
        )
    try:
        return np.asarray(value)
    except (ValueError, OverflowError) as error:
        raise ValueError(
            f"{where}: {what} must be an array, got a {type(value).__name__} that NumPy "
            f"makes none of ({error}); give all rows one length"
        ) from None


def ids(where: str, what: str, value: Any) -> NDArray[Any]:
    """`value` as an array of integers, the rows of an embedding; which rows there are is checked elsewhere."""
    array = plain(where, what, value)
    if array.dtype.kind not in "iu":
        raise TypeError(
            f"{where}: {what} must be integers, rows of the embedding, got {array.dtype}; "
            f'convert it with {what}.astype("int64")'
        )
    return array


def floating(where: str, what: str, value: Any, dtype: Any) -> NDArray[Any]:
    """`value` as an array of this dtype, after a check that it is one of floats; no copy if it is one of that dtype."""
    array = plain(where, what, value)
    if array.dtype.kind != "f":
        variable = "it" if what.startswith("what ") else what.split(" ")[0]  # "weights[0] (kernel)"
        raise TypeError(
            f"{where}: {what} must be a floating array, got {array.dtype}; "
            f'convert it with {variable}.astype("{np.dtype(dtype).name}")'
        )
    with np.errstate(over="ignore"):  # beyond float32: infinity
        return array.astype(dtype, copy=False)


CHECKS: dict[str, Check] = {
    "units": _units,
    "activation": _activation,
    "recurrent_activation": _activation,
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
    "layer_norm": _flag,
    "proj_size": _proj_size,
    "zoneout": _rate,
    "dropout": _rate,
    "recurrent_dropout": _rate,
    "seed": _seed,
    "return_sequences": _flag,
    "return_state": _flag,
    "go_backwards": _flag,
    "stateful": _flag,
    "unroll": _flag,
    "reset_after": _flag,
    "use_cudnn": _cudnn,
    "variant": _variant,
    "peephole": _flag_or_none,
    "embedding": _embedding,
    "zero_output_for_mask": _flag,
    "trainable": _flag,
    "dtype": _dtype,
    "name": _name,
} | {name: _regularizer if name.endswith("_regularizer") else _constraint for name in OF_WEIGHTS}
# What may be changed on a layer, as in Keras: how it is called, not what it is.
SETTABLE = {"return_sequences", "return_state", "go_backwards", "unroll", "trainable"}


_SERIALIZE: dict[str, Callable[[Any], Any]] = {
    "activation": activations.serialize,
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
