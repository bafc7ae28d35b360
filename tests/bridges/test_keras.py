"""fastrnn.keras beside keras.layers: the same weights and data, outputs, states and gradients.

Runs on the backend in KERAS_BACKEND, PyTorch by default; test_keras_backends.py runs it on the others.
"""

import contextlib
import copy
import os
import warnings
from functools import partial

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from support import CELLS, assert_close, import_keras, keras_in_float64, random_problem

import fastrnn

keras = import_keras()
BACKEND = keras.backend.backend()
if BACKEND not in ("torch", "jax", "tensorflow"):
    pytest.skip(f"fastrnn.keras knows nothing of the backend {BACKEND}", allow_module_level=True)

import fastrnn.keras as fast  # noqa: E402

NAMES = {"simple_rnn": "SimpleRNN", "lstm": "LSTM", "gru": "GRU", "gru_reset_before": "GRU"}
LAYERS = ("SimpleRNN", "LSTM", "GRU")
TOLERANCE = {"float32": 3e-5, "float64": 1e-11}
EXAMPLES = {"torch": 40, "jax": 5, "tensorflow": 6}[BACKEND]
PHASES = (
    list(Phase) if BACKEND == "torch" else [Phase.explicit, Phase.reuse, Phase.generate]
)  # the others compile

# ---- Layers in pairs, and their outputs and gradients as arrays


def layer_of(module, cell, problem, batch=None, **options):
    """A layer of keras.layers or fastrnn.keras with the weights of a problem."""
    layer_class = getattr(module, NAMES[cell])
    if cell == "gru_reset_before":
        layer_class = partial(layer_class, reset_after=False)
    recurrent_kernel = problem.weights[1]
    layer = layer_class(
        recurrent_kernel.shape[0],
        use_bias=len(problem.weights) == 3,
        dtype=str(recurrent_kernel.dtype),
        **{"kernel_initializer": "zeros", "recurrent_initializer": "zeros"},  # JAX compiles the others anew
        **options,
    )
    layer.build((batch, *problem.x.shape[1:]))
    layer.set_weights(problem.weights)
    return layer


def array(tensor):
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def listed(outputs):
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]


def differentiate(layer, x, states=None, mask=None, training=False):
    """The outputs, and the gradients of x, the weights and the states of the sum of outputs times fixed random numbers."""
    tensors = [keras.ops.convert_to_tensor(a) for a in (x, *(states or []))]
    mask = None if mask is None else keras.ops.convert_to_tensor(mask)

    def run(call, x, *given):
        outputs = listed(call(x, initial_state=list(given) or None, mask=mask, training=training))
        rng = np.random.default_rng(5)
        dy = [keras.ops.convert_to_tensor(rng.standard_normal(y.shape), y.dtype) for y in outputs]
        return outputs, sum(keras.ops.sum(a * b) for a, b in zip(outputs, dy, strict=True))

    if BACKEND == "torch":
        tensors = [t.clone().requires_grad_() for t in tensors]
        outputs, loss = run(layer, *tensors)
        variables = [v.value for v in layer.trainable_variables]
        for v in variables:
            v.grad = None
        loss.backward()
        gradients = [t.grad for t in (*tensors, *variables)]
    elif BACKEND == "jax":
        import jax

        def loss_of(tensors, weights):
            def call(x, **options):
                return layer.stateless_call(
                    weights, [v.value for v in layer.non_trainable_variables], x, **options
                )[0]

            outputs, loss = run(call, *tensors)
            return loss, outputs

        weights = [v.value for v in layer.trainable_variables]
        (_, outputs), found = jax.jit(jax.value_and_grad(loss_of, (0, 1), has_aux=True))(tensors, weights)
        gradients = [*found[0], *found[1]]
    else:
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(tensors)
            outputs, loss = run(layer, *tensors)
        gradients = tape.gradient(loss, [*tensors, *[v.value for v in layer.trainable_variables]])
        gradients = [tf.convert_to_tensor(g) for g in gradients]
    return [array(y) for y in outputs], [array(g) for g in gradients]


@contextlib.contextmanager
def kernels_run(cell, forward=True, backward=None):
    """What is in the block runs the cell's kernels; forward, backward: whether, None: either."""
    before = fastrnn.kernel_calls()[cell]
    yield
    after = fastrnn.kernel_calls()[cell]
    for direction, expected in {"forward": forward, "backward": backward}.items():
        if expected is not None:
            assert (after[direction] > before[direction]) == expected, (direction, before, after)


def mask_of(kind, batch, time, seed):
    rng = np.random.default_rng(seed)
    if kind == "lengths":
        return np.arange(time) < rng.integers(0, time + 1, batch)[:, None]
    if kind == "holes":
        return rng.random((batch, time)) < 0.6
    return None


