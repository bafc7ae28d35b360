"""The NumPy reference against finite differences, PyTorch and Keras, all in float64."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from support import (
    CELLS,
    GATES,
    STATES,
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
from fastrnn.activations import Activation, CustomActivation

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


def outputs_and_gradients_of_keras(cell, problem, call=None, prepare=None, **options):
    """[y, *states] of a Keras layer on PyTorch, and the gradients of random_gradients of them."""
    with keras_in_float64() as keras:
        if keras.backend.backend() != "torch":
            pytest.skip(
                f"takes Keras' gradients with PyTorch, but KERAS_BACKEND is {keras.backend.backend()}"
            )
        import torch

        layer = keras_layer(cell, problem.weights, return_state=True, **options)
        if prepare is not None:
            prepare(layer, torch.from_numpy)
        x, *states = (torch.tensor(a, requires_grad=True) for a in (problem.x, *problem.initial_state))
        results = layer(x, initial_state=states, **(call or {}))
        outputs = [r.detach().numpy() for r in results]
        dy = random_gradients(tuple(outputs))
        sum((r * torch.from_numpy(d)).sum() for r, d in zip(results, dy, strict=True)).backward()
        weights = [w.value.grad.numpy() for w in layer.trainable_weights]
    return outputs, Problem(x.grad.numpy(), weights, [s.grad.numpy() for s in states])


def check_against_keras(cell, call=None, prepare=None, keras=None, here=None, rtol=1e-13, **options):
    """Outputs and gradients equal those of Keras; `keras` and `here` are options of one of the two only."""
    forward, backward = CELLS[cell]
    problem = random_problem(cell, B=5, T=9, I=4, H=6, bias=options.pop("bias", True))
    expected = outputs_and_gradients_of_keras(cell, problem, call, prepare, **(keras or {}), **options)
    outputs, tape = forward(
        problem.x,
        *problem.weights,
        initial_state=problem.initial_state,
        return_state=True,
        **(here or {}),
        **options,
    )
    assert_close([list(outputs), backward(random_gradients(outputs), tape)], list(expected), rtol)


@cells
@bias_or_not
@sequences_or_last
@both_directions
def test_gradients_equal_keras(cell, bias, return_sequences, go_backwards):
    check_against_keras(cell, bias=bias, return_sequences=return_sequences, go_backwards=go_backwards)


# Rows: all real, right padding, left padding, holes, no real step.
MASK = np.array([[1] * 9, [1] * 5 + [0] * 4, [0] * 3 + [1] * 6, [0, 1, 0, 0, 1, 1, 0, 1, 0], [0] * 9], bool)


@cells
@sequences_or_last
@pytest.mark.parametrize("zero_output_for_mask", [False, True], ids=["repeat", "zero"])
@both_directions
def test_masked_outputs_and_gradients_equal_keras(cell, return_sequences, zero_output_for_mask, go_backwards):
    check_against_keras(
        cell,
        call={"mask": MASK},
        here={"mask": MASK},
        return_sequences=return_sequences,
        zero_output_for_mask=zero_output_for_mask,
        go_backwards=go_backwards,
    )


@cells
@pytest.mark.parametrize("activation", ["relu", "softsign", "gelu"])
@pytest.mark.parametrize("recurrent_activation", ["hard_sigmoid", "hard_tanh"])
def test_outputs_and_gradients_with_other_activations_equal_keras(cell, activation, recurrent_activation):
    gates = {} if cell == "simple_rnn" else {"recurrent_activation": recurrent_activation}
    rtol = 1e-7 if recurrent_activation == "hard_sigmoid" else 1e-13  # its slope in PyTorch is 1/6 in float32
    check_against_keras(cell, rtol=rtol, activation=activation, return_sequences=True, **gates)


def random_mask(shape, seed=3):
    """Of dropout with rate 1/4."""
    return (np.random.default_rng(seed).random(shape) < 0.75) / 0.75


@cells
@pytest.mark.parametrize("which", ["inputs", "states", "both"])
@pytest.mark.parametrize("masked", [False, True], ids=["no_mask", "mask"])
def test_outputs_and_gradients_with_dropout_equal_keras(cell, which, masked):
    gates = GATES[cell]
    here, rates = {}, {}
    if which != "states":  # Keras takes one mask for all gates if there is no recurrent dropout
        here["dropout_mask"] = random_mask((5, 4) if which == "inputs" else (5, gates, 4))
        rates["dropout"] = 0.25
    if which != "inputs":
        here["recurrent_dropout_mask"] = random_mask((5, gates, 6))
        rates["recurrent_dropout"] = 0.25

    def prepare(layer, tensor):
        def masks(of_gates):
            if of_gates is None or of_gates.ndim == 2:
                return lambda _: None if of_gates is None else tensor(of_gates)
            parts = [tensor(np.ascontiguousarray(of_gates[:, k])) for k in range(gates)]
            return lambda _: parts[0] if gates == 1 else parts

        layer.cell.get_dropout_mask = masks(here.get("dropout_mask"))
        layer.cell.get_recurrent_dropout_mask = masks(here.get("recurrent_dropout_mask"))

    call = {"training": True}
    mask = {"mask": MASK} if masked else {}
    check_against_keras(cell, call | mask, prepare, keras=rates, here=here | mask, return_sequences=True)


# ---- Options: every cell with every option, and all of them together


class Case(NamedTuple):
    """A cell with settings of its own, and the shapes of the weights that it has besides U, W and b."""

    forward: Callable[..., Any]
    backward: Callable[..., Any]
    gates: int
    states: int
    settings: dict[str, Any] = {}  # noqa: RUF012
    extra: dict[str, tuple[int, ...]] = {}  # noqa: RUF012


LSTM = CELLS["lstm"]
B, T, I, H, R = 3, 5, 2, 3, 2
CASES = {name: Case(*CELLS[name], GATES[name], STATES[name]) for name in CELLS} | {
    "indrnn": Case(reference.indrnn_forward, reference.indrnn_backward, 1, 1, {"activation": "softplus"}),
    "lstm_projection": Case(*LSTM, 4, 2, {}, {"projection": (H, R)}),
    "lstm_cell_norm": Case(*LSTM, 4, 2, {}, {"cell_norm": (2, H)}),
}
for variant, gates in reference.LSTM_GATES.items():
    peepholes = {} if variant in (None, "np") else {"peephole": (len(set(gates) - {"g"}), H)}
    kernel = {"gate_kernel": (3 * H, 3 * H)} if variant == "fgr" else {}
    states = 5 if variant == "fgr" else 2
    CASES[f"lstm_{variant}"] = Case(*LSTM, len(gates), states, {"variant": variant}, peepholes | kernel)
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)

BROKEN_ROWS = np.array([[1, 0, 1, 1, 0], [0, 0, 1, 0, 1], [0] * 5], bool)
OPTIONS = {
    "nothing": lambda case: {},
    "mask": lambda case: {"mask": BROKEN_ROWS},
    "zero_output": lambda case: {"mask": BROKEN_ROWS, "zero_output_for_mask": True},
    "dropout": lambda case: {"dropout_mask": random_mask((B, I))},
    "gate_dropout": lambda case: {"dropout_mask": random_mask((B, case.gates, I))},
    "recurrent_dropout": lambda case: {"recurrent_dropout_mask": random_mask((B, case.gates, h_size(case)))},
    "zoneout": lambda case: {"zoneout_mask": zoneout_of(case)},
}


def with_layer_norm(case):
    return case._replace(extra=case.extra | {"layer_norm": (2, case.gates * H)})


def all_options(case):
    """The options that go together, for a case with layer normalization."""
    together = ["zero_output", "gate_dropout", "recurrent_dropout", "zoneout"]
    return {name: value for option in together for name, value in OPTIONS[option](case).items()}


def h_size(case):
    return R if "projection" in case.extra else H


def state_sizes(case):
    return [h_size(case)] + [H] * (case.states - 1)


def zoneout_of(case):
    return [random_mask((B, T, size), seed=k) * 0.75 for k, size in enumerate(state_sizes(case))]


def problem_of(case, time_steps=T):
    """A random problem whose weights are kernel, recurrent_kernel, bias and the case's own."""
    rng = np.random.default_rng(5)
    recurrent = (H,) if case.forward is reference.indrnn_forward else (h_size(case), case.gates * H)
    bias = (2, 3 * H) if case.forward is reference.gru_forward else (case.gates * H,)
    shapes = [(I, case.gates * H), recurrent, bias, *case.extra.values()]
    return Problem(
        rng.standard_normal((B, time_steps, I)),
        [rng.uniform(-1, 1, shape) for shape in shapes],
        [rng.uniform(-1, 1, (B, size)) for size in state_sizes(case)],
    )


