"""Bidirectional: outputs, states, gradients and configs are those of Keras, for any number of threads."""

import copy
import inspect
import json
import pickle

import numpy as np
import pytest
from support import as_list, assert_close, import_keras, inner_product, keras_in_float64, random_gradients
from test_cells import MASK, Minimal, flat, structure
from test_layers import INPUTS, B, T, assert_same, initial_or_zeros, sequences_or_last, state_or_not, to_numpy
from test_process import FORK_WARNINGS, PRELUDE, run_script

import fastrnn
from fastrnn import (
    GRU,
    LSTM,
    RNN,
    Bidirectional,
    GRUCell,
    LSTMCell,
    SimpleRNN,
    functional,
    inspection,
    wrappers,
)

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

MERGE_MODES = ["concat", "sum", "mul", "ave", None]
merge_modes = pytest.mark.parametrize("merge_mode", MERGE_MODES)
DOUBLE = {"dtype": "float64"}
H = 3


def seeded(layer_class, units=H, seed=0, **options):
    """A layer whose bias is not zero."""
    return layer_class(units, seed=seed, bias_initializer="random_normal", dtype="float64", **options)


LAYERS = {
    "simple_rnn": lambda **o: seeded(SimpleRNN, **o),
    "lstm": lambda **o: seeded(LSTM, **o),
    "gru": lambda **o: seeded(GRU, **o),
    "gru_reset_before": lambda **o: seeded(GRU, reset_after=False, **o),
    "rnn": lambda **o: RNN(seeded(LSTMCell), **o),
    "stack": lambda **o: RNN([seeded(LSTMCell, 2), seeded(GRUCell)], **o),
}
layers = pytest.mark.parametrize("layer", LAYERS)


def x_of(seed=0, batch=B, time=T):
    return np.random.default_rng(seed).standard_normal((batch, time, INPUTS))


def random_states(wrapper, seed=5):
    """Initial states of both layers, in the form in which they are returned."""
    rng = np.random.default_rng(seed)
    found = []
    for layer in (wrapper.forward_layer, wrapper.backward_layer):
        layer = copy.copy(layer)
        vars(layer)["return_state"] = True
        shapes = layer.compute_output_shape((B, T, INPUTS))[1:]
        found += [
            rng.standard_normal(s) if isinstance(s[0], int) else [rng.standard_normal(i) for i in s]
            for s in shapes
        ]
    return found


def map_nested(function, nested):
    if isinstance(nested, (list, tuple)):
        return [map_nested(function, item) for item in nested]
    return function(nested)


def assert_is_that_of_keras(ours, x, initial_state=None, mask=None, rtol=1e-11):
    """Outputs, and gradients of x, weights and initial states, of one call with dropout off."""
    ours.build(x.shape)
    with keras_in_float64() as keras:
        if keras.backend.backend() != "torch":
            pytest.skip("takes the gradient with PyTorch")
        theirs = keras.layers.Bidirectional.from_config(ours.get_config())
        theirs.build(x.shape)
        theirs.set_weights(ours.get_weights())
        tensor = keras.ops.convert_to_tensor(x).requires_grad_()
        states = initial_state and map_nested(
            lambda s: keras.ops.convert_to_tensor(s).requires_grad_(), initial_state
        )
        expected = theirs(
            tensor, initial_state=states, mask=None if mask is None else keras.ops.convert_to_tensor(mask)
        )
        outputs, tape = ours.forward(x, initial_state=initial_state, mask=mask, training=False)
        assert isinstance(outputs, tuple) == isinstance(expected, (list, tuple))
        assert structure(as_list(outputs)) == structure(as_list(expected))
        assert_close(flat(outputs), to_numpy(keras, flat(expected)), rtol)
        assert_same(flat(ours(x, initial_state=initial_state, mask=mask)), flat(outputs))
        leaves = random_gradients(flat(outputs))
        sum(
            (o * keras.ops.convert_to_tensor(d)).sum() for o, d in zip(flat(expected), leaves, strict=True)
        ).backward()
    rest = iter(leaves)
    dy = map_nested(lambda _: next(rest), outputs)
    gradients = ours.backward(dy, tape)
    assert_close(gradients.x, tensor.grad.numpy(), rtol)
    assert_close(gradients.weights, [v.value.grad.numpy() for v in theirs.weights], rtol)
    if initial_state:
        zero_or_grad = [np.zeros(s.shape) if s.grad is None else s.grad.numpy() for s in flat(states)]
        assert_close(flat(gradients.initial_state), zero_or_grad, rtol)
    assert flat_shapes(ours.compute_output_shape(x.shape)) == [o.shape for o in flat(outputs)]


def flat_shapes(shapes):
    if all(isinstance(n, int) for n in shapes):
        return [tuple(shapes)]
    return [shape for item in shapes for shape in flat_shapes(item)]


# ---- Compared with Keras ----


