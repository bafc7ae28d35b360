"""The layers: Keras' arguments, weights and results; what a call, a tape, a copy and an error must be."""

import copy
import gc
import inspect
import json
import pickle
import re
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from support import (
    ALL_CELLS,
    CELLS,
    STATES,
    as_list,
    assert_close,
    import_keras,
    keras_in_float64,
    keras_layer,
    random_gradients,
    random_problem,
    weight_shapes,
)

from fastrnn import activations, functional, initializers
from fastrnn.layers import GRU, LSTM, IndRNN, SimpleRNN

# NumPy's remark about how Keras reads PyTorch's tensors.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

LAYERS = {
    "simple_rnn": SimpleRNN,
    "indrnn": IndRNN,
    "lstm": LSTM,
    "gru": GRU,
    "gru_reset_before": partial(GRU, reset_after=False),
}
CLASSES = [SimpleRNN, LSTM, GRU]
B, T, INPUTS, H = 3, 5, 4, 6  # batch, time, inputs, units
TOLERANCE = {"float32": 2e-6, "float64": 1e-13}

cells = pytest.mark.parametrize("cell", CELLS)
all_cells = pytest.mark.parametrize("cell", ALL_CELLS)
classes = pytest.mark.parametrize("layer_class", CLASSES)
dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])
bias_or_not = pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
sequences_or_last = pytest.mark.parametrize("return_sequences", [True, False], ids=["sequences", "last"])
state_or_not = pytest.mark.parametrize("return_state", [True, False], ids=["state", "no_state"])
both_directions = pytest.mark.parametrize("go_backwards", [False, True], ids=["forwards", "backwards"])
initial_or_zeros = pytest.mark.parametrize("initial", [True, False], ids=["initial_state", "zeros"])


def build(cell, weights, **options):
    """The layer with these weights, in their dtype."""
    kernel, recurrent_kernel, *bias = weights
    layer = LAYERS[cell](len(recurrent_kernel), use_bias=bool(bias), dtype=kernel.dtype, **options)
    layer.build((None, None, len(kernel)))
    layer.set_weights(weights)
    return layer


def built(cell="lstm", dtype="float32", **options):
    """A layer with weights and an input for it."""
    problem = random_problem(cell, B, T, INPUTS, H, dtype)
    return build(cell, problem.weights, **options), problem.x


def assert_same(actual, expected):
    """Equal bit by bit, dtype included."""
    actual, expected = as_list(actual), as_list(expected)
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype
        np.testing.assert_array_equal(a, e)


def to_numpy(keras, outputs):
    return [keras.ops.convert_to_numpy(o) for o in as_list(outputs)]


# ---- The constructor, compared with Keras ----


@classes
def test_constructor_has_the_arguments_order_and_defaults_of_keras(layer_class):
    theirs = inspect.signature(getattr(import_keras().layers, layer_class.__name__)).parameters.values()
    theirs = [(p.name, p.kind, p.default) for p in theirs if p.kind is not p.VAR_KEYWORD]
    ours = [(p.name, p.kind, p.default) for p in inspect.signature(layer_class).parameters.values()]
    assert ours[: len(theirs)] == theirs


@classes
def test_constructor_adds_by_keyword_what_keras_takes_in_kwargs(layer_class):
    keras = import_keras()
    ours = inspect.signature(layer_class).parameters.values()
    extra = {p.name: p.default for p in ours if p.kind is p.KEYWORD_ONLY}
    beyond = {"variant": None, "peephole": None, "proj_size": None} if layer_class is LSTM else {}
    beyond |= {"embedding": None, "layer_norm": False, "zoneout": 0.0}
    keywords = {"zero_output_for_mask": False, "trainable": True, "dtype": None, "name": None}
    assert extra == beyond | keywords
    getattr(keras.layers, layer_class.__name__)(3, **keywords)


@classes
def test_call_has_the_arguments_of_keras(layer_class):
    theirs = inspect.signature(getattr(import_keras().layers, layer_class.__name__).call).parameters.values()
    ours = inspect.signature(layer_class.__call__).parameters.values()
    # The first two are self and the input, which is x here and sequences there.
    expected = [(p.name, p.default) for p in theirs][2:]
    assert [(p.name, p.default) for p in ours if p.kind is not p.KEYWORD_ONLY][2:] == expected
    assert [(p.name, p.default) for p in ours if p.kind is p.KEYWORD_ONLY] == [("lengths", None)]


@classes
def test_keras_reads_our_config_and_we_read_its(layer_class):
    keras_class = getattr(import_keras().layers, layer_class.__name__)
    chosen = FULL | {"recurrent_initializer": "orthogonal", "kernel_initializer": "glorot_uniform"}
    chosen["bias_initializer"] = "zeros"  # Keras writes the settings of others
    ours = layer_class(**chosen)
    theirs = keras_class.from_config(ours.get_config())
    config = theirs.get_config() | {"seed": FULL["seed"]}  # which Keras' SimpleRNN doesn't write
    assert layer_class.from_config(config).get_config() == ours.get_config()
    for name in FULL.keys() - {
        "kernel_initializer",
        "recurrent_initializer",
        "bias_initializer",
        "activation",
    }:
        assert getattr(theirs, name, FULL[name]) == getattr(ours, name) == FULL[name]


@classes
def test_our_config_has_what_keras_config_has(layer_class):
    keras_config = getattr(import_keras().layers, layer_class.__name__)(3).get_config()
    assert keras_config.keys() <= layer_class(3).get_config().keys()


@classes
def test_we_know_the_names_of_the_activations_of_keras(layer_class):
    import_keras()
    from keras.src import activations as theirs

    of_rows = {"softmax", "log_softmax", "sparsemax", "glu"}
    for name in theirs.ALL_OBJECTS_DICT.keys() - {"threshold"}:  # which needs arguments
        if name in of_rows:
            message = (
                rf"^{layer_class.__name__}: activation: there is no activation '{name}' of single units "
            )
            with pytest.raises(ValueError, match=message):
                layer_class(3, activation=name)
        else:
            assert layer_class(3, activation=name).activation.name in activations.NAMES


# ---- Results ----


@cells
@bias_or_not
@sequences_or_last
@state_or_not
@both_directions
@initial_or_zeros
def test_outputs_equal_those_of_keras(cell, bias, return_sequences, return_state, go_backwards, initial):
    problem = random_problem(cell, B, T, INPUTS, H, "float64", bias=bias)
    options = dict(return_sequences=return_sequences, return_state=return_state, go_backwards=go_backwards)
    initial_state = problem.initial_state if initial else None
    with keras_in_float64() as keras:
        theirs = keras_layer(cell, problem.weights, **options)
        x = keras.ops.convert_to_tensor(problem.x)
        expected = to_numpy(keras, theirs(x, initial_state=initial_state))
    ours = build(cell, problem.weights, **options)
    outputs = ours(problem.x, initial_state=initial_state)
    assert isinstance(outputs, tuple) == return_state
    assert_close(as_list(outputs), expected, TOLERANCE["float64"])
    shapes = ours.compute_output_shape(problem.x.shape)
    assert shapes == theirs.compute_output_shape(problem.x.shape)
    assert (list(shapes) if return_state else [shapes]) == [o.shape for o in as_list(outputs)]


