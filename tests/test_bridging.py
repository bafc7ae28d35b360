"""What bridges to frameworks are built on: outputs into given memory, tapes as arrays, proof that kernels ran."""

import numpy as np
import pytest
from support import CELLS, GATES, STATES, as_list, random_gradients, random_problem

import fastrnn
from fastrnn import functional


def weights_of(cell, problem):
    return functional.make_weights(
        cell, *problem.weights, chosen=("sigmoid", "tanh", "tanh"), name=f"functional.{cell}"
    )


@pytest.fixture
def given(cell, dtype):
    problem = random_problem(cell, 7, 5, 3, 20, dtype)
    return weights_of(cell, problem), problem


def halves(shape, dtype):
    return np.zeros((*shape[:2], 2 * shape[2]), dtype)[:, :, shape[2] :]


def time_first(shape, dtype):
    return np.zeros((shape[1], shape[0], shape[2]), dtype).transpose(1, 0, 2)


@pytest.mark.parametrize("layout", [halves, time_first])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_outputs_are_written_to_out(given, dtype, layout, masked, training):
    weights, (x, _, states) = given
    options = {"return_sequences": True, "lengths": [0, 5, 3, 2, 5, 1, 4] if masked else None}
    expected = functional.run(weights, x, initial_state=states, **options)
    out = layout(expected.shape, dtype)
    if training:
        y, _ = functional.run_forward(weights, x, initial_state=states, out=out, **options)
    else:
        y = functional.run(weights, x, initial_state=states, out=out, **options)
    assert y is out
    np.testing.assert_array_equal(out, expected)


def test_callables_write_to_out_too(dtype):
    x, (kernel, recurrent_kernel, bias), _ = random_problem("simple_rnn", 2, 4, 3, 5, dtype)
    pair = (np.tanh, lambda a: 1 - np.tanh(a) ** 2)
    out = np.zeros((2, 4, 5), dtype)
    y = functional.simple_rnn(
        x, kernel, recurrent_kernel, bias, activation=pair, return_sequences=True, out=out
    )
    assert y is out
    np.testing.assert_array_equal(
        out, functional.simple_rnn(x, kernel, recurrent_kernel, bias, activation=pair, return_sequences=True)
    )


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (np.zeros((2, 4, 5)), "float32"),
        (np.zeros((2, 4, 6), "float32"), r"\(2, 4, 5\)"),
        (np.zeros((2, 4, 10), "float32")[:, :, ::2], "next to each other"),
        (np.broadcast_to(np.zeros(5, "float32"), (2, 4, 5)), "read-only"),
        ([0], "NumPy array"),
    ],
)
def test_out_that_does_not_fit_is_refused(out, message):
    problem = random_problem("lstm", 2, 4, 3, 5, "float32")
    with pytest.raises((TypeError, ValueError), match=message):
        functional.run(weights_of("lstm", problem), problem.x, return_sequences=True, out=out)


def test_out_needs_all_outputs_and_memory_of_its_own():
    problem = random_problem("lstm", 2, 4, 5, 5, "float32")
    weights = weights_of("lstm", problem)
    with pytest.raises(ValueError, match="return_sequences"):
        functional.run(weights, problem.x, out=np.zeros((2, 4, 5), "float32"))