def run(case, problem, **options):
    """(outputs, tape) of the case's forward pass."""
    own = dict(zip(case.extra, problem.weights[3:], strict=True))
    return case.forward(
        problem.x,
        *problem.weights[:3],
        initial_state=problem.initial_state,
        **case.settings,
        **own,
        **options,
    )


def check_case(case, rtol=1e-7, **options):
    """All gradients equal finite differences."""
    problem, options = problem_of(case), {"return_sequences": True, "return_state": True} | options
    outputs, tape = run(case, problem, **options)
    dy = random_gradients(outputs)
    expected = finite_differences(lambda p: inner_product(run(case, p, **options)[0], dy), problem)
    assert_close(case.backward(dy, tape), expected, rtol=rtol, what="gradients")


@cases
@pytest.mark.parametrize("option", OPTIONS)
def test_gradients_with_an_option_equal_finite_differences(case, option):
    check_case(case, **OPTIONS[option](case))


@cases
def test_gradients_with_layer_norm_equal_finite_differences(case):
    check_case(with_layer_norm(case), rtol=1e-6)  # small standard deviations: the loss is far from straight


@cases
@both_directions
@sequences_or_last
def test_gradients_with_all_options_equal_finite_differences(case, go_backwards, return_sequences):
    activation = {} if "activation" in case.settings else {"activation": "silu"}
    options = {"go_backwards": go_backwards, "return_sequences": return_sequences} | activation
    check_case(with_layer_norm(case), **all_options(case), **options)


