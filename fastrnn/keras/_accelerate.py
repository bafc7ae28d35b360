"""A model's recurrent layers, swapped for fastrnn's in place."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras

from fastrnn.keras import layers


class Accelerated(NamedTuple):
    """What `accelerate` returns."""

    model: Any
    """The model that was given."""
    replaced: list[str]
    """The paths of the layers that run on the kernels now."""
    kept: dict[str, str]
    """Recurrent layers that are what they were: path -> reason."""

    def __str__(self) -> str:
        lines = [f"fastrnn runs {path}" for path in self.replaced]
        lines += [f"Keras runs {path}: {reason}" for path, reason in self.kept.items()]
        return "\n".join(lines or ["There is no recurrent layer"])


_REPLACEMENT = {
    keras.layers.SimpleRNN: layers.SimpleRNN,
    keras.layers.LSTM: layers.LSTM,
    keras.layers.GRU: layers.GRU,
}


def accelerate(model: Any) -> Accelerated:
    """Turn the SimpleRNN, LSTM and GRU layers of a model into fastrnn's, in place.

    Also those inside of Bidirectional, TimeDistributed and nested models. Each layer stays the object that it is, with its
    variables, name, seeds and place in the graph; only its class changes. So the weights are shared with whatever else uses
    the layer, and an optimizer keeps its state. Functions that were compiled for `fit`, `evaluate` and `predict` are made
    anew at the next call.

    Left alone are layers of your own subclasses, keras.layers.RNN around a cell, and layers that the kernels cannot compute.
    To load a `.keras` file of the model, import fastrnn.keras first.

    Args:
        model: A keras.Model or a layer, built or not.

    Returns:
        The model that was given, the paths of the layers that were replaced, and why others were not. Print it.

    Raises:
        TypeError: `model` is no layer of Keras.

    >>> import keras
    >>> model = keras.Sequential([keras.layers.LSTM(8, name="memory"), keras.layers.Dense(1)])
    >>> accelerate(model).replaced
    ['memory']
    """
    if not isinstance(model, keras.layers.Layer):
        raise TypeError(
            f"fastrnn.keras.accelerate: model must be a keras.Model or a layer of Keras, got a "
            f"{type(model).__module__}.{type(model).__qualname__}"
        )
    replaced, kept = [], {}
    for path, layer in _walk(model, "", set()):
        if not isinstance(layer, keras.layers.RNN) or isinstance(layer, tuple(_REPLACEMENT.values())):
            continue
        replacement = _REPLACEMENT.get(type(layer))
        reason = layers.reason_against(layer) if replacement else f"its class is {type(layer).__name__}"
        if reason is None:
            layer.__class__ = replacement
            layers._leave_xla(layer)
            replaced.append(path)
        else:
            kept[path] = reason
    if replaced:
        for _, layer in _walk(model, "", set()):
            if isinstance(layer, keras.Model):
                _forget_compiled(layer)
    return Accelerated(model, replaced, kept)


def _walk(layer: Any, path: str, seen: set[int]) -> Any:
    """(path, layer) for a layer and all in it, each once."""
    if id(layer) in seen:
        return
    seen.add(id(layer))
    yield path or layer.name, layer
    for inner in layer._flatten_layers(include_self=False, recursive=False):
        yield from _walk(inner, f"{path}/{inner.name}" if path else inner.name, seen)


def _forget_compiled(model: Any) -> None:
    model.train_function = model.test_function = model.predict_function = None
    if model.compiled and model.jit_compile and not all(x.supports_jit for x in model._flatten_layers()):
        model.jit_compile = False