def test_constructor_and_call_have_the_arguments_order_and_defaults_of_keras():
    keras_class = import_keras().layers.Bidirectional
    for theirs, ours in ((keras_class, Bidirectional), (keras_class.call, Bidirectional.__call__)):
        theirs = [p for p in inspect.signature(theirs).parameters.values() if p.kind is not p.VAR_KEYWORD]
        ours = list(inspect.signature(ours).parameters.values())
        skip = 1 if theirs[0].name != "self" else 2  # layer; self and the input
        names = [p.name for p in theirs[skip:]]
        assert [p.name for p in ours[skip:]][: len(names)] == names
    assert inspect.signature(Bidirectional).parameters["merge_mode"].default == "concat"


@merge_modes
@sequences_or_last
@state_or_not
@initial_or_zeros
def test_outputs_states_and_gradients_are_those_of_keras(merge_mode, return_sequences, return_state, initial):
    layer = LAYERS["lstm"](return_sequences=return_sequences, return_state=return_state)
    ours = Bidirectional(layer, merge_mode=merge_mode)
    assert_is_that_of_keras(ours, x_of(), random_states(ours) if initial else None)


@layers
@merge_modes
@sequences_or_last
def test_every_layer_may_be_wrapped(layer, merge_mode, return_sequences):
    ours = Bidirectional(LAYERS[layer](return_sequences=return_sequences, return_state=True), merge_mode)
    assert_is_that_of_keras(ours, x_of(), random_states(ours))


@merge_modes
@sequences_or_last
@pytest.mark.parametrize("layer", ["lstm", "gru"])
def test_masked_steps_are_those_of_keras(layer, merge_mode, return_sequences):
    """Keras zeroes the outputs of masked steps: unlike two layers of their own."""
    made = LAYERS[layer](return_sequences=return_sequences, return_state=True)
    assert not made.zero_output_for_mask
    ours = Bidirectional(made, merge_mode)
    assert_is_that_of_keras(ours, x_of(), random_states(ours), mask=MASK)
    if return_sequences:
        for y in ours(x_of(), mask=MASK)[: 1 if merge_mode else 2]:
            assert not y[~MASK].any() and y[MASK].all()


def test_lengths_are_short_for_a_mask():
    ours = Bidirectional(LAYERS["stack"](return_sequences=True))
    lengths = np.array([3, 0, T])
    mask = np.arange(T) < lengths[:, None]
    assert_same(ours(x_of(), lengths=lengths), ours(x_of(), mask=mask))
    y, tape = ours.forward(x_of(), lengths=lengths)
    expected, expected_tape = ours.forward(x_of(), mask=mask)
    assert_same(ours.backward(y, tape).x, ours.backward(expected, expected_tape).x)
    with pytest.raises(
        ValueError, match=r"^Bidirectional: lengths and mask must not both be given; leave one"
    ):
        ours(x_of(), mask=mask, lengths=lengths)


@sequences_or_last
@pytest.mark.parametrize("merge_mode", ["concat", "sum", None])
def test_go_backwards_of_the_layer_changes_both(return_sequences, merge_mode):
    options = dict(return_sequences=return_sequences, return_state=True)
    ours = Bidirectional(
        LAYERS["lstm"](go_backwards=True, **options),
        merge_mode,
        backward_layer=LAYERS["lstm"](seed=1, name="b", **options),
    )
    assert ours.backward_layer.name == "b" and not ours.backward_layer.go_backwards
    assert_is_that_of_keras(ours, x_of())


@pytest.mark.parametrize("merge_mode", ["concat", None])
@sequences_or_last
def test_directions_may_have_different_layers(merge_mode, return_sequences):
    options = dict(return_sequences=return_sequences, return_state=True)
    ours = Bidirectional(
        LAYERS["lstm"](**options),
        merge_mode,
        backward_layer=seeded(GRU, 5, go_backwards=True, activation="relu", **options),
    )
    x, (h, c, other) = x_of(), random_states(ours)
    y_f, *states_f = ours_forward = run_alone(ours.forward_layer, x, [h, c])
    y_b, *states_b = run_alone(ours.backward_layer, x, [other])
    assert len(ours_forward) == 3
    flipped = y_b[:, ::-1] if return_sequences else y_b
    expected = [y_f, flipped] if merge_mode is None else [np.concatenate([y_f, flipped], -1)]
    assert_same(list(ours(x, [h, c, other])), [*expected, *states_f, *states_b])
    assert ours.compute_output_shape(x.shape) == tuple(o.shape for o in ours(x))
    outputs, tape = ours.forward(x, [h, c, other])
    gradients = ours.backward(random_gradients(outputs), tape)
    assert [g.shape for g in gradients.weights] == [w.shape for w in ours.weights]
    assert [g.shape for g in gradients.initial_state] == [(B, H), (B, H), (B, 5)]


def run_alone(layer, x, states):
    layer.build(x.shape)
    return layer(x, initial_state=states)