@all_cells
@bias_or_not
@sequences_or_last
@state_or_not
@both_directions
@initial_or_zeros
@dtypes
def test_outputs_and_gradients_equal_those_of_the_reference(
    cell, bias, return_sequences, return_state, go_backwards, initial, dtype
):
    options = dict(return_sequences=return_sequences, return_state=return_state, go_backwards=go_backwards)
    problem = random_problem(cell, B, T, INPUTS, H, dtype, bias=bias)
    layer = build(cell, problem.weights, **options)
    states = problem.initial_state if initial else None
    outputs, tape = layer.forward(problem.x, initial_state=states)
    assert_same(layer(problem.x, initial_state=states), outputs)

    exact = problem.astype("float64")
    states = exact.initial_state if initial else None
    expected, expected_tape = ALL_CELLS[cell].forward(
        exact.x, *exact.weights, initial_state=states, **options
    )
    assert_close(as_list(outputs), as_list(expected), 4 * TOLERANCE[dtype], "outputs")

    dy = random_gradients(outputs)
    gradients = layer.backward(dy, tape)
    assert isinstance(gradients, functional.Gradients)
    exact_dy = [d.astype("float64") for d in dy] if return_state else dy.astype("float64")
    expected = ALL_CELLS[cell].backward(exact_dy, expected_tape)
    assert_close(tuple(gradients), tuple(expected), 20 * TOLERANCE[dtype], "gradients")
    assert [g.shape for g in gradients.weights] == [w.shape for w in layer.weights]


@all_cells
@dtypes
def test_outputs_have_the_dtype_of_the_layer(cell, dtype):
    layer, x = built(cell, dtype, return_sequences=True, return_state=True)
    assert [o.dtype for o in layer(x)] == [dtype] * (1 + STATES[cell])


@all_cells
@initial_or_zeros
def test_steps_give_what_one_call_gives(cell, initial):
    problem = random_problem(cell, B, T, INPUTS, H, "float64")
    layer = build(cell, problem.weights, return_sequences=True, return_state=True)
    states = problem.initial_state if initial else None
    y, *final = layer(problem.x, initial_state=states)
    for t in range(T):
        y_t, states = layer.step(problem.x[:, t], states)
        assert_close(y_t, y[:, t], 1e-13)
    assert len(states) == STATES[cell]
    assert_close(list(states), final, 1e-13)


@all_cells
def test_steps_in_place_give_what_steps_give(cell):
    layer, x = built(cell)
    states, in_place = None, [np.zeros((len(x), H), "float32") for _ in range(STATES[cell])]
    for t in range(T):
        y_t, states = layer.step(x[:, t], states)
        h, same = layer.step(x[:, t], in_place, out=in_place)
        assert h is in_place[0] and same[0] is h
        assert_same([h, *same], [y_t, *states])


@all_cells
def test_step_does_not_depend_on_how_sequences_are_read_and_returned(cell):
    layer, x = built(cell)
    y, states = layer.step(x[:, 0])
    other, _ = built(cell, return_sequences=True, return_state=True, go_backwards=True)
    other_y, other_states = other.step(x[:, 0])
    assert_same([y, *states], [other_y, *other_states])


@cells
def test_arguments_that_change_nothing_change_nothing(cell):
    layer, x = built(cell)
    y = layer(x)
    for training in (True, False, None):
        assert_same(layer(x, training=training), y)
        assert_same(layer.forward(x, training=training)[0], y)
    assert_same(built(cell, unroll=True)[0](x), y)
    if cell != "simple_rnn":  # which has no such argument, as in Keras
        assert_same(built(cell, use_cudnn=False)[0](x), y)


def test_the_ways_of_calling_may_be_changed_after_construction():
    layer, x = built()
    layer.return_sequences = True
    layer.return_state = True
    layer.go_backwards = True
    layer.unroll = True
    assert_same(layer(x), built(return_sequences=True, return_state=True, go_backwards=True)[0](x))


# ---- Input: what is converted and what is refused ----


@pytest.mark.parametrize("given", ["float16", "float64", "longdouble", ">f4", ">f8"])
@pytest.mark.parametrize("call", ["call", "forward", "step"])
def test_floats_of_another_width_or_byte_order_are_converted(given, call):
    layer, x = built()
    x = x.astype(given)
    states = [np.ones((B, H), given), None]
    plain_states = [np.ones((B, H), "float32"), None]

    def run(x, states):
        if call == "call":
            return as_list(layer(x, initial_state=states))
        if call == "forward":
            return as_list(layer.forward(x, initial_state=states)[0])
        y, states = layer.step(x[:, 0], states)
        return [y, *states]

    assert_same(run(x, states), run(x.astype("float32"), plain_states))


def test_a_float64_layer_converts_float32():
    layer, x = built(dtype="float64")
    assert_same(layer(x.astype("float32")), layer(x.astype("float32").astype("float64")))


@state_or_not
def test_gradients_given_in_another_width_are_converted(return_state):
    layer, x = built(return_state=return_state)
    outputs, tape = layer.forward(x)
    dy = random_gradients(outputs)
    expected = layer.backward(dy, tape)
    wide = [d.astype("float64") for d in dy] if return_state else dy.astype("float64")
    gradients = layer.backward(wide, layer.forward(x)[1])
    assert_same([gradients.x, *gradients.weights], [expected.x, *expected.weights])


def test_gradients_may_be_none_for_zeros():
    layer, x = built(return_state=True)
    (y, h, c), tape = layer.forward(x)
    expected = layer.backward([np.zeros_like(y), np.ones_like(h), np.zeros_like(c)], tape)
    gradients = layer.backward([None, np.ones_like(h), None], layer.forward(x)[1])
    assert_same([gradients.x, *gradients.weights], [expected.x, *expected.weights])


def test_array_likes_are_taken():
    layer, x = built()

    class HasArray:
        def __array__(self, dtype=None, copy=None):
            return x if dtype is None else x.astype(dtype)

    assert_same(layer(x.tolist()), layer(x))
    assert_same(layer(HasArray()), layer(x))
    assert_same(layer.step(x[:, 0].tolist())[0], layer.step(x[:, 0])[0])


def test_a_torch_tensor_is_taken():
    torch = pytest.importorskip("torch", reason="passes a torch tensor, PyTorch is not installed")
    layer, x = built()
    assert_same(layer(torch.from_numpy(x)), layer(x))


def test_views_with_any_strides_are_taken():
    layer, x = built()
    view = np.repeat(np.repeat(x, 2, axis=0), 2, axis=2)[::2, :, ::2]
    assert not view.flags.c_contiguous
    assert_same(layer(view), layer(x))
    assert_same(layer(x[:, ::-1]), layer(x[:, ::-1].copy()))
    x.flags.writeable = False
    assert_same(layer(x), layer(view))


def test_one_state_may_come_without_a_list():
    layer, x = built("gru")
    h = np.ones((B, H), "float32")
    assert_same(layer(x, initial_state=h), layer(x, initial_state=[h]))
    assert_same(layer.step(x[:, 0], h)[0], layer.step(x[:, 0], (h,))[0])


