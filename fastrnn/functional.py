"""The recurrent layers as functions of their weights: the one road into the kernels.

Legend: B batch, T time steps, I inputs (features), H units, G gates. Gates lie side by side in the columns of a kernel, in
Keras' order: LSTM i f c o, GRU z r h.

For every cell there are three functions. `lstm` runs inference. `lstm_forward` also returns a tape, which `lstm_backward`
turns into gradients; a tape serves once. It refers to x, the weights, the masks and the initial states of its forward pass
without copying them: don't change those before backward. What all functions take beside their weights is in `Options`.

An activation is what `activations.get` takes. A cell with a pair of Python callables (function, derivative) is computed in
NumPy: all options and results are the same, the speed is not. So are `indrnn` with layer normalization, and the LSTM variant
"fgr" with layer normalization or a projection.

All arrays of a call have one dtype, float32 or float64 in native byte order; nothing is converted. Arrays may be read-only
and have any strides; x, dy and states whose last axis is not contiguous are copied for the call.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastrnn import _core, activations, arguments, custom, full_gates, runtime
from fastrnn._core import Tape as Tape
from fastrnn._core import Weights as Weights
from fastrnn.activations import ActivationLike
from fastrnn.custom import CustomTape, CustomWeights
from fastrnn.full_gates import FullGateTape, FullGateWeights
from fastrnn.zero_outputs import ZeroOutputTape, rows_with_output, zeroed

if TYPE_CHECKING:
    from typing_extensions import Unpack

Array = NDArray[Any]
States = Sequence[Array | None] | Array | None
Outputs = Array | tuple[Array, ...]
AnyWeights = Weights | CustomWeights | FullGateWeights
AnyTape = Tape | CustomTape | FullGateTape | ZeroOutputTape

_PASSES: dict[type, Any] = {  # which module runs them; the kernels all others
    CustomWeights: custom,
    CustomTape: custom,
    FullGateWeights: full_gates,
    FullGateTape: full_gates,
}


class TellsGates(Protocol):
    """What the tapes of layers, of `checkpoint` and of cells with callables have in common."""

    def gates(self) -> dict[str, Array]:
        """What `gates` returns of it."""


class Options(TypedDict, total=False):
    """What every function takes beside x and the weights, as keywords."""

    initial_state: States
    """A list of one [B, H] array or None (zeros) per state; None: zeros. One array alone for a cell with one state."""
    mask: Array | None
    """[B, T] bool: True where there is a step; None: everywhere. Elsewhere x is not read, the states stay, and the output
    repeats the one before (zeros before the first step), as in Keras. Masked steps are left out, which saves their time."""
    lengths: ArrayLike | None
    """[B] integers, at most T: short for the mask that is True in the first so many steps of each row."""
    zero_output_for_mask: bool
    """The outputs of masked steps are zeros instead, the last output too: that of a row whose last step, in the order of
    computation, is masked. The states stay."""
    dropout_mask: Array | None
    """[B, I], or [B, G, I] with one for each gate: factors of x (0, or 1 / (1 - rate)), the same at every step."""
    recurrent_dropout_mask: Array | None
    """[B, G, H]: factors of what each gate's recurrent kernel multiplies, the same at every step."""
    zoneout_mask: Sequence[Array | None] | None
    """A list of one [B, T, H] array or None per state: 1 where the state stays as it was, 0 where it is renewed, in between
    that mixture (Krueger et al., 2016). An array of one row, broadcast with np.broadcast_to, is not copied."""
    embedding: Array | None
    """[V, I]: x is then an array [B, T] of integers, and the input of a step is the row of that number. The gradient of x,
    [B, T, I], is that of those rows; see `embedding_gradient`."""
    return_sequences: bool
    """Return h of every step instead of the last."""
    return_state: bool
    """Also return the final states."""
    go_backwards: bool
    """Read x and the mask from the last step to the first; outputs stay in the order in which they are computed."""
    out: Array | None
    """[B, T, H], with the units of a step next to each other: what the outputs are written to with return_sequences; y is
    then this array. It may be a part of a larger one, and with time first if it is transposed."""
    threads: int
    """The most threads that this call may use; 0: get_num_threads()."""


class Gradients(NamedTuple):
    """The gradients of one forward pass, each with the shape and dtype of what it is the gradient of."""

    x: Array
    """[B, T, I]"""
    weights: list[Array]
    """kernel, recurrent kernel, then bias, peephole, projection, gate_kernel, cell_norm and layer_norm if
    there are any"""
    initial_state: list[Array]
    """[B, H] for every state, also where none was given; none at all if `run_backward` was told so"""


# ---- On weights that are prepared once and used often: for layers and bridges


class _Run(Protocol):
    def __call__(self, weights: AnyWeights, x: Array, **options: Unpack[Options]) -> Outputs: ...


class _RunForward(Protocol):
    def __call__(
        self, weights: AnyWeights, x: Array, **options: Unpack[Options]
    ) -> tuple[Outputs, AnyTape]: ...


