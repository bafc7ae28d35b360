"""The call on JAX's arrays: a custom VJP around callbacks."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
from keras.src.backend.common.symbolic_scope import in_symbolic_scope

from fastrnn.keras import _arrays
from fastrnn.keras._arrays import Operands, Settings


def reason_against(x: Any) -> str | None:
    """Why the kernels cannot read x, or None."""
    if not _is_known(x.shape):
        return f"its input has the shape {x.shape}, which is not known before the call"
    if jax.default_backend() != "cpu":
        return f"JAX runs on the device {jax.default_backend()}, not on the processor"
    return None


def is_symbolic(x: Any) -> bool:
    """Whether Keras asks for shapes alone, some of them unknown; where all are known, the kernels tell them."""
    return in_symbolic_scope() and not _is_known(x.shape)


def _is_known(shape: Any) -> bool:
    return all(isinstance(n, int) for n in shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def call(settings: Settings, operands: Operands) -> list[Any]:
    """[y], or with return_state [y, *states]; differentiable once in reverse mode."""
    return _callback(_run, _outputs(settings, operands), settings, operands)


def _forward(settings: Settings, operands: Operands) -> tuple[list[Any], Any]:
    batch, time = operands.x.shape[:2]
    units = operands.weights[1].shape[0]
    slots = _arrays.tape_slots(settings, units, str(operands.x.dtype))
    saved = jax.ShapeDtypeStruct((batch, time, slots, units), operands.x.dtype)
    outputs, tape = _callback(_run_forward, (_outputs(settings, operands), saved), settings, operands)
    return outputs, (operands, tape)


def _backward(settings: Settings, kept: Any, gradients: list[Any]) -> tuple[Operands]:
    operands, tape = kept
    x, weights, states = operands[:3]
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (x, *weights, *states)]
    dx, *found = _callback(_run_backward, shapes, settings, operands, tape, gradients)
    count = len(weights)
    return (Operands(dx, tuple(found[:count]), tuple(found[count:])),)


call.defvjp(_forward, _backward)


def _outputs(settings: Settings, operands: Operands) -> list[Any]:
    batch, time = operands.x.shape[:2]
    state = (batch, operands.weights[1].shape[0])
    y = (batch, time, state[1]) if settings.return_sequences else state
    states = len(operands.states) if settings.return_state else 0
    return [jax.ShapeDtypeStruct(shape, operands.x.dtype) for shape in (y, *[state] * states)]


def _callback(function: Any, shapes: Any, settings: Settings, *arrays: Any) -> Any:
    return jax.pure_callback(functools.partial(function, settings), shapes, *arrays, vmap_method="sequential")


def _as_arrays(tree: Any) -> Any:
    return jax.tree.map(np.asarray, tree)


def _run(settings: Settings, operands: Operands) -> Any:
    return _arrays.run(settings, _as_arrays(operands))


def _run_forward(settings: Settings, operands: Operands) -> Any:
    return _arrays.run_forward(settings, _as_arrays(operands))


def _run_backward(settings: Settings, operands: Operands, tape: Any, gradients: list[Any]) -> Any:
    return _arrays.run_backward(settings, *_as_arrays((operands, tape, gradients)))