def test_penalties_of_regularizers_are_those_of_keras():
    options = dict(
        return_sequences=True,
        kernel_regularizer="l2",
        bias_regularizer="l1",
        activity_regularizer="l2",
        kernel_constraint="non_neg",
    )
    ours = Bidirectional(LAYERS["gru_reset_before"](**options), "sum")
    x = x_of()
    y, tape = ours.forward(x)
    with keras_in_float64() as keras:
        theirs = keras.layers.Bidirectional.from_config(ours.get_config())
        theirs.build(x.shape)
        theirs.set_weights(ours.get_weights())
        theirs(keras.ops.convert_to_tensor(x))
        assert sum(tape.losses) == pytest.approx(
            float(keras.ops.convert_to_numpy(sum(theirs.losses))), rel=1e-6
        )
    assert len(ours.losses) == 4 and sum(ours.losses) < sum(tape.losses)
    layers = ours.forward_layer, ours.backward_layer
    tapes = [layer.forward(x) for layer in layers]
    assert tape.losses == [loss for _, t in tapes for loss in t.losses]
    dy = random_gradients(y)
    for actual, expected in zip(
        ours.backward(dy, tape).weights,
        [
            g
            for layer, (_, t), d in zip(layers, tapes, (dy, dy[:, ::-1]), strict=True)
            for g in layer.backward(d, t).weights
        ],
        strict=True,
    ):
        assert_same(actual, expected)
    ours.apply_constraints()
    assert min(layer.kernel.min() for layer in layers) == 0
    ours.trainable = False
    assert ours.losses == ours.trainable_weights == ours.forward(x)[1].losses[2:] == []
    ours.trainable = True
    ours.backward_layer.trainable = False
    assert_same(ours.trainable_weights, ours.forward_layer.weights)


@layers
@pytest.mark.parametrize("merge_mode", ["mul", None])
def test_configs_go_to_keras_and_back(layer, merge_mode):
    keras = import_keras()
    ours = Bidirectional(LAYERS[layer](return_sequences=True), merge_mode, name="a", trainable=False)
    theirs = keras.layers.Bidirectional.from_config(json.loads(json.dumps(ours.get_config())))
    assert theirs.merge_mode == merge_mode and theirs.name == "a" and not theirs.trainable
    for name in ("forward_layer", "backward_layer"):
        assert getattr(theirs, name).name == getattr(ours, name).name
        assert getattr(theirs, name).go_backwards == getattr(ours, name).go_backwards
    theirs.build((None, T, INPUTS))
    for config in (theirs.get_config(), json.loads(json.dumps(theirs.get_config())), ours.get_config()):
        again = Bidirectional.from_config(config)
        assert again.get_config()["layer"]["config"].keys() == ours.get_config()["layer"]["config"].keys()
        assert again.merge_mode == merge_mode and again.name == "a" and not again.trainable
        assert again.backward_layer.go_backwards and again.dtype == "float64"
    assert Bidirectional.from_config(ours.get_config()).get_config() == ours.get_config()
    keras_made = keras.layers.Bidirectional(keras.layers.GRU(3))
    assert Bidirectional.from_config(keras_made.get_config()).name == keras_made.name


def test_names_are_those_of_keras():
    keras = import_keras()
    for name in ("lstm", "forward_x", "backward_x"):
        theirs = keras.layers.Bidirectional(keras.layers.LSTM(3, name=name))
        ours = Bidirectional(LSTM(3, name=name))
        assert ours.forward_layer.name == theirs.forward_layer.name
        assert ours.backward_layer.name == theirs.backward_layer.name
    assert ours.name == "bidirectional"


# ---- The same as two layers by hand ----


@layers
@sequences_or_last
def test_result_is_that_of_two_layers_run_by_hand(layer, return_sequences):
    ours = Bidirectional(LAYERS[layer](return_sequences=return_sequences))
    x = x_of()
    y, tape = ours.forward(x)
    pair = [each.forward(x) for each in (ours.forward_layer, ours.backward_layer)]
    flip = (slice(None), slice(None, None, -1)) if return_sequences else ()
    assert_same(y, np.concatenate([pair[0][0], pair[1][0][flip]], -1))
    dy = random_gradients(y)
    gradients = ours.backward(dy, tape)
    first = ours.forward_layer.backward(dy[..., :H], pair[0][1])
    second = ours.backward_layer.backward(dy[..., H:][flip], pair[1][1])
    assert_same(gradients.x, first.x + second.x)
    assert_same(gradients.weights, [*first.weights, *second.weights])
    assert_same(flat(gradients.initial_state), flat([first.initial_state, second.initial_state]))


@merge_modes
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_result_does_not_depend_on_threads(merge_mode, dtype, monkeypatch):
    ran = []
    monkeypatch.setattr(wrappers, "at_once", lambda *both: ran.append(1) or fastrnn.runtime.at_once(*both))
    monkeypatch.setattr(wrappers, "WORTH_BOTH_AT_ONCE", 1e5)
    ours = Bidirectional(
        LSTM(40, return_sequences=True, return_state=True, dtype=dtype, dropout=0.5), merge_mode
    )
    x = np.random.default_rng(0).standard_normal((16, 20, 30)).astype(dtype)
    ours.build(x.shape)

    def results(threads):
        fastrnn.set_num_threads(threads)
        vars(ours.forward_layer)["_calls"] = vars(ours.backward_layer)["_calls"] = 0  # the same masks
        outputs, tape = ours.forward(x)
        gradients = ours.backward(random_gradients(outputs), tape)
        return [*outputs, *ours(x), gradients.x, *gradients.weights, *gradients.initial_state]

    expected = results(1)
    for threads in (2, 3, 5):
        assert_same(results(threads), expected)
    assert len(ran) == 12
    monkeypatch.setattr(wrappers, "WORTH_BOTH_AT_ONCE", 1e9)
    assert_same(results(2), expected)
    assert len(ran) == 12