@cases
@pytest.mark.parametrize("all_masked", [False, True], ids=["some", "all"])
def test_what_is_in_masked_steps_has_no_effect(case, all_masked):
    problem = problem_of(case)
    mask = BROKEN_ROWS & (not all_masked)
    results = []
    for padding in (0, np.nan, np.inf):
        x = np.where(mask[:, :, None], problem.x, padding)
        outputs, tape = run(case, problem._replace(x=x), mask=mask, return_sequences=True, return_state=True)
        gradients = case.backward(random_gradients(outputs), tape)
        assert not gradients.x[~mask].any()
        results.append([*outputs, gradients.x, *gradients.weights, *gradients.initial_state])
    assert_close(results[1], results[0], rtol=0)
    assert_close(results[2], results[0], rtol=0)


@cases
def test_a_mask_of_real_steps_changes_nothing(case):
    problem, options = problem_of(case), {"return_sequences": True, "return_state": True}
    outputs, tape = run(case, problem, **options)
    masked, masked_tape = run(case, problem, mask=np.ones((B, T), bool), **options)
    dy = random_gradients(outputs)
    assert_close(list(masked), list(outputs), rtol=0)
    assert_close(case.backward(dy, masked_tape), case.backward(dy, tape), rtol=0)


@cases
def test_zoneout_of_all_states_keeps_them_as_a_mask_does(case):
    problem = problem_of(case)
    keep = [np.broadcast_to(~BROKEN_ROWS[:, :, None], (B, T, size)) for size in state_sizes(case)]
    (y, *states), _ = run(case, problem, zoneout_mask=keep, return_state=True)
    (_, *expected), _ = run(case, problem, mask=BROKEN_ROWS, return_state=True)
    assert_close(states, expected, rtol=1e-14)
    assert_close(y, expected[0], rtol=1e-14)


@cases
def test_results_with_all_options_have_the_dtype_of_the_arrays(case):
    case = with_layer_norm(case)
    outputs, tape = run(case, problem_of(case).astype("float32"), return_state=True, **all_options(case))
    gradients = case.backward([None, *outputs[1:]], tape)
    arrays = [*outputs, gradients.x, *gradients.weights, *gradients.initial_state, *tape.gates().values()]
    assert {a.dtype for a in arrays} == {np.dtype("float32")}


