"""Looking inside a backward pass: how the gradient of the hidden state vanishes or explodes over time.

    y, tape = layer.forward(x, checkpoint=True)
    norms = fastrnn.inspection.gradient_norms(dy, tape)          # [B, T]
    fastrnn.plot.gradient_norms(norms)

The tape stays good: `layer.backward(dy, tape)` may follow. Each function takes the sequence apart into segments of one
step, and computes for each what it doesn't return as well, the gradients of x and of the weights: measured on LSTMs of 32 to
128 units, 2 to 5 times the time of a training step.

Legend: B batch, T time steps, H units.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, overload

import numpy as np

from fastrnn import cells, checkpoint, layers, wrappers
from fastrnn.functional import Array

__all__ = ["gradient_norms", "hidden_gradients"]

Tape = layers.Tape | checkpoint.Tape
Gradient = Array | Sequence[Array | None] | None


@overload
def hidden_gradients(dy: Gradient, tape: Tape) -> Array: ...
@overload
def hidden_gradients(dy: Any, tape: wrappers.BidirectionalTape) -> dict[str, Array]: ...
@overload
def hidden_gradients(dy: Any, tape: cells.RNNTape) -> Array | dict[str, Array]: ...
def hidden_gradients(dy: Any, tape: Any) -> Array | dict[str, Array]:
    """The gradient of the loss by the hidden state after every step, dL/dh_t.

    It counts all ways that h_t goes: to the output of its step (and to those of masked steps that repeat it), and through
    the later steps. For an LSTM, c_t is a way of its own that is not counted.

    Args:
        dy: What `backward` takes: the gradient of the outputs.
        tape: What a layer's `forward` with `checkpoint`, or `checkpoint.run_forward`, returned. It is not used up.

    Returns:
        [B, T, H] in the order of computation, as the outputs. At a masked step, whose h is that of the step before, what
        comes back through the later steps. For an RNN of several cells a dict of these, by the names "0", "1" ...; for
        `Bidirectional` by "forward" and "backward", both in the order of x, or of RNNs "forward_0" ....

    Raises:
        TypeError: The tape is another one.
        ValueError: A shape doesn't fit.

    >>> from fastrnn import functional
    >>> x, kernel, recurrent_kernel = (np.ones(s, "float32") for s in [(8, 100, 3), (3, 4), (4, 4)])
    >>> weights = functional.Weights("simple_rnn", kernel, recurrent_kernel)
    >>> y, tape = checkpoint.run_forward(weights, x, every=True)
    >>> hidden_gradients(np.ones_like(y), tape).shape
    (8, 100, 4)
    """
    return _of_all(dy, tape, lambda dh: dh)


@overload
def gradient_norms(dy: Gradient, tape: Tape) -> Array: ...
@overload
def gradient_norms(dy: Any, tape: wrappers.BidirectionalTape) -> dict[str, Array]: ...
@overload
def gradient_norms(dy: Any, tape: cells.RNNTape) -> Array | dict[str, Array]: ...
def gradient_norms(dy: Any, tape: Any) -> Array | dict[str, Array]:
    """The Euclidean norm of dL/dh_t for every row and step: the picture of vanishing and exploding gradients.

    (Pascanu et al., "On the difficulty of training recurrent neural networks", 2013, arXiv 1211.5063.)

    Args:
        dy, tape: As `hidden_gradients` takes them.

    Returns:
        [B, T] in the order of computation; where `hidden_gradients` returns a dict, a dict of these.

    Raises:
        TypeError, ValueError: As `hidden_gradients`.
    """
    return _of_all(dy, tape, lambda dh: np.linalg.norm(dh, axis=-1))


def _of_all(dy: Any, tape: Any, what: Callable[[Array], Any]) -> Array | dict[str, Array]:
    """what(dL/dh_t) for all steps; a dict by name if the tape is made of several."""
    found: dict[str, Array] = {}
    if isinstance(tape, wrappers.BidirectionalTape):
        wrapper = tape._wrapper
        for name, part, gradients in zip(
            wrappers.DIRECTIONS, tape._tapes, wrapper._split_gradients(dy, tape), strict=True
        ):
            of_part = _of_all(gradients, part, what)
            named = (
                {f"_{key}": v for key, v in of_part.items()} if isinstance(of_part, dict) else {"": of_part}
            )
            found |= {name + key: tape._in_order_of_x(name, values) for key, values in named.items()}
        return found
    if not isinstance(tape, cells.RNNTape):
        return _of_one(dy, tape, what)
    rnn = tape._rnn

    def backward(part: Any, gradients: Any, part_tape: Any) -> Array:
        found[str(rnn._parts.index(part))] = _of_one(gradients, part_tape, what)
        dx: Array = part.backward(gradients, part_tape).x
        return dx

    rnn._go_back(dy, tape, backward)
    return dict(reversed(found.items())) if len(found) > 1 else found["0"]


def _of_one(dy: Any, tape: Any, what: Callable[[Array], Any]) -> Array:
    core = _core(tape)
    nothing = np.zeros((len(core.x), 0, core.weights.outputs), core.weights.dtype)
    result: Array = np.empty((*core.x.shape[:2], *what(nothing).shape[2:]), core.weights.dtype)

    def take(t: int, dh: Array) -> None:
        result[:, t] = what(dh)

    _go_back(dy, tape, take)
    return result


def _core(tape: Any) -> checkpoint.Tape:
    core = tape._core if isinstance(tape, layers.Tape) else tape
    if not isinstance(core, checkpoint.Tape):
        kind = "one without checkpoints" if core is not tape else type(tape).__name__
        if isinstance(tape, cells._Steps):
            kind = "one of a cell of one's own"
        raise TypeError(
            f"inspection: tape must come from a forward pass with checkpoints, got {kind}; "
            "call y, tape = layer.forward(x, checkpoint=True)"
        )
    return core


def _go_back(dy: Any, tape: Tape, take: Callable[[int, Array], None]) -> None:
    """Calls take(t, dL/dh_t) for every step, the last one first."""
    core = _core(tape)
    zeros = np.zeros((len(core.x), core.weights.outputs), core.weights.dtype)

    def watch(segment: checkpoint.Segment) -> None:
        t, dy_t, (dh, *_) = segment
        if not core.x.shape[1]:
            return
        if dy_t is None:
            dy_t = zeros
        elif core.return_sequences:
            dy_t = dy_t[:, 0]
        if core.mask is not None:  # h of a masked step goes to no output
            real = core.mask[:, -1 - t if core.options["go_backwards"] else t]
            dy_t = np.where(real[:, None], dy_t, 0)
        take(t, dy_t if dh is None else dy_t + dh)

    options = core.options | {"return_sequences": core.return_sequences, "return_state": core.return_state}
    _, steps = checkpoint.run_forward(
        core.weights, core.x, core.states[0], every=1, mask=core.mask, **options
    )
    steps = replace(steps, watch=watch)
    if isinstance(tape, layers.Tape):  # by way of the layer, which adds its penalties
        tape = copy.copy(tape)
        tape._core = steps
        tape._layer.backward(dy, tape)
    else:
        checkpoint.run_backward(dy, steps)
