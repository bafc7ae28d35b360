"""The cells of the layers, and RNN, the layer made of any cells: Keras' arguments and results.

    cell = fastrnn.LSTMCell(64)
    y_t, states = cell(x_t, cell.get_initial_state(batch_size=32))     # one step
    rnn = fastrnn.RNN(cell, return_sequences=True)                     # the fused kernel, as fastrnn.LSTM(64)
    rnn = fastrnn.RNN([fastrnn.LSTMCell(64), fastrnn.GRUCell(32)])     # one over the other
    rnn = fastrnn.RNN(MyCell(8))                                       # any object, in a loop over time

A cell owns a layer, whose arguments, weights and step are its own; RNN calls such a layer with the weights of the cell.

A cell of one's own is an object with

    state_size                                  an int, or a list of ints if there are several states
    __call__(x_t, states) -> (y_t, states)      x_t [B, I], a list of states [B, size]; leaves its arguments alone

and what of the following it needs: `output_size` (otherwise that of the first state), `get_initial_state(batch_size=)`
(otherwise zeros), `build((batch, features))`, which is called once, `weights` and `set_weights(list)`, a parameter
`training` of its call, `reset_dropout_mask()` and `reset_recurrent_dropout_mask()`, which are called before each sequence,
`get_config()`. Rows of a batch must not mix: a masked row may hold anything. To be trained it has

    forward(x_t, states) -> (y_t, states, saved)
    backward(dy_t, dstates, saved) -> (dx_t, dstates, dweights)     dweights in the order of `weights`

where the gradients have the shapes of what they are the gradients of, and `saved` is whatever backward needs.
"""

from __future__ import annotations

import copy
import inspect
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from fastrnn.activations import ActivationLike
from fastrnn.arguments import (
    CHECKS,
    OF_WEIGHTS,
    LayerDType,
    OfLSTMWeights,
    OfWeights,
    floating,
    given_of_weights,
    plain,
)
from fastrnn.constraints import ConstraintLike
from fastrnn.functional import Array, Gradients, mask_of
from fastrnn.initializers import InitializerLike
from fastrnn.layers import GRU, LSTM, IndRNN, SimpleRNN, StatesLike, Tape, _Recurrent
from fastrnn.regularizers import RegularizerLike
from fastrnn.states import KeepsStates

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["RNN", "GRUCell", "IndRNNCell", "LSTMCell", "SimpleRNNCell", "StackedRNNCells"]


class _Cell:
    """What the cells share: a layer that does the work, and of which the cell shows what a cell has."""

    _layer_class: type[_Recurrent]
    _layer: _Recurrent
    _masks: dict[str, Array]  # of dropout, from the first step in training until they are reset
    _of_layer = frozenset(
        """weights trainable_weights non_trainable_weights kernel recurrent_kernel bias built get_weights set_weights
        count_params losses apply_constraints trainable""".split()
    )

    def __init_subclass__(cls) -> None:
        cls._of_layer = _Cell._of_layer | {name for name in OF_WEIGHTS if hasattr(cls._layer_class, name)}

    def __init__(self, arguments: dict[str, Any]) -> None:
        # `arguments` are the locals() of the cell's own __init__.
        where = type(self).__name__
        of_weights = given_of_weights(where, self._layer_class, arguments["of_weights"])
        arguments = {name: value for name, value in arguments.items() if name in CHECKS} | of_weights
        self._arguments = list(arguments)
        self._layer = _layer(self._layer_class, where, arguments)
        self._masks = {}

    def __getattr__(self, name: str) -> Any:
        if name[0] == "_" or not (name in self._of_layer or name in self._arguments):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self._layer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in CHECKS or name in self._of_layer:
            setattr(self._layer, name, value)  # which refuses what may not change
        else:
            super().__setattr__(name, value)

    def __dir__(self) -> Iterable[str]:
        return {*super().__dir__(), *self._of_layer, *self._arguments}

    @property
    def state_size(self) -> int | list[int]:
        """The width of the state; a list of one for each state if there are several."""
        first, *others = self._layer._widths
        return [first, *others] if others else first

    @property
    def output_size(self) -> int:
        """The number of units, or with proj_size that."""
        return self._layer._widths[0]

    def get_initial_state(self, batch_size: int) -> list[Array]:
        """Zeros [batch_size, H], a list of one for each state."""
        return [np.zeros((batch_size, width), self._layer.dtype) for width in self._layer._widths]

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Makes the weights, as the first call does by itself.

        Args:
            input_shape: (batch, features); only features is read.
        """
        self._layer.build((None, None, tuple(input_shape)[-1]))

    def __call__(
        self, x_t: ArrayLike, states: StatesLike | None, training: bool | None = False
    ) -> tuple[Array, Any]:
        """Runs one time step.

        Args:
            x_t: floating array [B, I].
            states: a list of arrays [B, H], [h] or for LSTM [h, c]; None: zeros. One array alone is h.
            training: whether dropout, recurrent_dropout and the masks of zoneout are used. Those of dropout are drawn at
                the first such step and kept for the next ones, until `reset_dropout_mask` and
                `reset_recurrent_dropout_mask`; those of zoneout are drawn at each.

        Returns:
            (y_t, states): the output [B, H], and the new states, a list; one array if `states` was one.

        Raises:
            TypeError: x_t or a state isn't a floating array.
            ValueError: a shape doesn't fit, that of the kept masks included.
        """
        y_t, new = self._layer._masked_step(x_t, states, training, self._masks)
        return y_t, new if states is None or isinstance(states, (list, tuple)) else new[0]

    def reset_dropout_mask(self) -> None:
        """Forgets the mask of dropout: the next step in training draws another. RNN does so for each call."""
        self._masks.pop("dropout_mask", None)

    def reset_recurrent_dropout_mask(self) -> None:
        """Forgets the mask of recurrent_dropout: the next step in training draws another."""
        self._masks.pop("recurrent_dropout_mask", None)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments as a JSON-able dict, for `from_config` here or of Keras' cell."""
        config = self._layer.get_config()
        return {name: config[name] for name in self._arguments if name in config}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """A new cell, without weights, from what `get_config` returned here or in Keras."""
        return cls(**config)

    def __repr__(self) -> str:
        return repr(self._layer)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_layer": copy.copy(self._layer), "_masks": {}}


