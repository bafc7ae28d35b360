"""The call on TensorFlow's tensors: NumPy functions with a custom gradient, eager and in graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from fastrnn.functional import Array
from fastrnn.keras import _arrays
from fastrnn.keras._arrays import Operands, Settings


def reason_against(x: Any) -> str | None:
    """Why the kernels cannot read x, or None."""
    return None  # numpy_function copies what lies on a graphics card


def is_symbolic(x: Any) -> bool:
    """Whether x has a shape alone, and no values; in a graph the kernels run when the graph does."""
    return False


def call(settings: Settings, operands: Operands) -> list[Any]:
    """[y], or with return_state [y, *states]; differentiable once.

    With settings.training the tape is kept. Otherwise backward runs the forward pass a second time: in a graph it isn't
    known whether there will be a backward pass.
    """
    x, weights, states, *masks = operands
    given = [index for index, mask in enumerate(masks) if mask is not None]
    tensors = [tf.convert_to_tensor(t) for t in (x, *weights, *states, *(masks[index] for index in given))]
    split = len(weights) + 1, len(weights) + 1 + len(states)

    def pack(arrays: Sequence[Array]) -> Operands:
        found: list[Any] = [None, None, None]
        for index, mask in zip(given, arrays[split[1] :], strict=True):
            found[index] = mask
        return Operands(arrays[0], tuple(arrays[1 : split[0]]), tuple(arrays[split[0] : split[1]]), *found)

    def run(*arrays: Array) -> list[Array]:
        return _arrays.run(settings, pack(arrays))

    def run_forward(*arrays: Array) -> list[Array]:
        outputs, saved = _arrays.run_forward(settings, pack(arrays))
        return [*outputs, saved]

    def run_backward(*arrays: Array) -> list[Array]:
        inputs, (saved, *gradients) = arrays[: len(tensors)], arrays[len(tensors) :]
        return _arrays.run_backward(settings, pack(inputs), saved, gradients)

    def run_again_and_backward(*arrays: Array) -> list[Array]:
        inputs, gradients = arrays[: len(tensors)], arrays[len(tensors) :]
        saved = _arrays.run_forward(settings, pack(inputs))[1]
        return _arrays.run_backward(settings, pack(inputs), saved, gradients)

    batch, time = x.shape[:2]
    units = weights[1].shape[0]
    y_shape = (batch, time, units) if settings.return_sequences else (batch, units)
    shapes = [y_shape, *[(batch, units)] * (len(states) if settings.return_state else 0)]
    gradient_shapes = [t.shape for t in tensors[: split[1]]]

    @tf.custom_gradient
    def differentiable(*tensors: Any) -> Any:
        if settings.training:
            *outputs, saved = _numpy_function(run_forward, tensors, [*shapes, (None,) * 4])
            kept, backward = [*tensors, saved], run_backward
        else:
            outputs = _numpy_function(run, tensors, shapes)
            kept, backward = list(tensors), run_again_and_backward

        def gradient(*gradients: Any) -> list[Any]:
            return [*once(*kept, *gradients), *[None] * len(given)]

        @tf.custom_gradient
        def once(*tensors: Any) -> Any:
            return _numpy_function(backward, tensors, gradient_shapes), refuse

        def refuse(*_: Any) -> Any:
            raise RuntimeError(_arrays.ONCE.format(settings.name))

        return outputs, gradient

    return list(differentiable(*tensors))


def _numpy_function(
    function: Callable[..., list[Array]], tensors: Sequence[Any], shapes: Sequence[Any]
) -> list[Any]:
    """Call a function of arrays that returns arrays of the first one's dtype."""
    dtype = tensors[0].dtype
    if tf.executing_eagerly():
        return [tf.convert_to_tensor(a) for a in function(*(np.asarray(memoryview(t)) for t in tensors))]
    outputs = tf.numpy_function(function, tensors, [dtype] * len(shapes))
    for output, shape in zip(outputs, shapes, strict=True):
        output.set_shape(shape)
    return list(outputs)
