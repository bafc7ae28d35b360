"""Masks, dropout masks, activations and LSTM variants in the kernels: every combination against the reference."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from support import CELLS, GATES, STATES, Reference, as_list, assert_close, random_gradients

import fastrnn
from fastrnn import activations, functional, reference


class Case(NamedTuple):
    """A cell in the kernels and in the reference, and the shapes of its weights."""

    functions: tuple[Any, Any, Any]  # inference, forward, backward
    reference: Reference
    gates: int
    states: int
    peepholes: int = 0
    projected: bool = False
    settings: dict[str, Any] = {}  # noqa: RUF012  (of the functions of both)


def functions(name):
    return tuple(getattr(functional, name + suffix) for suffix in ("", "_forward", "_backward"))


CASES = {
    name: Case(functions(name), CELLS[name], GATES[name], STATES[name])
    for name in ("simple_rnn", "lstm", "gru")
}
CASES["gru_reset_before"] = CASES["gru"]._replace(settings={"reset_after": False})
CASES["indrnn"] = Case(
    functions("indrnn"), Reference(reference.indrnn_forward, reference.indrnn_backward), 1, 1
)
for variant in functional.VARIANTS:
    gates = reference.LSTM_GATES[variant]
    for peepholes in {0, len(set(gates) - {"g"})} if variant != "np" else {0}:
        CASES[f"lstm_{variant}_{peepholes}"] = Case(
            functions("lstm"),
            CELLS["lstm"],
            len(gates),
            5 if variant == "fgr" else 2,
            peepholes,
            settings={"variant": variant},
        )

for peepholes in (0, 3):
    CASES[f"lstm_projected_{peepholes}"] = Case(functions("lstm"), CELLS["lstm"], 4, 2, peepholes, True)
CASES["lstm_fgr_projected"] = Case(
    functions("lstm"), CELLS["lstm"], 4, 5, 0, True, settings={"variant": "fgr"}
)

SMOOTH = [
    "tanh",
    "sigmoid",
    "linear",
    "softsign",
    "softplus",
    "log_sigmoid",
    "silu",
    "gelu",
    "mish",
]
SMOOTH += ["elu", "celu", "squareplus", "scaled_tanh"]


def random_problem(case, B, T, I, H, dtype, seed, bias=True):
    """x, weights and initial states; small, so that activations without bounds stay near 1."""
    rng = np.random.default_rng(seed)
    G = case.gates
    R = int(rng.integers(1, H + 1)) if case.projected else H  # how wide h is
    recurrent = (H,) if case is CASES["indrnn"] else (R, G * H)
    rows = (2,) if case.functions[0] is functional.gru and case.settings.get("reset_after", True) else ()
    shapes = [(I, G * H), recurrent, *([(*rows, G * H)] if bias else [])]
    weights = [0.7 * rng.standard_normal(s) / np.sqrt(max(1, s[0])) for s in shapes]
    others = {"peephole": 0.5 * rng.standard_normal((case.peepholes, H))} if case.peepholes else {}
    if case.states == 5:
        others["gate_kernel"] = 0.7 * rng.standard_normal((3 * H, 3 * H)) / np.sqrt(H)
    if case.projected:
        others["projection"] = 0.7 * rng.standard_normal((H, R)) / np.sqrt(H)
    x = rng.standard_normal((B, T, I))
    states = [rng.uniform(-1, 1, (B, H if s else R)) for s in range(case.states)]
    return (
        x.astype(dtype),
        [w.astype(dtype) for w in weights],
        {name: w.astype(dtype) for name, w in others.items()},
        [s.astype(dtype) for s in states],
    )


def random_norms(case, H, rng, dtype="float64"):
    """Layer normalization of the products, and of an LSTM's c."""
    norms = {"layer_norm": rng.uniform(0.5, 1.5, (2, case.gates * H)).astype(dtype)}
    if case.functions[0] is functional.lstm:
        norms["cell_norm"] = rng.uniform(-1, 1, (2, H)).astype(dtype)
    return norms


def random_mask(kind, B, T, rng):
    """None, or a mask [B, T] that leaves out steps at the end, at the beginning, or anywhere, and some rows."""
    if kind == "none":
        return None
    lengths = rng.integers(0, T + 1, B)[:, None]
    return {
        "right": np.arange(T) < lengths,
        "left": np.arange(T) >= lengths,
        "holes": rng.random((B, T)) < 0.6,
        "nothing": np.zeros((B, T), bool),
    }[kind]


