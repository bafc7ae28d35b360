"""One layer of one or two directions, from tensors to the kernels and back: operators, gradients, and an eager short cut.

What all functions take, in PyTorch's terms (B batch, T time, I inputs, H units, D directions):

    mode         "RNN_TANH", "RNN_RELU", "LSTM" or "GRU", as in torch.nn.RNNBase.mode; "LSTM_PROJECTED" with proj_size
    x            [B, T, I] with batch_first, else [T, B, I]
    mask         [B, T] bool or None: True where there is a step; masked steps are left out, and their outputs are zeros
    states       [h] or [h, c], each [D, B, H]; []: zeros
    weights      of each direction w_ih, w_hh and, if there are any, b_ih, b_hh, w_hr, as torch.nn has them

With a projection, h and the outputs have proj_size columns instead of H.

`layer` is what the modules call, and `step` what cells call. For plain tensors they go straight to the kernels, recorded by
`_recorded.record` if there are gradients; for all that watches operators (the compiler, export, tracing, tensor subclasses,
dispatch modes) `layer` goes through `torch.ops.fastrnn.layer`, which takes some ten microseconds more. Both end in the same
two functions, `_forward` and `_backward`. Arrays are between tensors and the kernels alone.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastrnn import _core, activations, functional, runtime
from fastrnn.functional import Array, Weights
from fastrnn.torch import _steps
from fastrnn.torch._recorded import (
    TENSORS_ARE_READ,
    array_of,
    arrays_of,
    no_jvp,
    one_by_one,
    record,
    record_any,
)

Codes = list[tuple[int, float, float, float]]


class Cell(NamedTuple):
    """What the kernels call a mode of torch.nn.RNNBase."""

    name: str
    where: str  # what error messages begin with
    activations: Codes | None  # None: sigmoid and tanh
    gates: int
    states: int
    tape_slots: int


def _cell(name: str, where: str, gates: int, states: int, activation: str = "tanh") -> Cell:
    codes = None
    if activation != "tanh":
        found = activations.get(activation)
        assert isinstance(found, activations.Activation)
        codes = [found.numbers] * 3
    one = np.zeros((1, gates), "float32")
    projection = one[:, :1] if name.endswith("_projected") else None
    slots = Weights(name, one, one, None, activations=codes, projection=projection, name=where).tape_slots
    return Cell(name, where, codes, gates, states, slots)


CELLS = {
    "RNN_TANH": _cell("simple_rnn", "fastrnn.torch.RNN", 1, 1),
    "RNN_RELU": _cell("simple_rnn", "fastrnn.torch.RNN", 1, 1, "relu"),
    "LSTM": _cell("lstm", "fastrnn.torch.LSTM", 4, 2),
    "LSTM_PROJECTED": _cell("lstm_projected", "fastrnn.torch.LSTM", 4, 2),
    "GRU": _cell("gru", "fastrnn.torch.GRU", 3, 1),
}


# ---- Arrays: plain tensors in and out, no gradients recorded


def _prepared(mode: str, weights: Sequence[Tensor]) -> Weights:
    """The weights of one direction for the kernels, which see the matrices where they are, but for a GRU's, transposed."""
    name, where, codes, *_ = CELLS[mode]
    return _core.torch_weights(
        name, weights if TENSORS_ARE_READ else [w.numpy() for w in weights], codes, where
    )


def _batch_first(array: Array, batch_first: bool) -> Array:
    return array if batch_first else array.transpose(1, 0, 2)


def _kernels(
    weights: Weights,
    x: Array,
    states: list[Array] | None,
    mask: Tensor | None,
    training: bool,
    direction: int = 0,
    out: Array | None = None,
) -> tuple[tuple[Array, ...], Any]:
    """The final states and the tape if `training`, of x [B, T, I]; `functional.run` without its checks, for short calls.

    The outputs of all steps go to `out`.
    """
    _, finals, tape = _core.forward(
        weights,
        x,
        states,
        out is not None,
        True,
        direction == 1,
        training,
        None if mask is None else array_of(mask),
        True,
        None,
        None,
        None,
        None,
        out,
        runtime.limit.threads,
    )
    return finals, tape


