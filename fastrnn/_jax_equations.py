"""The equations of the cells in jax.numpy, a loop over time: what JAX differentiates again, see fastrnn.jax.

The derivative of the kernels' forward pass is their backward pass; the derivatives of that come from here. So do cells that
the kernels don't know in JAX: with layer normalization, and LSTMs whose gates see each other. Legend as in
fastrnn.reference, whose equations these are. Arguments as the handlers of fastrnn.jax name them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.nn import log_sigmoid, sigmoid, softplus

from fastrnn.activations import KINDS

Code = tuple[int, float, float, float]  # kind, alpha, beta, clip


def _celu(a: Array, p: float) -> Array:
    return jnp.where(a > 0, a, p * jnp.expm1(jnp.minimum(a, 0) / p))


_VALUES: dict[str, Callable[[Array, float, float], Array]] = {
    "tanh": lambda a, p, q: jnp.tanh(a),
    "sigmoid": lambda a, p, q: sigmoid(a),
    "affine": lambda a, p, q: p * a + q,
    "hard_tanh": lambda a, p, q: jnp.clip(a, p, q),
    "leaky_relu": lambda a, p, q: jnp.where(a > 0, a, p * a),
    "hard_sigmoid": lambda a, p, q: jnp.clip(p * a + q, 0, 1),
    "softsign": lambda a, p, q: a / (1 + jnp.abs(a)),
    "softplus": lambda a, p, q: softplus(a),
    "log_sigmoid": lambda a, p, q: log_sigmoid(a),
    "elu": lambda a, p, q: jnp.where(a > 0, q * a, p * jnp.expm1(jnp.minimum(a, 0))),
    "celu": lambda a, p, q: _celu(a, p),
    "exponential": lambda a, p, q: jnp.exp(a),
    "silu": lambda a, p, q: a * sigmoid(a),
    "gelu": lambda a, p, q: jax.nn.gelu(a, approximate=False),
    "mish": lambda a, p, q: a * jnp.tanh(softplus(a)),
    "hard_silu": lambda a, p, q: a * jnp.clip(p * a + q, 0, 1),
    "tanh_shrink": lambda a, p, q: a - jnp.tanh(a),
    "scaled_tanh": lambda a, p, q: p * jnp.tanh(q * a),
    "thresholded_relu": lambda a, p, q: jnp.where(a <= p, 0, a),
    "soft_shrink": lambda a, p, q: a - jnp.clip(a, -p, p),
    "hard_shrink": lambda a, p, q: jnp.where(jnp.abs(a) <= p, 0, a),
    "squareplus": lambda a, p, q: (a + jnp.sqrt(a * a + p)) / 2,
    "sparse_plus": lambda a, p, q: jnp.where(a < 1, jnp.maximum(a + 1, 0) ** 2 / 4, a),
}


def activate(code: Code, a: Array) -> Array:
    """The activation of that code: an element of `fastrnn.activations.KINDS`, with its parameters and clip."""
    kind, alpha, beta, clip = code
    if clip != float("inf"):
        a = jnp.clip(a, -clip, clip)
    return _VALUES[KINDS[kind]](a, alpha, beta)


def _product(v: Array, M: Array, factors: Array | None) -> Array:
    """v [..., K] @ M [K, G*H]; with factors [B, G, K], the columns of gate k see v * factors[:, k]."""
    if factors is None:
        return v * M if M.ndim == 1 else v @ M
    G = factors.shape[1]
    if M.ndim == 1:
        return v * factors[:, 0] * M
    parts = jnp.split(M, G, axis=1)
    shape = (len(v), *(1,) * (v.ndim - 2), v.shape[-1])
    return jnp.concatenate([v * factors[:, k].reshape(shape) @ parts[k] for k in range(G)], axis=-1)


def _norm(a: Array, gain: Array) -> Array:
    """Layer normalization over the last axis."""
    centered = a - a.mean(axis=-1, keepdims=True)
    return gain * centered * lax.rsqrt((centered * centered).mean(axis=-1, keepdims=True) + 1e-5)


def _linear(v: Array, M: Array, factors: Array | None, gain: Array | None) -> Array:
    a = _product(v, M, factors)
    return a if gain is None else _norm(a, gain)


def _columns(cell: str) -> str:
    """The gates of an LSTM in the order of the columns."""
    gates = {"nig": "fgo", "nfg": "igo", "nog": "ifg", "cifg": "igo"}
    return next((gates[variant] for variant in gates if f"_{variant}" in cell), "ifgo")


def _step(
    cell: str, activations: tuple[Code, ...], w: Mapping[str, Array], a_x: Array, states: tuple[Array, ...]
) -> tuple[Array, ...]:
    of_gates, of_candidate, of_output = activations
    h, U, factors = states[0], w["recurrent_kernel"], w.get("recurrent_dropout_mask")
    gain = w["layer_norm"][1] if "layer_norm" in w else None
    if cell in ("simple_rnn", "indrnn"):
        return (activate(of_candidate, a_x + _linear(h, U, factors, gain)),)
    if cell == "gru_reset_before":
        H = h.shape[1]
        of_zr, of_n = (None, None) if factors is None else (factors[:, :2], factors[:, 2:])
        gain_zr, gain_n = (None, None) if gain is None else (gain[: 2 * H], gain[2 * H :])
        a_zr = a_x[:, : 2 * H] + _linear(h, U[:, : 2 * H], of_zr, gain_zr)
        z, r = jnp.split(activate(of_gates, a_zr), 2, axis=1)
        n = activate(of_candidate, a_x[:, 2 * H :] + _linear(r * h, U[:, 2 * H :], of_n, gain_n))
        return (z * h + (1 - z) * n,)
    a_h = _linear(h, U, factors, gain)
    if cell == "gru":
        if "bias" in w:
            a_h = a_h + w["bias"][1]
        (x_z, x_r, x_n), (h_z, h_r, h_n) = jnp.split(a_x, 3, axis=1), jnp.split(a_h, 3, axis=1)
        z, r = activate(of_gates, x_z + h_z), activate(of_gates, x_r + h_r)
        n = activate(of_candidate, x_n + r * h_n)
        return (z * h + (1 - z) * n,)

    c_prev, names = states[1], _columns(cell)
    a = dict(zip(names, jnp.split(a_x + a_h, len(names), axis=1), strict=True))
    if "gate_kernel" in w:
        of_gates_before = jnp.split(jnp.concatenate(states[2:], axis=1) @ w["gate_kernel"], 3, axis=1)
        a |= {name: a[name] + part for name, part in zip("ifo", of_gates_before, strict=True)}
    seen = [name for name in "ifo" if name in names]
    peepholes = dict(zip(seen, w["peephole"], strict=True)) if "peephole" in w else {}

    def gate(name: str, c: Array) -> Array:
        if name not in a:
            return jnp.ones_like(c)
        sum_ = a[name] + peepholes[name] * c if name in peepholes else a[name]
        return activate(of_gates, sum_)

    i = gate("i", c_prev)
    f = 1 - i if "_cifg" in cell else gate("f", c_prev)
    c = f * c_prev + i * activate(of_candidate, a["g"])
    o = gate("o", c)
    c_hat = _norm(c, w["cell_norm"][0]) + w["cell_norm"][1] if "cell_norm" in w else c
    h = o * activate(of_output, c_hat)
    new = (h @ w["projection"] if "projection" in w else h, c, i, f, o)
    return new[: len(states)]


def forward(
    cell: str,
    activations: tuple[Code, ...],
    options: tuple[str, ...],
    operands: Mapping[str, Array],
    results: tuple[str, ...],
) -> tuple[Array, ...]:
    """What the handler of the forward pass computes, but the tape.

    Args:
        cell, activations, options: What the handler is given in its attributes.
        operands: Arrays by the handler's names.
        results: The names of what is wanted.
    """
    w = operands
    x, mask = w["x"], w.get("mask")
    (B, T, _), R = x.shape, len(w["recurrent_kernel"])
    H = len(w.get("projection", w["recurrent_kernel"]))
    names = "hcifo" if "gate_kernel" in w else "hc" if cell.startswith("lstm") else "h"
    states = tuple(
        w.get(f"initial_{name}", jnp.zeros((B, R if name == "h" else H), x.dtype)) for name in names
    )
    zoneout = {name: w[f"zoneout_{name}"] for name in names if f"zoneout_{name}" in w}
    if mask is not None:
        x = jnp.where(mask[:, :, None], x, 0)
    gain = w["layer_norm"][0] if "layer_norm" in w else None
    a_x = _linear(x, w["kernel"], w.get("dropout_mask"), gain)
    if "bias" in w:
        a_x = a_x + (w["bias"][0] if cell == "gru" else w["bias"])

    def step(carry: Any, now: Any) -> Any:
        states, last = carry
        a_t, real, stay = now
        new = _step(cell, activations, w, a_t, states)
        new = tuple(
            stay[name] * s + (1 - stay[name]) * n if name in stay else n
            for name, n, s in zip(names, new, states, strict=True)
        )
        if real is None:
            return (new, new[0]), new[0]
        real = real[:, None]
        new = tuple(jnp.where(real, n, s) for n, s in zip(new, states, strict=True))
        last = jnp.where(real, new[0], last)
        return (new, last), jnp.where(real, last, 0) if "zero_output_for_mask" in options else last

    first_axis = jax.tree.map(lambda v: jnp.moveaxis(v, 1, 0), zoneout)
    over_time = (jnp.moveaxis(a_x, 1, 0), None if mask is None else mask.T, first_axis)
    if "go_backwards" in options:
        over_time = jax.tree.map(lambda v: v[::-1], over_time)
    first = (states, jnp.zeros_like(states[0]) if T else states[0])
    (states, last), y = lax.scan(step, first, over_time)
    found = {"y": jnp.moveaxis(y, 0, 1), "last": last, **dict(zip(names, states, strict=True))}
    return tuple(found[name] for name in results)


def backward(
    cell: str,
    activations: tuple[Code, ...],
    options: tuple[str, ...],
    operands: Mapping[str, Array],
    results: tuple[str, ...],
) -> tuple[Array, ...]:
    """What the handler of the backward pass computes; the operand `tape` is not read."""
    outputs = tuple(f"d{name}" for name in ("y", "last", "h", "c"))
    given = {name[1:]: operands[name] for name in outputs if name in operands}
    wanted = {name[1:]: operands[name[1:]] for name in results}
    kept = {name: a for name, a in operands.items() if name not in ("tape", *outputs, *wanted)}

    def run(wanted: dict[str, Array]) -> tuple[Array, ...]:
        return forward(cell, activations, options, {**kept, **wanted}, tuple(given))

    _, transposed = jax.vjp(run, wanted)
    (gradients,) = transposed(tuple(given.values()))
    return tuple(gradients[name[1:]] for name in results)
