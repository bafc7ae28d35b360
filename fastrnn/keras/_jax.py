"""The call on JAX's arrays: that of fastrnn.jax."""

from __future__ import annotations

import importlib
from typing import Any

import jax
from keras.src.backend.common.symbolic_scope import in_symbolic_scope

from fastrnn.keras._arrays import Operands, Settings

kernels: Any = importlib.import_module("fastrnn.jax")


def reason_against(x: Any) -> str | None:
    """Why the kernels cannot read x, or None."""
    if jax.default_backend() != "cpu":
        return f"JAX runs on the device {jax.default_backend()}, not on the processor"
    if not _is_known(x.shape):
        return f"its input has the shape {x.shape}, which is not known before the call"
    return None


def is_symbolic(x: Any) -> bool:
    """Whether Keras asks for shapes alone, some of them unknown; where all are known, the kernels tell them."""
    return in_symbolic_scope() and not _is_known(x.shape)


def _is_known(shape: Any) -> bool:
    return all(isinstance(n, int) for n in shape)


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