def _pass(name: str, what: str, keep_tape: bool) -> Any:
    """The function `name`; one that handed its options on to another would take short calls a tenth longer."""

    def run(
        weights: AnyWeights,
        x: Array,
        *,
        initial_state: States = None,
        mask: Array | None = None,
        lengths: ArrayLike | None = None,
        zero_output_for_mask: bool = False,
        dropout_mask: Array | None = None,
        recurrent_dropout_mask: Array | None = None,
        zoneout_mask: Sequence[Array | None] | None = None,
        embedding: Array | None = None,
        return_sequences: bool = False,
        return_state: bool = False,
        go_backwards: bool = False,
        out: Array | None = None,
        threads: int = 0,
    ) -> Any:
        if lengths is not None:
            mask = mask_of(weights.name, lengths, mask, x)
        if threads.__class__ is not int or not 0 <= threads <= runtime.MOST_THREADS:
            threads = _threads(getattr(weights, "name", "functional.run"), threads)
        run_cell: Any = _PASSES.get(weights.__class__, _core).forward
        y, states, tape = run_cell(
            weights,
            x,
            initial_state,
            return_sequences,
            return_state,
            go_backwards,
            keep_tape,
            mask,
            zero_output_for_mask,
            dropout_mask,
            recurrent_dropout_mask,
            zoneout_mask,
            embedding,
            out,
            threads or runtime.limit.threads,
        )
        if zero_output_for_mask and not return_sequences:
            rows = rows_with_output(mask, go_backwards)
            if rows is not None:
                y, tape = zeroed(y, rows), None if tape is None else ZeroOutputTape(tape, rows, return_state)
        outputs = (y, *states) if return_state else y
        return (outputs, tape) if keep_tape else outputs

    run.__name__ = run.__qualname__ = name
    run.__annotations__["return"] = "tuple[Outputs, AnyTape]" if keep_tape else "Outputs"
    run.__doc__ = f"""Run {what}; see `Options` for the arguments."""
    return run


run: _Run = _pass("run", "inference with prepared weights", False)
run_forward: _RunForward = _pass("run_forward", "a forward pass with prepared weights and keep a tape", True)


def restore_tape(
    weights: Weights,
    saved: Array,
    x: Array,
    initial_state: States = None,
    *,
    mask: Array | None = None,
    zero_output_for_mask: bool = False,
    dropout_mask: Array | None = None,
    recurrent_dropout_mask: Array | None = None,
    zoneout_mask: Sequence[Array | None] | None = None,
    embedding: Array | None = None,
    return_sequences: bool = False,
    return_state: bool = False,
    go_backwards: bool = False,
) -> Tape | ZeroOutputTape:
    """Make the tape of a forward pass again from its array `tape.saved`, and from what the pass was given.

    For frameworks that keep arrays alone between forward and backward.

    Args:
        weights: Of the same values, cell and activations.
        saved: `saved` of the tape that `run_forward` returned, [B, T, weights.tape_slots, H] (with zoneout_mask one
            slot more for each state).
        x, initial_state: What `run_forward` was given; so are the other arguments, see `Options`.

    Raises:
        TypeError: An array is not of the weights' dtype.
        ValueError: A shape does not fit.
    """
    if not isinstance(weights, Weights):
        raise TypeError(
            "functional.restore_tape: weights must be `Weights`, of a cell that the kernels compute and whose states are "
            f"at most h and c, got {type(weights).__name__}"
        )
    tape = _core.restore_tape(
        weights,
        saved,
        x,
        initial_state,
        mask=mask,
        zero_output_for_mask=zero_output_for_mask,
        dropout_mask=dropout_mask,
        recurrent_dropout_mask=recurrent_dropout_mask,
        zoneout_mask=zoneout_mask,
        embedding=embedding,
        return_sequences=return_sequences,
        return_state=return_state,
        go_backwards=go_backwards,
    )
    zeroes = zero_output_for_mask and not return_sequences
    rows = rows_with_output(mask, go_backwards) if zeroes else None
    return tape if rows is None else ZeroOutputTape(tape, rows, return_state)


def run_backward(
    dy: Array | Sequence[Array | None] | None,
    tape: AnyTape,
    *,
    with_initial_state: bool = True,
    threads: int = 0,
) -> Gradients:
    """Turn the gradient of a forward pass's outputs into those of its inputs; see `lstm_backward`.

    Without `with_initial_state` the gradients of the initial states are left out, an empty list: a pass of one step
    takes a tenth to a half less time.
    """
    if tape.__class__ is ZeroOutputTape:
        dy, tape = tape.gradients(dy), tape.core
    run_cell: Any = _PASSES.get(tape.__class__, _core).backward
    if threads.__class__ is not int or not 0 <= threads <= runtime.MOST_THREADS:
        threads = _threads(f"{getattr(tape.weights, 'name', 'functional')}.backward", threads)
    return Gradients(*run_cell(dy, tape, threads or runtime.limit.threads, with_initial_state))


def _threads(where: str, threads: Any) -> int:
    """`threads` as an int that the kernels take, after a check of it."""
    if isinstance(threads, bool) or not isinstance(threads, (int, np.integer)):
        raise TypeError(
            f"{where}: threads must be an integer, got {reprlib.repr(threads)}; 0 means get_num_threads()"
        )
    if threads < 0:
        raise ValueError(f"{where}: threads must be at least 1, or 0 for get_num_threads(), got {threads}")
    return min(int(threads), runtime.MOST_THREADS)


def run_step(
    weights: AnyWeights, x_t: Array, states: States = None, out: Sequence[Array] | None = None
) -> tuple[Array, list[Array]]:
    """Run one time step: x_t [B, I], states as for `initial_state`; returns h [B, H] and the new states.

    `out`: a list of one contiguous array [B, H] per state, which the new states are written to; they may be
    those in `states`. h is then out[0] itself.
    """
    step: Any = _PASSES.get(weights.__class__, _core).step
    h_and_states: tuple[Array, list[Array]] = step(weights, x_t, states, out)
    return h_and_states