@pytest.mark.parametrize(
    "given, name",
    [
        ("int64", "int64"),
        ("uint8", "uint8"),
        ("bool", "bool"),
        ("complex64", "complex64"),
        ("object", "object"),
    ],
)
@pytest.mark.parametrize(
    "what",
    [
        "x",
        "x_t",
        "initial_state[1]",
        "states[0]",
        "dy",
        "dy[1]",
        "forward x",
        "weights[1] (recurrent_kernel)",
    ],
)
def test_anything_but_floats_is_refused(what, given, name):
    return_state = what == "dy[1]"
    layer, x = built(return_state=return_state)
    before = layer.get_weights()
    state = np.ones((B, H), "float32")
    _, tape = layer.forward(x)
    variable = what.removeprefix("forward ").split(" ")[0]
    where = r"LSTM\.step" if what in ("x_t", "states[0]") else "LSTM"
    message = rf"^{where}: {re.escape(what.removeprefix('forward '))} must be a floating array, got {name}; "
    message += rf'convert it with {re.escape(variable)}\.astype\("float32"\)$'
    with pytest.raises(TypeError, match=message):
        if what == "x":
            layer(x.astype(given))
        elif what == "x_t":
            layer.step(x[:, 0].astype(given))
        elif what == "initial_state[1]":
            layer(x, initial_state=[state, state.astype(given)])
        elif what == "states[0]":
            layer.step(x[:, 0], (state.astype(given), state))
        elif what == "dy":
            layer.backward(state.astype(given), tape)
        elif what == "dy[1]":
            layer.backward([state, state.astype(given), None], tape)
        elif what == "forward x":
            layer.forward(x.astype(given))
        else:
            layer.set_weights([before[0], before[1].astype(given), before[2]])
    assert_same(layer.get_weights(), before)


@pytest.mark.parametrize(
    "x, got", [("abc", "<U3"), (None, "object"), ({}, "object"), ([[[1, 2]]], "int64")], ids=str
)
def test_other_objects_are_refused(x, got):
    with pytest.raises(
        TypeError, match=rf"^LSTM: x must be a floating array, got {got}; convert it with x\.astype"
    ):
        LSTM(3)(x)


def test_ragged_lists_are_refused():
    with pytest.raises(
        ValueError, match=r"^LSTM: x must be an array, got a list that NumPy makes none of \(.*\); "
    ):
        LSTM(3)([[[1.0], [2.0]], [[3.0]]])


def test_a_masked_array_is_refused_rather_than_read_without_its_mask():
    layer, x = built()
    with pytest.raises(TypeError, match=r"^LSTM: x must be a plain array, got a masked array; fill it with "):
        layer(np.ma.masked_greater(x, 0))


@all_cells
@pytest.mark.parametrize("is_built", [True, False], ids=["built", "first_call"])
def test_an_input_of_wrong_rank_is_refused(cell, is_built):
    layer = LAYERS[cell](3)
    if is_built:
        layer.build((None, None, 4))
    name = type(layer).__name__
    with pytest.raises(
        ValueError,
        match=rf"^{name}: x must have shape \[batch, time, features\], got \(2, 4\); "
        r"add a time axis with x\[:, None, :\]$",
    ):
        layer(np.zeros((2, 4), "float32"))
    with pytest.raises(
        ValueError, match=rf"^{name}: x must have shape \[batch, time, features\], got \(4,\)"
    ):
        layer.forward(np.zeros(4, "float32"))
    with pytest.raises(
        ValueError, match=rf"^{name}\.step: x_t must have shape \[batch, .*\], .*got \(2, 5, 4\)"
    ):
        layer.step(np.zeros((2, 5, 4), "float32"))
    assert layer.built == is_built


@all_cells
def test_wrong_shapes_raise_value_errors(cell):
    layer, x = built(cell, return_state=True)
    name = type(layer).__name__
    for wrong in (x[:, :, 1:], x[:, :, :0]):
        with pytest.raises(ValueError, match=f"^{name}: x must have 4 features "):
            layer(wrong)
        with pytest.raises(ValueError, match=rf"^{name}\.step: x_t must have "):
            layer.step(wrong[:, 0])
    state = np.zeros((B, H), "float32")
    states = [state] * STATES[cell]
    for wrong in (
        [],
        [*states, state],
        [state[1:]] * len(states),
        [state[:, 1:]] * len(states),
        [state[0]] * 2,
    ):
        with pytest.raises(ValueError, match=rf"^{name}: initial_state(\[\d\])? must have "):
            layer(x, initial_state=wrong)
    (y, *_), tape = layer.forward(x)
    for wrong in ([], [y], [y, *states, state], [y[1:], *states]):
        with pytest.raises(ValueError, match=rf"^{name}(\.backward)?: dy(\[\d\])? must have "):
            layer.backward(wrong, tape)


@pytest.mark.parametrize("time", [0, 1], ids=["no_steps", "one_step"])
@pytest.mark.parametrize("batch", [0, 1], ids=["no_rows", "one_row"])
@all_cells
def test_small_and_empty_inputs_work(cell, batch, time):
    layer = LAYERS[cell](H, return_sequences=True, return_state=True)
    x = np.ones((batch, time, INPUTS), "float32")
    (y, *states), tape = layer.forward(x)
    assert y.shape == (batch, time, H)
    assert [s.shape for s in states] == [(batch, H)] * STATES[cell]
    gradients = layer.backward([y, *states], tape)
    assert gradients.x.shape == x.shape


# ---- Weights ----


@cells
@bias_or_not
@dtypes
def test_weights_have_the_shapes_order_and_number_of_keras(cell, bias, dtype):
    import_keras()
    theirs = keras_layer(cell, random_problem(cell, B, T, INPUTS, H, dtype, bias=bias).weights)
    ours = LAYERS[cell](H, use_bias=bias, dtype=dtype)
    ours.build((None, None, INPUTS))
    assert [w.shape for w in ours.weights] == [tuple(w.shape) for w in theirs.weights]
    assert [w.shape for w in ours.weights] == weight_shapes(cell, INPUTS, H, bias)
    assert [w.dtype for w in ours.weights] == [dtype] * len(theirs.weights)
    assert ours.count_params() == theirs.count_params()
    ours.set_weights(theirs.get_weights())
    assert_same(ours.get_weights(), theirs.get_weights())


@all_cells
def test_weights_are_kernel_recurrent_kernel_bias(cell):
    layer, _ = built(cell)
    assert all(
        a is b for a, b in zip(layer.weights, [layer.kernel, layer.recurrent_kernel, layer.bias], strict=True)
    )
    assert build(cell, layer.weights[:2]).bias is None


@all_cells
def test_weights_are_read_only_and_get_weights_copies(cell):
    layer, x = built(cell)
    y = layer(x)
    for w in layer.weights:
        with pytest.raises(ValueError, match="read-only"):
            w[...] = 0
    for w in layer.get_weights():
        w[...] = 0
    layer.weights.clear()
    assert_same(layer(x), y)
    with pytest.raises(AttributeError):
        layer.kernel = layer.get_weights()[0]


def test_set_weights_copies_and_takes_any_floats():
    layer, x = built(dtype="float64")
    given = [np.asfortranarray(w * 2) for w in layer.weights]
    layer.set_weights(given)
    y = layer(x)
    for w in given:
        w[...] = 0
    assert_same(layer(x), y)
    halves = [w.astype("float16") for w in layer.weights]
    layer.set_weights(halves)
    assert_same(layer.get_weights(), [w.astype("float64") for w in halves])
    layer.set_weights(tuple(w.tolist() for w in halves))
    assert_same(layer.get_weights(), [w.astype("float64") for w in halves])