@pytest.mark.parametrize(
    "what", ["x", "initial_state", "zoneout_mask", "dropout_mask", "recurrent_dropout_mask", "kernel"]
)
def test_out_lies_in_no_memory_that_is_read(what):
    problem = random_problem("lstm", 2, 4, 5, 5, "float32")
    memory = np.zeros((4, 2, 5), "float32")
    out, options = memory.transpose(1, 0, 2), {}
    x, weights = problem.x, list(problem.weights)
    if what == "x":
        x = out
    elif what == "initial_state":
        options[what] = [memory[0], None]
    elif what == "zoneout_mask":
        options[what] = [None, out]
    elif what == "dropout_mask":
        options[what] = memory[0]
    elif what == "recurrent_dropout_mask":
        options[what] = memory.reshape(2, 4, 5)
    else:
        weights[0] = np.zeros((5, 20), "float32")
        out = weights[0].reshape(-1)[:40].reshape(2, 4, 5)
    with pytest.raises(ValueError, match=f"out must not reach into the memory of {what}"):
        functional.run(
            weights_of("lstm", problem._replace(weights=weights)),
            x,
            return_sequences=True,
            out=out,
            **options,
        )


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize(
    "returns", [{}, {"return_sequences": True, "return_state": True, "go_backwards": True}]
)
def test_a_tape_made_again_from_its_array_gives_the_same_gradients(
    given, cell, dtype, masked, dropout, returns
):
    weights, (x, _, states) = given
    rng = np.random.default_rng(3)
    options = dict(returns)
    if masked:
        options["mask"] = rng.random(x.shape[:2]) < 0.6
    if dropout:
        options["dropout_mask"] = rng.random((7, 3)).astype(dtype)
        options["recurrent_dropout_mask"] = rng.random((7, GATES[cell], 20)).astype(dtype)
    y, tape = functional.run_forward(weights, x, initial_state=states, **options)
    saved = tape.saved
    assert saved.shape == (7, 5, weights.tape_slots, 20)
    dy = random_gradients(y)
    again = functional.restore_tape(weights, saved, x, states, **options)
    first, second = functional.run_backward(dy, tape), functional.run_backward(dy, again)
    for a, b in zip(
        [first.x, *first.weights, *first.initial_state],
        [second.x, *second.weights, *second.initial_state],
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("return_state", [False, True])
@pytest.mark.parametrize("go_backwards", [False, True])
def test_rows_that_end_masked_have_a_last_output_of_zeros_without_gradient(
    given, cell, return_state, go_backwards
):
    weights, (x, _, states) = given
    mask = np.random.default_rng(3).random(x.shape[:2]) < 0.6
    ends = mask[:, 0 if go_backwards else -1]
    assert 0 < ends.sum() < len(ends) and mask.any(axis=1).all()
    options = {"mask": mask, "return_state": return_state, "go_backwards": go_backwards}
    last, _ = functional.run_forward(weights, x, initial_state=states, **options)
    options["zero_output_for_mask"] = True
    y, tape = functional.run_forward(weights, x, initial_state=states, **options)
    np.testing.assert_array_equal(as_list(y)[0], np.where(ends[:, None], as_list(last)[0], 0))
    np.testing.assert_equal(as_list(y)[1:], as_list(last)[1:])
    assert not tape.consumed and tape.nbytes and tape.weights is weights
    assert [gate.shape for gate in functional.gates(tape).values()] == [(7, 5, 20)] * (
        0 if cell in ("simple_rnn", "indrnn") else 5 if cell == "lstm" else 3
    )

    dy = random_gradients(y)
    again = functional.restore_tape(weights, tape.saved, x, states, **options)
    wrong = [as_list(dy)[0][1:], *as_list(dy)[1:]]
    for refused in (wrong if return_state else wrong[0], "zeros"):
        with pytest.raises((TypeError, ValueError), match=r"\.backward: dy"):
            functional.run_backward(refused, tape)
    gradients = functional.run_backward(dy, tape)
    assert tape.consumed
    np.testing.assert_equal(functional.run_backward(dy, again), gradients)
    if not return_state:
        reached = [gradients.x.any(axis=(1, 2)), *(d.any(axis=1) for d in gradients.initial_state)]
        np.testing.assert_array_equal(reached, [ends] * len(reached))


def test_a_tape_is_not_made_from_an_array_that_is_none(given, dtype):
    weights, (x, _, _) = given
    with pytest.raises(ValueError, match="saved must have shape"):
        functional.restore_tape(weights, np.zeros((7, 5, 9, 20), dtype), x)
    with pytest.raises(TypeError, match="saved"):
        functional.restore_tape(weights, np.zeros((7, 5, weights.tape_slots, 20), "float16"), x)


def test_kernel_calls_count_the_passes_of_each_cell(given, cell):
    weights, (x, _, _) = given
    before = fastrnn.kernel_calls()
    y, tape = functional.run_forward(weights, x)
    functional.run(weights, x)
    functional.run_step(weights, x[:, 0])
    functional.run_backward(np.ones_like(as_list(y)[0]), tape)
    with pytest.raises(ValueError):
        functional.run(weights, x[0])
    after = fastrnn.kernel_calls()
    assert set(CELLS) <= set(after) and STATES.keys() <= set(after)
    for name, calls in after.items():
        new = {direction: n - before[name][direction] for direction, n in calls.items()}
        assert new == ({"forward": 3, "backward": 1} if name == cell else {"forward": 0, "backward": 0})
