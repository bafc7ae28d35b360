"""SimpleRNN, IndRNN, LSTM and GRU in plain NumPy, forward and backward, for reading: the oracle of the kernels.

Legend, shapes in brackets:

    B batch   T time steps   I inputs   H units   G gates (1, 4, 3)
    x [B, T, I]    h, c [B, H]    W kernel [I, G*H]    U recurrent_kernel [H, G*H]
    b bias [G*H]; GRU with reset_after [2, 3*H]: b_x = b[0] for the inputs, b_h = b[1] for the state
    a pre-activation [B, G*H], a_x its part from the inputs, a_h its part from the state
    v_prev is v one step earlier, dv the gradient of the loss with respect to v, @ the matrix product

Arguments, shapes, gate order (LSTM i f g o, GRU z r n) and defaults are those of Keras 3 (keras.layers).
A cell is one step and its adjoint:

    step(p, a_x, *states_prev)    -> states, saved
    step_backward(p, s, *dstates) -> da_x, dstates_prev, dw

p holds the weights but W and b_x, the activations and the masks, None for what there is not; s is what the step
saved, dw the gradients of weights in p by their names. `_forward` and `_backward` hold what all cells share: the
inputs' part, the loop over time, masks and zoneout. Everything is computed in the dtype of the arrays; nothing is
checked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastrnn.activations import ActivationLike
from fastrnn.activations import get as activation_of

__all__ = [
    "Gradients",
    "gru_backward",
    "gru_forward",
    "indrnn_backward",
    "indrnn_forward",
    "lstm_backward",
    "lstm_forward",
    "simple_rnn_backward",
    "simple_rnn_forward",
]

Array = NDArray[np.floating[Any]]
Arrays = tuple[Array, ...]
States = Sequence[Array | None] | None
Named = dict[str, Any]
split, join = partial(np.split, axis=-1), partial(np.concatenate, axis=-1)  # gates side by side: [B, G*H]


class Gradients(NamedTuple):
    """Gradients of the loss, shaped as what they are named after; `weights` holds those of the weights given."""

    x: Array
    weights: list[Array]
    initial_state: list[Array]


# ---- Products and layer normalization, of inputs and states alike ----


def product(v: Array, M: Array, mask: Array | None = None) -> Array:
    """v @ M for v [B, K] and M [K, G*H]. A vector M [K] stands for the matrix with that diagonal.

    With a mask [B, G, K] the columns of gate k in M see v * mask[:, k].
    """
    if mask is not None:
        parts = zip(np.moveaxis(mask, 1, 0), split(M, mask.shape[1]), strict=True)
        return join([product(v * m, M_k) for m, M_k in parts])
    return v * M if M.ndim == 1 else v @ M


def product_backward(da: Array, v: Array, M: Array, mask: Array | None = None) -> tuple[Array, Array]:
    if mask is not None:
        masks, G = np.moveaxis(mask, 1, 0), mask.shape[1]
        parts = zip(split(da, G), masks, split(M, G), strict=True)
        gradients = [product_backward(da_k, v * m, M_k) for da_k, m, M_k in parts]
        dv: Array = sum(m * dvm for m, (dvm, _) in zip(masks, gradients, strict=True))
        return dv, join([dM_k for _, dM_k in gradients])
    if M.ndim == 1:
        return da * M, (v * da).sum(axis=0)
    return da @ M.T, v.T @ da


def norm(a: Array, gain: Array) -> Array:
    """Layer normalization: each row less its mean, over its standard deviation, times gain."""
    return gain * standardized(a)[0]


def standardized(a: Array) -> tuple[Array, Array]:
    centered = a - a.mean(axis=-1, keepdims=True)
    scale = 1 / np.sqrt((centered * centered).mean(axis=-1, keepdims=True) + 1e-5)
    return centered * scale, scale


def norm_backward(dy: Array, a: Array, gain: Array) -> tuple[Array, Array]:
    n, scale = standardized(a)
    dn = dy * gain
    da = scale * (dn - dn.mean(axis=-1, keepdims=True) - n * (dn * n).mean(axis=-1, keepdims=True))
    return da, (dy * n).sum(axis=0)


def linear(v: Array, M: Array, mask: Array | None, gain: Array | None) -> Array:
    a = product(v, M, mask)
    return a if gain is None else norm(a, gain)


def linear_backward(
    da: Array, v: Array, M: Array, mask: Array | None, gain: Array | None
) -> tuple[Array, Array, Array | None]:
    if gain is None:
        return *product_backward(da, v, M, mask), None
    dproduct, dgain = norm_backward(da, product(v, M, mask), gain)
    return *product_backward(dproduct, v, M, mask), dgain


# ---- All cells: the inputs' part of the pre-activations, and the loop over time ----


_WEIGHTS = ("U", "b_h", "gain_h", "peephole", "projection", "gate_kernel", "cell_norm")  # those in p


@dataclass(frozen=True)
class _Cell:
    states: int  # 1: h; 2: h, c; 5: h, c, i, f, o
    bias_rows: int  # 1: b = b_x; 2: b = b_x, b_h
    gates: str  # their names in the order of the columns
    step: Callable[..., tuple[Arrays, SimpleNamespace]]
    step_backward: Callable[..., tuple[Array, Arrays, Named]]
    p: Named  # the cell's activations and its own weights, by name


@dataclass(frozen=True)
class _Tape:
    """What backward needs of forward. It refers to the caller's x and weights: don't change them before."""

    cell: _Cell
    p: SimpleNamespace
    inputs: tuple[Any, ...]  # what `linear` took: x [B*T, I], W, mask, gain
    shape: tuple[int, int, int]  # B, T, I
    bias_shape: tuple[int, ...] | None
    zeros: list[Array]  # in the shapes of the states
    order: list[tuple[int, int]]  # (k, t): step k reads x[:, t]
    real: list[Array | None]  # per t: the mask [B, 1]
    zoneout: list[list[Array | None]]  # per t and state: [B, H]
    saved: list[SimpleNamespace]  # per step k
    states: list[Arrays]  # after each step k
    return_sequences: bool
    return_state: bool
    zero_output_for_mask: bool

    def gates(self) -> dict[str, Array]:
        """What the gates were in all steps: name -> [B, T, H], in the order of the steps, 0 in masked ones.

        LSTM: i f g o, of these what the variant has, and c, the state after each step. GRU: z r n.
        """
        names = [*self.cell.gates, *("c" * (self.cell.states > 1))]
        (B, T, _), (_, H) = self.shape, self.zeros[-1].shape
        values = {name: np.zeros((B, T, H), self.zeros[0].dtype) for name in names}
        for k, t in self.order:
            rows = rows_of(self.real[t])
            for name in names:
                if name == "c":
                    values[name][:, k] = self.states[k][1]
                else:
                    values[name][rows, k] = getattr(self.saved[k], name)
        return values


def where(real: Array | None, value: Array, otherwise: Any) -> Array:
    """`value` in real steps, `otherwise` in masked ones; without a mask all steps are real."""
    return value if real is None else np.where(real, value, otherwise)


def rows_of(real: Array | None) -> Any:
    """The index of the rows in which a step is real. The others are left out of it: nothing that they hold has a say."""
    return slice(None) if real is None else real[:, 0]


def at_rows(p: SimpleNamespace, rows: Any) -> SimpleNamespace:
    """p for these rows of the batch."""
    return p if p.mask is None else SimpleNamespace(**vars(p) | {"mask": p.mask[rows]})


def put(value: Array, rows: Any, otherwise: Array) -> Array:
    """`value` in these rows, `otherwise` in the others."""
    whole = otherwise.copy()
    whole[rows] = value
    return whole


def _or_zeros(values: Sequence[Array | None], zeros: list[Array]) -> list[Array]:
    """Copies of the arrays, zeros for those that are None."""
    return [np.array(z if v is None else v) for v, z in zip(values, zeros, strict=True)]


def _forward(
    cell: _Cell,
    x: Array,
    W: Array,
    U: Array,
    b: Array | None,
    *,
    initial_state: States = None,
    return_sequences: bool = False,
    return_state: bool = False,
    go_backwards: bool = False,
    mask: Array | None = None,
    zero_output_for_mask: bool = False,
    dropout_mask: Array | None = None,
    recurrent_dropout_mask: Array | None = None,
    zoneout_mask: States = None,
    layer_norm: Array | None = None,
) -> tuple[Any, _Tape]:
    (B, T, I), columns, dtype = x.shape, W.shape[1], x.dtype
    order = list(enumerate(reversed(range(T)) if go_backwards else range(T)))
    zeros = [np.zeros((B, len(U)), dtype)]
    zeros += [np.zeros((B, columns // max(len(cell.gates), 1)), dtype)] * (cell.states - 1)
    absent = [None] * cell.states
    real: list[Any] = [None] * T
    if mask is not None:  # NaN at masked steps must not meet a product
        mask = np.asarray(mask, bool)[:, :, None]
        x, real = np.where(mask, x, 0), list(np.moveaxis(mask, 1, 0))
    zoneout = [[z if z is None else z[:, t].astype(dtype) for z in zoneout_mask or absent] for t in range(T)]
    if dropout_mask is not None:  # [B, I] or [B, G, I] -> [B*T, 1 or G, I]
        G = 1 if dropout_mask.ndim == 2 else dropout_mask.shape[1]
        dropout_mask = dropout_mask.astype(dtype).reshape(B, G, I).repeat(T, axis=0)
    if recurrent_dropout_mask is not None:
        recurrent_dropout_mask = recurrent_dropout_mask.astype(dtype)
    gain_x, gain_h = (None, None) if layer_norm is None else layer_norm
    b_x, *b_h = np.zeros((cell.bias_rows, columns), dtype) if b is None else np.atleast_2d(b)
    p = SimpleNamespace(
        U=U, b_h=b_h[0] if b_h else None, mask=recurrent_dropout_mask, gain_h=gain_h, **cell.p
    )

    inputs = (x.reshape(B * T, I), W, dropout_mask, gain_x)
    a_x = (linear(*inputs) + b_x).reshape(B, T, columns)
    states = _or_zeros(absent if initial_state is None else initial_state, zeros)
    output = last = zeros[0] if T else states[0]  # the output before the first step, and that of no steps
    y, saved, all_states = np.empty((B, T, len(U)), dtype), [], []
    for k, t in order:
        rows = rows_of(real[t])
        previous = [s[rows] for s in states]
        new, kept = cell.step(at_rows(p, rows), a_x[rows, t], *previous)
        mixed = [
            n if z is None else z[rows] * s + (1 - z[rows]) * n
            for n, s, z in zip(new, previous, zoneout[t], strict=True)
        ]
        states = [put(n, rows, s) for n, s in zip(mixed, states, strict=True)]
        last = where(real[t], states[0], last)
        y[:, k] = output = where(real[t], last, 0) if zero_output_for_mask else last
        saved.append(kept)
        all_states.append(tuple(states))
    if not return_sequences:
        y = output.copy()
    outputs = (y, *(s.copy() for s in states)) if return_state else y
    bias_shape = None if b is None else b.shape
    return outputs, _Tape(
        cell, p, inputs, (B, T, I), bias_shape, zeros, order, real, zoneout, saved, all_states,
        return_sequences, return_state, zero_output_for_mask,
    )  # fmt: skip


def _backward(dy: Any, tape: _Tape) -> Gradients:
    cell, p, (B, T, I), zeros = tape.cell, tape.p, tape.shape, tape.zeros
    dy, *dstates = dy if tape.return_state else [dy] + [None] * cell.states
    dstates = _or_zeros(dstates, zeros)
    if dy is None:
        dy = np.zeros((B, T, len(p.U)) if tape.return_sequences else zeros[0].shape, zeros[0].dtype)
    dlast = zeros[0]
    da_x = np.zeros((B, T, tape.inputs[1].shape[1]), zeros[0].dtype)
    dw = {name: np.zeros_like(w) for name, w in vars(p).items() if name in _WEIGHTS and w is not None}
    for k, t in reversed(tape.order):
        real, zoneout = tape.real[t], tape.zoneout[t]
        if tape.return_sequences or k == T - 1:
            doutput = dy[:, k] if tape.return_sequences else dy
            dlast = dlast + (where(real, doutput, 0) if tape.zero_output_for_mask else doutput)
        dstates[0] = dstates[0] + where(real, dlast, 0)  # last = where(real, states[0], last)
        dlast = zeros[0] if real is None else np.where(real, 0, dlast)
        # states = put(mixed, rows, states_prev); mixed = z * states_prev + (1 - z) * new
        rows = rows_of(real)
        dmixed = [d[rows] for d in dstates]
        dnew = [d if z is None else (1 - z[rows]) * d for d, z in zip(dmixed, zoneout, strict=True)]
        # new, saved = step(p, a_x[rows, t], *states_prev)
        da_x[rows, t], dread, dstep = cell.step_backward(at_rows(p, rows), tape.saved[k], *dnew)
        dprevious = [
            d if z is None else d + z[rows] * dm for d, dm, z in zip(dread, dmixed, zoneout, strict=True)
        ]
        dstates = [put(d, rows, kept) for d, kept in zip(dprevious, dstates, strict=True)]
        dw |= {name: total + dstep[name] for name, total in dw.items()}
    if not T and not tape.return_sequences:  # y = states[0]
        dstates[0] = dstates[0] + dy
    # a_x = linear(*inputs) + b_x
    da_x = da_x.reshape(B * T, da_x.shape[2])
    dx, dW, dgain_x = linear_backward(da_x, *tape.inputs)
    weights = [dW, dw["U"]]
    if tape.bias_shape is not None:
        db = [da_x.sum(axis=0), *(dw[name] for name in ("b_h",) if name in dw)]
        weights.append(np.stack(db).reshape(tape.bias_shape))
    weights += [dw[name] for name in ("peephole", "projection", "gate_kernel", "cell_norm") if name in dw]
    if dgain_x is not None:
        weights.append(np.stack([dgain_x, dw["gain_h"]]))
    return Gradients(dx.reshape(B, T, I), weights, list(dstates))


# ---- SimpleRNN, and IndRNN, whose U is a diagonal ----


def simple_rnn_step(p: Any, a_x: Array, h_prev: Array) -> tuple[Arrays, SimpleNamespace]:
    a = a_x + linear(h_prev, p.U, p.mask, p.gain_h)
    h = p.activation(a)
    return (h,), SimpleNamespace(h_prev=h_prev, a=a)


def simple_rnn_step_backward(p: Any, s: Any, dh: Array) -> tuple[Array, Arrays, Named]:
    da = p.activation.gradient(s.a, dh)  # h = activation(a)
    dh_prev, dU, dgain_h = linear_backward(da, s.h_prev, p.U, p.mask, p.gain_h)
    return da, (dh_prev,), {"U": dU, "gain_h": dgain_h}


def _simple_rnn(activation: ActivationLike) -> _Cell:
    return _Cell(
        1, 1, "", simple_rnn_step, simple_rnn_step_backward, {"activation": activation_of(activation)}
    )


def simple_rnn_forward(
    x: Array,
    kernel: Array,
    recurrent_kernel: Array,
    bias: Array | None = None,
    *,
    activation: ActivationLike = "tanh",
    **options: Any,
) -> tuple[Any, _Tape]:
    """SimpleRNN over a sequence.

        h = activation(x W + h_prev U + b)

    Elman, Finding structure in time, 1990; keras.layers.SimpleRNN.

    Args:
        x: [B, T, I], float32 or float64 (or longdouble), as all other arrays.
        kernel: [I, H].
        recurrent_kernel: [H, H].
        bias: [H] or None.
        activation: what fastrnn.activations.get takes.
        **options: keyword arguments that all cells have:

            initial_state: list of the states before the first step, each [B, H] or None for zeros.
            return_sequences: return the outputs of all steps instead of the last one.
            return_state: return the states after the last step too.
            go_backwards: read x (and mask, zoneout_mask) from its last time step to its first; outputs stay in
                the order of the steps.
            mask: [B, T] bool, True where a step is real. A masked step keeps the states, repeats the output
                before it (zeros before the first real step) and does not see x.
            zero_output_for_mask: outputs of masked steps are zeros.
            dropout_mask: [B, I], or [B, G, I] with a mask for each gate: times x, in all steps the same.
            recurrent_dropout_mask: [B, G, H]: times h_prev in the product with U, in all steps the same.
            zoneout_mask: list for the states, each [B, T, H] or None: 1 where a state stays as it was, 0 where
                it is renewed, in between a mixture. Krueger et al., arXiv:1606.01305.
            layer_norm: gains [2, G*H]: x W and h_prev U are normalized over all their columns before the bias is
                added, each with its gain. Ba et al., arXiv:1607.06450; haste.LayerNormLSTM and LayerNormGRU.

    Returns:
        (outputs, tape). outputs is y, [B, T, H] with return_sequences, else [B, H] (the initial h if T = 0);
        with return_state it is a tuple of y and the states, each [B, H]. tape is for simple_rnn_backward;
        tape.gates() tells what the gates were.

    >>> x, W, U = np.ones((2, 5, 3)), np.ones((3, 4)), np.ones((4, 4))
    >>> y, tape = simple_rnn_forward(x, W, U, return_sequences=True)
    >>> y.shape
    (2, 5, 4)
    >>> grads = simple_rnn_backward(np.ones_like(y), tape)
    >>> grads.x.shape, [w.shape for w in grads.weights], [s.shape for s in grads.initial_state]
    ((2, 5, 3), [(3, 4), (4, 4)], [(2, 4)])
    """
    return _forward(_simple_rnn(activation), x, kernel, recurrent_kernel, bias, **options)


def simple_rnn_backward(dy: Array | Sequence[Array | None], tape: _Tape) -> Gradients:
    """Gradients of simple_rnn_forward.

    Args:
        dy: gradient of the outputs: an array like y, or with return_state a list [dy, dh], None for zeros.
        tape: what forward returned. It may be used again.

    Returns:
        Gradients(x, weights, initial_state): x in the time order of x; weights in the order kernel,
        recurrent_kernel, bias, peephole, projection, gate_kernel, cell_norm, layer_norm, those that were given.
    """
    return _backward(dy, tape)


def indrnn_forward(
    x: Array,
    kernel: Array,
    recurrent_kernel: Array,
    bias: Array | None = None,
    *,
    activation: ActivationLike = "relu",
    **options: Any,
) -> tuple[Any, _Tape]:
    """IndRNN over a sequence: each unit sees its own state only.

        h = activation(x W + u * h_prev + b)

    Li et al., arXiv:1803.04831.

    Args, Returns: as simple_rnn_forward, with recurrent_kernel u [H].

    >>> y, tape = indrnn_forward(np.ones((2, 5, 3)), np.ones((3, 4)), np.ones(4))
    >>> y.shape, indrnn_backward(y, tape).weights[1].shape
    ((2, 4), (4,))
    """
    return _forward(_simple_rnn(activation), x, kernel, recurrent_kernel, bias, **options)


def indrnn_backward(dy: Array | Sequence[Array | None], tape: _Tape) -> Gradients:
    """Gradients of indrnn_forward. As simple_rnn_backward."""
    return _backward(dy, tape)


# ---- LSTM ----


def lstm_gate(p: Any, a: Named, name: str, c: Array) -> Array:
    """The gate of that name; its peephole sees c. A gate that the variant hasn't is open: 1."""
    if name not in a:
        return np.ones_like(c)
    if name in p.peepholes:
        a[name] = a[name] + p.peepholes[name] * c
    value: Array = p.recurrent_activation(a[name])
    return value


