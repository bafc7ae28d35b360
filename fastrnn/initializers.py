"""What a layer's weights are before training: Keras' initializers, drawn with NumPy.

An initializer is a plain function `initializer(shape, dtype, rng)` that returns an array of that shape and dtype:

    shape: tuple of ints.
    dtype: of the result, "float32" unless given.
    rng: numpy.random.Generator to draw from; None: one with fresh entropy.
    seed: of the random ones, as in Keras: int; draw from a generator made of this seed instead, so that every call returns
        the same values.
    input_axes, output_axes: of those that look at the number of inputs and outputs: see `variance_scaling`.

A layer takes an initializer's name ("glorot_uniform" or "GlorotUniform"), its Keras config, one of the functions below, or
any callable `f(shape, dtype=...)`; `get` turns each of them into a callable, `draw` calls it, `serialize` turns it back.

Everything is drawn and computed in float64 and then rounded, so a seed gives the same weights in both dtypes.
Of Keras' initializers only STFT is missing: it makes kernels of three dimensions, which recurrent layers don't have.
To add an initializer, write its function and name it in `_FUNCTIONS`.
"""

from __future__ import annotations

import functools
import inspect
import math
import reprlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = [
    "constant",
    "draw",
    "get",
    "glorot_normal",
    "glorot_uniform",
    "he_normal",
    "he_uniform",
    "identity",
    "lecun_normal",
    "lecun_uniform",
    "ones",
    "orthogonal",
    "random_normal",
    "random_uniform",
    "serialize",
    "truncated_normal",
    "variance_scaling",
    "zeros",
]

Array = NDArray[Any]
Shape = tuple[int, ...]
Initializer = Callable[..., Any]  # f(shape, dtype=...) -> array
InitializerLike = str | dict[str, Any] | Initializer  # what `get` takes


def zeros(shape: Shape, dtype: DTypeLike = "float32", rng: np.random.Generator | None = None) -> Array:
    """All zeros."""
    return np.zeros(shape, dtype)


def ones(shape: Shape, dtype: DTypeLike = "float32", rng: np.random.Generator | None = None) -> Array:
    """All ones."""
    return np.ones(shape, dtype)


def constant(
    shape: Shape, dtype: DTypeLike = "float32", rng: np.random.Generator | None = None, *, value: float = 0.0
) -> Array:
    """One value everywhere; keras.initializers.Constant.

    >>> constant((2, 3), value=0.5).shape
    (2, 3)
    """
    return np.full(shape, value, dtype)


def identity(
    shape: Shape, dtype: DTypeLike = "float32", rng: np.random.Generator | None = None, *, gain: float = 1.0
) -> Array:
    """`gain` on the diagonal of a matrix, 0 elsewhere; keras.initializers.Identity.

    Of a recurrent kernel [H, G*H] only the first gate's part has the diagonal.

    Args:
        shape: tuple of two ints.
        gain: float.

    Raises:
        ValueError: the shape has other than two dimensions.

    >>> identity((3, 12)).shape
    (3, 12)
    """
    if len(shape) != 2:
        raise ValueError(
            f'identity: shape must have two dimensions, got {tuple(shape)}; a bias can be initialized with "zeros"'
        )
    return np.asarray(gain * np.eye(*shape), dtype)


def random_normal(
    shape: Shape,
    dtype: DTypeLike = "float32",
    rng: np.random.Generator | None = None,
    *,
    mean: float = 0.0,
    stddev: float = 0.05,
    seed: int | None = None,
) -> Array:
    """Normal of mean `mean` and standard deviation `stddev`; keras.initializers.RandomNormal."""
    return np.asarray(mean + stddev * _generator(rng, seed).standard_normal(shape), dtype)


def truncated_normal(
    shape: Shape,
    dtype: DTypeLike = "float32",
    rng: np.random.Generator | None = None,
    *,
    mean: float = 0.0,
    stddev: float = 0.05,
    seed: int | None = None,
) -> Array:
    """As `random_normal`, with what is over two `stddev` from `mean` drawn again; keras.initializers.TruncatedNormal."""
    generator = _generator(rng, seed)
    values = generator.standard_normal(math.prod(shape))
    outside = np.flatnonzero(np.abs(values) > 2.0)
    while outside.size:
        values[outside] = generator.standard_normal(outside.size)
        outside = outside[np.abs(values[outside]) > 2.0]
    return np.asarray(mean + stddev * values.reshape(shape), dtype)


def random_uniform(
    shape: Shape,
    dtype: DTypeLike = "float32",
    rng: np.random.Generator | None = None,
    *,
    minval: float = -0.05,
    maxval: float = 0.05,
    seed: int | None = None,
) -> Array:
    """Uniform in [minval, maxval); keras.initializers.RandomUniform."""
    return np.asarray(_generator(rng, seed).uniform(minval, maxval, shape), dtype)


