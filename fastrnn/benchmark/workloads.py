"""The workloads: one list of rows, and for each its operations, its data and the right answer.

Legend: B batch, T time steps, I inputs, H units, G gates; shapes in brackets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastrnn import reference

Array = NDArray[Any]
Cell = list[Array]  # kernel [I, G*H], recurrent kernel [H, G*H], bias [G*H] or (GRU) [2, 3*H], as in Keras

GATES = {"simple_rnn": 1, "lstm": 4, "gru": 3}
STATES = {"simple_rnn": 1, "lstm": 2, "gru": 1}
ACTIVATIONS = {"simple_rnn": 1, "lstm": 5, "gru": 3}  # tanh and sigmoid per unit and time step
MODES = ("infer", "train")

# An answer is right if |answer - reference| <= this * max |reference|, for each of its arrays.
TOLERANCE = {"float32": 1e-4, "float64": 1e-10}

MOST_OPERATIONS_CHECKED = 3e10  # of a workload whose answer is checked in all rows of the batch
HUGE_OPERATIONS, HUGE_BYTES = 1e12, 3e10  # of one call: a workload beyond is one of "deepbench-huge"


@dataclass(frozen=True)
class Workload:
    """What is computed: outputs of every step (mode "infer"), or also gradients (mode "train").

    In mode "train" a gradient of the outputs of every step is given; wanted are those of x and of all weights,
    which are new in every call, as after a step of an optimizer.
    """

    name: str
    group: str
    cell: str
    B: int
    T: int
    I: int
    H: int
    source: str
    dtype: str = "float32"
    stepwise: bool = False  # in mode "infer" each call runs one time step, with the states handed in and out
    bidirectional: bool = False
    layers: int = 1
    ragged: bool = False  # the sequences have `lengths`, padded at their ends
    modes: tuple[str, ...] = MODES

    @property
    def directions(self) -> int:
        """1, or 2 if bidirectional."""
        return 2 if self.bidirectional else 1

    @property
    def sizes(self) -> str:
        """`B T I H`, for tables."""
        return f"{self.B} {self.T} {self.I} {self.H}"

    @property
    def lengths(self) -> Array:
        """The length of each sequence [B]."""
        if not self.ragged:
            return np.full(self.B, self.T)
        lengths = np.linspace(max(1, self.T // 8), self.T, self.B).astype(int)
        return np.random.default_rng(0).permutation(lengths)

    @property
    def layer_inputs(self) -> list[int]:
        """The inputs of each layer of the stack."""
        return [self.I] + [self.H * self.directions] * (self.layers - 1)

    def flops(self, mode: str) -> float:
        """Operations of one call: 2*B*T*G*H*(I+H) to infer, three times that to train.

        Steps beyond a sequence's end don't count.
        """
        steps = float(self.lengths.sum()) * self.directions
        columns = GATES[self.cell] * self.H
        forward = sum(2 * steps * columns * (inputs + self.H) for inputs in self.layer_inputs)
        return forward * (3 if mode == "train" else 1)

    def activations(self) -> float:
        """How many values of tanh and sigmoid the forward pass needs."""
        return float(self.lengths.sum()) * self.directions * self.layers * ACTIVATIONS[self.cell] * self.H

    def modes_at(self, wanted: str) -> list[str]:
        """Those of `modes` that `wanted`, a mode or "all", names."""
        return [mode for mode in self.modes if wanted in (mode, "all")]


def _rows(group: str, lines: str, **common: Any) -> list[Workload]:
    """One workload per line `name cell B T I H source`."""
    rows = []
    for line in lines.strip().splitlines():
        name, cell, B, T, I, H, source = line.split(None, 6)
        rows.append(Workload(name, group, cell, int(B), int(T), int(I), int(H), source, **common))
    return rows


def _sweep(group: str, cell: str, sizes: dict[str, Any], source: str) -> list[Workload]:
    """One workload per value of the one size that is given as a list."""
    (axis, values), *_ = ((name, value) for name, value in sizes.items() if isinstance(value, list))
    return [
        Workload(f"{cell}-{axis}{value}", group, cell, **{**sizes, axis: value}, source=source)
        for value in values
    ]


def _deepbench() -> list[Workload]:
    """DeepBench's recurrent layers: H, batches, time steps of its training and of its server inference set."""
    every = (16, 32, 64, 128)
    training: list[tuple[str, tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = [
        ("simple_rnn", (1760, 2048, 2560), every, (50,)),
        ("lstm", (512, 1024, 2048, 4096), every, (25,)),
        ("lstm", (1536,), (8, 16, 32), (50,)),
        ("lstm", (256,), (16, 32, 64), (150,)),
        ("gru", (2816,), (32,), (187, 375, 750)),
        ("gru", (1536, 2048, 2560), (32,), (187, 375, 750, 1500)),
        ("gru", (512,), (32,), (1,)),
        ("gru", (1024,), (32, 64), (1500,)),
    ]
    server: list[tuple[str, tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = [
        ("lstm", (512, 1024, 2048), (1, 2, 4), (25,)),
        ("lstm", (1536,), (1, 2, 4), (50,)),
        ("lstm", (256,), (1, 2, 4), (150,)),
        ("gru", (1536, 2048, 2560, 2816), (1, 2, 4), (187, 375, 750, 1500)),
        ("gru", (512,), (1, 2, 4), (1,)),
        ("gru", (1024,), (1, 2, 4), (1500,)),
    ]
    rows = []
    for kind, modes, shapes in [("train", MODES, training), ("server", ("infer",), server)]:
        for cell, units, batches, times in shapes:
            for H, B, T in ((H, B, T) for H in units for B in batches for T in times):
                row = Workload(
                    f"deepbench-{kind}-{cell}-{B}-{T}-{H}",
                    "deepbench",
                    cell,
                    B,
                    T,
                    H,
                    H,
                    f"DeepBench, {kind} set",
                    modes=modes,
                )
                streamed = 4.0 * GATES[cell] * H * H * T
                huge = row.flops(modes[-1]) > HUGE_OPERATIONS or streamed > HUGE_BYTES
                rows.append(replace(row, group="deepbench-huge") if huge else row)
    return rows


WORKLOADS: list[Workload] = [
    *_rows(
        "table",
        """
        imdb-rnn        simple_rnn  32  100   16   32  sentiment of film reviews (Keras' IMDB example)
        imdb-lstm       lstm        32  100   16   32  sentiment of film reviews (Keras' IMDB example)
        jena-gru        gru        128  120   14   32  weather forecast (Keras' Jena climate example)
        stateful-lstm   lstm         1   20    1   10  a short series, one at a time
        """,
    ),
    *_rows(
        "table",
        """
        audio-step      lstm         1    1    1   40  one sample of an audio effect
        stream-step     gru          1    1   64  256  one frame of a stream
        """,
        stepwise=True,
    ),
    *_rows(
        "table",
        """
        policy-lstm     lstm       256   64   64  128  a policy in reinforcement learning
        one-lstm-256    lstm         1  100  256  256  one sequence
        one-gru-512     gru          1  100  512  512  one sequence
        one-lstm-1024   lstm         1   50 1024 1024  one sequence, weights beyond the second-level cache
        lstm-256        lstm        64  100  256  256  a middle-sized layer
        gru-256         gru         64  100  256  256  a middle-sized layer
        rnn-256         simple_rnn  64  100  256  256  a middle-sized layer
        long-lstm       lstm         8 2000   64  128  a long series
        large-lstm-512  lstm        32   25  512  512  DeepBench, training set
        large-lstm-1024 lstm        64   25 1024 1024  DeepBench, training set
        large-gru-1024  gru         32   50 1024 1024  after DeepBench
        large-rnn-1760  simple_rnn  32   50 1760 1760  DeepBench, training set
        """,
    ),
    *_sweep(
        "units",
        "lstm",
        {"B": 32, "T": 50, "I": 32}
        | {"H": [16, 20, 32, 37, 64, 96, 100, 128, 192, 200, 256, 512, 640, 650, 1024]},
        "units: odd numbers beside round ones",
    ),
    *_sweep(
        "batch",
        "gru",
        {"B": [1, 3, 4, 7, 8, 13, 16, 20, 32, 33], "T": 100, "I": 64, "H": 128},
        "batch: odd numbers beside round ones",
    ),
    *_sweep(
        "inputs",
        "lstm",
        {"B": 32, "T": 100, "I": [1, 14, 16, 41, 48], "H": 64},
        "inputs: odd numbers beside round ones",
    ),
    *_sweep(
        "linear",
        "lstm",
        {"B": 16, "T": [50, 200, 800], "I": 64, "H": 64},
        "time must grow as T",
    ),
    *_sweep(
        "linear",
        "lstm",
        {"B": [8, 64, 512], "T": 50, "I": 64, "H": 64},
        "time must grow as B",
    ),
    *_rows(
        "stream",
        """
        stream-lstm     lstm         1  100   32  128  a hundred steps, each a call of its own
        stream-gru      gru          4  100   64   64  a hundred steps, each a call of its own
        """,
        stepwise=True,
        modes=("infer",),
    ),
    *_rows(
        "both-ways",
        """
        bi-lstm         lstm        32  100   64  128  Bidirectional
        bi-gru          gru         16  100  128   64  Bidirectional
        """,
        bidirectional=True,
    ),
    *_rows(
        "stack",
        """
        stack-lstm      lstm        32  100   64  128  two layers
        stack-gru       gru          1  100  256  256  two layers
        """,
        layers=2,
    ),
    *_rows(
        "ragged",
        """
        ragged-lstm     lstm        32  200   64  128  sequences of 25 to 200 steps
        ragged-gru      gru         64  120   14   64  sequences of 15 to 120 steps
        """,
        ragged=True,
    ),
    *_rows(
        "double",
        """
        imdb-lstm-64    lstm        32  100   16   32  imdb-lstm in float64
        jena-gru-64     gru        128  120   14   32  jena-gru in float64
        lstm-256-64     lstm        64  100  256  256  lstm-256 in float64
        """,
        dtype="float64",
    ),
    *_deepbench(),
]

# A comparison of a minute: small and middle-sized, of every cell, with one time step and with many.
QUICK = ("imdb-rnn", "imdb-lstm", "jena-gru", "audio-step", "one-lstm-256", "rnn-256")


def select(names: Sequence[str]) -> list[Workload]:
    """Return the workloads whose group is one of `names` or whose name has one of them in it, in their order.

    "all" stands for every group but "deepbench-huge".

    Raises:
        ValueError: One of the names fits no workload.
    """
    chosen: set[str] = set()
    for name in names:
        fits = [
            w.name for w in WORKLOADS if name == w.group or (name == "all" and w.group != "deepbench-huge")
        ] or [w.name for w in WORKLOADS if name in w.name]
        if not fits:
            groups = ", ".join(dict.fromkeys(w.group for w in WORKLOADS))
            raise ValueError(f"must be groups ({groups}, all) or parts of names, got {name!r}; see --list")
        chosen.update(fits)
    return [w for w in WORKLOADS if w.name in chosen]


# ---- Data and answer


class Problem(NamedTuple):
    """The data of a workload."""

    x: Array
    """[B, T, I]"""
    weights: list[list[Cell]]
    """of each layer, of each direction (forward, backward)"""
    dy: Array
    """[B, T, H], with both directions [B, T, 2*H]; zero beyond a sequence's end"""
    valid: Array
    """[B, T, 1]: 1, and 0 beyond a sequence's end"""


def checked_rows(workload: Workload, mode: str) -> Array:
    """Return the rows of the batch in which the answer is checked: all, or three of a large workload.

    In the latter case dy is zero in all other rows, so that the gradients of the weights are checked in full.
    """
    B = workload.B
    if workload.flops(mode) <= MOST_OPERATIONS_CHECKED or B <= 3:
        return np.arange(B)
    return np.array([0, B // 2, B - 1])


def make_problem(workload: Workload, mode: str) -> Problem:
    """Return random data, the same in every process, with weights such that no gate saturates."""
    rng = np.random.default_rng(0)
    B, T, H, directions = workload.B, workload.T, workload.H, workload.directions
    columns = GATES[workload.cell] * H

    def draw(*shape: int, scale: float = 1.0) -> Array:
        array: Array = rng.standard_normal(shape, np.float32) * np.float32(scale)
        return array.astype(workload.dtype)

    weights = [
        [
            [
                draw(inputs, columns, scale=inputs**-0.5),
                draw(H, columns, scale=0.5 * H**-0.5),
                draw(*((2, columns) if workload.cell == "gru" else (columns,)), scale=0.1),
            ]
            for _ in range(directions)
        ]
        for inputs in workload.layer_inputs
    ]
    valid = (np.arange(T) < workload.lengths[:, None])[..., None].astype(workload.dtype)
    rows = np.zeros((B, 1, 1), workload.dtype)
    rows[checked_rows(workload, mode)] = 1
    return Problem(draw(B, T, workload.I), weights, draw(B, T, H * directions) * valid * rows, valid)


def right_answer(workload: Workload, mode: str) -> list[Array]:
    """Return what `fastrnn.reference` computes in float64 for the checked rows.

    Returns:
        [y], and in mode "train" dx and the gradients of the weights: layer by layer, the forward direction
        first, in the order of a cell's weights.
    """
    problem, rows = make_problem(workload, mode), checked_rows(workload, mode)
    forward = getattr(reference, f"{workload.cell}_forward")
    backward = getattr(reference, f"{workload.cell}_backward")
    x = problem.x[rows].astype("float64")
    if workload.ragged:
        return _right_answer_ragged(workload, mode, problem)
    tapes: list[list[Any]] = []
    for layer in problem.weights:
        outputs = []
        tapes.append([])
        for direction, cell in enumerate(layer):
            weights = [w.astype("float64") for w in cell]
            y, tape = forward(x, *weights, return_sequences=True, go_backwards=direction == 1)
            outputs.append(y[:, ::-1] if direction else y)
            tapes[-1].append(tape)
        x = np.concatenate(outputs, axis=-1)
    if mode == "infer":
        return [x]
    dy, y = problem.dy[rows].astype("float64"), x
    gradients: list[Array] = []
    for layer_tapes in reversed(tapes):
        parts = np.split(dy, workload.directions, axis=-1)
        done = [
            backward(np.ascontiguousarray(part[:, ::-1] if direction else part), tape)
            for direction, (part, tape) in enumerate(zip(parts, layer_tapes, strict=True))
        ]
        dy = sum(gradient.x for gradient in done)
        gradients = [w for gradient in done for w in gradient.weights] + gradients
    return [y, dy, *gradients]


def _right_answer_ragged(workload: Workload, mode: str, problem: Problem) -> list[Array]:
    """Each sequence by itself, without its padding."""
    lone = replace(workload, ragged=False)
    forward = getattr(reference, f"{lone.cell}_forward")
    backward = getattr(reference, f"{lone.cell}_backward")
    weights = [w.astype("float64") for w in problem.weights[0][0]]
    y = np.zeros(problem.dy.shape)
    dx = np.zeros(problem.x.shape)
    totals = [np.zeros(w.shape) for w in weights]
    for b, length in enumerate(workload.lengths):
        row = problem.x[b : b + 1, :length].astype("float64")
        y[b, :length], tape = forward(row, *weights, return_sequences=True)
        if mode == "train":
            gradient = backward(problem.dy[b : b + 1, :length].astype("float64"), tape)
            dx[b, :length] = gradient.x
            for total, part in zip(totals, gradient.weights, strict=True):
                total += part
    return [y] if mode == "infer" else [y, dx, *totals]


def error_of(workload: Workload, mode: str, answer: Sequence[Array], right: Sequence[Array]) -> float:
    """Return the largest |answer - right| / max |right| over the arrays.

    Args:
        answer: As `right_answer` returns, but y and dx for all rows of the batch.
        right: What `right_answer` returned.

    Raises:
        ValueError: The number of arrays or a shape is wrong.
    """
    rows = checked_rows(workload, mode)
    if len(answer) != len(right):
        raise ValueError(f"the answer must have {len(right)} arrays, got {len(answer)}")
    worst = 0.0
    for index, (got, expected) in enumerate(zip(answer, right, strict=True)):
        got = np.asarray(got)[rows] if index < 2 else np.asarray(got)
        if got.shape != expected.shape:
            raise ValueError(f"array {index} of the answer must have shape {expected.shape}, got {got.shape}")
        scale = np.abs(expected).max(initial=0)
        error = np.abs(got - expected).max(initial=0) / (scale or 1)
        worst = float("nan") if np.isnan(error) else max(worst, float(error))
        if np.isnan(worst):
            break
    return worst


def is_right(workload: Workload, error: float) -> bool:
    """Whether `error_of` is within the tolerance of the workload's dtype."""
    return error <= TOLERANCE[workload.dtype]
