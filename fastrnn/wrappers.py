"""Layers around other layers: Keras' arguments and results.

    layer = fastrnn.Bidirectional(fastrnn.LSTM(64, return_sequences=True))
    y = layer(x)                          # x [B, T, I] -> y [B, T, 128]: one direction beside the other
    y, tape = layer.forward(x)
    grads = layer.backward(dy, tape)      # grads.weights: those of the forward layer, then of the backward layer

Legend: B batch, T time steps, I inputs, H units.
"""

from __future__ import annotations

import copy
import reprlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from fastrnn.arguments import CHECKS, LayerDType, floating, ids, plain
from fastrnn.cells import RNN, HasWeightsOfMembers, _Fused, config_of, from_config_of
from fastrnn.functional import Array, Gradients, Weights, embedding_gradient, mask_of, require_rows
from fastrnn.layers import Embedded, _Recurrent
from fastrnn.runtime import at_once
from fastrnn.states import KeepsStates

__all__ = ["Bidirectional"]

MergeMode = Literal["concat", "sum", "mul", "ave"] | None
DIRECTIONS = ("forward", "backward")
MERGE_MODES = ("concat", "sum", "mul", "ave", None)

# Fused multiply-adds of one direction from which both run at the same time. Measured on two cores with AVX-512: time of one
# after the other with two threads each, over that of both at once with one each, medians of interleaved calls, LSTM,
# inference and training, [B T I H]. [64 100 256 256] (3e9): 1.00, 1.01; [256 50 64 128] (1e9): 0.99, 1.02; [32 500 64 128]
# (2e9): 0.98, 1.02. Below: [16 100 256 256] (8e8): 0.98, 0.99; [32 100 64 128] (3e8): 0.94, 0.98. Where other programs use
# the cores too, it was 1.02 to 1.2 above the limit. There is little to gain where a batch divides well among the threads.
WORTH_BOTH_AT_ONCE = 1e9


class BidirectionalTape:
    """What `Bidirectional.backward` needs of one `forward`: owned by the caller, good for one backward."""

    __slots__ = ("_factors", "_return_sequences", "_shapes", "_tapes", "_together", "_wrapper", "losses")

    losses: list[float]
    """What the regularizers of both layers add to the loss; its gradient is part of what `backward` returns."""

    def __init__(
        self,
        wrapper: Bidirectional,
        tapes: list[Any],
        outputs: list[Array],
        shapes: list[tuple[int, ...]],
        together: bool,
    ) -> None:
        self._wrapper = wrapper
        self._tapes = tapes
        self._factors = outputs if wrapper.merge_mode == "mul" else []
        self._shapes = shapes
        self._return_sequences = wrapper.return_sequences
        self._together = together
        self.losses = [loss for tape in tapes for loss in tape.losses]

    def gates(self) -> dict[str, Array]:
        """What the gates were in all steps, in the order of x, before the tape is used; see `functional.gates`."""
        return {
            f"{direction}_{name}": self._in_order_of_x(direction, gate)
            for direction, tape in zip(DIRECTIONS, self._tapes, strict=True)
            for name, gate in tape.gates().items()
        }

    def _in_order_of_x(self, direction: str, values: Array) -> Array:
        """What a direction computed [B, T, ...]."""
        layer = getattr(self._wrapper, f"{direction}_layer")
        return values[:, ::-1] if layer.go_backwards else values