def variance_scaling(
    shape: Shape,
    dtype: DTypeLike = "float32",
    rng: np.random.Generator | None = None,
    *,
    scale: float = 1.0,
    mode: str = "fan_in",
    distribution: str = "truncated_normal",
    seed: int | None = None,
    input_axes: Sequence[int] | None = None,
    output_axes: Sequence[int] | None = None,
) -> Array:
    """Random values of variance scale / n, where n is the number of inputs, of outputs, or the mean of both.

    For a kernel [I, G*H] the fans are I and G*H: the whole matrix counts, not one gate of it.
    keras.initializers.VarianceScaling.

    Args:
        scale: float over 0.
        mode: "fan_in", "fan_out" or "fan_avg": what n is.
        distribution: "truncated_normal" (or "normal"), "untruncated_normal" or "uniform".
        input_axes, output_axes: lists of ints, axes of the shape whose product is a fan; None: as said above.

    Raises:
        ValueError: scale, mode or distribution is something else.

    >>> variance_scaling((8, 256), scale=2.0, mode="fan_out").shape
    (8, 256)
    """
    fan_in, fan_out = _fans(shape, input_axes, output_axes)
    fans = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2.0}
    if not scale > 0 or mode not in fans:
        raise ValueError(
            f"variance_scaling: scale must be over 0 and mode one of {sorted(fans)}, "
            f"got {scale!r} and {mode!r}; take one of these"
        )
    deviation = math.sqrt(scale / max(1.0, fans[mode]))
    if distribution in ("truncated_normal", "normal"):
        # Cut off at two deviations, a normal of deviation 1 is left with this one.
        return truncated_normal(shape, dtype, rng, stddev=deviation / 0.87962566103423978, seed=seed)
    if distribution == "untruncated_normal":
        return random_normal(shape, dtype, rng, stddev=deviation, seed=seed)
    if distribution == "uniform":
        limit = math.sqrt(3.0) * deviation
        return random_uniform(shape, dtype, rng, minval=-limit, maxval=limit, seed=seed)
    raise ValueError(
        'variance_scaling: distribution must be "truncated_normal", "untruncated_normal" or "uniform", '
        f"got {distribution!r}; take one of these"
    )


def glorot_uniform(
    shape: Shape,
    dtype: DTypeLike = "float32",
    rng: np.random.Generator | None = None,
    *,
    seed: int | None = None,
    input_axes: Sequence[int] | None = None,
    output_axes: Sequence[int] | None = None,
) -> Array:
    """Uniform in [-limit, limit] with limit = sqrt(6 / (fan_in + fan_out)).

    Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks" (2010);
    keras.initializers.GlorotUniform.
    """
    return variance_scaling(
        shape,
        dtype,
        rng,
        scale=1.0,
        mode="fan_avg",
        distribution="uniform",
        seed=seed,
        input_axes=input_axes,
        output_axes=output_axes,
    )


def glorot_normal(
    shape: Shape,
    dtype: DTypeLike = "float32",
    rng: np.random.Generator | None = None,
    *,
    seed: int | None = None,
    input_axes: Sequence[int] | None = None,
    output_axes: Sequence[int] | None = None,
) -> Array:
    """Truncated normal of variance 2 / (fan_in + fan_out).

    Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks" (2010);
    keras.initializers.GlorotNormal.
    """
    return variance_scaling(
        shape,
        dtype,
        rng,
        scale=1.0,
        mode="fan_avg",
        distribution="truncated_normal",
        seed=seed,
        input_axes=input_axes,
        output_axes=output_axes,
    )


def he_uniform(
    shape: Shape,
    dtype: DTypeLike = "float32",
    rng: np.random.Generator | None = None,
    *,
    seed: int | None = None,
    input_axes: Sequence[int] | None = None,
    output_axes: Sequence[int] | None = None,
) -> Array:
    """Uniform in [-limit, limit] with limit = sqrt(6 / fan_in).

    He et al., "Delving deep into rectifiers" (2015);
    keras.initializers.HeUniform.
    """
    return variance_scaling(
        shape,
        dtype,
        rng,
        scale=2.0,
        mode="fan_in",
        distribution="uniform",
        seed=seed,
        input_axes=input_axes,
        output_axes=output_axes,
    )


def he_normal(
    shape: Shape,
    dtype: DTypeLike = "float32",
    rng: np.random.Generator | None = None,
    *,
    seed: int | None = None,
    input_axes: Sequence[int] | None = None,
    output_axes: Sequence[int] | None = None,
) -> Array:
    """Truncated normal of variance 2 / fan_in.

    He et al., "Delving deep into rectifiers" (2015);
    keras.initializers.HeNormal.
    """
    return variance_scaling(
        shape,
        dtype,
        rng,
        scale=2.0,
        mode="fan_in",
        distribution="truncated_normal",
        seed=seed,
        input_axes=input_axes,
        output_axes=output_axes,
    )


