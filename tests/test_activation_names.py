"""The activations by name, in NumPy: against Keras, PyTorch, ONNX' formulas and finite differences."""

import json
import math
import warnings

import numpy as np
import pytest
from support import assert_close, import_keras

from fastrnn import activations
from fastrnn.activations import KINDS, NAMES, Activation, CustomActivation

NOT_IN_KERAS = ("affine", "scaled_tanh", "thresholded_relu")
# Away from every kink (multiples of 1/2 and of 3), near zero and far out.
X = np.concatenate([np.linspace(-9.3, 9.4, 301), [-90.1, -31.7, -0.001, 0.001, 31.7, 60.1]])
ONNX = {
    Activation("affine", 0.7, -0.3): lambda x: 0.7 * x - 0.3,
    Activation("scaled_tanh", 1.7, 0.6): lambda x: 1.7 * math.tanh(0.6 * x),
    Activation("thresholded_relu", 0.4): lambda x: x if x > 0.4 else 0,
    Activation("hard_sigmoid", 0.2, 0.5): lambda x: max(0, min(1, 0.2 * x + 0.5)),
    Activation("leaky_relu", 0.01): lambda x: x if x >= 0 else 0.01 * x,
    Activation("elu", 0.6): lambda x: x if x >= 0 else 0.6 * (math.exp(x) - 1),
}
names = pytest.mark.parametrize("name", NAMES)
parametrized = [*map(Activation, NAMES), *ONNX, Activation("celu", 0.4), Activation("soft_shrink", 0.3)]
all_activations = pytest.mark.parametrize("activation", parametrized, ids=str)
dtypes = pytest.mark.parametrize("dtype", ["float32", "float64", "longdouble"])


@pytest.mark.parametrize("name", [*sorted(NAMES.keys() - set(NOT_IN_KERAS)), "swish", "hard_swish"])
def test_values_and_gradients_equal_keras(name):
    keras = import_keras()
    if keras.backend.backend() != "torch":
        pytest.skip(f"takes Keras' gradients with PyTorch, but KERAS_BACKEND is {keras.backend.backend()}")
    import torch

    x = torch.tensor(X, requires_grad=True)
    y = keras.activations.get(name)(x)
    y.sum().backward()
    activation = activations.get(name)
    # PyTorch's softplus is x above 20, and its slope of hard_sigmoid is 1/6 in float32.
    rtol = {"softplus": 3e-9, "mish": 3e-9, "hard_sigmoid": 3e-8}.get(name, 1e-14)
    np.testing.assert_allclose(activation(X), y.detach().numpy(), rtol=rtol, atol=1e-14)
    np.testing.assert_allclose(activation.gradient(X, np.ones_like(X)), x.grad.numpy(), rtol=rtol, atol=1e-14)


@pytest.mark.parametrize("name", ["relu", "relu6", "hard_tanh", "leaky_relu", "elu", "selu", "celu"])
def test_slopes_at_the_kinks_equal_torch(name):
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    kinks = np.array([-1.0, 0.0, 1.0, 6.0])
    x = torch.tensor(kinks, requires_grad=True)
    function = {"hard_tanh": "hardtanh"}.get(name, name)
    getattr(torch.nn.functional, function)(x, *([0.2] if name == "leaky_relu" else [])).sum().backward()
    np.testing.assert_allclose(Activation(name).gradient(kinks, np.ones(4)), x.grad.numpy(), rtol=1e-14)


@pytest.mark.parametrize("activation", ONNX, ids=str)
def test_values_equal_the_formulas_of_onnx(activation):
    assert_close(activation(X), np.array([ONNX[activation](x) for x in X]), rtol=1e-15)


@all_activations
@pytest.mark.parametrize("clip", [None, 1.25])
def test_gradients_equal_finite_differences(activation, clip):
    activation = Activation(activation.name, activation.alpha, activation.beta, clip)
    x, dy, step = X[np.abs(X) < 10], np.linspace(-2, 1.5, np.sum(np.abs(X) < 10)), 1e-6
    expected = dy * (activation(x + step) - activation(x - step)) / (2 * step)
    np.testing.assert_allclose(activation.gradient(x, dy), expected, rtol=1e-7, atol=1e-8)


