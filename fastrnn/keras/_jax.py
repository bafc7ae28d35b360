"""The call on JAX's arrays: that of fastrnn.jax."""

from __future__ import annotations

import importlib
from typing import Any

import jax

from fastrnn.keras._arrays import Operands, Settings

kernels: Any = importlib.import_module("fastrnn.jax")


def reason_against(x: Any) -> str | None:
    """Why the kernels cannot read x, or None."""
    if jax.default_backend() != "cpu":
        return f"JAX runs on the device {jax.default_backend()}, not on the processor"
    if not all(isinstance(n, int) for n in x.shape):
        return f"its input has the shape {x.shape}, which is not known before the call"
    return None


def is_symbolic(x: Any) -> bool:
    """Whether x has a shape alone, and no values; of arrays that are traced, the kernels take the shape too."""
    return False


def call(settings: Settings, operands: Operands) -> list[Any]:
    """[y], or with return_state [y, *states]."""
    chosen = kernels.settings(
        settings.cell,
        settings.activations,
        zero_output_for_mask=settings.zero_output_for_mask,
        return_sequences=settings.return_sequences,
        return_state=settings.return_state,
        go_backwards=settings.go_backwards,
        name=settings.name,
    )
    return list(kernels.call(chosen, *operands))
