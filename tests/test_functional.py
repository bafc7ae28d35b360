"""The kernels: against the reference in float64, against finite differences, bit by bit against themselves;
what they do with arrays of every layout, with wrong arguments and with values that are not finite."""

import functools
import gc
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from support import (
    CELLS,
    GATES,
    STATES,
    Problem,
    as_list,
    assert_close,
    finite_differences,
    inner_product,
    random_gradients,
    random_problem,
    weight_shapes,
)

import fastrnn
from fastrnn import functional


class Functions(NamedTuple):
    run: object
    forward: object
    backward: object


FUNCTIONS = {
    "simple_rnn": Functions(
        functional.simple_rnn, functional.simple_rnn_forward, functional.simple_rnn_backward
    ),
    "lstm": Functions(functional.lstm, functional.lstm_forward, functional.lstm_backward),
    "gru": Functions(functional.gru, functional.gru_forward, functional.gru_backward),
    "gru_reset_before": Functions(
        partial(functional.gru, reset_after=False),
        partial(functional.gru_forward, reset_after=False),
        functional.gru_backward,
    ),
}
NAMES = {cell: f"functional.{'gru' if cell == 'gru_reset_before' else cell}" for cell in CELLS}  # in messages

# The largest error of an array, relative to its largest element. float64: the promise (the worst of all sizes
# and options below is 27 eps, 6e-15). float32: the worst is 40 eps, in a gradient that is a single number; 23
# eps in outputs. Three times that lets another order of summation pass, and no error that grows with a size.
TOLERANCE = {"float32": 128 * 2.0**-23, "float64": 1e-12}

# A call is named by its sizes (B, T, I, H).
TAILS = [1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65]
SMALL = (3, 4, 2, 5)
SIZES = [
    *[(n, *SMALL[1:]) for n in TAILS],
    *[(*SMALL[:2], n, SMALL[3]) for n in TAILS],
    *[(*SMALL[:3], n) for n in TAILS],
    (0, 4, 2, 5),
    (3, 0, 2, 5),
    (3, 1, 2, 5),
    (3, 4, 0, 5),
    (0, 0, 0, 1),
    (1, 1, 1, 1),
    (70, 12, 3, 5),  # backward: several parts of the batch, and in a part several chunks of steps
    (257, 1, 3, 420),  # … one part for all, as there are too few rows times steps
    (257, 2, 3, 420),  # … two parts
    (1, 300, 3, 5),
    (1, 70, 3, 65),  # forward: x.W of many steps at once
    (5, 70, 3, 130),
]
# Large enough for several threads, by the model in cpp/src/team.hpp:
BY_ROWS = [(15, 12, 5, 50), (70, 8, 5, 50), (300, 4, 5, 40)]  # each takes some rows of the batch
BY_UNITS = [(1, 10, 3, 200), (2, 12, 3, 130), (5, 5, 3, 130), (7, 7, 65, 64)]  # each takes some of the units
SIZES += [*BY_ROWS, *BY_UNITS]
# A row alone does its part of x.W of later steps at each step, see cpp/src/forward.hpp; rows together don't.
SUMS_AHEAD = (3, 67, 131, 260)
# Weights that no second-level cache holds, in panels so deep that they are multiplied piece by piece.
PIECES = (20, 2, 600, 1300)
# … and of so few rows x.W is computed for many steps at once, and then for the rest.
STREAMED = (8, 27, 500, 470)
SIZES += [PIECES, (9, 2, 2100, 300), STREAMED]

sizes_id = "B{0[0]}-T{0[1]}-I{0[2]}-H{0[3]}".format
bias_or_not = pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
sequences_or_last = pytest.mark.parametrize("return_sequences", [True, False], ids=["sequences", "last"])
state_or_not = pytest.mark.parametrize("return_state", [True, False], ids=["state", "no_state"])
both_directions = pytest.mark.parametrize("go_backwards", [False, True], ids=["forwards", "backwards"])
ALL_OUTPUTS = {"return_sequences": True, "return_state": True}


class Results(NamedTuple):
    outputs: list
    gradients: tuple

    def arrays(self):
        dx, dweights, dstates = self.gradients
        return [*self.outputs, dx, *dweights, *dstates]

    def by_rows(self):
        """Those that have a value for every row of the batch."""
        dx, _, dstates = self.gradients
        return [*self.outputs, dx, *dstates]


def forward_and_backward(functions, problem, dy=random_gradients, initial_state="all", **options) -> Results:
    """All that the kernels' or the reference's functions return; dy: a list, or a function of the outputs."""
    options = ALL_OUTPUTS | options
    states = some_states(problem.initial_state, initial_state)
    outputs, tape = functions.forward(problem.x, *problem.weights, initial_state=states, **options)
    dy = dy(outputs) if callable(dy) else dy
    return Results(as_list(outputs), functions.backward(dy, tape))


def gradients_of(cell, problem):
    """A dy for all outputs of the cell."""
    return random_gradients(FUNCTIONS[cell].run(problem.x, *problem.weights, **ALL_OUTPUTS))


def some_states(states, which):
    return {
        "all": states,
        "none": None,
        "h": [states[0], *[None] * len(states[1:])],
        "c": [None, *states[1:]],
    }[which]


@functools.cache
def exact(cell, dtype, sizes, bias=True, **options) -> Results:
    """The reference in float64 on the numbers that the kernels get in `dtype`."""
    problem = random_problem(cell, *sizes, dtype, bias=bias).astype("float64")

    def dy(outputs):
        rounded = random_gradients([o.astype(dtype) for o in as_list(outputs)])
        rounded = [d.astype("float64") for d in rounded]
        return rounded if isinstance(outputs, tuple) else rounded[0]

    return forward_and_backward(CELLS[cell], problem, dy, **options)


def assert_accurate(actual, expected, dtype):
    assert {a.dtype for a in actual.arrays()} == {np.dtype(dtype)}
    assert_close(actual, expected, TOLERANCE[dtype])


def assert_same_bits(actual, expected, what=""):
    assert len(actual) == len(expected)
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert a.dtype == e.dtype and a.shape == e.shape, f"array {i} {what}"
        bits = f"u{a.itemsize}"
        assert np.array_equal(np.ascontiguousarray(a).view(bits), np.ascontiguousarray(e).view(bits)), (
            f"array {i} {what}"
        )


def exactly(message):
    return f"^{re.escape(message)}$"


# ---- Against the reference


@pytest.mark.parametrize("sizes", SIZES, ids=sizes_id)
def test_outputs_states_and_gradients_equal_the_reference(isa, dtype, cell, sizes):
    actual = forward_and_backward(FUNCTIONS[cell], random_problem(cell, *sizes, dtype))
    assert_accurate(actual, exact(cell, dtype, sizes), dtype)


