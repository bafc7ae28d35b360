"""The constraints: what they make of weights is what Keras makes of them, alone and in a layer."""

import json

import numpy as np
import pytest
from support import CELLS, assert_close, import_keras, keras_in_float64, random_problem
from test_layers import INPUTS, LAYERS, H, assert_same, build

from fastrnn import LSTM, constraints
from fastrnn.constraints import MaxNorm, MinMaxNorm, NonNeg, UnitNorm

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CONSTRAINTS = [
    MaxNorm(),
    MaxNorm(0.5, axis=1),
    MaxNorm(1.0, axis=[0, 1]),
    NonNeg(),
    UnitNorm(),
    UnitNorm(axis=-1),
    MinMaxNorm(),
    MinMaxNorm(0.5, 0.75, rate=0.25),
]
NAMES = ["max_norm", "non_neg", "unit_norm", "min_max_norm", "MaxNorm", "NonNeg", "UnitNorm", "MinMaxNorm"]

every_constraint = pytest.mark.parametrize("constraint", CONSTRAINTS, ids=repr)


def to_keras(constraint):
    return import_keras().constraints.get(constraints.serialize(constraint))


@every_constraint
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_weights_become_what_keras_makes_of_them(constraint, dtype):
    w = np.random.default_rng(0).standard_normal((5, 7)).astype(dtype)
    w[:, 3] = 0
    before = w.copy()
    result = constraint(w)
    assert result.dtype == dtype
    with keras_in_float64() as keras:
        tensor = keras.ops.convert_to_tensor(w, dtype=dtype)
        expected = keras.ops.convert_to_numpy(to_keras(constraint)(tensor))
    assert_close(result, expected, {"float32": 2e-7, "float64": 1e-15}[dtype])
    assert_same(w, before)


@pytest.mark.parametrize("name", NAMES)
def test_names_mean_what_they_mean_in_keras(name):
    theirs = import_keras().constraints.get(name)
    ours = constraints.get(name)
    assert type(ours).__name__ == type(theirs).__name__
    assert ours.get_config() == theirs.get_config()


@every_constraint
def test_configs_go_to_keras_and_back(constraint):
    assert constraints.get(json.loads(json.dumps(constraints.serialize(constraint)))) == constraint
    theirs = to_keras(constraint)
    assert constraints.get(theirs) == constraint
    assert constraints.get(import_keras().constraints.serialize(theirs)) == constraint


def test_get_takes_none_classes_and_callables():
    assert constraints.get(None) is None and constraints.serialize(None) is None
    assert constraints.get(NonNeg) == NonNeg()
    assert constraints.get(np.abs) is np.abs


@pytest.mark.parametrize(
    "identifier, error, message",
    [
        (
            "maxnorm",
            ValueError,
            r'a constraint must have a known name, got "maxnorm"; the known ones are "max_norm"',
        ),
        (3, TypeError, r"a constraint must be a name, a config or a callable of an array, got 3; "),
        (
            {"class_name": 1},
            ValueError,
            r"a constraint's config must have a class_name and a dict config, got ",
        ),
    ],
)
def test_what_is_no_constraint_is_refused(identifier, error, message):
    with pytest.raises(error, match=f"^LSTM: kernel_constraint: {message}"):
        LSTM(3, kernel_constraint=identifier)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"max_value": -1}, "MaxNorm: max_value must be a finite number of 0 or more, got -1; "),
        ({"axis": 0.5}, r"MaxNorm: axis must be an int or a list of ints, got 0\.5; "),
        ({"axis": ["a"]}, r"MaxNorm: axis must be an int or a list of ints, got \['a'\]; "),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        MaxNorm(**settings)


# ---- In a layer ----

ALL_THREE = dict(kernel_constraint=MaxNorm(0.5), recurrent_constraint=UnitNorm(), bias_constraint=NonNeg())


@pytest.mark.parametrize("cell", CELLS)
def test_apply_constraints_does_what_an_optimizer_of_keras_does(cell):
    keras = import_keras()
    weights = random_problem(cell, 1, 1, INPUTS, H, "float32").weights
    layer = build(cell, weights, **ALL_THREE)
    assert_same(layer.get_weights(), weights)  # set_weights applies none
    name = type(layer).__name__
    options = {} if cell != "gru_reset_before" else {"reset_after": False}
    theirs = getattr(keras.layers, name)(
        H, **options, **{argument: to_keras(c) for argument, c in ALL_THREE.items()}
    )
    theirs.build((None, None, INPUTS))
    theirs.set_weights(weights)
    optimizer = keras.optimizers.SGD(learning_rate=0.0)
    optimizer.build(theirs.trainable_variables)
    optimizer.apply(
        [keras.ops.zeros(v.shape) for v in theirs.trainable_variables], theirs.trainable_variables
    )
    layer.apply_constraints()
    assert_close(layer.get_weights(), theirs.get_weights(), 1e-6)
    assert not np.array_equal(layer.kernel, weights[0])
    assert not any(w.flags.writeable for w in layer.weights)


def test_only_constrained_weights_of_a_trainable_layer_change():
    weights = random_problem("lstm", 1, 1, INPUTS, H).weights
    layer = build("lstm", weights, recurrent_constraint=np.abs, trainable=False)
    layer.apply_constraints()
    assert_same(layer.get_weights(), weights)
    layer.trainable = True
    layer.apply_constraints()
    assert_same(layer.get_weights(), [weights[0], np.abs(weights[1]), weights[2]])


def test_without_constraints_the_weights_stay():
    layer = build("lstm", random_problem("lstm", 1, 1, INPUTS, H).weights)
    before = layer.weights
    layer.apply_constraints()
    assert all(a is b for a, b in zip(layer.weights, before, strict=True))


def test_a_constraint_that_changes_the_shape_is_refused():
    layer = LSTM(H, bias_constraint=lambda w: w[1:])
    with pytest.raises(
        ValueError, match=r"^LSTM: apply_constraints needs a layer with weights, got one that isn't"
    ):
        layer.apply_constraints()
    layer.build((None, None, INPUTS))
    message = r"^LSTM: what bias_constraint returns must have shape \(24,\), got \(23,\); "
    with pytest.raises(ValueError, match=message):
        layer.apply_constraints()


@pytest.mark.parametrize("cell", ["simple_rnn", "lstm", "gru"])
def test_layers_take_constraints_from_keras_and_give_them_back(cell):
    layer = LAYERS[cell](3, **ALL_THREE)
    theirs = getattr(import_keras().layers, type(layer).__name__).from_config(layer.get_config())
    again = LAYERS[cell].from_config(theirs.get_config())
    for name, constraint in ALL_THREE.items():
        assert getattr(again, name) == constraint
