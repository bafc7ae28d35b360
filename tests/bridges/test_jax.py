"""fastrnn.jax: the same bits as fastrnn.functional, in every transformation of JAX, and proof that kernels ran."""

from __future__ import annotations

import shutil
import subprocess
from functools import partial
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from support import as_list, random_gradients, random_problem
from test_functional_options import CASES, factors, problems, random_norms
from test_functional_options import random_problem as random_problem_of

import fastrnn
from fastrnn import activations, functional

jax = pytest.importorskip("jax", reason="runs in JAX, which is not installed")
jnp = jax.numpy

import fastrnn.jax as bridge  # noqa: E402  (needs JAX)
from fastrnn import _jax_equations as equations  # noqa: E402

FUNCTIONS = {"simple_rnn": {}, "lstm": {}, "gru": {}, "gru_reset_before": {"reset_after": False}}


@pytest.fixture(autouse=True)
def _float64_where_it_is_asked_for():
    with jax.enable_x64(True):
        yield


def functions_of(cell):
    name = "gru" if cell == "gru_reset_before" else cell
    return [
        partial(function, **FUNCTIONS[cell])
        for function in (getattr(bridge, name), getattr(functional, f"{name}_forward"))
    ] + [getattr(functional, f"{name}_backward")]


def problem_of(cell, B=3, T=5, I=4, H=6, dtype="float64", seed=0):
    problem = random_problem(cell, B, T, I, H, dtype, seed)
    return jnp.asarray(problem.x), list(map(jnp.asarray, problem.weights)), problem.initial_state


def calls(cell, direction):
    return fastrnn.kernel_calls()[cell][direction]


def assert_equal(actual, expected):
    actual, expected = (jax.tree.leaves(tree) for tree in (actual, expected))
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


def assert_close(actual, expected, rtol=1e-10):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * max(1e-3, np.abs(b).max(initial=0)))


# ---- Values and gradients are those of fastrnn.functional


@hypothesis.given(problems([name for name in CASES if not name.startswith("lstm_fgr")], normalized=False))
@hypothesis.settings(max_examples=60)
def test_every_combination_of_options_gives_the_bits_of_functional(problem):
    case, x, weights, options = problem
    inference, forward, backward = case.functions
    function = getattr(bridge, inference.__name__)
    options = case.settings | options
    smooth = {"x": x, "weights": weights}
    smooth |= {
        k: options[k] for k in ("peephole", "projection", "initial_state") if options.get(k) is not None
    }

    def run(given):
        given = dict(given)
        return function(given.pop("x"), *given.pop("weights"), **(options | given))

    expected, tape = forward(x, *weights, **options)
    cell = tape.weights.cell
    before = fastrnn.kernel_calls()[cell]
    outputs, transposed = jax.vjp(run, smooth)
    assert_equal(outputs, expected)
    assert_equal(run(smooth), expected)

    dy = random_gradients(expected)
    (gradients,) = transposed(jax.tree.map(jnp.asarray, tuple(dy) if isinstance(dy, list) else dy))
    if x.shape[1]:  # else XLA leaves out what computes nothing
        new = {direction: n - before[direction] for direction, n in fastrnn.kernel_calls()[cell].items()}
        assert new == {"forward": 2, "backward": 1}
    right = backward(dy, tape)
    assert_equal(gradients["x"], right.x)
    assert_equal(gradients["weights"], right.weights[: len(weights)])
    others = [gradients[name] for name in ("peephole", "projection") if name in gradients]
    assert_equal(others, right.weights[len(weights) :])
    if "initial_state" in gradients:
        assert_equal(gradients["initial_state"], right.initial_state)


@pytest.mark.parametrize("jit", [False, True])
def test_lengths_are_short_for_a_mask_traced_or_not(cell, dtype, jit):
    function, forward, _ = functions_of(cell)
    x, weights, _ = problem_of(cell, dtype=dtype)
    lengths = np.array([5, 0, 3])
    run = partial(function, return_sequences=True)
    run = jax.jit(run) if jit else run
    y = run(x, *weights, lengths=lengths)
    assert_equal(
        y, forward(np.asarray(x), *map(np.asarray, weights), lengths=lengths, return_sequences=True)[0]
    )


@pytest.mark.parametrize("initial", [lambda h: [h, None], lambda h: (None, h)])
def test_a_state_that_is_none_is_zeros(initial):
    x, weights, (h, _) = problem_of("lstm")
    with_zeros = [np.zeros_like(h) if s is None else s for s in initial(h)]
    assert_equal(
        bridge.lstm(x, *weights, initial_state=initial(h)),
        bridge.lstm(x, *weights, initial_state=with_zeros),
    )


def test_one_state_needs_no_list():
    x, weights, (h,) = problem_of("gru")
    assert_equal(bridge.gru(x, *weights, initial_state=h), bridge.gru(x, *weights, initial_state=[h]))


def test_gradients_equal_finite_differences(cell):
    from jax.test_util import check_grads

    function, _, _ = functions_of(cell)
    x, weights, states = problem_of(cell, 2, 3, 2, 3)
    mask = np.array([[True, False, True], [True, True, False]])
    run = partial(function, return_sequences=True, return_state=True, mask=mask)
    check_grads(
        lambda x, weights, states: run(x, *weights, initial_state=states), (x, weights, states), 1, ["rev"]
    )


