"""The last output of `zero_output_for_mask`: zeros in rows whose last step is masked, as in Keras' loops over time.

The kernels zero the outputs of masked steps in sequences; of the last output alone they return the last real one. Here that
output and its gradient become zeros. `ZeroOutputTape` stands for the tape of such a pass; `functional` makes and opens it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["ZeroOutputTape", "last_step", "rows_with_output", "zeroed"]

Array = NDArray[Any]


class ZeroOutputTape:
    """What `backward` needs of a `forward`.

    Args:
        core: the tape of the pass.
        rows: [B, 1] bool, what `rows_with_output` returned.
        returns_state: whether the gradient of the outputs is a list.
    """

    __slots__ = ("core", "returns_state", "rows")

    def __init__(self, core: Any, rows: Array, returns_state: bool) -> None:
        self.core, self.rows, self.returns_state = core, rows, returns_state

    @property
    def weights(self) -> Any:
        """Those of the pass."""
        return self.core.weights

    @property
    def consumed(self) -> bool:
        """Whether it was used."""
        return bool(self.core.consumed)

    @property
    def nbytes(self) -> int:
        """Its memory."""
        return int(self.core.nbytes)

    @property
    def saved(self) -> Any:
        """That of the tape within."""
        return self.core.saved

    def gradients(self, dy: Any) -> Any:
        """`dy` for the tape within: zeros in the rows without output. What doesn't fit is left for it to refuse."""
        if not self.returns_state:
            return zeroed(dy, self.rows)
        if isinstance(dy, (list, tuple)) and dy:
            return [zeroed(dy[0], self.rows), *dy[1:]]
        return dy


def last_step(go_backwards: bool) -> slice:
    """Where in time the step is that is read last: one, or none of no steps."""
    return slice(1) if go_backwards else slice(-1, None)


def rows_with_output(mask: Array | None, go_backwards: bool) -> Array | None:
    """[B, 1] bool: in which rows of a mask [B, T] the step that is read last is real; None: in all."""
    if mask is None:
        return None
    rows: Array = np.all(mask[:, last_step(go_backwards)], axis=1, keepdims=True)
    return None if rows.all() else rows


def zeroed(value: Any, rows: Array) -> Any:
    """`value` [B, H] with zeros in all other rows; what is no such array as it is."""
    if not isinstance(value, np.ndarray) or value.ndim != 2 or len(value) != len(rows):
        return value
    return np.where(rows, value, value.dtype.type(0))
