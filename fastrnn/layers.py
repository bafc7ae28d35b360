"""The layers SimpleRNN, IndRNN, LSTM and GRU: Keras 3's arguments, weights and results, on NumPy arrays.

    lstm = fastrnn.LSTM(64, return_sequences=True)
    y = lstm(x)                          # x [B, T, I] -> y [B, T, 64]; the first call makes the weights
    y, tape = lstm.forward(x)            # the same, and what backward needs
    grads = lstm.backward(dy, tape)      # grads.x, grads.weights, grads.initial_state
    y_t, states = lstm.step(x_t, states) # one time step

A layer holds its weights, nothing else: no call changes it but `build` (by itself on the first call), `set_weights`
and `apply_constraints`, so several threads may call one layer at once. Only a layer with stateful=True also keeps the
states of its last call, and one with dropout counts its calls in training: let one thread at a time make these calls.
All arithmetic lies below, in `functional`.

Legend: B batch, T time steps, I inputs, H units, G gates.

Half precision isn't supported yet and raises NotImplementedError; nothing is accepted and then ignored.
"""

from __future__ import annotations

import functools
import inspect
import math
import operator
import reprlib
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy import ndarray
from numpy.typing import ArrayLike

from fastrnn import _core, functional, initializers, runtime
from fastrnn import checkpoint as checkpoints
from fastrnn.activations import Activation, ActivationLike
from fastrnn.arguments import (
    CHECKS,
    SETTABLE,
    LayerDType,
    OfLSTMWeights,
    OfWeights,
    floating,
    given_of_weights,
    ids,
    plain,
    show,
    to_config,
)
from fastrnn.constraints import ConstraintLike
from fastrnn.functional import Array, Weights
from fastrnn.initializers import Initializer, InitializerLike, Shape
from fastrnn.regularizers import RegularizerLike
from fastrnn.states import KeepsStates
from fastrnn.zoneout import ZoneoutMask

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["GRU", "LSTM", "IndRNN", "SimpleRNN"]

StatesLike = Sequence[ArrayLike | None] | ArrayLike  # one per state, or the one state there is
Outputs = Array | Any  # y, or with return_state the tuple (y, h) or for LSTM (y, h, c)
PartialShape = tuple[int | None, ...]
BEYOND_KERAS = {  # arguments that a config has only if they are not these
    "variant": None,
    "peephole": None,
    "proj_size": None,
    "layer_norm": False,
    "zoneout": 0.0,
    "embedding": None,
}
DROPOUT_STREAM = (
    1 << 16
)  # which of a seed's random streams dropout draws from; those of the weights are the first
Layer = TypeVar("Layer", bound="_Recurrent")


class Penalties(NamedTuple):
    """What regularizers have a say in at one forward pass, and what they add to the gradients."""

    outputs: list[Array]  # without an activity_regularizer none
    weights: list[tuple[int, str, Any, Array]]  # index, argument, regularizer, weight; none if not trainable


class Embedded(NamedTuple):
    """What a layer with an embedding has in place of the kernels' weights: these, and the embedding [V, I]."""

    core: functional.AnyWeights
    embedding: Array

    @property
    def arrays(self) -> list[Array]:
        return [*self.core.arrays, self.embedding]

    @property
    def inputs(self) -> int:
        return self.core.inputs


class Tape:
    """What `backward` needs of one `forward`: owned by the caller, good for the layer that made it.

    It holds the weights that `forward` used, so it stays valid after `set_weights`.
    """

    __slots__ = ("_core", "_core_has_states", "_ids", "_layer", "_penalties", "_return_state", "losses")

    losses: list[float]
    """What the regularizers add to the loss of this forward pass: of the outputs, then of the weights, as in `losses`
    of Keras' layer. Its gradient is part of what `backward` returns."""

    def __init__(
        self,
        layer: _Recurrent,
        core: functional.AnyTape | checkpoints.Tape,
        return_state: bool,
        stateful: bool = False,
    ) -> None:
        self._layer = layer
        self._core = core
        self._return_state = return_state
        self._core_has_states = return_state or stateful
        self._penalties: Penalties | None = None
        self._ids: tuple[Array, Array | None, int] | None = (
            None  # and their mask, and the rows of the embedding
        )
        self.losses = []

    def gates(self) -> dict[str, Array]:
        """What the gates were in all steps, before the tape is used: name -> [B, T, H]; see `functional.gates`."""
        return functional.gates(self._core)

    def __repr__(self) -> str:
        return f"<Tape of {self._layer!r}>"