def test_each_direction_uses_half_of_the_threads():
    fastrnn.set_num_threads(5)

    def threads():
        return fastrnn.runtime.limit.threads

    assert fastrnn.runtime.at_once(threads, threads) == (3, 2)
    assert threads() == 0
    fastrnn.set_num_threads(1)
    assert fastrnn.runtime.at_once(threads, threads) == (0, 0)


def test_exceptions_of_both_directions_come_out():
    def fails():
        raise LookupError("this one")

    fastrnn.set_num_threads(2)
    for pair in ((fails, int), (int, fails)):
        with pytest.raises(LookupError, match="this one"):
            fastrnn.runtime.at_once(*pair)
        assert fastrnn.runtime.limit.threads == 0
    assert fastrnn.runtime.at_once(int, str) == (0, "")


def test_where_the_system_gives_no_thread_the_directions_run_one_after_the_other(monkeypatch):
    def no_thread(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", no_thread)
    fastrnn.set_num_threads(2)
    assert fastrnn.runtime.at_once(int, str) == (0, "")


@pytest.mark.parametrize("layer", [LSTM(4, stateful=True), RNN(Minimal(4))], ids=["stateful", "own_cell"])
def test_what_keeps_states_or_runs_in_python_runs_one_after_the_other(layer, monkeypatch):
    monkeypatch.setattr(wrappers, "WORTH_BOTH_AT_ONCE", 0)
    monkeypatch.setattr(wrappers, "at_once", None)
    dtype = layer.dtype
    assert Bidirectional(layer)(x_of().astype(dtype)).shape == (B, 8)


# ---- Layers of one's own, weights, states ----


def test_an_indrnn_may_be_wrapped():
    wrapper = Bidirectional(fastrnn.IndRNN(H, seed=1, **DOUBLE))
    x = x_of()
    y, tape = wrapper.forward(x)
    assert_same(y[:, :H], wrapper.forward_layer(x))
    assert_same(y[:, H:], wrapper.backward_layer(x))
    assert [w.shape for w in wrapper.backward(y, tape).weights] == [(INPUTS, H), (H,), (H,)] * 2
    again = Bidirectional.from_config(json.loads(json.dumps(wrapper.get_config())))
    assert repr(again) == repr(Bidirectional.from_config(wrapper.get_config()))


def test_a_cell_of_ones_own_may_be_wrapped():
    ours = Bidirectional(RNN(Minimal(H), return_sequences=True, dtype="float64"), "sum")
    x = x_of()
    assert_close(ours(x, mask=MASK), ours.forward(x, mask=MASK)[0], 0)
    assert not ours(x, mask=MASK)[~MASK].any()
    assert ours.forward_layer.cell is not ours.backward_layer.cell
    config = json.loads(json.dumps(ours.get_config()))
    again = Bidirectional.from_config(config, custom_objects={"Minimal": Minimal})
    again.build(x.shape)
    again.set_weights(ours.weights)
    assert_same(again(x), ours(x))


@merge_modes
@sequences_or_last
def test_gradients_are_those_of_finite_differences(merge_mode, return_sequences):
    ours = Bidirectional(LAYERS["simple_rnn"](return_sequences=return_sequences), merge_mode)
    x = x_of()
    outputs, tape = ours.forward(x)
    dy = random_gradients(outputs)
    direction = np.random.default_rng(3).standard_normal(x.shape)
    slope = np.vdot(ours.backward(dy, tape).x, direction)
    above, below = (inner_product(ours(x + e * direction), dy) for e in (1e-6, -1e-6))
    assert slope == pytest.approx((above - below) / 2e-6, rel=1e-7)


def test_forward_layer_is_new_and_backward_layer_is_used_itself():
    layer, other = seeded(LSTM), seeded(LSTM, seed=1, go_backwards=True)
    for each in (layer, other):
        each.build((None, None, INPUTS))
    ours = Bidirectional(layer, backward_layer=other)
    assert ours.forward_layer is not layer and not ours.forward_layer.built
    assert ours.backward_layer is other
    ours(x_of())
    assert_same(ours.weights[3:], other.weights)


@pytest.mark.parametrize("layer", ["lstm", "stack"])
def test_directions_have_different_weights_that_a_seed_determines(layer):
    first, second = (Bidirectional(LAYERS[layer]()) for _ in range(2))
    for each in (first, second):
        each.build((None, None, INPUTS))
    assert_same(first.weights, second.weights)
    half = len(first.weights) // 2
    assert not np.array_equal(first.weights[0], first.weights[half])
    alone = LAYERS[layer]()
    alone.build((None, None, INPUTS))
    assert_same(alone.weights, first.weights[:half])


def test_objects_without_a_config_go_into_both_layers():
    ours = Bidirectional(LSTM(H, kernel_initializer=lambda shape, dtype: np.full(shape, 0.5, dtype)))
    ours.build((None, None, INPUTS))
    assert {w for w in np.ravel([ours.weights[0], ours.weights[3]])} == {0.5}
    with pytest.raises(TypeError, match="an initializer of one's own cannot be written into a config"):
        ours.get_config()


def test_a_subclass_with_arguments_of_its_own_is_made_anew_by_its_config():
    class Wide(LSTM):
        def __init__(self, half, **options):
            super().__init__(2 * half, **options)

        def get_config(self):
            config = super().get_config()
            return {"half": config.pop("units") // 2} | {
                "name": config["name"],
                "go_backwards": self.go_backwards,
            }

    ours = Bidirectional(Wide(2))
    assert type(ours.backward_layer) is Wide and ours(x_of()).shape == (B, 8)
    config = json.loads(json.dumps(ours.get_config()))
    assert config["layer"]["class_name"] == "Wide"
    assert type(Bidirectional.from_config(config, {"Wide": Wide}).forward_layer) is Wide
    with pytest.raises(ValueError, match=r"^a layer's class_name must be one of \[.*\], got 'Wide'; hand"):
        Bidirectional.from_config(config)


def test_weights_are_those_of_the_forward_layer_then_of_the_backward_layer():
    ours = Bidirectional(LSTM(H))
    assert ours.weights == [] and not ours.built
    ours.build((None, None, INPUTS))
    assert ours.built and ours.count_params() == 2 * ours.forward_layer.count_params()
    new = [w + i for i, w in enumerate(ours.get_weights())]
    ours.set_weights(new)
    assert_same(ours.weights, new)
    assert_same(ours.backward_layer.weights, new[3:])
    x = x_of().astype("float32")
    given = Bidirectional(LSTM(H), weights=new)
    new[0][:] = 0  # they were copied
    assert_same(given(x), ours(x))
    given.set_weights(new)
    assert_same(given.weights, new)
    given(x)
    assert_same(given.weights, new)
    with pytest.raises(ValueError, match=r"^Bidirectional: weights must have the shapes \[\(4, 12\), "):
        Bidirectional(LSTM(H), weights=new[:3])(x)


@pytest.mark.parametrize("layer", ["lstm", "stack"])
def test_stateful_calls_go_on_where_the_last_one_ended(layer):
    x = x_of(time=2 * T)
    ours = Bidirectional(LAYERS[layer](stateful=True, return_sequences=True))
    assert ours.stateful and ours.states is None
    ours(x[:, :T])
    states = [map_nested(np.copy, s) for s in ours.states]
    y = ours.forward(x[:, T:])[0]
    free = Bidirectional.from_config(ours.get_config())
    free.build(x.shape)
    free.set_weights(ours.weights)
    assert_same(free(x[:, T:], initial_state=states), y)
    assert_same(flat(ours.states), flat(free.states))
    ours.reset_state()
    assert not any(state.any() for state in flat(ours.states))
    assert copy.copy(ours).states is None


def test_states_are_as_before_after_a_call_that_failed():
    ours = Bidirectional(LSTM(H, stateful=True))
    x = x_of().astype("float32")
    ours(x)
    before = ours.states

    def fails(*_):
        raise LookupError

    vars(ours.backward_layer)["_begin_with"] = fails
    with pytest.raises(LookupError):
        ours(x)
    assert_same(ours.states, before)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
@pytest.mark.parametrize("layer", ["lstm", "stack"])
def test_copies_give_the_same_results(duplicate, layer):
    ours = Bidirectional(LAYERS[layer](return_sequences=True), "mul")
    y = ours(x_of())
    twin = duplicate(ours)
    assert_same(twin(x_of()), y)
    assert repr(twin) == repr(ours)
    if duplicate is not copy.copy or layer == "lstm":  # a shallow copy of an RNN shares its cells
        twin.set_weights([2 * w for w in twin.weights])
        assert not np.array_equal(twin(x_of()), y)
        assert_same(ours(x_of()), y)


def test_repr_says_what_it_is_made_of():
    assert repr(Bidirectional(GRU(3), "ave")) == (
        "Bidirectional(GRU(3, name='forward_gru'), merge_mode='ave', "
        "backward_layer=GRU(3, go_backwards=True, name='backward_gru'))"
    )


@pytest.mark.parametrize("time", [0, 1])
@merge_modes
@sequences_or_last
def test_small_and_empty_inputs_work(time, merge_mode, return_sequences):
    ours = Bidirectional(LAYERS["lstm"](return_sequences=return_sequences, return_state=True), merge_mode)
    x = x_of(time=time)
    outputs, tape = ours.forward(x)
    assert tuple(o.shape for o in outputs) == ours.compute_output_shape(x.shape)
    assert ours.backward(list(outputs), tape).x.shape == x.shape


@merge_modes
def test_no_gradient_means_zeros(merge_mode):
    ours = Bidirectional(LAYERS["lstm"](return_sequences=True, return_state=True), merge_mode)
    outputs, tape = ours.forward(x_of())
    assert not ours.backward(None, tape).x.any()
    gradients = ours.backward([None, *random_gradients(outputs)[1:]], ours.forward(x_of())[1])
    outputs[0][:] = 0
    zeroed = [np.zeros_like(outputs[0]), *random_gradients(outputs)[1:]]
    assert_close(gradients.x, ours.backward(zeroed, ours.forward(x_of())[1]).x, 1e-15)


X = np.ones((B, T, INPUTS), "float32")


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda: Bidirectional(3),
            TypeError,
            r"layer must be a SimpleRNN, IndRNN, LSTM, GRU or RNN of fastrnn, got 3",
        ),
        (
            lambda: Bidirectional(LSTM(3), backward_layer=3),
            TypeError,
            r"backward_layer must be a Simple.* 3; ",
        ),
        (
            lambda: Bidirectional(LSTM(3), backward_layer=LSTM(3, embedding=(5, 2), go_backwards=True)),
            ValueError,
            r"backward_layer must have no embedding, as both read that of layer, got LSTM\(3, .*; give it to layer ",
        ),
        (
            lambda: Bidirectional(LSTM(3, embedding=(5, 2)))(np.full((2, 3), 5)),
            ValueError,
            r"x must have ids from 0 to 4, the rows of the embedding, got 5",
        ),
        (
            lambda: Bidirectional(LSTM(3, embedding=(5, 2)))(X),
            TypeError,
            r"x must be integers, rows of the embedding, got float32; ",
        ),
        (
            lambda: Bidirectional(LSTM(3), "cat"),
            ValueError,
            r"merge_mode must be one of \['concat', .*'cat'; ",
        ),
        (
            lambda: Bidirectional(LSTM(3, go_backwards=True)),
            ValueError,
            r"go_backwards must be another for each",
        ),
        (
            lambda: Bidirectional(LSTM(3), backward_layer=LSTM(3)),
            ValueError,
            r"go_backwards must be another for each layer, got False for both; ",
        ),
        (
            lambda: Bidirectional(LSTM(3), backward_layer=LSTM(3, go_backwards=True, return_sequences=True)),
            ValueError,
            r"return_sequences must be the same for both layers, got False for layer and True for backward_layer; ",
        ),
        (
            lambda: Bidirectional(LSTM(3), "sum", backward_layer=LSTM(4, go_backwards=True)),
            ValueError,
            r"merge_mode='sum' needs layers with the same number of units, got 3 and 4; ",
        ),
        (
            lambda: Bidirectional(LSTM(3), dtype="float64"),
            ValueError,
            r"dtype must be that of the layers, got 'float64' with layers of 'float32'; ",
        ),
        (lambda: Bidirectional(LSTM(3), trainable=1), TypeError, r"trainable must be True or False, got 1; "),
        (
            lambda: setattr(Bidirectional(LSTM(3)), "merge_mode", "sum"),
            AttributeError,
            r"merge_mode cannot be changed after the layer is made, got 'sum'; ",
        ),
        (
            lambda: Bidirectional(LSTM(3))(X.astype(int)),
            TypeError,
            r"x must be a floating array, got int64; ",
        ),
        (
            lambda: Bidirectional(LSTM(3))(X, [X[:, 0]]),
            ValueError,
            r"initial_state must be a list of 4, the states of the forward layer \(2\), .*, got 1; ",
        ),
        (
            lambda: Bidirectional(GRU(3))(X, X[:, 0]),
            ValueError,
            r"initial_state must be a list of 2, .*, got ndarray; ",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, error, message):
    with pytest.raises(error, match=f"^Bidirectional: {message}"):
        call()