def _forward(
    mode: str,
    x: Tensor,
    mask: Tensor | None,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    directions: int,
    batch_first: bool,
    training: bool,
) -> tuple[list[Tensor], list[Any]]:
    """[y, h, (c)], and of each direction the tape if `training`."""
    units = weights[1].shape[1]
    x_array = array_of(x)
    y_array = np.empty((x_array.shape[0], x_array.shape[1], directions * units), x_array.dtype)
    y = torch.from_numpy(y_array)
    if not batch_first:
        x_array, y_array = x_array.transpose(1, 0, 2), y_array.transpose(1, 0, 2)
    n = len(weights) // directions
    finals, tapes = [], []
    for d in range(directions):
        out = y_array
        if directions == 2:  # the kernels write in the order in which they compute
            out = y_array[:, ::-1, units:] if d else y_array[:, :, :units]
        prepared = _prepared(mode, weights[n * d : n * (d + 1)])
        initial = [array_of(s)[d] for s in states] if states else None
        final, tape = _kernels(prepared, x_array, initial, mask, training, d, out)
        finals.append(final)
        tapes.append(tape)
    if directions == 1:
        return [y, *[torch.from_numpy(s[None]) for s in finals[0]]], tapes
    return [y, *[torch.from_numpy(np.stack(pair)) for pair in zip(*finals, strict=True)]], tapes


def _restored(
    mode: str,
    x: Tensor,
    mask: Tensor | None,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    directions: int,
    batch_first: bool,
    saved: Sequence[Tensor],
) -> list[Any]:
    """The tapes of a forward pass, of their arrays."""
    n = len(weights) // directions
    return [
        functional.restore_tape(
            _prepared(mode, weights[n * d : n * (d + 1)]),
            array_of(saved[d]),
            _batch_first(array_of(x), batch_first),
            [array_of(s)[d] for s in states] if states else None,
            mask=None if mask is None else array_of(mask),
            zero_output_for_mask=True,
            return_sequences=True,
            return_state=True,
            go_backwards=d == 1,
        )
        for d in range(directions)
    ]


def _backward(
    mode: str,
    gradients: Sequence[Tensor | None],
    batch_first: bool,
    tapes: Sequence[functional.Tape],
    rows: bool = False,
) -> list[Tensor]:
    """The gradients of x, of every state of the cell, and of each direction's w_ih, w_hh, bias and w_hr.

    A bias' gradient is that of both b_ih and b_hh; of a GRU [2, 3H], their rows. `rows`: see `_gradients_of_weights`.
    """
    given = [None if g is None else array_of(g) for g in gradients]
    dy = None if given[0] is None else _batch_first(given[0], batch_first)
    units = tapes[0].weights.outputs
    dx: Tensor | None = None
    dweights: list[Tensor] = []
    dstates = []
    for d, tape in enumerate(tapes):
        dy_of = dy
        if len(tapes) == 2 and dy is not None:
            dy_of = dy[:, ::-1, units:] if d else dy[:, :, :units]
        of_outputs = [dy_of, *[None if g is None else g[d] for g in given[1:]]]
        dx_array, of_weights, of_states = _core.backward(of_outputs, tape, runtime.limit.threads)
        dx_of = torch.from_numpy(_batch_first(dx_array, batch_first))
        dx = dx_of if dx is None else dx.add_(dx_of)
        dstates.append(of_states)
        dweights += _gradients_of_weights(mode, of_weights, rows)
    assert dx is not None
    if len(tapes) == 1:
        return [dx, *[torch.from_numpy(s[None]) for s in dstates[0]], *dweights]
    return [dx, *[torch.from_numpy(np.stack(s)) for s in zip(*dstates, strict=True)], *dweights]


def _gradients_of_weights(mode: str, found: Sequence[Array], rows: bool) -> list[Tensor]:
    """Those of w_ih, w_hh, bias and w_hr, of the kernels' gradients of the kernels, bias and projection.

    `rows`: those of matrices that are not large lie row by row, as PyTorch's parameters do. PyTorch then takes them for
    `.grad` as they are; others it copies, which for large ones it does faster than NumPy.
    """
    if mode == "GRU":
        for columns in found:
            _swap_gates(columns)
    tensors: list[Tensor] = []
    for a in found:
        if a.ndim == 2 and (mode != "GRU" or len(tensors) < 2):
            a = a.T.copy() if rows and a.size <= _FEW else a.T
        tensors.append(torch.from_numpy(a))
    return tensors


_FEW = 128 * 128


def _swap_gates(columns: Array) -> None:
    """Bring columns z r n into the order r z n, in place."""
    units = columns.shape[-1] // 3
    z = columns[:, :units].copy()
    columns[:, :units] = columns[:, units : 2 * units]
    columns[:, units : 2 * units] = z