@all_activations
def test_clip_limits_the_pre_activation(activation):
    clipped = Activation(activation.name, activation.alpha, activation.beta, clip=0.75)
    np.testing.assert_array_equal(clipped(X), activation(np.clip(X, -0.75, 0.75)))
    inside = np.abs(X) < 0.75
    expected = np.where(inside, activation.gradient(X, np.ones_like(X)), 0)
    np.testing.assert_array_equal(clipped.gradient(X, np.ones_like(X)), expected)


@all_activations
@dtypes
@pytest.mark.parametrize("clip", [None, 3])
def test_results_have_the_dtype_and_shape_of_the_argument(activation, dtype, clip):
    activation = Activation(activation.name, activation.alpha, activation.beta, clip)
    for shape in [(), (0,), (2, 3)]:
        a = np.full(shape, 0.25, dtype)
        for result in (activation(a), activation.gradient(a, a)):
            assert result.dtype == a.dtype and result.shape == shape


@all_activations
@pytest.mark.parametrize("dtype", ["float32", "longdouble"])
def test_other_dtypes_agree_with_float64(activation, dtype):
    x = X.astype("float32")
    eps = max(np.finfo(dtype).eps, np.finfo("float64").eps)
    for function in (activation, lambda a: activation.gradient(a, np.ones_like(a))):
        expected = function(x.astype("float64"))
        np.testing.assert_allclose(function(x.astype(dtype)), expected, rtol=64 * eps, atol=16 * eps)