def test_set_weights_takes_what_is_not_finite():
    layer, x = built()
    layer.set_weights([np.full_like(w, np.nan) for w in layer.weights])
    assert np.isnan(layer(x)).all()


@pytest.mark.parametrize(
    "change, error, message",
    [
        (
            lambda w: w[:2],
            ValueError,
            r"weights must be 3 arrays \(kernel, recurrent_kernel, bias\), got 2; pass ",
        ),
        (lambda w: [*w, w[0]], ValueError, r"weights must be 3 arrays .*, got 4; "),
        (
            lambda w: [w[1], w[0], w[2]],
            ValueError,
            r"weights\[0\] \(kernel\) must have shape \(4, 24\), got \(6, 24\); ",
        ),
        (
            lambda w: [w[0], w[1], w[2][1:]],
            ValueError,
            r"weights\[2\] \(bias\) must have shape \(24,\), got \(23,\); ",
        ),
        (
            lambda w: [w[0], w[1], w[2][None]],
            ValueError,
            r"weights\[2\] \(bias\) must have shape \(24,\), got \(1, 24\)",
        ),
        (
            lambda w: [w[0], w[1], None],
            TypeError,
            r"weights\[2\] \(bias\) must be a floating array, got object; ",
        ),
        (
            lambda w: 3,
            TypeError,
            r"weights must be a list of arrays, got int; pass \[kernel, recurrent_kernel, bias\]",
        ),
    ],
    ids=["too_few", "too_many", "swapped", "short", "rank", "none", "no_list"],
)
def test_set_weights_changes_nothing_after_an_error(change, error, message):
    layer, x = built()
    before, y = layer.get_weights(), layer(x)
    with pytest.raises(error, match=f"^LSTM: {message}"):
        layer.set_weights(change([w + 1 for w in before]))
    assert_same(layer.get_weights(), before)
    assert_same(layer(x), y)


def test_before_it_is_built_a_layer_has_no_weights():
    layer = GRU(3)
    assert not layer.built
    assert layer.weights == layer.get_weights() == layer.trainable_weights == []
    message = (
        r"^GRU: count_params needs a layer with weights, got one that isn't built; call build\(\(None, None, "
    )
    with pytest.raises(ValueError, match=message):
        layer.count_params()
    with pytest.raises(ValueError, match=message.replace("count_params", "set_weights")):
        layer.set_weights([])
    for name in ("kernel", "recurrent_kernel", "bias"):
        with pytest.raises(AttributeError, match=r"^GRU: the layer has no weights yet; call it or build\("):
            getattr(layer, name)


def test_trainable_moves_the_weights_between_the_two_lists():
    layer, _ = built()
    assert layer.trainable
    assert len(layer.trainable_weights) == 3 and layer.non_trainable_weights == []
    layer.trainable = False
    assert layer.trainable_weights == [] and len(layer.non_trainable_weights) == 3
    assert len(layer.weights) == 3


# ---- Building ----


@pytest.mark.parametrize("call", ["call", "forward", "step"])
def test_the_first_call_builds(call):
    layer = LSTM(H, seed=1)
    x = np.ones((B, T, INPUTS))
    {"call": layer, "forward": layer.forward, "step": lambda x: layer.step(x[:, 0])}[call](x)
    expected = LSTM(H, seed=1)
    expected.build((B, T, INPUTS))
    assert layer.built
    assert_same(layer.weights, expected.weights)


def test_building_again_keeps_the_weights():
    layer, _ = built()
    before = layer.weights
    layer.build((None, None, INPUTS))
    assert all(a is b for a, b in zip(layer.weights, before, strict=True))
    with pytest.raises(
        ValueError,
        match=r"^LSTM: input_shape must have the 4 features that the layer was built for, got 5; "
        r"make a new layer for other inputs$",
    ):
        layer.build((None, None, 5))


@pytest.mark.parametrize(
    "shape", [(4,), (2, 4), (2, 3, None), (2, 3, 4.0), (1, 2, 3, 4), (2, 3, -1), (), 4, None], ids=str
)
def test_a_shape_without_features_is_refused(shape):
    with pytest.raises(
        ValueError,
        match=r"^LSTM: input_shape must be \(batch, time, features\) with an integer for features, "
        rf"got {re.escape(repr(shape))}; write for example build\(\(None, None, 8\)\)$",
    ):
        LSTM(3).build(shape)


def test_sixteen_threads_making_the_first_call_get_the_same_weights():
    barrier = threading.Barrier(16)

    def kernel(shape, dtype=None):
        # other weights at every call
        return np.random.default_rng().standard_normal(shape).astype(dtype)

    layer = LSTM(H, kernel_initializer=kernel)
    x = np.ones((B, T, INPUTS), "float32")

    def first_call(_):
        barrier.wait()
        return layer(x)

    with ThreadPoolExecutor(16) as pool:
        outputs = list(pool.map(first_call, range(16)))
    for y in outputs:
        assert_same(y, outputs[0])


def test_many_threads_may_call_one_layer_while_its_weights_are_set():
    layer, x = built()
    other = [w * 2 for w in layer.weights]
    first = layer.get_weights()
    allowed = [layer(x), build("lstm", other)(x)]

    def call(k):
        if k % 4 == 0:
            layer.set_weights(other if k % 8 else first)
        return layer(x)

    with ThreadPoolExecutor(8) as pool:
        for y in pool.map(call, range(400)):
            assert any(np.array_equal(y, a) for a in allowed)


def test_an_error_in_an_initializer_leaves_the_layer_unbuilt():
    def fails(shape, dtype=None):
        raise RuntimeError("no numbers today")

    layer = LSTM(3, recurrent_initializer=fails)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no numbers today"):
            layer(np.ones((1, 1, 1), "float32"))
        assert not layer.built


# ---- Initial weights and seeds ----


@cells
@dtypes
def test_default_weights_are_glorot_uniform_orthogonal_and_zeros(cell, dtype):
    layer = LAYERS[cell](16, dtype=dtype, seed=1)
    layer.build((None, None, 8))
    limit = np.sqrt(6 / sum(layer.kernel.shape))
    assert 0.9 * limit < np.abs(layer.kernel).max() <= limit * (1 + np.finfo(dtype).eps)
    u = layer.recurrent_kernel
    np.testing.assert_allclose(u @ u.T, np.eye(16), atol=50 * np.finfo(dtype).eps)
    if cell == "lstm":
        np.testing.assert_array_equal(layer.bias, np.repeat([0, 1, 0, 0], 16))
    else:
        assert not layer.bias.any()


@pytest.mark.parametrize("bias_initializer", ["zeros", "ones", "glorot_uniform"])
@pytest.mark.parametrize("unit_forget_bias", [True, False])
def test_unit_forget_bias_sets_the_forget_gate_alone(bias_initializer, unit_forget_bias):
    layer = LSTM(H, bias_initializer=bias_initializer, unit_forget_bias=unit_forget_bias)
    layer.build((None, None, INPUTS))
    i, f, g, o = np.split(layer.bias, 4)
    constant = {"zeros": 0, "ones": 1}.get(bias_initializer)
    for gate in (i, g, o) if unit_forget_bias else (i, f, g, o):
        assert (gate == constant).all() if constant is not None else len(set(gate)) == H
    if unit_forget_bias:
        assert (f == 1).all()