def _step(
    mode: str, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]
) -> tuple[list[Tensor], functional.Tape]:
    """The new states [B, H] of a cell, for x [B, I] and states [B, H], and the tape of this step."""
    given = [array_of(s) for s in states] if states else None
    new, tape = _kernels(_prepared(mode, weights), array_of(x)[:, None], given, None, True)
    return [torch.from_numpy(s) for s in new], tape


def _step_backward(
    mode: str, gradients: Sequence[Tensor | None], tape: functional.Tape, with_states: bool
) -> list[Tensor]:
    """The gradients of what `_step` was given, without those of the states if it was given none."""
    given = [None, *[None if g is None else array_of(g) for g in gradients]]
    dx, dweights, dstates = _core.backward(given, tape, runtime.limit.threads)
    found = [torch.from_numpy(dx[:, 0])]
    if with_states:
        found += [torch.from_numpy(s) for s in dstates]
    return found + _as_parameters(mode, _gradients_of_weights(mode, dweights, True), 1)


# ---- Operators

torch.library.define(
    "fastrnn::layer",
    "(str mode, Tensor x, Tensor? mask, Tensor[] states, Tensor[] weights, int directions, bool batch_first) -> Tensor[]",
    tags=torch.Tag.pt2_compliant_tag,
)
torch.library.define(  # [y, h, (c)] and the tapes
    "fastrnn::layer_with_tape",
    "(str mode, Tensor x, Tensor? mask, Tensor[] states, Tensor[] weights, int directions, bool batch_first) -> Tensor[]",
    tags=torch.Tag.pt2_compliant_tag,
)
torch.library.define(
    "fastrnn::layer_backward",
    "(str mode, Tensor?[] gradients, Tensor x, Tensor? mask, Tensor[] states, Tensor[] weights, int directions, "
    "bool batch_first, Tensor[] tapes) -> Tensor[]",
    tags=torch.Tag.pt2_compliant_tag,
)
_OPS: Any = torch.ops.fastrnn


def _resolved(given: Any) -> Any:
    """Arguments without tensors negated lazily or standing for zeros, which the dispatcher leaves among optional ones."""
    if isinstance(given, Tensor):
        return given.clone() if given._is_zerotensor() else given.resolve_neg()
    return [_resolved(g) for g in given] if isinstance(given, (list, tuple)) else given


@torch.library.impl("fastrnn::layer", "CPU")
@torch.no_grad()
def _layer_cpu(*given: Any) -> list[Tensor]:
    forward: Any = _forward
    args = _resolved(given)
    results: list[Tensor] = forward(*args, training=False)[0]
    return results


@torch.library.impl("fastrnn::layer_with_tape", "CPU")
@torch.no_grad()
def _layer_with_tape_cpu(*given: Any) -> list[Tensor]:
    forward: Any = _forward
    args = _resolved(given)
    outputs, tapes = forward(*args, training=True)
    results: list[Tensor] = outputs + arrays_of(tapes)
    return results


@torch.library.impl("fastrnn::layer_backward", "CPU")
@torch.no_grad()
def _layer_backward_cpu(*given: Any) -> list[Tensor]:
    mode, gradients, *args = _resolved(given)
    *_, batch_first, _ = args
    return _backward(mode, gradients, batch_first, _restored(mode, *args))


@torch.library.register_fake("fastrnn::layer")
def _layer_fake(
    mode: str,
    x: Tensor,
    mask: Tensor | None,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    directions: int,
    batch_first: bool,
) -> list[Tensor]:
    batch = x.shape[0 if batch_first else 1]
    return [
        x.new_empty((*x.shape[:2], directions * weights[1].shape[1])),
        *_fake_states(mode, x, batch, weights, directions),
    ]


def _units(mode: str, weights: Sequence[Tensor]) -> int:
    return weights[0].shape[0] // CELLS[mode].gates


def _fake_states(
    mode: str, x: Tensor, batch: int, weights: Sequence[Tensor], directions: int
) -> list[Tensor]:
    widths = (weights[1].shape[1], _units(mode, weights))  # of h, of c
    return [x.new_empty((directions, batch, w)) for w in widths[: CELLS[mode].states]]


@torch.library.register_fake("fastrnn::layer_with_tape")
def _layer_with_tape_fake(
    mode: str,
    x: Tensor,
    mask: Tensor | None,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    directions: int,
    batch_first: bool,
) -> list[Tensor]:
    batch, time = x.shape[:2] if batch_first else (x.shape[1], x.shape[0])
    outputs: list[Tensor] = _layer_fake(mode, x, mask, states, weights, directions, batch_first)
    tape_shape = (batch, time, CELLS[mode].tape_slots, _units(mode, weights))
    return outputs + [x.new_empty(tape_shape) for _ in range(directions)]