class Bidirectional(HasWeightsOfMembers, KeepsStates):
    """One layer that reads x from its beginning and one that reads it from its end; keras.layers.Bidirectional.

        y_f = forward_layer(x)
        y_b = backward_layer(x), with return_sequences in the order of x
        concat: y = [y_f, y_b]      sum: y = y_f + y_b      ave: y = (y_f + y_b) / 2      mul: y = y_f * y_b

    Schuster and Paliwal, "Bidirectional Recurrent Neural Networks" (1997). With a mask and return_sequences the
    outputs of masked steps are zeros, whatever the layers say of it, as in Keras. Large calls run both directions at
    the same time, each with half of the threads; Ctrl-C then ends the call at once, while the kernel of the backward
    layer runs to its end in a thread of its own, whose result nobody sees.

    Args:
        layer: SimpleRNN, IndRNN, LSTM, GRU or RNN; `forward_layer` is a new one of its arguments, without its weights but
            for an embedding.
        merge_mode: "concat", "sum", "mul", "ave", or None: both outputs are returned.
        weights: arrays in the order of `weights`, which the layer is built with.
        backward_layer: the layer for the other direction, used itself: with the other go_backwards, and the same
            stateful, return_sequences and return_state. None: a new one of the arguments of `layer`, but for
            go_backwards=True, and for `seed`, of which another is made, so that its weights and dropout are others.
            If `layer` has an embedding, both read it: it is the last weight of the forward layer, whose gradient counts
            both, and this layer has none.
        trainable: if False, both layers are made so.
        dtype: that of both layers, which is the default.
        name: a str without "/".

    Weights: those of the forward layer, then those of the backward layer.

    Raises:
        TypeError: an argument isn't what is said here.
        ValueError: the two layers don't fit together, or merge_mode is something else.

    >>> import numpy as np
    >>> from fastrnn.layers import LSTM
    >>> layer = Bidirectional(LSTM(4, return_sequences=True, return_state=True))
    >>> y, *states = layer(np.zeros((32, 10, 8), "float32"))
    >>> y.shape, [state.shape for state in states]
    ((32, 10, 8), [(32, 4), (32, 4), (32, 4), (32, 4)])
    """

    forward_layer: Any
    backward_layer: Any
    merge_mode: MergeMode
    dtype: str
    name: str
    _trainable: bool

    def __init__(
        self,
        layer: Any,
        merge_mode: MergeMode = "concat",
        weights: Sequence[ArrayLike] | None = None,
        backward_layer: Any = None,
        *,
        trainable: bool = True,
        dtype: LayerDType | None = None,
        name: str | None = None,
    ) -> None:
        self._where = where = type(self).__name__
        for argument, given in (("layer", layer), ("backward_layer", backward_layer)):
            if not isinstance(given, (_Recurrent, RNN)) and (given is not None or argument == "layer"):
                raise TypeError(
                    f"{where}: {argument} must be a SimpleRNN, IndRNN, LSTM, GRU or RNN of fastrnn, got "
                    f"{reprlib.repr(given)}; write for example {where}(fastrnn.LSTM(64))"
                )
        if getattr(backward_layer, "embedding", None) is not None:
            raise ValueError(
                f"{where}: backward_layer must have no embedding, as both read that of layer, got {backward_layer!r}; "
                "give it to layer alone"
            )
        if merge_mode not in MERGE_MODES:
            raise ValueError(
                f"{where}: merge_mode must be one of {list(MERGE_MODES)}, got {reprlib.repr(merge_mode)}; "
                'the default is "concat"'
            )
        forward = _anew(layer, name=f"forward_{layer.name.removeprefix('forward_')}")
        if backward_layer is None:
            backward = _anew(
                layer,
                other=True,
                name=f"backward_{layer.name.removeprefix('backward_')}",
                go_backwards=True,
                **{
                    argument: None
                    for argument in ([] if isinstance(layer, RNN) else layer._arguments)
                    if argument.startswith("embedding")
                },
            )
        else:
            backward = backward_layer
        for argument in ("stateful", "return_sequences", "return_state", "dtype"):
            one, other = getattr(forward, argument), getattr(backward, argument)
            if one != other:
                raise ValueError(
                    f"{where}: {argument} must be the same for both layers, got {one!r} for layer and {other!r} "
                    "for backward_layer; make them alike"
                )
        if forward.go_backwards == backward.go_backwards:
            raise ValueError(
                f"{where}: go_backwards must be another for each layer, got {forward.go_backwards} for both; "
                "pass a layer without it, or a backward_layer with the other value"
            )
        if merge_mode not in ("concat", None) and _units(forward) != _units(backward):
            raise ValueError(
                f"{where}: merge_mode={merge_mode!r} needs layers with the same number of units, got "
                f'{_units(forward)} and {_units(backward)}; use "concat"'
            )
        chosen = CHECKS["dtype"](where, "dtype", forward.dtype if dtype is None else dtype)
        if chosen != forward.dtype:
            raise ValueError(
                f"{where}: dtype must be that of the layers, got {chosen!r} with layers of {forward.dtype!r}; "
                "make layers of one dtype"
            )
        self.__dict__.update(
            forward_layer=_with_zero_output(forward),
            backward_layer=_with_zero_output(backward),
            merge_mode=merge_mode,
            dtype=chosen,
            name=CHECKS["name"](where, "name", name),
        )
        self._weights_given = None if weights is None else [np.array(w) for w in weights]
        self._trainable = CHECKS["trainable"](where, "trainable", trainable)
        if not trainable:
            self.trainable = False

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuses what may not change."""
        if name in ("forward_layer", "backward_layer", "merge_mode", "dtype", "name"):
            raise AttributeError(
                f"{self._where}: {name} cannot be changed after the layer is made, got {reprlib.repr(value)}; "
                f"make a new layer with {self._where}(layer, ...)"
            )
        super().__setattr__(name, value)

    # ---- calls

    def __call__(
        self,
        x: ArrayLike,
        initial_state: Sequence[Any] | None = None,
        mask: ArrayLike | None = None,
        training: bool | None = False,
        *,
        lengths: ArrayLike | None = None,
    ) -> Any:
        """Runs both layers over whole sequences.

        Args:
            x: floating array [B, T, I]; a width other than `dtype` is converted. With an embedding integers [B, T].
            initial_state: None (zeros), or a list: the states of the forward layer, then those of the backward layer,
                in the form in which return_state returns them.
            mask: bool array [B, T], True where there is a step; None: everywhere.
            training: whether dropout and zoneout are used.
            lengths: integers [B]; short for the mask that is True in the first so many steps of each row.

        Returns:
            y: of [B, H] and [B, H], or with return_sequences of [B, T, H] and [B, T, H], what merge_mode makes; with
            merge_mode None the tuple of both. With return_state the tuple (y, *states) or (y_f, y_b, *states), the
            states of the forward layer before those of the backward layer.

        Raises:
            As a call of the layers.
        """
        return self._run(x, initial_state, mask, training, lengths, None)

    def forward(
        self,
        x: ArrayLike,
        initial_state: Sequence[Any] | None = None,
        mask: ArrayLike | None = None,
        training: bool | None = True,
        *,
        lengths: ArrayLike | None = None,
        checkpoint: int | bool = False,
    ) -> tuple[Any, BidirectionalTape]:
        """Runs both layers as a call does, and keeps what `backward` needs.

        Args:
            x, initial_state, mask, training, lengths: as in a call.
            checkpoint: as of `LSTM.forward`, for both layers.

        Returns:
            (outputs, tape): what the call returns, and the tape to hand to `backward`, once. The tape refers to x,
            initial_state and mask, with merge_mode None and an activity_regularizer also to the outputs: don't change
            them before.

        Raises:
            As a call.
        """
        tapes: list[BidirectionalTape] = []
        outputs = self._run(x, initial_state, mask, training, lengths, tapes, checkpoint)
        return outputs, tapes[0]

    def backward(self, dy: Any, tape: BidirectionalTape) -> Gradients:
        """The gradients of a loss, from its gradient by what `forward` returned.

        Args:
            dy: gradient by y; where `forward` returned several, a list with the gradient by each. None, alone or as
                an item, means zeros.
            tape: what `forward` of this layer returned. It is used up, also if an exception interrupts this, but for one
                with `checkpoint`.

        Returns:
            functional.Gradients: x [B, T, I]; weights, a list in the order of `weights`; initial_state, a list of
            those of the forward layer, then of the backward layer.

        Raises:
            TypeError, ValueError: `tape` is no tape of this layer, or dy doesn't fit.
            RuntimeError: the tape was used before.
        """
        if not isinstance(tape, BidirectionalTape) or tape._wrapper is not self:
            raise (ValueError if isinstance(tape, BidirectionalTape) else TypeError)(
                f"{self._where}: tape must be what this layer's forward returned, got {reprlib.repr(tape)}; "
                "call y, tape = layer.forward(x), then layer.backward(dy, tape)"
            )
        first, second = at_once_if(
            tape._together,
            *(
                partial(layer.backward, gradient, layer_tape)
                for layer, gradient, layer_tape in zip(
                    self._members, self._split_gradients(dy, tape), tape._tapes, strict=True
                )
            ),
        )
        if self._embeds:
            read, mask, rows = tape._tapes[0]._ids
            first.weights[-1] += embedding_gradient(read, second.x, rows, mask)
        return Gradients(
            np.add(first.x, second.x, out=first.x),
            [*first.weights, *second.weights],
            [*first.initial_state, *second.initial_state],
        )

    def _run(
        self,
        x: Any,
        initial_state: Any,
        mask: Any,
        training: Any,
        lengths: Any,
        tapes: list[BidirectionalTape] | None,
        checkpoint: int | bool = False,
    ) -> Any:
        x = ids(self._where, "x", x) if self._embeds else floating(self._where, "x", x, self.dtype)
        if x.ndim == (2 if self._embeds else 3):  # others the layers refuse
            if lengths is not None:
                mask, lengths = mask_of(self._where, lengths, mask, x), None
            if not self.built or self._weights_given is not None:
                self.build(x.shape)
        inputs = [x, self._rows(x, mask) if self._embeds else x]
        together = self._worth_both_at_once(inputs[1])
        kept = [layer._kept for layer in self._members]
        try:
            results: list[Any] = list(
                at_once_if(
                    together,
                    *(
                        partial(layer, given, states, mask, training)
                        if tapes is None
                        else partial(layer.forward, given, states, mask, training, checkpoint=checkpoint)
                        for layer, given, states in zip(
                            self._members, inputs, self._split_states(initial_state), strict=True
                        )
                    ),
                )
            )
        except BaseException:
            for layer, states in zip(self._members, kept, strict=True):
                layer._kept = states  # both as before
            raise
        layer_tapes = []
        if tapes is not None:
            results, layer_tapes = map(list, zip(*results, strict=True))
        final: list[Any] = []
        outputs: list[Array] = []
        for result in results:
            y, *states = result if self.return_state else (result,)
            outputs.append(y)
            final += states
        if self.return_sequences:
            outputs[1] = outputs[1][:, ::-1]
        merged = self._merge(outputs, in_place=tapes is None and self.return_sequences)
        if tapes is not None:
            shapes = [y.shape for y in merged]
            tapes.append(BidirectionalTape(self, layer_tapes, outputs, shapes, together))
        return (*merged, *final) if len(merged) + len(final) > 1 else merged[0]

    @property
    def _embeds(self) -> bool:
        """Whether x is ids."""
        return getattr(self.forward_layer, "embedding", None) is not None

    def _rows(self, x: Array, mask: Any) -> Array:
        """What the backward layer reads [B, T, I]: the rows of the embedding, zeros at masked steps."""
        if x.ndim != 2:
            return x  # which the forward layer refuses
        embedding: Array = self.forward_layer.weights[-1]
        real = np.ones(x.shape, bool) if mask is None else plain(self._where, "mask", mask)
        if real.dtype != bool or real.shape != x.shape:
            real = np.zeros(x.shape, bool)  # a mask that the forward layer refuses
        require_rows(self._where, "x", x[real], len(embedding))
        rows = np.zeros((*x.shape, embedding.shape[1]), embedding.dtype)
        rows[real] = embedding[x[real]]
        return rows

    def _shapes(self, input_shape: Sequence[int | None]) -> list[Any]:
        """The shapes of what each layer reads."""
        rows = (*input_shape, self.forward_layer.embedding[1]) if self._embeds else input_shape
        return [input_shape, rows]

    def _merge(self, outputs: list[Array], in_place: bool) -> list[Array]:
        """The outputs that the layer returns; `in_place`: that of the forward layer is nobody else's."""
        first, second = outputs
        out = first if in_place else None
        if self.merge_mode is None:
            return [first, np.ascontiguousarray(second)]
        if self.merge_mode == "concat":
            return [np.concatenate(outputs, -1)]
        if self.merge_mode == "mul":
            return [np.multiply(first, second, out=out)]
        y = np.add(first, second, out=out)
        if self.merge_mode == "ave":
            y *= 0.5
        return [y]

    def _split_gradients(self, dy: Any, tape: BidirectionalTape) -> list[Any]:
        """What each layer's backward takes."""
        count = len(tape._shapes)
        sizes = [_state_count(layer) if self.return_state else 0 for layer in self._members]
        total = count + sum(sizes)
        given = [dy] if total == 1 else [None] * total if dy is None else dy
        if not isinstance(given, (list, tuple)) or len(given) != total:
            error = ValueError if isinstance(given, (list, tuple)) else TypeError
            raise error(
                f"{self._where}: dy must be a list of {total}, the gradients by what forward returned, got "
                f"{len(given) if error is ValueError else type(given).__name__}; None in it means zeros"
            )
        merged = [None if d is None else floating(self._where, "dy", d, self.dtype) for d in given[:count]]
        for d, shape in zip(merged, tape._shapes, strict=True):
            if d is not None and d.shape != shape:
                raise ValueError(
                    f"{self._where}: dy must have the shape {shape} of what forward returned, got {d.shape}"
                )
        pair = self._gradients_of_merge(merged, tape)
        if tape._return_sequences and pair[1] is not None:
            pair[1] = pair[1][:, ::-1]
        if not self.return_state:
            return pair
        return [[pair[0], *given[count : count + sizes[0]]], [pair[1], *given[count + sizes[0] :]]]

    def _gradients_of_merge(self, merged: list[Array | None], tape: BidirectionalTape) -> list[Array | None]:
        d = merged[0]
        if self.merge_mode is None or d is None:
            return merged if self.merge_mode is None else [None, None]
        if self.merge_mode == "concat":  # y = [y_f, y_b]
            return list(np.split(d, [_units(self.forward_layer)], -1))
        if self.merge_mode == "mul":  # y = y_f * y_b
            first, second = tape._factors
            return [d * second, d * first]
        if self.merge_mode == "ave":  # y = (y_f + y_b) / 2
            d = d * d.dtype.type(0.5)
        return [d, d]

    def _split_states(self, states: Any) -> list[Any]:
        """The initial states of each layer, of those given for both."""
        if states is None:
            return [None, None]
        first, second = map(_state_count, self._members)
        if not isinstance(states, (list, tuple)) or len(states) != first + second:
            got = len(states) if isinstance(states, (list, tuple)) else type(states).__name__
            raise ValueError(
                f"{self._where}: initial_state must be a list of {first + second}, the states of the forward layer "
                f"({first}), then of the backward layer ({second}), got {got}; None in it means zeros"
            )
        return [list(states[:first]), list(states[first:])]

    def _worth_both_at_once(self, x: Array) -> bool:
        """Whether both directions are long work in kernels, and change nothing but what they return."""
        if self.stateful or x.ndim != 3:
            return False
        work = x.shape[0] * x.shape[1] * min(sum(w.size for w in layer.weights) for layer in self._members)
        return work >= WORTH_BOTH_AT_ONCE and all(map(_in_kernels, self._members))

    # ---- states

    @property
    def return_sequences(self) -> bool:
        """That of the layers."""
        return bool(self.forward_layer.return_sequences)

    @property
    def return_state(self) -> bool:
        """That of the layers."""
        return bool(self.forward_layer.return_state)

    @property
    def stateful(self) -> bool:  # type: ignore[override]
        """That of the layers."""
        return bool(self.forward_layer.stateful)

    @property
    def states(self) -> Any:
        """The states that the next call begins with, those of the forward layer first; None as for the layers."""
        first, second = (layer.states for layer in self._members)
        return None if first is None or second is None else [*first, *second]

    def reset_state(self) -> None:
        """Makes the states of both layers zeros."""
        for layer in self._members:
            layer.reset_state()

    # ---- weights

    @property
    def _members(self) -> list[Any]:
        return [self.forward_layer, self.backward_layer]

    @property
    def trainable(self) -> bool:
        """Whether the weights are to be trained; set, it is set for both layers."""
        return self._trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        self._trainable = CHECKS["trainable"](self._where, "trainable", value)
        for layer in self._members:
            layer.trainable = self._trainable

    @property
    def losses(self) -> list[float]:
        """What the regularizers of both layers' weights add to the loss; none if not `trainable`."""
        return [loss for layer in self._members for loss in layer.losses]

    @property
    def built(self) -> bool:
        """Whether both layers have their weights yet."""
        return all(layer.built for layer in self._members)

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Makes the weights of both layers, as the first call does by itself.

        Args:
            input_shape: (batch, time, features), with an embedding (batch, time); only features is read.
        """
        for layer, shape in zip(self._members, self._shapes(input_shape), strict=True):
            layer.build(shape)
        if self._weights_given is not None:
            self.set_weights(self._weights_given)
            self._weights_given = None

    # ---- description

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> Any:
        """The shape of what a call returns.

        Args:
            input_shape: (batch, time, features), with an embedding (batch, time); None for what isn't known.

        Returns:
            The shape of y; where a call returns a tuple, a tuple of shapes.
        """
        shapes: list[Any] = []
        states: list[Any] = []
        for layer, given in zip(self._members, self._shapes(input_shape), strict=True):
            shape = layer.compute_output_shape(given)
            y, *rest = shape if self.return_state else (shape,)
            shapes.append(y)
            states += rest
        if self.merge_mode is not None:
            units = sum(map(_units, self._members)) if self.merge_mode == "concat" else shapes[0][-1]
            shapes = [(*shapes[0][:-1], units)]
        return (*shapes, *states) if len(shapes) + len(states) > 1 else shapes[0]

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, without weights, as a JSON-able dict, for `from_config` here or of Keras' layer.

        Raises:
            TypeError: a cell, initializer, regularizer or constraint is one's own and has no config.
        """
        layers = {
            argument: config_of("layer", layer)
            for argument, layer in zip(("layer", "backward_layer"), self._members, strict=True)
        }
        names = ("merge_mode", "trainable", "dtype", "name")
        return layers | {name: getattr(self, name) for name in names}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Mapping[str, Any] | None = None) -> Any:
        """A new layer, without weights, from what `get_config` returned here or in Keras.

        Args:
            config: the dict.
            custom_objects: the classes of layers and cells of one's own, by their names.
        """
        layers = {
            argument: from_config_of("layer", config[argument], custom_objects)
            for argument in ("layer", "backward_layer")
            if config.get(argument) is not None
        }
        return cls(**config | layers)

    def __repr__(self) -> str:
        """The call that makes it."""
        return (
            f"{self._where}({self.forward_layer!r}, merge_mode={self.merge_mode!r}, "
            f"backward_layer={self.backward_layer!r})"
        )

    def __getstate__(self) -> dict[str, Any]:
        """All, with copies of the layers, which have no states that are kept."""
        return self.__dict__ | {
            name: copy.copy(getattr(self, name)) for name in ("forward_layer", "backward_layer")
        }