@all_activations
@dtypes
def test_nothing_warns_of_huge_arguments_and_the_slope_there_is_a_number(activation, dtype):
    huge = np.sqrt(np.finfo(dtype).max)
    a = np.array([-huge, -1e4, 0, 1e4, huge], dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y, da = activation(a), activation.gradient(a, np.ones_like(a))
    assert not np.isnan(y).any() and not np.isnan(da).any()
    assert activation.name == "exponential" or np.isfinite([y, da]).all()


@all_activations
@dtypes
@pytest.mark.parametrize("clip", [None, 1.0])
def test_nan_stays_nan_and_in_its_place(activation, dtype, clip):
    activation = Activation(activation.name, activation.alpha, activation.beta, clip)
    y = activation(np.array([0.5, np.nan, 0.25], dtype))
    np.testing.assert_array_equal(np.isnan(y), [False, True, False])


@dtypes
def test_sigmoid_is_exact_at_the_limits(dtype):
    largest = np.finfo(dtype).max
    y = Activation("sigmoid")(np.array([-np.inf, -largest, -0.0, 0.0, largest, np.inf], dtype))
    np.testing.assert_array_equal(y, np.array([0, 0, 0.5, 0.5, 1, 1], dtype))


def test_sigmoid_keeps_the_digits_of_small_results():
    a = np.linspace(-700, -40, 1000)
    np.testing.assert_allclose(Activation("sigmoid")(a), np.exp(a), rtol=1e-15)


# ---- Names, configs, parameters


@names
def test_an_activation_is_a_kind_with_two_numbers(name):
    kind, alpha, beta = NAMES[name]
    activation = activations.get(name)
    assert (activation.kind, activation.alpha, activation.beta, activation.clip) == (kind, alpha, beta, None)
    assert KINDS[activation.code] == kind
    if name not in KINDS:  # a case of a kind: the same function
        np.testing.assert_array_equal(Activation(kind, alpha, beta)(X), activation(X))


@all_activations
@pytest.mark.parametrize("clip", [None, 2.5])
def test_get_turns_what_serialize_returned_into_an_equal_activation(activation, clip):
    activation = Activation(activation.name, activation.alpha, activation.beta, clip)
    written = json.loads(json.dumps(activations.serialize(activation), allow_nan=False))
    assert activations.get(written) == activation


@pytest.mark.parametrize("name", ["tanh", "relu", "silu", "swish", "mish", "hard_sigmoid", "linear", None])
def test_functions_and_configs_of_keras_stand_for_their_names(name):
    keras = import_keras()
    function = keras.activations.get(name)
    assert activations.get(function) == activations.get(name)
    assert activations.get(keras.activations.serialize(function)) == activations.get(name)
    assert activations.get(keras.saving.serialize_keras_object(function)) == activations.get(name)


def test_all_elementwise_activations_of_keras_that_need_no_argument_are_known():
    keras = import_keras()
    over_rows = {"softmax", "log_softmax", "sparsemax", "glu"}
    others = {"get", "serialize", "deserialize", "threshold"}  # threshold has an argument without a default
    public = {n for n in dir(keras.activations) if not n.startswith("_") and n.islower()}
    assert public - over_rows - others <= NAMES.keys() | {"swish", "hard_swish"}


def test_a_pair_of_callables_is_an_activation():
    sine = activations.get((np.sin, np.cos))
    assert isinstance(sine, CustomActivation)
    np.testing.assert_array_equal(sine(X), np.sin(X))
    np.testing.assert_array_equal(sine.gradient(X, X), X * np.cos(X))
    assert sine(X.astype("float32")).dtype == np.float32
    assert activations.get(sine) is sine
    assert CustomActivation(np.sin, np.cos, clip=1)(np.array([5.0])) == np.sin(1.0)
    with pytest.raises(TypeError, match="callables cannot be written into a config"):
        activations.serialize(sine)
    with pytest.raises(ValueError, match=r"argument's shape \(307,\), got \(\)"):
        activations.get((np.sum, np.cos))(X)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("tahn",), ValueError, "there is no activation 'tahn'; the known ones are \"affine\""),
        (("softmax",), ValueError, "there is no activation"),
        (("tanh", 2.0), ValueError, r'Activation\("tanh"\): it has no alpha, got 2.0; leave alpha out'),
        (("relu", None, 3.0), ValueError, "it has no beta"),
        (("leaky_relu", 0.1, 0.1), ValueError, "it has no beta"),
        (("elu", "1"), TypeError, "alpha must be a number, got '1'"),
        (("elu", False), TypeError, "alpha must be a number, got False"),
        (("elu", math.nan), ValueError, "alpha must be a number, got nan"),
        (
            ("elu", 10**400),
            ValueError,
            r"alpha must be a number, got 1000.*000; pass a float, or leave it out",
        ),
        (("elu", -(10**400)), ValueError, "alpha must be a number, got -1"),
        (("tanh", None, None, 10**400), ValueError, "clip must be a positive number, got 1"),
        (("celu", 0), ValueError, "alpha must be a positive number, got 0"),
        (("celu", -0.5), ValueError, "alpha must be a positive number, got -0.5"),
        (("squareplus", -1), ValueError, "alpha must be a number of 0 or more, got -1"),
        (
            ("hard_tanh", 2.0),
            ValueError,
            "alpha, the lower .*, must be at most beta, .*, got 2.0 and 1.0; swap",
        ),
        (
            ("hard_tanh", 1, -1),
            ValueError,
            "alpha, the lower limit, must be at most beta, .*, got 1.0 and -1.0",
        ),
        (("tanh", None, None, 0), ValueError, "clip must be a positive number, got 0"),
        (("tanh", None, None, "3"), TypeError, "clip must be a positive number"),
    ],
    ids=str,
)
def test_impossible_activations_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        Activation(*arguments)


@pytest.mark.parametrize("identifier", [3, np.tanh, math.tanh, (np.sin,), (np.sin, 3), lambda a: a], ids=repr)
def test_anything_else_is_refused(identifier):
    with pytest.raises(TypeError, match="must be"):
        activations.get(identifier)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"class_name": "elu"},
        {"class_name": "elu", "config": {"gamma": 1}},
        {"class_name": 3, "config": {}},
    ],
    ids=str,
)
def test_a_malformed_config_is_refused(config):
    with pytest.raises(ValueError, match="an activation's config must have"):
        activations.get(config)