@cases
@both_directions
def test_the_gates_on_the_tape_make_the_states(case, go_backwards):
    problem = problem_of(case)
    (y, *_), tape = run(
        case, problem, mask=BROKEN_ROWS, go_backwards=go_backwards, return_sequences=True, return_state=True
    )
    gates = tape.gates()
    real = BROKEN_ROWS[:, ::-1] if go_backwards else BROKEN_ROWS
    assert all((value[~real] == 0).all() for name, value in gates.items() if name != "c")
    if case.gates == 1:
        assert gates == {}
    elif case.gates == 3 and case.states == 1:
        z, _, n = gates.values()
        before = np.concatenate([problem.initial_state[0][:, None], y[:, :-1]], axis=1)
        h = np.where(y.any(axis=2, keepdims=True), y, problem.initial_state[0][:, None])
        before[:, 1:] = h[:, :-1]
        assert_close((z * before + (1 - z) * n)[real], y[real], rtol=1e-14)
    else:
        c, one = gates.pop("c"), np.ones((B, T, H))
        i, f, o = (gates.get(name, one) for name in "ifo")
        f = 1 - i if case.settings.get("variant") == "cifg" else f
        before = np.concatenate([problem.initial_state[1][:, None], c[:, :-1]], axis=1)
        assert_close(np.where(real[:, :, None], f * before + i * gates["g"], before), c, rtol=1e-14)
        if not case.extra:
            assert_close((o * np.tanh(c))[real], y[real], rtol=1e-14)


@pytest.mark.parametrize("cell", ["lstm", "gru", "gru_reset_before"])
def test_clipped_and_custom_activations_have_the_gradients_of_finite_differences(cell):
    sine = CustomActivation(np.sin, np.cos, clip=0.9)
    check_case(CASES[cell], activation=sine, recurrent_activation=Activation("sigmoid", clip=0.5))


# ---- Equations, written once more with PyTorch, one matrix for each gate


def check_against_torch(case, equations, **options):
    """Outputs and gradients equal those of equations(problem of tensors) -> [y, *states]."""
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    problem = problem_of(case)
    outputs, tape = run(case, problem, return_sequences=True, return_state=True, **options)
    dy = random_gradients(outputs)

    def tensor(a):
        return torch.tensor(a, requires_grad=True)

    tensors = Problem(tensor(problem.x), *([tensor(a) for a in field] for field in problem[1:]))
    results = equations(torch, tensors)
    assert_close(list(outputs), [r.detach().numpy() for r in results], rtol=1e-13, what="outputs")
    sum((r * torch.from_numpy(d)).sum() for r, d in zip(results, dy, strict=True)).backward()
    expected = Problem(tensors.x.grad.numpy(), *([a.grad.numpy() for a in field] for field in tensors[1:]))
    assert_close(case.backward(dy, tape), expected, rtol=1e-13, what="gradients")


@pytest.mark.parametrize("variant", reference.LSTM_GATES)
def test_the_variants_follow_the_equations_of_greff(variant):
    """arXiv:1503.04069, section 2 and appendix A.3; y is the output, z the block input."""

    def equations(torch, problem):
        W, R, b, *extra = problem.weights
        columns = {"z" if g == "g" else g: k for k, g in enumerate(reference.LSTM_GATES[variant])}
        p = dict(zip([g for g in "ifo" if g in columns], extra[0], strict=True)) if extra else {}
        gate_recurrence = extra[1] if variant == "fgr" else None
        y, c, *previous = problem.initial_state
        outputs = []
        for x in problem.x.unbind(1):

            def before(g, peephole, x=x, y=y, previous=tuple(previous)):
                at = slice(columns[g] * H, (columns[g] + 1) * H)
                a = x @ W[:, at] + y @ R[:, at] + b[at]
                if g in p:
                    a = a + p[g] * peephole
                if g != "z" and variant == "fgr":
                    to = slice("ifo".index(g) * H, ("ifo".index(g) + 1) * H)
                    for k, gate in enumerate(previous):
                        a = a + gate @ gate_recurrence[k * H : (k + 1) * H, to]
                return a

            z = before("z", None) if variant == "niaf" else torch.tanh(before("z", None))
            i = 1 if variant == "nig" else torch.sigmoid(before("i", c))
            if variant == "nfg":
                f = 1
            else:
                f = 1 - i if variant == "cifg" else torch.sigmoid(before("f", c))
            c = z * i + c * f
            o = 1 if variant == "nog" else torch.sigmoid(before("o", c))
            y = (c if variant == "noaf" else torch.tanh(c)) * o
            previous = [i, f, o] if variant == "fgr" else []
            outputs.append(y)
        return [torch.stack(outputs, 1), y, c, *previous]

    check_against_torch(CASES[f"lstm_{variant}"], equations)