# ---- One layer beside another


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_outputs_and_gradients_are_those_of_keras(dtype):
    @settings(max_examples=EXAMPLES, phases=PHASES)
    @given(
        cell=st.sampled_from(list(CELLS)),
        sizes=st.tuples(*[st.integers(1, 5)] * 3, st.integers(1, 20)),
        seed=st.integers(0, 1000),
        bias=st.booleans(),
        mask=st.sampled_from([None, "lengths", "holes"]),
        with_states=st.booleans(),
        activation=st.sampled_from(["tanh", "relu", "linear", "softsign", None]),
        recurrent_activation=st.sampled_from(["sigmoid", "hard_sigmoid"]),
        return_sequences=st.booleans(),
        return_state=st.booleans(),
        go_backwards=st.booleans(),
        zero_output_for_mask=st.booleans(),
        unroll=st.booleans(),
        training=st.booleans(),
    )
    def check(cell, sizes, seed, bias, mask, with_states, recurrent_activation, unroll, training, **options):
        if BACKEND == "jax" and cell.startswith("gru"):
            bias = True  # without, Keras' own GRU refuses float32 where JAX_ENABLE_X64 is set
        problem = random_problem(cell, *sizes, dtype, seed, bias)
        mask = mask_of(mask, *sizes[:2], seed)
        if BACKEND == "jax" and mask is not None:
            with_states = False  # Keras on JAX begins with the initial state where others begin with zeros
        if cell != "simple_rnn":
            options["recurrent_activation"] = recurrent_activation
        states = problem.initial_state if with_states else None
        expected = differentiate(
            layer_of(keras.layers, cell, problem, **options), problem.x, states, mask, training
        )
        layer = layer_of(fast, cell, problem, unroll=unroll, **options)
        with kernels_run(cell, True, True):
            actual = differentiate(layer, problem.x, states, mask, training)
        rounded = recurrent_activation == "hard_sigmoid"  # PyTorch's has a slope of 1/6 in float32
        tolerance = max(TOLERANCE[dtype], 1e-7 if rounded else 0)
        assert_close(actual[0], expected[0], tolerance, "outputs")
        assert_close(actual[1], expected[1], tolerance, "gradients")

    with keras_in_float64() if dtype == "float64" else contextlib.nullcontext():
        check()


# JAX compiles each case four times, for seconds: the one of each cell that has most in it.
RATES = [(0.4, 0.3)] if BACKEND == "jax" else [(0.5, 0.0), (0.0, 0.5), (0.4, 0.3)]


@pytest.mark.parametrize("rates", RATES)
@pytest.mark.parametrize("training", [True] if BACKEND == "jax" else [False, True])
def test_dropout_with_the_same_seed_is_that_of_keras(cell, rates, training):
    problem = random_problem(cell, 6, 4, 5, 8, "float32")
    options = {"dropout": rates[0], "recurrent_dropout": rates[1], "seed": 7, "return_sequences": True}
    one, other = (layer_of(module, cell, problem, **options) for module in (keras.layers, fast))
    for _ in range(2):  # the second call draws other numbers
        expected = differentiate(one, problem.x, training=training)
        with kernels_run(cell, True, True):
            actual = differentiate(other, problem.x, training=training)
        assert_close(actual, expected, 3e-5)


def test_one_mask_for_each_gate_is_dropout_with_implementation_1():
    problem = random_problem("lstm", 6, 4, 5, 8, "float32")
    options = {"dropout": 0.5, "implementation": 1, "seed": 7, "use_cudnn": False}
    one, other = (layer_of(module, "lstm", problem, **options) for module in (keras.layers, fast))
    with kernels_run("lstm", True, True):
        actual = differentiate(other, problem.x, training=True)
    assert_close(actual, differentiate(one, problem.x, training=True), 3e-5)


def test_states_are_kept_from_call_to_call_and_reset(cell):
    problem = random_problem(cell, 3, 4, 5, 8, "float32")
    one, other = (layer_of(module, cell, problem, 3, stateful=True) for module in (keras.layers, fast))
    for reset in (False, False, True):
        if reset:
            one.reset_state()
            other.reset_state()
        expected = array(one(problem.x))
        with kernels_run(cell):
            assert_close(array(other(problem.x)), expected, 3e-5)
        assert_close([array(s) for s in other.states], [array(s) for s in one.states], 3e-5)
    with pytest.raises(ValueError, match="batch size"):
        other(problem.x[:2])


@pytest.mark.parametrize("name", LAYERS)
def test_configs_and_signatures_are_those_of_keras(name):
    options = {"units": 4, "activation": "relu", "kernel_regularizer": "l2", "dropout": 0.25, "name": "a"}
    one, other = (getattr(module, name)(**options) for module in (keras.layers, fast))
    assert other.get_config() == one.get_config()
    again = type(other).from_config(other.get_config())
    assert type(again) is getattr(fast, name) and again.get_config() == other.get_config()