def factors(shape, rng, dtype):
    return ((rng.random(shape) < 0.6) / 0.6).astype(dtype)


def random_zoneout(T, state, rng):
    """For one state: a mask, one rate everywhere, or nothing."""
    shape = (len(state), T, state.shape[1])
    kinds = [
        lambda: (rng.random(shape) < 0.4).astype(state.dtype),
        lambda: np.broadcast_to(np.full(shape[2], 0.3, state.dtype), shape),
        lambda: None,
    ]
    return kinds[rng.integers(3)]()


@st.composite
def problems(draw, names=tuple(CASES), normalized=True, rows=(1, 19), steps=(0, 7), units=(1, 37)):
    """A case with all that its functions take."""
    case = CASES[draw(st.sampled_from(names))]
    B, T, I, H = (draw(st.integers(*range_)) for range_ in [rows, steps, (0, 6), units])
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dtype = draw(st.sampled_from(["float32", "float64"]))
    x, weights, others, states = random_problem(case, B, T, I, H, dtype, rng, draw(st.booleans()))
    mask = random_mask(draw(st.sampled_from(["none", "right", "left", "holes", "nothing"])), B, T, rng)
    names = (
        SMOOTH if dtype == "float32" else sorted(set(activations.NAMES) - {"exponential"})
    )  # it grows beyond bounds
    chosen = {"activation": draw(st.sampled_from(["tanh", *names]))}
    if case.functions[0] in (functional.lstm, functional.gru):
        chosen["recurrent_activation"] = draw(st.sampled_from(["sigmoid", "sigmoid", "hard_sigmoid", "tanh"]))
    options = {
        "initial_state": draw(st.sampled_from([None, states])),
        "mask": mask,
        "zero_output_for_mask": draw(st.booleans()),
        "dropout_mask": draw(
            st.sampled_from([None, factors((B, I), rng, dtype), factors((B, case.gates, I), rng, dtype)])
        ),
        "recurrent_dropout_mask": draw(
            st.sampled_from([None, factors((B, case.gates, states[0].shape[1]), rng, dtype)])
        ),
        "zoneout_mask": draw(st.sampled_from([None, None, [random_zoneout(T, s, rng) for s in states]])),
        "return_sequences": draw(st.booleans()),
        "return_state": draw(st.booleans()),
        "go_backwards": draw(st.booleans()),
    }
    # In float32, what is nearly constant and is then normalized leaves no digits to compare.
    if normalized and dtype == "float64":
        others |= draw(st.sampled_from([{}, {}, random_norms(case, H, rng)]))
    if draw(st.booleans()):  # the fused kernels
        chosen, options = (
            {},
            options | dict.fromkeys(("dropout_mask", "recurrent_dropout_mask", "zoneout_mask")),
        )
        if case is CASES["indrnn"]:
            chosen = {"activation": "softplus"}  # no kink
    return case, x, weights, case.settings | others | chosen | options


def wide(value):
    """Arrays as float64, in lists and dicts too."""
    if isinstance(value, dict):
        return {name: wide(v) for name, v in value.items()}
    if isinstance(value, list):
        return [wide(v) for v in value]
    return value.astype("float64") if isinstance(value, np.ndarray) and value.dtype.kind == "f" else value


def without(array, mask):
    """x with NaN where there is no step: what nobody may read."""
    return array if mask is None else np.where(mask[..., None], array, np.nan).astype(array.dtype)


@hypothesis.given(problems())
@hypothesis.settings(max_examples=100)
def test_every_combination_of_options_equals_the_reference(isa, problem):
    case, x, weights, options = problem
    inference, forward, backward = case.functions
    rtol = 1e-12 if x.dtype == "float64" else 2e-5
    if "layer_norm" in options:
        rtol *= 1e3  # a division by a standard deviation of 0.003 or more, at each step
    expected, expected_tape = case.reference.forward(wide(x), *wide(weights), **wide(options))
    padded = without(x, options["mask"])
    outputs, tape = forward(padded, *weights, **options)
    assert_close(as_list(outputs), as_list(expected), rtol, "outputs")
    for one, other in zip(as_list(outputs), as_list(inference(padded, *weights, **options)), strict=True):
        np.testing.assert_array_equal(one, other)
    dy = random_gradients(outputs)
    expected_gradients = case.reference.backward(wide(dy), expected_tape)
    assert_close(backward(dy, tape), expected_gradients, 10 * rtol, "gradients")