def test_gradients_that_nobody_asks_for_are_not_computed():
    x, weights, _ = problem_of("lstm")
    trace = str(jax.make_jaxpr(jax.grad(lambda w: bridge.lstm(x, *w).sum()))(weights))
    assert "'dkernel'" in trace and "'dx'" not in trace and "'dinitial_h'" not in trace
    assert "fastrnn_forward" not in str(jax.make_jaxpr(lambda w: bridge.lstm(x, *w))(weights))  # no tape


# ---- Transformations


def loss_of(cell, **options):
    function, _, _ = functions_of(cell)

    def loss(weights, x):
        y = function(x, *weights, return_sequences=True, **options)
        return (jnp.sin(y) * jnp.arange(1, y.size + 1).reshape(y.shape)).sum()

    return loss


def test_jit_gives_the_same_bits_and_runs_the_kernels(cell, dtype):
    x, weights, _ = problem_of(cell, dtype=dtype)
    gradient = jax.grad(loss_of(cell), argnums=(0, 1))
    compiled = jax.jit(gradient)
    compiled(weights, x)
    before = calls(cell, "forward"), calls(cell, "backward")
    result = jax.block_until_ready(compiled(weights, x))
    assert (calls(cell, "forward"), calls(cell, "backward")) == (before[0] + 1, before[1] + 1)
    assert_close(result, gradient(weights, x), 1e-6 if dtype == "float32" else 1e-12)


MASK = np.array([[True, False, True, True, False], [False] * 5, [True] * 5])


@pytest.mark.parametrize("masked", [False, True])
def test_vmap_with_shared_weights_is_one_call_of_a_larger_batch(cell, masked):
    x, weights, _ = problem_of(cell)
    xs = jnp.stack([x, 2 * x, -x, x + 1])
    mask = {"mask": MASK} if masked else {}
    run = partial(functions_of(cell)[0], return_sequences=True, return_state=True, **mask)
    expected = [run(x, *weights) for x in xs]
    before = calls(cell, "forward")
    outputs = jax.vmap(lambda x: run(x, *weights))(xs)
    assert calls(cell, "forward") == before + 1
    assert_equal(outputs, jax.tree.map(lambda *a: jnp.stack(a), *expected))