def test_regularizers_and_constraints_apply(cell):
    problem = random_problem(cell, 6, 4, 5, 8, "float32")
    options = {"kernel_regularizer": "l2", "recurrent_regularizer": "l1", "bias_constraint": "unit_norm"}
    if cell != "simple_rnn":  # Keras' SimpleRNN drops its activity_regularizer
        options["activity_regularizer"] = "l2"
    one, other = (layer_of(module, cell, problem, **options) for module in (keras.layers, fast))
    one(problem.x)
    other(problem.x)
    assert len(other.losses) == len(one.losses) > 1
    assert_close([array(a) for a in other.losses], [array(a) for a in one.losses], 3e-5)
    assert other.cell.bias.constraint is not None


def test_integers_are_converted_as_by_keras():
    problem = random_problem("gru", 3, 4, 5, 8, "float32")
    x = keras.ops.convert_to_tensor(np.arange(60).reshape(3, 4, 5) % 7)
    one, other = (layer_of(module, "gru", problem) for module in (keras.layers, fast))
    with kernels_run("gru"):
        assert_close(array(other(x)), array(one(x)), 3e-5)


# ---- Within Keras' models


def in_models():
    layers = keras.layers

    def functional(module):
        x = keras.Input((5, 3))
        encoded, *states = module.LSTM(4, return_state=True)(x)
        y = module.LSTM(4, return_sequences=True)(layers.RepeatVector(2)(encoded), initial_state=states)
        return keras.Model(x, y)

    def nested(module):
        inner = keras.Sequential([keras.Input((5, 3)), module.GRU(4, return_sequences=True)])
        return keras.Sequential([keras.Input((5, 3)), inner, module.SimpleRNN(2)])

    def sequential(input_shape, *stack):
        return lambda module: keras.Sequential([keras.Input(input_shape), *(make(module) for make in stack)])

    return {
        "bidirectional": sequential(
            (5, 3),
            lambda m: layers.Bidirectional(m.LSTM(4, return_sequences=True)),
            lambda m: layers.Bidirectional(m.GRU(3), merge_mode="sum"),
        ),
        "bidirectional of two": sequential(
            (5, 3),
            lambda m: layers.Bidirectional(m.LSTM(4), backward_layer=m.LSTM(4, go_backwards=True)),
        ),
        "masked bidirectional": sequential(
            (5, 3),
            lambda m: layers.Masking(),
            lambda m: layers.Bidirectional(m.LSTM(4, return_sequences=True)),
            lambda m: m.GRU(2),
        ),
        "time distributed": sequential((2, 5, 3), lambda m: layers.TimeDistributed(m.LSTM(4))),
        "time distributed, any time": sequential((None, 5, 3), lambda m: layers.TimeDistributed(m.GRU(4))),
        "any time": sequential((None, 3), lambda m: m.LSTM(4, return_sequences=True), lambda m: m.GRU(4)),
        "functional": functional,
        "nested": nested,
    }


def example_for(model, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((4, *(n or 5 for n in model.input_shape[1:]))).astype("float32")
    x[0, 3:] = 0  # what Masking masks
    x[1, 1] = 0
    return x


@contextlib.contextmanager
def ignoring_warnings_of_frameworks():
    with warnings.catch_warnings():
        # TensorFlow's vectorized_map says that it loops over a function that it can't vectorize.
        warnings.filterwarnings("ignore", message="Using a while_loop", category=UserWarning)
        yield


# JAX and TensorFlow compile each of these models six times: those that have most in them.
COMPILED = ("masked bidirectional", "time distributed, any time", "functional", "nested")


@pytest.mark.parametrize("name", in_models() if BACKEND == "torch" else COMPILED)
def test_models_predict_and_train_as_with_keras_layers(name):
    one, other = (in_models()[name](module) for module in (keras.layers, fast))
    other.set_weights(one.get_weights())
    x = example_for(one)
    before = fastrnn.kernel_calls()
    results = []
    with ignoring_warnings_of_frameworks():
        for model in (one, other):
            model.compile(keras.optimizers.SGD(0.1), "mse")
            y = model.predict(x, verbose=0)
            history = model.fit(x, np.ones_like(y), epochs=2, verbose=0)
            evaluated = model.evaluate(x, np.ones_like(y), verbose=0)
            results.append([y, history.history["loss"], [evaluated], *model.get_weights()])
    assert_close(results[1], results[0], 1e-4)
    after = fastrnn.kernel_calls()
    assert sum(after[c]["backward"] - before[c]["backward"] for c in after) >= 2


def test_fit_with_the_same_seed_gives_the_same_losses():
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 50, (16, 7))
    ids[3:9, 4:] = 0
    labels = rng.integers(0, 2, (16, 1)).astype("float32")

    def losses(module):
        keras.utils.set_random_seed(3)
        model = keras.Sequential(
            [
                keras.layers.Embedding(50, 6, mask_zero=True),
                module.LSTM(8, return_sequences=True, dropout=0.2, recurrent_dropout=0.2),
                module.SimpleRNN(8, return_sequences=True),
                module.GRU(8),
                keras.layers.Dense(1, activation="sigmoid"),
            ]
        )
        model.compile("adam", "binary_crossentropy")
        return model.fit(ids, labels, epochs=20, batch_size=16, verbose=0, shuffle=False).history["loss"]

    with (
        kernels_run("lstm", True, True),
        kernels_run("simple_rnn", True, True),
        kernels_run("gru", True, True),
    ):
        actual = losses(fast)
    expected = losses(keras.layers)
    assert len(expected) == 20 and expected[-1] < expected[0]
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)


