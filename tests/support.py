"""What several test modules share: the cells by name, random problems, comparison, PyTorch and Keras."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import pytest

from fastrnn import reference

# ---- The cells ----


class Reference(NamedTuple):
    forward: Callable[..., Any]
    backward: Callable[..., Any]


CELLS = {
    "simple_rnn": Reference(reference.simple_rnn_forward, reference.simple_rnn_backward),
    "lstm": Reference(reference.lstm_forward, reference.lstm_backward),
    "gru": Reference(reference.gru_forward, reference.gru_backward),
    "gru_reset_before": Reference(partial(reference.gru_forward, reset_after=False), reference.gru_backward),
}
ALL_CELLS = CELLS | {
    "indrnn": Reference(reference.indrnn_forward, reference.indrnn_backward)
}  # Keras' and others
GATES = {"simple_rnn": 1, "indrnn": 1, "lstm": 4, "gru": 3, "gru_reset_before": 3}
STATES = {"simple_rnn": 1, "indrnn": 1, "lstm": 2, "gru": 1, "gru_reset_before": 1}


# ---- Random problems ----


class Problem(NamedTuple):
    """What a forward pass reads, in the fields of reference.Gradients."""

    x: np.ndarray
    weights: list[np.ndarray]
    initial_state: list[np.ndarray]

    def astype(self, dtype) -> Problem:
        return Problem(
            self.x.astype(dtype),
            [w.astype(dtype) for w in self.weights],
            [s.astype(dtype) for s in self.initial_state],
        )


def weight_shapes(cell: str, inputs: int, units: int, bias: bool = True) -> list[tuple[int, ...]]:
    """Shapes of kernel, recurrent kernel and, with `bias`, bias."""
    columns = GATES[cell] * units
    bias_shape = (2, columns) if cell == "gru" else (columns,)
    recurrent_shape = (units,) if cell == "indrnn" else (units, columns)
    return [(inputs, columns), recurrent_shape, *([bias_shape] if bias else [])]


def random_problem(
    cell: str, B: int, T: int, I: int, H: int, dtype="float64", seed: int = 0, bias: bool = True
) -> Problem:
    """x [B, T, I], the weights of `cell` and its initial states [B, H], such that no gate saturates."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((B, T, I))
    kernel, recurrent_kernel, *b = map(rng.standard_normal, weight_shapes(cell, I, H, bias))
    weights = [kernel / np.sqrt(max(I, 1)), recurrent_kernel / np.sqrt(max(H, 1)), *b]
    states = [rng.uniform(-1, 1, (B, H)) for _ in range(STATES[cell])]
    return Problem(x, weights, states).astype(dtype)


def as_list(outputs) -> list[np.ndarray]:
    """[y] or [y, h(, c)] of what a forward pass returned without or with return_state."""
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]


def random_gradients(outputs, seed: int = 1):
    """Gradients dy of what a forward pass returned: an array for an array, a list for a tuple."""
    rng = np.random.default_rng(seed)
    dy = [rng.standard_normal(o.shape).astype(o.dtype) for o in as_list(outputs)]
    return dy if isinstance(outputs, (list, tuple)) else dy[0]


def inner_product(a, b) -> float:
    """Sum of a * b over all elements; for outputs and dy, the loss whose gradients backward(dy) returns."""
    return sum(np.sum(p * q) for p, q in zip(as_list(a), as_list(b), strict=True))


# ---- Comparison ----


def finite_differences(loss: Callable[[Problem], float], problem: Problem, step: float = 1e-5) -> Problem:
    """Gradients of loss(problem) by central differences: (loss(v + step) - loss(v - step)) / (2 * step)."""
    problem = problem.astype(problem.x.dtype)  # a copy, changed in place below

    def gradient(array):
        result = np.zeros_like(array)
        for at in np.ndindex(array.shape):
            value = array[at]
            array[at] = value + step
            above = loss(problem)
            array[at] = value - step
            below = loss(problem)
            array[at] = value
            result[at] = (above - below) / (2 * step)
        return result

    return Problem(*([gradient(a) for a in f] if isinstance(f, list) else gradient(f) for f in problem))


