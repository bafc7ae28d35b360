"""Checkpoints against the same pass without them: outputs, gradients, masks across segments, memory."""

import numpy as np
import pytest
from support import as_list, assert_close, random_gradients, random_problem

from fastrnn import checkpoint, functional

B, T, I, H = 4, 13, 3, 5
TOLERANCE = {"float32": 128 * 2.0**-23, "float64": 1e-12}  # the bounds of test_functional.py
both_directions = pytest.mark.parametrize("go_backwards", [False, True], ids=["forwards", "backwards"])
sequences_or_last = pytest.mark.parametrize("return_sequences", [True, False], ids=["sequences", "last"])
some_lengths = pytest.mark.parametrize("every", [1, 3, T + 5, True])

# Rows: no mask; begins with masked steps, more than a segment of them; holes at and over the segments' borders, padding
# at the end; no real step.
MASK = (
    np.array(["1111111111111", "0000110110001", "1101001000000", "0000000000000"]).view("U1").reshape(4, T)
    == "1"
)


def weights_and_problem(cell, dtype="float64", sizes=(B, T, I, H)):
    problem = random_problem(cell, *sizes, dtype)
    return functional.Weights(cell, *problem.weights), problem


def forward_and_backward(module, weights, problem, dy=random_gradients, **options):
    """The outputs, and the gradients for random dy."""
    outputs, tape = module.run_forward(weights, problem.x, **options)
    return as_list(outputs), module.run_backward(dy(outputs), tape)


def assert_same(actual, expected, options):
    """The weights' gradients are equal to rounding, all else has the same bits; but the gradients of outputs that are
    repeated by masked steps are added up in another order."""
    (outputs, gradients), (expected_outputs, expected_gradients) = actual, expected
    np.testing.assert_equal(outputs, expected_outputs)
    tolerance = TOLERANCE[str(gradients.x.dtype)]
    assert_close(gradients, expected_gradients, tolerance)
    masked = options.get("mask") is not None or "lengths" in options
    if not (masked and options["return_sequences"] and not options.get("zero_output_for_mask")):
        np.testing.assert_array_equal(gradients.x, expected_gradients.x)
        np.testing.assert_equal(gradients.initial_state, expected_gradients.initial_state)
    assert {a.dtype for a in [*outputs, gradients.x, *gradients.weights, *gradients.initial_state]} == {
        outputs[0].dtype
    }


@some_lengths
@both_directions
@sequences_or_last
@pytest.mark.parametrize("return_state", [True, False], ids=["state", "no_state"])
@pytest.mark.parametrize("masked", ["no_mask", "mask", "zero_output"])
def test_outputs_and_gradients_equal_those_without_checkpoints(
    cell, dtype, every, go_backwards, return_sequences, return_state, masked
):
    weights, problem = weights_and_problem(cell, dtype)
    options = {
        "initial_state": problem.initial_state,
        "return_sequences": return_sequences,
        "return_state": return_state,
        "go_backwards": go_backwards,
        "mask": None if masked == "no_mask" else MASK,
        "zero_output_for_mask": masked == "zero_output",
    }
    expected = forward_and_backward(functional, weights, problem, **options)
    assert_same(forward_and_backward(checkpoint, weights, problem, every=every, **options), expected, options)