def lecun_uniform(
    shape: Shape,
    dtype: DTypeLike = "float32",
    rng: np.random.Generator | None = None,
    *,
    seed: int | None = None,
    input_axes: Sequence[int] | None = None,
    output_axes: Sequence[int] | None = None,
) -> Array:
    """Uniform in [-limit, limit] with limit = sqrt(3 / fan_in).

    LeCun et al., "Efficient BackProp" (1998);
    keras.initializers.LecunUniform.
    """
    return variance_scaling(
        shape,
        dtype,
        rng,
        scale=1.0,
        mode="fan_in",
        distribution="uniform",
        seed=seed,
        input_axes=input_axes,
        output_axes=output_axes,
    )


def lecun_normal(
    shape: Shape,
    dtype: DTypeLike = "float32",
    rng: np.random.Generator | None = None,
    *,
    seed: int | None = None,
    input_axes: Sequence[int] | None = None,
    output_axes: Sequence[int] | None = None,
) -> Array:
    """Truncated normal of variance 1 / fan_in.

    LeCun et al., "Efficient BackProp" (1998);
    keras.initializers.LecunNormal.
    """
    return variance_scaling(
        shape,
        dtype,
        rng,
        scale=1.0,
        mode="fan_in",
        distribution="truncated_normal",
        seed=seed,
        input_axes=input_axes,
        output_axes=output_axes,
    )


def orthogonal(
    shape: Shape,
    dtype: DTypeLike = "float32",
    rng: np.random.Generator | None = None,
    *,
    gain: float = 1.0,
    seed: int | None = None,
) -> Array:
    """Orthonormal rows or, where there are fewer, columns; uniform over all such matrices, times `gain`.

    Q of the QR decomposition of a normal matrix [max, min], each column times the sign of R's diagonal there.
    For a recurrent kernel [H, G*H] the whole matrix is one draw, not each gate of it.
    Saxe et al., "Exact solutions to the nonlinear dynamics of learning in deep linear neural networks"
    (2014); keras.initializers.Orthogonal.

    Args:
        shape: tuple of two ints or more; all but the last are taken together as the rows.
        gain: float, what the matrix is multiplied by.

    Raises:
        ValueError: the shape has fewer than two dimensions.

    >>> u = orthogonal((4, 16), "float64")
    >>> bool(np.allclose(u @ u.T, np.eye(4)))
    True
    """
    if len(shape) < 2:
        raise ValueError(
            f"orthogonal: shape must have at least two dimensions, got {tuple(shape)}; "
            'a bias can be initialized with "zeros"'
        )
    rows, columns = math.prod(shape[:-1]), shape[-1]
    normal = _generator(rng, seed).standard_normal((max(rows, columns), min(rows, columns)))
    q, r = np.linalg.qr(normal)
    q *= np.sign(np.diagonal(r))
    if rows < columns:
        q = q.T
    return np.ascontiguousarray(gain * q.reshape(shape), dtype)


_FUNCTIONS = (
    zeros,
    ones,
    constant,
    identity,
    random_normal,
    random_uniform,
    truncated_normal,
    variance_scaling,
    glorot_uniform,
    glorot_normal,
    he_uniform,
    he_normal,
    lecun_uniform,
    lecun_normal,
    orthogonal,
)
_BY_NAME: dict[str, Initializer] = {function.__name__: function for function in _FUNCTIONS}
_CAMEL = {name: name.title().replace("_", "") for name in _BY_NAME}
_ALIASES = {camel: _BY_NAME[name] for name, camel in _CAMEL.items()}
_ALIASES |= {  # Keras' own
    "zero": zeros,
    "one": ones,
    "normal": random_normal,
    "uniform": random_uniform,
    "IdentityInitializer": identity,
    "OrthogonalInitializer": orthogonal,
}


def get(identifier: InitializerLike) -> Initializer:
    """The initializer that `identifier` means, as `keras.initializers.get` finds it.

    Args:
        identifier: a name ("glorot_uniform" or "GlorotUniform"), a Keras config
            `{"class_name": "Orthogonal", "config": {"gain": 0.5}}`, a callable `f(shape, dtype=...)`, or a
            class whose instances are such callables.

    Returns:
        A callable; `draw` calls it. A name gives the function of this module, a config with settings a
        `functools.partial` of it, and a callable itself.

    Raises:
        ValueError: the name, or a setting in the config, is not known.
        TypeError: `identifier` is none of these.

    >>> get("GlorotUniform").__name__
    'glorot_uniform'
    """
    if isinstance(identifier, str):
        return _by_name(identifier)
    if isinstance(identifier, dict):
        return _from_config(identifier)
    function = identifier() if inspect.isclass(identifier) else identifier
    if callable(function):
        return function
    raise TypeError(
        "an initializer must be a name, a config or a callable f(shape, dtype=...), "
        f"got {reprlib.repr(function)}; the known names are {_known()}"
    )


