"""Python callables as activations: what the kernels give where they know the activation, and true gradients."""

import copy
import pickle
from functools import partial

import numpy as np
import pytest
from support import as_list, assert_close, random_gradients
from test_functional_options import CASES, factors, random_mask, random_problem, without

import fastrnn
from fastrnn import functional
from fastrnn.activations import CustomActivation
from fastrnn.custom import CustomWeights

TANH = (np.tanh, lambda a: 1 - np.tanh(a) ** 2)
SINE = (np.sin, np.cos)
LAYERS = {
    "simple_rnn": fastrnn.SimpleRNN,
    "lstm": fastrnn.LSTM,
    "gru": fastrnn.GRU,
    "gru_reset_before": partial(fastrnn.GRU, reset_after=False),
}

cases = pytest.mark.parametrize("name", CASES)
layers = pytest.mark.parametrize("layer_class", LAYERS.values(), ids=LAYERS)


def problem(name, dtype, seed=0):
    """The functions of a case, x and weights, and all options."""
    case, rng = CASES[name], np.random.default_rng(seed)
    x, weights, others, states = random_problem(case, 4, 6, 3, 5, dtype, seed)
    options = {
        "initial_state": states,
        "mask": random_mask("holes", 4, 6, rng),
        "dropout_mask": factors((4, case.gates, 3), rng, dtype),
        "recurrent_dropout_mask": factors((4, case.gates, states[0].shape[1]), rng, dtype),
        "zoneout_mask": [factors((4, 6, s.shape[1]), rng, dtype) * 0.5 for s in states],
        "go_backwards": True,
    }
    return case.functions, x, weights, case.settings | others, options


@cases
@pytest.mark.parametrize("return_sequences", [True, False], ids=["sequences", "last"])
@pytest.mark.parametrize("return_state", [True, False], ids=["state", "no_state"])
def test_callables_give_what_the_kernels_give_for_the_same_activation(
    name, dtype, return_sequences, return_state
):
    (inference, forward, backward), x, weights, settings, options = problem(name, dtype)
    options |= {"return_sequences": return_sequences, "return_state": return_state}
    options["zero_output_for_mask"] = True
    x = without(x, options["mask"])
    expected, expected_tape = forward(x, *weights, activation="tanh", **settings, **options)
    outputs, tape = forward(x, *weights, activation=TANH, **settings, **options)
    rtol = 1e-12 if dtype == "float64" else 5e-6
    assert isinstance(outputs, tuple) == return_state
    assert_close(as_list(outputs), as_list(expected), rtol)
    again = inference(x, *weights, activation=TANH, **settings, **options)
    np.testing.assert_array_equal(as_list(again)[0], as_list(outputs)[0])
    assert {o.dtype for o in as_list(outputs)} == {np.dtype(dtype)}
    dy = random_gradients(outputs)
    gradients, expected = backward(dy, tape), backward(dy, expected_tape)
    assert isinstance(gradients, functional.Gradients)
    assert_close(gradients, expected, 10 * rtol)
    with pytest.raises(RuntimeError, match="the tape was already used"):
        backward(dy, tape)
    _, tape = forward(x, *weights, activation=TANH, **settings, **options)
    assert_close(functional.run_backward(dy, tape, with_initial_state=False), (*gradients[:2], []), 0)


