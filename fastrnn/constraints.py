"""Projections of weights: Keras' constraints.

A constraint is a callable of one array that returns an array like it. A layer takes a constraint's name ("max_norm"),
its Keras config, one of the classes below, an object of Keras' own classes, or any callable. Nothing applies it but
`layer.apply_constraints()`, which a training loop calls after each update, as Keras' optimizers do.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrnn import configs
from fastrnn.configs import Configured, non_negative

__all__ = ["Constraint", "MaxNorm", "MinMaxNorm", "NonNeg", "UnitNorm", "get", "serialize"]

Array = NDArray[Any]
Axis = int | Sequence[int]
ConstraintLike = str | dict[str, Any] | Callable[[Array], Any] | None  # what `get` takes

_EPSILON = 1e-7  # keras.config.epsilon()


class Constraint(Configured):
    """What the constraints here have in common, and a base for one's own, which defines `__call__`."""

    def __call__(self, w: Array) -> Array:
        """The array nearest to w that meets the constraint; w itself is left alone."""
        raise NotImplementedError(
            f"{type(self).__name__}: __call__(w) must return an array like w; define it"
        )


class NonNeg(Constraint):
    """max(w, 0); keras.constraints.NonNeg.

    >>> NonNeg()(np.full((2, 3), -1.0)).shape
    (2, 3)
    """

    def __call__(self, w: Array) -> Array:
        """w with 0 in place of what is negative."""
        return np.maximum(w, 0)


class MinMaxNorm(Constraint):
    """Brings the norm of each unit's weights into an interval, or nearer to it.

        norm' = rate * clip(norm, min_value, max_value) + (1 - rate) * norm

    keras.constraints.MinMaxNorm.

    Args:
        min_value: finite float of 0 or more.
        max_value: the same.
        rate: float; 1 enforces the interval at once, less moves towards it.
        axis: int or list of ints, the axes of w that one norm is taken over: 0 for a kernel's columns.

    Raises:
        ValueError: an argument is something else.

    >>> np.linalg.norm(MinMaxNorm(0.5, 1.0)(np.ones((4, 8))), axis=0).shape
    (8,)
    """

    def __init__(
        self, min_value: float = 0.0, max_value: float = 1.0, rate: float = 1.0, axis: Axis = 0
    ) -> None:
        self.min_value = non_negative(type(self).__name__, "min_value", min_value)
        self.max_value = non_negative(type(self).__name__, "max_value", max_value)
        self.rate = non_negative(type(self).__name__, "rate", rate)
        axes = axis if isinstance(axis, (list, tuple)) else [axis]
        if not all(isinstance(a, (int, np.integer)) and not isinstance(a, bool) for a in axes):
            raise ValueError(
                f"{type(self).__name__}: axis must be an int or a list of ints, got {reprlib.repr(axis)}; "
                "0 is for the columns of a kernel"
            )
        self.axis = axis

    def _desired(self, norms: Array) -> Array:
        return self.rate * np.clip(norms, self.min_value, self.max_value) + (1.0 - self.rate) * norms

    def __call__(self, w: Array) -> Array:
        """w, each vector along `axis` scaled to the norm it should have."""
        axis = tuple(self.axis) if isinstance(self.axis, (list, tuple)) else self.axis
        norms = np.sqrt(np.sum(np.square(w), axis=axis, keepdims=True))
        return np.asarray(w * (self._desired(norms) / (_EPSILON + norms)))


class MaxNorm(MinMaxNorm):
    """Scales the weights of each unit down to a norm of at most max_value; keras.constraints.MaxNorm.

    Args:
        max_value: finite float of 0 or more.
        axis: int or list of ints, the axes of w that one norm is taken over: 0 for a kernel's columns.

    Raises:
        ValueError: an argument is something else.

    >>> MaxNorm(2.0)(np.ones((4, 8))).shape
    (4, 8)
    """

    def __init__(self, max_value: float = 2, axis: Axis = 0) -> None:
        super().__init__(max_value=max_value, axis=axis)


class UnitNorm(MinMaxNorm):
    """Scales the weights of each unit to norm 1; keras.constraints.UnitNorm.

    Args:
        axis: int or list of ints, the axes of w that one norm is taken over: 0 for a kernel's columns.

    Raises:
        ValueError: axis is something else.

    >>> UnitNorm()(np.ones((4, 8))).shape
    (4, 8)
    """

    def __init__(self, axis: Axis = 0) -> None:
        super().__init__(min_value=1.0, max_value=1.0, axis=axis)


_CLASSES = (MaxNorm, MinMaxNorm, NonNeg, UnitNorm)


def get(identifier: ConstraintLike) -> Any:
    """The constraint that `identifier` means, as `keras.constraints.get` finds it.

    Args:
        identifier: None, a name ("max_norm" or "MaxNorm"), a Keras config, one of the classes here or an object of
            one, an object of Keras' class of such a name, or any callable of an array that returns one.

    Returns:
        None, or a callable.

    Raises:
        ValueError: the name, or a setting in the config, is not known.
        TypeError: `identifier` is none of these.

    >>> get("unit_norm")
    UnitNorm(axis=0)
    """
    if identifier is None:
        return None
    found = configs.get("a constraint", identifier, _CLASSES)
    if not callable(found):
        raise TypeError(
            f"a constraint must be a name, a config or a callable of an array, got {reprlib.repr(found)}; "
            'pass for example "max_norm"'
        )
    return found


def serialize(constraint: Any) -> dict[str, Any] | None:
    """What `get` turns back into `constraint`: JSON-able, and understood by Keras as well.

    >>> serialize(MaxNorm(3.0))
    {'class_name': 'MaxNorm', 'config': {'max_value': 3.0, 'axis': 0}}
    """
    return configs.serialize("a constraint", constraint)
