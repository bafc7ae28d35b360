"""What a layer's call is, and its two passes on NumPy arrays: what the backends share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

from fastrnn import functional
from fastrnn.activations import Activation
from fastrnn.functional import Array

ONCE = "{}: its gradients cannot be differentiated once more; use the layer of keras.layers"  # of its name


class Settings(NamedTuple):
    """What of a call is no array: equal and of equal hash for equal calls."""

    name: str
    """What error messages begin with."""
    cell: str
    activations: tuple[Activation, Activation, Activation]
    """Of the gates, the candidate, and c on its way to h."""
    return_sequences: bool
    return_state: bool
    go_backwards: bool
    zero_output_for_mask: bool
    training: bool
    """That a gradient is likely to be asked for. It may be asked for without, too."""


class Operands(NamedTuple):
    """The arrays of a call, tensors of a framework or NumPy's. The first three have gradients."""

    x: Any
    """[B, T, I]"""
    weights: tuple[Any, ...]
    """kernel, recurrent kernel, and bias if there is one"""
    states: tuple[Any, ...]
    """The initial ones, [B, H]."""
    mask: Any = None
    """[B, T] bool or None"""
    dropout_mask: Any = None
    """[B, I] or [B, G, I] or None"""
    recurrent_dropout_mask: Any = None
    """[B, G, H] or None"""


def make_weights(settings: Settings, weights: Sequence[Array]) -> functional.Weights:
    """The prepared weights of a call."""
    kernel, recurrent_kernel, *bias = weights
    return cast(
        functional.Weights,  # the activations are known to the kernels
        functional.make_weights(
            settings.cell,
            kernel,
            recurrent_kernel,
            bias[0] if bias else None,
            settings.activations,
            settings.name,
        ),
    )


def _options(settings: Settings, operands: Operands) -> dict[str, Any]:
    return {
        "initial_state": operands.states,
        "mask": operands.mask,
        "zero_output_for_mask": settings.zero_output_for_mask,
        "dropout_mask": operands.dropout_mask,
        "recurrent_dropout_mask": operands.recurrent_dropout_mask,
        "return_sequences": settings.return_sequences,
        "return_state": settings.return_state,
        "go_backwards": settings.go_backwards,
    }


def run(settings: Settings, operands: Operands, weights: functional.Weights | None = None) -> list[Array]:
    """[y], or with return_state [y, h] or [y, h, c]."""
    weights = weights or make_weights(settings, operands.weights)
    y = functional.run(weights, operands.x, **_options(settings, operands))
    return list(y) if settings.return_state else [cast(Array, y)]


def run_forward(
    settings: Settings, operands: Operands, weights: functional.Weights | None = None
) -> tuple[list[Array], Array]:
    """The same, and the tape's array [B, T, slots, H]."""
    weights = weights or make_weights(settings, operands.weights)
    y, tape = functional.run_forward(weights, operands.x, **_options(settings, operands))
    return list(y) if settings.return_state else [cast(Array, y)], cast(functional.Tape, tape).saved


def run_backward(
    settings: Settings,
    operands: Operands,
    saved: Array,
    gradients: Sequence[Array | None],
    weights: functional.Weights | None = None,
) -> list[Array]:
    """The gradients of x, the weights and the initial states, in one list; `gradients`: those of what `run` returns."""
    weights = weights or make_weights(settings, operands.weights)
    options = _options(settings, operands)
    tape = functional.restore_tape(weights, saved, operands.x, options.pop("initial_state"), **options)
    found = functional.run_backward(gradients if settings.return_state else gradients[0], tape)
    return [found.x, *found.weights, *found.initial_state]