def embedding_gradient(ids: Array, dx: Array, rows: int, mask: Array | None = None) -> Array:
    """The gradient of an embedding [rows, I] whose rows `ids` [B, T] were the inputs, from the gradient dx [B, T, I] of x.

    `ids` and `dx` themselves are that gradient in sparse form: row ids[b, t] gets dx[b, t] added.

    Args:
        ids: [B, T] integers, as in the forward pass.
        dx: [B, T, I].
        rows: V, how many the embedding has.
        mask: [B, T] bool, as in the forward pass: ids at masked steps may be anything; None: all are real.

    Returns:
        [rows, I], of the dtype of dx.

    Raises:
        TypeError: The ids are no integers, or the mask is not of bool.
        ValueError: A shape does not fit, or an id at a real step is no row.

    >>> embedding_gradient(np.array([[0, 2, 2]]), np.ones((1, 3, 4)), 3)[:, 0]
    array([1., 0., 2.])
    >>> embedding_gradient(np.array([[0, 2, -1]]), np.ones((1, 3, 4)), 3, np.array([[True, True, False]]))[:, 0]
    array([1., 0., 1.])
    """
    where = "functional.embedding_gradient"
    ids = arguments.ids(where, "ids", ids)
    if dx.shape[:-1] != ids.shape:
        raise ValueError(
            f"{where}: dx must have shape {(*ids.shape, 'I')} to go with the ids, got {dx.shape}"
        )
    if mask is not None:
        if mask.dtype != bool:
            raise TypeError(f"{where}: mask must be an array of bool, got {mask.dtype}; True is a real step")
        if mask.shape != ids.shape:
            raise ValueError(f"{where}: mask must have shape {ids.shape}, that of the ids, got {mask.shape}")
        ids, dx = ids[mask], dx[mask]
    require_rows(where, "ids", ids, rows)
    total = np.zeros((rows, dx.shape[-1]), dx.dtype)
    np.add.at(total, ids.ravel(), dx.reshape(-1, dx.shape[-1]))
    return total


def require_rows(where: str, what: str, ids: Array, rows: int) -> None:
    """Refuses ids that are no rows of an embedding with so many.

    Raises:
        ValueError: An id is negative or too large.
    """
    if ids.size and (ids.min() < 0 or ids.max() >= rows):
        wrong = ids[(ids < 0) | (ids >= rows)][0]
        raise ValueError(
            f"{where}: {what} must have ids from 0 to {rows - 1}, the rows of the embedding, got {wrong}"
        )


def gates(tape: AnyTape | TellsGates) -> dict[str, Array]:
    """What the gates were in all steps of a forward pass: name -> [B, T, H], in the order in which they were computed.

    LSTM: i f g o, of these what the variant has, and c, the state after each step. GRU: z r n. SimpleRNN and IndRNN: none.
    At masked steps the gates are 0, and c is what it was.

    Args:
        tape: What a forward pass returned, not used up yet: one of this module, of `checkpoint` or of a layer. That of an
            RNN with several cells has the names "0_i", "1_i" ..., of `Bidirectional` "forward_i" and "backward_i", both
            in the order of x.

    Raises:
        RuntimeError: The tape was used.
        TypeError: `tape` is no tape, or one of cells of one's own, which don't tell their gates.

    >>> x, kernel, recurrent_kernel = (np.zeros(s, "float32") for s in [(8, 5, 3), (3, 64), (16, 64)])
    >>> _, tape = lstm_forward(x, kernel, recurrent_kernel)
    >>> {name: gate.shape for name, gate in gates(tape).items()}["f"]
    (8, 5, 16)
    """
    while isinstance(tape, (ZeroOutputTape, FullGateTape)):
        tape = tape.core
    if not isinstance(tape, Tape):
        if not hasattr(tape, "gates"):
            raise TypeError(
                "functional.gates: tape must be what a forward pass returned as its second result, got "
                f"{reprlib.repr(tape)}; call y, tape = layer.forward(x)"
            )
        return tape.gates()
    if tape.consumed:
        raise RuntimeError(custom.USED)
    cell, saved = tape.weights.cell, tape.saved
    variant = next((v for v in MISSING_GATE if f"_{v}" in cell), "")
    names = (
        [n for n in "ifgo" if n != MISSING_GATE.get(variant)] if cell.startswith("lstm") else ["z", "r", "n"]
    )
    if cell in ("simple_rnn", "indrnn"):
        return {}
    of_gates, of_candidate, _ = (activation_of(*code) for code in tape.weights.activations)
    slots = {name: index for index, name in enumerate(names)}
    if cell == "gru_reset_before":
        slots["n"] = 3  # after r h
    values = {
        name: _activated(of_candidate if name in "gn" else of_gates, saved[:, :, slot])
        for name, slot in slots.items()
    }
    before = 4 if "fgr" in cell else 1  # h, and gates that are states
    c = len(names) + ("projected" in cell) + ("normalized" in cell) + before
    states = {"c": saved[:, :, c]} if "g" in names else {}
    if tape.mask is None:
        return values | {name: state.copy() for name, state in states.items()}
    return _at_their_steps(tape, values, states)


