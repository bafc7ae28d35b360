"""The layers SimpleRNN, LSTM and GRU, as subclasses of Keras'."""

from __future__ import annotations

import functools
import importlib
import warnings
from types import ModuleType
from typing import Any

import keras

from fastrnn import activations
from fastrnn.keras._arrays import Operands, Settings

__all__ = ["GRU", "LSTM", "FallbackWarning", "SimpleRNN"]

BACKENDS = ("torch", "jax", "tensorflow")


class FallbackWarning(UserWarning):
    """A layer of `fastrnn.keras` is computed by Keras itself; the message names the layer and the reason."""


_NAME = keras.backend.backend()
# Imported at once: on TensorFlow a SavedModel may be loaded before the first layer is called.
_BACKEND: ModuleType | None = (
    importlib.import_module(f"fastrnn.keras._{_NAME}") if _NAME in BACKENDS else None
)


@functools.lru_cache(maxsize=256)
def _activation(function: Any) -> activations.Activation:
    found = activations.get(function)
    assert isinstance(found, activations.Activation)  # Keras' layers have no pairs of callables
    return found


class _OnKernels:
    """Computes the time steps of a recurrent layer of Keras with the kernels, or leaves them to Keras.

    It has no attributes of its own beside what it notes about warnings and XLA, so that a layer of Keras becomes one of
    these by its class alone; see `accelerate`.
    """

    cell: Any
    name: str
    _fastrnn_warned = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _leave_xla(self)

    def inner_loop(self, sequences: Any, initial_state: Any, mask: Any, training: bool = False) -> Any:
        """Compute all time steps; called by Keras' `call`."""
        if isinstance(mask, (list, tuple)):
            mask = mask[0]
        backend = _BACKEND
        symbolic = backend is not None and backend.is_symbolic(sequences)
        reason = None if symbolic else self._reason_against(backend, sequences, mask)
        if backend is None or symbolic or reason:
            if reason and not self._fastrnn_warned:
                self._fastrnn_warned = True
                message = (
                    f"{type(self).__name__} {self.name!r}: Keras computes this layer, not fastrnn: {reason}"
                )
                warnings.warn(message, FallbackWarning, stacklevel=2)
            return super().inner_loop(sequences, initial_state, mask, training=training)  # type: ignore[misc]

        operands = self._operands(sequences, initial_state, mask, training)
        y, *states = backend.call(self._settings(training), operands)
        return y, y, states  # Keras takes the first or the second, by return_sequences

    def _settings(self, training: bool) -> Settings:
        layer: Any = self
        cell = layer.cell
        activation = _activation(cell.activation)
        return Settings(
            name=f"{type(self).__name__} {self.name!r}",
            cell=_cell(cell),
            activations=(
                _activation(getattr(cell, "recurrent_activation", cell.activation)),
                activation,
                activation,
            ),
            return_sequences=layer.return_sequences,
            return_state=layer.return_state or layer.stateful,
            go_backwards=layer.go_backwards,
            zero_output_for_mask=layer.zero_output_for_mask,
            training=bool(training),
        )

    def _operands(self, sequences: Any, initial_state: Any, mask: Any, training: bool) -> Operands:
        ops, cell = keras.ops, self.cell
        weights = (cell.kernel, cell.recurrent_kernel, *([cell.bias] if cell.use_bias else []))
        states = initial_state if isinstance(initial_state, (list, tuple)) else [initial_state]
        dtype = cell.compute_dtype
        dropout_mask = recurrent_dropout_mask = None
        if training and cell.dropout:
            dropout_mask = cell.get_dropout_mask(sequences[:, 0, :])
            if isinstance(dropout_mask, (list, tuple)):  # one for each gate
                dropout_mask = ops.stack(dropout_mask, axis=1)
        if training and cell.recurrent_dropout:
            found = cell.get_recurrent_dropout_mask(states[0])
            recurrent_dropout_mask = ops.stack(found if isinstance(found, (list, tuple)) else [found], axis=1)
        if mask is not None:
            mask = ops.cast(mask, "bool")
        return Operands(
            ops.convert_to_tensor(sequences, dtype),
            tuple(w.value if w.dtype == dtype else ops.convert_to_tensor(w, dtype) for w in weights),
            tuple(states),
            mask,
            dropout_mask,
            recurrent_dropout_mask,
        )

    def _reason_against(self, backend: ModuleType | None, sequences: Any, mask: Any) -> str | None:
        """Why the kernels cannot compute this call, or None."""
        if backend is None:
            return f"it knows Keras' backends {', '.join(BACKENDS)}, not {keras.backend.backend()}"
        return (
            reason_against(self)
            or backend.reason_against(sequences)
            or (
                f"the mask has {len(mask.shape)} axes, not two"
                if mask is not None and len(mask.shape) != 2
                else None
            )
        )


def reason_against(layer: Any) -> str | None:
    """Why the kernels cannot compute a layer, whatever its inputs, or None."""
    cell = layer.cell
    if cell.compute_dtype not in ("float32", "float64"):
        return f"it computes in {cell.compute_dtype}, not in float32 or float64"
    if getattr(layer, "use_cudnn", None) is True:
        return "use_cudnn=True asks for a graphics card"
    if 1.0 in (cell.dropout, cell.recurrent_dropout):
        return "a rate of dropout is 1"
    for name in ("activation", "recurrent_activation"):
        try:
            _activation(getattr(cell, name, None))
        except (TypeError, ValueError):
            return f"the kernels don't know the {name} {getattr(cell, name)!r}"
    return None


def _cell(cell: Any) -> str:
    if isinstance(cell, keras.layers.GRUCell):
        return "gru" if cell.reset_after else "gru_reset_before"
    return "lstm" if isinstance(cell, keras.layers.LSTMCell) else "simple_rnn"


def _leave_xla(layer: Any) -> None:
    """Have a model with this layer compiled without XLA: that of TensorFlow knows nothing of the kernels."""
    if keras.backend.backend() == "tensorflow":
        layer.supports_jit = False


_registered = keras.saving.register_keras_serializable(package="fastrnn")


@_registered
class SimpleRNN(_OnKernels, keras.layers.SimpleRNN):
    """`keras.layers.SimpleRNN` on fastrnn's kernels: the same arguments, weights, config and results.

    >>> import keras
    >>> SimpleRNN(16)(keras.ops.zeros((8, 5, 3))).shape[1]
    16
    """


@_registered
class LSTM(_OnKernels, keras.layers.LSTM):
    """`keras.layers.LSTM` on fastrnn's kernels: the same arguments, weights, config and results.

    >>> import keras
    >>> LSTM(16)(keras.ops.zeros((8, 5, 3))).shape[1]
    16
    """


@_registered
class GRU(_OnKernels, keras.layers.GRU):
    """`keras.layers.GRU` on fastrnn's kernels: the same arguments, weights, config and results.

    >>> import keras
    >>> GRU(16)(keras.ops.zeros((8, 5, 3))).shape[1]
    16
    """