def lstm_gate_backward(
    p: Any, s: Any, name: str, dgate: Array, c: Array, da: Named, dpeephole: Named
) -> Array:
    """Writes the gradients of the pre-activation and of the peephole; returns that of c."""
    if name not in s.a:
        return np.zeros_like(c)
    da[name] = p.recurrent_activation.gradient(s.a[name], dgate)
    if name not in p.peepholes:
        return np.zeros_like(c)
    dpeephole[name] = (da[name] * c).sum(axis=0)
    dc: Array = da[name] * p.peepholes[name]
    return dc


def lstm_step(
    p: Any, a_x: Array, h_prev: Array, c_prev: Array, *gates_prev: Array
) -> tuple[Arrays, SimpleNamespace]:
    a_gates = split(a_x + linear(h_prev, p.U, p.mask, p.gain_h), len(p.gates))
    a = dict(zip(p.gates, a_gates, strict=True))
    if gates_prev:
        for name, a_name in zip("ifo", split(product(join(gates_prev), p.gate_kernel), 3), strict=True):
            a[name] = a[name] + a_name
    i = lstm_gate(p, a, "i", c_prev)
    f = 1 - i if p.coupled else lstm_gate(p, a, "f", c_prev)
    g = p.activation(a["g"])
    c = f * c_prev + i * g
    o = lstm_gate(p, a, "o", c)
    c_hat = c if p.cell_norm is None else norm(c, p.cell_norm[0]) + p.cell_norm[1]
    m = p.output_activation(c_hat)
    om = o * m
    h = om if p.projection is None else product(om, p.projection)
    saved = SimpleNamespace(
        h_prev=h_prev,
        c_prev=c_prev,
        gates_prev=gates_prev,
        a=a,
        i=i,
        f=f,
        g=g,
        c=c,
        o=o,
        c_hat=c_hat,
        m=m,
        om=om,
    )
    return (h, c, i, f, o)[: 2 + len(gates_prev)], saved


