from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_Array = NDArray[Any]
_States = Sequence[_Array | None] | _Array | None

__version__: str

class Weights:
    def __init__(
        self,
        cell: str,
        kernel: _Array,
        recurrent_kernel: _Array,
        bias: _Array | None = None,
        *,
        peephole: _Array | None = None,
        projection: _Array | None = None,
        cell_norm: _Array | None = None,
        layer_norm: _Array | None = None,
        activations: Sequence[tuple[int, float, float, float]] | None = None,
        name: str | None = None,
    ) -> None: ...
    @property
    def cell(self) -> str: ...
    @property
    def inputs(self) -> int: ...
    @property
    def units(self) -> int: ...
    @property
    def outputs(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def tape_slots(self) -> int: ...
    @property
    def activations(self) -> list[tuple[int, float, float, float]]: ...
    @property
    def arrays(self) -> list[_Array]: ...

class Tape:
    @property
    def consumed(self) -> bool: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def saved(self) -> _Array: ...
    @property
    def mask(self) -> _Array | None: ...
    @property
    def initial_state(self) -> list[_Array | None]: ...
    @property
    def go_backwards(self) -> bool: ...
    @property
    def weights(self) -> Weights: ...

def check_array(
    array: Any,
    dtype: np.dtype[Any],
    shape: Sequence[int],
    where: str,
    name: str,
    meaning: str,
    written: bool = False,
) -> None: ...
def overlap(a: _Array, b: _Array) -> bool: ...
def forward(
    weights: Weights,
    x: _Array,
    initial_state: _States,
    return_sequences: bool,
    return_state: bool,
    go_backwards: bool,
    training: bool,
    mask: _Array | None,
    zero_output_for_mask: bool,
    dropout_mask: _Array | None,
    recurrent_dropout_mask: _Array | None,
    zoneout_mask: Sequence[_Array | None] | None,
    embedding: _Array | None,
    out: _Array | None,
    threads: int,
) -> tuple[_Array, tuple[_Array, ...], Tape | None]: ...
def restore_tape(
    weights: Weights,
    saved: _Array,
    x: _Array,
    initial_state: _States = None,
    *,
    return_sequences: bool,
    return_state: bool,
    go_backwards: bool,
    mask: _Array | None,
    zero_output_for_mask: bool,
    dropout_mask: _Array | None,
    recurrent_dropout_mask: _Array | None,
    zoneout_mask: Sequence[_Array | None] | None,
    embedding: _Array | None,
) -> Tape: ...
def backward(
    dy: _Array | Sequence[_Array | None] | None, tape: Tape, threads: int
) -> tuple[_Array, list[_Array], list[_Array]]: ...
def step(
    weights: Weights, x_t: _Array, states: _States = None, out: Sequence[_Array] | None = None
) -> tuple[_Array, list[_Array]]: ...
def tanh(x: _Array) -> _Array: ...
def sigmoid(x: _Array) -> _Array: ...
def measure_limit(limit: str, dtype: str, threads: int, bytes: int = 1) -> float: ...
def kernel_calls() -> dict[str, dict[str, int]]: ...
def num_threads() -> int: ...
def set_num_threads(n: int) -> None: ...
def release_memory() -> None: ...
def compiled_isas() -> list[str]: ...
def available_isas() -> list[str]: ...
def isa() -> str: ...
def set_isa(name: str) -> None: ...
def compiler() -> str: ...
def xla_handlers() -> dict[str, object]: ...
def register_tensorflow_ops(library: str) -> None: ...