@bias_or_not
@sequences_or_last
@state_or_not
@both_directions
@pytest.mark.parametrize("initial_state", ["all", "none", "h", "c"])
def test_every_option_gives_what_the_reference_gives(
    isa, dtype, cell, bias, return_sequences, return_state, go_backwards, initial_state
):
    options = {
        "return_sequences": return_sequences,
        "return_state": return_state,
        "go_backwards": go_backwards,
        "initial_state": initial_state,
    }
    problem = random_problem(cell, *SMALL, dtype, bias=bias)
    actual = forward_and_backward(FUNCTIONS[cell], problem, **options)
    assert_accurate(actual, exact(cell, dtype, SMALL, bias, **options), dtype)
    options["initial_state"] = some_states(problem.initial_state, initial_state)
    inference = FUNCTIONS[cell].run(problem.x, *problem.weights, **options)
    assert isinstance(inference, tuple) == return_state
    assert_same_bits(as_list(inference), actual.outputs)


@bias_or_not
@sequences_or_last
@state_or_not
@both_directions
def test_gradients_equal_finite_differences(isa, cell, bias, return_sequences, return_state, go_backwards):
    problem = random_problem(cell, 2, 3, 2, 3, bias=bias)
    options = {
        "return_sequences": return_sequences,
        "return_state": return_state,
        "go_backwards": go_backwards,
    }
    functions = FUNCTIONS[cell]
    outputs, tape = functions.forward(
        problem.x, *problem.weights, initial_state=problem.initial_state, **options
    )
    dy = random_gradients(outputs)

    def loss(p):
        return inner_product(functions.run(p.x, *p.weights, initial_state=p.initial_state, **options), dy)

    assert_close(functions.backward(dy, tape), finite_differences(loss, problem), rtol=1e-7, what="gradients")


@pytest.mark.parametrize("item", range(3), ids=["dy", "dh", "dc"])
@sequences_or_last
def test_none_as_a_gradient_stands_for_zeros(isa, dtype, cell, item, return_sequences):
    if item > STATES[cell]:
        item = 0  # a cell of one state has no third
    problem = random_problem(cell, *SMALL, dtype)

    def dy(outputs, none):
        dy = random_gradients(outputs)
        dy[item] = None if none else np.zeros_like(dy[item])
        return dy

    results = [
        forward_and_backward(
            FUNCTIONS[cell], problem, partial(dy, none=none), return_sequences=return_sequences
        ).arrays()
        for none in (True, False)
    ]
    assert_close(*results, rtol=0)


@sequences_or_last
@state_or_not
def test_without_any_gradient_all_gradients_are_zero(cell, return_sequences, return_state):
    problem = random_problem(cell, *SMALL)
    options = {"return_sequences": return_sequences, "return_state": return_state}
    dy = [None] * (1 + STATES[cell]) if return_state else None
    gradients = forward_and_backward(FUNCTIONS[cell], problem, dy, **options).gradients
    for g in [gradients.x, *gradients.weights, *gradients.initial_state]:
        assert not g.any()


def test_a_step_gives_what_a_sequence_of_one_step_gives(isa, dtype, cell):
    x, weights, states = random_problem(cell, 3, 1, 2, 5, dtype)
    prepared = functional.Weights(cell, *weights)
    for before in (states, None, [None] * len(states)):
        y, new_states = functional.run_step(prepared, x[:, 0], before)
        expected = FUNCTIONS[cell].run(x, *weights, initial_state=before, return_state=True)
        assert_same_bits([y, *new_states], expected)
        assert not any(np.shares_memory(y, s) for s in new_states)


def test_a_step_into_arrays_of_the_caller_gives_the_same_bits(isa, dtype, cell):
    x, weights, states = random_problem(cell, 3, 1, 2, 5, dtype)
    x_t, prepared = x[:, 0], functional.Weights(cell, *weights)
    expected_y, expected = functional.run_step(prepared, x_t, states)
    for source in ("states", "other memory", "swapped", "x"):
        given = [s.copy() for s in states]
        out = {"states": given, "swapped": given[::-1]}.get(source, [np.empty_like(s) for s in states])
        if source == "x":
            memory = np.empty(out[0].size, dtype)  # x_t lies at the end of where h is written
            out[0], x_t = memory.reshape(out[0].shape), memory[-x_t.size :].reshape(x_t.shape)
            x_t[:] = x[:, 0]
        y, new_states = functional.run_step(prepared, x_t, given, out)
        assert y is out[0] and all(a is b for a, b in zip(new_states, out, strict=True))
        assert_same_bits([y, *new_states], [expected_y, *expected])


@pytest.mark.parametrize(
    "out, error, message",
    [
        (np.zeros((3, 5), "f4"), TypeError, "out must be a list or tuple of 2 arrays, got ndarray"),
        ([np.zeros((3, 5), "f4")], ValueError, "out must have 2 items, got 1"),
        ([np.zeros((3, 5), "f4"), None], TypeError, r"out\[1\] must be .*array, got NoneType"),
        ([np.zeros((3, 5), "f4"), np.zeros((3, 5))], TypeError, r"out\[1\] must be float32 .* got float64"),
        ([np.zeros((5, 3), "f4"), np.zeros((3, 5), "f4")], ValueError, r"out\[0\] must have shape \(3, 5\)"),
        (
            [np.zeros((5, 3), "f4").T, np.zeros((3, 5), "f4")],
            ValueError,
            r"out\[0\] .* not contiguous; make one",
        ),
        ([np.frombuffer(bytes(60), "f4").reshape(3, 5)] * 2, ValueError, r"out\[0\] .* read-only; make one"),
        ([np.zeros((3, 5), "f4")] * 2, ValueError, r"out\[0\] and out\[1\] must not share memory"),
    ],
    ids=range(8),
)
def test_arrays_that_a_step_cannot_write_to_are_refused(out, error, message):
    x, weights, _ = random_problem("lstm", 3, 1, 2, 5, "float32")
    with pytest.raises(error, match=rf"^lstm\.step: {message}"):
        functional.run_step(functional.Weights("lstm", *weights), x[:, 0], None, out)


def test_no_time_steps_return_the_initial_state(isa, dtype, cell):
    x, weights, states = random_problem(cell, 3, 0, 2, 5, dtype)
    outputs = FUNCTIONS[cell].run(x, *weights, initial_state=states, return_state=True)
    assert_same_bits(outputs, [states[0], *states])
    assert not any(np.shares_memory(o, s) for o in outputs for s in states)


def test_prepared_weights_may_be_used_again_and_on_another_instruction_set(dtype, cell):
    x, weights, states = random_problem(cell, *SMALL, dtype)
    prepared = functional.Weights(cell, *weights)
    for isa in [*fastrnn.available_isas(), fastrnn.available_isas()[0]]:
        fastrnn.set_isa(isa)
        expected = FUNCTIONS[cell].run(x, *weights, initial_state=states, **ALL_OUTPUTS)
        assert_same_bits(functional.run(prepared, x, initial_state=states, **ALL_OUTPUTS), expected)


def test_a_tape_may_be_used_on_another_instruction_set(isa, dtype, cell):
    problem = random_problem(cell, *SMALL, dtype)

    def dy(outputs):
        fastrnn.set_isa(fastrnn.available_isas()[0])
        return random_gradients(outputs)

    assert_accurate(forward_and_backward(FUNCTIONS[cell], problem, dy), exact(cell, dtype, SMALL), dtype)