def test_a_saved_model_is_loaded_with_the_same_layers_and_results(tmp_path):
    model = in_models()["masked bidirectional"](fast)
    x = example_for(model)
    expected = model.predict(x, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    bidirectional, gru = loaded.layers[-2:]
    assert type(bidirectional.forward_layer) is type(bidirectional.backward_layer) is fast.LSTM
    assert type(gru) is fast.GRU
    with kernels_run("lstm"):
        np.testing.assert_array_equal(loaded.predict(x, verbose=0), expected)
    of_keras = in_models()["masked bidirectional"](keras.layers)
    model.save_weights(tmp_path / "model.weights.h5")
    of_keras.load_weights(tmp_path / "model.weights.h5")
    assert_close(of_keras.predict(x, verbose=0), expected, 3e-5)


def test_models_and_layers_are_cloned():
    model = in_models()["functional"](fast)
    clone = keras.models.clone_model(model)
    assert [type(a) for a in clone.layers] == [type(a) for a in model.layers]
    clone.set_weights(model.get_weights())
    x = example_for(model)
    np.testing.assert_array_equal(clone.predict(x, verbose=0), model.predict(x, verbose=0))


def test_symbolic_calls_run_no_kernels():
    class Doubled(keras.layers.Layer):  # has no compute_output_shape: Keras calls it to learn the shape
        def __init__(self):
            super().__init__()
            self.inner = fast.LSTM(4, return_sequences=True)

        def build(self, shape):
            self.inner.build(shape)

        def call(self, x):
            return 2 * self.inner(x)

    with kernels_run("lstm", forward=False):
        assert fast.LSTM(4)(keras.Input((5, 3))).shape == (None, 4)
        assert Doubled()(keras.Input((5, 3))).shape == (None, 5, 4)
        assert Doubled()(keras.Input((None, 3))).shape[-1] == 4


def test_large_arrays_pass(cell):
    problem = random_problem(cell, 64, 100, 64, 128, "float32")
    layer = layer_of(fast, cell, problem, return_sequences=True)
    model = keras.Sequential([keras.Input(problem.x.shape[1:]), layer])
    model.compile("sgd", "mse")
    with kernels_run(cell, True, True):
        y = model.predict(problem.x, verbose=0, batch_size=64)
        model.fit(problem.x, y, verbose=0, batch_size=64)
    again = layer_of(fast, cell, problem, return_sequences=True)
    assert_close(y[:3], array(again(problem.x[:3])), 1e-6)


# ---- What Keras computes


@contextlib.contextmanager
def falls_back(reason):
    before = fastrnn.kernel_calls()
    with pytest.warns(fast.FallbackWarning, match=reason) as caught:
        yield
    assert sum(issubclass(w.category, fast.FallbackWarning) for w in caught) == 1
    assert fastrnn.kernel_calls() == before


def absolute_tanh(a):
    return keras.ops.abs(keras.ops.tanh(a))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"activation": absolute_tanh}, "'odd': .* activation <function absolute_tanh"),
        ({"recurrent_activation": keras.layers.LeakyReLU()}, "recurrent_activation <LeakyReLU"),
        ({"activation": "softmax"}, "activation <function softmax"),
        ({"dtype": "mixed_bfloat16"}, "bfloat16"),
        ({"dropout": 1.0, "recurrent_dropout": 0.5}, "rate of dropout is 1"),
    ],
)
def test_what_the_kernels_cannot_compute_keras_does_and_says_so_once(options, reason):
    x = np.random.default_rng(0).standard_normal((2, 4, 3)).astype("float32")
    one, other = (module.LSTM(5, name="odd", **options) for module in (keras.layers, fast))
    one.build(x.shape)
    other.build(x.shape)
    other.set_weights(one.get_weights())
    with falls_back(reason):
        results = [array(keras.ops.cast(other(x), "float32")) for _ in range(2)]
    for result in results:
        np.testing.assert_array_equal(result, array(keras.ops.cast(one(x), "float32")))


