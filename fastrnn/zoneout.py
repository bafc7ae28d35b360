"""The random masks of zoneout, of which any steps can be drawn without the others."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["ZoneoutMask"]


class ZoneoutMask:
    """A mask [B, T, H] of ones, at `rate`, and zeros: `mask[:, 3:7]` draws these steps, the same ones each time.

    Its numbers are those from the `begin`-th on that `np.random.default_rng(seed).random(..., np.float32)` draws: row by
    row, in a row step by step.

    >>> mask = ZoneoutMask(np.random.SeedSequence(0), 3, (2, 5, 4), 0.25, np.dtype("float32"))
    >>> np.array_equal(mask[:, 1:3], mask[:, :][:, 1:3])
    True
    """

    def __init__(
        self,
        seed: np.random.SeedSequence,
        begin: int,
        shape: tuple[int, int, int],
        rate: float,
        dtype: np.dtype[Any],
    ) -> None:
        self.seed, self.begin, self.shape, self.rate, self.dtype = seed, begin, shape, rate, dtype

    def __getitem__(self, at: tuple[slice, slice]) -> NDArray[Any]:
        """The mask of all rows at some steps."""
        (B, T, H), (_, steps) = self.shape, at
        first, end, _ = steps.indices(T)
        drawn = np.empty((B, end - first, H), np.float32)
        together = (1, drawn.size) if end - first == T else (B, (end - first) * H)  # among all numbers
        pieces = drawn.reshape(together)
        bits = np.random.PCG64(self.seed)
        rng, position = np.random.default_rng(bits), 0  # of the generator, in words of two numbers
        for row, piece in enumerate(pieces):
            word, odd = divmod(self.begin + (row * T + first) * H, 2)
            bits.advance(word - position)
            piece[...] = rng.random(odd + piece.size, np.float32)[odd:]
            position = word + (odd + piece.size + 1) // 2
        return (drawn < self.rate).astype(self.dtype)