# The gate that a variant of the LSTM does without.
MISSING_GATE = {"nig": "i", "nfg": "f", "cifg": "f", "nog": "o"}


def activation_of(code: int, alpha: float, beta: float, clip: float) -> activations.Activation:
    """The activation of these numbers, those of `Activation.numbers`."""
    return activations.Activation(activations.KINDS[code], alpha, beta, None if clip == np.inf else clip)


def _activated(activation: activations.Activation, kept: Array) -> Array:
    """What a tape keeps of a gate, as the gate's value: the tape has the sums of all but these two."""
    values: Array = kept.copy()
    if activation.kind in ("tanh", "sigmoid") and activation.clip is None:
        return values
    return activation(values)


def _at_their_steps(tape: Tape, values: dict[str, Array], states: dict[str, Array]) -> dict[str, Array]:
    """What a tape keeps row by row in the order of falling numbers of steps, and without masked ones, put where it was."""
    mask = tape.mask
    assert mask is not None
    if tape.go_backwards:
        mask = mask[:, ::-1]
    order = np.argsort(-mask.sum(axis=1), kind="stable")
    placed = {name: np.zeros_like(value) for name, value in (values | states).items()}
    initial = tape.initial_state[-1]
    for r, b in enumerate(order):
        steps = np.flatnonzero(mask[b])
        for name in values:
            placed[name][b, steps] = values[name][r, : len(steps)]
        last = np.searchsorted(steps, np.arange(mask.shape[1]), side="right") - 1  # -1 before the first
        for name, state in states.items():
            before = np.zeros(state.shape[-1], state.dtype) if initial is None else initial[b]
            placed[name][b] = np.where(last[:, None] < 0, before, state[r, np.maximum(last, 0)])
    return placed


def mask_of(where: str, lengths: ArrayLike, mask: Array | None, x: Array) -> Array:
    """The mask [B, T] that is True in the first `lengths[b]` steps of row b of x [B, T, I].

    Raises:
        TypeError: the lengths are no integers.
        ValueError: there is a mask too, or x has no time, or there are not B lengths, or one is negative or
            larger than T.
    """
    if mask is not None:
        raise ValueError(f"{where}: lengths and mask must not both be given; leave one of them out")
    if not isinstance(x, np.ndarray):
        raise TypeError(
            f"{where}: x must be a NumPy array, got {type(x).__name__}; convert it with np.asarray(x)"
        )
    if len(x.shape) < 2:
        raise ValueError(f"{where}: x must have shape [batch, time, features], got {x.shape}")
    array = arguments.plain(where, "lengths", lengths)
    batch, time = x.shape[:2]
    if array.shape != (batch,):
        raise ValueError(f"{where}: lengths must have shape ({batch},), one for each row, got {array.shape}")
    exact = array
    if array.dtype.kind not in "iu":
        exact = np.array(lengths, object)  # of ints that no dtype holds, or of no ints
        if not all(isinstance(n, (int, np.integer)) and not isinstance(n, bool) for n in exact):
            raise TypeError(
                f"{where}: lengths must be integers, got {array.dtype}; convert them with lengths.astype(int)"
            )
    if array.size and (exact.min() < 0 or exact.max() > time):
        wrong = exact[(exact < 0) | (exact > time)][0]
        raise ValueError(
            f"{where}: lengths must be from 0 to {time}, the time steps of x, got {wrong}; cut or pad x to fit"
        )
    return np.arange(time) < exact.astype(np.int64)[:, None]


# ---- By name


def make_weights(
    cell: str,
    kernel: Array,
    recurrent_kernel: Array,
    bias: Array | None,
    chosen: tuple[ActivationLike, ActivationLike, ActivationLike],
    name: str,
    peephole: Array | None = None,
    projection: Array | None = None,
    gate_kernel: Array | None = None,
    cell_norm: Array | None = None,
    layer_norm: Array | None = None,
) -> AnyWeights:
    """Prepare weights: check them, and refer to them without copying.

    Args:
        cell: The name of the kernels' cell; `lstm_cell` for an LSTM.
        kernel, recurrent_kernel, bias, peephole, projection, gate_kernel, cell_norm, layer_norm: As the functions
            below take them.
        chosen: The activations of the gates, of the candidate, of an LSTM's c on its way to h.
        name: What error messages begin with.
    """
    try:
        found = tuple(map(activations.get, chosen))
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from None
    codes = [a.numbers for a in found if isinstance(a, activations.Activation)]
    if gate_kernel is not None and not (
        cell.startswith("lstm") and set(cell.split("_")).isdisjoint(MISSING_GATE)
    ):
        raise ValueError(
            f"{name}: gate_kernel must be None for the cell {cell}; it goes with LSTMs that have all gates"
        )
    kernels_know_activations = len(codes) == len(found)
    kernels_normalize = cell != "indrnn"
    weights = Weights(
        cell,
        kernel,
        recurrent_kernel,
        bias,
        peephole=peephole,
        projection=projection,
        cell_norm=cell_norm,
        layer_norm=layer_norm if kernels_normalize else None,
        activations=codes if kernels_know_activations else None,
        name=name,
    )
    own = {"gate_kernel": (gate_kernel, (3 * weights.units, 3 * weights.units), "i, f and o of two steps")}
    if not kernels_normalize:
        own["layer_norm"] = (layer_norm, (2, weights.units), "gains of what x and of what the state give")
    for what, (array, shape, meaning) in own.items():
        if array is not None:
            _core.check_array(array, weights.dtype, shape, name, what, meaning)
    if kernels_know_activations and all(array is None for array, _, _ in own.values()):
        return weights
    if kernels_know_activations and cell in ("lstm", "lstm_peephole") and layer_norm is None:
        return FullGateWeights(weights, gate_kernel, bias=bias, peephole=peephole)  # type: ignore[arg-type]
    return CustomWeights(
        weights,
        found,
        bias=bias,
        peephole=peephole,
        projection=projection,
        gate_kernel=gate_kernel,
        cell_norm=cell_norm,
        layer_norm=layer_norm,
    )