@cases
def test_gradients_equal_finite_differences(name):
    (_, forward, backward), x, weights, settings, options = problem(name, "float64")
    chosen = {"activation": SINE}
    if name.startswith(("lstm", "gru")):
        chosen["recurrent_activation"] = CustomActivation(lambda a: np.sin(a) / 2, lambda a: np.cos(a) / 2)
    others = [settings[name] for name in ("peephole", "projection", "gate_kernel") if name in settings]
    arrays = [x, *weights, *others, *options["initial_state"]]
    (y, *_), tape = forward(x, *weights, **settings, **chosen, **options, return_state=True)
    dy = random_gradients(y)
    gradients = backward([dy, *[None] * len(options["initial_state"])], tape)

    def loss():
        return np.sum(dy * forward(x, *weights, **settings, **chosen, **options)[0])

    rng, step = np.random.default_rng(5), 1e-6
    for array, gradient in zip(
        arrays, [gradients.x, *gradients.weights, *gradients.initial_state], strict=True
    ):
        direction, before = rng.standard_normal(array.shape), array.copy()
        array += step * direction
        above = loss()
        array[...] = before - step * direction
        slope = (above - loss()) / (2 * step)
        array[...] = before
        assert slope == pytest.approx(np.sum(gradient * direction), rel=1e-6, abs=1e-8)


@cases
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_gates_and_embeddings_are_those_of_the_kernels(name, masked):
    (_, forward, backward), _, weights, settings, options = problem(name, "float64")
    rng = np.random.default_rng(2)
    embedding, ids = rng.standard_normal((7, 3)), rng.integers(0, 7, (4, 6))
    if masked:
        ids = np.where(options["mask"], ids, -1)
    else:
        options["mask"] = None
    results = []
    for activation in (TANH, "tanh"):
        y, tape = forward(ids, *weights, activation=activation, embedding=embedding, **settings, **options)
        gates = functional.gates(tape)
        gradients = backward(y, tape)
        results.append(([y, *gradients.weights, gradients.x, *gates.values()], list(gates)))
        with pytest.raises(RuntimeError, match="the tape was already used"):
            functional.gates(tape)
    assert results[0][1] == results[1][1]
    assert_close(results[0][0], results[1][0], 1e-11)


@layers
def test_a_layer_takes_callables(layer_class):
    callables, names = (
        layer_class(5, activation=a, return_sequences=True, dropout=0.3, recurrent_dropout=0.2, seed=3)
        for a in (TANH, "tanh")
    )
    x = np.random.default_rng(0).standard_normal((3, 4, 2)).astype("float32")
    assert_close(callables(x, lengths=[4, 0, 2]), names(x, lengths=[4, 0, 2]), 1e-5)
    y, tape = callables.forward(x)
    expected, expected_tape = names.forward(x)
    assert_close(y, expected, 1e-5)
    assert_close(callables.backward(y, tape), names.backward(y, expected_tape), 1e-4)
    assert isinstance(callables.activation, CustomActivation)
    with pytest.raises(TypeError, match="an activation of Python callables cannot be written into a config"):
        callables.get_config()


@layers
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_of_a_layer_with_callables_give_the_same(layer_class, duplicate):
    layer = layer_class(5, activation=SINE)
    x = np.ones((3, 4, 2), "float32")
    np.testing.assert_array_equal(layer(x), duplicate(layer)(x))


@layers
def test_steps_give_what_one_call_gives(layer_class):
    layer = layer_class(5, activation=SINE, dtype="float64", return_sequences=True, return_state=True)
    x = np.random.default_rng(0).standard_normal((3, 4, 2))
    y, *final = layer(x)
    states, in_place = None, [np.zeros((3, 5)) for _ in final]
    for t in range(4):
        y_t, states = layer.step(x[:, t], states)
        h, written = layer.step(x[:, t], in_place, out=in_place)
        assert h is in_place[0]
        np.testing.assert_array_equal([h, *written], [y_t, *states])
        assert_close(y_t, y[:, t], 1e-13)
    assert_close(states, final, 1e-13)


