"""LSTMs whose gates see the gates of the step before (the variant "fgr"), by the kernels.

The kernels' cell `lstm_fgr` has two states: h and the gates i, f, o side by side in one array, which one recurrent kernel
[4*H, 4*H] multiplies, and c. Here the five states [h, c, i, f, o] become these two and the two kernels become one, and back.

`FullGateWeights` and `FullGateTape` stand for the kernels' Weights and Tape, `forward`, `backward` and `step` for the
kernels' functions of these names, with their arguments and results; `functional` chooses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrnn import _core

__all__ = ["FullGateTape", "FullGateWeights", "backward", "checked_states", "forward", "step"]

Array = NDArray[Any]
States = Sequence[Array | None] | Array | None

STATES = ("h", "c", "i", "f", "o")


class FullGateWeights:
    """Weights of an LSTM with a kernel of the gates.

    Args:
        known: the kernels' weights of that LSTM without it; refers to all other arrays.
        gate_kernel: G [3*H, 3*H], rows and columns in the order i, f, o. Copied, as recurrent_kernel is.
        bias, peephole: as in `known`.
    """

    __slots__ = ("arrays", "cell", "core", "dtype", "inputs", "name", "outputs", "units")

    def __init__(
        self, known: _core.Weights, gate_kernel: Array, *, bias: Array | None, peephole: Array | None
    ) -> None:
        self.inputs, self.units, self.outputs = known.inputs, known.units, known.outputs
        self.name, self.dtype = known.name, known.dtype
        self.arrays = [*known.arrays, gate_kernel]
        self.cell = known.cell.replace("lstm", "lstm_fgr")
        kernel, recurrent_kernel, *_ = known.arrays
        self.core = _core.Weights(
            self.cell,
            kernel,
            joined_kernel(recurrent_kernel, gate_kernel),
            bias,
            peephole=peephole,
            activations=known.activations,
            name=known.name,
        )


def joined_kernel(recurrent_kernel: Array, gate_kernel: Array) -> Array:
    """U [H, 4*H] with columns i f c o and G [3*H, 3*H], in one kernel [4*H, 4*H] of which c sees no gates."""
    to_i_and_f, to_o = np.split(gate_kernel, [2 * len(recurrent_kernel)], axis=1)
    of_gates = np.concatenate([to_i_and_f, np.zeros_like(to_o), to_o], axis=1)
    return np.concatenate([recurrent_kernel, of_gates])


def split_kernel(joined: Array) -> tuple[Array, Array]:
    """The two kernels, or their gradients, of the joined one."""
    units = len(joined) // 4
    to_i_and_f, _, to_o = np.split(joined[units:], [2 * units, 3 * units], axis=1)
    return joined[:units], np.concatenate([to_i_and_f, to_o], axis=1)


class FullGateTape:
    """What `backward` needs of a `forward`."""

    __slots__ = ("core", "returns_sequences", "returns_state", "weights")

    def __init__(
        self, core: _core.Tape, weights: FullGateWeights, returns_sequences: bool, returns_state: bool
    ) -> None:
        self.core, self.weights = core, weights
        self.returns_sequences, self.returns_state = returns_sequences, returns_state

    @property
    def consumed(self) -> bool:
        """Whether it was used."""
        return self.core.consumed

    @property
    def nbytes(self) -> int:
        """Its memory."""
        return self.core.nbytes


def forward(
    weights: FullGateWeights,
    x: Array,
    initial_state: States,
    return_sequences: bool,
    return_state: bool,
    go_backwards: bool,
    training: bool,
    mask: Array | None,
    zero_output_for_mask: bool,
    dropout_mask: Array | None,
    recurrent_dropout_mask: Array | None,
    zoneout_mask: Sequence[Array | None] | None,
    embedding: Array | None,
    out: Array | None,
    threads: int,
) -> tuple[Array, tuple[Array, ...], FullGateTape | None]:
    """What the kernels' forward does."""
    name, units = weights.name, weights.units
    if np.ndim(x) == (3 if embedding is None else 2):  # else the kernels refuse x before all else
        rows, steps = x.shape[:2]
        for given, what in (
            (weights.arrays[1], "recurrent_kernel"),
            (weights.arrays[-1], "gate_kernel"),
            (recurrent_dropout_mask, "recurrent_dropout_mask"),
        ):
            if isinstance(given, np.ndarray) and isinstance(out, np.ndarray) and _core.overlap(given, out):
                raise ValueError(
                    f"{name}: out must not reach into the memory of {what}, which is read; "
                    "give the outputs an array of their own"
                )
        initial_state = _joined(
            weights, checked_states(weights, name, "initial_state", initial_state, (rows,))
        )
        zoneout_mask = _joined(
            weights, checked_states(weights, name, "zoneout_mask", zoneout_mask, (rows, steps))
        )
        if recurrent_dropout_mask is not None:
            what = "recurrent_dropout_mask"
            _check(
                weights, name, what, recurrent_dropout_mask, (rows, 4, units), "batch, gates, what is masked"
            )
            of_gates = np.ones((rows, 4, 3 * units), weights.dtype)
            recurrent_dropout_mask = np.concatenate([recurrent_dropout_mask, of_gates], axis=2)
    y, states, core = _core.forward(
        weights.core,
        x,
        initial_state,
        return_sequences,
        return_state,
        go_backwards,
        training,
        mask,
        zero_output_for_mask,
        dropout_mask,
        recurrent_dropout_mask,
        zoneout_mask,
        embedding,
        out,
        threads,
    )
    if not return_sequences:  # the kernels' last output is all of the first state
        y = np.ascontiguousarray(y[:, :units])
    tape = None if core is None else FullGateTape(core, weights, return_sequences, return_state)
    return y, tuple(_split(*states)) if return_state else (), tape