class _Recurrent(KeepsStates):
    """What the layers share: arguments, weights, calls.

    A layer adds its constructor, how many gates it has, the name of its cell in the core, and, where they
    differ, its bias' shape and initial value.
    """

    _gates: int
    _states = 1
    _cell: str

    # The arguments that all constructors have.
    units: int
    activation: Activation
    use_bias: bool
    kernel_initializer: Initializer
    recurrent_initializer: Initializer
    bias_initializer: Initializer
    kernel_regularizer: Any
    recurrent_regularizer: Any
    bias_regularizer: Any
    activity_regularizer: Any
    kernel_constraint: Any
    recurrent_constraint: Any
    bias_constraint: Any
    layer_norm_regularizer: Any = None
    layer_norm_constraint: Any = None
    embedding_regularizer: Any = None
    embedding_constraint: Any = None
    dropout: float
    recurrent_dropout: float
    return_sequences: bool
    return_state: bool
    go_backwards: bool
    unroll: bool
    seed: int | None
    layer_norm: bool
    zoneout: float
    embedding: tuple[int, int] | None
    zero_output_for_mask: bool
    trainable: bool
    dtype: str
    name: str

    # The weights, read-only arrays and what the kernels make of them: replaced as a whole, so that readers need no lock.
    # (A lock would stay locked in a child that is forked while another thread holds it.)
    _packed: functional.AnyWeights | Embedded | None = None

    _table: Array | None = None  # the embedding that was given, until the weights are made of it
    _calls = 0  # that dropout has drawn masks for

    def __init__(self, arguments: dict[str, Any]) -> None:
        # `arguments` are the locals() of the layer's own __init__, whose signature is the one list of them.
        self.__dict__.setdefault("_where", type(self).__name__)  # what error messages begin with
        of_weights = given_of_weights(self._where, type(self), arguments["of_weights"])
        arguments = {name: value for name, value in arguments.items() if name in CHECKS} | of_weights
        self._arguments = list(arguments)
        for name in self._arguments:
            self.__dict__[name] = CHECKS[name](self._where, name, arguments[name])
        self._numpy_dtype = np.dtype(self.dtype)
        if isinstance(self.embedding, ndarray):
            self._table = self._floating(self.embedding, "embedding")
            self.__dict__["embedding"] = self.embedding.shape
        weights = {name.removesuffix("_kernel") for name in self._weight_shapes(0)}
        for name in of_weights:
            if name.rpartition("_")[0] not in weights:
                raise ValueError(
                    f"{self._where}: {name} must be None in a layer without that weight, got "
                    f"{show(name, getattr(self, name))}; leave it out"
                )
        self._entropy = np.random.SeedSequence(self.seed).entropy
        self._drops = bool(self.dropout or self.recurrent_dropout or self.zoneout)
        self._has_regularizers = any(
            name.endswith("_regularizer") and getattr(self, name) is not None for name in self._arguments
        )

    def __setattr__(self, name: str, value: Any) -> None:
        check = CHECKS.get(name)
        if check is not None:
            if name not in SETTABLE:
                raise AttributeError(
                    f"{self._where}: {name} cannot be changed after the layer is made, "
                    f"got {reprlib.repr(value)}; make a new layer with {self._where}({name}=...)"
                )
            value = check(self._where, name, value)
        super().__setattr__(name, value)

    # ---- calls

    def __call__(
        self,
        x: ArrayLike,
        initial_state: StatesLike | None = None,
        mask: ArrayLike | None = None,
        training: bool | None = False,
        *,
        lengths: ArrayLike | None = None,
    ) -> Outputs:
        """Runs the layer over whole sequences.

        The first call makes the weights, for the number of features that x has.

        Args:
            x: floating array [B, T, I]. A width other than the layer's dtype is converted; integers are
                refused. With an embedding integers [B, T], which at masked steps may be anything.
            initial_state: None (zeros), or a list of arrays [B, H], [h] or for LSTM [h, c]; None in it means
                zeros. One array alone is taken as [h].
            mask: bool array [B, T], True where there is a step; None: everywhere. Elsewhere x is not read, the
                states stay and the output repeats the one before (zeros before the first step, or everywhere with
                zero_output_for_mask). Masked steps are left out, so that they cost no time.
            training: whether dropout, recurrent_dropout and the masks of zoneout are used.
            lengths: integers [B]; short for the mask that is True in the first so many steps of each row.

        Returns:
            y: [B, H] the last output, or [B, T, H] with return_sequences.
            With return_state the tuple (y, h) or for LSTM (y, h, c), the states [B, H].

        Raises:
            TypeError: x or a state isn't a floating array, or the mask isn't of bool or the lengths of integers.
            ValueError: a shape, a length or an id doesn't fit, or both mask and lengths are given.
        """
        if training is not True and training is not False:
            self._check_training(training)
        packed = self._packed
        if x.__class__ is not ndarray or x.dtype is not self._numpy_dtype or packed is None:
            x, packed = self._prepare(x, "x", "[batch, time, features]")
        if initial_state is not None:
            initial_state = self._prepare_states(initial_state, "initial_state")
        stateful = self.stateful
        if stateful:
            initial_state = self._begin_with(initial_state, x)
        returns_state = self.return_state or stateful
        if packed.__class__ is Weights and mask is None and lengths is None and not self._drops:
            # What `functional.run` does of these; its checks of further options take a third of the time of a short call.
            y, states, _ = _core.forward(
                packed,
                x,
                initial_state,
                self.return_sequences,
                returns_state,
                self.go_backwards,
                False,
                None,
                False,
                None,
                None,
                None,
                None,
                None,
                runtime.limit.threads,
            )
            outputs: Outputs = (y, *states) if returns_state else y
        else:
            options = self._options(x, mask, lengths, training)
            if isinstance(packed, Embedded):
                packed, options["embedding"] = packed
            outputs = functional.run(
                packed,
                x,
                initial_state=initial_state,
                return_sequences=self.return_sequences,
                return_state=returns_state,
                go_backwards=self.go_backwards,
                **options,
            )
        return self._end_with(outputs, self.return_state) if stateful else outputs

    def forward(
        self,
        x: ArrayLike,
        initial_state: StatesLike | None = None,
        mask: ArrayLike | None = None,
        training: bool | None = True,
        *,
        lengths: ArrayLike | None = None,
        checkpoint: int | bool = False,
    ) -> tuple[Outputs, Tape]:
        """Runs the layer as a call does, and keeps what `backward` needs.

        Args:
            x, initial_state, mask, training, lengths: as in a call.
            checkpoint: k, how many steps lie between the states that are kept instead of all that every step
                computed; True: about sqrt(T). Memory then grows as sqrt(T), and backward runs forward once more; see
                `fastrnn.checkpoint`.

        Returns:
            (outputs, tape): what the call returns, and the tape to hand to `backward`, once. The tape refers
            to x, initial_state and mask, with an activity_regularizer also to the outputs: don't change them before.

        Raises:
            As a call.
        """
        if training is not True and training is not False:
            self._check_training(training)
        x, packed = self._prepare(x, "x", "[batch, time, features]")
        if initial_state is not None:
            initial_state = self._prepare_states(initial_state, "initial_state")
        return_state, stateful = self.return_state, self.stateful
        if stateful:
            initial_state = self._begin_with(initial_state, x)
        run: Any = functional.run_forward
        if checkpoint is not False:
            run = functools.partial(checkpoints.run_forward, every=checkpoint)
        options = self._options(x, mask, lengths, training, checkpoint is not False)
        given_ids = None
        if isinstance(packed, Embedded):
            packed, options["embedding"] = packed
            x, given_ids = self._for_backward(x, options)
        outputs, core = run(
            packed,
            x,
            initial_state=initial_state,
            return_sequences=self.return_sequences,
            return_state=return_state or stateful,
            go_backwards=self.go_backwards,
            **options,
        )
        tape = Tape(self, core, return_state, stateful)
        tape._ids = given_ids
        if stateful:
            outputs = self._end_with(outputs, return_state)
        if self._has_regularizers:
            embedding = options.get("embedding")
            self._penalize(tape, outputs, [] if embedding is None else [embedding])
        return outputs, tape

    def backward(self, dy: StatesLike, tape: Tape) -> functional.Gradients:
        """The gradients of a loss, from its gradient by what `forward` returned.

        Args:
            dy: gradient by y, a floating array of y's shape; with return_state a list [dy, dh] or for LSTM
                [dy, dh, dc], an array or None (zeros) for each of what `forward` returned.
            tape: what `forward` of this layer returned. It is used up, but for one with `checkpoint`.

        Returns:
            functional.Gradients: x [B, T, I], with an embedding of the rows that the ids named; weights, a list in the
            order of `weights`; initial_state, a list of [B, H].

        Raises:
            TypeError: `tape` is no tape, or dy isn't a floating array.
            ValueError: the tape is another layer's, or a shape doesn't fit.
            RuntimeError: the tape was used before.
        """
        if type(tape) is not Tape:
            raise TypeError(
                f"{self._where}: tape must be what forward returned, got {type(tape).__name__}; "
                "call y, tape = layer.forward(x), then layer.backward(dy, tape)"
            )
        if tape._layer is not self:
            raise ValueError(
                f"{self._where}: tape must come from this layer's own forward, got a tape of another layer "
                f"({tape._layer!r}); call the backward of that layer"
            )
        gradients: Any = dy  # with return_state, what is no list is refused below, by the core
        if dy is None:
            gradients = None
        elif not tape._return_state:
            gradients = self._floating(dy, "dy")
        elif isinstance(dy, (list, tuple)):
            gradients = self._prepare_states(dy, "dy")
        if tape._penalties is not None:
            return self._penalized_backward(gradients, tape, tape._penalties)
        return self._run_backward(gradients, tape)

    def step(
        self, x_t: ArrayLike, states: StatesLike | None = None, *, out: Sequence[Array] | None = None
    ) -> tuple[Array, list[Array]]:
        """Runs one time step with the layer's weights, for data that arrives step by step.

        T steps give what one call gives; return_sequences, return_state, go_backwards, stateful and dropout have no
        say here.

        Args:
            x_t: floating array [B, I]; with an embedding integers [B].
            states: what the step before returned, [h] or for LSTM [h, c], arrays [B, H]; None: zeros.
            out: [h] or for LSTM [h, c], contiguous arrays [B, H] of the layer's dtype that the new states are
                written to, instead of new ones, a list also where there is one state; they may be the arrays in
                `states`.

        Returns:
            (y_t, states): the output [B, H], and the states to hand to the next step. With `out` y_t is
            out[0] itself, which the next step may write to.

        Raises:
            As a call.
        """
        packed = self._packed
        if x_t.__class__ is not ndarray or x_t.dtype is not self._numpy_dtype or packed is None:
            x_t, packed = self._prepare(x_t, "x_t", "[batch, features]", ".step")
        if states is not None:
            states = self._prepare_states(states, "states", ".step")
        if packed.__class__ is Weights and not self.zoneout:
            return _core.step(packed, x_t, states, out)  # the frame of run_step takes 0.1 us
        if isinstance(packed, Embedded):
            packed, embedding = packed
            x_t = self._rows(x_t, embedding)
        if not self.zoneout or x_t.ndim != 2:
            return functional.run_step(packed, x_t, states, out)
        mixed: Any = functional.run(
            packed, x_t[:, None], initial_state=states, return_state=True, **self._masks(x_t[:, None], False)
        )
        if out is None:
            return mixed[1], list(mixed[1:])
        h, written = functional.run_step(packed, x_t, states, out)  # refuses what can't be written to
        for to, state in zip(written, mixed[1:], strict=True):
            to[...] = state
        return h, written

    def _masked_step(
        self, x_t: ArrayLike, states: StatesLike | None, training: bool | None, masks: dict[str, Array]
    ) -> tuple[Array, list[Array]]:
        """`step`, in training with dropout and zoneout; the masks of dropout are those in `masks`, where those that are
        missing are put."""
        self._check_training(training)
        rates = {"dropout_mask": self.dropout, "recurrent_dropout_mask": self.recurrent_dropout}
        needed = {name for name, rate in rates.items() if rate}
        if not training or not self._drops or np.ndim(x_t) != 2:  # others step refuses
            return self.step(x_t, states)
        x, packed = self._prepare(x_t, "x_t", "[batch, features]", ".step")
        if states is not None:
            states = self._prepare_states(states, "states", ".step")
        drawn = self._masks(x[:, None], True) if self.zoneout or not needed <= masks.keys() else {}
        masks.update({name: drawn[name] for name in needed - masks.keys()})
        assert not isinstance(packed, Embedded)  # which cells don't have
        _, *new = functional.run(packed, x[:, None], initial_state=states, return_state=True, **drawn | masks)
        return new[0], new

    # ---- weights

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Makes the weights, as the first call does by itself; does nothing on a layer built for this shape.

        Args:
            input_shape: (batch, time, features), with an embedding (batch, time); time is not read and may be None,
                as may batch, for which a stateful layer makes its states.

        Raises:
            ValueError: the shape has another number of entries or no number of features, or the layer was
                built for another number.
        """
        batch: Any
        last: Any
        try:
            if self.embedding is not None:
                batch, _, last = *input_shape, self.embedding[1]
            else:
                batch, _, last = input_shape
            features = operator.index(last)
        except (TypeError, ValueError):
            features = -1
        if features < 0 and self.embedding is not None:
            raise ValueError(
                f"{self._where}: input_shape must be (batch, time), that of the ids, got {reprlib.repr(input_shape)}; "
                "write for example build((None, None))"
            )
        if features < 0:
            raise ValueError(
                f"{self._where}: input_shape must be (batch, time, features) with an integer for features, "
                f"got {reprlib.repr(input_shape)}; write for example build((None, None, 8))"
            )
        packed = self._packed or self._make_weights(features)
        if features != packed.inputs:
            raise ValueError(
                f"{self._where}: input_shape must have the {packed.inputs} features that the layer was built "
                f"for, got {features}; make a new layer for other inputs"
            )
        if self.stateful and batch is not None and self._kept is None:
            self._keep([np.zeros((batch, width), self._numpy_dtype) for width in self._widths])

    @property
    def built(self) -> bool:
        """Whether the layer has its weights yet."""
        return self._packed is not None

    @property
    def weights(self) -> list[Array]:
        """A list of read-only arrays: kernel, recurrent_kernel, bias, peephole, embedding, of these what there is.

        Empty before the layer is built.
        """
        return [] if self._packed is None else self._packed.arrays

    @property
    def trainable_weights(self) -> list[Array]:
        """`weights`, or nothing when `trainable` is False."""
        return self.weights if self.trainable else []

    @property
    def non_trainable_weights(self) -> list[Array]:
        """`weights` when `trainable` is False, or nothing."""
        return [] if self.trainable else self.weights

    @property
    def kernel(self) -> Array:
        """The input weights [I, G*H], read-only."""
        return self._built_arrays()[0]

    @property
    def recurrent_kernel(self) -> Array:
        """The recurrent weights [H, G*H], of IndRNN [H], read-only."""
        return self._built_arrays()[1]

    @property
    def bias(self) -> Array | None:
        """The bias, read-only: [G*H], for GRU with reset_after [2, 3*H]. None without use_bias."""
        arrays = self._built_arrays()
        return arrays[2] if self.use_bias else None

    def get_weights(self) -> list[Array]:
        """Copies of the weights, in the order of `weights`."""
        return [array.copy() for array in self.weights]

    def set_weights(self, weights: Iterable[ArrayLike]) -> None:
        """Replaces all weights, or none when there is an error. Calls that run meanwhile use the old ones.

        Args:
            weights: floating arrays in the order and of the shapes of `weights`; they are copied, and
                converted to the layer's dtype if they have another width.

        Raises:
            ValueError: the layer isn't built, or the number of arrays or a shape doesn't fit.
            TypeError: an array isn't floating.
        """
        features = self._weights_for("set_weights")[0].shape[0]
        try:
            given = list(weights)
        except TypeError:
            raise TypeError(
                f"{self._where}: weights must be a list of arrays, got {type(weights).__name__}; "
                "pass [kernel, recurrent_kernel, bias]"
            ) from None
        expected = self._weight_shapes(features)
        if len(given) != len(expected):
            raise ValueError(
                f"{self._where}: weights must be {len(expected)} arrays ({', '.join(expected)}), "
                f"got {len(given)}; pass them as get_weights returns them"
            )
        arrays = [
            self._weight(value, f"weights[{index}] ({name})", shape)
            for index, (value, (name, shape)) in enumerate(zip(given, expected.items(), strict=True))
        ]
        self._packed = self._pack(arrays)

    @property
    def losses(self) -> list[float]:
        """What the regularizers of the weights add to the loss, one number each; none if not `trainable`.

        The penalties of one forward pass, those of its outputs among them, are in its tape's `losses`.
        """
        return (
            [] if self._packed is None else self._weight_losses(self._weight_penalties(self._packed.arrays))
        )

    def apply_constraints(self) -> None:
        """Brings the weights to what their constraints ask for: to be called after each update of the weights.

        Keras' optimizers do this by themselves; here no other method does. A layer that isn't `trainable` keeps its
        weights.

        Raises:
            ValueError: the layer isn't built, or a constraint returned another shape.
        """
        arrays = self._weights_for("apply_constraints")
        constraints = self._by_weight("constraint") if self.trainable else []
        if not constraints:
            return
        changed = list(arrays)
        for index, argument, constraint in constraints:
            what = f"what {argument} returns"
            changed[index] = self._weight(constraint(arrays[index]), what, arrays[index].shape)
        self._packed = self._pack(changed)

    def count_params(self) -> int:
        """How many numbers the weights hold.

        Raises:
            ValueError: the layer isn't built.
        """
        return sum(array.size for array in self._weights_for("count_params"))

    # ---- description

    def compute_output_shape(
        self, input_shape: Sequence[int | None]
    ) -> PartialShape | tuple[PartialShape, ...]:
        """The shape of what a call returns.

        Args:
            input_shape: (batch, time, features), with an embedding (batch, time); None for what isn't known.

        Returns:
            The shape of y; with return_state a tuple of the shapes of y and of each state.
        """
        given = input_shape if self.embedding is None else (*input_shape, None)
        if len(given) != 3:
            axes = "(batch, time, features)" if self.embedding is None else "(batch, time)"
            raise ValueError(f"{self._where}: input_shape must be {axes}, got {reprlib.repr(input_shape)}")
        batch, time, _ = given
        outputs = self._widths[0]
        y: PartialShape = (batch, time, outputs) if self.return_sequences else (batch, outputs)
        return (y, *[(batch, width) for width in self._widths]) if self.return_state else y

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments as a JSON-able dict, for `from_config` here or of Keras' layer.

        Raises:
            TypeError: an initializer, regularizer or constraint is an object of one's own without a config.
        """
        config = {name: to_config(name, getattr(self, name)) for name in self._arguments}
        return {
            name: value
            for name, value in config.items()
            if name not in BEYOND_KERAS or value != BEYOND_KERAS[name]
        }

    @classmethod
    def from_config(cls: type[Layer], config: dict[str, Any]) -> Layer:
        """A new layer, without weights, from what `get_config` returned here or in Keras."""
        return cls(**config)

    def __repr__(self) -> str:
        parameters = inspect.signature(type(self)).parameters
        words = [str(self.units)]
        for name in self._arguments[1:]:
            value, parameter = getattr(self, name), parameters.get(name)
            if parameter is None or value != CHECKS[name](self._where, name, parameter.default):
                words.append(f"{name}={show(name, value)}")
        text = f"{self._where}({', '.join(words)})"
        if self._packed is not None:
            shapes = self._weight_shapes(self._packed.inputs)
            text += " with " + ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        return text

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in self.__dict__.items() if name not in ("_packed", "_kept")}
        return state | {"weights": self.weights}

    def __setstate__(self, state: dict[str, Any]) -> None:
        arrays = state.pop("weights")
        self.__dict__.update(state)
        if arrays:
            self._packed = self._pack(arrays)

    # ---- inside

    @property
    def _widths(self) -> list[int]:
        """How wide the outputs, which are the first state, and the other states are."""
        return [self.units] * self._states

    def _bias_shape(self) -> Shape:
        return (self._gates * self.units,)

    def _initial_bias(self, rng: np.random.Generator) -> Array:
        return self._draw("bias_initializer", self._bias_shape(), rng)

    def _shapes(self, features: int) -> dict[str, Shape]:
        """The names and shapes of the weights, in Keras' order."""
        columns = self._gates * self.units
        shapes: dict[str, Shape] = {
            "kernel": (features, columns),
            "recurrent_kernel": (self._widths[0], columns),
        }
        if self.use_bias:
            shapes["bias"] = self._bias_shape()
        return shapes

    def _weight_shapes(self, features: int) -> dict[str, Shape]:
        """`_shapes`, and those that come after all others."""
        shapes = self._shapes(features)
        if self.layer_norm:
            shapes["layer_norm"] = (2, self._gates * self.units)
        if self.embedding is not None:
            shapes["embedding"] = self.embedding
        return shapes

    def _make_weights(self, features: int) -> functional.AnyWeights | Embedded:
        """Draws the weights, each from a stream of its own: the size of one has no say in another.

        Of several threads that come here at once, the first to finish makes the weights of all.
        """
        streams = [np.random.default_rng(seed) for seed in np.random.SeedSequence(self._entropy).spawn(6)]
        shapes = self._weight_shapes(features)
        for name, shape in shapes.items():
            if math.prod(shape) > sys.maxsize // self._numpy_dtype.itemsize:
                raise MemoryError(
                    f"{self._where}: {name} must fit the address space, got the shape {shape}; "
                    "use fewer units or features"
                )
        arrays = [
            self._draw("kernel_initializer", shapes["kernel"], streams[0]),
            self._draw("recurrent_initializer", shapes["recurrent_kernel"], streams[1]),
        ]
        if self.use_bias:
            arrays.append(self._initial_bias(streams[2]))
        if "peephole" in shapes:
            arrays.append(np.zeros(shapes["peephole"], self.dtype))
        if "projection" in shapes:
            arrays.append(self._draw("kernel_initializer", shapes["projection"], streams[4]))
        if "gate_kernel" in shapes:
            arrays.append(self._draw("recurrent_initializer", shapes["gate_kernel"], streams[5]))
        if "cell_norm" in shapes:
            arrays.append(np.stack([np.ones(self.units, self.dtype), np.zeros(self.units, self.dtype)]))
        if "layer_norm" in shapes:
            arrays.append(np.ones(shapes["layer_norm"], self.dtype))
        if self.embedding is not None:
            table = self._table
            if table is None:
                table = initializers.random_uniform(self.embedding, self.dtype, streams[3])
            arrays.append(table)
        made: functional.AnyWeights | Embedded = self.__dict__.setdefault("_packed", self._pack(arrays))
        self.__dict__.pop("_table", None)  # not before: another thread may be here too
        return made

    def _draw(self, argument: str, shape: Shape, rng: np.random.Generator) -> Array:
        try:
            drawn = initializers.draw(getattr(self, argument), shape, self.dtype, rng)
        except MemoryError:
            raise MemoryError(
                f"{self._where}: no memory for what {argument} draws, of shape {shape}; use fewer units or features"
            ) from None
        return self._weight(drawn, f"what {argument} returns", shape)

    def _weight(self, value: Any, what: str, shape: Shape) -> Array:
        """A copy of `value` in the layer's dtype, after a check of its shape."""
        array = self._floating(value, what)
        if array.shape != shape:
            raise ValueError(
                f"{self._where}: {what} must have shape {shape}, got {array.shape}; "
                "the shapes are those of Keras' layer"
            )
        return np.array(array, order="C")

    def _by_weight(self, kind: str) -> list[tuple[int, str, Any]]:
        """(index, argument, value) of the weights that have a "regularizer" or "constraint"."""
        names = (f"{name.removesuffix('_kernel')}_{kind}" for name in self._weight_shapes(0))
        values = ((index, name, getattr(self, name, None)) for index, name in enumerate(names))
        return [entry for entry in values if entry[2] is not None]

    def _weight_penalties(self, arrays: list[Array]) -> list[tuple[int, str, Any, Array]]:
        return (
            [(*entry, arrays[entry[0]]) for entry in self._by_weight("regularizer")] if self.trainable else []
        )

    @staticmethod
    def _weight_losses(penalties: list[tuple[int, str, Any, Array]]) -> list[float]:
        return [float(regularizer(array)) for _, _, regularizer, array in penalties]

    def _penalize(self, tape: Tape, outputs: Outputs, embedding: list[Array]) -> None:
        """Notes in the tape what the regularizers say of the outputs, each divided by the batch size, and weights."""
        regularizer = self.activity_regularizer
        outputs = [] if regularizer is None else list(outputs) if isinstance(outputs, tuple) else [outputs]
        tape._penalties = Penalties(outputs, self._weight_penalties([*tape._core.weights.arrays, *embedding]))
        losses = [float(regularizer(output)) / max(1, len(output)) for output in outputs]
        tape.losses = losses + self._weight_losses(tape._penalties.weights)

    def _run_backward(self, dy: Any, tape: Tape) -> functional.Gradients:
        if tape._core_has_states and not tape._return_state:
            dy = [dy] + [None] * self._states  # the states that only the layer kept
        run: Any = functional.run_backward
        if isinstance(tape._core, checkpoints.Tape):
            run = checkpoints.run_backward
        gradients: functional.Gradients = run(dy, tape._core)
        if tape._ids is not None:
            given_ids, mask, rows = tape._ids
            gradients.weights.append(functional.embedding_gradient(given_ids, gradients.x, rows, mask))
        return gradients

    def _begin_with(
        self, initial_state: Sequence[Array | None] | None, x: Array
    ) -> Sequence[Array | None] | None:
        """The states of a stateful layer's call: those kept, unless some were given."""
        kept = self._begin(x)
        return kept if initial_state is None else initial_state

    def _end_with(self, outputs: Any, return_state: bool) -> Outputs:
        """What a stateful layer's call returns of (y, *states), of which it keeps the states."""
        self._keep(outputs[1:])
        return outputs if return_state else outputs[0]

    def _penalized_backward(self, dy: Any, tape: Tape, penalties: Penalties) -> functional.Gradients:
        """Backward of the loss and the penalties: their gradients by the outputs, and those by the weights."""
        outputs, weights = penalties
        several = isinstance(dy, (list, tuple))
        given = dy if several else [None] * len(outputs) if dy is None else [dy]
        # What doesn't fit is left as it is: the core refuses it.
        if len(given) == len(outputs) and all(
            d is None or d.shape == output.shape for d, output in zip(given, outputs, strict=True)
        ):
            added = []
            for d, output in zip(given, outputs, strict=True):
                penalty = self._penalty("activity_regularizer", self.activity_regularizer, output)
                penalty = penalty / max(1, len(output))
                added.append(penalty if d is None else d + penalty)
            dy = added if several or len(added) > 1 else added[0]
        additions = [
            (index, self._penalty(argument, regularizer, array))
            for index, argument, regularizer, array in weights
        ]
        gradients = self._run_backward(dy, tape)
        for index, penalty in additions:
            gradients.weights[index] += penalty
        return gradients

    def _penalty(self, argument: str, regularizer: Any, array: Array) -> Array:
        """The gradient of a regularizer, after a check of its shape."""
        penalty = self._floating(regularizer.gradient(array), f"what {argument}.gradient returns")
        if penalty.shape != array.shape:
            raise ValueError(
                f"{self._where}: what {argument}.gradient returns must have shape {array.shape}, got {penalty.shape}; "
                "it is the gradient by the array that it is given"
            )
        return penalty

    def _pack(self, arrays: list[Array]) -> functional.AnyWeights | Embedded:
        for array in arrays:
            array.flags.writeable = False
        named = dict(zip(self._weight_shapes(0), arrays, strict=True))
        packed = functional.make_weights(
            self._cell,
            named["kernel"],
            named["recurrent_kernel"],
            named.get("bias"),
            self._activations(),
            self._where,
            named.get("peephole"),
            named.get("projection"),
            named.get("gate_kernel"),
            named.get("cell_norm"),
            named.get("layer_norm"),
        )
        return Embedded(packed, named["embedding"]) if "embedding" in named else packed

    def _activations(self) -> tuple[ActivationLike, ActivationLike, ActivationLike]:
        """Of the gates, of the candidate, of an LSTM's c on its way to h."""
        return getattr(self, "recurrent_activation", "sigmoid"), self.activation, self.activation

    def _weights_for(self, method: str) -> list[Array]:
        if self._packed is None:
            raise ValueError(
                f"{self._where}: {method} needs a layer with weights, got one that isn't built; "
                "call build((None, None, features)) first"
            )
        return self._packed.arrays

    def _built_arrays(self) -> list[Array]:
        if self._packed is None:
            raise AttributeError(
                f"{self._where}: the layer has no weights yet; call it or build((None, None, features))"
            )
        return self._packed.arrays

    def _prepare(
        self, x: Any, what: str, axes: str, method: str = ""
    ) -> tuple[Array, functional.AnyWeights | Embedded]:
        """x in the layer's dtype, or as ids, and the weights, made if need be. The core checks x's shape."""
        if self.embedding is None:
            array = self._floating(x, what, method)
        else:
            array, axes = ids(self._where + method, what, x), axes.replace(", features", "")
        packed = self._packed
        if packed is None:  # no core object that could check
            if array.ndim != axes.count(",") + 1:
                advice = "; add a time axis with x[:, None, :]" if what == "x" and array.ndim == 2 else ""
                raise ValueError(
                    f"{self._where}{method}: {what} must have shape {axes}, got {array.shape}{advice}"
                )
            packed = self._make_weights(array.shape[-1] if self.embedding is None else self.embedding[1])
        return array, packed

    def _for_backward(
        self, x: Array, options: dict[str, Any]
    ) -> tuple[Array, tuple[Array, Array | None, int]]:
        """Copies of the ids and, put into the options, of their mask, and what the gradient of the embedding needs."""
        lengths = options.pop("lengths", None)
        if lengths is not None:
            options["mask"] = functional.mask_of(self._where, lengths, options.get("mask"), x)
        x, mask = x.copy(), options.get("mask")
        if mask is not None:
            mask = options["mask"] = mask.copy()
        assert self.embedding is not None
        return x, (x, mask, self.embedding[0])

    def _rows(self, x_t: Array, embedding: Array) -> Array:
        """The rows [B, I] of the ids [B] of one step."""
        x_t = ids(f"{self._where}.step", "x_t", x_t)
        if x_t.ndim != 1:
            raise ValueError(f"{self._where}.step: x_t must have shape [batch], got {x_t.shape}")
        functional.require_rows(f"{self._where}.step", "x_t", x_t, len(embedding))
        rows: Array = embedding[x_t]
        return rows

    def _prepare_states(self, states: Any, what: str, method: str = "") -> Sequence[Array | None]:
        """The states as a list of arrays in the layer's dtype, None where there is None."""
        given: Sequence[Any] = states if isinstance(states, (list, tuple)) else (states,)
        dtype = self._numpy_dtype
        for state in given:
            if state.__class__ is not ndarray or state.dtype is not dtype:
                break
        else:
            return given
        return [
            None if state is None else self._floating(state, f"{what}[{index}]", method)
            for index, state in enumerate(given)
        ]

    def _floating(self, value: Any, what: str, method: str = "") -> Array:
        """`value` as an array of the layer's dtype; no copy if it is one."""
        if value.__class__ is ndarray and value.dtype is self._numpy_dtype:
            return value
        return floating(f"{self._where}{method}", what, value, self._numpy_dtype)

    def _check_training(self, training: Any) -> None:
        if training is not None and not isinstance(training, (bool, np.bool_)):
            raise TypeError(
                f"{self._where}: training must be True, False or None, got {reprlib.repr(training)}; "
                "write bool(...) around it"
            )

    def _options(
        self, x: Array, mask: Any, lengths: Any, training: Any, in_segments: bool = False
    ) -> dict[str, Any]:
        """What a call hands to the functional layer, or `in_segments` to `checkpoint`, beside x, the states and what
        every call does."""
        options: dict[str, Any] = {}
        if mask is not None:
            options["mask"] = mask if mask.__class__ is ndarray else plain(self._where, "mask", mask)
        if lengths is not None and x.ndim == (3 if self.embedding is None else 2):  # the core refuses others
            options["lengths"] = lengths
        if options and self.zero_output_for_mask:
            options["zero_output_for_mask"] = True
        if self._drops:
            options |= self._masks(x, bool(training), in_segments)
        return options

    def _masks(self, x: Array, training: bool, in_segments: bool = False) -> dict[str, Any]:
        """The masks of one call: those of dropout as Keras draws them, the same at every step, and those of zoneout.

        With recurrent_dropout each gate has masks of its own, of x too; without it all share one. Without training there
        is only zoneout, with its rate for a mask. `in_segments`: zoneout's masks are drawn when and where they are used.
        """
        if x.ndim < 2:
            return {}  # what the core refuses
        if not training:
            if not self.zoneout:
                return {}
            rows = [np.full(width, self.zoneout, self._numpy_dtype) for width in self._widths]
            return {"zoneout_mask": [np.broadcast_to(row, (*x.shape[:2], len(row))) for row in rows]}
        self._calls += 1
        seed = np.random.SeedSequence(self._entropy, spawn_key=(DROPOUT_STREAM, self._calls))
        rng = np.random.default_rng(seed)

        def draw(rate: float, *shape: int) -> Array:
            mask: Array = (rng.random(shape, np.float32) >= rate) * self._numpy_dtype.type(1 / (1 - rate))
            return mask

        masks: dict[str, Any] = {}
        per_gate = (self._gates,) if self.recurrent_dropout else ()
        if self.dropout:
            features = x.shape[-1] if self.embedding is None else self.embedding[1]
            masks["dropout_mask"] = draw(self.dropout, len(x), *per_gate, features)
        if self.recurrent_dropout:
            masks["recurrent_dropout_mask"] = draw(self.recurrent_dropout, len(x), *per_gate, self._widths[0])
        if self.zoneout:
            begin = sum(mask.size for mask in masks.values())  # after the numbers of these
            zoneout = []
            for width in self._widths:
                shape = (*x.shape[:2], width)
                zoneout.append(ZoneoutMask(seed, begin, shape, self.zoneout, self._numpy_dtype))
                begin += math.prod(shape)
            masks["zoneout_mask"] = zoneout if in_segments else [mask[:, :] for mask in zoneout]
        return masks


