"""Long sequences: the gradient through T steps in memory that grows as sqrt(T).

A tape of `functional` holds what every step computed. Here the forward pass keeps the states at the beginnings of
segments of k steps, no more, and the backward pass, going from the last segment to the first, computes each one's tape
again: T / k states and k steps of a tape instead of T, for one more forward pass. k near sqrt(T) takes least memory.
Measured on LSTMs of 32 to 128 units, a training step takes 1.2 to 1.5 times as long; one of 256 units on x [8, 100000, 16]
takes 130 MB, of which x and its gradient are 100.
(Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016, arXiv 1604.06174; Gruslys et al.,
"Memory-Efficient Backpropagation Through Time", 2016, arXiv 1606.03401.)

The gradients are those of the whole sequence: nothing is truncated. `examples/truncated_bptt.py` truncates.

Legend: B batch, T time steps, I inputs, H units.
"""

from __future__ import annotations

import math
import operator
import reprlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from fastrnn import functional
from fastrnn.functional import Array, Gradients, Outputs, States, Weights
from fastrnn.zoneout import ZoneoutMask

__all__ = ["Segment", "Tape", "gates", "run_backward", "run_forward"]


class Segment(NamedTuple):
    """One segment of a backward pass, for those who watch it: see `Tape.watch`."""

    begin: int
    """Its first step, in the order of computation."""
    dy: Array | None
    """[B, k, H], or with return_sequences=False [B, H]: the gradient of its outputs; None: zeros. What belongs to outputs
    that later masked steps repeat is in it."""
    dstates: Sequence[Array | None]
    """[B, H] each: the gradients of the states after its last step; None: zeros."""


@dataclass(frozen=True)
class Tape:
    """What `run_backward` needs of one `run_forward`; it may be used again.

    It refers to x, the weights, the masks and the initial states of its forward pass without copying them: don't change
    those before backward.
    """

    weights: Weights
    x: Array
    every: int
    """How many steps a segment has."""
    mask: Array | None
    return_sequences: bool
    return_state: bool
    options: dict[str, Any]
    """All else that `functional.run_forward` takes, but the initial states."""
    states: list[Any]
    """Per segment the states that it begins with (of the first, those that were given), then the final ones."""
    watch: Callable[[Segment], None] | None = None
    """Called by `run_backward` with every segment, the last one first."""

    @property
    def nbytes(self) -> int:
        """The bytes of what was kept beside the caller's arrays."""
        return sum(state.nbytes for states in self.states[1:] for state in states)

    def gates(self) -> dict[str, Array]:
        """What the gates were in all steps; see `functional.gates`."""
        return gates(self)

    def _segments(self) -> list[tuple[int, int, slice]]:
        """Of each segment its first step, the step after its last, and where they are in x."""
        T, k = self.x.shape[1], self.every
        bounds = [(begin, min(begin + k, T)) for begin in range(0, max(T, 1), k)]
        if self.options["go_backwards"]:
            return [(begin, end, slice(T - end, T - begin)) for begin, end in bounds]
        return [(begin, end, slice(begin, end)) for begin, end in bounds]

    def _arguments(self, at: slice) -> dict[str, Any]:
        """What `functional` is to be given for the segment that reads x[:, at], but its states."""
        mask = None if self.mask is None else self.mask[:, at]
        zoneout = self.options.get("zoneout_mask")
        if zoneout is not None:
            zoneout = [None if state is None else state[:, at] for state in zoneout]
        return self.options | {
            "zoneout_mask": zoneout,
            "x": self.x[:, at],
            "mask": mask,
            "return_sequences": self.return_sequences,
            "return_state": True,
        }

    def _segment_tape(self, at: slice, states: Any) -> functional.AnyTape:
        """The tape of all steps of the segment that reads x[:, at]."""
        return functional.run_forward(self.weights, initial_state=states, **self._arguments(at))[1]

    def _waiting(self, at: slice) -> Array | None:
        """Where a segment's outputs repeat the output before its first step, [B, k]; None: nowhere.

        The kernels, which see the segment alone, have zeros there.
        """
        if self.mask is None or self.options["zero_output_for_mask"]:
            return None
        real = self.mask[:, at]
        if self.options["go_backwards"]:
            real = real[:, ::-1]
        waiting: Array = ~np.logical_or.accumulate(real, axis=1)
        return waiting if waiting.any() else None