def backward(
    dy: Array | Sequence[Array | None] | None, tape: FullGateTape, threads: int, with_initial_state: bool
) -> tuple[Array, list[Array], list[Array]]:
    """What the kernels' backward does."""
    weights = tape.weights
    if dy is not None and not tape.consumed:
        where, rows = f"{weights.name}.backward", tape.core.saved.shape[:1]
        dstates: Any = None
        if tape.returns_state:
            dy, *dstates = checked_states(weights, where, "dy", dy, rows, 1)  # type: ignore[misc]
        if dy is not None and not tape.returns_sequences:
            _check(weights, where, "dy", dy, (*rows, weights.units), "batch, units")
            dy = _joined(weights, [dy, *[None] * 4])[0]  # type: ignore[index]
        if tape.returns_state:
            dy = [dy, *_joined(weights, dstates)]  # type: ignore[list-item, misc]
    dx, (dkernel, drecurrent, *others), states = _core.backward(dy, tape.core, threads, with_initial_state)
    drecurrent_kernel, dgate_kernel = split_kernel(drecurrent)
    dstates = _split(*states) if with_initial_state else []
    return dx, [dkernel, drecurrent_kernel, *others, dgate_kernel], dstates


def step(
    weights: FullGateWeights, x_t: Array, states: States, out: Sequence[Array] | None
) -> tuple[Array, list[Array]]:
    """What the kernels' step does."""
    where = f"{weights.name}.step"
    known: Any = states
    if np.ndim(x_t) == 2:  # else the kernels refuse x_t before all else
        rows = x_t.shape[:1]
        known = _joined(weights, checked_states(weights, where, "states", states, rows))
        checked_states(weights, where, "out", out, rows)
    _, (hidden, c) = _core.step(weights.core, x_t, known, None)
    new = _split(hidden, c)
    if out is None:
        return new[0], new
    for array, value in zip(out, new, strict=True):
        np.copyto(array, value)
    return out[0], list(out)


def _split(hidden: Array, c: Array) -> list[Array]:
    """[h, c, i, f, o]."""
    h, i, f, o = (np.ascontiguousarray(part) for part in np.split(hidden, 4, axis=-1))
    return [h, c, i, f, o]


def _joined(weights: FullGateWeights, states: list[Any] | None) -> list[Array | None] | None:
    """[[h i f o], c], each None for zeros, of the five. What is the same in all rows and steps is not copied for them."""
    if states is None:
        return None
    h, c, *gates = states
    parts = [h, *gates]
    shape = next((part.shape for part in parts if part is not None), None)
    if shape is None:
        return [None, c]
    same = all(part is None or not any(part.strides[:-1]) for part in parts) and 0 not in shape
    rows = (1,) * (len(shape) - 1) if same else shape[:-1]
    joined = np.concatenate(
        [
            np.zeros((*rows, weights.units), weights.dtype) if part is None else part[tuple(map(slice, rows))]
            for part in parts
        ],
        axis=-1,
    )
    return [np.broadcast_to(joined, (*shape[:-1], joined.shape[-1])), c]


def checked_states(
    weights: Any, where: str, what: str, given: Any, rows: tuple[int, ...], others: int = 0
) -> list[Any] | None:
    """A list with `others` items and an array [*rows, H], or None, for each of the five states; None stays None."""
    if given is None:
        return None
    count = others + len(STATES)
    if not isinstance(given, (list, tuple)) or len(given) != count:
        error = ValueError if isinstance(given, (list, tuple)) else TypeError
        got = len(given) if error is ValueError else type(given).__name__
        zeros = "" if what == "out" else ", None for zeros"
        raise error(
            f"{where}: {what} must be a list of {count} arrays{zeros}, the states are {', '.join(STATES)}; got {got}"
        )
    written = what == "out"
    for index, array in enumerate(given[others:], others):
        if array is None and not written:
            continue
        shape = (*rows, weights.outputs if index == others else weights.units)
        meaning = "batch, time, units" if len(rows) == 2 else "batch, units"
        _check(weights, where, f"{what}[{index}]", array, shape, meaning, written)
        for other in range(index if written else 0):
            if _core.overlap(given[other], array):
                raise ValueError(
                    f"{where}: out[{other}] and out[{index}] must not share memory; "
                    "give each state an array of its own"
                )
    return list(given)


def _check(
    weights: Any,
    where: str,
    what: str,
    array: Any,
    shape: tuple[int, ...],
    meaning: str,
    written: bool = False,
) -> None:
    _core.check_array(array, weights.dtype, shape, where, what, meaning, written)