def _layer(layer_class: type[_Recurrent], where: str, arguments: dict[str, Any]) -> _Recurrent:
    """A layer whose error messages begin with `where`."""
    layer = layer_class.__new__(layer_class)
    layer._where = where
    layer_class.__init__(layer, **arguments)
    return layer


class SimpleRNNCell(_Cell):
    """One step of `SimpleRNN`: its equation, arguments and weights; keras.layers.SimpleRNNCell.

    Args:
        units, ...: as of `SimpleRNN`, but for what concerns whole sequences, and embedding.

    >>> cell = SimpleRNNCell(4)
    >>> y_t, states = cell(np.zeros((32, 8), "float32"), cell.get_initial_state(32))
    >>> y_t.shape, len(states)
    ((32, 4), 1)
    """

    _layer_class = SimpleRNN

    def __init__(
        self,
        units: int,
        activation: ActivationLike = "tanh",
        use_bias: bool = True,
        kernel_initializer: InitializerLike = "glorot_uniform",
        recurrent_initializer: InitializerLike = "orthogonal",
        bias_initializer: InitializerLike = "zeros",
        kernel_regularizer: RegularizerLike = None,
        recurrent_regularizer: RegularizerLike = None,
        bias_regularizer: RegularizerLike = None,
        kernel_constraint: ConstraintLike = None,
        recurrent_constraint: ConstraintLike = None,
        bias_constraint: ConstraintLike = None,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        seed: int | None = None,
        *,
        layer_norm: bool = False,
        zoneout: float = 0.0,
        trainable: bool = True,
        dtype: LayerDType | None = None,
        name: str | None = None,
        **of_weights: Unpack[OfWeights],
    ) -> None:
        super().__init__(locals())


class IndRNNCell(_Cell):
    """One step of `IndRNN`: its equation, arguments and weights. Keras has no such cell.

    Args:
        units, ...: as of `IndRNN`, but for what concerns whole sequences, and embedding.

    >>> cell = IndRNNCell(4)
    >>> y_t, states = cell(np.zeros((32, 8), "float32"), cell.get_initial_state(32))
    >>> y_t.shape, len(states)
    ((32, 4), 1)
    """

    _layer_class = IndRNN

    def __init__(
        self,
        units: int,
        activation: ActivationLike = "relu",
        use_bias: bool = True,
        kernel_initializer: InitializerLike = "glorot_uniform",
        recurrent_initializer: InitializerLike = "ones",
        bias_initializer: InitializerLike = "zeros",
        kernel_regularizer: RegularizerLike = None,
        recurrent_regularizer: RegularizerLike = None,
        bias_regularizer: RegularizerLike = None,
        kernel_constraint: ConstraintLike = None,
        recurrent_constraint: ConstraintLike = None,
        bias_constraint: ConstraintLike = None,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        seed: int | None = None,
        *,
        layer_norm: bool = False,
        zoneout: float = 0.0,
        trainable: bool = True,
        dtype: LayerDType | None = None,
        name: str | None = None,
        **of_weights: Unpack[OfWeights],
    ) -> None:
        super().__init__(locals())


class LSTMCell(_Cell):
    """One step of `LSTM`: its equations, arguments and weights; keras.layers.LSTMCell.

    Args:
        units, ...: as of `LSTM`, but for what concerns whole sequences, and embedding.

    >>> cell = LSTMCell(4)
    >>> y_t, (h, c) = cell(np.zeros((32, 8), "float32"), cell.get_initial_state(32))
    >>> y_t.shape, h.shape, c.shape
    ((32, 4), (32, 4), (32, 4))
    """

    _layer_class = LSTM

    def __init__(
        self,
        units: int,
        activation: ActivationLike = "tanh",
        recurrent_activation: ActivationLike = "sigmoid",
        use_bias: bool = True,
        kernel_initializer: InitializerLike = "glorot_uniform",
        recurrent_initializer: InitializerLike = "orthogonal",
        bias_initializer: InitializerLike = "zeros",
        unit_forget_bias: bool = True,
        kernel_regularizer: RegularizerLike = None,
        recurrent_regularizer: RegularizerLike = None,
        bias_regularizer: RegularizerLike = None,
        kernel_constraint: ConstraintLike = None,
        recurrent_constraint: ConstraintLike = None,
        bias_constraint: ConstraintLike = None,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        seed: int | None = None,
        *,
        variant: str | None = None,
        peephole: bool | None = None,
        proj_size: int | None = None,
        layer_norm: bool = False,
        zoneout: float = 0.0,
        trainable: bool = True,
        dtype: LayerDType | None = None,
        name: str | None = None,
        **of_weights: Unpack[OfLSTMWeights],
    ) -> None:
        super().__init__(locals())


class GRUCell(_Cell):
    """One step of `GRU`: its equations, arguments and weights; keras.layers.GRUCell.

    Args:
        units, ...: as of `GRU`, but for what concerns whole sequences, and embedding.

    >>> cell = GRUCell(4)
    >>> y_t, states = cell(np.zeros((32, 8), "float32"), cell.get_initial_state(32))
    >>> y_t.shape, len(states)
    ((32, 4), 1)
    """

    _layer_class = GRU

    def __init__(
        self,
        units: int,
        activation: ActivationLike = "tanh",
        recurrent_activation: ActivationLike = "sigmoid",
        use_bias: bool = True,
        kernel_initializer: InitializerLike = "glorot_uniform",
        recurrent_initializer: InitializerLike = "orthogonal",
        bias_initializer: InitializerLike = "zeros",
        kernel_regularizer: RegularizerLike = None,
        recurrent_regularizer: RegularizerLike = None,
        bias_regularizer: RegularizerLike = None,
        kernel_constraint: ConstraintLike = None,
        recurrent_constraint: ConstraintLike = None,
        bias_constraint: ConstraintLike = None,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        reset_after: bool = True,
        seed: int | None = None,
        *,
        layer_norm: bool = False,
        zoneout: float = 0.0,
        trainable: bool = True,
        dtype: LayerDType | None = None,
        name: str | None = None,
        **of_weights: Unpack[OfWeights],
    ) -> None:
        super().__init__(locals())