@pytest.mark.parametrize("go_backwards", [False, True])
def test_last_outputs_that_masks_zero_are_those_of_keras_and_have_no_gradient(cell, go_backwards):
    problem = random_problem(cell, 3, 4, 3, 5, "float32")
    mask = np.array([[True] * 4, [True, False, True, False], [False, True, True, True]])
    options = dict(zero_output_for_mask=True, return_state=True, go_backwards=go_backwards)
    layers = [layer_of(module, cell, problem, **options) for module in (keras.layers, fast)]
    expected, (outputs, gradients) = (differentiate(layer, problem.x, None, mask) for layer in layers)
    assert_close(outputs, expected[0], TOLERANCE["float32"], "outputs")
    assert_close(gradients, expected[1], TOLERANCE["float32"], "gradients")
    np.testing.assert_array_equal(outputs[0].any(axis=1), mask[:, 0 if go_backwards else -1])
    assert outputs[1].any(axis=1).all()


def test_cudnn_is_left_to_keras():
    layer = fast.LSTM(4, use_cudnn=True)
    refused = contextlib.nullcontext() if BACKEND == "torch" else pytest.raises(ValueError, match="cuDNN")
    with falls_back("graphics"), refused:  # Keras on PyTorch takes it as "auto"
        layer(np.zeros((2, 3, 4), "float32"))


# ---- accelerate


def plain_model():
    layers = keras.layers
    inner = keras.Sequential(
        [keras.Input((7, 8)), layers.GRU(4, return_sequences=True, name="gru")], name="inner"
    )
    return keras.Sequential(
        [
            keras.Input((7,), dtype="int32"),
            layers.Embedding(50, 6),
            layers.Bidirectional(layers.LSTM(4, return_sequences=True, name="lstm"), name="both"),
            inner,
            layers.LSTM(3, activation=absolute_tanh, return_sequences=True, name="odd"),
            layers.SimpleRNN(3, name="last"),
            layers.Dense(1),
        ]
    )


def test_accelerate_swaps_the_layers_of_a_model_in_place():
    keras.utils.set_random_seed(0)
    model = plain_model()
    ids = np.random.default_rng(0).integers(0, 50, (4, 7))
    y = np.ones((4, 1), "float32")
    model.compile("adam", "mse")
    model.fit(ids, y, verbose=0)
    keras.utils.set_random_seed(0)
    twin = plain_model()
    twin.compile("adam", "mse")
    twin.fit(ids, y, verbose=0)
    variables = [id(v) for v in model.variables]

    accelerated, replaced, _ = fast.accelerate(model)
    assert accelerated is model
    assert sorted(replaced) == ["both/backward_lstm", "both/forward_lstm", "inner/gru", "last"]
    assert [id(v) for v in model.variables] == variables
    assert type(model.get_layer("last")) is fast.SimpleRNN
    assert type(model.get_layer("odd")) is keras.layers.LSTM
    for cell in ("lstm", "gru", "simple_rnn"):
        with kernels_run(cell, True, False):
            predicted = model.predict(ids, verbose=0)
    assert_close(predicted, twin.predict(ids, verbose=0), 1e-4)
    with kernels_run("lstm", True, True):
        losses = model.fit(ids, y, epochs=3, verbose=0).history["loss"]
    assert_close(losses, twin.fit(ids, y, epochs=3, verbose=0).history["loss"], 1e-4)
    assert fast.accelerate(model).replaced == []


def test_an_accelerated_model_is_saved_and_loaded(tmp_path):
    model = keras.Sequential([keras.Input((4, 3)), keras.layers.Bidirectional(keras.layers.GRU(5))])
    fast.accelerate(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded.layers[0].forward_layer) is fast.GRU
    x = example_for(model)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))


def test_accelerate_takes_a_layer_and_leaves_subclasses_alone():
    class MyLSTM(keras.layers.LSTM):
        pass

    left = fast.accelerate(MyLSTM(3, name="mine"))
    assert left.replaced == [] and str(left) == "Keras runs mine: its class is MyLSTM"
    layer = keras.layers.LSTM(3, name="alone")
    assert fast.accelerate(layer) == (layer, ["alone"], {})
    with kernels_run("lstm"):
        layer(np.zeros((2, 4, 3), "float32"))
    with pytest.raises(TypeError, match="model must be"):
        fast.accelerate([layer])


# ---- What the backends have of their own

on_torch = pytest.mark.skipif(BACKEND != "torch", reason="of Keras on PyTorch")
on_tensorflow = pytest.mark.skipif(BACKEND != "tensorflow", reason="of Keras on TensorFlow")
on_jax = pytest.mark.skipif(BACKEND != "jax", reason="of Keras on JAX")