@hypothesis.given(problems())
def test_gates_of_a_tape_equal_those_of_the_reference(problem):
    case, x, weights, options = problem
    _, expected = case.reference.forward(wide(x), *wide(weights), **wide(options))
    outputs, tape = case.functions[1](x, *weights, **options)
    gates = functional.gates(tape)
    assert gates.keys() == expected.gates().keys()
    for name, value in expected.gates().items():
        assert_close(gates[name], value, 1e-9 if x.dtype == "float64" else 2e-5, name)
    case.functions[2](random_gradients(outputs), tape)
    with pytest.raises(RuntimeError, match="already used; look at the gates before backward"):
        functional.gates(tape)


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith(("indrnn", "lstm_fgr"))])
def test_normalization_in_float32_equals_the_reference(isa, name):
    case, B, T, H = CASES[name], 9, 12, 37
    rng = np.random.default_rng(0)
    x, weights, others, states = random_problem(case, B, T, 20, H, "float32", rng)
    options = case.settings | others | random_norms(case, H, rng, "float32")
    options |= {"initial_state": states, "return_sequences": True, "return_state": True}
    before = fastrnn.kernel_calls()
    outputs, tape = case.functions[1](x, *weights, **options)
    gradients = case.functions[2](dy := random_gradients(outputs), tape)
    assert fastrnn.kernel_calls() != before
    expected, expected_tape = case.reference.forward(wide(x), *wide(weights), **wide(options))
    assert_close(as_list(outputs), as_list(expected), 1e-5, "outputs")
    assert_close(gradients, case.reference.backward(wide(list(dy)), expected_tape), 1e-4, "gradients")


@pytest.mark.parametrize("wrong", [None, np.zeros(3), "tape"], ids=repr)
def test_gates_of_what_is_no_tape_are_refused(wrong):
    with pytest.raises(
        TypeError, match=r"^functional\.gates: tape must be what a forward pass returned as its sec"
    ):
        functional.gates(wrong)


@pytest.mark.parametrize("shared", [False, True])
def test_ids_of_an_embedding_equal_its_rows(isa, cell, dtype, shared):
    case = CASES[cell]
    rng = np.random.default_rng(0)
    _, weights, _, _ = random_problem(case, 5, 6, 4, 9, dtype, rng)
    embedding = rng.standard_normal((7, 4)).astype(dtype)
    ids, mask = rng.integers(0, 7, (5, 6), "int32"), rng.random((5, 6)) < 0.7
    dropout = {"dropout_mask": factors((5, 4) if shared else (5, case.gates, 4), rng, dtype)}
    padded = np.where(mask, ids, -1)  # masked ids may be anything
    for options in ({}, {"mask": mask, "go_backwards": True} | dropout):
        options = options | case.settings | {"return_sequences": True}
        rows, rows_tape = case.functions[1](embedding[ids], *weights, **options)
        given = padded if "mask" in options else ids
        outputs, tape = case.functions[1](given, *weights, embedding=embedding, **options)
        np.testing.assert_array_equal(outputs, rows)
        np.testing.assert_array_equal(
            case.functions[0](given, *weights, embedding=embedding, **options), rows
        )
        dy = random_gradients(outputs)
        gradients, expected = case.functions[2](dy, tape), case.functions[2](dy, rows_tape)
        assert_close(gradients, expected, 0)
        dense = np.zeros_like(embedding, "float64")
        for b, t in np.ndindex(ids.shape):
            dense[ids[b, t]] += expected.x[b, t]
        assert_close(functional.embedding_gradient(ids, gradients.x, 7), dense, 1e-5)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"ids": np.array([[0, 7, 1]])}, ValueError, "ids must have ids from 0 to 6, .*, got 7"),
        ({"ids": np.array([[0, 1, -1]])}, ValueError, "ids must have ids from 0 to 6, .*, got -1"),
        ({"ids": np.zeros((1, 3))}, TypeError, "ids must be integers, rows of the embedding, got float64; "),
        (
            {"dx": np.zeros((1, 2, 4))},
            ValueError,
            r"dx must have shape \(1, 3, 'I'\) to go with the ids, got",
        ),
        ({"mask": np.ones((1, 3))}, TypeError, "mask must be an array of bool, got float64; "),
        ({"mask": np.ones((3, 1), bool)}, ValueError, r"mask must have shape \(1, 3\), that of the ids, got"),
    ],
)
def test_an_embeddings_gradient_refuses_what_does_not_fit(change, error, message):
    fits = {"ids": np.zeros((1, 3), int), "dx": np.zeros((1, 3, 4)), "rows": 7}
    with pytest.raises(error, match=rf"^functional\.embedding_gradient: {message}"):
        functional.embedding_gradient(**fits | change)