def at_once_if(together: bool, first: Any, second: Any) -> tuple[Any, Any]:
    """(first(), second()), at the same time or one after the other."""
    return at_once(first, second) if together else (first(), second())


# ---- A layer that runs one direction


def _units(layer: Any) -> int:
    """The number of its outputs."""
    shape = layer.compute_output_shape((None,) * (3 if getattr(layer, "embedding", None) is None else 2))
    return int((shape[0] if layer.return_state else shape)[-1])


def _state_count(layer: Any) -> int:
    """How many items its states have in what a call returns."""
    if isinstance(layer, RNN):
        return len(layer._parts) if layer._stacked else layer._parts[0].states
    return int(layer._states)


def _in_kernels(layer: Any) -> bool:
    """Whether it works in kernels alone, without the GIL."""
    if isinstance(layer, RNN):
        return all(isinstance(part, _Fused) for part in layer._parts)
    packed = layer._packed
    return isinstance(packed.core if isinstance(packed, Embedded) else packed, Weights)


def _anew(layer: Any, other: bool = False, **changes: Any) -> Any:
    """A new layer of the same arguments but for `changes`, with the embedding alone of its weights.

    `other`: and with other seeds.
    """
    custom: dict[str, Any] = {}
    if isinstance(layer, RNN):
        config = layer.get_config()
        custom = {"custom_objects": {type(cell).__name__: type(cell) for cell in layer._cells}}
    elif type(layer).get_config is _Recurrent.get_config:  # objects go along that no config can be written of
        config = {argument: getattr(layer, argument) for argument in layer._arguments}
    else:
        config = layer.get_config()
    if getattr(layer, "embedding", None) is not None:
        table = layer.weights[-1] if layer.built else layer._table
        config["embedding"] = layer.embedding if table is None else table
    return type(layer).from_config((_with_other_seeds(config) if other else config) | changes, **custom)


def _with_other_seeds(config: dict[str, Any]) -> dict[str, Any]:
    """A layer's config, in which each seed of it and its cells is replaced by one that is made of it."""
    changed = dict(config)
    if config.get("seed") is not None:
        drawn = np.random.SeedSequence((config["seed"], 1)).generate_state(1)[0]
        changed["seed"] = int(drawn >> 1)  # which Keras' int32 holds
    for key in ("cell", "config"):
        if isinstance(config.get(key), dict):
            changed[key] = _with_other_seeds(config[key])
    if "cells" in config:
        changed["cells"] = [_with_other_seeds(cell) for cell in config["cells"]]
    return changed


def _with_zero_output(layer: Any) -> Any:
    """The layer, or an RNN of its cell, with zeros as outputs of masked steps where it returns sequences."""
    if layer.zero_output_for_mask == layer.return_sequences:
        return layer
    if isinstance(layer, RNN):
        arguments = {name: getattr(layer, name) for name in (*layer._FLAGS, "trainable", "dtype", "name")}
        return type(layer)(layer.cell, **arguments | {"zero_output_for_mask": layer.return_sequences})
    vars(layer)["zero_output_for_mask"] = layer.return_sequences
    return layer