def lstm_step_backward(p: Any, s: Any, dh: Array, dc: Array, *dgates: Array) -> tuple[Array, Arrays, Named]:
    da: Named = {}
    dpeephole: Named = {}
    dw: Named = {}
    di_next, df_next, do_next = dgates or (0, 0, 0)
    dom = dh
    if p.projection is not None:
        dom, dw["projection"] = product_backward(dh, s.om, p.projection)  # h = product(om, projection)
    do, dm = dom * s.m + do_next, dom * s.o  # om = o * m
    dc_hat = p.output_activation.gradient(s.c_hat, dm)  # m = output_activation(c_hat)
    if p.cell_norm is None:
        dc = dc + dc_hat
    else:  # c_hat = norm(c, cell_norm[0]) + cell_norm[1]
        dc_normed, dgain = norm_backward(dc_hat, s.c, p.cell_norm[0])
        dc, dw["cell_norm"] = dc + dc_normed, np.stack([dgain, dc_hat.sum(axis=0)])
    dc = dc + lstm_gate_backward(p, s, "o", do, s.c, da, dpeephole)
    df, dc_prev, di, dg = dc * s.c_prev, dc * s.f, dc * s.g, dc * s.i  # c = f * c_prev + i * g
    df, di = df + df_next, di + di_next
    da["g"] = p.activation.gradient(s.a["g"], dg)  # g = activation(a["g"])
    if p.coupled:
        di = di - df  # f = 1 - i
    else:
        dc_prev = dc_prev + lstm_gate_backward(p, s, "f", df, s.c_prev, da, dpeephole)
    dc_prev = dc_prev + lstm_gate_backward(p, s, "i", di, s.c_prev, da, dpeephole)
    if p.peepholes:
        dw["peephole"] = np.stack([dpeephole[name] for name in p.peepholes])
    dgates_prev: Arrays = ()
    if dgates:
        da_gates = join([da[name] for name in "ifo"])
        dprev, dw["gate_kernel"] = product_backward(da_gates, join(s.gates_prev), p.gate_kernel)
        dgates_prev = tuple(split(dprev, 3))
    da_x = join([da[name] for name in p.gates])
    dh_prev, dw["U"], dw["gain_h"] = linear_backward(da_x, s.h_prev, p.U, p.mask, p.gain_h)
    return da_x, (dh_prev, dc_prev, *dgates_prev), dw