def test_errors_are_those_of_the_kernels():
    x, weights, _, _ = random_problem(CASES["lstm"], 3, 5, 2, 4, "float32", 0)
    for wrong in (
        {"mask": np.ones((3, 4), bool)},
        {"initial_state": [np.ones((3, 4), "float32")]},
        {"initial_state": np.ones((3, 4), "float32")},
        {"dropout_mask": np.ones((3, 3), "float32")},
        {"lengths": [1, 2, 9]},
    ):
        messages = []
        for activation in ("tanh", TANH):
            with pytest.raises((TypeError, ValueError), match=r"^functional\.lstm: ") as caught:
                functional.lstm(x, *weights, activation=activation, **wrong)
            messages.append(str(caught.value))
        assert messages[0] == messages[1]
    y, tape = functional.lstm_forward(x, *weights, activation=TANH)
    with pytest.raises(ValueError, match=r"dy must have shape \(3, 4\)"):
        functional.lstm_backward(y[1:], tape)
    assert not functional.lstm_backward(None, tape).x.any()  # the tape survived
    with pytest.raises(ValueError, match="the tape must come from gru_forward, got one of a lstm cell"):
        functional.gru_backward(y, tape)
    with pytest.raises(ValueError, match="the function must return an array of its argument's shape"):
        functional.lstm(x, *weights, activation=(np.sum, np.cos))
    with pytest.raises(ValueError, match="kernel must have"):
        functional.lstm(x, weights[0][:, 1:], *weights[1:], activation=TANH)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
@pytest.mark.parametrize("where", ["function", "derivative", "step"])
def test_what_a_callable_raises_passes_through(error, where):
    def raises(a):
        raise error

    layer = fastrnn.GRU(4, activation=(np.sin, raises) if where == "derivative" else (raises, np.cos))
    x, out = np.ones((3, 5, 2), "float32"), [np.full((3, 4), 7, "float32")]
    with pytest.raises(error):
        if where == "function":
            layer(x)
        elif where == "step":
            layer.step(x[:, 0], out, out=out)
        else:
            y, tape = layer.forward(x)
            layer.backward(y, tape)
    assert (out[0] == 7).all()


def test_nothing_but_callables_takes_the_slow_path():
    _, weights, _, _ = random_problem(CASES["gru"], 3, 5, 2, 4, "float32", 0)
    prepared = functional.make_weights("gru", *weights, ("sigmoid", "softplus", "softplus"), "here")
    assert type(prepared) is functional.Weights
    slow = functional.make_weights("gru", *weights, ("sigmoid", SINE, SINE), "here")
    assert type(slow) is CustomWeights
    for name in ("cell", "inputs", "units", "name", "dtype"):
        assert getattr(slow, name) == getattr(prepared, name)
    assert all(a is b for a, b in zip(slow.arrays, prepared.arrays, strict=True))


@cases
def test_callables_see_the_rows_of_real_steps_alone(name):
    """One that is undefined where there is no input gives what it gives row by row without the masked steps."""
    (_, forward, backward), x, weights, settings, _ = problem(name, "float64")
    x, lengths = np.abs(x) + 1, [6, 1, 3, 2]
    seen = []

    def reciprocal(a):
        seen.append(len(a))
        return 0.01 / a

    chosen = {"activation": (reciprocal, lambda a: -0.01 / a**2)}
    weights = [np.zeros_like(w) if w is weights[-1] else w for w in weights]  # no bias: 1/0 where x is 0
    y, tape = forward(x, *weights, **settings, **chosen, lengths=lengths)
    assert set(seen) >= {4, 3, 2, 1}
    gradients = backward(np.ones_like(y), tape)
    for b, steps in enumerate(lengths):
        alone, tape = forward(x[b : b + 1, :steps], *weights, **settings, **chosen)
        assert_close(y[b : b + 1], alone, 1e-10)
        assert_close(gradients.x[b : b + 1, :steps], backward(np.ones_like(alone), tape).x, 1e-9)
        assert not gradients.x[b, steps:].any()
    assert all(np.isfinite(w).all() for w in gradients.weights)


def test_a_list_as_x_is_refused_as_by_the_kernels():
    one = np.ones((1, 1))
    with pytest.raises(TypeError, match=r"functional\.simple_rnn: x must be a NumPy array, got list"):
        functional.simple_rnn([[[1.0]]], one, one, activation=TANH)