@given(
    sizes=st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 20), st.integers(1, 40)),
    data=st.data(),
    seed=st.integers(0, 2**32 - 1),
    bias=st.booleans(),
    options=st.fixed_dictionaries(
        {
            "return_sequences": st.booleans(),
            "return_state": st.booleans(),
            "go_backwards": st.booleans(),
            "initial_state": st.sampled_from(["all", "none", "h", "c"]),
        }
    ),
    threads=st.integers(1, 3),
)
def test_any_sizes_values_and_options_give_what_the_reference_gives(
    isa, cell, sizes, data, seed, bias, options, threads
):
    fastrnn.set_num_threads(threads)
    problem = random_problem(cell, *sizes, seed=seed, bias=bias)
    x = data.draw(
        hnp.arrays("float64", problem.x.shape, elements=st.floats(-4, 4), fill=st.just(1.5)), label="x"
    )
    problem = problem._replace(x=x)
    actual, expected = (
        forward_and_backward(functions[cell], problem, **options) for functions in (FUNCTIONS, CELLS)
    )
    for a, e in zip(actual.arrays(), expected.arrays(), strict=True):
        assert a.shape == e.shape
        # Chosen values may saturate a gate: then gradients are tiny, with errors relative to the outputs'.
        assert np.max(np.abs(a - e), initial=0) <= 1e-12 * np.max(np.abs(e), initial=1)


def test_a_closed_update_gate_keeps_the_state_of_a_gru(isa, dtype):
    h = np.array([[1, 1e-3, 1e-8, 1e-20, -1e-37]], dtype)
    zeros = [np.zeros((1, 15), dtype), np.zeros((5, 15), dtype)]
    z_r_n = np.repeat(
        np.array([200, 0, 0.5], dtype), 5
    )  # z = 1; the candidate n = tanh(1/2) has no part in h
    for bias, reset_after in [(np.stack([z_r_n, 0 * z_r_n]), True), (z_r_n, False)]:
        y = functional.gru(np.zeros((1, 3, 1), dtype), *zeros, bias, initial_state=h, reset_after=reset_after)
        np.testing.assert_array_equal(y, h)


# ---- The same bits


@pytest.mark.parametrize("sizes", [*BY_ROWS, *BY_UNITS, (1, *SUMS_AHEAD[1:]), PIECES, STREAMED], ids=sizes_id)
def test_bits_do_not_depend_on_the_number_of_threads_and_do_not_change_from_run_to_run(
    isa, dtype, cell, sizes
):
    problem = random_problem(cell, *sizes, dtype)
    results = {}
    for run, threads in enumerate([1, 2, 3, 4, 7, 2]):
        fastrnn.set_num_threads(threads)
        results[run, threads] = forward_and_backward(FUNCTIONS[cell], problem).arrays()
    for (run, threads), result in results.items():
        assert_same_bits(result, results[0, 1], f"in run {run} with {threads} threads")


def test_many_threads_with_a_row_each_give_the_same_bits_where_panels_are_deep():
    problem = random_problem("simple_rnn", 63, 60, 1000, 1030, "float32")
    one, many = (functional.simple_rnn(problem.x, *problem.weights, threads=n) for n in (1, 63))
    assert_same_bits([many], [one])


@pytest.mark.parametrize(
    "sizes, cuts",
    [
        (BY_ROWS[0], [0, 7, 8, 15]),
        (BY_ROWS[1], [0, 1, 3, 6, 11, 18, 34, 70]),
        (BY_ROWS[1], [0, 35, 70]),
        (BY_ROWS[2], [0, 257, 300]),
        *[(s, range(s[0] + 1)) for s in BY_UNITS[1:]],
        (BY_UNITS[-1], [0, 3, 7]),
        (SUMS_AHEAD, range(4)),
        (PIECES, [0, 1, 5, 20]),
        (STREAMED, [0, 2, 8]),
    ],
    ids=lambda v: sizes_id(v) if isinstance(v, tuple) else "-".join(map(str, v)),
)
def test_outputs_states_and_dx_have_the_same_bits_for_any_split_of_rows_into_batches(
    isa, dtype, cell, sizes, cuts
):
    fastrnn.set_num_threads(2)
    x, weights, states = random_problem(cell, *sizes, dtype)
    problem = random_problem(cell, *sizes, dtype)
    functions = FUNCTIONS[cell]
    dy = random_gradients(functions.run(x, *weights, **ALL_OUTPUTS))
    whole = forward_and_backward(functions, problem, dy).by_rows()
    parts = []
    for begin, end in pairwise(cuts):
        rows = slice(begin, end)
        part = problem._replace(x=x[rows], initial_state=[s[rows] for s in states])
        parts.append(forward_and_backward(functions, part, [d[rows] for d in dy]).by_rows())
    assert_same_bits([np.concatenate(p) for p in zip(*parts, strict=True)], whole)


# ---- Arrays of every layout


def unaligned(a):
    buffer = np.empty(a.nbytes + 1, "u1")
    view = np.frombuffer(buffer.data, a.dtype, a.size, offset=1).reshape(a.shape)
    view[...] = a
    return view


def strided(a, step):
    """The same values with `step` between elements, along every axis."""
    big = np.full([n * abs(step) for n in a.shape], np.nan, a.dtype)
    view = big[(slice(None, None, step),) * a.ndim]
    view[...] = a
    return view


def misplaced(a):
    """Strides that are no multiple of the size of an element."""
    fields = np.zeros(a.shape, np.dtype([("pad", "u1"), ("value", a.dtype)]))
    fields["value"] = a
    return fields["value"]


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def repeated(a, axis):
    """The first slice along an axis for all, with a stride of zero."""
    axis %= a.ndim
    return np.broadcast_to(a[(slice(None),) * axis + (slice(0, 1),)], a.shape)


class Subclass(np.ndarray):
    pass


LAYOUTS = {
    "fortran": np.asfortranarray,
    "read_only": read_only,
    "every_second": partial(strided, step=2),
    "reversed": partial(strided, step=-1),
    "unaligned": unaligned,
    "misplaced": misplaced,
    "repeated_along_first": partial(repeated, axis=0),
    "repeated_along_second": partial(repeated, axis=1),
    "repeated_along_last": partial(repeated, axis=-1),
    "subclass": lambda a: a.view(Subclass),
}


@pytest.mark.parametrize(
    "cell, sizes",
    [("simple_rnn", (3, 4, 5, 1030)), ("lstm", (3, 4, 300, 520)), ("lstm", (3, 4, 5, 2051))],
    ids=lambda v: sizes_id(v) if isinstance(v, tuple) else v,
)
def test_weights_that_no_cache_holds_may_lie_by_rows_or_by_columns(isa, cell, sizes):
    """Of more than 2 MiB, and of more than 64: see cpp/src/panels.hpp."""
    problem = random_problem(cell, *sizes, "float32")
    expected = exact(cell, "float32", sizes)
    for order in "CF":
        weights = [np.asarray(w, order=order) for w in problem.weights]
        actual = forward_and_backward(FUNCTIONS[cell], problem._replace(weights=weights))
        assert_accurate(actual, expected, "float32")