@pytest.mark.parametrize("cell", ["lstm", "gru_reset_before"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("mapped", ["x", "weights", "both", "one weight"])
def test_gradients_under_vmap_are_those_of_each(cell, masked, mapped):
    x, weights, _ = problem_of(cell)
    xs = jnp.stack([x, 2 * x]) if mapped in ("x", "both") else x
    many, axes = weights, None
    if mapped in ("weights", "both"):
        many, axes = [jnp.stack([w, w / 2], axis=1) for w in weights], 1
    if mapped == "one weight":
        many, axes = [weights[0], jnp.stack([weights[1], weights[1] / 2]), weights[2]], [None, 0, None]
    gradient = jax.grad(loss_of(cell, mask=MASK if masked else None), argnums=(0, 1))
    in_axes = (axes, 0 if mapped in ("x", "both") else None)
    outputs = jax.vmap(gradient, in_axes)(many, xs)
    flat_axes = axes if isinstance(axes, list) else [axes] * len(weights)
    for i in range(2):
        given = [w if a is None else jnp.take(w, i, a) for w, a in zip(many, flat_axes, strict=True)]
        expected = gradient(given, xs[i] if in_axes[1] == 0 else xs)
        assert_close(jax.tree.map(lambda a: a[i], outputs), expected)  # noqa: B023


@pytest.mark.parametrize("masked", [False, True])
def test_the_gradient_of_a_sum_under_vmap_is_one_backward_call(cell, masked):
    x, weights, _ = problem_of(cell)
    xs, mask = jnp.stack([x, 2 * x, -x]), MASK if masked else np.ones((3, 5), bool)
    one = loss_of(cell, mask=mask)

    def loss(weights):
        return jax.vmap(lambda x: one(weights, x))(xs).sum()

    before = calls(cell, "backward")
    gradient = jax.grad(loss)(weights)
    assert calls(cell, "backward") == before + 1
    assert_close(gradient, jax.tree.map(lambda *a: sum(a), *[jax.grad(one)(weights, x) for x in xs]))


def test_vmaps_may_be_nested():
    x, weights, _ = problem_of("lstm")
    xs = jnp.stack([x, 2 * x, -x, x + 1]).reshape(2, 2, *x.shape)
    run = jax.vmap(jax.vmap(lambda x: bridge.lstm(x, *weights)))
    assert_equal(run(xs)[1, 0], bridge.lstm(-x, *weights))
    gradient = jax.grad(loss_of("lstm"))
    nested = jax.vmap(jax.vmap(gradient, (None, 0)), (None, 0))(weights, xs)
    assert_close(jax.tree.map(lambda a: a[1, 0], nested), gradient(weights, -x))


def test_scan_carries_states_from_piece_to_piece(cell):
    function, _, _ = functions_of(cell)
    x, weights, states = problem_of(cell, T=6)

    def in_pieces(weights, x):
        def piece(states, part):
            y, *states = function(
                part, *weights, initial_state=states, return_sequences=True, return_state=True
            )
            return states, y

        states_and_parts = jax.lax.scan(piece, list(states), jnp.stack(jnp.split(x, 3, axis=1)))
        return jnp.concatenate(list(states_and_parts[1]), axis=1)

    def at_once(weights, x):
        return function(x, *weights, initial_state=states, return_sequences=True)

    assert_equal(in_pieces(weights, x), at_once(weights, x))
    for_pieces, for_all = (
        jax.grad(lambda w, x: (f(w, x) ** 2).sum(), argnums=(0, 1))(weights, x)  # noqa: B023
        for f in (in_pieces, at_once)
    )
    assert_close(for_pieces, for_all)


def test_checkpoint_runs_the_forward_pass_again(cell):
    x, weights, _ = problem_of(cell)
    loss = loss_of(cell)
    before = calls(cell, "forward")
    value_and_gradient = jax.value_and_grad(jax.checkpoint(loss))(weights, x)
    assert calls(cell, "forward") == before + 2
    assert_close(value_and_gradient, jax.value_and_grad(loss)(weights, x))


def test_shapes_are_known_without_a_run(cell):
    x, weights, _ = problem_of(cell)
    before = fastrnn.kernel_calls()
    run = partial(functions_of(cell)[0], return_state=True)
    y, *states = jax.eval_shape(run, x, *weights)
    jax.eval_shape(jax.grad(loss_of(cell)), weights, x)
    assert [(a.shape, a.dtype) for a in (y, *states)] == [((3, 6), x.dtype)] * (1 + len(states))
    assert fastrnn.kernel_calls() == before


def test_donated_buffers_are_not_read_after_they_are_written():
    x, weights, (h, c) = problem_of("lstm")
    step = partial(bridge.lstm, return_state=True)
    expected = step(x, *weights, initial_state=[h, c])[1:]
    donating = jax.jit(lambda s: step(x, *weights, initial_state=s)[1:], donate_argnums=0)
    assert_equal(donating((jnp.array(h), jnp.array(c))), expected)


# ---- Cells that the kernels don't know in JAX

IN_JAX_NUMPY = ["simple_rnn", "indrnn", "gru", "gru_reset_before", "lstm_None_3", "lstm_cifg_2"]
IN_JAX_NUMPY += ["lstm_projected_0", "lstm_fgr_0", "lstm_fgr_3", "lstm_fgr_projected"]


@pytest.mark.parametrize("every_option", [False, True])
@pytest.mark.parametrize("name", IN_JAX_NUMPY)
def test_layer_normalization_and_gates_that_see_each_other_are_those_of_functional(name, every_option):
    case, (B, T, I, H) = CASES[name], (3, 5, 4, 6)
    rng = np.random.default_rng(0)
    x, weights, others, states = random_problem_of(case, B, T, I, H, "float64", 0)
    if every_option or "fgr" not in name:
        others |= random_norms(case, H, rng)
    settings = case.settings | {"return_state": True}
    if every_option:
        settings |= {
            "mask": MASK,
            "zero_output_for_mask": True,
            "go_backwards": True,
            "dropout_mask": factors((B, case.gates, I), rng, "float64"),
            "recurrent_dropout_mask": factors((B, case.gates, len(weights[1])), rng, "float64"),
            "zoneout_mask": [rng.random((B, T, s.shape[1])) for s in states],
        }
    else:
        settings["return_sequences"] = True
    _, forward, backward = case.functions
    expected, tape = forward(x, *weights, initial_state=states, **others, **settings)

    @jax.jit
    def run(x, weights, others, states, dy):
        def outputs(x, weights, others, states):
            function = getattr(bridge, case.functions[0].__name__)
            return function(x, *weights, initial_state=states, **others, **settings)

        y, transposed = jax.vjp(outputs, x, weights, others, states)
        return y, transposed(dy)

    dy = random_gradients(expected)
    arrays = jax.tree.map(jnp.asarray, (x, weights, others, states, tuple(dy)))
    y, (dx, dweights, dothers, dstates) = run(*arrays)
    assert_close(y, expected, 1e-12)
    right = backward(list(dy), tape)
    assert_close([dx, dstates], [right.x, right.initial_state], 1e-11)
    order = [n for n in ("peephole", "projection", "gate_kernel", "cell_norm", "layer_norm") if n in dothers]
    assert_close([*dweights, *(dothers[n] for n in order)], right.weights, 1e-11)


def test_normalized_cells_are_mapped_and_differentiated_again():
    x, weights, _ = problem_of("gru", 2, 3, 2, 3)
    gains = jnp.linspace(0.5, 1.5, 18).reshape(2, 9)

    def loss(gains, x):
        return (bridge.gru(x, *weights, layer_norm=gains) ** 2).sum()

    each = [jax.grad(loss)(gains, part) for part in (x, 2 * x)]
    assert_close(jax.vmap(jax.grad(loss), (None, 0))(gains, jnp.stack([x, 2 * x])), jnp.stack(each), 1e-12)
    assert jax.hessian(loss)(gains, x).shape == (2, 9, 2, 9)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"layer_norm": np.ones((2, 7))}, "layer_norm must have shape"),
        ({"cell_norm": np.ones(6)}, "cell_norm must have shape"),
        ({"variant": "fgr"}, 'the variant "fgr" and a gate_kernel go together'),
        ({"variant": "fgr", "gate_kernel": np.ones((6, 6))}, "gate_kernel must have shape"),
    ],
)
def test_weights_of_normalized_cells_that_do_not_fit_are_refused(given, message):
    x, weights, _ = problem_of("lstm", 2, 3, 2, 3)
    with pytest.raises(ValueError, match=rf"^fastrnn\.jax\.lstm: {message}"):
        bridge.lstm(x, *weights, **given)