@pytest.mark.parametrize("x", [X[0], np.ma.masked_array(X)])
def test_an_x_that_the_layers_refuse_is_refused(x):
    with pytest.raises((TypeError, ValueError), match=r"^(LSTM|Bidirectional): x must "):
        Bidirectional(LSTM(3))(x)


def test_a_tape_serves_once_and_its_own_layer():
    ours = Bidirectional(LSTM(H, return_sequences=True, return_state=True))
    outputs, tape = ours.forward(X)
    for dy, error in ((outputs[0], TypeError), (outputs[:2], ValueError), ([X, *outputs[1:]], ValueError)):
        with pytest.raises(error, match=r"^Bidirectional: dy must "):
            ours.backward(dy, tape)
    for other, error in ((3, TypeError), (Bidirectional(LSTM(H)).forward(X)[1], ValueError)):
        with pytest.raises(
            error, match=r"^Bidirectional: tape must be what this layer's forward returned, got"
        ):
            ours.backward(list(outputs), other)
    ours.backward(list(outputs), tape)
    with pytest.raises(RuntimeError, match="used"):
        ours.backward(list(outputs), tape)


# ---- Ids and an embedding


@pytest.mark.parametrize(
    "given", [{}, {"mask": MASK}, {"lengths": [T, 1, 0]}], ids=["all", "mask", "lengths"]
)
@merge_modes
@pytest.mark.parametrize("checkpoint", [False, 2])
def test_both_directions_read_one_embedding(given, merge_mode, checkpoint):
    rng = np.random.default_rng(0)
    embedding, ids = rng.standard_normal((7, INPUTS)), rng.integers(0, 7, (B, T))
    mask = np.ones((B, T), bool)
    if given:
        mask = given["mask"] if "mask" in given else np.arange(T) < np.array(given["lengths"])[:, None]
    options = dict(return_sequences=True, return_state=True, seed=1, **DOUBLE)
    wrapper = Bidirectional(LSTM(H, embedding=embedding, **options), merge_mode)
    plain = Bidirectional(LSTM(H, **options), merge_mode)
    plain.build((None, None, INPUTS))
    padded, x = np.where(mask, ids, -(10**9)), embedding[ids]
    expected, expected_tape = plain.forward(x, checkpoint=checkpoint, **given)
    assert_same(wrapper(padded, **given), plain(x, **given))
    outputs, tape = wrapper.forward(padded, checkpoint=checkpoint, **given)
    assert_same(outputs, expected)
    assert_same(wrapper.weights[:3] + wrapper.weights[4:], plain.weights)
    assert_same(wrapper.weights[3], embedding)
    assert wrapper.compute_output_shape(ids.shape) == plain.compute_output_shape(x.shape)
    padded[:] = 0  # ids are copied
    dy = random_gradients_of(outputs)
    gradients, expected = wrapper.backward(dy, tape), plain.backward(dy, expected_tape)
    assert_close(gradients.x, np.where(mask[:, :, None], expected.x, 0), 1e-14)
    assert_close(gradients.weights[:3] + gradients.weights[4:], expected.weights, 1e-14)
    dense = functional.embedding_gradient(ids, expected.x, 7, mask)
    assert_close(gradients.weights[3], dense, 1e-13)