def assert_close(actual, expected, rtol: float, what: str = "result") -> None:
    """Equal shapes, and max |actual - expected| <= rtol * max |expected|; lists and tuples item by item.

    Of numbers so small that their type has no normal ones of that size, no digits can be asked for.
    """
    if isinstance(expected, (list, tuple)):
        assert len(actual) == len(expected), f"{what}: {len(actual)} items, not {len(expected)}"
        names = getattr(expected, "_fields", range(len(expected)))
        for name, a, e in zip(names, actual, expected, strict=True):
            assert_close(a, e, rtol, f"{what}.{name}")
        return
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, not {expected.shape}"
    error = np.max(np.abs(actual - expected), initial=0)
    bound = rtol * np.max(np.abs(expected), initial=0)
    if rtol and actual.dtype.kind == "f":
        bound += np.finfo(actual.dtype).tiny
    assert error <= bound, f"{what}: largest error {error:.3g}, allowed {bound:.3g}"


# ---- PyTorch: gates i f g o and r z n, matrices transposed, always two biases ----


def _swap_torch_gates(cell: str, w: np.ndarray) -> np.ndarray:
    """Columns z r n as r z n and back; those of the other cells have the same order in Keras and PyTorch."""
    if cell != "gru":
        return w
    z, r, n = np.split(w, 3, axis=-1)
    return np.concatenate([r, z, n], axis=-1)


def torch_layer(cell: str, weights: list[np.ndarray]):
    """nn.RNN, nn.LSTM or nn.GRU (batch_first) with these weights; skips the test if there is no PyTorch."""
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    kernel, recurrent_kernel, *bias = (torch.from_numpy(_swap_torch_gates(cell, w)) for w in weights)
    layer_class = {"simple_rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[cell]
    layer = layer_class(
        kernel.shape[0], recurrent_kernel.shape[0], bias=bool(bias), batch_first=True, dtype=kernel.dtype
    )
    values = [kernel.T, recurrent_kernel.T]
    for b in bias:
        values += list(b) if cell == "gru" else [b, torch.zeros_like(b)]
    with torch.no_grad():
        for parameter, value in zip(layer.parameters(), values, strict=True):
            parameter.copy_(value)
    return layer


def torch_weight_gradients(cell: str, layer) -> list[np.ndarray]:
    """The gradients of a torch_layer after backward(), shaped and ordered as the weights it was made from."""
    kernel, recurrent_kernel, *bias = (p.grad.numpy() for p in layer.parameters())
    gradients = [kernel.T, recurrent_kernel.T]
    if bias:  # outside of the GRU the two biases are added, so that both have the gradient of the one
        gradients.append(np.stack(bias) if cell == "gru" else bias[0])
    return [_swap_torch_gates(cell, g) for g in gradients]


# ---- Keras: the weights are the same arrays ----


def import_keras():
    """Keras on the backend in KERAS_BACKEND, PyTorch by default; skips the test if either is missing."""
    if os.environ.setdefault("KERAS_BACKEND", "torch") == "torch":
        pytest.importorskip("torch", reason="runs Keras on PyTorch, which is not installed")
    return pytest.importorskip("keras", reason="compares with Keras, which is not installed")


@contextmanager
def keras_in_float64():
    """Keras with layers of dtype="float64" that really compute in it; skips the test where they can't.

    Keras up to 3.15 rounds the operands of `ops.matmul` to float32 on every backend but TensorFlow, whatever
    the layer's dtype (cause: keras-team/keras#23223). On PyTorch LSTM and GRU(reset_after=True) don't use it.
    """
    keras = import_keras()
    rules = import_module("keras.src.backend.common.dtypes")
    with pytest.MonkeyPatch.context() as patch:
        if hasattr(rules, "BIT64_TO_BIT32_DTYPE"):
            patch.setitem(rules.BIT64_TO_BIT32_DTYPE, "float64", "float64")
        x = keras.ops.convert_to_tensor(np.ones((1, 1)))
        if keras.backend.standardize_dtype(keras.ops.matmul(x, x).dtype) != "float64":
            pytest.skip(f"Keras on {keras.backend.backend()} has no float64; for JAX set JAX_ENABLE_X64=1")
        yield keras


def keras_layer(cell: str, weights: list[np.ndarray], batch: int | None = None, **options):
    """keras.layers.SimpleRNN, LSTM or GRU with these weights and dtype; options go to its constructor.

    With stateful=True it needs the batch size.
    """
    layers = import_keras().layers
    layer_class = {
        "simple_rnn": layers.SimpleRNN,
        "lstm": layers.LSTM,
        "gru": layers.GRU,
        "gru_reset_before": partial(layers.GRU, reset_after=False),
    }[cell]
    kernel, recurrent_kernel, *bias = weights
    layer = layer_class(recurrent_kernel.shape[0], use_bias=bool(bias), dtype=str(kernel.dtype), **options)
    layer.build((batch, None, kernel.shape[0]))
    layer.set_weights(weights)
    return layer