def test_the_forget_bias_is_that_of_keras():
    keras = import_keras()
    options = dict(bias_initializer=lambda shape, dtype=None: np.full(shape, 3.0, dtype))
    theirs = keras.layers.LSTM(H, **options)
    theirs.build((None, None, INPUTS))
    ours = LSTM(H, **options)
    ours.build((None, None, INPUTS))
    assert_same(ours.get_weights()[2], theirs.get_weights()[2])


def test_an_indrnn_begins_as_a_sum_over_time():
    layer = IndRNN(H, dtype="float64")
    x = np.random.default_rng(0).random((B, T, INPUTS))
    layer.build(x.shape)
    assert_same([layer.recurrent_kernel, layer.bias], [np.ones(H), np.zeros(H)])
    layer.set_weights([np.abs(layer.kernel), *layer.weights[1:]])
    assert_close(layer(x), (x @ layer.kernel).sum(axis=1), 1e-14)


def test_indrnn_has_the_arguments_of_simple_rnn():
    one, other = (inspect.signature(c).parameters.values() for c in (IndRNN, SimpleRNN))
    assert [(p.name, p.kind) for p in one] == [(p.name, p.kind) for p in other]
    changed = {p.name: p.default for p, q in zip(one, other, strict=True) if p != q}
    assert changed == {"activation": "relu", "recurrent_initializer": "ones"}
    full = {name: value for name, value in FULL.items() if name != "recurrent_initializer"}
    for layer in (IndRNN(3, embedding=(5, 2)), IndRNN(**full, recurrent_regularizer="l2", stateful=True)):
        config = json.loads(json.dumps(layer.get_config()))
        assert repr(IndRNN.from_config(config)) == repr(layer)


def test_regularizers_and_constraints_of_an_indrnn():
    layer, x = built("indrnn", "float64", recurrent_regularizer="l2", recurrent_constraint="non_neg")
    plain = build("indrnn", layer.weights)
    (y, tape), (_, plain_tape) = layer.forward(x), plain.forward(x)
    u = layer.recurrent_kernel
    np.testing.assert_allclose(tape.losses, [0.01 * np.sum(u * u)])
    du, expected = layer.backward(y, tape).weights[1], plain.backward(y, plain_tape).weights[1]
    assert_close(du, expected + 0.02 * u, 1e-14)
    layer.apply_constraints()
    assert_same(layer.recurrent_kernel, np.maximum(u, 0))


@cells
def test_a_seed_gives_the_same_weights_and_another_one_others(cell):
    def weights(seed, inputs=INPUTS, **options):
        layer = LAYERS[cell](
            H, seed=seed, bias_initializer="glorot_uniform" if cell != "gru" else "orthogonal", **options
        )
        layer.build((None, None, inputs))
        return layer.weights

    assert_same(weights(1), weights(1))
    for a, b in zip(weights(1), weights(2), strict=True):
        assert not np.array_equal(a, b)
    # Every weight has a stream of its own: other inputs, the same recurrent kernel.
    assert_same(weights(1, inputs=INPUTS + 1)[1:], weights(1)[1:])
    assert_same(weights(1, dtype="float64")[0].astype("float32"), weights(1)[0])


def test_kernel_and_recurrent_kernel_are_drawn_independently():
    layer = SimpleRNN(40, recurrent_initializer="glorot_uniform", seed=0)
    layer.build((None, None, 40))
    assert abs(np.corrcoef(layer.kernel.ravel(), layer.recurrent_kernel.ravel())[0, 1]) < 0.1


@cells
def test_without_a_seed_weights_are_fresh(cell):
    first, second = LAYERS[cell](H), LAYERS[cell](H)
    for layer in (first, second):
        layer.build((None, None, INPUTS))
    assert not np.array_equal(first.kernel, second.kernel)
    assert not np.array_equal(first.recurrent_kernel, second.recurrent_kernel)


def test_an_initializer_may_be_a_callable_a_config_or_a_keras_object():
    layer = LSTM(
        H,
        kernel_initializer=np.ones,
        recurrent_initializer={"class_name": "Orthogonal", "config": {"gain": 0.5, "seed": 2}},
        bias_initializer="Ones",
    )
    layer.build((None, None, INPUTS))
    assert layer.kernel_initializer is np.ones
    assert (layer.kernel == 1).all() and (layer.bias == 1).all()
    assert_same(layer.recurrent_kernel, initializers.orthogonal((H, 4 * H), "float32", seed=2, gain=0.5))


def test_an_initializer_of_keras_gives_the_numbers_of_keras():
    keras = import_keras()
    options = {"kernel_initializer": keras.initializers.HeNormal(seed=1), "use_bias": False}
    options["recurrent_initializer"] = keras.initializers.Orthogonal(gain=0.5, seed=2)
    theirs, ours = keras.layers.GRU(H, **options), GRU(H, **options)
    for layer in (theirs, ours):
        layer.build((None, None, INPUTS))
    assert_same(ours.get_weights(), theirs.get_weights())


@pytest.mark.parametrize(
    "initializer, error, message",
    [
        (lambda shape, dtype: np.zeros(3), ValueError, r"must have shape \(4, 24\), got \(3,\); "),
        (
            lambda shape, dtype: np.zeros(shape, int),
            TypeError,
            r"must be a floating array, got int64; convert it with ",
        ),
        (lambda shape, dtype: None, TypeError, r"must be a floating array, got object; "),
    ],
    ids=["shape", "int", "none"],
)
def test_what_an_initializer_returns_is_checked(initializer, error, message):
    with pytest.raises(error, match=f"^LSTM: what kernel_initializer returns {message}"):
        LSTM(H, kernel_initializer=initializer).build((None, None, INPUTS))


# ---- Tapes ----


def test_a_tape_belongs_to_the_layer_that_made_it():
    layer, x = built()
    twin = copy.deepcopy(layer)
    y, tape = layer.forward(x)
    with pytest.raises(
        ValueError,
        match=r"^LSTM: tape must come from this layer's own forward, "
        r"got a tape of another layer \(LSTM\(6\) with .*\); call the backward of that layer$",
    ):
        twin.backward(y, tape)
    layer.backward(y, tape)


@pytest.mark.parametrize("tape", [None, 3, "tape"], ids=str)
def test_what_is_no_tape_is_refused(tape):
    layer, x = built()
    with pytest.raises(
        TypeError,
        match=rf"^LSTM: tape must be what forward returned, got {type(tape).__name__}; call y, tape = ",
    ):
        layer.backward(layer(x), tape)


def test_a_tape_is_used_up():
    layer, x = built()
    y, tape = layer.forward(x)
    layer.backward(y, tape)
    with pytest.raises(RuntimeError, match=r"^LSTM(\.backward)?: the tape was already used; "):
        layer.backward(y, tape)


