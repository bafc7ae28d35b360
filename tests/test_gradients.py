"""Clipping: against PyTorch and Keras, on all that holds gradients, and on what is none."""

import math

import numpy as np
import pytest
from support import assert_close, import_keras, random_gradients, random_problem

from fastrnn import functional, gradients, reference

SHAPES = [(3, 20), (5, 20), (20,)]


def some_gradients(dtype="float64", seed=0):
    return random_gradients([np.empty(shape, dtype) for shape in SHAPES], seed)


@pytest.mark.parametrize("max_norm", [0.0, 0.5, 10.0, 1000.0])
def test_clipped_gradients_and_norm_are_those_of_pytorch(dtype, max_norm):
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    actual = some_gradients(dtype)
    parameters = [torch.nn.Parameter(torch.zeros(shape, dtype=getattr(torch, dtype))) for shape in SHAPES]
    for parameter, array in zip(parameters, actual, strict=True):
        parameter.grad = torch.from_numpy(array.copy())
    expected_norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    assert gradients.clip_norm(actual, max_norm) == pytest.approx(float(expected_norm), rel=1e-6)
    assert_close(actual, [p.grad.numpy() for p in parameters], 1e-6)  # PyTorch divides by norm + 1e-6


@pytest.mark.parametrize("max_norm", [0.5, 10.0, 1000.0])
def test_clipped_gradients_are_those_of_keras_global_clipnorm(max_norm):
    keras = import_keras()
    actual = some_gradients("float32")
    optimizer = keras.optimizers.SGD(1.0, global_clipnorm=max_norm)
    clipped = optimizer._clip_gradients([keras.ops.convert_to_tensor(array) for array in actual])
    gradients.clip_norm(actual, max_norm)
    assert_close(actual, [keras.ops.convert_to_numpy(array) for array in clipped], 1e-6)


def test_the_norm_is_one_of_all_layers_and_of_weights_alone():
    lists = [some_gradients(seed=seed) for seed in range(3)]
    flat = np.concatenate([array.ravel() for arrays in lists for array in arrays])
    before = np.ones(2)
    several = [
        functional.Gradients(before, lists[0], [before]),
        reference.Gradients(before, lists[1], [before]),
        (array for array in lists[2]),
    ]
    assert gradients.clip_norm(several, 1.0) == pytest.approx(np.linalg.norm(flat), rel=1e-14)
    assert gradients.clip_norm(lists, math.inf) == pytest.approx(1.0, rel=1e-14)
    np.testing.assert_array_equal(before, np.ones(2))


def test_what_backward_returns_is_clipped_in_place(cell, dtype):
    problem = random_problem(cell, 4, 9, 3, 5, dtype)
    y, tape = functional.run_forward(functional.Weights(cell, *problem.weights), problem.x)
    grads = functional.run_backward(y, tape)
    assert gradients.clip_norm(grads, 1e-3) > 1e-3
    assert gradients.clip_norm(grads, math.inf) == pytest.approx(1e-3, rel=1e-6)


@pytest.mark.parametrize("max_norm", [10.0, math.inf])
def test_gradients_below_the_limit_keep_their_bits(dtype, max_norm):
    actual, expected = some_gradients(dtype)[1] / 100, some_gradients(dtype)[1] / 100
    gradients.clip_norm(actual, max_norm)
    np.testing.assert_array_equal(actual, expected)


def test_squares_beyond_float32_do_not_overflow():
    array = np.full(4, 1e30, "float32")
    assert gradients.clip_norm(array, 2.0) == pytest.approx(2e30, rel=1e-6)
    np.testing.assert_allclose(array, 1.0, rtol=1e-6)


def test_views_of_any_strides_are_clipped():
    whole = np.ones((6, 8))
    assert gradients.clip_norm([whole[::2, ::-2], whole[1::2].T], 0.0) == pytest.approx(6.0)
    assert whole.sum() == 12  # the elements outside of the views


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_show_in_the_norm_and_in_the_gradients(value):
    array = np.array([1.0, value])
    assert not math.isfinite(gradients.clip_norm(array, 1.0))
    assert np.isnan(array[1])


def test_an_infinite_limit_changes_nothing():
    array = np.array([1.0, np.nan, np.inf])
    gradients.clip_norm(array, math.inf)
    np.testing.assert_array_equal(array, [1.0, np.nan, np.inf])


def test_no_gradients_have_the_norm_zero():
    assert gradients.clip_norm([], 0.0) == gradients.clip_norm(np.zeros((0, 3)), 0.0) == 0.0


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda a: [a, None], TypeError, "gradients must be arrays, .* got None"),
        (lambda a: [a, 1.0], TypeError, "gradients must be arrays, .* got 1.0"),
        (lambda a: {"kernel": a}, TypeError, "gradients must be arrays, .* got {'kernel'"),
        (lambda a: [a, "ab"], TypeError, "gradients must be arrays, .* got 'ab'"),
        (lambda a: [a, np.arange(3)], TypeError, "gradients must be floating arrays, got int64"),
        (lambda a: [a, np.broadcast_to(1.0, 3)], ValueError, "gradients must be writable arrays"),
    ],
)
def test_what_is_no_gradient_is_refused_and_nothing_is_changed(wrong, error, message):
    array = np.ones(3)
    with pytest.raises(error, match=f"^clip_norm: {message}"):
        gradients.clip_norm(wrong(array), 0.1)
    np.testing.assert_array_equal(array, np.ones(3))


@pytest.mark.parametrize(
    ("max_norm", "error"),
    [(-1, ValueError), (math.nan, ValueError), ("1", TypeError), (True, TypeError), (None, TypeError)],
)
def test_the_limit_must_be_a_number_from_zero_on(max_norm, error):
    with pytest.raises(error, match=r"^clip_norm: max_norm must be"):
        gradients.clip_norm([np.ones(3)], max_norm)


def test_an_array_that_is_there_twice_counts_and_is_scaled_once():
    a, b = np.full((2, 2), 3.0), np.full(4, 4.0)
    assert gradients.clip_norm([a, b, a, [a[:]]], 1.0) == 10.0
    np.testing.assert_allclose(a, 0.3)
    np.testing.assert_allclose(b, 0.4)


def test_parts_of_one_array_are_clipped_together_and_overlaps_are_refused():
    whole, expected = np.arange(24.0).reshape(4, 6), np.arange(24.0).reshape(4, 6)
    parts = [whole[:, :2], whole[:, 2:], np.zeros(0), np.zeros(0)]
    assert gradients.clip_norm(parts, 1.0) == pytest.approx(np.linalg.norm(expected))
    np.testing.assert_allclose(whole, expected / np.linalg.norm(expected))
    before = whole.copy()
    for overlapping in (
        [whole, whole[1]],
        [whole[:, :3], whole[:, 2:]],
        [whole[::-1], whole[2:]],
        [whole, whole.T],
    ):
        with pytest.raises(
            ValueError, match=r"^clip_norm: gradients must not share memory in part, got arrays of sh"
        ):
            gradients.clip_norm(overlapping, 0.5)
    np.testing.assert_array_equal(whole, before)