@on_torch
def test_a_graph_that_is_kept_is_differentiated_twice():
    import torch

    layer = fast.LSTM(4)
    x = torch.randn(2, 5, 3, requires_grad=True)
    y = layer(x).sum()
    y.backward(retain_graph=True)
    once = x.grad.clone()
    y.backward()
    torch.testing.assert_close(x.grad, 2 * once, rtol=0, atol=0)


@on_torch
def test_weights_changed_before_backward_are_an_error():
    import torch

    layer = fast.LSTM(4)
    y = layer(torch.randn(2, 5, 3)).sum()
    with torch.no_grad():
        layer.cell.kernel.value.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


@on_torch
def test_second_derivatives_are_refused():
    import torch

    x = torch.randn(2, 5, 3, requires_grad=True)
    (dx,) = torch.autograd.grad(fast.GRU(4)(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once more"):
        dx.sum().backward()


@on_torch
@pytest.mark.parametrize("masked", [False, True])
def test_transforms_of_functions_work_on_torch(masked):
    import torch

    layer, x = fast.LSTM(4, return_state=True), torch.randn(2, 5, 3)
    mask = torch.arange(5) < torch.tensor([3, 5])[:, None] if masked else None
    layer.build(x.shape)

    def loss(x):
        return sum(y.pow(2).sum() for y in layer(x, mask=mask))

    (expected,) = torch.autograd.grad(loss(x.requires_grad_()), x)
    before = fastrnn.kernel_calls()["lstm"]
    actual = torch.func.grad(loss)(x)
    after = fastrnn.kernel_calls()["lstm"]
    assert {k: n - before[k] for k, n in after.items()} == {"forward": 1, "backward": 1}
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="differentiated once more"):
        torch.func.grad(lambda x: torch.func.grad(loss)(x).sum())(x)


@on_torch
def test_other_devices_and_layouts_are_named():
    import torch

    from fastrnn.keras import _torch

    assert "device meta" in _torch.reason_against(torch.empty(2, device="meta"))
    assert "torch.sparse_coo" in _torch.reason_against(torch.eye(2).to_sparse())


@on_torch
def test_inputs_of_any_strides_are_read():
    import torch

    layer = fast.GRU(4)
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(
        layer(x.transpose(0, 1)), layer(x.transpose(0, 1).contiguous()), rtol=0, atol=0
    )
    torch.testing.assert_close(
        layer(torch.randn(1, 1, 3).expand(2, 5, 3)).shape, torch.Size((2, 4)), rtol=0, atol=0
    )


@on_tensorflow
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("inner", [False, True])
def test_gradients_in_graphs_are_those_of_eager_calls(training, inner):
    import tensorflow as tf

    layer = fast.LSTM(4, return_state=True)
    x = tf.random.normal((2, 5, 3))

    def run(x):
        y, _, c = layer(x, training=training)
        return tf.reduce_sum(y) + tf.reduce_sum(c * c)

    def gradients(run):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = run(x)
        return tape.gradient(loss, [x, *[v.value for v in layer.trainable_variables]])

    expected = gradients(run)
    actual = gradients(tf.function(run)) if inner else tf.function(partial(gradients, run))()
    assert_close([array(a) for a in actual], [array(a) for a in expected], 1e-6)


@on_tensorflow
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("graph", [False, True])
def test_second_derivatives_on_tensorflow_are_refused(training, graph):
    import tensorflow as tf

    layer, x = fast.GRU(4), tf.random.normal((2, 5, 3))

    def penalty():
        with tf.GradientTape() as outer:
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = tf.reduce_sum(layer(x, training=training) ** 2)
            loss = y + tf.reduce_sum(tape.gradient(y, x) ** 2)
        return outer.gradient(loss, layer.trainable_variables[0].value)

    with pytest.raises(RuntimeError, match="cannot be differentiated once more"):
        (tf.function(penalty) if graph else penalty)()


@on_tensorflow
def test_models_are_compiled_without_xla():
    model = keras.Sequential([keras.Input((4, 3)), fast.LSTM(4)])
    model.compile("sgd", "mse")
    assert not model.jit_compile
    plain = keras.Sequential([keras.Input((4, 3)), keras.layers.LSTM(4)])
    plain.compile("sgd", "mse", jit_compile=True)
    assert plain.jit_compile
    fast.accelerate(plain)
    assert not plain.jit_compile
    with kernels_run("lstm", True, True):
        plain.fit(np.zeros((2, 4, 3)), np.zeros((2, 4)), verbose=0)


@on_tensorflow
@pytest.mark.parametrize("mask", [None, "holes"])
def test_graphs_for_any_batch_and_time_run(cell, mask):
    import tensorflow as tf

    problem = random_problem(cell, 6, 7, 4, 5, "float32")
    layer = layer_of(fast, cell, problem, return_sequences=True, return_state=True)

    def run(x, mask=None):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y, *states = layer(x, mask=mask)
            loss = tf.reduce_sum(y * y) + tf.reduce_sum(states[-1])
        return y, tape.gradient(loss, [x, *[v.value for v in layer.trainable_variables]])

    specs = [tf.TensorSpec((None, None, 4)), tf.TensorSpec((None, None), tf.bool)]
    graph = tf.function(run, input_signature=specs if mask else specs[:1])
    assert graph.get_concrete_function().output_shapes[0].as_list() == [None, None, 5]
    for batch, time in [(6, 7), (1, 2), (3, 1), (0, 4)]:
        x = tf.constant(problem.x[:batch, :time])
        given = [x, tf.constant(mask_of(mask, batch, time, 0))] if mask else [x]
        with kernels_run(cell, True, True):
            actual = graph(*given)
        assert_close(
            *([array(a) for a in tf.nest.flatten(found)] for found in (actual, run(*given))), rtol=1e-6
        )


@on_tensorflow
@pytest.mark.parametrize("training", [False, True])
def test_forward_runs_once_where_a_gradient_is_expected(training):
    import tensorflow as tf

    layer, x = fast.LSTM(4), tf.random.normal((2, 5, 3))
    layer.build(x.shape)

    def forwards(run):
        run()
        before = fastrnn.kernel_calls()["lstm"]
        run()
        after = fastrnn.kernel_calls()["lstm"]
        assert after["backward"] == before["backward"] + 1
        return after["forward"] - before["forward"]

    def gradient(run=layer):
        with tf.GradientTape() as tape:
            y = tf.reduce_sum(run(x, training=training))
        return tape.gradient(y, layer.cell.kernel.value)

    assert forwards(gradient) == forwards(tf.function(gradient)) == 1
    traced = tf.function(lambda x, training: layer(x, training=training))
    traced(x, training=training)  # now it is traced, without a tf.GradientTape
    assert forwards(lambda: gradient(traced)) == (1 if training else 2)


@on_tensorflow
def test_gradients_that_nobody_asks_for_are_not_computed():
    import tensorflow as tf

    layer, x = fast.LSTM(4), tf.random.normal((2, 5, 3))

    @tf.function
    def gradient():
        with tf.GradientTape() as tape:
            y = tf.reduce_sum(layer(x))
        return tape.gradient(y, layer.cell.kernel.value)

    operations = gradient.get_concrete_function().graph.get_operations()
    (backward,) = (operation for operation in operations if operation.type == "FastrnnBackward")
    assert backward.get_attr("result_names") == b"dkernel drecurrent_kernel dbias"


@on_tensorflow
def test_loops_and_jacobians_are_those_of_keras():
    import tensorflow as tf

    x = tf.random.normal((3, 2, 5, 3))

    def mapped(layer):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.reduce_sum(tf.map_fn(layer, x) ** 2)
        return tape.gradient(y, [x, layer.cell.kernel.value])

    def jacobian(layer):
        with tf.GradientTape() as tape:
            y = layer(x[0])
        return [tape.jacobian(y, layer.cell.bias.value)]

    one, other = keras.layers.LSTM(4), fast.LSTM(4)
    for layer in (one, other):
        layer.build((None, 5, 3))
    other.set_weights(one.get_weights())
    with ignoring_warnings_of_frameworks():
        for f in (mapped, jacobian):
            expected = [array(tf.convert_to_tensor(g)) for g in f(one)]
            for run in (f, tf.function(f, autograph=False)):
                with kernels_run("lstm", True, True):
                    actual = run(other)
                assert_close([array(tf.convert_to_tensor(g)) for g in actual], expected, 1e-5)


@on_tensorflow
@pytest.mark.parametrize("graph", [False, True])
def test_states_that_do_not_fit_are_an_error_that_names_the_layer(graph):
    import tensorflow as tf

    layer = fast.GRU(4, name="odd")
    run = tf.function(layer) if graph else layer
    message = r"GRU 'odd': initial_h must be float32 \[2, 4\] .*, got float32 \[3, 4\]"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        run(tf.zeros((2, 5, 3)), initial_state=tf.zeros((3, 4)))
    assert layer(tf.zeros((2, 5, 3))).shape == (2, 4)


@on_tensorflow
def test_forward_mode_on_tensorflow_is_refused():
    import tensorflow as tf

    x = tf.zeros((2, 5, 3))
    with (
        pytest.raises(RuntimeError, match="cannot be differentiated once more"),
        tf.autodiff.ForwardAccumulator(x, x),
    ):
        fast.GRU(4)(x)


@on_tensorflow
def test_threads_do_not_change_the_bits_on_tensorflow():
    import tensorflow as tf

    layer, x = fast.LSTM(64), tf.random.normal((64, 20, 16))

    @tf.function
    def gradients():
        with tf.GradientTape() as tape:
            y = tf.reduce_sum(layer(x) ** 2)
        return tape.gradient(y, [v.value for v in layer.trainable_variables])

    layer.build(x.shape)
    results = []
    for threads in (1, 2, 6, 6):  # of more than four, large calls run on a thread of fastrnn's
        fastrnn.set_num_threads(threads)
        results.append([array(g) for g in gradients()])
    for result in results[1:]:
        for a, b in zip(result, results[0], strict=True):
            np.testing.assert_array_equal(a, b)


@on_tensorflow
def test_an_exported_model_runs_where_fastrnn_keras_is_imported(tmp_path, run_python):
    model = keras.Sequential(
        [
            keras.Input((None, 3)),
            fast.LSTM(4, return_sequences=True, activation="elu"),
            keras.layers.Bidirectional(fast.GRU(3, dropout=0.2, recurrent_dropout=0.2)),
        ]
    )
    x = np.random.default_rng(0).standard_normal((5, 4, 3)).astype("float32")
    np.save(tmp_path / "x.npy", x)
    model.export(tmp_path / "model", verbose=False)
    printed = run_python(
        f"""
        import numpy as np
        import tensorflow as tf

        folder = {str(tmp_path)!r}
        try:
            tf.saved_model.load(folder + "/model")
        except Exception as error:
            print("FastrnnForward" in str(error))
        import fastrnn.keras
        model = tf.saved_model.load(folder + "/model")
        np.save(folder + "/y.npy", model.serve(np.load(folder + "/x.npy")))
        print(fastrnn.kernel_calls()["gru"]["forward"])
        """
    )
    assert printed.split() == ["True", "2"]
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), model.predict(x, verbose=0))