def test_a_tape_survives_a_wrong_gradient():
    layer, x = built(return_state=True)
    outputs, tape = layer.forward(x)
    expected = layer.backward(outputs, layer.forward(x)[1])
    with pytest.raises(
        TypeError, match=r"^LSTM(\.backward)?: dy must be a list or tuple of 3 arrays, got ndarray"
    ):
        layer.backward(outputs[0], tape)
    with pytest.raises(ValueError, match=r"^LSTM(\.backward)?: dh must have shape \(3, 6\) .*, got \(2, 6\)"):
        layer.backward([None, outputs[1][1:], None], tape)
    gradients = layer.backward(outputs, tape)
    assert_same([gradients.x, *gradients.weights], [expected.x, *expected.weights])


def test_a_tape_keeps_the_weights_it_was_made_with():
    layer, x = built()
    y, tape = layer.forward(x)
    expected = layer.backward(y, tape)
    _, tape = layer.forward(x)
    layer.set_weights([w * 2 for w in layer.weights])
    layer.return_state = layer.return_sequences = True
    gradients = layer.backward(y, tape)
    assert_same([gradients.x, *gradients.weights], [expected.x, *expected.weights])


def test_a_layer_may_be_used_twice_before_its_gradients_are_taken():
    layer, x = built()
    expected = layer.backward(layer(x), layer.forward(x)[1])
    first_y, first = layer.forward(x)
    second_y, second = layer.forward(2 * x)
    layer.backward(second_y, second)
    gradients = layer.backward(first_y, first)
    assert_same([gradients.x, *gradients.weights], [expected.x, *expected.weights])


def test_a_layer_keeps_nothing_between_calls():
    layer, x = built()
    before = {name: id(value) for name, value in vars(layer).items()}
    y, tape = layer.forward(x)
    layer.backward(y, tape)
    layer.step(x[:, 0])
    assert {name: id(value) for name, value in vars(layer).items()} == before


def test_the_tape_shows_its_layer():
    layer, x = built()
    assert repr(layer.forward(x)[1]) == f"<Tape of {layer!r}>"


# ---- States that are kept ----


@cells
@sequences_or_last
@state_or_not
@both_directions
@pytest.mark.parametrize("call", ["call", "forward"])
def test_stateful_calls_give_what_they_give_in_keras(
    cell, return_sequences, return_state, go_backwards, call
):
    problem = random_problem(cell, B, T, INPUTS, H, "float64")
    options = dict(
        return_sequences=return_sequences, return_state=return_state, go_backwards=go_backwards, stateful=True
    )
    ours = build(cell, problem.weights, **options)
    assert ours.states is None
    run = {"call": ours, "forward": lambda x, s=None: ours.forward(x, initial_state=s)[0]}[call]
    with keras_in_float64() as keras:
        theirs = keras_layer(cell, problem.weights, B, **options)
        x = keras.ops.convert_to_tensor(problem.x)

        def check(states=None):
            expected = to_numpy(keras, theirs(x, initial_state=states))
            outputs = run(problem.x, states)
            assert_close(as_list(outputs), expected, TOLERANCE["float64"])
            assert isinstance(outputs, tuple) == return_state
            kept = [keras.ops.convert_to_numpy(s.value) for s in theirs.states]
            assert_close(ours.states, kept, TOLERANCE["float64"])

        check()
        check()
        check(problem.initial_state)  # goes before what is kept, once
        check()
        theirs.reset_state()
        ours.reset_state()
        check()


@all_cells
@state_or_not
def test_gradients_of_a_stateful_call_are_those_from_its_first_states(cell, return_state):
    problem = random_problem(cell, B, T, INPUTS, H)
    regularized = dict(activity_regularizer="l2", kernel_regularizer="l2", return_state=return_state)
    layer, plain = (build(cell, problem.weights, stateful=s, **regularized) for s in (True, False))
    layer(problem.x)
    states = layer.states
    for dy in (random_gradients(plain(problem.x)), None):
        y, tape = layer.forward(problem.x)
        expected_y, expected_tape = plain.forward(problem.x, initial_state=states)
        states = layer.states
        assert_same(y, expected_y)
        assert tape.losses == expected_tape.losses
        layer(problem.x)  # has no say in the tape
        layer.reset_state()
        gradients, expected = layer.backward(dy, tape), plain.backward(dy, expected_tape)
        for field, expected_field in zip(gradients, expected, strict=True):
            assert_same(field, expected_field)
        layer(problem.x, initial_state=states)
        states = layer.states


def test_the_batch_size_may_change_after_a_reset_only():
    layer, x = built(stateful=True)
    layer(x)
    before = layer.states
    for call in (layer, layer.forward):
        for states in (None, [np.zeros((1, H), "float32")] * 2):
            with pytest.raises(
                ValueError,
                match=r"^LSTM: x must have the batch size 3 of the states that are kept from call to call, got 1; "
                r"call reset_state\(\) before another batch$",
            ):
                call(x[:1], initial_state=states)
    assert all(a is b for a, b in zip(layer.states, before, strict=True))
    layer.reset_states()
    assert_same(layer(x[:1]), built()[0](x[:1]))
    assert [s.shape for s in layer.states] == [(1, H)] * 2


def test_a_failed_call_leaves_the_states_as_they_were():
    layer, x = built(stateful=True)
    layer(x)
    before = layer.states
    for wrong in (x[0], x[:, :, 1:], np.float32(1)):
        with pytest.raises(ValueError, match=r"^LSTM: x must "):
            layer(wrong)
    assert_same(layer.states, before)


def test_kept_states_belong_to_the_layer():
    layer, x = built("gru", stateful=True, return_state=True)
    y, h = layer(x)
    for returned in (y, h):
        returned[...] = 9
    with pytest.raises(ValueError, match="read-only"):
        layer.states[0][...] = 9
    layer.states.clear()
    plain, _ = built("gru", return_state=True)
    assert_same(layer(x), plain(x, initial_state=plain(x)[1:]))
    other = built("gru")[0]
    assert other(x, initial_state=layer.states).shape == (B, H)


@all_cells
def test_building_for_a_batch_makes_the_states(cell):
    layer = LAYERS[cell](H, stateful=True, dtype="float64")
    layer.build((None, None, INPUTS))
    assert layer.states is None
    layer.build((B, None, INPUTS))
    assert_same(layer.states, [np.zeros((B, H))] * STATES[cell])


@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))],
    ids=["copy", "deep", "pickle"],
)
def test_copies_begin_with_zeros_as_those_of_keras_do(duplicate):
    layer, x = built(stateful=True)
    first, kept = layer(x), layer.states
    twin = duplicate(layer)
    assert twin.stateful and twin.states is None
    assert_same(twin(x), first)
    assert_same(layer.states, kept)


def test_steps_and_other_layers_keep_nothing():
    layer, x = built(stateful=True)
    layer.step(x[:, 0])
    assert layer.states is None
    plain, _ = built()
    plain(x)
    plain.reset_state()
    assert plain.states is None


# ---- Configuration, copies, repr ----

FULL = dict(
    units=3,
    activation="relu",
    use_bias=False,
    kernel_initializer="orthogonal",
    recurrent_initializer={"class_name": "Orthogonal", "config": {"gain": 0.5}},
    bias_initializer="ones",
    dropout=0.25,
    recurrent_dropout=0.5,
    seed=5,
    return_sequences=True,
    return_state=True,
    go_backwards=True,
    unroll=True,
    zero_output_for_mask=True,
    trainable=False,
    dtype="float64",
    name="a",
)


