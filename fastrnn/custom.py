"""Cells that the kernels don't know: the slower path, in NumPy by `reference`.

They have Python callables as activations; or they are an IndRNN with layer normalization, or an LSTM whose gates see each
other (variant "fgr") with layer normalization or a projection.

`CustomWeights` and `CustomTape` stand for the kernels' Weights and Tape, `forward`, `backward` and `step` for the kernels'
functions of these names, with their arguments and results; `functional` chooses. Each call first goes to the kernels, with
the activations that they have in place of the callables: all checks and their messages are the kernels', and the cost of
it is small beside that of the callables.

The callables see arrays [n, H] or, for gates side by side, [n, 2*H], in the dtype of the weights: at each step the n rows
that are not masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrnn import _core, full_gates, reference
from fastrnn.activations import ActivationLike

__all__ = ["CustomTape", "CustomWeights", "backward", "forward", "step"]

Array = NDArray[Any]
States = Sequence[Array | None] | Array | None

USED = "functional.gates: the tape was already used; look at the gates before backward"

_FUNCTIONS: dict[str, Any] = {
    "simple_rnn": (reference.simple_rnn_forward, reference.simple_rnn_backward),
    "indrnn": (reference.indrnn_forward, reference.indrnn_backward),
    "lstm": (reference.lstm_forward, reference.lstm_backward),
    "gru": (reference.gru_forward, reference.gru_backward),
}


class CustomWeights:
    """Weights of a cell with activations of any kind, and with all else that a cell may have.

    Args:
        core: the kernels' weights, with activations of theirs.
        chosen: the activations of the gates, of the candidate, of an LSTM's c on its way to h.
        bias, peephole, projection: those among the kernels' weights, or None.
        gate_kernel, cell_norm, layer_norm: as `reference` takes them, or None. With a gate_kernel the states are [h, c,
            i, f, o], of which the kernels know two.
    """

    __slots__ = (
        "arrays",
        "bias",
        "cell",
        "core",
        "dtype",
        "functions",
        "gate_states",
        "inputs",
        "name",
        "outputs",
        "settings",
        "units",
    )

    def __init__(
        self,
        core: _core.Weights,
        chosen: tuple[ActivationLike, ...],
        *,
        bias: Array | None,
        peephole: Array | None,
        projection: Array | None,
        gate_kernel: Array | None,
        cell_norm: Array | None,
        layer_norm: Array | None,
    ) -> None:
        self.core, self.bias = core, bias
        self.gate_states = 0 if gate_kernel is None else 3
        known = 2 + sum(w is not None for w in (bias, peephole, projection))
        further = (w for w in (gate_kernel, cell_norm, layer_norm) if w is not None)
        self.arrays = [*core.arrays[:known], *further]
        self.inputs, self.units, self.outputs = core.inputs, core.units, core.outputs
        self.cell, self.name, self.dtype = core.cell, core.name, core.dtype
        recurrent_activation, activation, output_activation = chosen
        name, *words = self.cell.split("_") if self.cell.startswith(("lstm", "gru")) else [self.cell]
        self.functions = _FUNCTIONS[name]
        self.settings: dict[str, Any] = {"activation": activation, "layer_norm": layer_norm}
        if name in ("lstm", "gru"):
            self.settings["recurrent_activation"] = recurrent_activation
        if name == "lstm":
            variant = next((word for word in words if word in ("nig", "nfg", "nog", "cifg")), None)
            if gate_kernel is not None:
                variant = "fgr"
            self.settings |= dict(
                variant=variant,
                peephole=peephole,
                projection=projection,
                gate_kernel=gate_kernel,
                cell_norm=cell_norm,
                output_activation=output_activation,
            )
        if name == "gru":
            self.settings["reset_after"] = not words

    def run(self, x: Array, states: States, **options: Any) -> tuple[Any, Any]:
        """(outputs, tape) of the reference; an array alone is the one state."""
        kernel, recurrent_kernel, *_ = self.arrays
        if states is not None and not isinstance(states, (list, tuple)):
            states = [states]  # type: ignore[list-item]
        return self.functions[0](  # type: ignore[no-any-return]
            x,
            kernel,
            recurrent_kernel,
            self.bias,
            initial_state=states,
            **self.settings,
            **options,
        )


class CustomTape:
    """What `backward` needs of a `forward`."""

    __slots__ = ("core", "saved", "weights")

    def __init__(self, core: _core.Tape, saved: Any, weights: CustomWeights) -> None:
        self.core = core
        self.saved = saved
        self.weights = weights

    @property
    def consumed(self) -> bool:
        """Whether it was used."""
        return self.core.consumed

    @property
    def nbytes(self) -> int:
        """The memory of the kernels' part."""
        return self.core.nbytes

    def gates(self) -> dict[str, Array]:
        """What `functional.gates` tells of it."""
        if self.consumed:
            raise RuntimeError(USED)
        found: dict[str, Array] = self.saved.gates()
        return found