@pytest.mark.parametrize("is_built", [False, True])
def test_a_wrapped_layer_hands_its_embedding_on(is_built):
    rng = np.random.default_rng(0)
    layer, ids = LSTM(H, embedding=rng.standard_normal((7, INPUTS))), rng.integers(0, 7, (B, T))
    if is_built:
        layer(ids)
    wrapper = Bidirectional(layer)
    y = wrapper(ids)
    layer.build((None, None))
    assert_same(wrapper.weights[3], layer.weights[3])
    assert wrapper.backward_layer.embedding is None
    again = Bidirectional.from_config(json.loads(json.dumps(wrapper.get_config())))
    again.build((None, None))
    again.set_weights(wrapper.weights)
    for twin in (again, copy.deepcopy(wrapper), pickle.loads(pickle.dumps(wrapper))):
        assert_same(twin(ids), y)
    with pytest.raises(ValueError, match=r"^LSTM: x must have shape \[batch, time\]"):
        wrapper.forward(ids[0])
    with pytest.raises(ValueError, match=r"^LSTM: mask must have shape"):
        wrapper(ids, mask=MASK[:2])


# ---- Checkpoints, gates, gradients of hidden states


@layers
@merge_modes
@pytest.mark.parametrize("together", [False, True], ids=["one_by_one", "at_once"])
def test_checkpoints_change_neither_outputs_nor_gradients(layer, merge_mode, together, monkeypatch):
    if together:
        monkeypatch.setattr(wrappers, "WORTH_BOTH_AT_ONCE", 1)
        fastrnn.set_num_threads(2)
    wrapper = Bidirectional(LAYERS[layer](return_sequences=True, return_state=True), merge_mode)
    x, mask = x_of(), MASK
    expected, expected_tape = wrapper.forward(x, mask=mask)
    outputs, tape = wrapper.forward(x, mask=mask, checkpoint=2)
    assert_close(flat(outputs), flat(expected), 1e-14)
    dy = random_gradients_of(outputs)
    expected = wrapper.backward(dy, expected_tape)
    for _ in range(2):  # the tape is not used up
        assert_close(flat(list(wrapper.backward(dy, tape))), flat(list(expected)), 1e-13)