def run_forward(
    weights: Weights,
    x: Array,
    initial_state: States = None,
    *,
    every: int | bool,
    mask: Array | None = None,
    lengths: ArrayLike | None = None,
    zero_output_for_mask: bool = False,
    return_sequences: bool = False,
    return_state: bool = False,
    go_backwards: bool = False,
    **options: Any,
) -> tuple[Outputs, Tape]:
    """Run a forward pass that keeps the states of every k-th step instead of a tape of all steps.

    Args:
        weights: Prepared weights.
        x: [B, T, I], or with an embedding [B, T].
        initial_state: A list of one [B, H] array or None (zeros) per state; None: zeros.
        every: k, how many steps lie between kept states; True: sqrt(T), rounded up.
        mask, lengths, zero_output_for_mask, return_sequences, return_state, go_backwards, **options: As
            `functional.run_forward` takes them; see `functional.Options`. The masks of zoneout may also be
            `zoneout.ZoneoutMask`s, of which each segment draws its steps.

    Returns:
        `(outputs, tape)`: what `functional.run_forward` returns, and a tape for `run_backward` of this module.

    Raises:
        TypeError, ValueError: `every` is no positive integer; or what `functional.run_forward` would refuse.

    >>> x, kernel, recurrent_kernel = (np.zeros(s, "float32") for s in [(8, 100, 3), (3, 64), (16, 64)])
    >>> weights = functional.Weights("lstm", kernel, recurrent_kernel)
    >>> y, tape = run_forward(weights, x, every=True)
    >>> y.shape, tape.every, len(tape.states)
    ((8, 16), 10, 11)
    >>> run_backward(np.ones_like(y), tape).x.shape
    (8, 100, 3)
    """
    options |= {"zero_output_for_mask": zero_output_for_mask, "go_backwards": go_backwards}
    if lengths is not None:
        mask = functional.mask_of(weights.name, lengths, mask, x)
    if options.get("out") is not None:
        raise ValueError(f"{weights.name}: out must be None with checkpoints; copy the outputs into it")
    axes = 3 if options.get("embedding") is None else 2
    fits = isinstance(x, np.ndarray) and x.ndim == axes
    masks = [mask, *(options.get("zoneout_mask") or ())]
    if not fits or not all(
        m is None or (isinstance(m, (np.ndarray, ZoneoutMask)) and m.shape[:2] == x.shape[:2]) for m in masks
    ):
        if any(isinstance(m, ZoneoutMask) for m in masks):
            options["zoneout_mask"] = [m[:, :] if isinstance(m, ZoneoutMask) else m for m in masks[1:]]
        functional.run(
            weights, x, initial_state=initial_state, mask=mask, **options
        )  # refuses what segments would hide
    every = _steps(weights.name, every, x.shape[1])
    tape = Tape(weights, x, every, mask, return_sequences, return_state, options, [])
    (B, T), H = x.shape[:2], weights.outputs
    y = np.zeros((B, T if return_sequences else 1, H), weights.dtype)
    states: Any = initial_state
    for begin, end, at in tape._segments():
        tape.states.append(states)
        new, *states = functional.run(weights, initial_state=states, **tape._arguments(at))
        waiting = tape._waiting(at)
        if not return_sequences:
            if waiting is None:
                y[:, 0] = new
            else:
                np.copyto(y[:, 0], new, where=~waiting[:, -1:])
            continue
        y[:, begin:end] = new
        if waiting is not None and begin:
            np.copyto(y[:, begin:end], y[:, begin - 1 : begin], where=waiting[:, :, None])
    tape.states.append(states)
    if not return_sequences:
        y = y[:, 0]
    return ((y, *states) if return_state else y), tape