def lstm_cell(variant: str | None, peephole: bool, projection: bool = False, normalized: bool = False) -> str:
    """The name of the kernels' cell for a variant of LSTM, with or without peepholes, projection and c normalized.

    Raises:
        ValueError: there is no such variant, or not with peepholes or a projection.
    """
    if not (variant is None or isinstance(variant, str)) or variant not in VARIANTS:
        known = ", ".join(repr(name) for name in VARIANTS)
        raise ValueError(f"variant must be one of {known}, got {reprlib.repr(variant)}")
    if variant == "np" and peephole:
        raise ValueError('variant "np" is the LSTM without peepholes; leave peephole out')
    gates = f"_{variant}" if variant in ("nig", "nfg", "nog", "cifg") else ""
    if projection and gates:
        raise ValueError(f"variant {variant!r} has no projection; leave one of them out")
    return "lstm" + gates + "_projected" * projection + "_peephole" * peephole + "_normalized" * normalized


def require_gate_kernel(variant: str | None, gate_kernel: Any) -> None:
    """Refuses the variant "fgr" without a gate_kernel, and one with another variant.

    Raises:
        ValueError: only one of them is given.
    """
    if (variant == "fgr") != (gate_kernel is not None):
        raise ValueError('the variant "fgr" and a gate_kernel go together; give both or leave both out')


def lstm_activations(
    variant: str | None, activation: ActivationLike, recurrent_activation: ActivationLike
) -> tuple[ActivationLike, ActivationLike, ActivationLike]:
    """The activations of the gates, the candidate and c, of a variant of LSTM."""
    return (
        recurrent_activation,
        "linear" if variant == "niaf" else activation,
        "linear" if variant == "noaf" else activation,
    )


VARIANTS = (None, "vanilla", "nig", "nfg", "nog", "niaf", "noaf", "cifg", "np", "fgr")


def _simple_rnn_weights(
    cell: str,
    kernel: Array,
    recurrent_kernel: Array,
    bias: Array | None,
    activation: ActivationLike,
    layer_norm: Array | None,
) -> AnyWeights:
    chosen = ("sigmoid", activation, activation)
    return make_weights(
        cell, kernel, recurrent_kernel, bias, chosen, f"functional.{cell}", layer_norm=layer_norm
    )


def _lstm_weights(
    kernel: Array,
    recurrent_kernel: Array,
    bias: Array | None,
    activation: ActivationLike,
    recurrent_activation: ActivationLike,
    variant: str | None,
    peephole: Array | None,
    projection: Array | None,
    gate_kernel: Array | None,
    cell_norm: Array | None,
    layer_norm: Array | None,
) -> AnyWeights:
    try:
        cell = lstm_cell(variant, peephole is not None, projection is not None, cell_norm is not None)
        require_gate_kernel(variant, gate_kernel)
    except ValueError as error:
        raise ValueError(f"functional.lstm: {error}") from None
    chosen = lstm_activations(variant, activation, recurrent_activation)
    return make_weights(
        cell,
        kernel,
        recurrent_kernel,
        bias,
        chosen,
        "functional.lstm",
        peephole,
        projection,
        gate_kernel,
        cell_norm,
        layer_norm,
    )


def _gru_weights(
    kernel: Array,
    recurrent_kernel: Array,
    bias: Array | None,
    activation: ActivationLike,
    recurrent_activation: ActivationLike,
    reset_after: bool,
    layer_norm: Array | None,
) -> AnyWeights:
    cell = "gru" if reset_after else "gru_reset_before"
    chosen = (recurrent_activation, activation, activation)
    return make_weights(cell, kernel, recurrent_kernel, bias, chosen, "functional.gru", layer_norm=layer_norm)


def _tape_of(function: str, tape: AnyTape) -> AnyTape:
    if not isinstance(tape, (Tape, CustomTape, FullGateTape, ZeroOutputTape)):
        raise TypeError(
            f"functional.{function}_backward: tape must be what {function}_forward returned, got a "
            f"{type(tape).__module__}.{type(tape).__qualname__}"
        )
    if not tape.weights.cell.startswith(function):
        raise ValueError(
            f"functional.{function}_backward: the tape must come from {function}_forward, got one of a "
            f"{tape.weights.cell} cell"
        )
    return tape