def random_gradients_of(outputs):
    """Gradients of outputs in any nesting."""
    if isinstance(outputs, (list, tuple)):
        return [random_gradients_of(output) for output in outputs]
    return random_gradients(outputs)


@layers
@pytest.mark.parametrize("go_backwards", [False, True])
@pytest.mark.parametrize("checkpoint", [False, 2])
def test_gates_are_those_of_both_layers_in_the_order_of_x(layer, go_backwards, checkpoint):
    other = LAYERS[layer](go_backwards=False) if go_backwards else None
    wrapper = Bidirectional(LAYERS[layer](go_backwards=go_backwards), backward_layer=other)
    x = x_of()
    _, tape = wrapper.forward(x, mask=MASK, checkpoint=checkpoint)
    found = functional.gates(tape)
    expected = {}
    for direction, one in (("forward", wrapper.forward_layer), ("backward", wrapper.backward_layer)):
        for name, gate in functional.gates(one.forward(x, mask=MASK)[1]).items():
            expected[f"{direction}_{name}"] = gate[:, ::-1] if one.go_backwards else gate
    assert list(found) == list(expected)
    assert_close(list(found.values()), list(expected.values()), 1e-14)
    real = MASK[:, :, None]
    for name, gate in found.items():
        if not name.endswith("_c"):
            assert not np.any(np.where(real, 0, gate)) and np.all(np.where(real, gate, 1))