def test_masked_ids_have_no_say_in_an_embeddings_gradient(dtype):
    rng = np.random.default_rng(0)
    ids, dx, mask = rng.integers(0, 7, (5, 6)), rng.standard_normal((5, 6, 4)), rng.random((5, 6)) < 0.6
    dx = dx.astype(dtype)
    expected = functional.embedding_gradient(ids, np.where(mask[:, :, None], dx, 0), 7)
    assert expected.dtype == dtype
    np.testing.assert_array_equal(
        functional.embedding_gradient(np.where(mask, ids, -(10**9)), dx, 7, mask), expected
    )


def test_ids_and_masks_may_change_before_backward():
    """They are copied: nothing that was not checked is ever read."""
    rng = np.random.default_rng(0)
    _, weights, _, _ = random_problem(CASES["lstm"], 3, 6, 4, 5, "float32", rng)
    embedding, ids = rng.standard_normal((7, 4)).astype("float32"), rng.integers(0, 7, (3, 6))
    mask = rng.random((3, 6)) < 0.5
    outputs, tape = functional.lstm_forward(ids, *weights, embedding=embedding, mask=mask)
    expected = functional.lstm_backward(
        np.ones_like(outputs), functional.lstm_forward(ids, *weights, embedding=embedding, mask=mask)[1]
    )
    ids[:], mask[:] = 10**11, True
    assert_close(functional.lstm_backward(np.ones_like(outputs), tape), expected, 0)


@pytest.mark.parametrize("name", sorted(activations.NAMES))
@pytest.mark.parametrize("clip", [None, 0.75])
def test_activations_at_their_limits_equal_those_in_python(isa, dtype, name, clip):
    """Kinks, clips, large values, infinity, NaN without its sign bit, which has a say in slopes of kinds with kinks."""
    activation = activations.Activation(name, clip=clip)
    a = np.array(
        [0.0, 0.75, -0.75, 0.5, -0.5, 1.0, -1.0, 3.5, -3.5, 7.0, 50.0, -50.0, np.inf, -np.inf, np.nan]
    )
    a = a.astype(dtype)
    one, none = np.ones((1, 1), dtype), np.zeros((1, 1), dtype)
    outputs, tape = functional.simple_rnn_forward(a[:, None, None], one, none, activation=activation)
    rtol = 1e-12 if dtype == "float64" else 2e-6
    np.testing.assert_allclose(outputs[:, 0], activation(a), rtol=rtol, atol=rtol)
    dx = functional.simple_rnn_backward(np.ones_like(outputs), tape).x[:, 0, 0]
    np.testing.assert_allclose(dx, activation.gradient(a, np.ones_like(a)), rtol=rtol, atol=rtol)


@pytest.mark.parametrize(
    ("threads", "error", "message"),
    [
        (-1, ValueError, r"at least 1, or 0 for get_num_threads\(\), got -1$"),
        (-(2**31), ValueError, r"at least 1, or 0 for get_num_threads\(\), got -2147483648$"),
        (-(2**80), ValueError, r"at least 1, or 0 for get_num_threads\(\), got -12089"),
        (1.0, TypeError, r"an integer, got 1.0; 0 means get_num_threads\(\)$"),
        (True, TypeError, "an integer, got True; "),
        (None, TypeError, "an integer, got None; "),
        ("2", TypeError, "an integer, got '2'; "),
        (np.ones(2, int), TypeError, "an integer, got array"),
    ],
    ids=str,
)
@pytest.mark.parametrize("activation", ["tanh", (np.tanh, np.cos)], ids=["kernels", "callables"])
def test_threads_must_be_a_number_of_them(threads, error, message, activation):
    x, weights, _, _ = random_problem(CASES["lstm"], 3, 5, 2, 4, "float32", 0)
    with pytest.raises(error, match=rf"^functional\.lstm: threads must be {message}"):
        functional.lstm(x, *weights, activation=activation, threads=threads)
    y, tape = functional.lstm_forward(x, *weights, activation=activation)
    with pytest.raises(error, match=rf"^functional\.lstm\.backward: threads must be {message}"):
        functional.lstm_backward(y, tape, threads=threads)
    functional.lstm_backward(y, tape)  # the tape survived


