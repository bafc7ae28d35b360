"""What is done to gradients between `backward` and the optimizer."""

from __future__ import annotations

import math
import numbers
import reprlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from fastrnn import reference
from fastrnn.functional import Array, Gradients

__all__ = ["clip_norm"]


def clip_norm(gradients: Any, max_norm: float) -> float:
    """Scale gradients down, in place, so that their norm is at most `max_norm`; return the norm that they had.

        norm = sqrt(sum of g^2 over all elements of all arrays)
        g <- g max_norm / norm          if norm > max_norm

    The norm is one of all arrays together, that of several layers if several are given: what clipping means in
    `torch.nn.utils.clip_grad_norm_` and as `global_clipnorm` of Keras' optimizers (whose `clipnorm` is of each array by
    itself: call this once for each). (Pascanu et al., "On the difficulty of training recurrent neural networks", 2013,
    arXiv 1211.5063.)

    Args:
        gradients: An array, the `Gradients` of a layer, of which `weights` alone are taken, or a list of these. Writable
            float32 or float64 arrays of any shapes. One that is there twice counts and is scaled once.
        max_norm: A number, 0 or larger. math.inf: nothing is clipped, the norm is returned.

    Returns:
        The norm before clipping, computed in float64. If it is infinite or NaN, so were gradients, and clipping has made
        NaN of these and 0 or NaN of all others, as PyTorch does: test it with `math.isfinite`.

    Raises:
        TypeError: `gradients` holds something else, or `max_norm` is no number.
        ValueError: An array is read-only, or shares a part of its memory with another, or `max_norm` is negative or NaN.
            No array was changed.

    >>> gradients = [np.full((2, 2), 3.0), np.full(4, 4.0)]
    >>> clip_norm(gradients, 1.0)
    10.0
    >>> clip_norm(gradients, 1.0), gradients[1]
    (1.0, array([0.4, 0.4, 0.4, 0.4]))
    """
    if isinstance(max_norm, bool) or not isinstance(max_norm, numbers.Real):
        raise TypeError(f"clip_norm: max_norm must be a number, got {reprlib.repr(max_norm)}; pass a float")
    if not max_norm >= 0:
        raise ValueError(f"clip_norm: max_norm must be 0 or larger, got {max_norm}; math.inf clips nothing")
    arrays = _different(_arrays(gradients))
    norm = math.sqrt(sum(_square(array) for array in arrays))
    if math.isfinite(max_norm) and not norm <= max_norm:  # NaN is not
        with np.errstate(invalid="ignore"):  # infinity times 0
            for array in arrays:
                array *= float(max_norm) / norm
    return norm


def _different(arrays: Iterable[Array]) -> list[Array]:
    """The arrays, each once, after a check that no two share memory."""
    given = {(_bounds(array), array.shape, array.strides): array for array in arrays}
    found = sorted(((*key[0], array) for key, array in given.items() if array.size), key=lambda f: f[:2])
    for index, (_, end, array) in enumerate(found):
        for begin, _, other in found[index + 1 :]:
            if begin >= end:
                break
            if np.shares_memory(array, other):
                raise ValueError(
                    f"clip_norm: gradients must not share memory in part, got arrays of shapes {array.shape} and "
                    f"{other.shape} that do; clip the larger one alone"
                )
    return list(given.values())


def _bounds(array: Array) -> tuple[int, int]:
    """Where its memory begins and ends."""
    steps = [stride * (size - 1) for stride, size in zip(array.strides, array.shape, strict=True)]
    first: int = array.__array_interface__["data"][0]
    return first + sum(s for s in steps if s < 0), first + sum(s for s in steps if s > 0) + array.itemsize


def _square(array: Array) -> float:
    flat = array.ravel(order="K")
    return float(np.einsum("i,i->", flat, flat, dtype=np.float64))


def _arrays(gradients: Any) -> Iterator[Array]:
    if isinstance(gradients, (Gradients, reference.Gradients)):
        yield from _arrays(gradients.weights)
    elif isinstance(gradients, np.ndarray):
        if gradients.dtype.kind != "f":
            raise TypeError(
                f"clip_norm: gradients must be floating arrays, got {gradients.dtype}; "
                'convert them with astype("float32")'
            )
        if not gradients.flags.writeable:
            raise ValueError(
                "clip_norm: gradients must be writable arrays, which are scaled in place, got a read-only one; "
                "clip a copy of it"
            )
        yield gradients
    elif isinstance(gradients, Iterable) and not isinstance(gradients, (str, bytes, dict)):
        for item in gradients:
            yield from _arrays(item)
    else:
        raise TypeError(
            "clip_norm: gradients must be arrays, what backward returns, or a list of these, got "
            f"{reprlib.repr(gradients)}; pass for example [grads.weights, dense_gradient]"
        )