@layers
@pytest.mark.parametrize("merge_mode", ["concat", "mul", None])
@sequences_or_last
@state_or_not
def test_hidden_gradients_are_those_of_both_layers_in_the_order_of_x(
    layer, merge_mode, return_sequences, return_state
):
    options = dict(return_sequences=return_sequences, return_state=return_state)
    wrapper = Bidirectional(LAYERS[layer](**options), merge_mode)
    x = x_of()
    outputs, tape = wrapper.forward(x, checkpoint=True)
    dy = random_gradients_of(outputs)
    found = inspection.hidden_gradients(dy, tape)
    if layer == "stack":
        assert list(found) == ["forward_0", "forward_1", "backward_0", "backward_1"]
        assert [values.shape for values in found.values()] == [(B, T, 2), (B, T, H)] * 2
    else:
        assert list(found) == ["forward", "backward"]
    last = list(found.values())[-1]
    per_layer = wrapper._split_gradients(dy, tape)
    one, one_tape = wrapper.backward_layer, wrapper.backward_layer.forward(x, checkpoint=3)[1]
    expected = inspection.hidden_gradients(per_layer[1], one_tape)
    expected = expected["1"] if layer == "stack" else expected
    assert one.go_backwards
    assert_close(last[:, ::-1], expected, 1e-14)
    norms = inspection.gradient_norms(dy, tape)
    assert norms.keys() == found.keys()
    for name, values in norms.items():
        assert_close(values, np.linalg.norm(found[name], axis=-1), 1e-14)
    wrapper.backward(dy, tape)


# ---- The process: both directions in threads of their own ----

BOTH = (
    PRELUDE
    + """
import fastrnn.wrappers
fastrnn.wrappers.WORTH_BOTH_AT_ONCE = 1
fastrnn.set_num_threads(2)

class Stop(Exception):
    pass

def both(units=64, **options):
    return fastrnn.Bidirectional(make(fastrnn.LSTM, units, **options))

def use_both(layer):
    x = np.random.default_rng(0).standard_normal((32, 12, 64)).astype("float32")
    y, tape = layer.forward(x)
    return digest(y, layer(x), layer.backward(y, tape))
"""
)


def test_ctrl_c_and_exceptions_of_signal_handlers_end_a_long_call_of_both_directions():
    run_script(
        """
        layer = both()
        expected = use_both(layer)
        took = [stop(lambda: layer(repeated(32, 1 << 40, 64)), after=0.2)]
        check(use_both(layer), expected)

        def handler(signal_number, frame):
            raise Stop

        signal.signal(signal.SIGUSR1, handler)
        took.append(stop(lambda: layer(repeated(1, 1 << 40, 64)), Stop, signal.SIGUSR1, after=0.2))
        check(use_both(layer), expected)
        assert max(took) < 10
        # The interpreter ends while the threads of the interrupted calls are in their kernels.
        """,
        prelude=BOTH,
        timeout=30,
    )


def test_ctrl_c_comes_out_while_the_caller_waits_for_the_backward_direction():
    run_script(
        """
        assert stop(lambda: fastrnn.runtime.at_once(int, lambda: time.sleep(60)), after=0.2) < 10
        """,
        prelude=BOTH,
        timeout=30,
    )


def test_forked_child_computes_the_same_bits_after_both_directions_ran_at_once():
    run_script(
        """
        layer = both()
        expected = use_both(layer)

        def child():
            check(use_both(layer), expected)
            fastrnn.set_num_threads(2)
            check(use_both(layer), expected)
            check(use_both(both()), expected)

        check([status_of_child(child) for _ in range(2)], [0, 0])
        # While another thread is in a call of both.
        threading.Thread(target=layer, args=(repeated(32, 1 << 40, 64),), daemon=True).start()
        time.sleep(0.1)
        check(status_of_child(child), 0)
        check(use_both(layer), expected)
        """,
        prelude=BOTH,
        warnings=FORK_WARNINGS,
        timeout=40,
    )


def test_many_threads_may_call_one_layer_and_leave_no_threads_behind():
    run_script(
        """
        layer = both()
        expected = use_both(layer)
        before, results = os_threads(), []

        def calls():
            for _ in range(5):
                results.append(use_both(layer))

        for _ in range(2):
            threads = [threading.Thread(target=calls) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        check(results, [expected] * 80)
        until = time.monotonic() + 10
        while os_threads() > before and time.monotonic() < until:
            time.sleep(0.01)
        assert os_threads() <= before
        """,
        prelude=BOTH,
        timeout=60,
    )