@on_tensorflow
@pytest.mark.parametrize("training", [False, True])
def test_a_loaded_saved_model_is_differentiated(tmp_path, training):
    import tensorflow as tf

    class Module(tf.Module):
        def __init__(self):
            self.layer = fast.LSTM(4)
            self.layer.build((None, None, 3))
            self.variables_of_keras = [v.value for v in self.layer.variables]

        @tf.function(input_signature=[tf.TensorSpec((None, None, 3))])
        def run(self, x):
            return self.layer(x, training=training)

    def gradient(run, x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.reduce_sum(run(x) ** 2)
        return tape.gradient(y, x)

    module, x = Module(), tf.random.normal((2, 5, 3))
    tf.saved_model.save(module, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    with kernels_run("lstm", True, True):
        actual = gradient(loaded.run, x)
    assert_close(array(actual), array(gradient(module.layer, x)), 1e-6)


@on_jax
def test_layers_are_mapped_and_jitted():
    import jax

    problem = random_problem("lstm", 2, 4, 3, 5, "float32")
    layer = layer_of(fast, "lstm", problem)
    x = np.stack([problem.x, -problem.x, 2 * problem.x])
    expected = np.stack([array(layer(one)) for one in x])
    with kernels_run("lstm"):
        assert_close(array(jax.jit(jax.vmap(layer))(x)), expected, 1e-6)


@pytest.mark.parametrize("name", ["SimpleRNN", "LSTM", "GRU"])
def test_stateful_layers_are_trained(name):
    layer = getattr(fast, name)(4, stateful=True)
    model = keras.Sequential([keras.Input(batch_shape=(4, 6, 3)), layer, keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x = np.random.default_rng(0).standard_normal((12, 6, 3)).astype("float32")
    cell = name.lower().replace("simplernn", "simple_rnn")
    with kernels_run(cell, True, True):
        losses = model.fit(x, np.ones((12, 1)), batch_size=4, epochs=4, shuffle=False, verbose=0).history[
            "loss"
        ]
    assert losses[-1] < losses[0]


# ---- Packaging


def test_without_keras_the_error_names_the_extra(run_python):
    message = run_python(
        """
        import sys
        sys.modules["keras"] = None
        try:
            import fastrnn.keras
        except ImportError as error:
            print(error)
        """
    )
    assert "pip install fastrnn[keras]" in message


def test_other_backends_are_left_to_keras(run_python):
    printed = run_python(
        """
        import warnings
        import numpy as np
        import fastrnn.keras
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            print(fastrnn.keras.LSTM(4)(np.zeros((2, 3, 4))).shape)
        print([str(w.message) for w in caught if w.category is fastrnn.keras.FallbackWarning])
        """,
        KERAS_BACKEND="numpy",
    )
    assert "(2, 4)" in printed and "not numpy" in printed


def test_layers_are_copied():
    layer = fast.GRU(3, name="a")
    x = np.ones((2, 4, 3), "float32")
    expected = array(layer(x))
    again = copy.deepcopy(layer)
    assert type(again) is fast.GRU
    np.testing.assert_array_equal(array(again(x)), expected)


def test_the_backend_is_the_one_that_was_asked_for():
    assert os.environ["KERAS_BACKEND"] == BACKEND