def simple_rnn(
    x: Array,
    kernel: Array,
    recurrent_kernel: Array,
    bias: Array | None = None,
    *,
    activation: ActivationLike = "tanh",
    layer_norm: Array | None = None,
    **options: Unpack[Options],
) -> Outputs:
    """Run a simple recurrent layer over a batch of sequences.

    The equation, for every step t:

        h_t = tanh(x_t W + h_(t-1) U + b)

    (Elman, 1990; Keras' `SimpleRNN`.)

    Args:
        x: [B, T, I].
        kernel: W, [I, H].
        recurrent_kernel: U, [H, H].
        bias: b, [H]; None: no bias.
        activation: What `activations.get` takes.
        layer_norm: Gains [2, H]: x W and h U are normalized over the units before b is added, each with its gain
            (Ba et al., 2016). None: not.
        options: See `Options`. The states are [h].

    Returns:
        y [B, H], or [B, T, H] with `return_sequences`; with `return_state` the tuple `(y, h)`, states [B, H].
        Without time steps (T = 0) the last h is the initial one.

    Raises:
        TypeError: An array is not of the kernel's dtype, float32 or float64.
        ValueError: A shape does not fit.

    >>> import numpy as np
    >>> x, kernel, recurrent_kernel = (np.zeros(s, "float32") for s in [(8, 5, 3), (3, 16), (16, 16)])
    >>> simple_rnn(x, kernel, recurrent_kernel, return_sequences=True).shape
    (8, 5, 16)
    """
    return run(
        _simple_rnn_weights("simple_rnn", kernel, recurrent_kernel, bias, activation, layer_norm),
        x,
        **options,
    )


def simple_rnn_forward(
    x: Array,
    kernel: Array,
    recurrent_kernel: Array,
    bias: Array | None = None,
    *,
    activation: ActivationLike = "tanh",
    layer_norm: Array | None = None,
    **options: Unpack[Options],
) -> tuple[Outputs, AnyTape]:
    """Run `simple_rnn` and keep what its gradient needs: the arguments of `simple_rnn`, and a tape as second result.

    >>> import numpy as np
    >>> x, kernel, recurrent_kernel = (np.zeros(s, "float32") for s in [(8, 5, 3), (3, 16), (16, 16)])
    >>> y, tape = simple_rnn_forward(x, kernel, recurrent_kernel)
    >>> simple_rnn_backward(np.ones_like(y), tape).x.shape
    (8, 5, 3)
    """
    return run_forward(
        _simple_rnn_weights("simple_rnn", kernel, recurrent_kernel, bias, activation, layer_norm),
        x,
        **options,
    )


def simple_rnn_backward(
    dy: Array | Sequence[Array | None] | None, tape: AnyTape, *, threads: int = 0
) -> Gradients:
    """Return the gradients of the inputs and weights of one `simple_rnn_forward`.

    Args:
        dy: The gradient of y, of its shape; with `return_state` a list [dy, dh]. None, alone or as an item: zeros.
        tape: What `simple_rnn_forward` returned. It is used up.
        threads: The most threads that this call may use; 0: get_num_threads().

    Returns:
        `Gradients` of x, the weights and the initial states.

    Raises:
        RuntimeError: The tape was used before.
        TypeError: A gradient is not of the dtype of the forward pass.
        ValueError: A gradient's shape is not that of its output, or the tape is of another cell.
    """
    return run_backward(dy, _tape_of("simple_rnn", tape), threads=threads)


def indrnn(
    x: Array,
    kernel: Array,
    recurrent_kernel: Array,
    bias: Array | None = None,
    *,
    activation: ActivationLike = "relu",
    layer_norm: Array | None = None,
    **options: Unpack[Options],
) -> Outputs:
    """Run an independently recurrent layer, in which each unit sees its own past alone, over a batch of sequences.

    The equation, for every step t:

        h_t = relu(x_t W + u h_(t-1) + b)

    (Li et al., "Independently Recurrent Neural Network", 2018.)

    Args:
        x: [B, T, I].
        kernel: W, [I, H].
        recurrent_kernel: u, [H].
        bias: b, [H]; None: no bias.
        activation: What `activations.get` takes.
        layer_norm: Gains [2, H]: x W and h U are normalized over the units before b is added, each with its gain
            (Ba et al., 2016); computed in NumPy. None: not.
        options: See `Options`. The states are [h].

    Returns:
        y [B, H], or [B, T, H] with `return_sequences`; with `return_state` the tuple `(y, h)`, states [B, H].
        Without time steps (T = 0) the last h is the initial one.

    Raises:
        TypeError: An array is not of the kernel's dtype, float32 or float64.
        ValueError: A shape does not fit.

    >>> import numpy as np
    >>> x, kernel, recurrent_kernel = (np.zeros(s, "float32") for s in [(8, 5, 3), (3, 16), 16])
    >>> indrnn(x, kernel, recurrent_kernel, return_sequences=True).shape
    (8, 5, 16)
    """
    return run(
        _simple_rnn_weights("indrnn", kernel, recurrent_kernel, bias, activation, layer_norm), x, **options
    )


def indrnn_forward(
    x: Array,
    kernel: Array,
    recurrent_kernel: Array,
    bias: Array | None = None,
    *,
    activation: ActivationLike = "relu",
    layer_norm: Array | None = None,
    **options: Unpack[Options],
) -> tuple[Outputs, AnyTape]:
    """Run `indrnn` and keep what its gradient needs: the arguments of `indrnn`, and a tape as second result.

    >>> import numpy as np
    >>> x, kernel, recurrent_kernel = (np.zeros(s, "float32") for s in [(8, 5, 3), (3, 16), 16])
    >>> y, tape = indrnn_forward(x, kernel, recurrent_kernel)
    >>> indrnn_backward(np.ones_like(y), tape).x.shape
    (8, 5, 3)
    """
    return run_forward(
        _simple_rnn_weights("indrnn", kernel, recurrent_kernel, bias, activation, layer_norm), x, **options
    )