# ---- Second derivatives: from the equations in jax.numpy


EQUATIONS = ["simple_rnn", "indrnn", "gru", "gru_reset_before"]
EQUATIONS += ["lstm_None_0", "lstm_None_3", "lstm_nig_2", "lstm_nfg_2", "lstm_nog_2", "lstm_cifg_2"]
EQUATIONS += ["lstm_projected_0", "lstm_projected_3"]


@pytest.mark.parametrize("every_option", [False, True])
@pytest.mark.parametrize("name", EQUATIONS)
def test_the_equations_in_jax_numpy_are_those_of_the_kernels(name, every_option, monkeypatch):
    case, (B, T, I, H) = CASES[name], (3, 5, 4, 6)
    rng = np.random.default_rng(0)
    x, weights, others, states = random_problem_of(case, B, T, I, H, "float64", 0)
    settings = case.settings | {"mask": MASK, "return_sequences": True, "return_state": True}
    if every_option:
        settings |= {
            "zero_output_for_mask": True,
            "go_backwards": True,
            "dropout_mask": factors((B, case.gates, I), rng, "float64"),
            "recurrent_dropout_mask": factors((B, case.gates, len(weights[1])), rng, "float64"),
            "zoneout_mask": [rng.random((B, T, s.shape[1])) for s in states],
        }

    @jax.jit
    def run(x, weights, others, states, dy):
        def outputs(x, weights, others, states):
            function = getattr(bridge, case.functions[0].__name__)
            return function(x, *weights, initial_state=states, **others, **settings)

        y, transposed = jax.vjp(outputs, x, weights, others, states)
        return y, transposed(dy)

    arrays = jax.tree.map(jnp.asarray, (x, weights, others, states))
    sizes = [(B, T, len(weights[1])), *(s.shape for s in states)]
    dy = tuple(jnp.asarray(rng.standard_normal(size)) for size in sizes)
    expected = run(*arrays, dy)
    monkeypatch.setattr(bridge._run, "bind", bind_equations)
    run.clear_cache()
    before = fastrnn.kernel_calls()
    assert_close(run(*arrays, dy), expected, 1e-12)
    assert fastrnn.kernel_calls() == before


def bind_equations(*operands, static):
    settings = static.settings
    by_name = dict(zip(static.operands, operands, strict=True))
    return equations.forward(
        settings.cell, settings.activations, bridge._options(settings), by_name, static.results
    )


@pytest.mark.parametrize("name", sorted(activations.NAMES))
def test_activations_in_jax_numpy_are_those_of_the_package(name):
    for activation in (activations.get(name), activations.Activation(name, clip=0.75)):
        a = np.linspace(-4, 4, 41)
        code = (activation.code, activation.alpha, activation.beta, activation.clip or np.inf)
        np.testing.assert_allclose(
            equations.activate(code, jnp.asarray(a)), activation(a), rtol=0, atol=1e-13
        )


def test_second_derivatives_equal_finite_differences(cell):
    from jax.test_util import check_grads

    function, _, _ = functions_of(cell)
    x, weights, _ = problem_of(cell, 2, 3, 2, 2)
    options = {"mask": np.array([[True, False, True], [True, True, False]])}
    check_grads(
        jax.grad(lambda x, weights: (function(x, *weights, **options) ** 2).sum(), argnums=(0, 1)),
        (x, weights),
        1,
        ["fwd", "rev"],
    )


def test_forward_mode_alone_is_refused_by_jax():
    x, weights, _ = problem_of("lstm")
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x: bridge.lstm(x, *weights), (x,), (x,))