LSTM_GATES = {  # of each variant, in the order of the columns
    None: "ifgo", "vanilla": "ifgo", "nig": "fgo", "nfg": "igo", "nog": "ifg",
    "niaf": "ifgo", "noaf": "ifgo", "cifg": "igo", "np": "ifgo", "fgr": "ifgo",
}  # fmt: skip


def lstm_forward(
    x: Array,
    kernel: Array,
    recurrent_kernel: Array,
    bias: Array | None = None,
    *,
    activation: ActivationLike = "tanh",
    recurrent_activation: ActivationLike = "sigmoid",
    output_activation: ActivationLike = None,
    variant: str | None = None,
    peephole: Array | None = None,
    projection: Array | None = None,
    gate_kernel: Array | None = None,
    cell_norm: Array | None = None,
    **options: Any,
) -> tuple[Any, _Tape]:
    """LSTM over a sequence.

        a_i, a_f, a_g, a_o = split(x W + h_prev U + b)
        i = recurrent_activation(a_i + p_i * c_prev)        the terms with p_i, p_f, p_o: with peephole
        f = recurrent_activation(a_f + p_f * c_prev)
        g = activation(a_g)
        c = f * c_prev + i * g
        o = recurrent_activation(a_o + p_o * c)
        h = o * activation(c)                               with projection: h = (o * activation(c)) P

    Hochreiter and Schmidhuber, 1997; forget gate: Gers, Schmidhuber and Cummins, 2000; peepholes: Gers and
    Schmidhuber, 2000; projection: Sak, Senior and Beaufays, arXiv:1402.1128; keras.layers.LSTM.

    The variants of Greff et al., arXiv:1503.04069: "nig", "nfg", "nog" have no gate i, f or o (it is 1); "niaf" has
    g = a_g, "noaf" h = o * c; "cifg" has f = 1 - i; "fgr" adds [i_prev f_prev o_prev] gate_kernel to a_i, a_f and
    a_o; "vanilla" and "np" are as above, with and without peepholes. The kernels have columns for the gates that
    exist.

    Args, Returns: as simple_rnn_forward, with kernel [I, G*H], recurrent_kernel [H, G*H], bias [G*H], states [h, c]
    (with "fgr" [h, c, i, f, o]), G = 4 or what the variant has, and

        output_activation: of c in h; None: activation.
        peephole: [P, H], a row for each of i, f and o that the variant has, in this order, or None.
        projection: P [H, R] or None. With it h is [B, R], recurrent_kernel [R, G*H], recurrent_dropout_mask
            [B, G, R].
        gate_kernel: [3*H, 3*H], for "fgr".
        cell_norm: [2, H] or None: gain and bias of the layer normalization of c in h = o * activation(c); the
            state c is not normalized.

    >>> x, W, U, b = np.ones((2, 5, 3)), np.ones((3, 16)), np.ones((4, 16)), np.ones(16)
    >>> (y, h, c), tape = lstm_forward(x, W, U, b, return_state=True)
    >>> y.shape, h.shape, c.shape
    ((2, 4), (2, 4), (2, 4))
    >>> {name: gate.shape for name, gate in tape.gates().items()}
    {'i': (2, 5, 4), 'f': (2, 5, 4), 'g': (2, 5, 4), 'o': (2, 5, 4), 'c': (2, 5, 4)}
    """
    gates, activation = LSTM_GATES[variant], activation_of(activation)
    output_activation = activation if output_activation is None else activation_of(output_activation)
    with_peepholes = [name for name in "ifo" if name in gates]
    p = {
        "gates": gates,
        "coupled": variant == "cifg",
        "activation": activation_of("linear") if variant == "niaf" else activation,
        "recurrent_activation": activation_of(recurrent_activation),
        "output_activation": activation_of("linear") if variant == "noaf" else output_activation,
        "peephole": peephole,
        "peepholes": {} if peephole is None else dict(zip(with_peepholes, peephole, strict=True)),
        "projection": projection,
        "gate_kernel": gate_kernel,
        "cell_norm": cell_norm,
    }
    cell = _Cell(5 if variant == "fgr" else 2, 1, gates, lstm_step, lstm_step_backward, p)
    return _forward(cell, x, kernel, recurrent_kernel, bias, **options)