class SimpleRNN(_Recurrent):
    """The plain recurrent layer, whose output is fed back as its state.

        h_t = tanh(x_t W + h_{t-1} U + b)

    Elman, "Finding Structure in Time" (1990); keras.layers.SimpleRNN.

    Args:
        units: H, a positive int.
        activation: what `fastrnn.activations.get` takes: a name, an `Activation` with parameters, a Keras config, or,
            much slower, a pair of Python callables (function, derivative), both of an array.
        use_bias: whether there is a bias.
        kernel_initializer: W's initial value: a name, a Keras config, or a callable f(shape, dtype=...).
        recurrent_initializer, bias_initializer: the same for U and b.
        return_sequences: return the output of every step, [B, T, H], instead of the last one, [B, H].
        return_state: return (y, h) instead of y.
        go_backwards: read x from its end to its beginning; outputs come in the order of computation.
        unroll: accepted as in Keras; it changes nothing in the result, nor in speed.
        seed: int; the same weights, and in the same order of calls the same dropout masks, from every layer with
            this seed and these shapes. None: fresh ones each time. (In Keras it is the seed of dropout alone.)
        trainable: if False, `trainable_weights` is empty; nothing else changes.
        dtype: "float32" (the default) or "float64", of the weights and all arithmetic.
        name: a str without "/"; by default the class' name in snake case.
        kernel_regularizer, recurrent_regularizer, bias_regularizer: penalties on W, U and b: what
            `fastrnn.regularizers.get` takes; see `losses`.
        activity_regularizer: a penalty on all that a call returns, divided by the batch size; see `Tape.losses`.
        kernel_constraint, recurrent_constraint, bias_constraint: what `fastrnn.constraints.get` takes; see
            `apply_constraints`.
        layer_norm_regularizer, embedding_regularizer, layer_norm_constraint, embedding_constraint: those of the other
            weights, by keyword, for a layer that has the weight.
        stateful: begin each call with the states that the last one ended with, until `reset_state`; see `states`.
            An initial_state given goes before them for that call. Copies and pickles don't take the states along.
        dropout: the fraction from 0 to less than 1 of the inputs that are left out in training, the same ones at
            every step; the others are divided by 1 - dropout.
        recurrent_dropout: the same for h_{t-1} in its product with U; each gate then leaves out others, of x too.
        layer_norm: normalize x W and h_{t-1} U over all their columns, each with a gain, before b is added (Ba, Kiros and
            Hinton, 2016).
        zoneout: the fraction from 0 to less than 1 of the units that keep their state at a step in training; otherwise
            the states are mixed in that proportion (Krueger et al., 2016).
        zero_output_for_mask: the outputs of masked steps are zeros, the last output of a row that ends masked too.
        embedding: a floating array [V, I], or its shape (V, I), in which case it is drawn uniformly from [-0.05, 0.05],
            as by keras.layers.Embedding. x is then integers [B, T] (x_t [B]), and the input of a step is the row of that
            number. It is the last of the weights; the x of gradients is that of the rows, [B, T, I]: with the ids the
            sparse form of the embedding's gradient.

    Weights: kernel W [I, H], recurrent_kernel U [H, H], bias b [H].

    Raises:
        TypeError, ValueError: an argument isn't what is said here.
        NotImplementedError: the dtype is half precision.

    >>> import numpy as np
    >>> rnn = SimpleRNN(4, return_sequences=True)
    >>> rnn(np.zeros((32, 10, 8), "float32")).shape
    (32, 10, 4)
    >>> rnn
    SimpleRNN(4, return_sequences=True) with kernel [8, 4], recurrent_kernel [4, 4], bias [4]
    """

    _gates = 1
    _cell = "simple_rnn"

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
        activity_regularizer: RegularizerLike = None,
        kernel_constraint: ConstraintLike = None,
        recurrent_constraint: ConstraintLike = None,
        bias_constraint: ConstraintLike = None,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        return_sequences: bool = False,
        return_state: bool = False,
        go_backwards: bool = False,
        stateful: bool = False,
        unroll: bool = False,
        seed: int | None = None,
        *,
        layer_norm: bool = False,
        zoneout: float = 0.0,
        embedding: ArrayLike | tuple[int, int] | None = None,
        zero_output_for_mask: bool = False,
        trainable: bool = True,
        dtype: LayerDType | None = None,
        name: str | None = None,
        **of_weights: Unpack[OfWeights],
    ) -> None:
        super().__init__(locals())