@pytest.mark.parametrize("threads", [0, 1, 3, np.int16(2), 2**80], ids=str)
def test_results_do_not_depend_on_threads_of_a_call(cell, threads):
    case = CASES[cell]
    x, weights, _, _ = random_problem(case, 3, 5, 2, 4, "float32", 0)
    y, tape = case.functions[1](x, *weights, **case.settings)
    expected = case.functions[2](y, tape)
    again, tape = case.functions[1](x, *weights, **case.settings, threads=threads)
    assert_close(again, y, 0)
    assert_close(case.functions[2](y, tape, threads=threads), expected, 0)


@pytest.mark.parametrize(
    ("lengths", "error", "message"),
    [
        (
            [2**70, 1, 1],
            ValueError,
            "lengths must be from 0 to 5, the time steps of x, got 1180591620717411303424; ",
        ),
        (
            [2**63, -1, 1],
            ValueError,
            "lengths must be from 0 to 5, the time steps of x, got 9223372036854775808; ",
        ),
        (
            [-(2**70), 1, 1],
            ValueError,
            "lengths must be from 0 to 5, the time steps of x, got -11805916207174113",
        ),
        ([], ValueError, r"lengths must have shape \(3,\), one for each row, got \(0,\)"),
        (3, ValueError, r"lengths must have shape \(3,\), one for each row, got \(\)"),
        ([1.0, 2.0, 3.0], TypeError, "lengths must be integers, got float64; "),
        ([True, False, True], TypeError, "lengths must be integers, got bool; "),
        (["1", "2", "3"], TypeError, "lengths must be integers, got <U1; "),
        ([None, 1, 2], TypeError, "lengths must be integers, got object; "),
        ([[1], [2, 3], [4]], ValueError, "lengths must be an array, got a list that NumPy makes none of "),
        (np.ma.array([1, 2, 3]), TypeError, "lengths must be a plain array, got a masked array; "),
    ],
    ids=str,
)
def test_impossible_lengths_are_refused(lengths, error, message):
    x, weights, _, _ = random_problem(CASES["lstm"], 3, 5, 2, 4, "float32", 0)
    with pytest.raises(error, match=rf"^functional\.lstm: {message}"):
        functional.lstm(x, *weights, lengths=lengths)
    with pytest.raises(error, match=rf"^LSTM: {message}"):
        fastrnn.LSTM(4)(x, lengths=lengths)


def test_lengths_of_no_rows_may_be_an_empty_list():
    assert fastrnn.LSTM(4)(np.zeros((0, 5, 2), "float32"), lengths=[]).shape == (0, 4)


def test_a_list_as_x_is_refused_with_lengths_and_taken_by_layers():
    _, weights, _, _ = random_problem(CASES["lstm"], 3, 5, 2, 4, "float32", 0)
    x = np.ones((3, 5, 2), "float32")
    with pytest.raises(
        TypeError, match=r"^functional\.lstm: x must be a NumPy array, got list; convert it with"
    ):
        functional.lstm(x.tolist(), *weights, lengths=[1, 2, 3])
    for layer in (fastrnn.LSTM(4), fastrnn.RNN(fastrnn.LSTMCell(4)), fastrnn.Bidirectional(fastrnn.GRU(4))):
        np.testing.assert_array_equal(layer(x.tolist(), lengths=[1, 2, 3]), layer(x, lengths=[1, 2, 3]))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"variant": np.zeros(3)}, ValueError, r"variant must be one of None, 'vanilla', .*, got array\(\["),
        ({"recurrent_activation": 3}, TypeError, "an activation must be a name, .*, got 3; "),
    ],
    ids=str,
)
def test_impossible_variants_and_activations_are_refused(options, error, message):
    x, weights, _, _ = random_problem(CASES["lstm"], 3, 5, 2, 4, "float64", 0)
    for function in (functional.lstm, functional.lstm_forward):
        with pytest.raises(error, match=rf"^functional\.lstm: {message}"):
            function(x, *weights, **options)


