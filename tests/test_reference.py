"""The NumPy reference against finite differences, PyTorch and Keras, all in float64."""

import os

import numpy as np
import pytest
from support import (
    CELLS,
    Problem,
    as_list,
    assert_close,
    finite_differences,
    inner_product,
    keras_in_float64,
    keras_layer,
    random_gradients,
    random_problem,
    torch_layer,
    torch_weight_gradients,
)

from fastrnn import reference

os.environ.setdefault("KERAS_BACKEND", "torch")  # before anything imports Keras

SIZES = {"B": 3, "T": 4, "I": 2, "H": 3}

cells = pytest.mark.parametrize("cell", CELLS)
torch_cells = pytest.mark.parametrize("cell", ["simple_rnn", "lstm", "gru"])
bias_or_not = pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
sequences_or_last = pytest.mark.parametrize("return_sequences", [True, False], ids=["sequences", "last"])
state_or_not = pytest.mark.parametrize("return_state", [True, False], ids=["state", "no_state"])
both_directions = pytest.mark.parametrize("go_backwards", [False, True], ids=["forwards", "backwards"])
initial_or_zeros = pytest.mark.parametrize("initial", [True, False], ids=["initial_state", "zeros"])


def check_gradients(cell, problem, initial=True, **options):
    """Every gradient that backward returns equals the finite difference of the loss sum(dy * outputs)."""
    forward, backward = CELLS[cell]
    if not initial:
        problem = problem._replace(initial_state=[np.zeros_like(s) for s in problem.initial_state])
    states = problem.initial_state if initial else None
    outputs, tape = forward(problem.x, *problem.weights, initial_state=states, **options)
    dy = random_gradients(outputs)

    def loss(p):
        return inner_product(forward(p.x, *p.weights, initial_state=p.initial_state, **options)[0], dy)

    gradients = backward(dy, tape)
    assert isinstance(gradients, reference.Gradients)
    assert_close(gradients, finite_differences(loss, problem), rtol=1e-7, what="gradients")


@cells
@bias_or_not
@sequences_or_last
@state_or_not
@both_directions
@initial_or_zeros
def test_gradients_equal_finite_differences(
    cell, bias, return_sequences, return_state, go_backwards, initial
):
    check_gradients(
        cell,
        random_problem(cell, **SIZES, bias=bias),
        initial,
        return_sequences=return_sequences,
        return_state=return_state,
        go_backwards=go_backwards,
    )


@cells
@sequences_or_last
@state_or_not
@pytest.mark.parametrize("sizes", [{"T": 0}, {"T": 1}, {"B": 0}, {"B": 1}, {"I": 1}, {"H": 1}], ids=str)
def test_gradients_at_the_smallest_sizes_equal_finite_differences(
    cell, return_sequences, return_state, sizes
):
    problem = random_problem(cell, **(SIZES | sizes))
    check_gradients(cell, problem, return_sequences=return_sequences, return_state=return_state)


@cells
def test_no_time_steps_return_the_initial_state(cell):
    forward, _ = CELLS[cell]
    x, weights, states = random_problem(cell, **(SIZES | {"T": 0}))
    (y, *final), _ = forward(x, *weights, initial_state=states, return_state=True)
    assert_close([y, *final], [states[0], *states], rtol=0)
    assert_close(forward(x, *weights)[0], np.zeros_like(y), rtol=0)
    assert forward(x, *weights, return_sequences=True)[0].shape == (3, 0, 3)


@cells
def test_none_stands_for_zeros(cell):
    forward, backward = CELLS[cell]
    x, weights, states = random_problem(cell, **SIZES)
    zeros = [np.zeros_like(s) for s in states]
    options = {"return_sequences": True, "return_state": True}
    outputs, tape = forward(x, *weights, initial_state=zeros, **options)
    assert_close(forward(x, *weights, **options)[0], outputs, rtol=0)
    assert_close(forward(x, *weights, initial_state=[None] * len(states), **options)[0], outputs, rtol=0)
    dy = random_gradients(outputs)
    for item in range(len(dy)):
        with_none = [None if k == item else d for k, d in enumerate(dy)]
        with_zeros = [np.zeros_like(d) if k == item else d for k, d in enumerate(dy)]
        assert_close(backward(with_none, tape), backward(with_zeros, tape), rtol=0)