def run_backward(dy: Array | Sequence[Array | None] | None, tape: Tape, *, threads: int = 0) -> Gradients:
    """Turn the gradient of a forward pass's outputs into those of its inputs.

    Args:
        dy: The gradient of y, of its shape; with `return_state` a list [dy, dh] or for LSTM [dy, dh, dc]. None, alone or
            as an item: zeros.
        tape: What `run_forward` of this module returned.
        threads: The most threads that this call may use; 0: get_num_threads().

    Returns:
        `Gradients`, those of `functional.run_backward`: of x and the initial states the same bits, but where outputs of
        masked steps repeat one of an earlier segment; there, and of the weights, another order of summation.

    Raises:
        TypeError: A gradient is not of the dtype of the forward pass.
        ValueError: A gradient's shape is not that of its output.
    """
    dx = np.empty((*tape.x.shape[:2], tape.weights.inputs), tape.weights.dtype)
    dweights: list[Array] = []
    dstates: list[Array] = []
    for at, gradients in _backward(dy, tape, threads):
        dx[:, at] = gradients.x
        for total, part in zip(dweights, gradients.weights, strict=False):
            total += part
        dweights = dweights or gradients.weights
        dstates = gradients.initial_state
    return Gradients(dx, dweights, dstates)


def gates(tape: Tape) -> dict[str, Array]:
    """What the gates were in all steps of a forward pass: name -> [B, T, H], as `functional.gates` tells it of its tapes."""
    placed: dict[str, Array] = {}
    for (begin, end, at), states in zip(tape._segments(), tape.states, strict=False):
        for name, values in functional.gates(tape._segment_tape(at, states)).items():
            if not begin:
                B, _, H = values.shape
                placed[name] = np.empty((B, tape.x.shape[1], H), values.dtype)
            placed[name][:, begin:end] = values
    return placed


def _backward(dy: Any, tape: Tape, threads: int) -> Iterator[tuple[slice, Gradients]]:
    """The segments' gradients, from the last segment to the first, each with where it is in x."""

    segments, states = tape._segments(), tape.states
    if not tape.return_state:
        dy = [dy, *(None for _ in states[-1])]
    elif dy is None:
        dy = [None, *(None for _ in states[-1])]
    elif not isinstance(dy, (list, tuple)) or len(dy) != 1 + len(states[-1]):
        functional.run_backward(dy, tape._segment_tape(segments[-1][2], states[-2]))  # refuses
    dy, *dstates = dy
    shape = (*tape.x.shape[:2], tape.weights.outputs)
    if tape.return_sequences and isinstance(dy, np.ndarray) and dy.shape != shape:
        raise ValueError(
            f"{tape.weights.name}.backward: dy must have shape {shape} (that of what it is the gradient of), got {dy.shape}"
        )
    carried = None if tape.return_sequences else dy  # the gradient of the last output of the segment at hand
    for (begin, end, at), initial in zip(reversed(segments), reversed(states[:-1]), strict=True):
        dy_k = carried
        if tape.return_sequences:
            dy_k = dy[:, begin:end] if isinstance(dy, np.ndarray) else dy
            if carried is not None:
                dy_k = dy_k.copy()
                dy_k[:, -1] += carried
        if tape.watch is not None:
            tape.watch(Segment(begin, dy_k, dstates))
        segment = tape._segment_tape(at, initial)
        gradients = functional.run_backward([dy_k, *dstates], segment, threads=threads)
        yield at, gradients
        dstates = gradients.initial_state
        carried = None if dy_k is None else _repeated(dy_k, tape._waiting(at))


def _repeated(dy: Array, waiting: Array | None) -> Array | None:
    """The gradient [B, H] of the output before a segment, by way of the outputs that repeat it; None: zeros."""
    if waiting is None:
        return None
    if dy.ndim == 2:
        return np.where(waiting[:, -1:], dy, 0)
    total: Array = dy.sum(axis=1, where=waiting[:, :, None])
    return total


def _steps(where: str, every: Any, T: int) -> int:
    """How many steps a segment has."""
    if isinstance(every, np.bool_):
        every = bool(every)
    if every is True:
        return math.isqrt(max(T - 1, 0)) + 1
    what = f"{where}: the steps between checkpoints must be a positive integer, or True for about sqrt(T)"
    try:
        steps = 0 if every is False else operator.index(every)
    except TypeError:
        raise TypeError(f"{what}, got {reprlib.repr(every)}; pass an int") from None
    if steps < 1:
        raise ValueError(f"{what}, got {every!r}; pass 1 or more")
    return steps