@torch.library.register_fake("fastrnn::layer_backward")
def _layer_backward_fake(
    mode: str,
    gradients: Sequence[Tensor | None],
    x: Tensor,
    mask: Tensor | None,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    directions: int,
    batch_first: bool,
    tapes: Sequence[Tensor],
) -> list[Tensor]:
    batch, time = x.shape[:2] if batch_first else (x.shape[1], x.shape[0])
    dx = x.new_empty((batch, time, x.shape[2]))
    dweights = []
    n = len(weights) // directions
    for d in range(directions):
        for w in weights[n * d : n * d + 2]:
            rows, columns = w.shape
            dweights.append(x.new_empty((columns, rows)).t())
        if n > 3:
            rows = weights[0].shape[0]
            dweights.append(x.new_empty((2, rows) if mode == "GRU" else (rows,)))
        if mode == "LSTM_PROJECTED":
            dweights.append(x.new_empty(weights[n * d + n - 1].shape[::-1]).t())
    dstates = _fake_states(mode, x, batch, weights, directions)
    return [dx if batch_first else dx.transpose(0, 1), *dstates, *dweights]


# ---- Gradients


class _LayerCall:
    """`layer`, to be recorded, with its arguments that are no tensors. The tensors: x, *states, *weights, mask."""

    def __init__(self, mode: str, directions: int, batch_first: bool, n_states: int) -> None:
        self.mode, self.directions, self.batch_first, self.n_states = mode, directions, batch_first, n_states
        self.outputs = 1 + CELLS[mode].states

    def arguments(self, tensors: Sequence[Any]) -> tuple[Any, ...]:
        """Of the operators, in their order."""
        n = 1 + self.n_states
        states, weights = tensors[1:n], tensors[n:-1]
        return self.mode, tensors[0], tensors[-1], states, weights, self.directions, self.batch_first

    def forward(self, tensors: Sequence[Any]) -> tuple[list[Tensor], list[Any]]:
        forward: Any = _forward
        found: tuple[list[Tensor], list[Any]] = forward(*self.arguments(tensors), training=True)
        return found

    def with_arrays(self, tensors: Sequence[Any]) -> list[Tensor]:
        found: list[Tensor] = _OPS.layer_with_tape(*self.arguments(tensors))
        return found

    def backward(self, gradients: Sequence[Tensor | None], tapes: list[Any]) -> list[Tensor | None]:
        return self._assigned(_backward(self.mode, gradients, self.batch_first, tapes, True))

    def _assigned(self, found: Sequence[Tensor]) -> list[Tensor | None]:
        """What `_backward` returns, to each tensor its gradient."""
        n = self.outputs
        of_states = found[1:n] if self.n_states else ()
        return [found[0], *of_states, *_as_parameters(self.mode, found[n:], self.directions), None]

    def restored(self, tensors: Sequence[Any], saved: Sequence[Tensor]) -> list[Any]:
        restored: Any = _restored
        tapes: list[Any] = restored(*self.arguments(tensors), saved)
        return tapes

    def differentiable(
        self, gradients: Sequence[Tensor | None], tensors: Sequence[Any], saved: Sequence[Tensor]
    ) -> list[Tensor | None]:
        *tensors, mask = tensors
        n = (self.n_states, len(tensors) - 1 - self.n_states)
        found = _LayerBackward.apply(
            self.mode, mask, self.directions, self.batch_first, *n, *gradients, *tensors, *saved
        )
        return self._assigned(found)


class _StepCall:
    """One step of a cell, to be recorded. The tensors: x [B, I], *states [B, H], *weights; the outputs: the new states."""

    def __init__(self, mode: str, n_states: int) -> None:
        self.layer = _LayerCall(mode, 1, True, n_states)

    def forward(self, tensors: Sequence[Any]) -> tuple[list[Tensor], list[Any]]:
        n = 1 + self.layer.n_states
        new, tape = _step(self.layer.mode, tensors[0], tensors[1:n], tensors[n:])
        return new, [tape]

    def backward(self, gradients: Sequence[Tensor | None], tapes: list[Any]) -> Sequence[Tensor | None]:
        return _step_backward(self.layer.mode, gradients, tapes[0], self.layer.n_states > 0)

    def _of_layer(self, tensors: Sequence[Any]) -> list[Any]:
        n = 1 + self.layer.n_states
        return [tensors[0].unsqueeze(1), *[s.unsqueeze(0) for s in tensors[1:n]], *tensors[n:], None]

    def restored(self, tensors: Sequence[Any], saved: Sequence[Tensor]) -> list[Any]:
        return self.layer.restored(self._of_layer(tensors), saved)

    def differentiable(
        self, gradients: Sequence[Tensor | None], tensors: Sequence[Any], saved: Sequence[Tensor]
    ) -> list[Tensor | None]:
        of_layer = [None, *[None if g is None else g.unsqueeze(0) for g in gradients]]
        found: list[Any] = self.layer.differentiable(of_layer, self._of_layer(tensors), saved)
        n = 1 + self.layer.n_states
        return [found[0].squeeze(1), *[s.squeeze(0) for s in found[1:n]], *found[n:-1]]