@pytest.mark.parametrize("layout", LAYOUTS)
@sequences_or_last
def test_the_layout_of_arrays_changes_no_bit_and_inputs_are_not_written(
    isa, dtype, cell, layout, return_sequences
):
    """Every array of a call has the layout, x, weights, states and dy."""
    problem = random_problem(cell, *SMALL, dtype)
    dy = gradients_of(cell, problem)
    if not return_sequences:
        dy[0] = dy[0][:, 0].copy()

    def laid_out(a):
        return LAYOUTS[layout](a) if a.ndim > 1 or "repeated" not in layout else repeated(a, 0)

    def everywhere(change, problem, dy):
        x, weights, states = problem
        return Problem(change(x), [*map(change, weights)], [*map(change, states)]), [*map(change, dy)]

    def arrays(problem, dy):
        return [problem.x, *problem.weights, *problem.initial_state, *dy]

    options = {"return_sequences": return_sequences, "go_backwards": True}
    unusual = everywhere(laid_out, problem, dy)
    plain = everywhere(partial(np.array, order="C"), *unusual)
    actual = forward_and_backward(FUNCTIONS[cell], *unusual, **options).arrays()
    assert_same_bits(actual, forward_and_backward(FUNCTIONS[cell], *plain, **options).arrays())
    assert all(type(a) is np.ndarray and a.flags.c_contiguous for a in actual)
    assert_same_bits(arrays(*unusual), arrays(*plain))


def test_a_step_takes_any_layout(dtype, cell):
    x, weights, states = random_problem(cell, *SMALL, dtype)
    prepared = functional.Weights(cell, *weights)
    for layout in LAYOUTS.values():
        unusual = layout(x[:, 0])
        y, new_states = functional.run_step(prepared, unusual, [layout(s) for s in states])
        plain = [np.array(layout(s), order="C") for s in states]
        expected_y, expected_states = functional.run_step(prepared, np.array(unusual, order="C"), plain)
        assert_same_bits([y, *new_states], [expected_y, *expected_states])


@sequences_or_last
def test_results_own_their_memory_and_share_it_with_nothing(dtype, cell, return_sequences):
    problem = random_problem(cell, *SMALL, dtype)
    functions, dys = FUNCTIONS[cell], []

    def dy(outputs):
        dys.extend(random_gradients(outputs))
        return dys

    for T in (problem.x.shape[1], 0):
        short = problem._replace(x=problem.x[:, :T])
        results = forward_and_backward(functions, short, dy, return_sequences=return_sequences).arrays()
        inference = functions.run(
            short.x, *short.weights, return_sequences=return_sequences, return_state=True
        )
        new = [*results, *inference]
        assert all(a.flags.owndata and a.flags.writeable for a in new)
        others = [short.x, *short.weights, *short.initial_state, *dys]
        for i, a in enumerate(new):
            assert not any(np.shares_memory(a, b) for b in [*new[:i], *others])
        dys.clear()


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="forbids access to memory with Linux' mprotect"
)
def test_nothing_before_or_after_an_array_is_read(run_python, isa):
    """Every array of a call lies against a page that must not be touched, in front of it or behind."""
    code = """
    import ctypes, mmap
    import numpy as np
    import fastrnn
    from fastrnn import _core
    from support import Problem, random_problem
    from test_functional import FUNCTIONS, SMALL, TAILS, forward_and_backward

    def guarded(a, behind):
        size = -(-a.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        memory = mmap.mmap(-1, size + mmap.PAGESIZE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        start = size - a.nbytes if behind else mmap.PAGESIZE
        view = np.frombuffer(memory, a.dtype, a.size, start).reshape(a.shape)
        view[...] = a
        guard = ctypes.c_void_p(address + size if behind else address)
        assert ctypes.CDLL(None).mprotect(guard, ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
        return view

    for behind in (True, False):
        for dtype in ("float32", "float64"):
            for n in TAILS:
                x = guarded(np.ones(n, dtype), behind)
                _core.tanh(x), _core.sigmoid(x)
            for cell, functions in FUNCTIONS.items():
                for sizes in [*((2, 3, n, 5) for n in TAILS), *((2, 3, 2, n) for n in TAILS)]:
                    x, weights, states = random_problem(cell, *sizes, dtype)
                    weights, states = ([guarded(a, behind) for a in arrays] for arrays in (weights, states))
                    problem = Problem(guarded(x, behind), weights, states)
                    dy = lambda outputs: [guarded(np.ones_like(o), behind) for o in outputs]
                    for go_backwards in (False, True):
                        forward_and_backward(functions, problem, dy, go_backwards=go_backwards)
    print(fastrnn.get_isa())
    """
    assert run_python(code, FASTRNN_ISA=isa, PYTHONPATH=str(Path(__file__).parent)) == f"{isa}\n"


def test_changing_the_outputs_changes_no_gradient(isa, dtype, cell):
    problem = random_problem(cell, *SMALL, dtype)

    def dy(outputs, spoil):
        dy = random_gradients(outputs)
        for o in outputs if spoil else ():
            o[...] = np.nan
        return dy

    results = [
        forward_and_backward(FUNCTIONS[cell], problem, partial(dy, spoil=spoil)) for spoil in (False, True)
    ]
    assert_same_bits(*([r.gradients.x, *r.gradients.weights, *r.gradients.initial_state] for r in results))


def test_a_tape_keeps_alive_what_it_refers_to(cell):
    problem = random_problem(cell, *SMALL)
    expected = forward_and_backward(FUNCTIONS[cell], problem).gradients
    copy = problem.astype("float64")
    outputs, tape = FUNCTIONS[cell].forward(
        copy.x, *copy.weights, initial_state=copy.initial_state, **ALL_OUTPUTS
    )
    dy = random_gradients(outputs)
    del copy, outputs
    gc.collect()
    _ = [np.full(s, np.nan) for s in [problem.x.shape, *(w.shape for w in problem.weights)] * 50]
    assert_close(FUNCTIONS[cell].backward(dy, tape), expected, rtol=0)


def test_a_used_tape_frees_its_memory():
    outputs, tape = functional.lstm_forward(*lstm_arguments().values())
    assert not tape.consumed and tape.nbytes == 5 * 2 * 6 * 4 * 4
    functional.lstm_backward(outputs, tape)
    assert tape.consumed and tape.nbytes == 0


# ---- Wrong arguments


def lstm_arguments(dtype="float32"):
    """B = 2, T = 5, I = 3, H = 4."""
    shapes = {"x": (2, 5, 3), "kernel": (3, 16), "recurrent_kernel": (4, 16), "bias": (16,)}
    return {name: np.full(shape, 0.1, dtype) for name, shape in shapes.items()}


STATE = np.full((2, 4), 0.1, "float32")
NOT_MASKED = "must be a plain array, got a masked array, whose mask would be lost; fill it first"


def with_wrong(argument, value, dtype="float32"):
    """lstm on arguments one of which is `value`; x[0] and initial_state[0] are items of lists."""
    arguments = lstm_arguments(dtype)
    state = np.ones((2, 4), dtype)
    if argument == "initial_state[1]":
        arguments["initial_state"] = [state, value]
    else:
        arguments[argument] = value
    return functional.lstm(**arguments)