@classes
def test_config_goes_through_json_and_back(layer_class):
    for layer in (layer_class(np.int64(3)), layer_class(**FULL)):
        config = layer.get_config()
        beyond_keras = {
            "variant",
            "peephole",
            "proj_size",
            "layer_norm",
            "zoneout",
            "embedding",
            "of_weights",
        }  # which Keras' layers would refuse
        assert list(config) == [p for p in inspect.signature(layer_class).parameters if p not in beyond_keras]
        again = layer_class.from_config(json.loads(json.dumps(config)))
        assert again.get_config() == config
        assert repr(again) == repr(layer)
    for name, value in FULL.items():
        assert config[name] == value


@classes
def test_a_layer_from_config_with_a_seed_has_the_same_weights(layer_class):
    layer = layer_class(3, seed=4)
    again = layer_class.from_config(layer.get_config())
    for each in (layer, again):
        each.build((None, None, INPUTS))
    assert_same(again.weights, layer.weights)


def test_arguments_are_attributes():
    layer = LSTM(**FULL)
    for name, value in FULL.items():
        if name != "recurrent_initializer":
            assert (
                initializers.serialize(getattr(layer, name)) == value
                if "init" in name
                else getattr(layer, name) == (activations.get(value) if name == "activation" else value)
            )
    assert layer.recurrent_activation == activations.get("sigmoid")
    assert layer.unit_forget_bias


@pytest.mark.parametrize(
    "name, value",
    [
        ("units", 4),
        ("use_bias", False),
        ("seed", 1),
        ("dtype", "float64"),
        ("stateful", True),
        ("dropout", 0.5),
    ],
)
def test_what_a_layer_is_cannot_be_changed_afterwards(name, value):
    layer, _ = built()
    with pytest.raises(
        AttributeError,
        match=rf"^LSTM: {name} cannot be changed after the layer is made, got {value!r}; "
        rf"make a new layer with LSTM\({name}=\.\.\.\)$",
    ):
        setattr(layer, name, value)


def test_what_may_be_changed_is_checked():
    layer, _ = built()
    with pytest.raises(TypeError, match=r"^LSTM: return_state must be True or False, got 'yes'; "):
        layer.return_state = "yes"
    assert layer.return_state is False


def test_a_function_of_ones_own_is_not_written_into_a_config():
    layer = LSTM(3, kernel_initializer=lambda shape, dtype=None: np.zeros(shape, dtype))
    with pytest.raises(
        TypeError, match=r"^an initializer of one's own cannot be written into a config, got <function"
    ):
        layer.get_config()


@pytest.mark.parametrize(
    "layer, text",
    [
        (LSTM(64, return_sequences=True), "LSTM(64, return_sequences=True)"),
        (GRU(3), "GRU(3)"),
        (
            GRU(3, reset_after=False, dtype="float64", name="a"),
            "GRU(3, reset_after=False, dtype='float64', name='a')",
        ),
        (SimpleRNN(2, kernel_initializer="Zeros"), "SimpleRNN(2, kernel_initializer='zeros')"),
        (SimpleRNN(2, bias_initializer="Zeros", dtype="float32", name="simple_rnn"), "SimpleRNN(2)"),
        (SimpleRNN(2, kernel_initializer=np.ones), "SimpleRNN(2, kernel_initializer=ones)"),
    ],
    ids=str,
)
def test_repr_shows_what_differs_from_the_defaults(layer, text):
    assert repr(layer) == text


@all_cells
def test_repr_shows_the_weights_of_a_built_layer(cell):
    layer, _ = built(cell)
    kernel, recurrent_kernel, bias = (list(shape) for shape in weight_shapes(cell, INPUTS, H))
    assert repr(layer).endswith(f") with kernel {kernel}, recurrent_kernel {recurrent_kernel}, bias {bias}")


@all_cells
@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, *(partial(lambda p, o: pickle.loads(pickle.dumps(o, p)), p) for p in (2, 5))],
    ids=["copy", "deepcopy", "pickle2", "pickle5"],
)
def test_copies_give_the_same_results_and_live_on_their_own(cell, duplicate):
    layer, x = built(cell, return_sequences=True)
    y = layer(x)
    twin = duplicate(layer)
    assert repr(twin) == repr(layer)
    assert twin.get_config() == layer.get_config()
    assert_same(twin.weights, layer.weights)
    assert not any(w.flags.writeable for w in [*twin.weights, *layer.weights])
    twin.set_weights([w * 2 for w in twin.weights])
    assert_same(layer(x), y)
    assert not np.array_equal(twin(x), y)
    y, tape = twin.forward(x)
    twin.backward(y, tape)


def test_an_unbuilt_layer_can_be_copied():
    twin = pickle.loads(pickle.dumps(copy.deepcopy(LSTM(H, seed=1))))
    assert not twin.built
    twin.build((None, None, INPUTS))
    expected = LSTM(H, seed=1)
    expected.build((None, None, INPUTS))
    assert_same(twin.weights, expected.weights)


def test_a_dropped_layer_is_freed():
    layer, x = built()
    y, tape = layer.forward(x)
    layer.backward(y, tape)
    reference = weakref.ref(layer)
    del layer, tape
    gc.collect()
    assert reference() is None


def test_a_subclass_of_ones_own_works():
    class Mine(GRU):
        def __init__(self, units, scale=1.0, **options):
            super().__init__(units, **options)
            self.scale = scale

    layer = Mine(3, scale=2.0, return_sequences=True)
    assert layer(np.ones((1, 2, 4), "float32")).shape == (1, 2, 3)
    assert layer.name == "mine"
    assert repr(layer).startswith("Mine(3")
    with pytest.raises(TypeError, match=r"^Mine: x must be a floating array"):
        layer(np.ones((1, 2, 4), int))


# ---- What the constructor refuses ----


@classes
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "mixed_float16", "mixed_bfloat16"])
def test_half_precision_is_not_supported_yet(layer_class, dtype):
    with pytest.raises(
        NotImplementedError,
        match=rf"^{layer_class.__name__}: dtype='{dtype}' is not supported yet; leave it at 'float32'$",
    ):
        layer_class(3, dtype=dtype)