def serialize(initializer: Initializer) -> str | dict[str, Any]:
    """What `get` turns back into `initializer`: JSON-able, and understood by Keras as well.

    Args:
        initializer: what `get` returns.

    Returns:
        The name; or, with settings, a dict with class_name and config.

    Raises:
        TypeError: a function of one's own has no name to be found by.

    >>> serialize(get("Orthogonal"))
    'orthogonal'
    >>> serialize(get({"class_name": "Orthogonal", "config": {"gain": 0.5}}))
    {'class_name': 'Orthogonal', 'config': {'gain': 0.5}}
    """
    if initializer is constant:  # Keras finds this one by its value alone
        return {"class_name": "Constant", "config": {"value": 0.0}}
    if initializer in _FUNCTIONS:
        return initializer.__name__
    if isinstance(initializer, functools.partial) and initializer.func in _FUNCTIONS:
        if not initializer.args and "rng" not in initializer.keywords:
            return {"class_name": _CAMEL[initializer.func.__name__], "config": dict(initializer.keywords)}
    if hasattr(initializer, "get_config"):  # an initializer object of Keras
        return {"class_name": type(initializer).__name__, "config": initializer.get_config()}
    raise TypeError(
        f"an initializer of one's own cannot be written into a config, got {initializer!r}; "
        f"use one of {_known()}, or an object with get_config()"
    )


def draw(initializer: Initializer, shape: Shape, dtype: str, rng: np.random.Generator) -> Any:
    """Calls an initializer: one of this module with `rng`, one of Keras' form `f(shape, dtype=...)` without.

    Args:
        initializer: what `get` returns.
        shape: tuple of ints.
        dtype: name of the dtype wanted, "float32" or "float64".
        rng: numpy.random.Generator, handed to an initializer that has a parameter of this name.

    Returns:
        What the initializer returned; the caller checks it.

    >>> draw(get("zeros"), (2, 3), "float32", np.random.default_rng(0)).shape
    (2, 3)
    """
    try:
        parameter = inspect.signature(initializer).parameters.get("rng")
    except (TypeError, ValueError):  # a builtin such as numpy.zeros may have no signature
        parameter = None
    if parameter is None or parameter.default not in (None, parameter.empty):
        return initializer(shape, dtype=dtype)
    return initializer(shape, dtype=dtype, rng=rng)


def _known() -> str:
    return ", ".join(f'"{name}"' for name in sorted(_BY_NAME))


def _by_name(name: str) -> Initializer:
    function = _BY_NAME.get(name) or _ALIASES.get(name)
    if function is None:
        raise ValueError(
            f'there is no initializer "{name}"; the known ones are {_known()}, '
            "and any callable f(shape, dtype=...) will do"
        )
    return function


def _from_config(config: dict[str, Any]) -> Initializer:
    name, settings = config.get("class_name"), config.get("config") or {}
    if not isinstance(name, str) or not isinstance(settings, dict):
        raise ValueError(
            f"an initializer's config must have a class_name and a dict config, got {reprlib.repr(config)}; "
            'pass for example {"class_name": "Orthogonal", "config": {"gain": 0.5}}'
        )
    function = _by_name(name)
    known = {
        p.name: p.default for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY
    }
    # Keras writes every setting down; what is None or at its default says nothing.
    settings = {
        key: value for key, value in settings.items() if value is not None and value != known.get(key)
    }
    unknown = sorted(settings.keys() - known.keys())
    if unknown:
        raise ValueError(
            f"{function.__name__}: the settings must be among {sorted(known)}, got {unknown}; "
            "leave the others out"
        )
    return functools.partial(function, **settings) if settings else function


def _generator(rng: np.random.Generator | None, seed: int | None) -> np.random.Generator:
    """The generator to draw from: a seed of the initializer's own goes before the layer's generator."""
    if seed is not None:
        return np.random.default_rng(seed)
    return np.random.default_rng() if rng is None else rng


def _fans(
    shape: Shape, input_axes: Sequence[int] | None, output_axes: Sequence[int] | None
) -> tuple[int, int]:
    """(fan_in, fan_out) as keras.initializers computes them."""
    if input_axes is not None and output_axes is not None:
        return math.prod(shape[axis] for axis in input_axes), math.prod(shape[axis] for axis in output_axes)
    if len(shape) < 2:
        size = shape[0] if shape else 1
        return size, size
    field = math.prod(shape[:-2])
    return shape[-2] * field, shape[-1] * field