@cells
def test_go_backwards_equals_reversed_input(cell):
    forward, backward = CELLS[cell]
    x, weights, states = random_problem(cell, **SIZES)
    options = {"initial_state": states, "return_sequences": True, "return_state": True}
    outputs, tape = forward(x[:, ::-1], *weights, **options)
    outputs_back, tape_back = forward(x, *weights, go_backwards=True, **options)
    assert_close(outputs_back, outputs, rtol=1e-14)
    expected, actual = (backward(random_gradients(outputs), t) for t in (tape, tape_back))
    assert_close(actual, expected._replace(x=expected.x[:, ::-1]), rtol=1e-14)


@cells
def test_two_halves_chained_by_their_states_equal_the_whole(cell):
    forward, backward = CELLS[cell]
    x, weights, states = random_problem(cell, **SIZES)
    options = {"return_sequences": True, "return_state": True}
    (y, *final), tape = forward(x, *weights, initial_state=states, **options)
    (y1, *middle), tape1 = forward(x[:, :3], *weights, initial_state=states, **options)
    (y2, *final2), tape2 = forward(x[:, 3:], *weights, initial_state=middle, **options)
    assert_close([np.concatenate([y1, y2], axis=1), *final2], [y, *final], rtol=1e-14)

    dy, *dfinal = random_gradients([y, *final])
    second = backward([dy[:, 3:], *dfinal], tape2)
    first = backward([dy[:, :3], *second.initial_state], tape1)
    chained = reference.Gradients(
        np.concatenate([first.x, second.x], axis=1),
        [a + b for a, b in zip(first.weights, second.weights, strict=True)],
        first.initial_state,
    )
    assert_close(chained, backward([dy, *dfinal], tape), rtol=1e-13)


@cells
@bias_or_not
@pytest.mark.parametrize("dtype", ["float32", "float64", "longdouble"])
def test_results_have_the_dtype_of_the_arrays(cell, bias, dtype):
    forward, backward = CELLS[cell]
    x, weights, states = random_problem(cell, **SIZES, dtype=dtype, bias=bias)
    for initial_state in (states, None):
        outputs, tape = forward(x, *weights, initial_state=initial_state, return_state=True)
        gradients = backward([None, *outputs[1:]], tape)
        arrays = [*outputs, gradients.x, *gradients.weights, *gradients.initial_state]
        assert {a.dtype for a in arrays} == {np.dtype(dtype)}


@cells
@pytest.mark.parametrize("dtype", ["float32", "longdouble"])
def test_other_dtypes_agree_with_float64(cell, dtype):
    forward, backward = CELLS[cell]
    problem = random_problem(cell, B=5, T=20, I=7, H=6, dtype="float32")
    results = []
    for x, weights, states in (problem.astype(dtype), problem.astype("float64")):
        y, tape = forward(x, *weights, initial_state=states, return_sequences=True)
        results.append([y, *backward(random_gradients(y).astype("float32").astype(y.dtype), tape)])
    assert_close(*results, rtol=16 * max(np.finfo(dtype).eps, np.finfo("float64").eps))


@cells
@sequences_or_last
def test_results_belong_to_the_caller_and_arguments_are_left_alone(cell, return_sequences):
    forward, backward = CELLS[cell]
    problem = random_problem(cell, **SIZES)
    x, weights, states = problem
    before = problem.astype("float64")
    options = {"initial_state": states, "return_sequences": return_sequences, "return_state": True}
    outputs, tape = forward(x, *weights, **options)
    dy = random_gradients(outputs)
    dy_before = [d.copy() for d in dy]
    expected = backward(dy, tape)
    assert_close([problem, dy], [before, dy_before], rtol=0)
    for array in (*outputs, *states):
        array.fill(np.nan)
    assert_close(backward(dy, tape), expected, rtol=0)