@pytest.mark.parametrize(
    ("ids", "embedding", "error", "message"),
    [
        (
            np.full((2, 3), 7),
            (7, 4),
            ValueError,
            "x must have ids from 0 to 6, the rows of the embedding, got 7 at [0, 0]",
        ),
        (
            np.full((2, 3), -1),
            (7, 4),
            ValueError,
            "x must have ids from 0 to 6, the rows of the embedding, got -1 at [0, 0]",
        ),
        (
            np.zeros((2, 3)),
            (7, 4),
            TypeError,
            "x must be integers, rows of the embedding, got float64; convert it with",
        ),
        (
            np.zeros((2, 3, 1), int),
            (7, 4),
            ValueError,
            "x must have shape [batch, time], ids that an embedding is given",
        ),
        (
            np.zeros((2, 3), int),
            (7, 5),
            ValueError,
            "embedding must have shape [any, 4] to go with a kernel of shape",
        ),
    ],
)
def test_impossible_ids_are_refused(ids, embedding, error, message):
    _, weights, _, _ = random_problem(CASES["lstm"], 2, 3, 4, 5, "float32", 0)
    with pytest.raises(error) as caught:
        functional.lstm(ids, *weights, embedding=np.zeros(embedding, "float32"))
    assert str(caught.value).startswith(f"functional.lstm: {message}")


@hypothesis.given(problems(rows=(1, 8), steps=(1, 5), units=(1, 70)), st.sampled_from("CF"))
@hypothesis.settings(max_examples=100)
def test_first_call_of_weights_with_few_rows_has_the_bits_of_the_second(isa, problem, order):
    """The first reads the weights where they lie, the second packs them."""
    case, x, weights, options = problem
    options |= {n: options[n].copy(order) for n in ("projection", "peephole") if n in options}
    y, tape = case.functions[1](x, *(w.copy(order) for w in weights), **options)
    of_call = {name: value for name, value in options.items() if name in functional.Options.__annotations__}
    again, other = functional.run_forward(tape.weights, x, **of_call)
    for one, two in zip(as_list(y), as_list(again), strict=True):
        np.testing.assert_array_equal(one, two)
    for one, two in zip(
        functional.run_backward(random_gradients(y), tape),
        functional.run_backward(random_gradients(y), other),
        strict=True,
    ):
        for a, b in zip(as_list(one), as_list(two), strict=True):
            np.testing.assert_array_equal(a, b)


@hypothesis.given(problems())
@hypothesis.settings(max_examples=50)
def test_results_do_not_depend_on_threads(isa, problem):
    case, x, weights, options = problem

    def run(threads):
        outputs, tape = case.functions[1](x, *weights, threads=threads, **options)
        gradients = case.functions[2](random_gradients(outputs), tape)
        return [*as_list(outputs), gradients.x, *gradients.weights, *gradients.initial_state]

    fastrnn.set_num_threads(3)
    x = np.concatenate([x] * 1)
    for one, other in zip(run(1), run(0), strict=True):
        np.testing.assert_array_equal(one, other)


def leaving_out_initial_states_changes_nothing_else(case, x, weights, options):
    def gradients(**asked):
        outputs, tape = case.functions[1](x, *weights, **options)
        return functional.run_backward(random_gradients(outputs), tape, **asked)

    every, others = gradients(), gradients(with_initial_state=False)
    assert every.initial_state and others.initial_state == []
    np.testing.assert_array_equal(others.x, every.x)
    for one, other in zip(others.weights, every.weights, strict=True):
        np.testing.assert_array_equal(one, other)


@hypothesis.given(problems())
@hypothesis.settings(max_examples=50)
def test_gradients_of_initial_states_can_be_left_out(isa, problem):
    leaving_out_initial_states_changes_nothing_else(*problem)


@pytest.mark.parametrize("rows", [2, 50])
def test_gradients_of_initial_states_can_be_left_out_by_several_threads(isa, cell, dtype, rows):
    """Threads that divide the units, and those that divide the batch."""
    fastrnn.set_num_threads(2)
    case = CASES[cell]
    x, weights, _, _ = random_problem(case, rows, 20, 40, 150, dtype, np.random.default_rng(4))
    leaving_out_initial_states_changes_nothing_else(case, x, weights, case.settings)


def test_a_wrong_with_initial_state_is_refused():
    case = CASES["lstm"]
    x, weights, _, _ = random_problem(case, 2, 3, 4, 5, "float32", np.random.default_rng(4))
    for activation in ("tanh", (np.tanh, lambda y: 1 - y * y)):
        outputs, tape = case.functions[1](x, *weights, activation=activation)
        with pytest.raises(
            TypeError, match=r"functional\.lstm: with_initial_state must be True or False, got str"
        ):
            functional.run_backward(outputs, tape, with_initial_state="no")