class IndRNN(_Recurrent):
    """The independently recurrent layer, in which each unit is fed back its own output alone.

        h_t = relu(x_t W + u * h_{t-1} + b)

    Li et al., "Independently Recurrent Neural Network (IndRNN): Building A Longer and Deeper RNN" (2018, arXiv 1803.04831).
    Keras has no such layer; the arguments are those of SimpleRNN. With relu and u = 1, as it begins, a unit sums up its
    inputs, and its gradient neither vanishes nor explodes over time; the paper keeps |u| within 2^(1/T).

    Args:
        units: H, a positive int.
        activation: what `fastrnn.activations.get` takes: a name, an `Activation` with parameters, a Keras config, or,
            much slower, a pair of Python callables (function, derivative), both of an array.
        use_bias: whether there is a bias.
        kernel_initializer: W's initial value: a name, a Keras config, or a callable f(shape, dtype=...).
        recurrent_initializer, bias_initializer: the same for u, a vector, and b.
        return_sequences: return the output of every step, [B, T, H], instead of the last one, [B, H].
        return_state: return (y, h) instead of y.
        go_backwards: read x from its end to its beginning; outputs come in the order of computation.
        unroll: accepted as in Keras; it changes nothing in the result, nor in speed.
        seed: int; the same weights, and in the same order of calls the same dropout masks, from every layer with
            this seed and these shapes. None: fresh ones each time. (In Keras it is the seed of dropout alone.)
        trainable: if False, `trainable_weights` is empty; nothing else changes.
        dtype: "float32" (the default) or "float64", of the weights and all arithmetic.
        name: a str without "/"; by default the class' name in snake case.
        kernel_regularizer, recurrent_regularizer, bias_regularizer: penalties on W, u and b: what
            `fastrnn.regularizers.get` takes; see `losses`.
        activity_regularizer: a penalty on all that a call returns, divided by the batch size; see `Tape.losses`.
        kernel_constraint, recurrent_constraint, bias_constraint: what `fastrnn.constraints.get` takes; see
            `apply_constraints`.
        layer_norm_regularizer, embedding_regularizer, layer_norm_constraint, embedding_constraint: those of the other
            weights, by keyword, for a layer that has the weight.
        stateful: begin each call with the states that the last one ended with, until `reset_state`; see `states`.
            An initial_state given goes before them for that call. Copies and pickles don't take the states along.
        dropout: the fraction from 0 to less than 1 of the inputs that are left out in training, the same ones at
            every step; the others are divided by 1 - dropout.
        recurrent_dropout: the same for h_{t-1} in its product with u; each gate then leaves out others, of x too.
        layer_norm: normalize x W and h_{t-1} U over all their columns, each with a gain, before b is added (Ba, Kiros and
            Hinton, 2016). Computed in NumPy: much slower.
        zoneout: the fraction from 0 to less than 1 of the units that keep their state at a step in training; otherwise
            the states are mixed in that proportion (Krueger et al., 2016).
        zero_output_for_mask: the outputs of masked steps are zeros, the last output of a row that ends masked too.
        embedding: a floating array [V, I], or its shape (V, I), in which case it is drawn uniformly from [-0.05, 0.05],
            as by keras.layers.Embedding. x is then integers [B, T] (x_t [B]), and the input of a step is the row of that
            number. It is the last of the weights; the x of gradients is that of the rows, [B, T, I]: with the ids the
            sparse form of the embedding's gradient.

    Weights: kernel W [I, H], recurrent_kernel u [H], bias b [H].

    Raises:
        TypeError, ValueError: an argument isn't what is said here.
        NotImplementedError: the dtype is half precision.

    >>> import numpy as np
    >>> rnn = IndRNN(4, return_sequences=True)
    >>> rnn(np.zeros((32, 10, 8), "float32")).shape
    (32, 10, 4)
    >>> rnn
    IndRNN(4, return_sequences=True) with kernel [8, 4], recurrent_kernel [4], bias [4]
    """

    _gates = 1
    _cell = "indrnn"

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
        activity_regularizer: RegularizerLike = None,
        kernel_constraint: ConstraintLike = None,
        recurrent_constraint: ConstraintLike = None,
        bias_constraint: ConstraintLike = None,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        return_sequences: bool = False,
        return_state: bool = False,
        go_backwards: bool = False,
        stateful: bool = False,
        unroll: bool = False,
        seed: int | None = None,
        *,
        layer_norm: bool = False,
        zoneout: float = 0.0,
        embedding: ArrayLike | tuple[int, int] | None = None,
        zero_output_for_mask: bool = False,
        trainable: bool = True,
        dtype: LayerDType | None = None,
        name: str | None = None,
        **of_weights: Unpack[OfWeights],
    ) -> None:
        super().__init__(locals())

    def _shapes(self, features: int) -> dict[str, Shape]:
        return super()._shapes(features) | {"recurrent_kernel": (self.units,)}