class StackedRNNCells:
    """Cells one over the other, as one cell: each takes the output of the one before; keras.layers.StackedRNNCells.

    Args:
        cells: a list of cells, ours or one's own.
        name: a str without "/".

    Raises:
        TypeError: `cells` is no list of cells.
        ValueError: it is empty, or has one cell twice.

    >>> cells = StackedRNNCells([LSTMCell(4), GRUCell(5)])
    >>> cells.state_size, cells.output_size
    ([[4, 4], 5], 5)
    """

    def __init__(self, cells: Sequence[Any], *, name: str | None = None) -> None:
        where = type(self).__name__
        if not isinstance(cells, (list, tuple)) or any(isinstance(c, StackedRNNCells) for c in cells):
            raise TypeError(
                f"{where}: cells must be a list of cells, no stacks among them, got {reprlib.repr(cells)}; "
                "put all cells into one list"
            )
        if not cells:
            raise ValueError(f"{where}: cells must be one cell or more, got none; pass a list of cells")
        for cell in cells:
            _check_cell(where, cell)
        if len({id(cell) for cell in cells}) < len(cells):
            raise ValueError(
                f"{where}: cells must be different objects, got one of them twice; make a cell for each place, as "
                "weights and gradients are listed cell by cell"
            )
        self.cells = list(cells)
        self.name = CHECKS["name"](where, "name", name)

    @property
    def state_size(self) -> list[Any]:
        """The state_size of every cell."""
        return [cell.state_size for cell in self.cells]

    @property
    def output_size(self) -> int:
        """The output_size of the last cell."""
        return _output_size(self.cells[-1])

    def get_initial_state(self, batch_size: int) -> list[Any]:
        """For every cell its initial states: a list, or for a cell of one state without this method an array."""
        return [_nested(cell, _initial_state(cell, batch_size, "float32")) for cell in self.cells]

    def __call__(
        self, x_t: ArrayLike, states: Sequence[Any], training: bool | None = False
    ) -> tuple[Any, list[Any]]:
        """Runs one time step of every cell.

        Args:
            x_t: floating array [B, I].
            states: a list of what each cell's states are, as `get_initial_state` returns them.
            training: handed to each cell that has such a parameter.

        Returns:
            (y_t, states): the output of the last cell, and the new states in the form of `states`.
        """
        new: list[Any] = []
        for cell, given in zip(self.cells, states, strict=True):
            several = isinstance(given, (list, tuple))
            x_t, result = cell(x_t, list(given) if several else [given], **_training_for(cell, training))
            new.append(
                result if several == isinstance(result, (list, tuple)) else [result] if several else result[0]
            )
        return x_t, new

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments as a JSON-able dict, for `from_config` here or of Keras' class."""
        dtype = _dtype(self.cells) or "float32"  # which Keras' class computes in
        return {"cells": [config_of("cell", cell) for cell in self.cells], "dtype": dtype, "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Mapping[str, Any] | None = None) -> Any:
        """New cells, without weights, from what `get_config` returned here or in Keras.

        Args:
            config: the dict.
            custom_objects: the classes of cells of one's own, by their names.
        """
        cells = [from_config_of("cell", cell, custom_objects) for cell in config["cells"]]
        if not config.get("trainable", True):  # written by Keras
            for cell in cells:
                cell.trainable = False
        return cls(cells, name=config.get("name"))

    def __repr__(self) -> str:
        """The call that makes it."""
        return f"StackedRNNCells({self.cells!r})"


# ---- Any cell, ours or one's own


def _check_cell(where: str, cell: Any) -> None:
    sizes = getattr(cell, "state_size", None)
    for size in sizes if isinstance(sizes, (list, tuple)) and sizes else [sizes]:
        if not callable(cell) or not isinstance(size, (int, np.integer)) or isinstance(size, bool):
            raise TypeError(
                f"{where}: a cell must have state_size, an int or a list of ints, and __call__(x_t, states), "
                f"got {reprlib.repr(cell)} with state_size {sizes!r}; see fastrnn.cells"
            )


def _dtype(cells: list[Any]) -> str | None:
    """The dtype of the first cell of ours."""
    return next((cell.dtype for cell in cells if isinstance(cell, _Cell)), None)


def _state_sizes(cell: Any) -> list[int]:
    sizes = cell.state_size
    return list(sizes) if isinstance(sizes, (list, tuple)) else [sizes]


def _output_size(cell: Any) -> int:
    size = getattr(cell, "output_size", None)
    return int(_state_sizes(cell)[0] if size is None else size)


def _initial_state(cell: Any, batch: int, dtype: Any) -> list[Array]:
    if hasattr(cell, "get_initial_state"):
        states = cell.get_initial_state(batch_size=batch)
        return list(states) if isinstance(states, (list, tuple)) else [states]
    return [np.zeros((batch, size), dtype) for size in _state_sizes(cell)]


def _nested(cell: Any, states: list[Any]) -> Any:
    """A cell's states as Keras nests them in those of a stack."""
    bare = not isinstance(cell.state_size, (list, tuple)) and not hasattr(cell, "get_initial_state")
    return states[0] if bare else states


def _training_for(cell: Any, training: Any, method: str = "__call__") -> dict[str, Any]:
    parameters = inspect.signature(getattr(cell, method)).parameters
    return {"training": training} if "training" in parameters else {}


def config_of(what: str, made: Any) -> dict[str, Any]:
    """The config of a cell or layer within another's, as Keras writes it.

    Args:
        what: "cell" or "layer".
        made: it.

    Raises:
        TypeError: it has no get_config.
    """
    if not hasattr(made, "get_config"):
        raise TypeError(
            f"a {what} of one's own cannot be written into a config, got {made!r}; give it a method get_config()"
        )
    name, known = type(made).__name__, KNOWN[what].get(type(made).__name__) is type(made)
    of_keras = known and not isinstance(made, OURS_ALONE)
    module, registered = ("keras.layers", None) if of_keras else (type(made).__module__, name)
    return {"module": module, "class_name": name, "config": made.get_config(), "registered_name": registered}


def from_config_of(what: str, config: dict[str, Any], custom_objects: Mapping[str, Any] | None) -> Any:
    """The cell or layer that `config_of` here or Keras wrote."""
    known = KNOWN[what] | dict(custom_objects or {})
    name = config.get("class_name")
    if name not in known:
        raise ValueError(
            f"a {what}'s class_name must be one of {sorted(known)}, got {name!r}; "
            "hand a class of one's own over in custom_objects={name: class}"
        )
    from_config = known[name].from_config
    nests = "custom_objects" in inspect.signature(from_config).parameters
    return from_config(config["config"], **{"custom_objects": custom_objects} if nests else {})


# ---- One cell over a whole sequence: by the fused kernel, or in a loop


class _Options(NamedTuple):
    """What a part of an RNN is told of it."""

    where: str
    dtype: str
    return_sequences: bool
    go_backwards: bool
    zero_output_for_mask: bool


class _Fused:
    """One of our cells, run by a layer of its arguments, which at each call takes the cell's weights."""

    def __init__(self, cell: _Cell, options: _Options) -> None:
        arguments = {name: getattr(cell, name) for name in cell._arguments if name != "name"}
        self.cell = cell
        self.states = cell._layer._states
        self.layer = _layer(
            cell._layer_class,
            options.where,
            arguments
            | dict(
                return_sequences=options.return_sequences,
                return_state=True,
                go_backwards=options.go_backwards,
                zero_output_for_mask=options.zero_output_for_mask,
            ),
        )

    @property
    def built(self) -> bool:
        return bool(self.cell.built)

    def build(self, features: int) -> None:
        self.cell.build((None, features))

    def run(
        self,
        x: Any,
        states: Any,
        mask: Any,
        training: Any,
        trainable: bool,
        tapes: list[Any] | None,
        checkpoint: int | bool,
    ) -> list[Any]:
        """[y, *states]; with `tapes` also the tape, appended to them."""
        own = self.cell._layer
        if own._packed is None:
            x, _ = own._prepare(x, "x", "[batch, time, features]")
        vars(self.layer).update(_packed=own._packed, trainable=own.trainable and trainable)
        if tapes is None:
            return list(self.layer(x, states, mask, training))
        outputs, tape = self.layer.forward(x, states, mask, training, checkpoint=checkpoint)
        tapes.append(tape)
        return list(outputs)

    def backward(self, gradients: list[Any], tape: Any) -> Gradients:
        return self.layer.backward(gradients, tape)

    def __getstate__(self) -> dict[str, Any]:
        layer = copy.copy(self.layer)
        vars(layer).pop("_packed", None)  # the cell has them
        return self.__dict__ | {"layer": layer}


class _Steps(NamedTuple):
    """The tape of `_Loop`: for each step what the cell saved and which rows are real; emptied by backward."""

    shape: tuple[int, ...]
    steps: list[tuple[Any, Array | None]]
    outputs: list[Array]
    losses: list[float]


class _Loop:
    """A cell of one's own, run step by step."""

    def __init__(self, cell: Any, options: _Options) -> None:
        self.cell = cell
        self.options = options
        self.states = len(_state_sizes(cell))
        self._needs_build = hasattr(cell, "build") and not getattr(cell, "built", False)

    @property
    def built(self) -> bool:
        return not self._needs_build

    def build(self, features: int) -> None:
        if self._needs_build:
            self.cell.build((None, features))
            self._needs_build = False

    def run(
        self,
        x: Any,
        states: Any,
        mask: Any,
        training: Any,
        trainable: bool,
        tapes: list[Any] | None,
        checkpoint: int | bool,  # False
    ) -> list[Any]:
        """[y, *states]; with `tapes` also the tape, appended to them."""
        where, dtype, return_sequences, go_backwards, zero_output = self.options
        x = floating(where, "x", x, dtype)
        if x.ndim < 3:
            raise ValueError(
                f"{where}: x must have shape [batch, time, features], got {x.shape}; "
                "add a time axis with x[:, None, :]"
            )
        batch, time = x.shape[:2]
        real = None if mask is None else _real_steps(where, mask, batch, time)
        self.build(x.shape[-1])
        method = "__call__" if tapes is None else "forward"
        if tapes is not None and not (hasattr(self.cell, "forward") and hasattr(self.cell, "backward")):
            raise TypeError(
                f"{where}: to be trained the cell must have forward(x_t, states) and backward(dy_t, dstates, saved), "
                f"got {reprlib.repr(self.cell)}; see fastrnn.cells"
            )
        step, options = getattr(self.cell, method), _training_for(self.cell, training, method)
        for reset in ("reset_dropout_mask", "reset_recurrent_dropout_mask"):
            getattr(self.cell, reset, lambda: None)()
        states = self._given(states, batch)
        output = y = np.zeros((batch, _output_size(self.cell)), dtype)
        outputs, steps = [], []
        for t in reversed(range(time)) if go_backwards else range(time):
            x_t, rows = x[:, t], None if real is None else real[:, t]
            if rows is not None:
                x_t = _where(rows, x_t, np.zeros_like(x_t))
            result = step(x_t, states, **options)
            parts = 2 if tapes is None else 3
            if not isinstance(result, (tuple, list)) or len(result) != parts:
                of = f"{len(result)} items" if isinstance(result, (tuple, list)) else reprlib.repr(result)
                raise TypeError(
                    f"{where}: the cell's {method} must return (y_t, states{', saved' * (parts - 2)}), got {of}; "
                    "see fastrnn.cells"
                )
            steps.append((result[2] if tapes is not None else None, rows))
            new_y, new = self._checked(result[:2], batch, states)
            y = new_y if rows is None else _where(rows, new_y, y)
            states = (
                new if rows is None else [_where(rows, s, old) for s, old in zip(new, states, strict=True)]
            )
            output = _where(rows, y, np.zeros_like(y)) if zero_output and rows is not None else y
            if return_sequences:
                outputs.append(output)
        if return_sequences:
            output = np.stack(outputs, 1) if outputs else np.zeros((batch, 0, y.shape[-1]), dtype)
        if tapes is not None:
            tapes.append(_Steps(x.shape, steps, [output, *states], []))
        return [output, *states]

    def _given(self, states: Any, batch: int) -> list[Array]:
        where, dtype = self.options[:2]
        if states is None:
            states = _initial_state(self.cell, batch, dtype)
        states = list(states) if isinstance(states, (list, tuple)) else [states]
        sizes = _state_sizes(self.cell)
        arrays = [
            np.zeros((batch, size), dtype) if s is None else floating(where, "initial_state", s, dtype)
            for size, s in zip(sizes, [*states, *[None] * len(sizes)], strict=False)
        ]
        if len(states) != len(sizes) or any(
            a.shape[:2] != (batch, size) for a, size in zip(arrays, sizes, strict=True)
        ):
            raise ValueError(
                f"{where}: initial_state must be {len(sizes)} arrays of the shapes {[(batch, s) for s in sizes]}, "
                f"got {[np.shape(s) for s in states]}; None in their place means zeros"
            )
        return arrays

    def _checked(self, result: Any, batch: int, old: list[Array]) -> tuple[Array, list[Array]]:
        where, dtype = self.options[:2]
        y, states = result
        states = list(states) if isinstance(states, (list, tuple)) else [states]
        arrays = [np.asarray(array) for array in (y, *states)]
        if arrays[0].shape[:1] != (batch,) or [a.shape for a in arrays[1:]] != [s.shape for s in old]:
            raise ValueError(
                f"{where}: the cell must return (y_t, states), {batch} rows and states of the shapes "
                f"{[s.shape for s in old]}, got {arrays[0].shape} and {[a.shape for a in arrays[1:]]}; "
                "see fastrnn.cells"
            )
        y, *new = (array.astype(dtype, copy=False) for array in arrays)
        return y, new

    def backward(self, gradients: list[Any], tape: _Steps) -> Gradients:
        where, dtype, return_sequences, go_backwards, zero_output = self.options
        if not (tape.outputs and len(gradients) == len(tape.outputs)):
            if tape.outputs:
                raise ValueError(
                    f"{where}: dy must be {len(tape.outputs)} arrays, got {len(gradients)}; "
                    "one for each of what forward returned"
                )
            raise RuntimeError(f"{where}: a tape serves once, got one used before; call forward again")
        dy, *dstates = (
            np.zeros_like(output) if d is None else floating(where, "dy", d, dtype)
            for d, output in zip(gradients, tape.outputs, strict=True)
        )
        for d, output in zip([dy, *dstates], tape.outputs, strict=True):
            if d.shape != output.shape:
                raise ValueError(
                    f"{where}: dy must have the shapes of what forward returned, got {d.shape} for {output.shape}; "
                    "None means zeros"
                )
        dx = np.zeros(tape.shape, dtype)
        dweights: list[Array] = [np.zeros_like(w) for w in getattr(self.cell, "weights", [])]
        time = tape.shape[1]
        zeros = np.zeros_like(dy[:, 0] if return_sequences and time else dy)
        carried = zeros  # to the step repeated
        for position in reversed(range(time)):
            saved, rows = tape.steps[position]
            t = time - 1 - position if go_backwards else position
            d = dy[:, position] if return_sequences else dy if position == time - 1 else zeros
            if rows is None:
                dx[:, t], dstates, dw = self.cell.backward(d + carried, dstates, saved)
                carried = np.zeros_like(d)
            else:
                if zero_output:
                    d = _where(rows, d, np.zeros_like(d))
                total = d + carried
                carried = _where(rows, np.zeros_like(d), total)
                kept = [_where(rows, np.zeros_like(s), s) for s in dstates]
                dstates = [_where(rows, s, np.zeros_like(s)) for s in dstates]
                dx_t, dstates, dw = self.cell.backward(_where(rows, total, np.zeros_like(d)), dstates, saved)
                dx[:, t] = _where(rows, dx_t, np.zeros_like(dx_t))
                dstates = [
                    _where(rows, s, np.zeros_like(s)) + k
                    for s, k in zip(_as_list(dstates), kept, strict=True)
                ]
            dstates = _as_list(dstates)
            for whole, part in zip(dweights, dw or [], strict=True):
                whole += part
        tape.outputs.clear()
        tape.steps.clear()
        return Gradients(dx, dweights, dstates)


def _as_list(states: Any) -> list[Any]:
    return list(states) if isinstance(states, (list, tuple)) else [states]


def _where(rows: Array | None, yes: Array, no: Array) -> Array:
    assert rows is not None
    return np.where(rows.reshape(-1, *[1] * (yes.ndim - 1)), yes, no)


def _real_steps(where: str, mask: Any, batch: int, time: int) -> Array:
    array = plain(where, "mask", mask)
    if array.dtype != bool or array.shape != (batch, time):
        raise ValueError(
            f"{where}: mask must be a bool array of shape {(batch, time)}, got {array.dtype} of shape {array.shape}; "
            "True is a real step"
        )
    return array


# ---- The layer of any cells


class HasWeightsOfMembers:
    """What is made of several things with weights: cells, or layers."""

    trainable: bool
    _where: str

    @property
    def _members(self) -> list[Any]:
        raise NotImplementedError

    @property
    def weights(self) -> list[Array]:
        """The weights of all of them, those of the first one first."""
        return [w for member in self._members for w in getattr(member, "weights", [])]

    @property
    def trainable_weights(self) -> list[Array]:
        """The weights of those that are trainable; none if the layer is not."""
        members = [m for m in self._members if self.trainable and getattr(m, "trainable", True)]
        return [w for m in members for w in getattr(m, "trainable_weights", getattr(m, "weights", []))]

    def get_weights(self) -> list[Array]:
        """Copies of the weights, in the order of `weights`."""
        return [w.copy() for w in self.weights]

    def set_weights(self, weights: Iterable[ArrayLike]) -> None:
        """Replaces all weights, of one after the other, or none when there is an error.

        Args:
            weights: arrays in the order and of the shapes of `weights`.

        Raises:
            ValueError: the number of arrays or a shape doesn't fit.
            TypeError: an array isn't floating, or a cell of one's own has no set_weights.
        """
        given, expected = list(weights), self.weights
        if [np.shape(w) for w in given] != [w.shape for w in expected] or not expected:
            raise ValueError(
                f"{self._where}: weights must have the shapes {[w.shape for w in expected]}, got "
                f"{[np.shape(w) for w in given]}; pass them as get_weights returns them, after build"
            )
        changed: list[tuple[Any, list[Array]]] = []
        try:
            for member in self._members:
                before = [w.copy() for w in getattr(member, "weights", [])]
                if before:
                    if not hasattr(member, "set_weights"):
                        raise TypeError(
                            f"{self._where}: a cell of one's own must have set_weights, got {reprlib.repr(member)}; "
                            "see fastrnn.cells"
                        )
                    changed.append((member, before))
                    member.set_weights(given[: len(before)])
                given = given[len(before) :]
        except BaseException:
            for member, before in changed:
                member.set_weights(before)
            raise

    def count_params(self) -> int:
        """How many numbers the weights hold."""
        return sum(w.size for w in self.weights)

    def apply_constraints(self) -> None:
        """Brings the weights to what their constraints ask for, after an update of the weights."""
        for member in self._members:
            if self.trainable and hasattr(member, "apply_constraints"):
                member.apply_constraints()


class RNNTape:
    """What `RNN.backward` needs of one `RNN.forward`: owned by the caller, good for one backward."""

    __slots__ = ("_parts", "_return_state", "_rnn", "losses")

    losses: list[float]
    """What the regularizers of the cells add to the loss; its gradient is part of what `backward` returns."""

    def __init__(self, rnn: RNN, parts: list[Any], return_state: bool) -> None:
        self._rnn = rnn
        self._parts = parts
        self._return_state = return_state
        self.losses = [loss for part in parts for loss in part.losses]

    def gates(self) -> dict[str, Array]:
        """What the gates were in all steps, before the tape is used; see `functional.gates`."""
        found = {
            self._rnn._name_of(index) + name: gate
            for index, part in enumerate(self._parts)
            if isinstance(part, Tape)
            for name, gate in part.gates().items()
        }
        if not any(isinstance(part, Tape) for part in self._parts):
            raise TypeError(
                f"{self._rnn._where}: gates are known of cells of fastrnn, got {reprlib.repr(self._rnn.cell)}; "
                "let the cell note its own"
            )
        return found


class RNN(HasWeightsOfMembers, KeepsStates):
    """The recurrent layer of a cell, or of cells one over the other; keras.layers.RNN.

    With cells of ours it runs the fused kernels, one layer after the other, and gives what these layers give; a cell
    of one's own (see `fastrnn.cells`) runs in a loop over time. The weights are those of the cells, also when
    several layers use a cell.

    Args:
        cell: a cell, a list of cells, or StackedRNNCells.
        return_sequences: return the output of every step, [B, T, H], instead of the last one, [B, H].
        return_state: return (y, *states) instead of y: the states of the cell, or of a stack for every cell a list of
            its states (an array for a cell of one's own with one state and no get_initial_state).
        go_backwards: read x from its end to its beginning; outputs come in the order of computation.
        stateful: begin each call with the states that the last one ended with, until `reset_state`.
        unroll: accepted as in Keras; it changes nothing in the result, nor in speed.
        zero_output_for_mask: the outputs of masked steps are zeros, the last output of a row that ends masked too.
        trainable: if False, `trainable_weights` and `losses` are empty.
        dtype: "float32" or "float64"; that of the cells of ours, if there is one. Default: theirs, or "float32".
        name: a str without "/".

    Raises:
        TypeError: an argument isn't what is said here.
        ValueError: cells of ours have another dtype.

    >>> rnn = RNN([LSTMCell(4), GRUCell(5)], return_sequences=True, return_state=True)
    >>> y, (h, c), (h2,) = rnn(np.zeros((32, 10, 8), "float32"))
    >>> y.shape, h.shape, c.shape, h2.shape
    ((32, 10, 5), (32, 4), (32, 4), (32, 5))
    """

    _FLAGS = (
        "return_sequences",
        "return_state",
        "go_backwards",
        "stateful",
        "unroll",
        "zero_output_for_mask",
    )

    return_sequences: bool
    return_state: bool
    go_backwards: bool
    unroll: bool
    zero_output_for_mask: bool
    trainable: bool
    dtype: str
    name: str

    def __init__(
        self,
        cell: Any,
        return_sequences: bool = False,
        return_state: bool = False,
        go_backwards: bool = False,
        stateful: bool = False,
        unroll: bool = False,
        zero_output_for_mask: bool = False,
        *,
        trainable: bool = True,
        dtype: LayerDType | None = None,
        name: str | None = None,
    ) -> None:
        given = locals()
        self._where = where = type(self).__name__
        if isinstance(cell, (list, tuple)):
            cell = StackedRNNCells(cell)
        self.cell = cell
        self._stacked = isinstance(cell, StackedRNNCells)
        self._cells: list[Any] = cell.cells if isinstance(cell, StackedRNNCells) else [cell]
        for each in self._cells:
            _check_cell(where, each)
        ours = {each.dtype for each in self._cells if isinstance(each, _Cell)}
        given["dtype"] = dtype if dtype is not None else _dtype(self._cells)
        for argument in (*self._FLAGS, "trainable", "dtype", "name"):
            self.__dict__[argument] = CHECKS[argument](where, argument, given[argument])
        if ours - {self.dtype}:
            raise ValueError(
                f"{where}: dtype must be that of all cells, got {self.dtype!r} with cells of {sorted(ours)}; "
                "make cells of one dtype"
            )
        self._parts: list[_Fused | _Loop] = []
        for index, each in enumerate(self._cells):
            first, last = index == 0, index == len(self._cells) - 1
            fused = isinstance(each, _Cell) and all(  # a subclass may have a step or first states of its own
                getattr(type(each), method) is getattr(_Cell, method)
                for method in ("__call__", "get_initial_state")
            )
            self._parts.append(
                (_Fused if fused else _Loop)(
                    each,
                    _Options(
                        where,
                        self.dtype,
                        self.return_sequences or not last,
                        self.go_backwards and first,
                        self.zero_output_for_mask and last,
                    ),
                )
            )

    def __setattr__(self, name: str, value: Any) -> None:
        """Checks what may change, `trainable`, and refuses what may not."""
        if name in CHECKS and name != "trainable":
            raise AttributeError(
                f"{self._where}: {name} cannot be changed after the layer is made, got {reprlib.repr(value)}; "
                f"make a new layer with {self._where}(cell, {name}=...)"
            )
        super().__setattr__(name, CHECKS[name](self._where, name, value) if name in CHECKS else value)

    # ---- calls

    def __call__(
        self,
        x: ArrayLike,
        initial_state: Any = None,
        mask: Any = None,
        training: bool | None = False,
        *,
        lengths: ArrayLike | None = None,
    ) -> Any:
        """Runs the cells over whole sequences.

        Args:
            x: floating array [B, T, I]; a width other than `dtype` is converted.
            initial_state: None (zeros, or what the cell's get_initial_state says), or the states in the form in which
                return_state returns them: a list of arrays [B, H], of a stack a list of such lists; None in it means
                zeros.
            mask: bool array [B, T], True for real steps; None: all are. At the others states are kept and the last
                output is repeated, zeros at the beginning.
            training: whether cells of ours use dropout; handed to cells of one's own that have such a parameter.
            lengths: integers [B]; short for the mask that is True in the first so many steps of each row.

        Returns:
            y: [B, H] the last output, or [B, T, H] with return_sequences; with return_state the tuple (y, *states).

        Raises:
            TypeError: x or a state isn't a floating array, or the mask isn't of bool or the lengths of integers.
            ValueError: a shape or a length doesn't fit, or both mask and lengths are given.
        """
        return self._run(x, initial_state, mask, training, lengths, None)

    def forward(
        self,
        x: ArrayLike,
        initial_state: Any = None,
        mask: Any = None,
        training: bool | None = True,
        *,
        lengths: ArrayLike | None = None,
        checkpoint: int | bool = False,
    ) -> tuple[Any, RNNTape]:
        """Runs the cells as a call does, and keeps what `backward` needs.

        Args:
            x, initial_state, mask, training, lengths: as in a call.
            checkpoint: as of `LSTM.forward`, for cells of ours; each cell keeps states of its own, and each cell but the
                first its inputs.

        Returns:
            (outputs, tape): what the call returns, and the tape to hand to `backward`, once.

        Raises:
            As a call; TypeError: a cell of one's own has no forward and backward, or there is one with `checkpoint`.
        """
        if checkpoint is not False:
            for part in self._parts:
                if not isinstance(part, _Fused):
                    raise TypeError(
                        f"{self._where}: checkpoint needs cells of fastrnn, got {reprlib.repr(part.cell)}; leave it out"
                    )
        tapes: list[Any] = []
        outputs = self._run(x, initial_state, mask, training, lengths, tapes, checkpoint)
        return outputs, RNNTape(self, tapes, self.return_state)

    def backward(self, dy: Any, tape: RNNTape) -> Gradients:
        """The gradients of a loss, from its gradient by what `forward` returned.

        Args:
            dy: gradient by y; with return_state a list [dy, *dstates] in the form of what `forward` returned. None,
                alone or as an item, means zeros.
            tape: what `forward` of this layer returned. It is used up, but for one with `checkpoint`.

        Returns:
            functional.Gradients: x [B, T, I]; weights, a list in the order of `weights`; initial_state, in the form in
            which return_state returns states.

        Raises:
            TypeError, ValueError: `tape` is no tape of this layer, or dy doesn't fit.
            RuntimeError: the tape was used before.
        """
        if not isinstance(tape, RNNTape) or tape._rnn is not self:
            raise (ValueError if isinstance(tape, RNNTape) else TypeError)(
                f"{self._where}: tape must be what this layer's forward returned, got {reprlib.repr(tape)}; "
                "call y, tape = layer.forward(x), then layer.backward(dy, tape)"
            )
        gradients: list[Gradients] = []

        def backward(part: Any, dy: Any, part_tape: Any) -> Array:
            gradients.insert(0, part.backward(dy, part_tape))
            return gradients[0].x

        self._go_back(dy, tape, backward)
        return Gradients(
            gradients[0].x,
            [w for of_part in gradients for w in of_part.weights],
            self._nest([of_part.initial_state for of_part in gradients]),
        )

    def _name_of(self, index: int) -> str:
        """What the names of a cell's gates begin with."""
        return f"{index}_" if len(self._cells) > 1 else ""

    def _go_back(self, dy: Any, tape: RNNTape, backward: Callable[[Any, Any, Any], Array]) -> None:
        """Calls `backward` with each cell's part, gradients and tape, the last cell first.

        It returns the gradient of the cell's inputs, which are the outputs of the cell before.
        """
        dstates: Any = None
        if tape._return_state and dy is not None:
            if not isinstance(dy, (list, tuple)) or not dy:
                raise TypeError(
                    f"{self._where}: dy must be a list, the gradients of what forward returned, got "
                    f"{type(dy).__name__}; pass [dy, *dstates]"
                )
            dy, *dstates = dy
        per_part = self._split(dstates, "dy")
        for part, part_tape, given in reversed(list(zip(self._parts, tape._parts, per_part, strict=True))):
            given = [None] * part.states if given is None else _as_list(given)
            dy = backward(part, [dy, *given], part_tape)

    def _run(
        self,
        x: Any,
        initial_state: Any,
        mask: Any,
        training: Any,
        lengths: Any,
        tapes: list[Any] | None,
        checkpoint: int | bool = False,
    ) -> Any:
        x = floating(self._where, "x", x, self.dtype)
        if mask is not None:
            mask = plain(self._where, "mask", mask)
        if lengths is not None:
            mask = mask_of(self._where, lengths, mask, x)
        per_part = self._split(initial_state, "initial_state")
        if self.stateful:
            kept = self._begin(x)
            if initial_state is None and kept is not None:
                per_part = self._unflatten(kept)
        # One after the other, each with all threads. (Two layers in a thread each, the second a piece of the sequence behind
        # the first, took 1.1 to 2.8 times as long on two cores: LSTM, inference, batch 1, T [200, 1000], 32 to 128 units,
        # in 4, 8 and 16 pieces.)
        finals: list[list[Array]] = []
        for part, states in zip(self._parts, per_part, strict=True):
            x, *final = part.run(x, states, mask, training, self.trainable, tapes, checkpoint)
            finals.append(final)
            if mask is not None and self.go_backwards and part is self._parts[0]:
                mask = mask[:, ::-1]  # in the order of the outputs
        if self.stateful:
            self._keep([state for final in finals for state in final])
        return (x, *self._nest(finals)) if self.return_state else x

    def _split(self, states: Any, what: str) -> list[Any]:
        """The states of each cell, of what was given for all."""
        if not self._stacked or states is None:
            return [states] * len(self._parts)
        if not isinstance(states, (list, tuple)) or len(states) != len(self._parts):
            raise ValueError(
                f"{self._where}: {what} must have the states of {len(self._parts)} cells, got "
                f"{reprlib.repr(states)}; pass for each cell a list of its states, or None"
            )
        return list(states)

    def _nest(self, states: list[list[Array]]) -> list[Any]:
        """The states of all cells, as Keras nests them."""
        return (
            [_nested(cell, s) for cell, s in zip(self._cells, states, strict=True)]
            if self._stacked
            else states[0]
        )

    def _unflatten(self, states: Sequence[Array]) -> list[list[Array]]:
        rest = iter(states)
        return [[next(rest) for _ in range(part.states)] for part in self._parts]

    @property
    def states(self) -> Any:
        """The states that the next call begins with, in the form in which return_state returns them.

        None before the first call, and always if the layer is not stateful.
        """
        return None if self._kept is None else self._nest(self._unflatten(self._kept))

    # ---- weights

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Makes the weights of all cells, as the first call does by itself.

        Args:
            input_shape: (batch, time, features); only features is read.
        """
        features: Any = tuple(input_shape)[-1]
        for part in self._parts:
            part.build(features)
            features = _output_size(part.cell)

    @property
    def _members(self) -> list[Any]:
        return self._cells

    @property
    def built(self) -> bool:
        """Whether all cells have their weights yet."""
        return all(part.built for part in self._parts)

    @property
    def losses(self) -> list[float]:
        """What the regularizers of the cells of ours add to the loss; none if not `trainable`."""
        ours = [cell for cell in self._cells if isinstance(cell, _Cell) and self.trainable]
        return [loss for cell in ours for loss in cell.losses]

    # ---- description

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> Any:
        """The shape of what a call returns.

        Args:
            input_shape: (batch, time, features), with None for what isn't known.

        Returns:
            The shape of y; with return_state a tuple of the shapes of y and of the states, in their form.
        """
        batch, time, *_ = input_shape
        size = _output_size(self._cells[-1])
        y = (batch, time, size) if self.return_sequences else (batch, size)
        shapes: list[list[Any]] = [[(batch, s) for s in _state_sizes(cell)] for cell in self._cells]
        return (y, *self._nest(shapes)) if self.return_state else y

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments as a JSON-able dict, for `from_config` here or of Keras' layer.

        Raises:
            TypeError: a cell of one's own has no get_config.
        """
        names = (*self._FLAGS, "trainable", "dtype", "name")
        return {"cell": config_of("cell", self.cell)} | {name: getattr(self, name) for name in names}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Mapping[str, Any] | None = None) -> Any:
        """A new layer, without weights, from what `get_config` returned here or in Keras.

        Args:
            config: the dict.
            custom_objects: the classes of cells of one's own, by their names.
        """
        return cls(**config | {"cell": from_config_of("cell", config["cell"], custom_objects)})

    def __repr__(self) -> str:
        """The call that makes it."""
        words = [f"{name}=True" for name in self._FLAGS if getattr(self, name)]
        return f"{self._where}({', '.join([repr(self.cell), *words])})"

    def __getstate__(self) -> dict[str, Any]:
        """All but the states that are kept, as copies of layers have it."""
        return {name: value for name, value in self.__dict__.items() if name != "_kept"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes what `__getstate__` returned."""
        self.__dict__.update(state)


KNOWN: dict[str, dict[str, Any]] = {
    "cell": {c.__name__: c for c in (SimpleRNNCell, IndRNNCell, LSTMCell, GRUCell, StackedRNNCells)},
    "layer": {c.__name__: c for c in (SimpleRNN, IndRNN, LSTM, GRU, RNN)},
}
OURS_ALONE = (IndRNNCell, IndRNN)  # which Keras doesn't have