def test_large_masked_batches_do_not_depend_on_threads_and_equal_the_rows_alone(isa, cell, dtype):
    """Large enough for several threads, parts and chunks."""
    case = CASES[cell]
    rng = np.random.default_rng(3)
    x, weights, _, states = random_problem(case, 70, 40, 20, 50, dtype, rng)
    options = {
        "mask": random_mask("holes", 70, 40, rng) & random_mask("right", 70, 40, rng),
        "initial_state": states,
        "return_sequences": True,
        "return_state": True,
    } | case.settings
    fastrnn.set_num_threads(2)
    results = []
    for threads in (1, 2):
        outputs, tape = case.functions[1](x, *weights, threads=threads, **options)
        gradients = case.functions[2](random_gradients(outputs), tape)
        results.append([*outputs, gradients.x, *gradients.weights, *gradients.initial_state])
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)
    half = slice(20, 45)
    options |= {"mask": options["mask"][half], "initial_state": [s[half] for s in states]}
    for whole, part in zip(results[0], case.functions[0](x[half], *weights, **options), strict=False):
        np.testing.assert_array_equal(whole[half], part)
    wide_options = wide(options)
    expected, expected_tape = case.reference.forward(wide(x[half]), *wide(weights), **wide_options)
    outputs, tape = case.functions[1](x[half], *weights, **options)
    rtol = 1e-12 if dtype == "float64" else 5e-6
    assert_close(outputs, expected, rtol)
    dy = random_gradients(outputs)
    assert_close(
        case.functions[2](dy, tape), case.reference.backward(wide(list(dy)), expected_tape), 20 * rtol
    )


@pytest.mark.parametrize("dropout", [False, True], ids=["plain", "dropout"])
@pytest.mark.parametrize("name", ["lstm", "gru_reset_before", "lstm_projected_0"])
def test_threads_may_have_shares_of_very_different_sizes_of_a_ragged_batch(isa, name, dropout):
    """Weights that no cache holds, in deep panels; few long rows for one thread, many short ones for the other."""
    case = CASES[name]
    rng = np.random.default_rng(5)
    B, T, I, H = 100, 8, 700, 1100 if case.projected else 400
    x, weights, others, states = random_problem(case, B, T, I, H, "float32", rng)
    mask = np.arange(T) < np.where(np.arange(B) < 4, T, 1)[:, None]
    options = {"mask": mask, "return_sequences": True, "return_state": True, "initial_state": states}
    if dropout:
        options["dropout_mask"] = factors((B, case.gates, I), rng, "float32")
        options["recurrent_dropout_mask"] = factors((B, case.gates, states[0].shape[1]), rng, "float32")
    results = []
    for threads in (1, 2):
        outputs, tape = case.functions[1](x, *weights, threads=threads, **options | others | case.settings)
        gradients = case.functions[2](random_gradients(outputs), tape)
        results.append([*outputs, gradients.x, *gradients.weights, *gradients.initial_state])
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)
    some = slice(2, 9)
    options |= {n: v[some] for n, v in options.items() if isinstance(v, np.ndarray)}
    options["initial_state"] = [s[some] for s in states]
    part = case.functions[0](x[some], *weights, **options | others | case.settings)
    for whole, of_part in zip(results[0], part, strict=False):
        np.testing.assert_array_equal(whole[some], of_part)
    expected = case.reference.forward(
        wide(x[some]), *wide(weights), **wide(options | others) | case.settings
    )[0]
    assert_close(part, expected, 2e-5)


