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
from typing import Any

import numpy as np

from fastrnn import checkpoint, layers
from fastrnn.functional import Array

__all__ = ["gradient_norms", "hidden_gradients"]

Tape = layers.Tape | checkpoint.Tape


def hidden_gradients(dy: Array | Sequence[Array | None] | None, tape: Tape) -> Array:
    """The gradient of the loss by the hidden state after every step, dL/dh_t.

    It counts all ways that h_t goes: to the output of its step (and to those of masked steps that repeat it), and through
    the later steps. For an LSTM, c_t is a way of its own that is not counted.

    Args:
        dy: What `backward` takes: the gradient of the outputs.
        tape: What a layer's `forward` with `checkpoint`, or `checkpoint.run_forward`, returned. It is not used up.

    Returns:
        [B, T, H] in the order of computation, as the outputs. At a masked step, whose h is that of the step before, what
        comes back through the later steps.

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
    core = _core(tape)
    result = np.empty((*core.x.shape[:2], core.weights.units), core.weights.dtype)

    def take(t: int, dh: Array) -> None:
        result[:, t] = dh

    _go_back(dy, tape, take)
    return result


def gradient_norms(dy: Array | Sequence[Array | None] | None, tape: Tape) -> Array:
    """The Euclidean norm of dL/dh_t for every row and step: the picture of vanishing and exploding gradients.

    (Pascanu et al., "On the difficulty of training recurrent neural networks", 2013, arXiv 1211.5063.)

    Args:
        dy, tape: As `hidden_gradients` takes them.

    Returns:
        [B, T] in the order of computation.

    Raises:
        TypeError, ValueError: As `hidden_gradients`.
    """
    core = _core(tape)
    result = np.empty(core.x.shape[:2], core.weights.dtype)

    def take(t: int, dh: Array) -> None:
        result[:, t] = np.linalg.norm(dh, axis=-1)

    _go_back(dy, tape, take)
    return result


def _core(tape: Any) -> checkpoint.Tape:
    core = tape._core if isinstance(tape, layers.Tape) else tape
    if not isinstance(core, checkpoint.Tape):
        kind = "one without checkpoints" if core is not tape else type(tape).__name__
        raise TypeError(
            f"inspection: tape must come from a forward pass with checkpoints, got {kind}; "
            "call y, tape = layer.forward(x, checkpoint=True)"
        )
    return core


def _go_back(dy: Any, tape: Tape, take: Callable[[int, Array], None]) -> None:
    """Calls take(t, dL/dh_t) for every step, the last one first."""
    core = _core(tape)
    zeros = np.zeros((len(core.x), core.weights.units), core.weights.dtype)

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
