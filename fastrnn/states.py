"""What `stateful=True` means: states that go from one call to the next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastrnn.functional import Array

__all__ = ["KeepsStates"]


class KeepsStates:
    """A layer that begins each call with the states that the last one ended with, if it is stateful.

    The states are replaced as a whole, never written to, so that a tape may refer to them. Of two threads that call
    one stateful layer at once, either may be the one whose states are kept.
    """

    stateful: bool
    _where: str
    _kept: tuple[Array, ...] | None = None

    @property
    def states(self) -> Any:
        """The states that the next call begins with, a list of read-only arrays [B, H].

        None before the first call, and always if the layer is not stateful.
        """
        return None if self._kept is None else list(self._kept)

    def reset_state(self) -> None:
        """Makes the states zeros: the next call begins a new sequence, and may have another batch size."""
        if self._kept is not None:
            self._keep([np.zeros_like(state) for state in self._kept])

    def reset_states(self) -> None:
        """`reset_state`, by its name of Keras 2."""
        self.reset_state()

    def _begin(self, x: Array) -> list[Array] | None:
        """The states that a call with x begins with if it is given none; None: zeros."""
        kept = self._kept
        # States of zeros are those of any batch size. What has no batch axis is refused elsewhere.
        if kept is None or not x.ndim or len(kept[0]) == len(x):
            return None if kept is None else list(kept)
        if any(state.any() for state in kept):
            raise ValueError(
                f"{self._where}: x must have the batch size {len(kept[0])} of the states that are kept from call to "
                f"call, got {len(x)}; call reset_state() before another batch"
            )
        return None

    def _keep(self, states: Sequence[Array]) -> None:
        """Keeps copies of the states that a call ended with."""
        kept = tuple(state.copy() for state in states)
        for state in kept:
            state.flags.writeable = False
        self._kept = kept