def lstm_backward(dy: Array | Sequence[Array | None], tape: _Tape) -> Gradients:
    """Gradients of lstm_forward. As simple_rnn_backward; with return_state dy is a list [dy, dh, dc]."""
    return _backward(dy, tape)


# ---- GRU ----


def gru_mix(z: Array, n: Array, h_prev: Array) -> Array:
    return z * h_prev + (1 - z) * n


def gru_mix_backward(dh: Array, z: Array, n: Array, h_prev: Array) -> tuple[Array, Array, Array]:
    return dh * (h_prev - n), dh * (1 - z), dh * z  # dz, dn, dh_prev


def gru_step(p: Any, a_x: Array, h_prev: Array) -> tuple[Arrays, SimpleNamespace]:
    a_h = linear(h_prev, p.U, p.mask, p.gain_h) + p.b_h
    (x_z, x_r, x_n), (h_z, h_r, h_n) = split(a_x, 3), split(a_h, 3)
    a_z, a_r = x_z + h_z, x_r + h_r
    z, r = p.recurrent_activation(a_z), p.recurrent_activation(a_r)
    a_n = x_n + r * h_n
    n = p.activation(a_n)
    saved = SimpleNamespace(h_prev=h_prev, a_z=a_z, a_r=a_r, a_n=a_n, z=z, r=r, n=n, h_n=h_n)
    return (gru_mix(z, n, h_prev),), saved