def test_indrnn_follows_the_equation_of_li():
    def equations(torch, problem):
        W, u, b = problem.weights
        (h,), outputs = problem.initial_state, []
        for x in problem.x.unbind(1):
            h = torch.relu(x @ W + u * h + b)
            outputs.append(h)
        return [torch.stack(outputs, 1), h]

    check_against_torch(CASES["indrnn"]._replace(settings={}), equations)


def test_projection_equals_torch():
    def equations(torch, problem):
        W, U, b, P = problem.weights
        parameters = [W.T, U.T, b, torch.zeros_like(b), P.T]
        layer = torch.nn.LSTM(I, H, proj_size=R, batch_first=True, dtype=W.dtype)
        names = [name for name, _ in layer.named_parameters()]
        y, (h, c) = torch.func.functional_call(
            layer,
            dict(zip(names, parameters, strict=True)),
            (problem.x, tuple(s[None] for s in problem.initial_state)),
        )
        return [y, h[0], c[0]]

    check_against_torch(CASES["lstm_projection"], equations)


@pytest.mark.parametrize("cell", ["simple_rnn", "lstm", "gru"])
def test_layer_norm_follows_the_equations_of_ba_and_haste(cell):
    """haste, frameworks/pytorch/layer_norm_gru.py and the LSTM of arXiv:1607.06450, equations 20 to 22."""

    def equations(torch, problem):
        W, U, b, *cell_norm, gain = problem.weights
        b_x, b_h = b if cell == "gru" else (b, 0)

        def normalized(a, weight, bias=None):
            return torch.nn.functional.layer_norm(a, a.shape[-1:], weight, bias)

        (h, *c), outputs = problem.initial_state, []
        for x in problem.x.unbind(1):
            a_x = normalized(x @ W, gain[0]) + b_x
            a_h = normalized(h @ U, gain[1]) + b_h
            if cell == "simple_rnn":
                h = torch.tanh(a_x + a_h)
            elif cell == "gru":
                (x_z, x_r, x_n), (h_z, h_r, h_n) = a_x.chunk(3, 1), a_h.chunk(3, 1)
                z, r = torch.sigmoid(x_z + h_z), torch.sigmoid(x_r + h_r)
                h = z * h + (1 - z) * torch.tanh(x_n + r * h_n)
            else:
                i, f, g, o = (a_x + a_h).chunk(4, 1)
                c = [torch.sigmoid(f) * c[0] + torch.sigmoid(i) * torch.tanh(g)]
                h = torch.sigmoid(o) * torch.tanh(normalized(c[0], *cell_norm[0]))
            outputs.append(h)
        return [torch.stack(outputs, 1), h, *c]

    check_against_torch(with_layer_norm(CASES["lstm_cell_norm" if cell == "lstm" else cell]), equations)


@pytest.mark.parametrize("return_sequences", [True, False])
def test_masked_steps_are_not_computed(cell, return_sequences):
    """So that nothing can overflow there, whatever the state is, and callables see rows of real steps alone."""
    x, weights, states = random_problem(cell, 2, 4, 3, 5)
    for state in states:
        state[1] = np.inf
    mask = np.array([[True, True, False, True], [False] * 4])
    seen = []

    def identity(a):
        seen.append(len(a))
        return a

    options = {"return_sequences": return_sequences, "activation": (identity, np.ones_like)}
    forward, backward = CELLS[cell]
    y, tape = forward(x, *weights, mask=mask, initial_state=states, **options)
    assert set(seen) == {0, 1}
    gradients = backward(np.ones_like(y), tape)
    one, tape = forward(x[:1], *weights, mask=mask[:1], initial_state=[s[:1] for s in states], **options)
    expected = backward(np.ones_like(one), tape)
    assert_close(y, np.concatenate([one, np.zeros_like(one)]), 1e-14)
    assert_close(gradients.weights, expected.weights, 1e-14)
    assert_close(gradients.x[:1], expected.x, 1e-14)
    assert not gradients.x[1].any()
    assert all(np.isfinite(d).all() for d in gradients.initial_state)