# ---- What does not fit is refused while it is traced


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"x": np.zeros((3, 4))},
            ValueError,
            r"x must have shape \[batch, time, features\].*x\[:, None, :\]",
        ),
        ({"x": np.zeros((3, 5, 7))}, ValueError, r"x must have shape \(3, 5, 4\) \(features as the kernel"),
        ({"x": np.zeros((3, 5, 4), "float32")}, TypeError, "x must be float64 like the kernel, got float32"),
        ({"x": np.zeros((3, 5, 4), int)}, TypeError, "x must be float64 like the kernel, got int64"),
        ({"kernel": np.zeros((4, 23))}, ValueError, "kernel must have shape"),
        ({"kernel": np.zeros((4, 24), "float16")}, TypeError, "kernel must be float32 or float64"),
        ({"kernel": None}, TypeError, "kernel must be an array, got None"),
        ({"recurrent_kernel": np.zeros((6, 23))}, ValueError, "recurrent_kernel must have shape"),
        ({"recurrent_kernel": np.zeros((6, 24), "float32")}, TypeError, "recurrent_kernel must be float64"),
        ({"bias": np.zeros(23)}, ValueError, "bias must have shape"),
        ({"peephole": np.zeros((2, 6))}, ValueError, "peephole must have shape"),
        ({"initial_state": [np.zeros((3, 6))]}, ValueError, "initial_state must have 2 items, got 1"),
        ({"initial_state": np.zeros((3, 6))}, TypeError, "initial_state must be a list or tuple of 2"),
        ({"initial_state": [None, np.zeros((3, 7))]}, ValueError, r"initial_state\[1\] must have shape"),
        ({"mask": np.ones((3, 5))}, TypeError, "mask must be an array of bool"),
        ({"mask": np.ones((5, 3), bool)}, ValueError, r"mask must have shape \(3, 5\)"),
        ({"lengths": np.ones(3)}, TypeError, "lengths must be integers"),
        ({"lengths": np.ones(4, int)}, ValueError, "lengths must have shape"),
        ({"lengths": np.ones(3, int), "mask": np.ones((3, 5), bool)}, ValueError, "must not both be given"),
        ({"dropout_mask": np.ones((3, 5))}, ValueError, r"dropout_mask must have shape \(3, 4\)"),
        ({"dropout_mask": np.ones((3, 3, 4))}, ValueError, r"dropout_mask must have shape \(3, 4, 4\)"),
        ({"recurrent_dropout_mask": np.ones((3, 6))}, ValueError, "recurrent_dropout_mask must have shape"),
        ({"recurrent_dropout_mask": np.ones((3, 4, 6), "float32")}, TypeError, "float64 like the kernel"),
        ({"zoneout_mask": [None]}, ValueError, "zoneout_mask must have 2 items, got 1"),
        ({"zoneout_mask": [None, np.ones((3, 5))]}, ValueError, r"zoneout_mask\[1\] must have shape"),
        ({"projection": np.zeros((6, 5))}, ValueError, "projection must have shape"),
        ({"variant": "none"}, ValueError, "variant must be one of"),
        ({"activation": "none"}, ValueError, "none"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change, error, message, jit):
    x, (kernel, recurrent_kernel, bias), _ = problem_of("lstm")
    given = {"x": x, "kernel": kernel, "recurrent_kernel": recurrent_kernel, "bias": bias} | change
    with pytest.raises(error, match=rf"^fastrnn\.jax\.lstm: .*{message}"):
        names = {"variant", "activation"} & change.keys()
        (jax.jit(bridge.lstm, static_argnames=names) if jit else bridge.lstm)(**given)


def test_lengths_beyond_the_end_are_refused_where_they_are_known():
    x, weights, _ = problem_of("lstm")
    with pytest.raises(ValueError, match="lengths must be from 0 to 5"):
        bridge.lstm(x, *weights, lengths=[1, 2, 6])


def test_python_functions_as_activations_are_refused():
    x, weights, _ = problem_of("lstm")
    with pytest.raises(TypeError, match=r"fastrnn\.jax\.lstm: an activation must be a name or an Activation"):
        bridge.lstm(x, *weights, activation=(np.tanh, lambda a: 1 - np.tanh(a) ** 2))


@pytest.mark.parametrize("mask", ["dropout_mask", "recurrent_dropout_mask"])
def test_factors_for_each_gate_must_not_be_differentiated(mask):
    x, weights, _ = problem_of("lstm")
    factors = jnp.ones((3, 4, 4 if mask == "dropout_mask" else 6))
    with pytest.raises(ValueError, match=rf"{mask} has no gradient.*stop_gradient"):
        jax.grad(lambda factors: bridge.lstm(x, *weights, **{mask: factors}).sum())(factors)


def test_factors_that_the_gates_share_have_a_gradient():
    x, weights, _ = problem_of("lstm")
    gradient = jax.grad(lambda factors: bridge.lstm(x, *weights, dropout_mask=factors).sum())(
        jnp.ones((3, 4))
    )
    dx = jax.grad(lambda x: bridge.lstm(x, *weights).sum())(x)
    assert_close(gradient, (x * dx).sum(axis=1))


def test_other_platforms_are_refused_with_advice():
    x, weights, _ = problem_of("lstm")
    with pytest.raises(
        NotImplementedError, match=r"fastrnn\.jax\.lstm: the kernels run on the CPU, got .*cuda"
    ):
        jax.jit(bridge.lstm).trace(x, *weights).lower(lowering_platforms=("cuda",))


def test_a_handler_refuses_buffers_that_do_not_fit():
    x, (kernel, recurrent_kernel, _), _ = problem_of("lstm")

    def run(x, recurrent_kernel, **attributes):
        attributes = {
            "cell": "lstm",
            "activations": np.array([1, 0, 0, np.inf, 0, 0, 0, np.inf, 0, 0, 0, np.inf]),
            "operands": "x kernel recurrent_kernel",
            "results": "last",
            "options": "",
        } | attributes
        result = jax.ShapeDtypeStruct((3, 6), x.dtype)
        return jax.ffi.ffi_call("fastrnn_forward", result)(x, kernel, recurrent_kernel, **attributes)

    assert_equal(run(x, recurrent_kernel), bridge.lstm(x, kernel, recurrent_kernel))
    for wrong in [
        {"x": x[:, :, :3]},
        {"x": x.astype("float32")},
        {"recurrent_kernel": recurrent_kernel[:, :3]},
        {"cell": "none"},
        {"activations": np.zeros(11)},
        {"activations": np.full(12, 99.0)},
        {"operands": "x kernel"},
        {"operands": "x kernel recurrent_kernel mask"},
        {"results": "y"},
        {"operands": 3},
    ]:
        given = {"x": x, "recurrent_kernel": recurrent_kernel} | wrong
        with pytest.raises(jax.errors.JaxRuntimeError, match="INVALID_ARGUMENT"):
            jax.block_until_ready(run(**given))


