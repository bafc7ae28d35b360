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
        activations: as the kernels take them.
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
    name, units, (rows, steps) = weights.name, weights.units, (*np.shape(x), 0, 0)[:2]
    if recurrent_dropout_mask is not None:
        shape = (rows, 4, units)
        _check(name, "recurrent_dropout_mask", recurrent_dropout_mask, weights.dtype, shape)
        of_gates = np.ones((rows, 4, 3 * units), weights.dtype)
        recurrent_dropout_mask = np.concatenate([recurrent_dropout_mask, of_gates], axis=2)
    y, states, core = _core.forward(
        weights.core,
        x,
        _joined(weights, checked_states(weights, name, "initial_state", initial_state, (rows,))),
        return_sequences,
        return_state,
        go_backwards,
        training,
        mask,
        zero_output_for_mask,
        dropout_mask,
        recurrent_dropout_mask,
        _joined(weights, checked_states(weights, name, "zoneout_mask", zoneout_mask, (rows, steps))),
        embedding,
        out,
        threads,
    )
    if not return_sequences:  # the kernels' last output is all of the first state
        y = np.ascontiguousarray(y[:, :units])
    tape = None if core is None else FullGateTape(core, weights, return_sequences, return_state)
    return y, tuple(_split(*states)) if return_state else (), tape


def backward(
    dy: Array | Sequence[Array | None] | None, tape: FullGateTape, threads: int
) -> tuple[Array, list[Array], list[Array]]:
    """What the kernels' backward does."""
    weights = tape.weights
    if dy is not None and not tape.consumed:
        where, rows = f"{weights.name}.backward", tape.core.saved.shape[:1]
        dstates: Any = None
        if tape.returns_state:
            dy, *dstates = checked_states(weights, where, "dy", dy, rows, 1)  # type: ignore[misc]
        if dy is not None and not tape.returns_sequences:
            _check(where, "dy", dy, weights.dtype, (*rows, weights.units))
            dy = _joined(weights, [dy, *[None] * 4])[0]  # type: ignore[index]
        if tape.returns_state:
            dy = [dy, *_joined(weights, dstates)]  # type: ignore[list-item, misc]
    dx, (dkernel, drecurrent, *others), (dhidden, dc) = _core.backward(dy, tape.core, threads)
    drecurrent_kernel, dgate_kernel = split_kernel(drecurrent)
    return dx, [dkernel, drecurrent_kernel, *others, dgate_kernel], _split(dhidden, dc)


def step(
    weights: FullGateWeights, x_t: Array, states: States, out: Sequence[Array] | None
) -> tuple[Array, list[Array]]:
    """What the kernels' step does."""
    where, rows = f"{weights.name}.step", np.shape(x_t)[:1]
    known = _joined(weights, checked_states(weights, where, "states", states, rows))
    written = checked_states(weights, where, "out", out, rows)
    _, (hidden, c) = _core.step(weights.core, x_t, known, None)
    new = _split(hidden, c)
    for array, value in zip(written or (), new, strict=written is not None):
        np.copyto(array, value)
    return (written or new)[0], written or new


def _split(hidden: Array, c: Array) -> list[Array]:
    """[h, c, i, f, o]."""
    h, i, f, o = (np.ascontiguousarray(part) for part in np.split(hidden, 4, axis=-1))
    return [h, c, i, f, o]


def _joined(weights: FullGateWeights, states: list[Any] | None) -> list[Array | None] | None:
    """[[h i f o], c], each None for zeros, of the five."""
    if states is None:
        return None
    h, c, *gates = states
    parts = [h, *gates]
    shape = next((part.shape for part in parts if part is not None), None)
    if shape is None:
        return [None, c]
    return [np.concatenate([np.zeros(shape, weights.dtype) if p is None else p for p in parts], axis=-1), c]


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
        raise error(
            f"{where}: {what} must be a list of {count} arrays, the states are {', '.join(STATES)}; got {got}"
        )
    for index, array in enumerate(given[others:], others):
        if array is not None or what == "out":
            _check(where, f"{what}[{index}]", array, weights.dtype, (*rows, weights.units))
    return list(given)


def _check(where: str, what: str, array: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != shape:
        got = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise ValueError(f"{where}: {what} must be an array of {dtype} with shape {shape}, got {got}")