_layer_call, _step_call = functools.cache(_LayerCall), functools.cache(_StepCall)


def _as_parameters(mode: str, dweights: Sequence[Tensor], directions: int) -> list[Tensor]:
    """What `_backward` has of the weights, one for each parameter; no two overlap."""
    n = len(dweights) // directions
    if n == (3 if mode == "LSTM_PROJECTED" else 2):  # there are no biases
        return list(dweights)
    if directions == 1 and n == 3 and mode != "GRU":
        return [*dweights, dweights[2].clone()]
    found: list[Tensor] = []
    for d in range(directions):
        dkernel, drecurrent, dbias, *rest = dweights[n * d : n * (d + 1)]
        found += [dkernel, drecurrent, *(dbias.unbind() if mode == "GRU" else (dbias, dbias.clone())), *rest]
    return found


class _LayerBackward(torch.autograd.Function):
    """What `_backward` returns, of mode, mask, directions, batch_first, the numbers of states and weights, the gradients
    of the outputs, x, *states, *weights, *tapes."""

    @staticmethod
    def forward(
        mode: str,
        mask: Tensor | None,
        directions: int,
        batch_first: bool,
        n_states: int,
        n_weights: int,
        *tensors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        gradients, x, states, weights, tapes = _parted(mode, n_states, n_weights, tensors)
        args = (mode, gradients, x, mask, states, weights, directions, batch_first, tapes)
        return tuple(_OPS.layer_backward(*args))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        mode, mask, directions, batch_first, n_states, n_weights, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(mask, *tensors)
        ctx.arguments = (mode, directions, batch_first, n_states, n_weights)

    @staticmethod
    def backward(ctx: Any, *of_results: Tensor | None) -> Any:
        """By recomputation: the layer once more in plain operations, differentiated twice."""
        mode, directions, batch_first, n_states, n_weights = ctx.arguments
        mask, *tensors = ctx.saved_tensors
        gradients, x, states, weights, tapes = _parted(mode, n_states, n_weights, tensors)
        once_more = torch.is_grad_enabled()
        with torch.enable_grad():
            # Aliases: what the given gradients may depend on is not differentiated through a second time.
            inputs = [_alias(t) for t in (x, *states, *weights)]
            given = [None if g is None else _alias(g) for g in gradients]
            outputs = _steps.layer(
                mode,
                inputs[0],
                mask,
                inputs[1 : 1 + n_states],
                inputs[1 + n_states :],
                directions,
                batch_first,
            )
            used = [(o, g) for o, g in zip(outputs, given, strict=True) if g is not None]
            first = torch.autograd.grad(
                [o for o, _ in used], inputs, [g for _, g in used], create_graph=True, allow_unused=True
            )
            seeds = _of_parameters(mode, of_results, n_states, n_weights, directions)
            pairs = [(f, s) for f, s in zip(first, seeds, strict=True) if f is not None and s is not None]
            sought = [*(g for g in given if g is not None), *inputs]
            found: Sequence[Tensor | None] = [None] * len(sought)
            if pairs:
                found = torch.autograd.grad(
                    [f for f, _ in pairs],
                    sought,
                    [s for _, s in pairs],
                    create_graph=once_more,
                    allow_unused=True,
                )
        rest = iter(found)
        of_gradients = [None if g is None else next(rest) for g in given]
        return (None,) * 6 + (*of_gradients, *rest) + (None,) * len(tapes)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return one_by_one(_LayerBackward, info, in_dims, args)

    jvp = staticmethod(no_jvp)


def _parted(mode: str, n_states: int, n_weights: int, tensors: Sequence[Any]) -> tuple[Any, ...]:
    """Gradients of the outputs, x, states, weights, tapes."""
    n = 1 + CELLS[mode].states
    begin = n + 1 + n_states
    return (
        list(tensors[:n]),
        tensors[n],
        tensors[n + 1 : begin],
        tensors[begin : begin + n_weights],
        tensors[begin + n_weights :],
    )


def _alias(t: Tensor) -> Tensor:
    return t.view_as(t) if t.requires_grad else t.detach().requires_grad_()


def _of_parameters(
    mode: str, of_results: Sequence[Tensor | None], n_states: int, n_weights: int, directions: int
) -> list[Tensor | None]:
    """The gradients of what `_backward` returned, as those of the gradients of x, the given states and the parameters."""
    cell = CELLS[mode]
    found = [of_results[0], *of_results[1 : 1 + (cell.states if n_states else 0)]]
    of_weights = of_results[1 + cell.states :]
    if n_weights <= 3 * directions:
        return [*found, *of_weights]
    n = len(of_weights) // directions
    for d in range(directions):
        kernel, recurrent, bias, *rest = of_weights[n * d : n * (d + 1)]
        if mode == "GRU":
            both: list[Tensor | None] = [None, None] if bias is None else [*bias.unbind()]
        else:
            both = [
                bias,
                None,
            ]  # b_ih and b_hh have one gradient: all of its gradient is counted for one of them
        found += [kernel, recurrent, *both, *rest]
    return found


def _requires_grad(tensors: Sequence[Tensor | None]) -> bool:
    if torch.is_grad_enabled():
        for t in tensors:
            if t is not None and t.requires_grad:
                return True
    return False


def _recorded(
    mode: str,
    x: Tensor,
    mask: Tensor | None,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    directions: int,
    batch_first: bool,
) -> list[Tensor]:
    """What the operator `layer` returns, recorded, of tensors of any kind."""
    return record_any(_layer_call(mode, directions, batch_first, len(states)), (x, *states, *weights, mask))


@torch.library.impl("fastrnn::layer", "Autograd")
def _layer_autograd(*args: Any) -> list[Tensor]:
    mode, x, mask, states, weights, directions, batch_first = args
    if _requires_grad((x, *states, *weights)):
        return _recorded(mode, x, mask, states, weights, directions, batch_first)
    with torch._C._AutoDispatchBelowAutograd():
        return list(_OPS.layer(*args))


@torch.library.impl("fastrnn::layer_backward", "Autograd")
def _layer_backward_autograd(*args: Any) -> list[Tensor]:
    mode, gradients, x, mask, states, weights, directions, batch_first, tapes = args
    tensors = (*gradients, x, *states, *weights, *tapes)
    if _requires_grad(tensors):
        n = (len(states), len(weights))
        return list(_LayerBackward.apply(mode, mask, directions, batch_first, *n, *tensors))
    with torch._C._AutoDispatchBelowAutograd():
        return list(_OPS.layer_backward(*args))


# ---- What modules call


def step(
    mode: str, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor], plain: bool
) -> Sequence[Tensor]:
    """The new states [B, H] for x [B, I] and states [B, H] of one step; `plain`: what `is_plain` says of all."""
    if not plain:
        of_layer = [s.unsqueeze(0) for s in states]
        _, *new = layer(mode, x.unsqueeze(1), None, of_layer, weights, 1, True, False)
        return [s[0] for s in new]
    tensors = (x, *states, *weights)
    if _requires_grad(tensors):
        return record(_step_call(mode, len(states)), tensors)
    given = [array_of(s) for s in states] if states else None
    _, new_arrays = functional.run_step(_prepared(mode, weights), array_of(x), given)
    return [torch.from_numpy(s) for s in new_arrays]


def layer(
    mode: str,
    x: Tensor,
    mask: Tensor | None,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    directions: int,
    batch_first: bool,
    plain: bool,
) -> Sequence[Tensor]:
    """[y, h, (c)]: y [B, T, D * H] or [T, B, D * H], the directions side by side; h and c [D, B, H].

    `plain`: what `is_plain` says of all tensors but the mask, which is one if they are.
    """
    if plain:
        if _requires_grad((x, *states, *weights)):
            call = _layer_call(mode, directions, batch_first, len(states))
            return record(call, (x, *states, *weights, mask))
        return _forward(mode, x, mask, states, weights, directions, batch_first, False)[0]
    if not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is not None:
        return _recorded(mode, x, mask, states, weights, directions, batch_first)
    return list(_OPS.layer(mode, x, mask, states, weights, directions, batch_first))