def indrnn_backward(
    dy: Array | Sequence[Array | None] | None, tape: AnyTape, *, threads: int = 0
) -> Gradients:
    """Return the gradients of the inputs and weights of one `indrnn_forward`.

    Args:
        dy: The gradient of y, of its shape; with `return_state` a list [dy, dh]. None, alone or as an item: zeros.
        tape: What `indrnn_forward` returned. It is used up.
        threads: The most threads that this call may use; 0: get_num_threads().

    Returns:
        `Gradients` of x, the weights and the initial states.

    Raises:
        RuntimeError: The tape was used before.
        TypeError: A gradient is not of the dtype of the forward pass.
        ValueError: A gradient's shape is not that of its output, or the tape is of another cell.
    """
    return run_backward(dy, _tape_of("indrnn", tape), threads=threads)


def lstm(
    x: Array,
    kernel: Array,
    recurrent_kernel: Array,
    bias: Array | None = None,
    *,
    activation: ActivationLike = "tanh",
    recurrent_activation: ActivationLike = "sigmoid",
    variant: str | None = None,
    peephole: Array | None = None,
    projection: Array | None = None,
    gate_kernel: Array | None = None,
    cell_norm: Array | None = None,
    layer_norm: Array | None = None,
    **options: Unpack[Options],
) -> Outputs:
    """Run an LSTM over a batch of sequences.

    The equations, for every step t:

        i = sigmoid(x_t W_i + h_(t-1) U_i + b_i)        f, o likewise
        g = tanh(x_t W_c + h_(t-1) U_c + b_c)
        c_t = f c_(t-1) + i g
        h_t = o tanh(c_t)

    (Hochreiter and Schmidhuber, 1997, with the forget gate of Gers et al., 2000; Keras' `LSTM`.) With peepholes
    (Gers and Schmidhuber, 2000) the gates see c: i and f get p_i c_(t-1) and p_f c_(t-1), o gets p_o c_t.
    The variants are those of Greff et al., "LSTM: A Search Space Odyssey" (2017): "nig", "nfg", "nog" have no
    input, forget or output gate (it is 1), "cifg" has f = 1 - i; the columns of a gate that there is not are left
    out. "niaf" and "noaf" have no activation of g or of c. "vanilla" has all of these, "np" no peepholes. "fgr"
    adds [i f o]_(t-1) G to what i, f and o are made of; with layer_norm, cell_norm or a projection that is computed
    in NumPy. With a projection (Sak et al., 2014; proj_size of `torch.nn.LSTM`) h_t = (o tanh(c_t)) P is narrower than c_t.

    Args:
        x: [B, T, I].
        kernel: W, [I, 4H]; 3H for a variant with three gates.
        recurrent_kernel: U, [H, 4H].
        bias: b, [4H]; None: no bias.
        activation: Of the candidate and of c; what `activations.get` takes.
        recurrent_activation: Of the gates.
        variant: One of `VARIANTS`.
        peephole: p, a row [H] for each gate that there is, in the order i f o: [3, H]; None: no peepholes.
        projection: P, [H, R] with R <= H; None: none. With it recurrent_kernel is [R, 4H], and h, y and what the
            recurrent kernel multiplies are R wide.
        gate_kernel: G, [3H, 3H], for "fgr". The states are then [h, c, i, f, o].
        cell_norm: Gain and bias [2, H] of the layer normalization of c on its way to h. None: not.
        layer_norm: Gains [2, 4H]: x W and h U are normalized over all their columns before b is added, each with its
            gain (Ba et al., 2016). None: not.
        options: See `Options`. The states are [h, c], with "fgr" [h, c, i, f, o].

    Returns:
        y [B, H], or [B, T, H] with `return_sequences`; with `return_state` the tuple `(y, *states)`, states [B, H].
        Without time steps (T = 0) the last h is the initial one.

    Raises:
        TypeError: An array is not of the kernel's dtype, float32 or float64.
        ValueError: A shape does not fit.

    >>> import numpy as np
    >>> x, kernel, recurrent_kernel = (np.zeros(s, "float32") for s in [(8, 5, 3), (3, 64), (16, 64)])
    >>> lstm(x, kernel, recurrent_kernel, return_sequences=True).shape
    (8, 5, 16)
    """
    return run(
        _lstm_weights(
            kernel,
            recurrent_kernel,
            bias,
            activation,
            recurrent_activation,
            variant,
            peephole,
            projection,
            gate_kernel,
            cell_norm,
            layer_norm,
        ),
        x,
        **options,
    )


def lstm_forward(
    x: Array,
    kernel: Array,
    recurrent_kernel: Array,
    bias: Array | None = None,
    *,
    activation: ActivationLike = "tanh",
    recurrent_activation: ActivationLike = "sigmoid",
    variant: str | None = None,
    peephole: Array | None = None,
    projection: Array | None = None,
    gate_kernel: Array | None = None,
    cell_norm: Array | None = None,
    layer_norm: Array | None = None,
    **options: Unpack[Options],
) -> tuple[Outputs, AnyTape]:
    """Run `lstm` and keep what its gradient needs: the arguments of `lstm`, and a tape as second result.

    >>> import numpy as np
    >>> x, kernel, recurrent_kernel = (np.zeros(s, "float32") for s in [(8, 5, 3), (3, 64), (16, 64)])
    >>> y, tape = lstm_forward(x, kernel, recurrent_kernel)
    >>> lstm_backward(np.ones_like(y), tape).x.shape
    (8, 5, 3)
    """
    return run_forward(
        _lstm_weights(
            kernel,
            recurrent_kernel,
            bias,
            activation,
            recurrent_activation,
            variant,
            peephole,
            projection,
            gate_kernel,
            cell_norm,
            layer_norm,
        ),
        x,
        **options,
    )


