"""LSTMs whose gates see each other: what is refused, and what is not copied. Values: test_functional_options."""

import tracemalloc

import numpy as np
import pytest
from support import random_gradients

from fastrnn import LSTM, functional

B, T, I, H = 3, 4, 2, 5


def problem(dtype="float64"):
    rng = np.random.default_rng(0)
    shapes = {
        "x": (B, T, I),
        "kernel": (I, 4 * H),
        "recurrent_kernel": (H, 4 * H),
        "gate_kernel": (3 * H, 3 * H),
    }
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()} | {
        "variant": "fgr"
    }


def states(rows=B):
    return [np.zeros((rows, H)) for _ in range(5)]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"initial_state": [*states()[:4], np.zeros((B, H), "float32")]},
            TypeError,
            r"functional.lstm: initial_state\[4\] must be float64 like the weights, got float32; convert it with",
        ),
        (
            {"initial_state": [np.zeros((1, H)), *states()[1:]]},
            ValueError,
            r"functional.lstm: initial_state\[0\] must have shape \(3, 5\) \(batch, units\), got \(1, 5\)",
        ),
        (
            {"zoneout_mask": [[1.0], *[None] * 4]},
            TypeError,
            r"functional.lstm: zoneout_mask\[0\] must be a NumPy array, got list; convert it with np.asarray",
        ),
        (
            {"recurrent_dropout_mask": np.ones((B, 3, H))},
            ValueError,
            r"functional.lstm: recurrent_dropout_mask must have shape \(3, 4, 5\) \(batch, gates, what is masked\), got",
        ),
        (
            {"x": np.zeros((T, I)), "initial_state": states()},
            ValueError,
            r"functional.lstm: x must have shape \[batch, time, features\], got \(4, 2\); add a time axis",
        ),
        ({"gate_kernel": [1.0]}, TypeError, "functional.lstm: gate_kernel must be a NumPy array, got list"),
        (
            {"variant": "cifg"},
            ValueError,
            'functional.lstm: the variant "fgr" and a gate_kernel go together; give both or leave both out',
        ),
    ],
)
def test_bad_arguments_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        functional.lstm(**problem() | options)


def test_a_gate_kernel_is_refused_where_there_is_none():
    kernel, recurrent_kernel = np.zeros((I, 3 * H)), np.zeros((H, 3 * H))
    chosen = ("sigmoid", "tanh", "tanh")
    for cell in ("gru", "lstm_cifg", "lstm_nig_peephole", "simple_rnn"):
        with pytest.raises(
            ValueError, match=f"^name: gate_kernel must be None for the cell {cell}; it goes with LSTMs"
        ):
            functional.make_weights(
                cell, kernel, recurrent_kernel, None, chosen, "name", gate_kernel=np.zeros((3 * H, 3 * H))
            )


@pytest.mark.parametrize("name", ["recurrent_kernel", "gate_kernel", "recurrent_dropout_mask"])
def test_outputs_over_what_is_read_are_refused(name):
    arguments = problem() | {"recurrent_dropout_mask": np.ones((B, 4, H)), "return_sequences": True}
    out = np.lib.stride_tricks.as_strided(arguments[name], (B, T, H), (8 * T * H, 8 * H, 8))
    with pytest.raises(ValueError, match=f"^functional.lstm: out must not reach into the memory of {name}"):
        functional.lstm(**arguments, out=out)


def test_a_step_writes_to_five_arrays_of_their_own():
    layer, x = LSTM(H, variant="fgr", seed=0, dtype="float64"), np.ones((B, I))
    h, new = layer.step(x)
    given = states()
    y, written = layer.step(x, given, out=given)
    assert y is given[0]
    assert all(a is b for a, b in zip(written, given, strict=True))
    for one, other in zip(new, written, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(h, y)
    same = [given[0]] * 5
    with pytest.raises(
        ValueError, match=r"^LSTM\.step: out\[0\] and out\[1\] must not share memory; give each state"
    ):
        layer.step(x, None, out=same)
    given[4].flags.writeable = False
    before = [array.copy() for array in given]
    with pytest.raises(
        ValueError, match=r"^LSTM\.step: out\[4\] must be writable and contiguous, got an array that is read"
    ):
        layer.step(2 * x, None, out=given)
    for array, value in zip(given, before, strict=True):
        np.testing.assert_array_equal(array, value)


def test_a_gradient_of_the_wrong_kind_is_refused():
    y, tape = functional.lstm_forward(**problem(), return_state=True)
    with pytest.raises(
        ValueError, match=r"^functional.lstm.backward: dy must be a list of 6 arrays, None for zeros"
    ):
        functional.lstm_backward(random_gradients(y)[:3], tape)
    with pytest.raises(
        TypeError, match=r"^functional.lstm.backward: dy must be float64 like the weights, got float32"
    ):
        functional.lstm_backward([y[0].astype("float32"), *[None] * 5], tape)
    functional.lstm_backward(random_gradients(y), tape)


def test_rates_of_zoneout_are_not_copied_for_all_steps():
    arguments = problem() | {"x": np.zeros((16, 1000, I))}
    rate = np.broadcast_to(np.full(H, 0.1), (16, 1000, H))
    tracemalloc.start()
    rated = functional.lstm(**arguments, zoneout_mask=[rate] * 5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * 1000 * H * 8
    np.testing.assert_array_equal(rated, functional.lstm(**arguments, zoneout_mask=[rate.copy()] * 5))