@pytest.fixture(autouse=True)
def _still_works(request):
    """After a test of wrong arguments, the right ones give what they gave before."""
    yield
    if "error" in request.fixturenames or "refused" in request.node.name:
        y = functional.lstm(**lstm_arguments())
        assert_close(y, CELLS["lstm"].forward(**lstm_arguments("float64"))[0], 1e-6)


@pytest.mark.parametrize("argument", ["x", "kernel", "recurrent_kernel", "bias", "initial_state[1]"])
@pytest.mark.parametrize(
    "given",
    [
        "int32",
        "int64",
        "uint8",
        "bool",
        "float16",
        "longdouble",
        "complex64",
        "object",
        "U3",
        "S3",
        ">",
        "other",
    ],
)
def test_arrays_of_another_dtype_are_refused(dtype, argument, given):
    given = {
        ">": np.dtype(dtype).newbyteorder(">"),
        "other": {"float32": "float64", "float64": "float32"}[dtype],
    }.get(given, given)
    shapes = {name: a.shape for name, a in lstm_arguments().items()} | {"initial_state[1]": (2, 4)}
    got = np.dtype(given)
    if argument == "kernel" and got in ("float32", "float64"):
        what, must, remedy = (
            "recurrent_kernel",
            f"{got} like the kernel, got {dtype}",
            f'all weights have one dtype: convert it with recurrent_kernel.astype("{got}")',
        )
    elif argument == "kernel":
        what, must = argument, f"float32 or float64 in native byte order, got {got}"
        remedy = 'convert it with kernel.astype("float32")'
    elif argument in ("recurrent_kernel", "bias"):
        what, must = argument, f"{dtype} like the kernel, got {got}"
        remedy = f'all weights have one dtype: convert it with {argument}.astype("{dtype}")'
    else:
        what, must = argument, f"{dtype} like the weights, got {got}"
        remedy = f'convert it with {argument}.astype("{dtype}")'
    with pytest.raises(TypeError, match=exactly(f"functional.lstm: {what} must be {must}; {remedy}")):
        with_wrong(argument, np.zeros(shapes[argument], given), dtype)


@pytest.mark.parametrize("argument", ["x", "kernel", "recurrent_kernel", "bias", "initial_state[1]"])
@pytest.mark.parametrize(
    "value", [[[[1.0]]], (), 3, "abc", np.float32(1), memoryview(b"abcd"), {}], ids=lambda v: type(v).__name__
)
def test_what_is_no_array_is_refused(argument, value):
    message = f"{argument} must be a NumPy array, got {type(value).__name__}; convert it with np.asarray"
    with pytest.raises(TypeError, match=exactly(f"functional.lstm: {message}")):
        with_wrong(argument, value)


@pytest.mark.parametrize("argument", ["x", "kernel", "recurrent_kernel"])
def test_none_is_refused_where_an_array_is_needed(argument):
    message = f"functional.lstm: {argument} must be a NumPy array, got NoneType; convert it with np.asarray"
    with pytest.raises(TypeError, match=exactly(message)):
        with_wrong(argument, None)


@pytest.mark.parametrize("argument", ["x", "kernel", "recurrent_kernel", "bias", "initial_state[1]"])
def test_masked_arrays_are_refused(argument):
    value = np.ma.array((lstm_arguments() | {"initial_state[1]": STATE})[argument])
    with pytest.raises(TypeError, match=exactly(f"functional.lstm: {argument} {NOT_MASKED}")):
        with_wrong(argument, value)


def zeros(*shape):
    return np.zeros(shape, "float32")


@pytest.mark.parametrize(
    "argument, value, message",
    [
        (
            "x",
            zeros(5, 3),
            "x must have shape [batch, time, features], got (5, 3); add a time axis with x[:, None, :]",
        ),
        ("x", zeros(3), "x must have shape [batch, time, features], got (3,)"),
        ("x", zeros(), "x must have shape [batch, time, features], got ()"),
        ("x", zeros(1, 2, 5, 3), "x must have shape [batch, time, features], got (1, 2, 5, 3)"),
        (
            "x",
            zeros(2, 5, 2),
            "x must have 3 features to go with a kernel of shape (3, 16), got 2 in shape (2, 5, 2)",
        ),
        (
            "x",
            zeros(2, 5, 0),
            "x must have 3 features to go with a kernel of shape (3, 16), got 0 in shape (2, 5, 0)",
        ),
        (
            "kernel",
            zeros(2, 16),
            "x must have 2 features to go with a kernel of shape (2, 16), got 3 in shape (2, 5, 3)",
        ),
        *[
            (
                "kernel",
                zeros(*shape),
                "kernel must have shape [features, 16] to go with a recurrent_kernel of shape (4, 16), "
                f"got {shape}",
            )
            for shape in [(), (16,), (3, 15), (3, 12), (16, 3), (1, 3, 16), (3, 0)]
        ],
        *[
            (
                "recurrent_kernel",
                zeros(*shape),
                f"recurrent_kernel must have shape [units, 4 * units] with units >= 1, got {shape}",
            )
            for shape in [(), (16,), (4, 12), (3, 16), (16, 4), (1, 4, 16), (0, 16), (0, 0), (4, 0)]
        ],
        *[
            ("bias", zeros(*shape), f"bias must have shape (16,) (one per gate and unit), got {shape}")
            for shape in [(), (15,), (1,), (0,), (1, 16), (2, 16), (4, 4)]
        ],
        *[
            (
                "initial_state[1]",
                zeros(*shape),
                f"initial_state[1] must have shape (2, 4) (batch, units), got {shape}",
            )
            for shape in [(), (4,), (1, 4), (2, 3), (2, 4, 1), (4, 2), (0, 4)]
        ],
        ("initial_state", [], "initial_state must have 2 items, got 0"),
        ("initial_state", [STATE], "initial_state must have 2 items, got 1"),
        ("initial_state", (STATE, None, STATE), "initial_state must have 2 items, got 3"),
    ],
    ids=lambda v: str(v.shape) if isinstance(v, np.ndarray) else None,
)
def test_arrays_of_another_shape_are_refused(argument, value, message):
    with pytest.raises(ValueError, match=exactly(f"functional.lstm: {message}")):
        with_wrong(argument, value)


@pytest.mark.parametrize(
    "value", [STATE, np.stack([STATE, STATE]), {}, 3, "hc", iter([STATE, STATE])], ids=type
)
def test_two_states_that_are_no_list_are_refused(value):
    message = (
        f"functional.lstm: initial_state must be a list or tuple of 2 arrays, got {type(value).__name__}"
    )
    with pytest.raises(TypeError, match=exactly(message)):
        with_wrong("initial_state", value)