def lstm_backward(dy: Array | Sequence[Array | None] | None, tape: AnyTape, *, threads: int = 0) -> Gradients:
    """Return the gradients of the inputs and weights of one `lstm_forward`.

    Args:
        dy: The gradient of y, of its shape; with `return_state` a list [dy, dh, dc ...]. None, alone or as an item: zeros.
        tape: What `lstm_forward` returned. It is used up.
        threads: The most threads that this call may use; 0: get_num_threads().

    Returns:
        `Gradients` of x, the weights and the initial states.

    Raises:
        RuntimeError: The tape was used before.
        TypeError: A gradient is not of the dtype of the forward pass.
        ValueError: A gradient's shape is not that of its output, or the tape is of another cell.
    """
    return run_backward(dy, _tape_of("lstm", tape), threads=threads)


def gru(
    x: Array,
    kernel: Array,
    recurrent_kernel: Array,
    bias: Array | None = None,
    *,
    activation: ActivationLike = "tanh",
    recurrent_activation: ActivationLike = "sigmoid",
    reset_after: bool = True,
    layer_norm: Array | None = None,
    **options: Unpack[Options],
) -> Outputs:
    """Run a GRU over a batch of sequences.

    The equations, for every step t:

        z = sigmoid(x_t W_z + h_(t-1) U_z + b_z)        r likewise
        n = tanh(x_t W_h + b_h + r (h_(t-1) U_h + b'_h))            reset_after=True
        n = tanh(x_t W_h + b_h + (r h_(t-1)) U_h)                   reset_after=False
        h_t = z h_(t-1) + (1 - z) n

    (Cho et al., 2014; Keras' `GRU`.)

    Args:
        x: [B, T, I].
        kernel: W, [I, 3H].
        recurrent_kernel: U, [H, 3H].
        bias: b, [2, 3H] (a row for the input, one for the state); [3H] with reset_after=False; None: no bias.
        activation: Of the candidate; what `activations.get` takes.
        recurrent_activation: Of the gates.
        reset_after: Apply the reset gate after the recurrent product (as cuDNN and Keras do) or before it.
        layer_norm: Gains [2, 3H]: x W and h U are normalized over all their columns before b is added, each with its
            gain, without reset_after those of z and r apart from those of n (Ba et al., 2016).
            None: not.
        options: See `Options`. The states are [h].

    Returns:
        y [B, H], or [B, T, H] with `return_sequences`; with `return_state` the tuple `(y, h)`, states [B, H].
        Without time steps (T = 0) the last h is the initial one.

    Raises:
        TypeError: An array is not of the kernel's dtype, float32 or float64.
        ValueError: A shape does not fit.

    >>> import numpy as np
    >>> x, kernel, recurrent_kernel = (np.zeros(s, "float32") for s in [(8, 5, 3), (3, 48), (16, 48)])
    >>> gru(x, kernel, recurrent_kernel, return_sequences=True).shape
    (8, 5, 16)
    """
    return run(
        _gru_weights(
            kernel, recurrent_kernel, bias, activation, recurrent_activation, reset_after, layer_norm
        ),
        x,
        **options,
    )


def gru_forward(
    x: Array,
    kernel: Array,
    recurrent_kernel: Array,
    bias: Array | None = None,
    *,
    activation: ActivationLike = "tanh",
    recurrent_activation: ActivationLike = "sigmoid",
    reset_after: bool = True,
    layer_norm: Array | None = None,
    **options: Unpack[Options],
) -> tuple[Outputs, AnyTape]:
    """Run `gru` and keep what its gradient needs: the arguments of `gru`, and a tape as second result.

    >>> import numpy as np
    >>> x, kernel, recurrent_kernel = (np.zeros(s, "float32") for s in [(8, 5, 3), (3, 48), (16, 48)])
    >>> y, tape = gru_forward(x, kernel, recurrent_kernel)
    >>> gru_backward(np.ones_like(y), tape).x.shape
    (8, 5, 3)
    """
    return run_forward(
        _gru_weights(
            kernel, recurrent_kernel, bias, activation, recurrent_activation, reset_after, layer_norm
        ),
        x,
        **options,
    )


def gru_backward(dy: Array | Sequence[Array | None] | None, tape: AnyTape, *, threads: int = 0) -> Gradients:
    """Return the gradients of the inputs and weights of one `gru_forward`.

    Args:
        dy: The gradient of y, of its shape; with `return_state` a list [dy, dh]. None, alone or as an item: zeros.
        tape: What `gru_forward` returned. It is used up.
        threads: The most threads that this call may use; 0: get_num_threads().

    Returns:
        `Gradients` of x, the weights and the initial states.

    Raises:
        RuntimeError: The tape was used before.
        TypeError: A gradient is not of the dtype of the forward pass.
        ValueError: A gradient's shape is not that of its output, or the tape is of another cell.
    """
    return run_backward(dy, _tape_of("gru", tape), threads=threads)