class LSTM(_Recurrent):
    """Long Short-Term Memory.

        i = sigmoid(x_t W_i + h_{t-1} U_i + b_i)
        f = sigmoid(x_t W_f + h_{t-1} U_f + b_f)
        g =    tanh(x_t W_g + h_{t-1} U_g + b_g)
        o = sigmoid(x_t W_o + h_{t-1} U_o + b_o)
        c_t = f * c_{t-1} + i * g
        h_t = o * tanh(c_t)

    The variants of Greff et al., "LSTM: A Search Space Odyssey" (2017, arXiv 1503.04069), beside None, which is the
    above. All but "np" and None have peepholes p (Gers and Schmidhuber, 2000), unless `peephole` says otherwise:
    i and f have + p_i * c_{t-1} and + p_f * c_{t-1} in them, o has + p_o * c_t.

        vanilla   the above          np     no peepholes
        nig       i = 1              nfg    f = 1                    nog     o = 1
        cifg      f = 1 - i          niaf   g without activation     noaf    h_t = o * c_t
        fgr       i, f and o have + [i f o]_{t-1} G in them; the states are h, c, i, f, o.

    Hochreiter and Schmidhuber, "Long Short-Term Memory" (1997), with the forget gate of Gers, Schmidhuber and
    Cummins, "Learning to Forget" (2000); keras.layers.LSTM.

    Args:
        units: H, a positive int.
        activation: of the candidate g and of c, what `fastrnn.activations.get` takes: a name, an `Activation` with
            parameters, a Keras config, or, much slower, a pair of Python callables (function, derivative).
        recurrent_activation: the same for the gates.
        use_bias: whether there is a bias.
        kernel_initializer: W's initial value: a name, a Keras config, or a callable f(shape, dtype=...).
        recurrent_initializer, bias_initializer: the same for U and b.
        unit_forget_bias: the forget gate's bias begins at ones, whatever bias_initializer says of the others.
        seed: int; the same weights, and in the same order of calls the same dropout masks, from every layer with
            this seed and these shapes. None: fresh ones each time. (In Keras it is the seed of dropout alone.)
        return_sequences: return the output of every step, [B, T, H], instead of the last one, [B, H].
        return_state: return (y, h, c) instead of y.
        go_backwards: read x from its end to its beginning; outputs come in the order of computation.
        unroll: accepted as in Keras; it changes nothing in the result, nor in speed.
        use_cudnn: "auto" or False; there is no GPU here.
        variant: None or one of the names above.
        peephole: whether the gates see c; None: as the variant has it, with variant=None not.
        trainable: if False, `trainable_weights` is empty; nothing else changes.
        dtype: "float32" (the default) or "float64", of the weights and all arithmetic.
        name: a str without "/"; by default the class' name in snake case.
        kernel_regularizer, recurrent_regularizer, bias_regularizer: penalties on W, U and b: what
            `fastrnn.regularizers.get` takes; see `losses`.
        activity_regularizer: a penalty on all that a call returns, divided by the batch size; see `Tape.losses`.
        kernel_constraint, recurrent_constraint, bias_constraint: what `fastrnn.constraints.get` takes; see
            `apply_constraints`.
        peephole_regularizer, projection_regularizer, gate_regularizer, cell_norm_regularizer, layer_norm_regularizer,
            embedding_regularizer, and the same with _constraint: those of the other weights, by keyword, for a layer
            that has the weight.
        stateful: begin each call with the states that the last one ended with, until `reset_state`; see `states`.
            An initial_state given goes before them for that call. Copies and pickles don't take the states along.
        dropout: the fraction from 0 to less than 1 of the inputs that are left out in training, the same ones at
            every step; the others are divided by 1 - dropout.
        recurrent_dropout: the same for h_{t-1} in its product with U; each gate then leaves out others, of x too.
        proj_size: R from 1 to H: h_t = (o * tanh(c_t)) P is R wide (Sak, Senior and Beaufays, 2014; as in
            torch.nn.LSTM). None: no projection.
        layer_norm: normalize x W and h_{t-1} U over all their columns, each with a gain, before b is added, and c_t on
            its way to h_t, with gain and bias (Ba, Kiros and Hinton, 2016). With "fgr" computed in NumPy: much
            slower.
        zoneout: the fraction from 0 to less than 1 of the units that keep their state at a step in training, for h and
            c apart; otherwise the states are mixed in that proportion (Krueger et al., 2016).
        zero_output_for_mask: the outputs of masked steps are zeros, the last output of a row that ends masked too.
        embedding: a floating array [V, I], or its shape (V, I), in which case it is drawn uniformly from [-0.05, 0.05],
            as by keras.layers.Embedding. x is then integers [B, T] (x_t [B]), and the input of a step is the row of that
            number. It is the last of the weights; the x of gradients is that of the rows, [B, T, I]: with the ids the
            sparse form of the embedding's gradient.

    Weights: kernel W [I, 4*H], recurrent_kernel U [H, 4*H], bias b [4*H]; gates in the order i, f, g, o; with
    peepholes peephole p [3, H] in the order i, f, o, zeros at first. A gate that a variant hasn't has no columns and
    no row. With proj_size U is [R, 4*H], and projection P [H, R] comes next; with "fgr" gate_kernel G [3*H, 3*H]. With
    layer_norm cell_norm [2, H] and layer_norm [2, 4*H] come last but for the embedding.

    Raises:
        TypeError, ValueError: an argument isn't what is said here.
        NotImplementedError: the dtype is half precision.

    >>> import numpy as np
    >>> lstm = LSTM(4, return_sequences=True, return_state=True)
    >>> y, h, c = lstm(np.zeros((32, 10, 8), "float32"))
    >>> y.shape, h.shape, c.shape
    ((32, 10, 4), (32, 4), (32, 4))
    >>> [w.shape for w in lstm.weights]
    [(8, 16), (4, 16), (16,)]
    """

    _gates = 4
    _states = 2
    _cell = "lstm"

    recurrent_activation: Activation
    unit_forget_bias: bool
    variant: str | None
    peephole: bool | None
    proj_size: int | None
    peephole_regularizer: Any = None
    peephole_constraint: Any = None
    projection_regularizer: Any = None
    projection_constraint: Any = None
    gate_regularizer: Any = None
    gate_constraint: Any = None
    cell_norm_regularizer: Any = None
    cell_norm_constraint: Any = None
    use_cudnn: Literal["auto", False]

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
        activity_regularizer: RegularizerLike = None,
        kernel_constraint: ConstraintLike = None,
        recurrent_constraint: ConstraintLike = None,
        bias_constraint: ConstraintLike = None,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        seed: int | None = None,
        return_sequences: bool = False,
        return_state: bool = False,
        go_backwards: bool = False,
        stateful: bool = False,
        unroll: bool = False,
        use_cudnn: Literal["auto", False] = "auto",
        *,
        variant: str | None = None,
        peephole: bool | None = None,
        proj_size: int | None = None,
        layer_norm: bool = False,
        zoneout: float = 0.0,
        embedding: ArrayLike | tuple[int, int] | None = None,
        zero_output_for_mask: bool = False,
        trainable: bool = True,
        dtype: LayerDType | None = None,
        name: str | None = None,
        **of_weights: Unpack[OfLSTMWeights],
    ) -> None:
        super().__init__(locals())
        try:
            self._cell = functional.lstm_cell(
                variant, self._has_peepholes, self.proj_size is not None, self.layer_norm
            )
        except ValueError as error:
            raise ValueError(f"{self._where}: {error}") from None
        if self.proj_size is not None and self.proj_size > self.units:
            raise ValueError(
                f"{self._where}: proj_size must be at most units, {self.units}, got {self.proj_size}; make it smaller"
            )
        if variant == "fgr":
            self._states = 5
        self._gates = len(self._gate_names)

    @property
    def _has_peepholes(self) -> bool:
        return self.variant not in (None, "np") if self.peephole is None else self.peephole

    @property
    def _gate_names(self) -> list[str]:
        return [name for name in "ifgo" if name != functional.MISSING_GATE.get(self.variant or "")]

    def _activations(self) -> tuple[ActivationLike, ActivationLike, ActivationLike]:
        return functional.lstm_activations(self.variant, self.activation, self.recurrent_activation)

    @property
    def _widths(self) -> list[int]:
        return [self.proj_size or self.units, *[self.units] * (self._states - 1)]

    def _shapes(self, features: int) -> dict[str, Shape]:
        shapes = super()._shapes(features)
        if self._has_peepholes:
            shapes["peephole"] = (len(set(self._gate_names) - {"g"}), self.units)
        if self.proj_size is not None:
            shapes["projection"] = (self.units, self.proj_size)
        if self.variant == "fgr":
            shapes["gate_kernel"] = (3 * self.units, 3 * self.units)
        if self.layer_norm:
            shapes["cell_norm"] = (2, self.units)
        return shapes

    def _initial_bias(self, rng: np.random.Generator) -> Array:
        if not self.unit_forget_bias or "f" not in self._gate_names:
            return super()._initial_bias(rng)
        h, forget = self.units, self._gate_names.index("f")
        before = self._draw("bias_initializer", (forget * h,), rng)
        after = self._draw("bias_initializer", ((self._gates - forget - 1) * h,), rng)
        return np.concatenate([before, np.ones(h, self.dtype), after])