@pytest.mark.parametrize("cell", ["simple_rnn", "gru", "gru_reset_before"])
@pytest.mark.parametrize(
    "value, error, message",
    [
        (zeros(2, 3), ValueError, "initial_state must have shape (2, 4) (batch, units), got (2, 3)"),
        ([zeros(1, 4)], ValueError, "initial_state[0] must have shape (2, 4) (batch, units), got (1, 4)"),
        ([STATE, STATE], ValueError, "initial_state must have 1 items, got 2"),
        ([], ValueError, "initial_state must have 1 items, got 0"),
        (
            zeros(2, 4).astype("float64"),
            TypeError,
            "initial_state must be float32 like the weights, got float64; "
            'convert it with initial_state.astype("float32")',
        ),
        (
            np.ma.array(STATE),
            TypeError,
            f"initial_state {NOT_MASKED}",
        ),
        (3, TypeError, "initial_state must be a list or tuple of 1 arrays, got int"),
    ],
    ids=["units", "batch", "two", "none", "dtype", "masked", "int"],
)
def test_a_wrong_state_of_a_cell_with_one_is_refused(cell, value, error, message):
    weights = [zeros(*shape) for shape in weight_shapes(cell, 3, 4)]
    with pytest.raises(error, match=exactly(f"{NAMES[cell]}: {message}")):
        FUNCTIONS[cell].run(zeros(2, 5, 3), *weights, initial_state=value)


@pytest.mark.parametrize(
    "cell, shape, expected",
    [
        ("gru", (12,), "(2, 12) (a row for the input, a row for the state)"),
        ("gru", (1, 12), "(2, 12) (a row for the input, a row for the state)"),
        ("gru", (2, 11), "(2, 12) (a row for the input, a row for the state)"),
        ("gru", (24,), "(2, 12) (a row for the input, a row for the state)"),
        ("gru_reset_before", (2, 12), "(12,) (one per gate and unit)"),
        ("simple_rnn", (2, 4), "(4,) (one per gate and unit)"),
        ("simple_rnn", (16,), "(4,) (one per gate and unit)"),
    ],
)
def test_a_bias_of_another_cell_is_refused(cell, shape, expected):
    kernel, recurrent_kernel, _ = (zeros(*shape) for shape in weight_shapes(cell, 3, 4))
    with pytest.raises(
        ValueError, match=exactly(f"{NAMES[cell]}: bias must have shape {expected}, got {shape}")
    ):
        FUNCTIONS[cell].run(zeros(2, 5, 3), kernel, recurrent_kernel, zeros(*shape))


