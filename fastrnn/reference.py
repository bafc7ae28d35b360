"""SimpleRNN, LSTM and GRU in plain NumPy, forward and backward, for reading: the oracle of the kernels.

Legend, shapes in brackets:

    B batch   T time steps   I inputs   H units   G gates (1, 4, 3)
    x [B, T, I]    h, c [B, H]    W kernel [I, G*H]    U recurrent_kernel [H, G*H]
    b bias [G*H]; GRU with reset_after [2, 3*H]: b_x = b[0] for the inputs, b_h = b[1] for the state
    a pre-activation [B, G*H], a_x its part from the inputs, a_h its part from the state
    v_prev is v one step earlier, dv the gradient of the loss with respect to v, @ the matrix product

Arguments, shapes, gate order (LSTM i f g o, GRU z r n) and defaults are those of Keras 3 (keras.layers).
A cell is one step and its adjoint:

    step(a_x, *states_prev, *recurrent)        -> states, saved
    step_backward(*dstates, saved, *recurrent) -> da_x, dstates_prev, drecurrent

with recurrent = (U,) or (U, b_h). `_forward` and `_backward` hold what all cells share: a_x = x @ W + b_x and
the loop over time. Everything is computed in the dtype of the arrays; nothing is checked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy import tanh
from numpy.typing import NDArray

__all__ = [
    "Gradients",
    "gru_backward",
    "gru_forward",
    "lstm_backward",
    "lstm_forward",
    "simple_rnn_backward",
    "simple_rnn_forward",
]

Array = NDArray[np.floating[Any]]
Arrays = tuple[Array, ...]
States = Sequence[Array | None] | None
split, join = partial(np.split, axis=1), partial(np.concatenate, axis=1)  # gates side by side: [B, G*H]


class Gradients(NamedTuple):
    """Gradients of the loss, shaped as what they are named after; without a bias `weights` has two items."""

    x: Array
    weights: list[Array]
    initial_state: list[Array]


# ---- Activations; the derivatives are written in terms of the output y ----


def sigmoid(a: Array) -> Array:
    """y = 1 / (1 + exp(-a)), from exp(-|a|): nothing overflows, a small y keeps its digits, NaN stays NaN."""
    e = np.exp(-np.abs(a))
    y: Array = np.where(a < 0, e, 1) / (1 + e)
    return y


def sigmoid_backward(dy: Array, y: Array) -> Array:
    return dy * y * (1 - y)


def tanh_backward(dy: Array, y: Array) -> Array:
    return dy * (1 - y * y)


# ---- All cells: the inputs' part of the pre-activations, and the loop over time ----


class _Cell(NamedTuple):
    states: int  # 1: h; 2: h, c
    bias_rows: int  # 1: b = b_x; 2: b = b_x, b_h
    step: Callable[..., tuple[Arrays, Arrays]]
    step_backward: Callable[..., tuple[Array, Arrays, Arrays]]


@dataclass(frozen=True)
class _Tape:
    """What backward needs of forward. It refers to the caller's x and weights: don't change them before."""

    cell: _Cell
    x: Array
    W: Array
    recurrent: list[Array]
    bias_shape: tuple[int, ...] | None
    order: list[tuple[int, int]]  # (k, t): step k reads x[:, t]
    saved: list[Arrays]  # per step k
    return_sequences: bool
    return_state: bool


def _or_zeros(values: Sequence[Array | None], shape: tuple[int, int], dtype: np.dtype[Any]) -> list[Array]:
    """Copies of the arrays, zeros for those that are None."""
    return [np.zeros(shape, dtype) if v is None else np.array(v) for v in values]


def _forward(
    cell: _Cell,
    x: Array,
    W: Array,
    U: Array,
    b: Array | None,
    initial_state: States,
    return_sequences: bool,
    return_state: bool,
    go_backwards: bool,
) -> tuple[Any, _Tape]:
    (B, T, _), H = x.shape, len(U)
    b_x, *b_h = np.zeros((cell.bias_rows, W.shape[1]), x.dtype) if b is None else np.atleast_2d(b)
    recurrent = [U, *b_h]
    order = list(enumerate(reversed(range(T)) if go_backwards else range(T)))
    a_x = x @ W + b_x  # [B, T, G*H]
    states = [None] * cell.states if initial_state is None else initial_state
    states = _or_zeros(states, (B, H), x.dtype)
    y, saved = np.empty((B, T, H), x.dtype), []
    for k, t in order:
        states, kept = cell.step(a_x[:, t], *states, *recurrent)
        y[:, k] = states[0]
        saved.append(kept)
    if not return_sequences:
        y = states[0].copy()
    outputs = (y, *(s.copy() for s in states)) if return_state else y
    bias_shape = None if b is None else b.shape
    return outputs, _Tape(cell, x, W, recurrent, bias_shape, order, saved, return_sequences, return_state)


def _backward(dy: Any, tape: _Tape) -> Gradients:
    cell, x, W, recurrent = tape.cell, tape.x, tape.W, tape.recurrent
    (B, T, _), H = x.shape, len(recurrent[0])
    dy, *dstates = dy if tape.return_state else [dy] + [None] * cell.states
    dstates = _or_zeros(dstates, (B, H), x.dtype)
    if dy is not None and not tape.return_sequences:  # y = states[0]
        dstates[0] = dstates[0] + dy
    da_x = np.zeros((B, T, W.shape[1]), x.dtype)
    drecurrent = [np.zeros_like(w) for w in recurrent]
    for k, t in reversed(tape.order):
        dh, *dc = dstates
        if dy is not None and tape.return_sequences:  # y[:, k] = states[0]
            dh = dh + dy[:, k]
        # states, saved = step(a_x[:, t], *states, *recurrent)
        da_x[:, t], dstates, dw = cell.step_backward(dh, *dc, tape.saved[k], *recurrent)
        drecurrent = [total + d for total, d in zip(drecurrent, dw, strict=True)]
    # a_x = x @ W + b_x
    dx = da_x @ W.T
    dW = np.tensordot(x, da_x, axes=([0, 1], [0, 1]))
    db_x = da_x.sum(axis=(0, 1))
    dU, *db_h = drecurrent
    db = [] if tape.bias_shape is None else [np.stack([db_x, *db_h]).reshape(tape.bias_shape)]
    return Gradients(dx, [dW, dU, *db], list(dstates))


# ---- SimpleRNN ----


def simple_rnn_step(a_x: Array, h_prev: Array, U: Array) -> tuple[Arrays, Arrays]:
    h = tanh(a_x + h_prev @ U)
    return (h,), (h_prev, h)


def simple_rnn_step_backward(dh: Array, saved: Arrays, U: Array) -> tuple[Array, Arrays, Arrays]:
    h_prev, h = saved
    da = tanh_backward(dh, h)  # h = tanh(a)
    dh_prev, dU = da @ U.T, h_prev.T @ da  # a = a_x + h_prev @ U
    return da, (dh_prev,), (dU,)


_RNN = _Cell(1, 1, simple_rnn_step, simple_rnn_step_backward)


def simple_rnn_forward(
    x: Array,
    kernel: Array,
    recurrent_kernel: Array,
    bias: Array | None = None,
    *,
    initial_state: States = None,
    return_sequences: bool = False,
    return_state: bool = False,
    go_backwards: bool = False,
) -> tuple[Any, _Tape]:
    """SimpleRNN over a sequence.

        h = tanh(x W + h_prev U + b)

    Elman, Finding structure in time, 1990; keras.layers.SimpleRNN.

    Args:
        x: [B, T, I], float32 or float64 (or longdouble), as all other arrays.
        kernel: [I, H].
        recurrent_kernel: [H, H].
        bias: [H] or None.
        initial_state: list of the states before the first step, each [B, H] or None for zeros.
        return_sequences: return the outputs of all steps instead of the last one.
        return_state: return the states after the last step too.
        go_backwards: read x from its last time step to its first; outputs stay in the order of the steps.

    Returns:
        (outputs, tape). outputs is y, [B, T, H] with return_sequences, else [B, H] (the initial h if T = 0);
        with return_state it is a tuple of y and the states, each [B, H]. tape is for simple_rnn_backward.

    >>> x, W, U = np.ones((2, 5, 3)), np.ones((3, 4)), np.ones((4, 4))
    >>> y, tape = simple_rnn_forward(x, W, U, return_sequences=True)
    >>> y.shape
    (2, 5, 4)
    >>> grads = simple_rnn_backward(np.ones_like(y), tape)
    >>> grads.x.shape, [w.shape for w in grads.weights], [s.shape for s in grads.initial_state]
    ((2, 5, 3), [(3, 4), (4, 4)], [(2, 4)])
    """
    return _forward(
        _RNN, x, kernel, recurrent_kernel, bias, initial_state, return_sequences, return_state, go_backwards
    )


def simple_rnn_backward(dy: Array | Sequence[Array | None], tape: _Tape) -> Gradients:
    """Gradients of simple_rnn_forward.

    Args:
        dy: gradient of the outputs: an array like y, or with return_state a list [dy, dh], None for zeros.
        tape: what forward returned. It may be used again.

    Returns:
        Gradients(x, weights, initial_state): x in the time order of x, weights in the order of the arguments.
    """
    return _backward(dy, tape)


# ---- LSTM ----


def lstm_step(a_x: Array, h_prev: Array, c_prev: Array, U: Array) -> tuple[Arrays, Arrays]:
    a = a_x + h_prev @ U
    a_i, a_f, a_g, a_o = split(a, 4)
    i, f, g, o = sigmoid(a_i), sigmoid(a_f), tanh(a_g), sigmoid(a_o)
    c = f * c_prev + i * g
    tanh_c = tanh(c)
    h = o * tanh_c
    return (h, c), (h_prev, c_prev, i, f, g, o, tanh_c)


def lstm_step_backward(dh: Array, dc: Array, saved: Arrays, U: Array) -> tuple[Array, Arrays, Arrays]:
    h_prev, c_prev, i, f, g, o, tanh_c = saved
    do, dtanh_c = dh * tanh_c, dh * o  # h = o * tanh_c
    dc = dc + tanh_backward(dtanh_c, tanh_c)  # tanh_c = tanh(c)
    df, dc_prev, di, dg = dc * c_prev, dc * f, dc * g, dc * i  # c = f * c_prev + i * g
    # i, f, g, o = sigmoid(a_i), sigmoid(a_f), tanh(a_g), sigmoid(a_o)
    da_i, da_f = sigmoid_backward(di, i), sigmoid_backward(df, f)
    da_g, da_o = tanh_backward(dg, g), sigmoid_backward(do, o)
    da = join([da_i, da_f, da_g, da_o])  # a_i, a_f, a_g, a_o = split(a, 4)
    dh_prev, dU = da @ U.T, h_prev.T @ da  # a = a_x + h_prev @ U
    return da, (dh_prev, dc_prev), (dU,)


_LSTM = _Cell(2, 1, lstm_step, lstm_step_backward)


def lstm_forward(
    x: Array,
    kernel: Array,
    recurrent_kernel: Array,
    bias: Array | None = None,
    *,
    initial_state: States = None,
    return_sequences: bool = False,
    return_state: bool = False,
    go_backwards: bool = False,
) -> tuple[Any, _Tape]:
    """LSTM over a sequence.

        a_i, a_f, a_g, a_o = split(x W + h_prev U + b)
        i, f, g, o = sigmoid(a_i), sigmoid(a_f), tanh(a_g), sigmoid(a_o)
        c = f * c_prev + i * g
        h = o * tanh(c)

    Hochreiter and Schmidhuber, 1997; forget gate: Gers, Schmidhuber and Cummins, 2000; keras.layers.LSTM.

    Args, Returns: as simple_rnn_forward, with kernel [I, 4*H], recurrent_kernel [H, 4*H], bias [4*H] and
    states [h, c].

    >>> x, W, U, b = np.ones((2, 5, 3)), np.ones((3, 16)), np.ones((4, 16)), np.ones(16)
    >>> (y, h, c), tape = lstm_forward(x, W, U, b, return_state=True)
    >>> y.shape, h.shape, c.shape
    ((2, 4), (2, 4), (2, 4))
    """
    return _forward(
        _LSTM, x, kernel, recurrent_kernel, bias, initial_state, return_sequences, return_state, go_backwards
    )


def lstm_backward(dy: Array | Sequence[Array | None], tape: _Tape) -> Gradients:
    """Gradients of lstm_forward. As simple_rnn_backward; with return_state dy is a list [dy, dh, dc]."""
    return _backward(dy, tape)


# ---- GRU ----


def gru_mix(z: Array, n: Array, h_prev: Array) -> Array:
    return z * h_prev + (1 - z) * n


def gru_mix_backward(dh: Array, z: Array, n: Array, h_prev: Array) -> tuple[Array, Array, Array]:
    return dh * (h_prev - n), dh * (1 - z), dh * z  # dz, dn, dh_prev


def gru_step(a_x: Array, h_prev: Array, U: Array, b_h: Array) -> tuple[Arrays, Arrays]:
    a_h = h_prev @ U + b_h
    (x_z, x_r, x_n), (h_z, h_r, h_n) = split(a_x, 3), split(a_h, 3)
    z, r = sigmoid(x_z + h_z), sigmoid(x_r + h_r)
    n = tanh(x_n + r * h_n)
    return (gru_mix(z, n, h_prev),), (h_prev, z, r, n, h_n)


def gru_step_backward(dh: Array, saved: Arrays, U: Array, b_h: Array) -> tuple[Array, Arrays, Arrays]:
    h_prev, z, r, n, h_n = saved
    dz, dn, dh_prev = gru_mix_backward(dh, z, n, h_prev)
    da_n = tanh_backward(dn, n)
    dr, dh_n = da_n * h_n, da_n * r  # n = tanh(x_n + r * h_n)
    # z, r = sigmoid(x_z + h_z), sigmoid(x_r + h_r)
    da_z, da_r = sigmoid_backward(dz, z), sigmoid_backward(dr, r)
    # (x_z, x_r, x_n), (h_z, h_r, h_n) = split(a_x, 3), split(a_h, 3)
    da_x, da_h = join([da_z, da_r, da_n]), join([da_z, da_r, dh_n])
    dh_prev, dU, db_h = dh_prev + da_h @ U.T, h_prev.T @ da_h, da_h.sum(axis=0)  # a_h = h_prev @ U + b_h
    return da_x, (dh_prev,), (dU, db_h)


def gru_reset_before_step(a_x: Array, h_prev: Array, U: Array) -> tuple[Arrays, Arrays]:
    (U_zr, U_n), (x_zr, x_n) = split(U, [2 * len(U)]), split(a_x, [2 * len(U)])
    z, r = split(sigmoid(x_zr + h_prev @ U_zr), 2)
    rh = r * h_prev
    n = tanh(x_n + rh @ U_n)
    return (gru_mix(z, n, h_prev),), (h_prev, z, r, n, rh)


def gru_reset_before_step_backward(dh: Array, saved: Arrays, U: Array) -> tuple[Array, Arrays, Arrays]:
    h_prev, z, r, n, rh = saved
    U_zr, U_n = split(U, [2 * len(U)])
    dz, dn, dh_prev = gru_mix_backward(dh, z, n, h_prev)
    da_n = tanh_backward(dn, n)
    drh, dU_n = da_n @ U_n.T, rh.T @ da_n  # n = tanh(x_n + rh @ U_n)
    dr, dh_prev = drh * h_prev, dh_prev + drh * r  # rh = r * h_prev
    da_zr = join([sigmoid_backward(dz, z), sigmoid_backward(dr, r)])
    dh_prev, dU_zr = dh_prev + da_zr @ U_zr.T, h_prev.T @ da_zr  # z, r = sigmoid(x_zr + h_prev @ U_zr)
    return join([da_zr, da_n]), (dh_prev,), (join([dU_zr, dU_n]),)


_GRU = _Cell(1, 2, gru_step, gru_step_backward)
_GRU_RESET_BEFORE = _Cell(1, 1, gru_reset_before_step, gru_reset_before_step_backward)


def gru_forward(
    x: Array,
    kernel: Array,
    recurrent_kernel: Array,
    bias: Array | None = None,
    *,
    initial_state: States = None,
    return_sequences: bool = False,
    return_state: bool = False,
    go_backwards: bool = False,
    reset_after: bool = True,
) -> tuple[Any, _Tape]:
    """GRU over a sequence.

        z = sigmoid(x W_z + h_prev U_z + b_z)               with reset_after b_z = b_xz + b_hz
        r = sigmoid(x W_r + h_prev U_r + b_r)               with reset_after b_r = b_xr + b_hr
        n = tanh(x W_n + b_xn + r * (h_prev U_n + b_hn))    with reset_after
        n = tanh(x W_n + b_n + (r * h_prev) U_n)            without
        h = z * h_prev + (1 - z) * n

    Cho et al., arXiv:1406.1078v1 (reset_after) and v3 (without); keras.layers.GRU.

    Args, Returns: as simple_rnn_forward, with kernel [I, 3*H], recurrent_kernel [H, 3*H], bias [2, 3*H] with
    reset_after and [3*H] without, and reset_after: apply r after the product with U_n instead of before.

    >>> x, W, U, b = np.ones((2, 5, 3)), np.ones((3, 12)), np.ones((4, 12)), np.ones((2, 12))
    >>> y, tape = gru_forward(x, W, U, b)
    >>> y.shape, gru_backward(y, tape).weights[2].shape
    ((2, 4), (2, 12))
    """
    cell = _GRU if reset_after else _GRU_RESET_BEFORE
    return _forward(
        cell, x, kernel, recurrent_kernel, bias, initial_state, return_sequences, return_state, go_backwards
    )


def gru_backward(dy: Array | Sequence[Array | None], tape: _Tape) -> Gradients:
    """Gradients of gru_forward, for either reset_after. As simple_rnn_backward."""
    return _backward(dy, tape)