def test_random_masks_give_what_they_give_without_checkpoints(cell):
    rng = np.random.default_rng(0)
    weights, problem = weights_and_problem(cell)
    for trial in range(30):
        options = {
            "mask": rng.random((B, T)) < rng.uniform(0, 1),
            "return_sequences": bool(trial % 2),
            "go_backwards": bool(trial // 2 % 2),
        }
        expected = forward_and_backward(functional, weights, problem, **options)
        every = int(rng.integers(1, T))
        assert_same(
            forward_and_backward(checkpoint, weights, problem, every=every, **options), expected, options
        )


@both_directions
@sequences_or_last
def test_dropout_masks_lengths_and_threads_are_handed_on(cell, go_backwards, return_sequences):
    rng = np.random.default_rng(0)
    weights, problem = weights_and_problem(cell)
    gates = weights.arrays[0].shape[1] // H
    options = {
        "lengths": [13, 1, 6, 0],
        "dropout_mask": rng.integers(0, 2, (B, I)) * 2.0,
        "recurrent_dropout_mask": rng.integers(0, 2, (B, gates, H)) * 2.0,
        "threads": 1,
        "return_sequences": return_sequences,
        "go_backwards": go_backwards,
    }
    expected = forward_and_backward(functional, weights, problem, **options)
    assert_same(forward_and_backward(checkpoint, weights, problem, every=4, **options), expected, options)


@both_directions
@pytest.mark.parametrize("mask", [None, MASK], ids=["no_mask", "mask"])
def test_embeddings_by_ids(cell, go_backwards, mask):
    rng = np.random.default_rng(0)
    weights, problem = weights_and_problem(cell)
    problem = problem._replace(x=rng.integers(0, 7, (B, T)))
    options = {
        "embedding": rng.standard_normal((7, I)),
        "return_sequences": False,
        "mask": mask,
        "go_backwards": go_backwards,
    }
    expected = forward_and_backward(functional, weights, problem, **options)
    assert_same(forward_and_backward(checkpoint, weights, problem, every=4, **options), expected, options)


@both_directions
@pytest.mark.parametrize("mask", [None, MASK], ids=["no_mask", "mask"])
def test_gates_are_those_without_checkpoints(cell, go_backwards, mask):
    weights, problem = weights_and_problem(cell)
    options = {"initial_state": problem.initial_state, "mask": mask, "go_backwards": go_backwards}
    _, whole = functional.run_forward(weights, problem.x, **options)
    _, tape = checkpoint.run_forward(weights, problem.x, every=4, **options)
    np.testing.assert_equal(checkpoint.gates(tape), functional.gates(whole))


@sequences_or_last
@pytest.mark.parametrize("sizes", [(0, T, I, H), (B, 0, I, H), (B, T, 0, H), (70, 40, 8, 33)])
def test_any_sizes(sizes, return_sequences, cell):
    weights, problem = weights_and_problem(cell, "float32", sizes)
    options = {"return_sequences": return_sequences, "initial_state": problem.initial_state}
    for mask in (None, np.ones(sizes[:2], bool)):
        expected = forward_and_backward(functional, weights, problem, mask=mask, **options)
        actual = forward_and_backward(checkpoint, weights, problem, mask=mask, every=7, **options)
        assert_same(actual, expected, options)


@sequences_or_last
@pytest.mark.parametrize("given", [(), (0,), (1,), (2,), (0, 2)], ids=str)
def test_gradients_that_are_none_are_zeros(given, return_sequences):
    def some(outputs):
        dy = random_gradients(outputs)
        return [d if i in given else None for i, d in enumerate(dy)] if given else None

    weights, problem = weights_and_problem("lstm")
    options = {"return_sequences": return_sequences, "return_state": True, "mask": MASK}
    expected = forward_and_backward(functional, weights, problem, some, **options)
    assert_same(
        forward_and_backward(checkpoint, weights, problem, some, every=4, **options), expected, options
    )


def test_padding_is_never_read(cell):
    weights, problem = weights_and_problem(cell)
    problem.x[~MASK] = np.nan
    options = {"mask": MASK, "return_sequences": True, "every": 4}
    outputs, gradients = forward_and_backward(checkpoint, weights, problem, **options)
    assert all(np.isfinite(a).all() for a in [*outputs, gradients.x, *gradients.weights])
    assert not gradients.x[~MASK].any()


def test_a_tape_may_be_used_again():
    weights, problem = weights_and_problem("gru")
    y, tape = checkpoint.run_forward(weights, problem.x, every=True)
    first, second = (checkpoint.run_backward(y, tape) for _ in range(2))
    np.testing.assert_equal(second, first)


def test_arrays_of_the_caller_stay_as_they_were():
    weights, problem = weights_and_problem("lstm")
    y, tape = checkpoint.run_forward(
        weights, problem.x, problem.initial_state, every=4, mask=MASK, return_sequences=True
    )
    dy = random_gradients(y)
    given = [problem.x, *problem.weights, *problem.initial_state, y, dy]
    before = [a.copy() for a in given]
    checkpoint.run_backward(dy, tape)
    np.testing.assert_equal(given, before)


@pytest.mark.parametrize(("steps", "every"), [(0, 1), (1, 1), (2, 2), (100, 10), (101, 11)])
def test_true_means_the_square_root_of_the_steps(steps, every):
    weights, problem = weights_and_problem("simple_rnn", sizes=(1, steps, I, H))
    assert checkpoint.run_forward(weights, problem.x, every=True)[1].every == every


def test_what_is_kept_grows_with_the_square_root_of_the_steps():
    def kept(steps):
        weights, problem = weights_and_problem("lstm", sizes=(1, steps, I, H))
        return checkpoint.run_forward(weights, problem.x, every=True)[1].nbytes

    assert kept(10_000) == 10 * kept(100) == 100 * 2 * H * 8  # two states of doubles per segment


def test_training_on_a_long_sequence_takes_little_memory(run_python):
    """A tape of all steps would take 20,000 * 8 * 6 * 64 * 4 bytes = 246 MB; x, dx and y take 10 MB each."""
    megabytes = run_python(
        """
        import resource
        import numpy as np
        from fastrnn import checkpoint, functional

        rng = np.random.default_rng(0)
        def normal(*shape): return rng.standard_normal(shape, "float32") * np.float32(0.1)
        def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
        def train(T):
            y, tape = checkpoint.run_forward(weights, normal(8, T, 16), every=True)
            checkpoint.run_backward(np.ones_like(y), tape)

        weights = functional.Weights("lstm", normal(16, 256), normal(64, 256), normal(256))
        train(100)
        before = peak()
        train(20_000)
        print(peak() - before)
        """
    )
    assert float(megabytes) < 60


# ---- Wrong arguments


@pytest.mark.parametrize(
    ("every", "error"),
    [
        (0, ValueError),
        (-1, ValueError),
        (False, ValueError),
        (1.5, TypeError),
        (None, TypeError),
        ("3", TypeError),
    ],
)
def test_the_steps_between_checkpoints_must_be_a_positive_integer(every, error):
    weights, problem = weights_and_problem("gru")
    with pytest.raises(error, match=f"^gru: the steps between checkpoints must be .* got {every!r};"):
        checkpoint.run_forward(weights, problem.x, every=every)


WRONG = {
    "x_of_two_axes": {"x": np.zeros((B, I))},
    "x_a_list": {"x": [[[1.0] * I] * T]},
    "dtype": {"x": np.zeros((B, T, I), "float32")},
    "mask_too_long": {"mask": np.ones((B, T + 1), bool)},
    "mask_too_short": {"mask": np.ones((B, T - 1), bool)},
    "mask_a_list": {"mask": [[True] * T] * B},
    "mask_of_numbers": {"mask": np.ones((B, T))},
    "masked_array": {"x": np.ma.zeros((B, T, I))},
    "lengths_too_large": {"lengths": [T + 1] * B},
    "states": {"initial_state": [np.zeros((B, H))]},
    "flag": {"return_sequences": 1},
}
WRONG_GRADIENTS = {
    "no_list": lambda dy: dy[0],
    "too_few": lambda dy: dy[:2],
    "too_long": lambda dy: [np.concatenate([dy[0], dy[0]], axis=1), *dy[1:]],
    "last_only": lambda dy: [dy[0][:, -1], *dy[1:]],
    "nested_list": lambda dy: [dy[0].tolist(), *dy[1:]],
    "dtype": lambda dy: [d.astype("float32") for d in dy],
    "state": lambda dy: [dy[0], dy[1][:2], dy[2]],
}


def refusal(call, *arguments, **keywords):
    with pytest.raises((TypeError, ValueError)) as caught:
        call(*arguments, **keywords)
    return caught.type, str(caught.value)


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_wrong_arguments_are_refused_as_without_checkpoints(wrong):
    weights, problem = weights_and_problem("lstm")
    arguments = {"weights": weights, "x": problem.x} | wrong
    expected = refusal(functional.run_forward, **arguments)
    assert refusal(checkpoint.run_forward, **arguments, every=4) == expected


@pytest.mark.parametrize("wrong", WRONG_GRADIENTS.values(), ids=WRONG_GRADIENTS)
def test_wrong_gradients_are_refused_as_without_checkpoints(wrong):
    weights, problem = weights_and_problem("lstm")
    options = {"return_sequences": True, "return_state": True}
    outputs, tape = functional.run_forward(weights, problem.x, **options)
    dy = wrong(random_gradients(outputs))
    expected = refusal(functional.run_backward, dy, tape)
    _, tape = checkpoint.run_forward(weights, problem.x, every=4, **options)
    assert refusal(checkpoint.run_backward, dy, tape) == expected