@pytest.mark.parametrize("other", CELLS)
def test_weights_of_another_cell_are_refused(cell, other):
    if GATES[cell] == GATES[other]:
        other = "lstm" if cell != "lstm" else "gru"  # the same number of gates: the bias tells them apart
    kernel, recurrent_kernel = (zeros(*shape) for shape in weight_shapes(other, 3, 4, bias=False))
    message = (
        f"{NAMES[cell]}: recurrent_kernel must have shape [units, {GATES[cell]} * units] with units >= 1, "
        f"got {recurrent_kernel.shape}"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        FUNCTIONS[cell].forward(zeros(2, 5, 3), kernel, recurrent_kernel)


def test_an_unknown_cell_is_refused():
    variants = [
        f"lstm_{gates}{suffix}" for gates in ("nig", "nfg", "nog", "cifg") for suffix in ("", "_peephole")
    ]
    projected = ["lstm_projected", "lstm_projected_peephole"]
    names = [
        "simple_rnn",
        "lstm",
        "gru",
        "gru_reset_before",
        "lstm_peephole",
        *variants,
        *projected,
        "lstm_fgr",
        "lstm_fgr_peephole",
        *(f"{name}_normalized" for name in ("lstm", "lstm_peephole", *variants, *projected)),
        "indrnn",
    ]
    message = f"the cell must be one of {', '.join(names)}, got 'rnn'"
    with pytest.raises(ValueError, match=exactly(message)):
        functional.Weights("rnn", zeros(3, 4), zeros(4, 4))


@pytest.mark.parametrize("option", ["return_sequences", "return_state", "go_backwards"])
@pytest.mark.parametrize("value", ["yes", 1, 0, None, [], np.array([True, False])], ids=repr)
def test_options_that_are_no_bools_are_refused(option, value):
    message = f"functional.lstm: {option} must be True or False, got {type(value).__name__}"
    with pytest.raises(TypeError, match=exactly(message)):
        functional.lstm(**lstm_arguments(), **{option: value})


@pytest.mark.parametrize("option", ["return_sequences", "return_state", "go_backwards"])
def test_options_may_be_bools_of_numpy(option):
    expected = as_list(functional.lstm(**lstm_arguments(), **{option: True}))
    assert_same_bits(as_list(functional.lstm(**lstm_arguments(), **{option: np.True_})), expected)


@pytest.mark.parametrize(
    "x_t, states, error, message",
    [
        (zeros(2, 5, 3), None, ValueError, "x_t must have shape [batch, 3], one time step, got (2, 5, 3)"),
        (zeros(2, 2), None, ValueError, "x_t must have shape [batch, 3], one time step, got (2, 2)"),
        (zeros(3), None, ValueError, "x_t must have shape [batch, 3], one time step, got (3,)"),
        ([[1.0]], None, TypeError, "x_t must be a NumPy array, got list; convert it with np.asarray"),
        (
            zeros(2, 3).astype(">f4"),
            None,
            TypeError,
            'x_t must be float32 like the weights, got >f4; convert it with x_t.astype("float32")',
        ),
        (zeros(2, 3), [STATE], ValueError, "states must have 2 items, got 1"),
        (zeros(2, 3), STATE, TypeError, "states must be a list or tuple of 2 arrays, got ndarray"),
        (
            zeros(2, 3),
            [None, zeros(1, 4)],
            ValueError,
            "states[1] must have shape (2, 4) (batch, units), got (1, 4)",
        ),
    ],
    ids=["rank3", "features", "rank1", "list", "byte_order", "one_state", "no_list", "batch"],
)
def test_wrong_arguments_of_a_step_are_refused(x_t, states, error, message):
    _, *weights = lstm_arguments().values()
    prepared = functional.Weights("lstm", *weights, name="here")
    with pytest.raises(error, match=exactly(f"here.step: {message}")):
        functional.run_step(prepared, x_t, states)


# ---- Wrong gradients and tapes


@pytest.mark.parametrize(
    "options, dy, error, message",
    [
        *[
            (
                {"return_sequences": sequences},
                zeros(*got),
                ValueError,
                f"dy must have shape {shape} (that of what it is the gradient of), got {got}",
            )
            for sequences, shape, got in [
                (False, (2, 4), (2, 5, 4)),
                (False, (2, 4), (4,)),
                (False, (2, 4), (4, 2)),
                (False, (2, 4), (1, 4)),
                (False, (2, 4), ()),
                (True, (2, 5, 4), (2, 4)),
                (True, (2, 5, 4), (2, 4, 4)),
                (True, (2, 5, 4), (1, 5, 4)),
            ]
        ],
        *[
            (
                {},
                STATE.astype(given),
                TypeError,
                f"dy must be float32 like the weights, got {np.dtype(given)}; "
                'convert it with dy.astype("float32")',
            )
            for given in ["float64", ">f4", "int32", "complex64", "object", "bool", "float16"]
        ],
        ({}, STATE.tolist(), TypeError, "dy must be a NumPy array, got list; convert it with np.asarray"),
        ({}, [STATE], TypeError, "dy must be a NumPy array, got list; convert it with np.asarray"),
        (
            {},
            np.ma.array(STATE),
            TypeError,
            f"dy {NOT_MASKED}",
        ),
        *[
            ({"return_state": True}, [STATE] * n, ValueError, f"dy must have 3 items, got {n}")
            for n in (0, 1, 2, 4)
        ],
        ({"return_state": True}, STATE, TypeError, "dy must be a list or tuple of 3 arrays, got ndarray"),
        ({"return_state": True}, {}, TypeError, "dy must be a list or tuple of 3 arrays, got dict"),
        (
            {"return_state": True},
            [STATE, STATE, zeros(2, 5, 4)],
            ValueError,
            "dc must have shape (2, 4) (that of what it is the gradient of), got (2, 5, 4)",
        ),
        (
            {"return_state": True},
            [None, zeros(1, 4), None],
            ValueError,
            "dh must have shape (2, 4) (that of what it is the gradient of), got (1, 4)",
        ),
        (
            {"return_state": True},
            [STATE, STATE, STATE.astype("float64")],
            TypeError,
            'dc must be float32 like the weights, got float64; convert it with dc.astype("float32")',
        ),
    ],
)
def test_wrong_gradients_are_refused_and_leave_the_tape_usable(options, dy, error, message):
    outputs, tape = functional.lstm_forward(**lstm_arguments(), **options)
    with pytest.raises(error, match=exactly(f"functional.lstm.backward: {message}")):
        functional.lstm_backward(dy, tape)
    assert not tape.consumed
    dy = random_gradients(outputs)
    actual = functional.lstm_backward(dy, tape)
    expected = functional.lstm_backward(dy, functional.lstm_forward(**lstm_arguments(), **options)[1])
    assert_close(actual, expected, rtol=0)


def test_a_tape_that_was_used_is_refused(cell):
    weights = random_problem(cell, *SMALL).weights
    y, tape = FUNCTIONS[cell].forward(np.ones((3, 4, 2)), *weights)
    FUNCTIONS[cell].backward(y, tape)
    message = f"{NAMES[cell]}.backward: the tape was already used; run forward again for another gradient"
    for _ in range(2):
        with pytest.raises(RuntimeError, match=exactly(message)):
            FUNCTIONS[cell].backward(y, tape)


@pytest.mark.parametrize("other", CELLS)
def test_the_tape_of_another_function_is_refused(cell, other):
    if FUNCTIONS[cell].backward is FUNCTIONS[other].backward:
        other = "lstm" if cell != "lstm" else "gru"  # both kinds of GRU have one backward
    y, tape = FUNCTIONS[other].forward(zeros(2, 5, 3), *(zeros(*s) for s in weight_shapes(other, 3, 4)))
    function = FUNCTIONS[cell].backward.__name__.removesuffix("_backward")
    message = (
        f"functional.{function}_backward: the tape must come from {function}_forward, "
        f"got one of a {other} cell"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        FUNCTIONS[cell].backward(y, tape)
    FUNCTIONS[other].backward(y, tape)


@pytest.mark.parametrize("tape", [None, 3, "tape", STATE], ids=lambda t: type(t).__name__)
def test_what_is_no_tape_is_refused(cell, tape):
    function = FUNCTIONS[cell].backward.__name__
    made_by = function.replace("backward", "forward")
    kind = f"{type(tape).__module__}.{type(tape).__name__}"
    message = f"functional.{function}: tape must be what {made_by} returned, got a {kind}"
    with pytest.raises(TypeError, match=exactly(message)):
        FUNCTIONS[cell].backward(STATE, tape)
    message = "functional.run_backward: tape must be the Tape that a forward pass returned, got "
    with pytest.raises(TypeError, match=exactly(message + type(tape).__name__)):
        functional.run_backward(STATE, tape)


def test_no_gradient_at_all_means_zeros(cell):
    problem = random_problem(cell, *SMALL, "float64")
    for options in ({}, ALL_OUTPUTS):
        _, tape = FUNCTIONS[cell].forward(problem.x, *problem.weights, **options)
        gradients = FUNCTIONS[cell].backward(None, tape)
        for array in (gradients.x, *gradients.weights, *gradients.initial_state):
            assert not array.any()


def test_one_tape_gives_one_gradient_however_many_threads_ask():
    problem = random_problem("lstm", *BY_ROWS[1])
    outputs, tape = functional.lstm_forward(problem.x, *problem.weights)

    def backward(_):
        try:
            return functional.lstm_backward(outputs, tape)
        except RuntimeError as error:
            return error

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(backward, range(4)))
    assert sum(isinstance(r, functional.Gradients) for r in results) == 1


# ---- Sizes that no memory holds


def endless(*shape):
    """An array of any shape in the memory of one row, or of one number where not even a row has memory."""
    return np.broadcast_to(np.zeros(shape[-1] if shape[-1] < 100 else 1, "float32"), shape)


PETABYTES = r"^[\w.]+: [\w ]+ of shape \(.*\) needs \d{10,} MiB, more than there is; use smaller sizes$"


@pytest.mark.parametrize("function", [functional.lstm, functional.lstm_forward])
@pytest.mark.parametrize("options", [{}, {"return_sequences": True}, {"return_state": True}], ids=str)
@pytest.mark.parametrize(
    "batch, error", [(2**55, MemoryError), (2**59, ValueError)], ids=["memory", "address_space"]
)
def test_a_batch_that_no_memory_holds_is_refused_at_once(function, options, batch, error):
    what, shape = ("the output", (batch, 1, 4)) if "return_sequences" in options else ("a state", (batch, 4))
    message = f"functional.lstm: {what} of shape {shape} is larger than the address space; use smaller sizes"
    with pytest.raises(error, match=PETABYTES if error is MemoryError else exactly(message)):
        function(**(lstm_arguments() | {"x": endless(batch, 1, 3)}), **options)


@pytest.mark.parametrize(
    "time, error, message",
    [
        (2**50, MemoryError, PETABYTES),
        (
            2**58,
            ValueError,
            r"^functional\.lstm: the tape of shape \(.*\) is larger than the address space; use smaller",
        ),
    ],
    ids=["memory", "address_space"],
)
def test_a_tape_that_no_memory_holds_is_refused_at_once(time, error, message):
    with pytest.raises(error, match=message):
        functional.lstm_forward(**(lstm_arguments() | {"x": endless(1, time, 3)}))


def test_a_sequence_that_no_memory_holds_is_refused_at_once():
    with pytest.raises(MemoryError, match=PETABYTES):
        functional.lstm(**(lstm_arguments() | {"x": endless(1, 2**55, 3)}), return_sequences=True)


def test_a_step_that_no_memory_holds_is_refused_at_once():
    _, *weights = lstm_arguments().values()
    with pytest.raises(MemoryError, match=PETABYTES):
        functional.run_step(functional.Weights("lstm", *weights), endless(2**55, 3))


def test_weights_that_no_memory_holds_are_refused_at_once():
    arguments = lstm_arguments()
    wide = arguments | {"kernel": endless(2**50, 16)}
    with pytest.raises(MemoryError):  # when they are packed
        functional.lstm(**(wide | {"x": np.empty((0, 1, 2**50), "float32")}))
    with pytest.raises(MemoryError, match=r"^Unable to allocate [\d.]+ [PE]iB for an array"):
        functional.lstm(**(wide | {"x": np.broadcast_to(np.float32(1), (1, 1, 2**50))}))
    units = 2**29
    with pytest.raises(ValueError, match="address space"):
        functional.lstm(np.empty((0, 1, 3), "float32"), endless(3, 4 * units), endless(units, 4 * units))


# ---- Values that are not finite, saturation, denormals


def special(a):
    """NaN, +inf and -inf told apart, all other values alike."""
    return np.where(np.isnan(a), 2, np.where(np.isinf(a), np.sign(a), 0))


@np.errstate(all="ignore")
def assert_special_values_go_as_in_the_reference(cell, problem, dy):
    """The reference runs in long double, as BLAS, which multiplies other floats, leaves out factors of zero
    even where the other factor is NaN or infinite."""
    actual = forward_and_backward(FUNCTIONS[cell], problem, dy)
    dy = [d.astype("longdouble") for d in dy]
    expected = forward_and_backward(CELLS[cell], problem.astype("longdouble"), dy)
    for i, (a, e) in enumerate(zip(actual.arrays(), expected.arrays(), strict=True)):
        np.testing.assert_array_equal(special(a), special(e), err_msg=f"array {i}")
        finite = np.isfinite(e)
        error = np.max(np.abs(a[finite] - e[finite]), initial=0)
        # A gradient through a saturated gate keeps few digits.
        assert error <= TOLERANCE[str(a.dtype)] * np.max(np.abs(e[finite]), initial=1), f"array {i}"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize(
    "where", ["x", "kernel", "recurrent_kernel", "bias", "h", "last_state", "dy", "last_dy"]
)
def test_nan_and_infinity_go_through_as_in_the_reference(isa, dtype, cell, where, value):
    problem = random_problem(cell, *SMALL, dtype)
    dy = gradients_of(cell, problem)
    weights, states = problem.weights, problem.initial_state
    array = dict(
        zip(
            ["x", "kernel", "recurrent_kernel", "bias", "h", "last_state", "dy", "last_dy"],
            [problem.x, *weights, states[0], states[-1], dy[0], dy[-1]],
            strict=True,
        )
    )[where]
    array.flat[array.size // 2] = value
    assert_special_values_go_as_in_the_reference(cell, problem, dy)


@given(
    data=st.data(),
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(1, 9)),
)
def test_any_mixture_of_special_values_goes_through_as_in_the_reference(isa, dtype, cell, data, sizes):
    problem = random_problem(cell, *sizes, dtype)
    values = st.sampled_from([0.5, 0.0, -0.0, 1.0, np.nan, np.inf, -np.inf])

    def draw(a, label):
        return data.draw(hnp.arrays(dtype, a.shape, elements=values, fill=st.just(0.5)), label=label)

    problem = problem._replace(
        x=draw(problem.x, "x"), initial_state=[draw(s, "state") for s in problem.initial_state]
    )
    assert_special_values_go_as_in_the_reference(cell, problem, gradients_of(cell, problem))


@pytest.mark.parametrize("row", [0, 3, 7])
@pytest.mark.parametrize("where", ["x", "state", "dy"])
def test_nan_in_a_row_of_the_batch_touches_that_row_only(isa, dtype, cell, row, where):
    sizes = (8, 3, 5, 9)
    problem = random_problem(cell, *sizes, dtype)
    dy = gradients_of(cell, problem)
    clean = forward_and_backward(FUNCTIONS[cell], problem, dy).by_rows()
    {"x": problem.x, "state": problem.initial_state[0], "dy": dy[0]}[where][row] = np.nan
    touched = forward_and_backward(FUNCTIONS[cell], problem, dy).by_rows()
    others = np.arange(8) != row
    assert_same_bits([a[others] for a in touched], [a[others] for a in clean])
    assert any(np.isnan(a[row]).any() for a in touched)


@pytest.mark.parametrize("size", [1e2, 1e4, 1e30, "largest"])
def test_large_inputs_saturate_and_nothing_becomes_nan(isa, dtype, cell, size):
    problem = random_problem(cell, 3, 4, 1, 5, dtype)
    problem.x[...] = np.copysign(np.finfo(dtype).max if size == "largest" else size, problem.x)
    problem.weights[0][...] = np.copysign(0.5, problem.weights[0])
    actual = forward_and_backward(FUNCTIONS[cell], problem)
    expected = forward_and_backward(CELLS[cell], problem.astype("float64"))
    assert_close(actual.outputs, expected.outputs, TOLERANCE[dtype])
    assert all(np.isfinite(a).all() for a in actual.arrays())


def test_denormals_go_through(isa, dtype, cell):
    tiny = np.finfo(dtype).smallest_subnormal
    problem = random_problem(cell, *SMALL, dtype, bias=False)
    for w in problem.weights:
        w[...] = np.sign(w)
    problem = problem._replace(
        x=np.round(problem.x * 99) * tiny, initial_state=[s * 99 * tiny for s in problem.initial_state]
    )
    actual = forward_and_backward(FUNCTIONS[cell], problem).outputs
    expected = forward_and_backward(CELLS[cell], problem).outputs
    for a, e in zip(actual, expected, strict=True):
        assert np.max(np.abs(e)) < np.finfo(dtype).tiny and np.count_nonzero(e) > e.size / 2
        assert np.max(np.abs(a - e)) <= 8 * tiny


def test_no_call_raises_or_warns_of_floating_point_errors(isa, dtype, cell):
    problem = random_problem(cell, *SMALL, dtype)
    problem.x[0, 0] = np.inf
    problem.x[1] = 1e30
    infinite = [np.full((3, 5), v, dtype) for v in (np.inf, -np.inf)]
    dy = [*infinite, *[None] * (STATES[cell] - 1)]
    with np.errstate(all="raise"):
        forward_and_backward(FUNCTIONS[cell], problem, dy, return_sequences=False)


def test_objects_made_without_their_constructor_are_refused(run_python):
    code = """
    import numpy as np
    from fastrnn import _core

    options = (None, True, True, False, True, None, False, None, None, None, None, None, 0)
    weights, tape = _core.Weights.__new__(_core.Weights), _core.Tape.__new__(_core.Tape)
    for use in [
        lambda: weights.arrays,
        lambda: weights.units,
        lambda: tape.nbytes,
        lambda: _core.forward(weights, np.zeros((1, 1, 1), "f4"), *options),
        lambda: _core.step(weights, np.zeros((1, 1), "f4")),
        lambda: _core.backward(None, tape),
    ]:
        try:
            use()
        except (TypeError, RuntimeError):
            print("refused")
    """
    assert run_python(code) == "refused\n" * 6