def test_no_memory_is_an_error_of_jax():
    """The workspace of one step of 2^46 rows; the arrays themselves are never made."""
    huge = 1 << 46
    attributes = {
        "cell": "simple_rnn",
        "activations": np.array([0, 0, 0, np.inf] * 3),
        "operands": "x kernel recurrent_kernel",
        "results": "",
        "options": "",
    }
    x, kernel, recurrent_kernel = jnp.zeros((huge, 1, 0)), jnp.zeros((0, 8)), jnp.zeros((8, 8))
    call = jax.ffi.ffi_call("fastrnn_forward", (), has_side_effect=True)
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED: fastrnn: no memory"):
        jax.block_until_ready(jax.jit(lambda: (call(x, kernel, recurrent_kernel, **attributes), 1)[1])())
        jax.effects_barrier()


# ---- Calls by settings


@pytest.mark.parametrize(
    "returns", [{}, {"return_sequences": True, "return_state": True, "go_backwards": True}]
)
def test_settings_are_static_and_calls_with_them_are_those_by_name(cell, returns):
    function, _, _ = functions_of(cell)
    x, weights, states = problem_of(cell)
    settings = bridge.settings(cell, ("sigmoid", "tanh", "tanh"), **returns)
    outputs = jax.jit(bridge.call, static_argnums=0)(settings, x, weights, states, MASK)
    assert_equal(list(outputs), as_list(function(x, *weights, initial_state=states, mask=MASK, **returns)))
    assert settings == bridge.settings(cell, ("sigmoid", "tanh", "tanh"), **returns)


# ---- Models