class GRU(_Recurrent):
    """Gated Recurrent Unit.

        z = sigmoid(x_t W_z + b_z + h_{t-1} U_z + d_z)
        r = sigmoid(x_t W_r + b_r + h_{t-1} U_r + d_r)
        n =    tanh(x_t W_n + b_n + r * (h_{t-1} U_n + d_n))      with reset_after (the default)
        n =    tanh(x_t W_n + b_n + (r * h_{t-1}) U_n)            without; then there is no d
        h_t = z * h_{t-1} + (1 - z) * n

    Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder" (2014), arXiv 1406.1078: version 3
    has the reset gate before the product, version 1 after; keras.layers.GRU.

    Args:
        units: H, a positive int.
        activation: of the candidate n, what `fastrnn.activations.get` takes: a name, an `Activation` with
            parameters, a Keras config, or, much slower, a pair of Python callables (function, derivative).
        recurrent_activation: the same for the gates.
        use_bias: whether there is a bias.
        kernel_initializer: W's initial value: a name, a Keras config, or a callable f(shape, dtype=...).
        recurrent_initializer, bias_initializer: the same for U, and for b and d together.
        seed: int; the same weights, and in the same order of calls the same dropout masks, from every layer with
            this seed and these shapes. None: fresh ones each time. (In Keras it is the seed of dropout alone.)
        return_sequences: return the output of every step, [B, T, H], instead of the last one, [B, H].
        return_state: return (y, h) instead of y.
        go_backwards: read x from its end to its beginning; outputs come in the order of computation.
        unroll: accepted as in Keras; it changes nothing in the result, nor in speed.
        reset_after: whether the reset gate multiplies after the product with U_n or before it.
        use_cudnn: "auto" or False; there is no GPU here.
        trainable: if False, `trainable_weights` is empty; nothing else changes.
        dtype: "float32" (the default) or "float64", of the weights and all arithmetic.
        name: a str without "/"; by default the class' name in snake case.
        kernel_regularizer, recurrent_regularizer, bias_regularizer: penalties on W, U and b: what
            `fastrnn.regularizers.get` takes; see `losses`.
        activity_regularizer: a penalty on all that a call returns, divided by the batch size; see `Tape.losses`.
        kernel_constraint, recurrent_constraint, bias_constraint: what `fastrnn.constraints.get` takes; see
            `apply_constraints`.
        layer_norm_regularizer, embedding_regularizer, layer_norm_constraint, embedding_constraint: those of the other
            weights, by keyword, for a layer that has the weight.
        stateful: begin each call with the states that the last one ended with, until `reset_state`; see `states`.
            An initial_state given goes before them for that call. Copies and pickles don't take the states along.
        dropout: the fraction from 0 to less than 1 of the inputs that are left out in training, the same ones at
            every step; the others are divided by 1 - dropout.
        recurrent_dropout: the same for h_{t-1} in its product with U; each gate then leaves out others, of x too.
        layer_norm: normalize x W and h_{t-1} U over all their columns, each with a gain, before b is added (Ba, Kiros and
            Hinton, 2016).
        zoneout: the fraction from 0 to less than 1 of the units that keep their state at a step in training; otherwise
            the states are mixed in that proportion (Krueger et al., 2016).
        zero_output_for_mask: the outputs of masked steps are zeros, the last output of a row that ends masked too.
        embedding: a floating array [V, I], or its shape (V, I), in which case it is drawn uniformly from [-0.05, 0.05],
            as by keras.layers.Embedding. x is then integers [B, T] (x_t [B]), and the input of a step is the row of that
            number. It is the last of the weights; the x of gradients is that of the rows, [B, T, I]: with the ids the
            sparse form of the embedding's gradient.

    Weights: kernel W [I, 3*H], recurrent_kernel U [H, 3*H], bias [2, 3*H] (b, then d) or without reset_after
    [3*H]; gates in the order z, r, n.

    Raises:
        TypeError, ValueError: an argument isn't what is said here.
        NotImplementedError: the dtype is half precision.

    >>> import numpy as np
    >>> gru = GRU(4, return_state=True)
    >>> y, h = gru(np.zeros((32, 10, 8), "float32"))
    >>> y.shape, h.shape
    ((32, 4), (32, 4))
    >>> [w.shape for w in gru.weights]
    [(8, 12), (4, 12), (2, 12)]
    """

    _gates = 3

    recurrent_activation: Activation
    reset_after: bool
    use_cudnn: Literal["auto", False]

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
        activity_regularizer: RegularizerLike = None,
        kernel_constraint: ConstraintLike = None,
        recurrent_constraint: ConstraintLike = None,
        bias_constraint: ConstraintLike = None,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        seed: int | None = None,
        return_sequences: bool = False,
        return_state: bool = False,
        go_backwards: bool = False,
        stateful: bool = False,
        unroll: bool = False,
        reset_after: bool = True,
        use_cudnn: Literal["auto", False] = "auto",
        *,
        layer_norm: bool = False,
        zoneout: float = 0.0,
        embedding: ArrayLike | tuple[int, int] | None = None,
        zero_output_for_mask: bool = False,
        trainable: bool = True,
        dtype: LayerDType | None = None,
        name: str | None = None,
        **of_weights: Unpack[OfWeights],
    ) -> None:
        super().__init__(locals())
        self._cell = "gru" if self.reset_after else "gru_reset_before"

    def _bias_shape(self) -> Shape:
        row = super()._bias_shape()
        return (2, *row) if self.reset_after else row
