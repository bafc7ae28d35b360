"""Penalties on weights and outputs: Keras' regularizers, each with its gradient.

A regularizer is a callable of one array that returns a loss, with a method `gradient(w)` that returns the loss'
gradient, an array like w. A layer takes a regularizer's name ("l2"), its Keras config, one of the classes below, an
object of Keras' own classes, or any object with these two methods.

Losses are added up in float64; gradients have the dtype of w. Where |w| has no derivative, at 0, it is taken as 0, as
Keras' backends do.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fastrnn import configs
from fastrnn.configs import Configured, non_negative

__all__ = ["L1", "L1L2", "L2", "OrthogonalRegularizer", "Regularizer", "get", "serialize"]

Array = NDArray[Any]
RegularizerLike = str | dict[str, Any] | Callable[[Array], Any] | None  # what `get` takes


class Regularizer(Configured):
    """What the regularizers here have in common, and a base for one's own.

    A class of one's own defines `__call__` and `gradient`, and keeps its constructor's arguments under their
    names if it should be written into configs.
    """

    def __call__(self, w: Array) -> float:
        """The loss of w, an array of any shape."""
        raise NotImplementedError(f"{type(self).__name__}: __call__(w) must return the loss of w; define it")

    def gradient(self, w: Array) -> Array:
        """The gradient of the loss by w: an array of its shape and dtype."""
        raise NotImplementedError(
            f"{type(self).__name__}: gradient(w) must return the gradient of the loss by w; define it"
        )


class L1L2(Regularizer):
    """l1 * sum |w| + l2 * sum w**2; keras.regularizers.L1L2.

    Args:
        l1: finite float of 0 or more.
        l2: the same.

    Raises:
        ValueError: an argument is something else.

    >>> L1L2(l1=0.5, l2=0.25)(np.full((2, 3), -2.0))
    12.0
    >>> L1L2(l1=0.5, l2=0.25).gradient(np.full((2, 3), -2.0)).shape
    (2, 3)
    """

    def __init__(self, l1: float = 0.0, l2: float = 0.0) -> None:
        self.l1 = non_negative(type(self).__name__, "l1", 0.0 if l1 is None else l1)
        self.l2 = non_negative(type(self).__name__, "l2", 0.0 if l2 is None else l2)

    def __call__(self, w: Array) -> float:
        """The loss of w, an array of any shape."""
        loss = 0.0
        if self.l1:
            loss += self.l1 * float(np.sum(np.abs(w), dtype=np.float64))
        if self.l2:
            loss += self.l2 * float(np.sum(np.square(w, dtype=np.float64)))
        return loss

    def gradient(self, w: Array) -> Array:
        """l1 * sign(w) + 2 * l2 * w."""
        return np.asarray(self.l1 * np.sign(w) + (2.0 * self.l2) * w, w.dtype)


class L1(L1L2):
    """l1 * sum |w|; keras.regularizers.L1.

    Args:
        l1: finite float of 0 or more.

    Raises:
        ValueError: l1 is something else.

    >>> L1(0.5)(np.full((2, 3), -2.0))
    6.0
    """

    def __init__(self, l1: float = 0.01) -> None:
        super().__init__(l1=0.01 if l1 is None else l1)


class L2(L1L2):
    """l2 * sum w**2; keras.regularizers.L2.

    Args:
        l2: finite float of 0 or more.

    Raises:
        ValueError: l2 is something else.

    >>> L2(0.25)(np.full((2, 3), -2.0))
    6.0
    """

    def __init__(self, l2: float = 0.01) -> None:
        super().__init__(l2=0.01 if l2 is None else l2)


class OrthogonalRegularizer(Regularizer):
    """factor * the mean |cosine| of the angles between each two rows, or columns, of a matrix.

        n_i = w_i / |w_i|
        loss = factor * sum_{i<j} |n_i . n_j| / (size * (size - 1) / 2)

    keras.regularizers.OrthogonalRegularizer.

    Args:
        factor: finite float of 0 or more.
        mode: "rows" or "columns".

    Raises:
        ValueError: an argument is something else.

    >>> OrthogonalRegularizer(0.5)(np.ones((2, 3))).__round__(6)
    0.5
    """

    def __init__(self, factor: float = 0.01, mode: Literal["rows", "columns"] = "rows") -> None:
        self.factor = non_negative("OrthogonalRegularizer", "factor", factor)
        if mode not in ("rows", "columns"):
            raise ValueError(
                f'OrthogonalRegularizer: mode must be "rows" or "columns", got {reprlib.repr(mode)}; use one of these'
            )
        self.mode = mode

    def _rows(self, w: Array) -> tuple[Array, Array, Array, float]:
        """The rows or columns of length 1, their lengths, their products, and what each product weighs."""
        axis = ("rows", "columns").index(self.mode)
        if w.ndim != 2 or w.shape[axis] < 2:
            raise ValueError(
                f"OrthogonalRegularizer: w must be a matrix of two {self.mode} or more, got shape {w.shape}; "
                "use another regularizer for it"
            )
        rows = np.asarray(w if axis == 0 else w.T, np.float64)
        lengths = np.sqrt(
            np.maximum(np.sum(np.square(rows), axis=1, keepdims=True), 1e-14)
        )  # as keras.ops.normalize
        rows = rows / lengths
        products = rows @ rows.T
        np.fill_diagonal(products, 0.0)
        size = len(rows)
        return rows, lengths, products, self.factor / (size * (size - 1))

    def __call__(self, w: Array) -> float:
        """The loss of w, a matrix of two rows (columns) or more."""
        _, _, products, weight = self._rows(w)
        return weight * float(np.sum(np.abs(products)))

    def gradient(self, w: Array) -> Array:
        """The gradient of the loss by w: what changes a row's direction, none of what changes its length."""
        rows, lengths, products, weight = self._rows(w)
        d = 2.0 * weight * np.sign(products) @ rows  # loss = weight * sum |rows @ rows.T| off the diagonal
        d = (d - rows * np.sum(d * rows, axis=1, keepdims=True)) / lengths  # rows = w / |w|
        return np.asarray(d if self.mode == "rows" else d.T, w.dtype)


_CLASSES = (L1, L2, L1L2, OrthogonalRegularizer)


def get(identifier: RegularizerLike) -> Any:
    """The regularizer that `identifier` means, as `keras.regularizers.get` finds it.

    Args:
        identifier: None, a name ("l2" or "L2"), a Keras config, one of the classes here or an object of one, an
            object of Keras' class of such a name, or an object with `__call__(w)` and `gradient(w)`.

    Returns:
        None, or an object with `__call__(w)` and `gradient(w)`.

    Raises:
        ValueError: the name, or a setting in the config, is not known.
        TypeError: `identifier` is none of these, or has no gradient.

    >>> get("l2")
    L2(l2=0.01)
    """
    if identifier is None:
        return None
    found = configs.get("a regularizer", identifier, _CLASSES)
    if not callable(found) or not callable(getattr(found, "gradient", None)):
        what = f"{reprlib.repr(found)} without gradient" if callable(found) else reprlib.repr(found)
        raise TypeError(
            "a regularizer must be a name, a config or an object with __call__(w), the loss, and gradient(w), its "
            f"gradient by w, got {what}; put both into a class"
        )
    return found


def serialize(regularizer: Any) -> dict[str, Any] | None:
    """What `get` turns back into `regularizer`: JSON-able, and understood by Keras as well.

    >>> serialize(L2(0.5))
    {'class_name': 'L2', 'config': {'l2': 0.5}}
    """
    return configs.serialize("a regularizer", regularizer)