def plain_lstm(x, kernel, recurrent_kernel, bias):
    def step(states, a_x):
        h, c = states
        i, f, g, o = jnp.split(a_x + h @ recurrent_kernel, 4, axis=1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

    zeros = jnp.zeros((len(x), len(recurrent_kernel)), x.dtype)
    (h, _), _ = jax.lax.scan(step, (zeros, zeros), jnp.moveaxis(x @ kernel + bias, 1, 0))
    return h


def test_training_gives_the_losses_of_a_plain_lstm():
    def losses(lstm):
        rng = np.random.default_rng(0)
        ids, labels = rng.integers(0, 50, (16, 12)), jnp.asarray(rng.integers(0, 2, 16), "float32")
        shapes = {"embedding": (50, 8), "lstm": [(8, 64), (16, 64), (64,)], "dense": (16,)}
        parameters = jax.tree.map(
            lambda s: jnp.asarray(0.3 * rng.standard_normal(s), "float32"),
            shapes,
            is_leaf=lambda s: isinstance(s, tuple),
        )

        def loss(p):
            logits = lstm(p["embedding"][ids], *p["lstm"]) @ p["dense"]
            return jnp.mean(jnp.logaddexp(0, logits) - labels * logits)

        @jax.jit
        def step(p):
            value, gradients = jax.value_and_grad(loss)(p)
            return value, jax.tree.map(lambda a, d: a - 0.5 * d, p, gradients)

        values = []
        for _ in range(20):
            value, parameters = step(parameters)
            values.append(float(value))
        return values

    before = calls("lstm", "backward")
    with_kernels, plain = losses(bridge.lstm), losses(plain_lstm)
    assert calls("lstm", "backward") == before + 20
    np.testing.assert_allclose(with_kernels, plain, atol=1e-4)
    assert with_kernels[-1] < 0.9 * with_kernels[0]


def test_flax_modules_hold_the_weights():
    nnx = pytest.importorskip("flax.nnx", reason="runs in Flax, which is not installed")

    class LSTM(nnx.Module):
        def __init__(self, features: int, units: int, *, rngs: nnx.Rngs):
            self.weights = nnx.Param(bridge.initializer("lstm", units)(rngs.params(), features))

        def __call__(self, x):
            return bridge.lstm(x, **self.weights.get_value())

    with jax.enable_x64(False):
        model = LSTM(4, 6, rngs=nnx.Rngs(0))
        x = jnp.ones((3, 5, 4))
        before = calls("lstm", "backward")
        gradients = nnx.jit(nnx.grad(lambda model: model(x).sum()))(model)
        assert calls("lstm", "backward") == before + 1
        expected = jax.grad(lambda w: plain_lstm(x, **w).sum())(model.weights.get_value())
        assert_close(gradients["weights"].get_value(), expected, 1e-4)


def test_a_linen_module_takes_three_lines():
    linen = pytest.importorskip("flax.linen", reason="runs in Flax, which is not installed")

    class LSTM(linen.Module):
        units: int

        @linen.compact
        def __call__(self, x):
            weights = self.param("lstm", bridge.initializer("lstm", self.units), x.shape[-1])
            return bridge.lstm(x, **weights)

    with jax.enable_x64(False):
        x = jnp.ones((3, 5, 4))
        model = LSTM(6)
        variables = jax.jit(model.init)(jax.random.key(0), x)
        assert jax.tree.map(jnp.shape, variables) == {
            "params": {"lstm": {"bias": (24,), "kernel": (4, 24), "recurrent_kernel": (6, 24)}}
        }
        before = calls("lstm", "backward")
        gradients = jax.jit(jax.grad(lambda v: model.apply(v, x).sum()))(variables)
        assert calls("lstm", "backward") == before + 1
        weights = variables["params"]["lstm"]
        expected = jax.grad(lambda w: plain_lstm(x, **w).sum())(weights)
        assert_close(gradients["params"]["lstm"], expected, 1e-4)


@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize(
    ("function", "layer", "options"),
    [
        ("simple_rnn", fastrnn.SimpleRNN, {}),
        ("indrnn", fastrnn.IndRNN, {}),
        ("lstm", fastrnn.LSTM, {}),
        ("gru", fastrnn.GRU, {}),
        ("gru", fastrnn.GRU, {"reset_after": False}),
    ],
)
def test_drawn_weights_are_those_of_the_layer_but_for_their_numbers(function, layer, options, use_bias):
    draw = bridge.initializer(function, 6, use_bias=use_bias, dtype="float64", **options)
    weights = draw(jax.random.key(0), 4)
    layer = layer(6, use_bias=use_bias, dtype="float64", **options)
    layer.build((None, None, 4))
    drawn = list(weights.values())
    assert [w.shape for w in drawn] == [w.shape for w in layer.weights]
    kernel, recurrent_kernel = drawn[:2]
    assert 0.5 < np.std(kernel) / np.std(layer.weights[0]) < 2
    if function == "indrnn":
        np.testing.assert_array_equal(recurrent_kernel, layer.weights[1])
    else:
        np.testing.assert_allclose(recurrent_kernel @ recurrent_kernel.T, np.eye(6), atol=1e-6)
    if use_bias:
        np.testing.assert_array_equal(drawn[2], layer.weights[2])
    assert not jnp.array_equal(kernel, draw(jax.random.key(1), 4)["kernel"])
    result = getattr(bridge, function)(jnp.ones((3, 5, 4)), **weights, **options)
    assert result.shape == (3, 6) and jnp.isfinite(result).all()


def test_an_initializer_of_no_function_or_units_is_refused():
    with pytest.raises(ValueError, match=r"initializer: function must be one of simple_rnn, .*got 'rnn'"):
        bridge.initializer("rnn", 6)
    with pytest.raises(ValueError, match="units must be a positive integer, got 0"):
        bridge.initializer("lstm", 0)
    with pytest.raises(TypeError, match="units must be a positive integer, got '4'"):
        bridge.initializer("lstm", "4")


# ---- Several devices


def test_devices_run_their_parts_and_sum_the_gradients_of_what_they_share(run_python):
    printed = run_python(
        """
        import jax, jax.numpy as jnp, numpy as np
        import fastrnn, fastrnn.jax
        from jax.sharding import NamedSharding, PartitionSpec as P

        rng = np.random.default_rng(0)
        x, *weights = (
            jnp.asarray(rng.standard_normal(s), "float32") for s in [(4, 5, 3), (3, 32), (8, 32), (32,)]
        )
        lengths = jnp.asarray([5, 2, 0, 3])
        mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

        def loss(weights, x, lengths, **options):
            return (fastrnn.jax.lstm(x, *weights, lengths=lengths, **options) ** 2).sum()

        def in_jax_numpy(weights, x, lengths):
            return loss(weights, x, lengths, layer_norm=jnp.ones((2, 32)))

        expected = jax.grad(loss)(weights, x, lengths)
        expected_in_jax_numpy = jax.grad(in_jax_numpy)(weights, x, lengths)
        before = fastrnn.kernel_calls()["lstm"]["backward"]

        @jax.jit
        @jax.shard_map(mesh=mesh, in_specs=(P(), P("data"), P("data")), out_specs=P())
        def on_devices(weights, x, lengths):
            return jax.grad(lambda w: jax.lax.psum(loss(w, x, lengths), "data"))(weights)

        split = jax.block_until_ready(on_devices(weights, x, lengths))
        print(fastrnn.kernel_calls()["lstm"]["backward"] - before)
        sharded = jax.device_put(x, NamedSharding(mesh, P("data")))
        gathered = jax.jit(jax.grad(loss))(weights, sharded, lengths)
        for a, b, c in zip(split, gathered, expected):
            print(bool(jnp.allclose(a, c, atol=1e-4)), bool(jnp.allclose(b, c, atol=1e-4)))

        @jax.shard_map(mesh=mesh, in_specs=(P(), P("data"), P("data")), out_specs=P())
        def normalized(weights, x, lengths):
            return jax.grad(lambda w: jax.lax.psum(in_jax_numpy(w, x, lengths), "data"))(weights)

        for a, b in zip(jax.jit(normalized)(weights, x, lengths), expected_in_jax_numpy):
            print(bool(jnp.allclose(a, b, atol=1e-4)))
        """,
        XLA_FLAGS="--xla_force_host_platform_device_count=2",
        JAX_PLATFORMS="cpu",
    )
    assert printed.split() == ["2", *["True"] * 9]


# ---- The binary interface, and the import


def test_structs_are_those_of_the_installed_jaxlib(tmp_path):
    compiler = shutil.which("c++")
    if not compiler:
        pytest.skip("compares with jaxlib's header, which needs a C++ compiler")
    here = Path(__file__).resolve().parents[2] / "cpp" / "python"
    fields = {  # ours, theirs: fields in pairs
        "Extension XLA_FFI_Extension_Base": "struct_size type next",
        "Version XLA_FFI_Api_Version": "struct_size extensions:extension_start major_version minor_version",
        "ErrorArguments XLA_FFI_Error_Create_Args": "struct_size extensions:extension_start message code:errc",
        "Api XLA_FFI_Api": "struct_size extensions:extension_start version:api_version internal:internal_api "
        "error_create:XLA_FFI_Error_Create",
        "Buffer XLA_FFI_Buffer": "struct_size extensions:extension_start dtype data rank shape:dims",
        "ByteSpan XLA_FFI_ByteSpan": "data:ptr size:len",
        "Array XLA_FFI_Array": "dtype size data",
        "Buffers XLA_FFI_Args": "struct_size extensions:extension_start size types items:args",
        "Buffers XLA_FFI_Rets": "struct_size extensions:extension_start size types items:rets",
        "Attributes XLA_FFI_Attrs": "struct_size extensions:extension_start size types names items:attrs",
        "CallFrame XLA_FFI_CallFrame": "struct_size extensions:extension_start api context:ctx stage arguments:args "
        "results:rets attributes:attrs",
        "Metadata XLA_FFI_Metadata": "struct_size version:api_version traits state_type:state_type_id",
        "MetadataExtension XLA_FFI_Metadata_Extension": "base:extension_base metadata",
    }
    values = {
        "kMajorVersion": "XLA_FFI_API_MAJOR",
        "kMetadataExtension": "XLA_FFI_Extension_Metadata",
        "kInvalidArgument": "XLA_FFI_Error_Code_INVALID_ARGUMENT",
        "kResourceExhausted": "XLA_FFI_Error_Code_RESOURCE_EXHAUSTED",
        "kFailedPrecondition": "XLA_FFI_Error_Code_FAILED_PRECONDITION",
        "kInternal": "XLA_FFI_Error_Code_INTERNAL",
        "kPred": "XLA_FFI_DataType_PRED",
        "kFloat32": "XLA_FFI_DataType_F32",
        "kFloat64": "XLA_FFI_DataType_F64",
        "kBuffer": "XLA_FFI_ArgType_BUFFER",
        "kArray": "XLA_FFI_AttrType_ARRAY",
        "kString": "XLA_FFI_AttrType_STRING",
        "kExecute": "XLA_FFI_ExecutionStage_EXECUTE",
    }
    lines = ['#include "xla/ffi/api/c_api.h"', '#include "xla_ffi.hpp"']
    for names, pairs in fields.items():
        ours, theirs = names.split()
        for pair in pairs.split():
            a, b = (pair.split(":") * 2)[:2]
            lines += [
                f"static_assert(offsetof(xla_ffi::{ours}, {a}) == offsetof({theirs}, {b}));",
                f"static_assert(sizeof(xla_ffi::{ours}::{a}) == sizeof({theirs}::{b}) || "
                f'!__builtin_strcmp("{a}", "results") || !__builtin_strcmp("{a}", "attributes"));',
            ]
    lines += [f"static_assert(int(xla_ffi::{a}) == int({b}));" for a, b in values.items()]
    lines += ["static_assert(int(XLA_FFI_RetType_BUFFER) == int(xla_ffi::kBuffer));"]
    source = tmp_path / "interface.cpp"
    source.write_text("\n".join(lines), encoding="utf-8")
    includes = [f"-I{folder}" for folder in (jax.ffi.include_dir(), here)]
    done = subprocess.run(
        [compiler, "-std=c++17", "-fsyntax-only", "-w", *includes, str(source)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_without_jax_the_import_names_what_to_install(run_python):
    printed = run_python(
        """
        import sys
        sys.modules["jax"] = None
        try:
            import fastrnn.jax
        except ImportError as error:
            print(error)
        """
    )
    assert "pip install fastrnn[jax]" in printed


@pytest.mark.parametrize("threads", [2, 4, 5, 8])
@pytest.mark.parametrize("batch", [1, 64])
def test_threads_do_not_change_the_bits(threads, batch):
    x, weights, _ = problem_of("lstm", batch, 20, 16, 64, "float32")
    gradient = jax.jit(jax.grad(loss_of("lstm"), argnums=(0, 1)))
    fastrnn.set_num_threads(1)
    one = jax.block_until_ready(gradient(weights, x))
    fastrnn.set_num_threads(threads)
    for _ in range(5):
        assert_equal(gradient(weights, x), one)


def test_teams_are_not_made_for_each_of_xlas_threads(run_python):
    printed = run_python(
        """
        import os
        import jax, jax.numpy as jnp
        import fastrnn, fastrnn.jax

        fastrnn.set_num_threads(6)
        x, W, U = jnp.zeros((64, 20, 16)), jnp.zeros((16, 256)), jnp.zeros((64, 256))
        run = jax.jit(fastrnn.jax.lstm)

        def threads_after(calls):
            for _ in range(calls):
                run(x, W, U).block_until_ready()
            return len(os.listdir("/proc/self/task"))

        fastrnn.set_num_threads(1)
        before = threads_after(50)
        fastrnn.set_num_threads(6)
        print(threads_after(200) - before)
        """
    )
    assert 0 < int(printed) <= 6  # the thread of large calls, and five of its team