def gru_step_backward(p: Any, s: Any, dh: Array) -> tuple[Array, Arrays, Named]:
    dz, dn, dh_prev = gru_mix_backward(dh, s.z, s.n, s.h_prev)
    da_n = p.activation.gradient(s.a_n, dn)
    dr, dh_n = da_n * s.h_n, da_n * s.r  # a_n = x_n + r * h_n
    # z, r = recurrent_activation(a_z), recurrent_activation(a_r)
    da_z, da_r = p.recurrent_activation.gradient(s.a_z, dz), p.recurrent_activation.gradient(s.a_r, dr)
    # (x_z, x_r, x_n), (h_z, h_r, h_n) = split(a_x, 3), split(a_h, 3)
    da_x, da_h = join([da_z, da_r, da_n]), join([da_z, da_r, dh_n])
    # a_h = linear(h_prev, U, mask, gain_h) + b_h
    dh_product, dU, dgain_h = linear_backward(da_h, s.h_prev, p.U, p.mask, p.gain_h)
    return da_x, (dh_prev + dh_product,), {"U": dU, "gain_h": dgain_h, "b_h": da_h.sum(axis=0)}


def gru_reset_before_parts(p: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """U, mask and gain_h of z and r, and those of n."""
    at = 2 * (p.U.shape[1] // 3)
    (U_zr, U_n), (gain_zr, gain_n) = (
        split(p.U, [at]),
        (None, None) if p.gain_h is None else split(p.gain_h, [at]),
    )
    mask_zr, mask_n = (None, None) if p.mask is None else (p.mask[:, :2], p.mask[:, 2:])
    return (U_zr, mask_zr, gain_zr), (U_n, mask_n, gain_n)


def gru_reset_before_step(p: Any, a_x: Array, h_prev: Array) -> tuple[Arrays, SimpleNamespace]:
    parts_zr, parts_n = gru_reset_before_parts(p)
    x_zr, x_n = split(a_x, [2 * h_prev.shape[1]])
    a_zr = x_zr + linear(h_prev, *parts_zr)
    z, r = split(p.recurrent_activation(a_zr), 2)
    rh = r * h_prev
    a_n = x_n + linear(rh, *parts_n)
    n = p.activation(a_n)
    return (gru_mix(z, n, h_prev),), SimpleNamespace(h_prev=h_prev, a_zr=a_zr, a_n=a_n, z=z, r=r, n=n, rh=rh)


def gru_reset_before_step_backward(p: Any, s: Any, dh: Array) -> tuple[Array, Arrays, Named]:
    parts_zr, parts_n = gru_reset_before_parts(p)
    dz, dn, dh_prev = gru_mix_backward(dh, s.z, s.n, s.h_prev)
    da_n = p.activation.gradient(s.a_n, dn)
    drh, dU_n, dgain_n = linear_backward(da_n, s.rh, *parts_n)  # a_n = x_n + linear(rh, U_n)
    dr, dh_prev = drh * s.h_prev, dh_prev + drh * s.r  # rh = r * h_prev
    da_zr = p.recurrent_activation.gradient(s.a_zr, join([dz, dr]))
    # a_zr = x_zr + linear(h_prev, U_zr)
    dh_product, dU_zr, dgain_zr = linear_backward(da_zr, s.h_prev, *parts_zr)
    dw = {"U": join([dU_zr, dU_n]), "gain_h": None if dgain_n is None else join([dgain_zr, dgain_n])}
    return join([da_zr, da_n]), (dh_prev + dh_product,), dw


def gru_forward(
    x: Array,
    kernel: Array,
    recurrent_kernel: Array,
    bias: Array | None = None,
    *,
    activation: ActivationLike = "tanh",
    recurrent_activation: ActivationLike = "sigmoid",
    reset_after: bool = True,
    **options: Any,
) -> tuple[Any, _Tape]:
    """GRU over a sequence.

        z = recurrent_activation(x W_z + h_prev U_z + b_z)          with reset_after b_z = b_xz + b_hz
        r = recurrent_activation(x W_r + h_prev U_r + b_r)          with reset_after b_r = b_xr + b_hr
        n = activation(x W_n + b_xn + r * (h_prev U_n + b_hn))      with reset_after
        n = activation(x W_n + b_n + (r * h_prev) U_n)              without
        h = z * h_prev + (1 - z) * n

    Cho et al., arXiv:1406.1078v1 (reset_after) and v3 (without); keras.layers.GRU.

    Args, Returns: as simple_rnn_forward, with kernel [I, 3*H], recurrent_kernel [H, 3*H], bias [2, 3*H] with
    reset_after and [3*H] without, and reset_after: apply r after the product with U_n instead of before. Without
    it layer_norm normalizes h_prev [U_z U_r] and (r * h_prev) U_n apart.

    >>> x, W, U, b = np.ones((2, 5, 3)), np.ones((3, 12)), np.ones((4, 12)), np.ones((2, 12))
    >>> y, tape = gru_forward(x, W, U, b)
    >>> y.shape, gru_backward(y, tape).weights[2].shape
    ((2, 4), (2, 12))
    """
    p = {
        "activation": activation_of(activation),
        "recurrent_activation": activation_of(recurrent_activation),
    }
    if reset_after:
        cell = _Cell(1, 2, "zrn", gru_step, gru_step_backward, p)
    else:
        cell = _Cell(1, 1, "zrn", gru_reset_before_step, gru_reset_before_step_backward, p)
    return _forward(cell, x, kernel, recurrent_kernel, bias, **options)


def gru_backward(dy: Array | Sequence[Array | None], tape: _Tape) -> Gradients:
    """Gradients of gru_forward, for either reset_after. As simple_rnn_backward."""
    return _backward(dy, tape)
