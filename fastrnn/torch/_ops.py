"""One layer of one or two directions, from tensors to the kernels and back: operators, gradients, and an eager short cut.

What all functions take, in PyTorch's terms (B batch, T time, I inputs, H units, D directions):

    mode         "RNN_TANH", "RNN_RELU", "LSTM" or "GRU", as in torch.nn.RNNBase.mode; "LSTM_PROJECTED" with proj_size
    x            [B, T, I] with batch_first, else [T, B, I]
    mask         [B, T] bool or None: True where there is a step; masked steps are left out, and their outputs are zeros
    states       [h] or [h, c], each [D, B, H]; []: zeros
    weights      of each direction w_ih, w_hh and, if there are any, b_ih, b_hh, w_hr, as torch.nn has them

With a projection, h and the outputs have proj_size columns instead of H.

`layer` is what the modules call. For plain tensors it goes straight to the kernels; for all that watches operators (the
compiler, export, tracing, tensor subclasses, dispatch modes) through `torch.ops.fastrnn.layer`, which takes some ten
microseconds more. Both end in the same two functions, `_forward` and `_backward`, the only ones that know NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastrnn import activations, functional
from fastrnn.functional import Array, Weights
from fastrnn.torch import _steps

Parameter = torch.nn.Parameter
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
    """The weights of one direction for the kernels, which see the matrices where they are, transposed."""
    cell = CELLS[mode]
    kernel, recurrent, *biases = [w.numpy() for w in weights]
    bias = projection = None
    if mode == "LSTM_PROJECTED":
        projection = biases.pop().T
    if mode == "GRU":
        kernel, recurrent = _swapped(kernel), _swapped(recurrent)
        if biases:
            bias = _swapped_rows(np.concatenate(biases))
    elif biases:
        bias = biases[0] + biases[1]
    return Weights(
        cell.name,
        kernel.T,
        recurrent.T,
        bias,
        projection=projection,
        activations=cell.activations,
        name=cell.where,
    )


_SWAPPED = np.array([1, 0, 2])


def _swapped(w: Array) -> Array:
    """The rows of a GRU's gates in the kernels' order z r n, of r z n; and the other way round."""
    return w.reshape(3, -1).take(_SWAPPED, 0).reshape(w.shape)


def _swapped_rows(b: Array) -> Array:
    """The same within each of the two halves, or rows, of b; [2, 3H]."""
    return b.reshape(2, 3, -1).take(_SWAPPED, 1).reshape(2, -1)


def _batch_first(array: Array, batch_first: bool) -> Array:
    return array if batch_first else array.transpose(1, 0, 2)


def _forward(
    mode: str,
    x: Tensor,
    mask: Tensor | None,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    directions: int,
    batch_first: bool,
    training: bool,
) -> tuple[list[Tensor], list[Tensor], list[Weights]]:
    """[y, h, (c)], the tapes of the directions if `training`, and the prepared weights."""
    x_array, units = x.numpy(), weights[1].shape[1]
    y_array = np.empty((x_array.shape[0], x_array.shape[1], directions * units), x_array.dtype)
    y = torch.from_numpy(y_array)
    if not batch_first:
        x_array, y_array = x_array.transpose(1, 0, 2), y_array.transpose(1, 0, 2)
    mask_array = None if mask is None else mask.numpy()
    run: Any = functional.run_forward if training else functional.run
    n = len(weights) // directions
    finals, tapes, all_prepared = [], [], []
    for d in range(directions):
        prepared = _prepared(mode, weights if directions == 1 else weights[n * d : n * (d + 1)])
        out = y_array
        if directions == 2:  # the kernels write in the order in which they compute
            out = y_array[:, ::-1, units:] if d else y_array[:, :, :units]
        outputs = run(
            prepared,
            x_array,
            initial_state=[s[d].numpy() for s in states] if states else None,
            mask=mask_array,
            zero_output_for_mask=True,
            return_sequences=True,
            return_state=True,
            go_backwards=d == 1,
            out=out,
        )
        if training:
            outputs, tape = outputs
            tapes.append(torch.from_numpy(tape.saved))
        finals.append(outputs)
        all_prepared.append(prepared)
    if directions == 1:
        results = [y, *[torch.from_numpy(s[None]) for s in finals[0][1:]]]
    else:
        results = [
            y,
            *[torch.from_numpy(np.stack(pair)) for pair in zip(finals[0][1:], finals[1][1:], strict=True)],
        ]
    return results, tapes, all_prepared


def _backward(
    mode: str,
    gradients: Sequence[Tensor | None],
    x: Tensor,
    mask: Tensor | None,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    directions: int,
    batch_first: bool,
    tapes: Sequence[Tensor],
    prepared: Sequence[Weights] | None = None,
) -> list[Tensor]:
    """The gradients of x, of every state of the cell, and of each direction's w_ih, w_hh, bias and w_hr.

    A bias' gradient is that of both b_ih and b_hh; of a GRU [2, 3H], their rows.
    """
    n = len(weights) // directions
    units = weights[1].shape[1]
    x_array = _batch_first(x.numpy(), batch_first)
    given = [None if g is None else g.numpy() for g in gradients]
    dy = None if given[0] is None else _batch_first(given[0], batch_first)
    mask_array = None if mask is None else mask.numpy()
    dx: Tensor | None = None
    dweights: list[Tensor] = []
    dstates = []
    for d in range(directions):
        w = prepared[d] if prepared else _prepared(mode, weights[n * d : n * (d + 1)])
        tape = functional.restore_tape(
            w,
            tapes[d].numpy(),
            x_array,
            [s[d].numpy() for s in states] if states else None,
            mask=mask_array,
            zero_output_for_mask=True,
            return_sequences=True,
            return_state=True,
            go_backwards=d == 1,
        )
        dy_of = dy
        if directions == 2 and dy is not None:
            dy_of = dy[:, ::-1, units:] if d else dy[:, :, :units]
        found = functional.run_backward([dy_of, *[None if g is None else g[d] for g in given[1:]]], tape)
        dx_of = torch.from_numpy(found.x)
        dx = dx_of if dx is None else dx.add_(dx_of)
        dstates.append(found.initial_state)
        dkernel, drecurrent, *dbias = found.weights  # and the projection's
        if mode == "GRU":
            dweights += [_swapped_gradient(dkernel), _swapped_gradient(drecurrent)]
            dweights += [torch.from_numpy(_swapped_rows(b)) for b in dbias]
        else:
            dweights += [torch.from_numpy(dkernel).t(), torch.from_numpy(drecurrent).t()]
            dweights += [torch.from_numpy(b) if b.ndim == 1 else torch.from_numpy(b).t() for b in dbias]
    assert dx is not None
    by_state = zip(*dstates, strict=True)
    return [
        dx if batch_first else dx.transpose(0, 1),
        *[torch.from_numpy(np.stack(s) if directions == 2 else s[0][None]) for s in by_state],
        *dweights,
    ]


def _swapped_gradient(dkernel: Array) -> Tensor:
    """[3H, I], rows r z n, of [I, 3H], columns z r n."""
    of_zrn = torch.from_numpy(dkernel).t()
    units = len(of_zrn) // 3
    new = torch.empty(of_zrn.shape, dtype=of_zrn.dtype, device="cpu")
    new[:units] = of_zrn[units : 2 * units]
    new[units : 2 * units] = of_zrn[:units]
    new[2 * units :] = of_zrn[2 * units :]
    return new


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


@torch.library.impl("fastrnn::layer", "CPU")
@torch.no_grad()
def _layer_cpu(*args: Any) -> list[Tensor]:
    forward: Any = _forward
    results: list[Tensor] = forward(*args, training=False)[0]
    return results


@torch.library.impl("fastrnn::layer_with_tape", "CPU")
@torch.no_grad()
def _layer_with_tape_cpu(*args: Any) -> list[Tensor]:
    forward: Any = _forward
    outputs, tapes, _ = forward(*args, training=True)
    results: list[Tensor] = outputs + tapes
    return results


@torch.library.impl("fastrnn::layer_backward", "CPU")
@torch.no_grad()
def _layer_backward_cpu(*args: Any) -> list[Tensor]:
    return _backward(*args)


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
            dweights.append(
                x.new_empty((rows, columns)) if mode == "GRU" else x.new_empty((columns, rows)).t()
            )
        if n > 3:
            rows = weights[0].shape[0]
            dweights.append(x.new_empty((2, rows) if mode == "GRU" else (rows,)))
        if mode == "LSTM_PROJECTED":
            dweights.append(x.new_empty(weights[n * d + n - 1].shape[::-1]).t())
    dstates = _fake_states(mode, x, batch, weights, directions)
    return [dx if batch_first else dx.transpose(0, 1), *dstates, *dweights]


# ---- Gradients


def is_plain(tensors: Sequence[Tensor]) -> bool:
    """Whether the kernels can read these tensors where they are, and nothing watches the operators called on them."""
    if (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.peek_interpreter_stack() is not None
    ):
        return False
    if forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(t).tangent is not None for t in tensors):
        _no_jvp(None)
    dtype = tensors[0].dtype
    if dtype is not torch.float32 and dtype is not torch.float64:
        return False
    for t in tensors:
        kind = type(t)
        if kind is not Tensor and kind is not Parameter:
            return False
        if t.dtype is not dtype or not t.is_cpu or t.layout is not torch.strided or t.is_neg():
            return False
    return True


def _one_by_one(function: Any, info: Any, in_dims: Sequence[Any], args: Sequence[Any]) -> Any:
    """vmap, as a loop."""
    results = [
        function.apply(
            *(a if dim is None else a.select(dim, i) for a, dim in zip(args, in_dims, strict=True))
        )
        for i in range(info.batch_size)
    ]
    return tuple(map(torch.stack, zip(*results, strict=True))), (0,) * len(results[0])


def _no_jvp(ctx: Any, *tangents: Any) -> Any:
    raise NotImplementedError(
        "fastrnn.torch: gradients must be taken in reverse mode, got a call of forward mode (torch.func.jvp, jacfwd, "
        "torch.autograd.forward_ad), which fastrnn's kernels don't have; use vjp, jacrev, or torch.nn's module"
    )


class _Layer(torch.autograd.Function):
    """[y, h, (c), *tapes] of mode, mask, directions, batch_first, the number of states, x, *states, *weights."""

    @staticmethod
    def forward(
        mode: str, mask: Tensor | None, directions: int, batch_first: bool, n: int, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        args = (mode, tensors[0], mask, tensors[1 : 1 + n], tensors[1 + n :], directions, batch_first)
        return tuple(_OPS.layer_with_tape(*args))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        mode, mask, directions, batch_first, n, *tensors = inputs
        tapes = output[1 + CELLS[mode].states :]
        ctx.mark_non_differentiable(*tapes)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(mask, *tensors, *tapes)
        ctx.arguments = (mode, directions, batch_first, n, len(tensors) - 1 - n)
        ctx.prepared = None

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        return _gradients_of_layer(ctx, gradients)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return _one_by_one(_Layer, info, in_dims, args)

    jvp = staticmethod(_no_jvp)


class _PlainLayer(torch.autograd.Function):
    """`_Layer` for plain tensors, without tapes in its results: with less around the kernels, and weights packed once."""

    @staticmethod
    def forward(
        ctx: Any, mode: str, mask: Tensor | None, directions: int, batch_first: bool, n: int, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        outputs, tapes, ctx.prepared = _forward(
            mode, tensors[0], mask, tensors[1 : 1 + n], tensors[1 + n :], directions, batch_first, True
        )
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(mask, *tensors, *tapes)
        ctx.arguments = (mode, directions, batch_first, n, len(tensors) - 1 - n)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        return _gradients_of_layer(ctx, gradients)

    jvp = staticmethod(_no_jvp)


def _gradients_of_layer(ctx: Any, gradients: Sequence[Tensor | None]) -> Any:
    mode, directions, batch_first, n_states, n_weights = ctx.arguments
    mask, *tensors = ctx.saved_tensors
    states = CELLS[mode].states
    given = gradients[: 1 + states]
    found: Sequence[Tensor]
    if not torch.is_grad_enabled() and is_plain([*tensors, *(g for g in given if g is not None)]):
        _, x, of_states, weights, tapes = _parted(mode, n_states, n_weights, (*given, *tensors))
        prepared, ctx.prepared = ctx.prepared, None  # a loss that is kept keeps this context
        found = _backward(mode, given, x, mask, of_states, weights, directions, batch_first, tapes, prepared)
    else:
        found = _LayerBackward.apply(
            mode, mask, directions, batch_first, n_states, n_weights, *given, *tensors
        )
    dstates = found[1 : 1 + states] if n_states else ()
    return (None,) * 5 + (
        found[0],
        *dstates,
        *_as_parameters(mode, found[1 + states :], n_weights, directions),
    )


def _as_parameters(mode: str, dweights: Sequence[Tensor], n_weights: int, directions: int) -> list[Tensor]:
    """What `_backward` has of the weights, one for each parameter."""
    if n_weights <= 3 * directions:  # there are no biases
        return list(dweights)
    found: list[Tensor] = []
    n = len(dweights) // directions
    for d in range(directions):
        dkernel, drecurrent, dbias, *rest = dweights[n * d : n * (d + 1)]
        found += [dkernel, drecurrent, *(dbias.unbind() if mode == "GRU" else (dbias, dbias)), *rest]
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
        return _one_by_one(_LayerBackward, info, in_dims, args)

    jvp = staticmethod(_no_jvp)


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
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


@torch.library.impl("fastrnn::layer", "Autograd")
def _layer_autograd(*args: Any) -> list[Tensor]:
    mode, x, mask, states, weights, directions, batch_first = args
    if _requires_grad((x, *states, *weights)):
        return _recorded(mode, mask, directions, batch_first, states, (x, *states, *weights))
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


def _recorded(
    mode: str,
    mask: Tensor | None,
    directions: int,
    batch_first: bool,
    states: Sequence[Tensor],
    tensors: Sequence[Tensor],
) -> list[Tensor]:
    found = _Layer.apply(mode, mask, directions, batch_first, len(states), *tensors)
    return list(found[: 1 + CELLS[mode].states])


# ---- What modules call


def step(mode: str, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The new states [B, H] for x and states of one step, [B, I] and [B, H]; all plain, and without gradients."""
    given = [s.numpy() for s in states]
    _, new = functional.run_step(_prepared(mode, weights), x.numpy(), given or None)
    return tuple(torch.from_numpy(s) for s in new)


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
        if torch.is_grad_enabled():
            tensors = (x, *states, *weights)
            for t in tensors:
                if t.requires_grad:
                    found: Sequence[Tensor] = _PlainLayer.apply(
                        mode, mask, directions, batch_first, len(states), *tensors
                    )
                    return found
        return _forward(mode, x, mask, states, weights, directions, batch_first, False)[0]
    if not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is not None:
        return _recorded(mode, mask, directions, batch_first, states, (x, *states, *weights))
    return list(_OPS.layer(mode, x, mask, states, weights, directions, batch_first))