@pytest.mark.parametrize(
    "argument, value, error, message",
    [
        ("units", 0, ValueError, r"units must be a positive integer, got 0; pass 1 or more"),
        ("units", -3, ValueError, r"units must be a positive integer, got -3; pass 1 or more"),
        ("units", 2.0, TypeError, r"units must be a positive integer, got 2\.0; pass an int"),
        ("units", "64", TypeError, r"units must be a positive integer, got '64'; pass an int"),
        ("units", True, TypeError, r"units must be a positive integer, got True; pass an int"),
        ("units", None, TypeError, r"units must be a positive integer, got None; pass an int"),
        (
            "activation",
            "tahn",
            ValueError,
            r"activation: there is no activation 'tahn'; the known ones are ",
        ),
        ("activation", 3, TypeError, r"activation: an activation must be a name, .*, got 3; "),
        ("activation", np.tanh, TypeError, r"activation: .*; a function alone has no derivative"),
        (
            "recurrent_activation",
            "x",
            ValueError,
            r"recurrent_activation: there is no activation 'x'; ",
        ),
        (
            "use_bias",
            "no",
            TypeError,
            r"use_bias must be True or False, got 'no'; write bool\(\.\.\.\) around it",
        ),
        ("unit_forget_bias", None, TypeError, r"unit_forget_bias must be True or False, got None; "),
        ("return_sequences", 1, TypeError, r"return_sequences must be True or False, got 1; "),
        ("stateful", 1, TypeError, r"stateful must be True or False, got 1; "),
        ("trainable", 3, TypeError, r"trainable must be True or False, got 3; "),
        (
            "kernel_initializer",
            "x",
            ValueError,
            r"kernel_initializer: there is no initializer \"x\"; the known ones are ",
        ),
        ("bias_initializer", 3, TypeError, r"bias_initializer: an initializer must be a name, .*, got 3; "),
        (
            "recurrent_initializer",
            None,
            TypeError,
            r"recurrent_initializer: an initializer must be .*, got None; ",
        ),
        (
            "dropout",
            1.5,
            ValueError,
            r"dropout must be a number from 0 to less than 1, got 1\.5; it is the fraction ",
        ),
        (
            "dropout",
            float("nan"),
            ValueError,
            r"dropout must be a number from 0 to less than 1, got nan; it is the fraction that is left out",
        ),
        (
            "recurrent_dropout",
            -0.5,
            ValueError,
            r"recurrent_dropout must be a number from 0 to less than 1, got -0\.5; ",
        ),
        (
            "recurrent_dropout",
            "a",
            TypeError,
            r"recurrent_dropout must be a number from 0 to less than 1, got 'a'; pass a float",
        ),
        (
            "dropout",
            False,
            TypeError,
            r"dropout must be a number from 0 to less than 1, got False; pass a float",
        ),
        ("dropout", 1, ValueError, r"dropout must be a number from 0 to less than 1, got 1; "),
        ("variant", 3, TypeError, r"variant must be None or a str, got 3; use for example \"cifg\""),
        ("variant", "gif", ValueError, r"variant must be one of None, 'vanilla', .*, got 'gif'"),
        ("peephole", 1, TypeError, r"peephole must be True or False, got 1; "),
        ("zero_output_for_mask", 1, TypeError, r"zero_output_for_mask must be True or False, got 1; "),
        ("seed", 1.5, TypeError, r"seed must be None or a non-negative integer, got 1\.5; pass an int"),
        ("seed", -1, ValueError, r"seed must be None or a non-negative integer, got -1; pass 0 or more"),
        (
            "use_cudnn",
            True,
            ValueError,
            r"use_cudnn must be \"auto\" or False, got True; there is no GPU here",
        ),
        ("use_cudnn", 0, ValueError, r"use_cudnn must be \"auto\" or False, got 0; there is no GPU here"),
        (
            "dtype",
            "int32",
            ValueError,
            r"dtype must be \"float32\" or \"float64\", got 'int32'; use one of these",
        ),
        ("dtype", object(), ValueError, r"dtype must be \"float32\" or \"float64\", got <object"),
        ("name", "a/b", ValueError, r"name must be a str without \"/\", got 'a/b'; choose another name"),
        ("name", 3, TypeError, r"name must be a str without \"/\", got 3; choose another name"),
    ],
)
def test_wrong_arguments_are_refused(argument, value, error, message):
    with pytest.raises(error, match=f"^LSTM: {message}"):
        LSTM(**{"units": 3, argument: value})


@classes
def test_an_unknown_argument_is_refused(layer_class):
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'return_sequence'"):
        layer_class(3, return_sequence=True)


@pytest.mark.parametrize(
    "dtype",
    [
        "float64",
        np.float64,
        np.dtype("float64"),
        np.dtype(">f8"),
        {
            "module": "keras",
            "class_name": "DTypePolicy",
            "config": {"name": "float64"},
            "registered_name": None,
        },
    ],
    ids=str,
)
def test_a_dtype_may_be_given_in_many_ways(dtype):
    assert LSTM(3, dtype=dtype).dtype == "float64"


def test_the_name_is_that_of_the_class_unless_given():
    assert [c(3).name for c in CLASSES] == ["simple_rnn", "lstm", "gru"]
    assert LSTM(3, name="encoder").name == "encoder"


def test_a_width_beyond_the_address_space_is_refused():
    x = np.ones((2, 3, 4), "float32")
    with pytest.raises(MemoryError, match=r"^LSTM: kernel must fit the address space, got the shape \(4, "):
        LSTM(2**62)(x)
    with pytest.raises(MemoryError, match=r"^LSTM: no memory for what recurrent_initializer draws"):
        LSTM(10**7)(x)


def test_training_must_be_a_flag():
    with pytest.raises(
        TypeError, match=r"^LSTM: training must be True, False or None, got 'yes'; write bool"
    ):
        LSTM(3)(np.ones((2, 3, 4), "float32"), training="yes")


def test_no_gradient_means_zeros():
    layer = LSTM(3)
    for layer.return_state in (False, True):
        _, tape = layer.forward(np.ones((2, 3, 4), "float32"))
        assert not layer.backward(None, tape).x.any()


def test_values_beyond_float32_become_infinite_without_a_warning():
    y = SimpleRNN(3, kernel_initializer="ones")(np.full((1, 1, 1), 1e300))
    np.testing.assert_array_equal(y, np.ones((1, 3), "float32"))


# ---- Checkpoints


@pytest.mark.parametrize("every", [1, 3, True])
@pytest.mark.parametrize("layer_class", [SimpleRNN, LSTM, GRU])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"return_state": True, "go_backwards": True},
        {"stateful": True},
        {"return_sequences": True, "activity_regularizer": "l2", "kernel_regularizer": "l1"},
        {"dropout": 0.5, "recurrent_dropout": 0.5, "seed": 1},
    ],
    ids=str,
)
def test_checkpoints_change_neither_outputs_nor_gradients_nor_kept_states(layer_class, options, every):
    x = np.random.default_rng(0).standard_normal((3, 10, 4))
    results = []
    for checkpoint in (False, every):
        layer = layer_class(5, dtype="float64", **({"seed": 1} | options))
        for _ in range(2):  # a stateful layer begins the second time with the states of the first
            outputs, tape = layer.forward(x, checkpoint=checkpoint)
            gradients = layer.backward(random_gradients(outputs), tape)
        results.append([outputs, layer.states, tape.losses, gradients])
    np.testing.assert_equal(results[1][:3], results[0][:3])
    assert_close(results[1][3], results[0][3], 1e-13)


def test_a_tape_with_checkpoints_tells_the_gates():
    lstm = LSTM(5)
    x = np.random.default_rng(0).standard_normal((3, 10, 4)).astype("float32")
    np.testing.assert_equal(lstm.forward(x, checkpoint=3)[1].gates(), lstm.forward(x)[1].gates())


@pytest.mark.parametrize("checkpoint", [0, -1, 1.5, None])
def test_checkpoint_must_be_true_or_a_number_of_steps(checkpoint):
    with pytest.raises((TypeError, ValueError), match=r"^LSTM: the steps between checkpoints must be"):
        LSTM(5).forward(np.ones((2, 3, 4), "float32"), checkpoint=checkpoint)