def test_lengths_are_short_for_a_mask():
    x, weights, _, _ = random_problem(CASES["lstm"], 3, 5, 2, 4, "float32", 0)
    run = partial(functional.lstm, x, *weights, return_sequences=True)
    mask = np.array([[True] * 5, [True] * 2 + [False] * 3, [False] * 5])
    for lengths in ([5, 2, 0], np.array([5, 2, 0], "uint8")):
        np.testing.assert_array_equal(run(lengths=lengths), run(mask=mask))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"mask": np.ones((3, 5), "float32")},
            TypeError,
            "functional.lstm: mask must be an array of bool, True where there is a step, got float32; convert it with "
            "mask.astype(bool)",
        ),
        (
            {"mask": np.ones((5, 3), bool)},
            ValueError,
            "functional.lstm: mask must have shape (3, 5) (batch, time), got (5, 3)",
        ),
        (
            {"mask": [[True]]},
            TypeError,
            "functional.lstm: mask must be a NumPy array, got list; convert it with np.asarray",
        ),
        (
            {"lengths": [5, 6, 0]},
            ValueError,
            "functional.lstm: lengths must be from 0 to 5, the time steps of x, got 6; cut or pad x to fit",
        ),
        (
            {"lengths": [5, -1, 0]},
            ValueError,
            "functional.lstm: lengths must be from 0 to 5, the time steps of x, got -1; cut or pad x to fit",
        ),
        (
            {"lengths": [5.0, 1, 1]},
            TypeError,
            "functional.lstm: lengths must be integers, got float64; convert them with lengths.astype(int)",
        ),
        (
            {"lengths": [5, 1]},
            ValueError,
            "functional.lstm: lengths must have shape (3,), one for each row, got (2,)",
        ),
        (
            {"lengths": [5, 1, 1], "mask": np.ones((3, 5), bool)},
            ValueError,
            "functional.lstm: lengths and mask must not both be given; leave one of them out",
        ),
        (
            {"dropout_mask": np.ones((3, 3), "float32")},
            ValueError,
            "functional.lstm: dropout_mask must have shape (3, 2) (batch, features), got (3, 3)",
        ),
        (
            {"recurrent_dropout_mask": np.ones((3, 4), "float32")},
            ValueError,
            "functional.lstm: recurrent_dropout_mask must have shape (3, 4, 4) (batch, gates, what is masked), got (3, 4)",
        ),
        (
            {"recurrent_dropout_mask": np.ones((3, 4, 4))},
            TypeError,
            "functional.lstm: recurrent_dropout_mask must be float32 like the weights, got float64; convert it with "
            'recurrent_dropout_mask.astype("float32")',
        ),
        (
            {"peephole": np.ones((2, 4), "float32")},
            ValueError,
            "functional.lstm: peephole must have shape (3, 4) (a row for each gate that sees c), got (2, 4)",
        ),
        (
            {"variant": "np", "peephole": np.ones((3, 4), "float32")},
            ValueError,
            'functional.lstm: variant "np" is the LSTM without peepholes',
        ),
        (
            {"zoneout_mask": [None]},
            ValueError,
            "functional.lstm: zoneout_mask must have 2 items, got 1",
        ),
        (
            {"zoneout_mask": [None, np.ones((3, 5, 5), "float32")]},
            ValueError,
            "functional.lstm: zoneout_mask[1] must have shape (3, 5, 4) (batch, time, units), got (3, 5, 5)",
        ),
        (
            {"projection": np.ones((4, 4), "float32"), "variant": "cifg"},
            ValueError,
            "functional.lstm: variant 'cifg' has no projection",
        ),
        (
            {"projection": np.ones((4, 3), "float32")},
            ValueError,
            "functional.lstm: projection must have shape (4, 4) (units, outputs), got (4, 3)",
        ),
        (
            {"variant": "fgr"},
            ValueError,
            'functional.lstm: the variant "fgr" and a gate_kernel go together',
        ),
        (
            {"variant": "fgr", "gate_kernel": np.ones((12, 4), "float32")},
            ValueError,
            "functional.lstm: gate_kernel must have shape (12, 12) (i, f and o of two steps), got (12, 4)",
        ),
        (
            {
                "variant": "fgr",
                "gate_kernel": np.ones((12, 12), "float32"),
                "initial_state": [None] * 2,
            },
            ValueError,
            "functional.lstm: initial_state must be a list of 5 arrays, None for zeros, the states are h, c, i, f, o; got 2",
        ),
        (
            {"layer_norm": np.ones((2, 4), "float32")},
            ValueError,
            "functional.lstm: layer_norm must have shape (2, 16) (gains of what x and of what the state give), got (2, 4)",
        ),
        (
            {"cell_norm": np.ones((2, 4))},
            TypeError,
            "functional.lstm: cell_norm must be float32 like the kernel, got float64; all weights have one dtype: convert",
        ),
        ({"variant": "gif"}, ValueError, "functional.lstm: variant must be one of None, 'vanilla'"),
        ({"activation": "tan"}, ValueError, "functional.lstm: there is no activation 'tan'"),
    ],
)
def test_impossible_options_are_refused(options, error, message):
    x, weights, _, _ = random_problem(CASES["lstm"], 3, 5, 2, 4, "float32", 0)
    with pytest.raises(error) as caught:
        functional.lstm(x, *weights, **options)
    assert str(caught.value).startswith(message)