@cells
def test_nan_stays_in_its_row_and_after_its_time(cell):
    forward, _ = CELLS[cell]
    x, weights, _ = random_problem(cell, **SIZES)
    clean, _ = forward(x, *weights, return_sequences=True)
    x[1, 2, 0] = np.nan
    y, _ = forward(x, *weights, return_sequences=True)
    assert np.isnan(y[1, 2:]).all()
    y[1, 2:] = clean[1, 2:]
    assert_close(y, clean, rtol=1e-14)


# ---- Against PyTorch ----


def torch_states(states):
    """[1, B, H] leaves for [B, H] arrays."""
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    return [torch.tensor(s[None], requires_grad=True) for s in states]


@torch_cells
@bias_or_not
@sequences_or_last
@initial_or_zeros
def test_outputs_and_gradients_equal_torch(cell, bias, return_sequences, initial):
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    forward, backward = CELLS[cell]
    problem = random_problem(cell, B=5, T=9, I=4, H=6, bias=bias)
    if not initial:
        problem = problem._replace(initial_state=[np.zeros_like(s) for s in problem.initial_state])
    outputs, tape = forward(
        problem.x,
        *problem.weights,
        initial_state=problem.initial_state if initial else None,
        return_sequences=return_sequences,
        return_state=True,
    )
    dy = random_gradients(outputs)

    layer = torch_layer(cell, problem.weights)
    x, states = torch.tensor(problem.x, requires_grad=True), torch_states(problem.initial_state)
    y, final = layer(x, tuple(states) if cell == "lstm" else states[0])
    results = [y if return_sequences else y[:, -1], *(s[0] for s in as_list(final))]
    assert_close(outputs, [r.detach().numpy() for r in results], rtol=1e-13, what="outputs")

    sum((r * torch.from_numpy(d)).sum() for r, d in zip(results, dy, strict=True)).backward()
    expected = Problem(
        x.grad.numpy(), torch_weight_gradients(cell, layer), [s.grad[0].numpy() for s in states]
    )
    assert_close(backward(dy, tape), expected, rtol=1e-13, what="gradients")


# ---- Against Keras ----


@cells
@bias_or_not
@sequences_or_last
@state_or_not
@both_directions
@initial_or_zeros
def test_outputs_equal_keras(cell, bias, return_sequences, return_state, go_backwards, initial):
    x, weights, states = random_problem(cell, B=5, T=9, I=4, H=6, bias=bias)
    options = {
        "return_sequences": return_sequences,
        "return_state": return_state,
        "go_backwards": go_backwards,
    }
    initial_state = states if initial else None
    outputs, _ = CELLS[cell].forward(x, *weights, initial_state=initial_state, **options)
    with keras_in_float64() as keras:
        layer = keras_layer(cell, weights, **options)
        results = as_list(layer(keras.ops.convert_to_tensor(x), initial_state=initial_state))
        expected = [keras.ops.convert_to_numpy(r) for r in results]
    assert_close(as_list(outputs), expected, rtol=1e-13, what="outputs")


@cells
@bias_or_not
@sequences_or_last
@both_directions
def test_gradients_equal_keras(cell, bias, return_sequences, go_backwards):
    forward, backward = CELLS[cell]
    problem = random_problem(cell, B=5, T=9, I=4, H=6, bias=bias)
    options = {"return_sequences": return_sequences, "return_state": True, "go_backwards": go_backwards}
    outputs, tape = forward(problem.x, *problem.weights, initial_state=problem.initial_state, **options)
    dy = random_gradients(outputs)
    with keras_in_float64() as keras:
        if keras.backend.backend() != "torch":
            pytest.skip(
                f"takes Keras' gradients with PyTorch, but KERAS_BACKEND is {keras.backend.backend()}"
            )
        import torch

        layer = keras_layer(cell, problem.weights, **options)
        x, *states = (torch.tensor(a, requires_grad=True) for a in (problem.x, *problem.initial_state))
        results = layer(x, initial_state=states)
        sum((r * torch.from_numpy(d)).sum() for r, d in zip(results, dy, strict=True)).backward()
    expected = Problem(
        x.grad.numpy(),
        [w.value.grad.numpy() for w in layer.trainable_weights],
        [s.grad.numpy() for s in states],
    )
    assert_close(backward(dy, tape), expected, rtol=1e-13, what="gradients")