def forward(
    weights: CustomWeights,
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
) -> tuple[Array, tuple[Array, ...], CustomTape | None]:
    """What the kernels' forward does; `out` is written to after the callables have returned."""
    _, _, core = _core.forward(
        weights.core,
        x,
        _known(weights, weights.name, "initial_state", initial_state, np.shape(x)[:1]),
        return_sequences,
        return_state,
        go_backwards,
        training,
        mask,
        zero_output_for_mask,
        dropout_mask,
        recurrent_dropout_mask,
        _known(weights, weights.name, "zoneout_mask", zoneout_mask, np.shape(x)[:2]),
        embedding,
        out,
        threads,
    )
    if embedding is not None:
        x = embedding.take(x, axis=0, mode="clip")  # ids that are no rows are left at masked steps alone
    outputs, saved = weights.run(
        x,
        initial_state,
        return_sequences=return_sequences,
        return_state=return_state,
        go_backwards=go_backwards,
        mask=mask,
        zero_output_for_mask=zero_output_for_mask,
        dropout_mask=dropout_mask,
        recurrent_dropout_mask=recurrent_dropout_mask,
        zoneout_mask=zoneout_mask,
    )
    y, *states = outputs if return_state else (outputs,)
    if out is not None:
        out[...] = y
        y = out
    return y, tuple(states), None if core is None else CustomTape(core, saved, weights)


def backward(
    dy: Array | Sequence[Array | None] | None, tape: CustomTape, threads: int, with_initial_state: bool
) -> tuple[Array, list[Array], list[Array]]:
    """What the kernels' backward does: the tape is used up, also if a callable raises an error."""
    weights, known = tape.weights, dy
    if weights.gate_states and tape.saved is not None and tape.saved.return_state and dy is not None:
        known = _known(weights, f"{weights.name}.backward", "dy", dy, tape.saved.zeros[0].shape[:1], 1)
    _core.backward(known, tape.core, threads, with_initial_state)
    saved, tape.saved = tape.saved, None
    if dy is None and saved.return_state:
        dy = [None] * (1 + len(saved.zeros))
    dx, dweights, dstates = weights.functions[1](dy, saved)
    return dx, dweights, dstates if with_initial_state else []


def step(
    weights: CustomWeights, x_t: Array, states: States, out: Sequence[Array] | None
) -> tuple[Array, list[Array]]:
    """What the kernels' step does; `out` is written to after the callables have returned."""
    where = f"{weights.name}.step"
    known = _known(weights, where, "states", states, np.shape(x_t)[:1])
    _core.step(weights.core, x_t, known)
    (_, *new), _ = weights.run(x_t[:, None], states, return_state=True)
    if out is None:
        return new[0], new
    h, written = _core.step(weights.core, x_t, known, _known(weights, where, "out", out, np.shape(x_t)[:1]))
    written += out[len(written) :]
    for array, value in zip(written, new, strict=True):
        np.copyto(array, value)
    return h, written


def _known(
    weights: CustomWeights, where: str, what: str, given: Any, rows: tuple[int, ...], others: int = 0
) -> Any:
    """Of a list with `others` items and one per state, those that the kernels know; they check them."""
    if not weights.gate_states or given is None:
        return given
    return full_gates.checked_states(weights, where, what, given, rows, others)[: others + 2]  # type: ignore[index]
