"""What a layer's call is: what the backends share."""

from __future__ import annotations

from typing import Any, NamedTuple

from fastrnn.activations import Activation

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
