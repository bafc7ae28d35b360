"""Masks, dropout, activations, LSTM variants and peepholes of the layers: the results are those of Keras."""

import copy
import json
import pickle
import tracemalloc
from functools import partial

import numpy as np
import pytest
from support import (
    CELLS,
    GATES,
    as_list,
    assert_close,
    keras_in_float64,
    keras_layer,
    random_gradients,
    random_problem,
)
from test_cells import for_keras_cell
from test_functional_options import random_mask, without
from test_layers import (
    CLASSES,
    INPUTS,
    LAYERS,
    H,
    all_cells,
    assert_same,
    both_directions,
    build,
    built,
    cells,
    classes,
    initial_or_zeros,
    sequences_or_last,
    state_or_not,
    to_numpy,
)

from fastrnn import activations, functional, reference
from fastrnn import checkpoint as checkpoints
from fastrnn.layers import GRU, LSTM, IndRNN, SimpleRNN
from fastrnn.zoneout import ZoneoutMask

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

B, T = 4, 6


def compare_with_keras(ours, x, mask=None, states=None, masks=None, rtol=1e-12, **options):
    """Outputs and all gradients in training equal those of Keras, whose cells use the `masks` of dropout."""
    cell = {"SimpleRNN": "simple_rnn", "LSTM": "lstm", "GRU": "gru"}[type(ours).__name__]
    if cell == "gru" and not ours.reset_after:
        cell = "gru_reset_before"
    rates = {"dropout": ours.dropout, "recurrent_dropout": ours.recurrent_dropout}
    with keras_in_float64() as keras, pytest.MonkeyPatch.context() as patch:
        if keras.backend.backend() != "torch":
            pytest.skip("takes the gradient with PyTorch")
        theirs = keras_layer(cell, ours.get_weights(), **rates, **options)
        if masks is not None:
            patch.setitem(vars(ours), "_masks", lambda x, training, in_segments: masks)
            for name in ("dropout_mask", "recurrent_dropout_mask"):
                mask_of_cell = for_keras_cell(keras, masks.get(name))
                patch.setattr(theirs.cell, f"get_{name}", lambda step_input, mask=mask_of_cell: mask)
        tensor = keras.ops.convert_to_tensor(x).requires_grad_()
        tensors = states and [keras.ops.convert_to_tensor(s).requires_grad_() for s in states]
        their_mask = None if mask is None else keras.ops.convert_to_tensor(mask)
        expected = theirs(tensor, initial_state=tensors, mask=their_mask, training=True)
        outputs, tape = ours.forward(without(x, mask), initial_state=states, mask=mask)
        assert_close(as_list(outputs), to_numpy(keras, expected), rtol, "outputs")
        dy = random_gradients(outputs)
        pairs = zip(as_list(expected), as_list(dy), strict=True)
        sum((y * keras.ops.convert_to_tensor(d)).sum() for y, d in pairs).backward()
    gradients = ours.backward(dy, tape)
    assert_close(gradients.x, tensor.grad.numpy(), 20 * rtol, "x")
    assert_close(gradients.weights, [w.value.grad.numpy() for w in theirs.weights], 20 * rtol, "weights")
    if states:
        # what Keras doesn't read has no gradient there
        of_states = [
            np.zeros_like(s) if t.grad is None else t.grad for s, t in zip(states, tensors, strict=True)
        ]
        assert_close(gradients.initial_state, of_states, 20 * rtol, "initial_state")
    return outputs


# ---- Masks ----


def mask_of_kind(kind):
    """A mask [B, T] whose last row has no real step."""
    mask = random_mask(kind, B, T, np.random.default_rng(7))
    mask[:3] |= np.eye(3, T, 2, dtype=bool) & (kind == "holes")
    mask[3] = False
    return mask


@cells
@pytest.mark.parametrize("kind", ["left", "right", "holes", "nothing"])
@sequences_or_last
@state_or_not
@both_directions
@initial_or_zeros
@pytest.mark.parametrize("zero_output", [False, True], ids=["repeated", "zeros"])
def test_outputs_and_gradients_with_a_mask_are_those_of_keras(
    cell, kind, return_sequences, return_state, go_backwards, initial, zero_output
):
    problem = random_problem(cell, B, T, INPUTS, H)
    options = dict(return_sequences=return_sequences, return_state=return_state, go_backwards=go_backwards)
    options["zero_output_for_mask"] = zero_output
    ours = build(cell, problem.weights, **options)
    states = problem.initial_state if initial else None
    outputs = compare_with_keras(ours, problem.x, mask_of_kind(kind), states, **options)
    if not return_sequences:
        assert not as_list(outputs)[0][3].any()  # of the row without a real step
    if return_state and initial:
        assert_same([s[3] for s in outputs[1:]], [s[3] for s in states])


@classes
def test_keras_writes_and_reads_zero_output_for_mask(layer_class):
    layer = layer_class(3, zero_output_for_mask=True)
    assert layer_class.from_config(layer.get_config()).zero_output_for_mask


@all_cells
@sequences_or_last
def test_lengths_are_short_for_a_mask(cell, return_sequences):
    layer, _ = built(cell, return_sequences=return_sequences, return_state=True)
    x = np.random.default_rng(0).standard_normal((3, T, INPUTS)).astype("float32")
    lengths = [T, 2, 0]
    mask = np.arange(T) < np.array(lengths)[:, None]
    expected, expected_tape = layer.forward(x, mask=mask)
    outputs, tape = layer.forward(x, lengths=lengths)
    assert_same(outputs, expected)
    assert_same(layer(x, lengths=np.array(lengths, "uint8")), expected)
    assert_same(layer(x, mask=mask.tolist()), expected)
    for actual, wanted in zip(
        layer.backward(outputs, tape), layer.backward(outputs, expected_tape), strict=True
    ):
        assert_same(actual, wanted)


@all_cells
def test_states_that_are_kept_pass_over_masked_steps(cell):
    problem = random_problem(cell, B, T, INPUTS, H)
    mask = mask_of_kind("right")
    layer = build(cell, problem.weights, stateful=True)
    plain = build(cell, problem.weights, return_state=True)
    layer(problem.x, mask=mask)
    _, *states = plain(problem.x, mask=mask)
    assert_same(layer.states, states)
    assert_same(layer(problem.x, mask=mask), plain(problem.x, mask=mask, initial_state=states)[0])


@pytest.mark.parametrize(
    "given, error, message",
    [
        ({"mask": np.ones((B, T))}, TypeError, r"mask must be an array of bool, .*, got float64; "),
        (
            {"mask": np.ones((B, T, 1), bool)},
            ValueError,
            r"mask must have shape \(4, 6\) .*, got \(4, 6, 1\)",
        ),
        ({"mask": np.ones((T, B), bool)}, ValueError, r"mask must have shape \(4, 6\) .*, got \(6, 4\)"),
        ({"lengths": [1, 2, 3]}, ValueError, r"lengths must have shape \(4,\), one for each row, got \(3,\)"),
        ({"lengths": [1, 2, 3, 7]}, ValueError, r"lengths must be from 0 to 6, .*, got 7; "),
        ({"lengths": [1.0, 2, 3, 4]}, TypeError, r"lengths must be integers, got float64; "),
        (
            {"lengths": [T] * B, "mask": np.ones((B, T), bool)},
            ValueError,
            r"lengths and mask must not both be",
        ),
    ],
)
def test_masks_and_lengths_that_do_not_fit_are_refused(given, error, message):
    layer = LSTM(3, stateful=True)
    x = np.ones((B, T, INPUTS), "float32")
    for call in (layer, layer.forward):
        with pytest.raises(error, match=f"^LSTM: {message}"):
            call(x, **given)
    assert layer.states is None


@pytest.mark.parametrize(
    "given", [{"mask": np.ones((B, T), bool)}, {"lengths": [T] * B}], ids=["mask", "lengths"]
)
@pytest.mark.parametrize("is_built", [True, False], ids=["built", "first_call"])
def test_an_input_of_wrong_rank_is_refused_with_masks_too(given, is_built):
    layer = LSTM(3, dropout=0.5)
    if is_built:
        layer.build((None, None, INPUTS))
    for wrong in (np.ones(B), np.ones((B, INPUTS)), np.ones((B, T, INPUTS, 1)), np.float32(1)):
        with pytest.raises(ValueError, match=r"^LSTM: x must have shape \[batch, time, features\], got "):
            layer.forward(wrong.astype("float32"), **given)


# ---- Dropout ----

RATES = [(0.4, 0.0), (0.0, 0.3), (0.4, 0.3)]
rates = pytest.mark.parametrize("dropout, recurrent_dropout", RATES, ids=["inputs", "states", "both"])
ONES = np.ones((B, T, INPUTS), "float32")


@cells
@rates
@sequences_or_last
@pytest.mark.parametrize("kind", ["none", "holes"], ids=["no_mask", "mask"])
def test_outputs_and_gradients_with_dropout_are_those_of_keras_with_the_same_masks(
    cell, dropout, recurrent_dropout, return_sequences, kind
):
    problem = random_problem(cell, B, T, INPUTS, H)
    options = dict(return_sequences=return_sequences, return_state=True)
    ours = build(cell, problem.weights, dropout=dropout, recurrent_dropout=recurrent_dropout, **options)
    mask = None if kind == "none" else mask_of_kind(kind)
    masks = ours._masks(problem.x, True)
    compare_with_keras(ours, problem.x, mask, problem.initial_state, masks, **options)


@all_cells
@rates
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_masks_are_zero_at_the_rate_and_inverse_elsewhere(cell, dropout, recurrent_dropout, dtype):
    layer = LAYERS[cell](200, dropout=dropout, recurrent_dropout=recurrent_dropout, dtype=dtype, seed=1)
    masks = layer._masks(np.zeros((300, T, 100), dtype), True)
    gates = (GATES[cell],) if recurrent_dropout else ()
    expected = {"dropout_mask": (dropout, 100), "recurrent_dropout_mask": (recurrent_dropout, 200)}
    assert masks.keys() == {name for name, (rate, _) in expected.items() if rate}
    for name, mask in masks.items():
        rate, size = expected[name]
        assert mask.shape == (300, *gates, size) and mask.dtype == dtype
        assert set(np.unique(mask)) == {0, np.dtype(dtype).type(1 / (1 - rate))}
        deviation = np.sqrt(rate * (1 - rate) / mask.size)
        assert abs(np.mean(mask == 0) - rate) < 4 * deviation
        flat = mask.reshape(300, -1, size)
        assert np.ptp(np.mean(flat == 0, axis=(1, 2))) > 0  # rows differ
        for other in range(1, flat.shape[1]):  # and gates
            assert abs(np.corrcoef(flat[:, 0].ravel(), flat[:, other].ravel())[0, 1]) < 0.03


def test_one_mask_serves_all_steps():
    options = dict(activation="linear", use_bias=False, return_sequences=True, dtype="float64")
    layer = SimpleRNN(200, dropout=0.25, **options)
    layer.build((None, None, 200))
    layer.set_weights([np.eye(200), np.zeros((200, 200))])
    y = layer(np.ones((50, T, 200)), training=True)
    assert_same(y, np.repeat(y[:, :1], T, axis=1))
    assert set(np.unique(y)) == {0, 1 / (1 - 0.25)}
    assert abs(np.mean(y[:, 0] == 0) - 0.25) < 0.02
    layer = SimpleRNN(200, recurrent_dropout=0.5, **options)
    layer.build((None, None, 200))
    layer.set_weights([np.zeros((200, 200)), np.eye(200)])
    y = layer(np.ones((50, T, 200)), initial_state=np.ones((50, 200)), training=True)
    assert_same(y, y[:, :1] ** np.arange(1, T + 1)[:, None])
    assert set(np.unique(y[:, 0])) == {0, 2}


@classes
@rates
def test_each_call_in_training_draws_anew_and_a_seed_repeats_the_draws(
    layer_class, dropout, recurrent_dropout
):
    def results(seed, weights=None, calls=4):
        layer = layer_class(
            H, dropout=dropout, recurrent_dropout=recurrent_dropout, seed=seed, return_sequences=True
        )
        layer.build(ONES.shape)
        if weights is not None:
            layer.set_weights(weights)
        drawn = []
        for number in range(calls):
            drawn.append(layer.forward(ONES)[0] if number % 2 else layer(ONES, training=True))
            layer(ONES)  # draws nothing
            layer.forward(ONES, training=None)
        return drawn, layer.weights

    first, weights = results(1)
    assert_same(results(1)[0], first)
    others = [y for seed in (2, None, None) for y in results(seed, weights, 1)[0]]
    drawn = [*first, *others]
    for k, y in enumerate(drawn):
        assert not any(np.array_equal(y, other) for other in drawn[:k])


@all_cells
@rates
def test_without_training_nothing_is_dropped(cell, dropout, recurrent_dropout):
    problem = random_problem(cell, B, T, INPUTS, H, "float32")
    layer = build(cell, problem.weights, dropout=dropout, recurrent_dropout=recurrent_dropout)
    plain = build(cell, problem.weights)
    expected = plain(problem.x)
    assert_same(layer(problem.x), expected)
    for training in (False, None, np.False_):
        assert_same(layer(problem.x, training=training), expected)
        assert_same(layer.forward(problem.x, training=training)[0], expected)
    assert not np.array_equal(layer(problem.x, training=np.True_), expected)
    assert_same(layer.step(problem.x[:, 0])[0], plain.step(problem.x[:, 0])[0])


@rates
@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))],
    ids=["copy", "deep", "pickle"],
)
@pytest.mark.parametrize("seed", [1, None])
def test_copies_go_on_with_the_draws_where_the_original_is(duplicate, dropout, recurrent_dropout, seed):
    layer = LSTM(H, dropout=dropout, recurrent_dropout=recurrent_dropout, seed=seed)
    layer(ONES, training=True)
    twin = duplicate(layer)
    for _ in range(2):
        assert_same(twin(ONES, training=True), layer(ONES, training=True))


def test_the_tape_of_a_call_keeps_its_masks():
    layer, x = built("gru", dropout=0.5, recurrent_dropout=0.5)
    masks = layer._masks(x, True)
    layer._calls -= 1
    y, tape = layer.forward(x)
    layer.forward(x)
    expected = functional.gru_forward(x, *layer.weights, **masks)
    assert_same(y, expected[0])
    gradients, expected = layer.backward(y, tape), functional.gru_backward(y, expected[1])
    assert_same([gradients.x, *gradients.weights], [expected.x, *expected.weights])


# ---- Activations ----

# Keras' functions on PyTorch are a little off in float64: softplus is x above 20, the slope of hard_sigmoid float32's 1/6.
ROUGH = ("softplus", "mish", "hard_sigmoid", "hard_silu", "log_sigmoid")
OF_KERAS = sorted(activations.NAMES.keys() - {"affine", "scaled_tanh", "thresholded_relu"})


@cells
@pytest.mark.parametrize("name", OF_KERAS)
def test_activations_by_name_are_those_of_keras(cell, name):
    problem = random_problem(cell, B, T, INPUTS, H)
    weights = [w / (10 if name == "exponential" else 2) for w in problem.weights]  # some grow fast
    chosen = {"activation": name}
    if cell != "simple_rnn":
        chosen["recurrent_activation"] = "sigmoid" if name == "exponential" else name
    ours = build(cell, weights, return_sequences=True, **chosen)
    rtol = 1e-7 if name in ROUGH else 1e-12
    compare_with_keras(
        ours, problem.x, states=problem.initial_state, rtol=rtol, return_sequences=True, **chosen
    )


@pytest.mark.parametrize(
    "cell, argument",
    [(c, "activation") for c in CELLS] + [(c, "recurrent_activation") for c in list(CELLS)[1:]],
)
def test_each_activation_has_its_own_place(cell, argument):
    problem = random_problem(cell, B, T, INPUTS, H)
    ours = build(cell, problem.weights, **{argument: "hard_tanh"})
    compare_with_keras(ours, problem.x, **{argument: "hard_tanh"})


@classes
@pytest.mark.parametrize("name", [*OF_KERAS, None])
def test_activations_go_to_keras_and_back_in_configs(layer_class, name):
    import keras

    ours = layer_class(3, activation=name)
    theirs = getattr(keras.layers, layer_class.__name__).from_config(ours.get_config())
    again = layer_class.from_config(json.loads(json.dumps(theirs.get_config())))
    assert again.activation == ours.activation == activations.get(name)
    assert layer_class(3, activation=keras.activations.get(name)).activation == ours.activation


@classes
def test_an_activation_with_parameters_goes_through_json(layer_class):
    leaky = activations.Activation("leaky_relu", alpha=0.01, clip=3)
    layer = layer_class(3, activation=leaky, seed=1)
    again = layer_class.from_config(json.loads(json.dumps(layer.get_config())))
    assert again.activation == leaky
    x = np.ones((B, T, INPUTS), "float32")
    assert_same(again(x), layer(x))
    assert not np.array_equal(layer_class(3, activation="leaky_relu", seed=1)(x), layer(x))


# ---- LSTM variants and peepholes ----

VARIANTS = [(v, p) for v in functional.VARIANTS for p in (None, True, False) if (v, p) != ("np", True)]
variants = pytest.mark.parametrize("variant, peephole", VARIANTS, ids=str)


def lstm_variant(variant, peephole, **options):
    layer = LSTM(H, variant=variant, peephole=peephole, dtype="float64", seed=1, **options)
    layer.build((None, None, INPUTS))
    rng = np.random.default_rng(0)
    layer.set_weights([w + 0.3 * rng.standard_normal(w.shape) for w in layer.weights])
    return layer


@variants
@pytest.mark.parametrize("use_bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("plain", [True, False], ids=["plain", "masks"])
def test_variants_are_those_of_the_reference(variant, peephole, use_bias, plain):
    layer = lstm_variant(
        variant, peephole, use_bias=use_bias, return_sequences=True, return_state=True, recurrent_dropout=0.3
    )
    rng = np.random.default_rng(1)
    x = rng.standard_normal((B, T, INPUTS))
    states = [rng.standard_normal((B, H)) for _ in range(5 if variant == "fgr" else 2)]
    mask = None if plain else mask_of_kind("holes")
    masks = {} if plain else layer._masks(x, True)
    layer._masks = lambda x, training, in_segments: masks
    weights = layer.get_weights()
    bias = weights[2] if use_bias else None
    others = {"gate_kernel": weights.pop()} if variant == "fgr" else {}
    has_peepholes = len(weights) > 2 + use_bias
    assert has_peepholes == (variant not in (None, "np") if peephole is None else peephole)
    expected, expected_tape = reference.lstm_forward(
        x,
        *weights[:2],
        bias,
        variant=variant,
        peephole=weights[-1] if has_peepholes else None,
        initial_state=states,
        mask=mask,
        return_sequences=True,
        return_state=True,
        **masks,
        **others,
    )
    outputs, tape = layer.forward(x, initial_state=states, mask=mask)
    assert_close(outputs, expected, 1e-12)
    dy = random_gradients(outputs)
    gradients = layer.backward(dy, tape)
    assert_close(gradients, reference.lstm_backward(list(dy), expected_tape), 1e-11)
    assert [g.shape for g in gradients.weights] == [w.shape for w in layer.weights]


@variants
def test_weights_of_a_variant_are_those_of_its_gates(variant, peephole):
    layer = LSTM(H, variant=variant, peephole=peephole)
    layer.build((None, None, INPUTS))
    gates = reference.LSTM_GATES[variant]
    columns = len(gates) * H
    rows = len(set(gates) - {"g"})
    shapes = [(INPUTS, columns), (H, columns), (columns,)]
    has_peepholes = variant not in (None, "np") if peephole is None else peephole
    own = [(3 * H, 3 * H)] * (variant == "fgr")
    assert [w.shape for w in layer.weights] == shapes + [(rows, H)] * has_peepholes + own
    assert_same(layer.bias, np.repeat(np.array([gate == "f" for gate in gates], "float32"), H))
    if has_peepholes:
        assert not layer.weights[3].any()
        assert f", peephole {[rows, H]}" in repr(layer)
    with pytest.raises(
        ValueError, match=r"^LSTM: weights must be \d arrays \(kernel, recurrent_kernel, bias"
    ):
        layer.set_weights(layer.weights[:-1])


@variants
def test_configs_and_copies_of_a_variant(variant, peephole):
    layer = lstm_variant(variant, peephole)
    config = json.loads(json.dumps(layer.get_config()))
    given = {"variant": variant, "peephole": peephole}
    assert {name: config.get(name) for name in given} == given
    again = LSTM.from_config(config)
    assert again.get_config() == layer.get_config() and again.peephole is peephole
    again.build((None, None, INPUTS))
    again.set_weights(layer.weights)
    x = np.random.default_rng(0).standard_normal((B, T, INPUTS))
    for twin in (again, copy.copy(layer), pickle.loads(pickle.dumps(layer))):
        assert_same(twin(x), layer(x))
    y, *_ = lstm_variant(variant, peephole, return_sequences=True, return_state=True)(x)
    states = None
    for t in range(T):
        y_t, states = layer.step(x[:, t], states)
        assert_close(y_t, y[:, t], 1e-13)


def test_peepholes_begin_without_a_say():
    x = np.random.default_rng(0).standard_normal((B, T, INPUTS)).astype("float32")
    assert_close(LSTM(H, variant="vanilla", seed=1)(x), LSTM(H, seed=1)(x), 1e-6)


def test_the_variant_without_peepholes_has_none():
    with pytest.raises(
        ValueError, match=r'^LSTM: variant "np" is the LSTM without peepholes; leave peephole out$'
    ):
        LSTM(H, variant="np", peephole=True)
    assert all(not hasattr(c(3), "variant") for c in CLASSES if c is not LSTM)


# ---- Ids and an embedding ----

ROWS = 7


def embedded(cell, dtype="float64", bias=True, **options):
    """A layer with an embedding, the same one without, ids, and the embedding."""
    weights = random_problem(cell, B, T, INPUTS, H, dtype, bias=bias).weights
    rng = np.random.default_rng(2)
    embedding, ids = rng.standard_normal((ROWS, INPUTS)).astype(dtype), rng.integers(0, ROWS, (B, T))
    layer = LAYERS[cell](H, use_bias=bias, dtype=dtype, embedding=embedding, seed=1, **options)
    layer.build((None, None))
    layer.set_weights([*weights, embedding])
    return layer, build(cell, weights, seed=1, **options), ids, embedding


@all_cells
@sequences_or_last
@state_or_not
@both_directions
@initial_or_zeros
@pytest.mark.parametrize(
    "given", [{}, {"mask": "holes"}, {"lengths": [T, 2, 0, 3]}], ids=["all", "mask", "lengths"]
)
@pytest.mark.parametrize("checkpoint", [False, 2], ids=["tape", "checkpoints"])
def test_ids_give_what_the_rows_of_the_embedding_give(
    cell, return_sequences, return_state, go_backwards, initial, given, checkpoint
):
    options = dict(return_sequences=return_sequences, return_state=return_state, go_backwards=go_backwards)
    layer, plain, ids, embedding = embedded(cell, dropout=0.3, recurrent_dropout=0.2, **options)
    mask, plain_given = np.ones((B, T), bool), given
    if "lengths" in given:
        mask = np.arange(T) < np.array(given["lengths"])[:, None]
    elif given:
        mask = mask_of_kind("holes")
        given, plain_given = {"mask": mask.copy()}, {"mask": mask}
    states = random_problem(cell, B, T, INPUTS, H).initial_state if initial else None
    padded = np.where(mask, ids, 10**9)
    x = embedding[np.where(mask, ids, 0)]
    assert_same(layer(padded, states, **given), plain(x, states, **given))
    outputs, tape = layer.forward(padded, states, checkpoint=checkpoint, **given)
    expected, expected_tape = plain.forward(x, states, checkpoint=checkpoint, **plain_given)
    assert_same(outputs, expected)
    padded[:] = 10**9  # ids and masks are copied
    if "mask" in given:
        given["mask"][:] = True
    dy = random_gradients(outputs)
    gradients, expected = layer.backward(dy, tape), plain.backward(dy, expected_tape)
    assert_close(gradients.x, np.where(mask[:, :, None], expected.x, 0), 1e-14)
    assert_close(gradients.weights[:-1], expected.weights, 1e-14)
    dense = np.zeros_like(embedding)
    np.add.at(dense, ids[mask], expected.x[mask])
    assert_close(gradients.weights[-1], dense, 1e-13)
    assert_close(gradients.initial_state, expected.initial_state, 1e-14)


@all_cells
def test_steps_take_ids_too(cell):
    layer, plain, ids, embedding = embedded(cell, "float32", stateful=True)
    states = None
    for t in range(T):
        y_t, states = layer.step(ids[:, t].tolist(), states)
    assert_close(y_t, plain(embedding[ids]), 1e-6)
    layer(ids)
    plain.reset_state()
    plain(embedding[ids])
    assert_same(layer(ids), plain(embedding[ids]))
    assert_same(layer.states, plain.states)


@all_cells
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
def test_the_embedding_is_the_last_of_the_weights(cell, bias):
    layer, plain, _, embedding = embedded(cell, "float32", bias)
    assert_same(layer.weights, [*plain.weights, embedding])
    assert layer.count_params() == plain.count_params() + embedding.size
    assert layer.embedding == (ROWS, INPUTS)
    assert [w.dtype for w in layer.get_weights()] == ["float32"] * len(layer.weights)
    assert not layer.weights[-1].flags.writeable
    embedding[:] = 0
    assert layer.weights[-1].any()
    assert repr(layer).endswith(f", embedding [{ROWS}, {INPUTS}]")
    with pytest.raises(ValueError, match=r"weights must be \d arrays \(kernel, .*, embedding\), got 2; "):
        layer.set_weights(plain.weights[:2])
    assert layer.compute_output_shape((B, T)) == (B, H)


@classes
def test_an_embedding_may_be_given_by_its_shape(layer_class):
    layer = layer_class(3, embedding=(50, 8), seed=1)
    layer(np.zeros((2, 4), "uint8"))
    drawn = layer.weights[-1]
    assert drawn.shape == (50, 8) and drawn.min() < -0.04 and 0.04 < drawn.max() <= 0.05
    plain = layer_class(3, seed=1)
    plain.build((None, None, 8))
    assert_same(layer.weights[:-1], plain.weights)
    again = layer_class.from_config(json.loads(json.dumps(layer.get_config())))
    again.build((None, None))
    assert_same(again.weights, layer.weights)
    assert again.get_config() == layer.get_config() and repr(again) == repr(layer)
    given = layer_class(3, embedding=drawn, dtype="float64")
    given.build((None, None))
    assert_same(given.weights[-1], drawn.astype("float64"))
    assert "embedding" not in plain.get_config()


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
@pytest.mark.parametrize("is_built", [True, False])
def test_copies_of_a_layer_with_an_embedding(duplicate, is_built):
    rng = np.random.default_rng(0)
    layer = LSTM(3, embedding=rng.standard_normal((ROWS, 2)), seed=1)
    ids = rng.integers(0, ROWS, (B, T))
    if is_built:
        layer.build((None, None))
    assert_same(duplicate(layer)(ids), layer(ids))


def test_an_embedding_with_regularizers_and_constraints_of_the_others():
    layer, plain, ids, embedding = embedded(
        "lstm", kernel_regularizer="l2", kernel_constraint="unit_norm", activity_regularizer="l2"
    )
    (y, tape), (_, expected_tape) = layer.forward(ids), plain.forward(embedding[ids])
    assert tape.losses == expected_tape.losses
    gradients, expected = layer.backward(y, tape), plain.backward(y, expected_tape)
    assert_close(gradients.weights[:-1], expected.weights, 1e-14)
    for each in (layer, plain):
        each.apply_constraints()
    assert_same(layer.weights, [*plain.weights, embedding])


IDS = np.zeros((B, T), int)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: LSTM(3, embedding=[1.0, 2.0]), ValueError, r": embedding must be an array \[V, I\] of floats, or its"),
        (lambda: LSTM(3, embedding=[[1, 2]]), ValueError, r": embedding must be an array \[V, I\] of floats, or its"),
        (lambda: LSTM(3, embedding=True), TypeError, r": embedding must be an array \[V, I\] of floats, or its shape"),
        (lambda: LSTM(3, embedding=(5, -1)), ValueError, r": embedding must be .* sizes are 0 or more"),
        (lambda: LSTM(3, embedding=np.ma.ones((2, 2))), TypeError, r": embedding must be a plain array, got a masked"),
        (lambda: LSTM(3, embedding=(5, 2))(IDS + 5), ValueError, r": x must have ids from 0 to 4, .*, got 5 at \[0, 0"),
        (lambda: LSTM(3, embedding=(5, 2))(IDS - 1), ValueError, r": x must have ids from 0 to 4, .*, got -1 at"),
        (lambda: LSTM(3, embedding=(5, 2))(IDS * 1.0), TypeError, r": x must be integers, rows of the embedding, got f"),
        (lambda: LSTM(3, embedding=(5, 2))(IDS > 0), TypeError, r": x must be integers, rows of the embedding, got b"),
        (lambda: LSTM(3, embedding=(5, 2))(IDS[0]), ValueError, r": x must have shape \[batch, time\], got \(6,\)"),
        (lambda: LSTM(3, embedding=(5, 2)).forward(IDS, lengths=[9] * B), ValueError, r": lengths must be from 0 to 6"),
        (lambda: LSTM(3, embedding=(5, 2)).step(IDS), ValueError, r"\.step: x_t must have shape \[batch\], got"),
        (lambda: LSTM(3, embedding=(5, 2)).step(IDS[0] + 5), ValueError, r"\.step: x_t must have ids from 0 to 4, "),
        (lambda: LSTM(3, embedding=(5, 2)).build((1, 2, 3)), ValueError, r": input_shape must be \(batch, time\), "),
    ],
)  # fmt: skip
def test_embeddings_and_ids_that_do_not_fit_are_refused(call, error, message):
    with pytest.raises(error, match=f"^LSTM{message}"):
        call()


def test_ids_that_are_refused_are_refused_by_a_built_layer_too():
    layer = LSTM(3, embedding=(5, 2), stateful=True)
    layer.build((None, None))
    for call in (layer, layer.forward):
        for wrong in (IDS + 5, IDS[0], IDS[..., None], IDS.astype("float32"), np.zeros((B, T, 2), "float32")):
            with pytest.raises((TypeError, ValueError), match=r"^LSTM: x must "):
                call(wrong)
            with pytest.raises((TypeError, ValueError), match=r"^LSTM\.step: x_t must "):
                layer.step(wrong if wrong.ndim > 1 else wrong.astype("float32"))
    assert layer.states is None


# ---- Projection, layer normalization, zoneout


def extended(layer_class, dtype, **options):
    """A built layer whose weights are all random, and the arguments of the reference for them."""
    layer = layer_class(5, dtype=dtype, return_sequences=True, return_state=True, seed=1, **options)
    layer.build((None, None, 3))
    rng = np.random.default_rng(2)
    shapes = layer._weight_shapes(3)
    layer.set_weights([0.5 * rng.standard_normal(shape) for shape in shapes.values()])
    kernel, recurrent_kernel, bias, *others = layer.get_weights()
    named = dict(zip(list(shapes)[3:], others, strict=True))
    forward = {
        SimpleRNN: reference.simple_rnn_forward,
        IndRNN: reference.indrnn_forward,
        LSTM: reference.lstm_forward,
        GRU: reference.gru_forward,
    }[layer_class]
    if layer_class is IndRNN:
        named["activation"] = "relu"
    return layer, partial(forward, kernel=kernel, recurrent_kernel=recurrent_kernel, bias=bias, **named)


EXTENDED = [
    *((layer_class, {"zoneout": 0.3}) for layer_class in (SimpleRNN, IndRNN, LSTM, GRU)),
    *((layer_class, {"layer_norm": True}) for layer_class in (SimpleRNN, LSTM, GRU)),
    (LSTM, {"proj_size": 2}),
    (LSTM, {"proj_size": 5, "variant": "vanilla", "layer_norm": True, "zoneout": 0.2}),
]


@pytest.mark.parametrize(("layer_class", "options"), EXTENDED)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("checkpoint", [False, 2])
def test_projections_normalization_and_zoneout_are_those_of_the_reference(
    layer_class, options, dtype, training, checkpoint
):
    layer, forward = extended(layer_class, dtype, **options)
    x = np.random.default_rng(3).standard_normal((4, 7, 3)).astype(dtype)
    lengths = np.array([7, 3, 0, 5])
    mask = np.arange(7) < lengths[:, None]
    layer._calls = 0
    masks = layer._masks(x, training) if "zoneout" in options else {}
    layer._calls = 0
    outputs, tape = layer.forward(x, lengths=lengths, training=training, checkpoint=checkpoint)
    expected, expected_tape = forward(x, mask=mask, return_sequences=True, return_state=True, **masks)
    rtol = 1e-11 if dtype == "float64" else 2e-5
    assert_close(outputs, expected, rtol)
    assert [o.shape for o in outputs] == [
        tuple(4 if n is None else n for n in shape) for shape in layer.compute_output_shape((None, 7, 3))
    ]
    dy = random_gradients(outputs)
    backward = reference.lstm_backward if layer_class is LSTM else reference.simple_rnn_backward
    assert_close(layer.backward(list(dy), tape), backward(list(dy), expected_tape), 10 * rtol)


@pytest.mark.parametrize(("layer_class", "options"), EXTENDED)
@pytest.mark.parametrize("own", [False, True], ids=["new", "out"])
def test_steps_of_extended_layers_equal_their_calls(layer_class, options, dtype, own):
    layer, _ = extended(layer_class, dtype, **options)
    x = np.random.default_rng(3).standard_normal((4, 6, 3)).astype(dtype)
    y, *final = layer(x)
    states = [np.zeros((4, width), dtype) for width in layer._widths]
    for t in range(6):
        y_t, states = layer.step(x[:, t], states, out=states if own else None)
        assert_close(y_t, y[:, t], 1e-12 if dtype == "float64" else 2e-6)
    assert_close(states, final, 1e-12 if dtype == "float64" else 2e-6)


@pytest.mark.parametrize(("layer_class", "options"), EXTENDED)
def test_extended_layers_go_through_configs_and_pickles(layer_class, options):
    layer, _ = extended(layer_class, "float32", **options)
    config = layer.get_config()
    assert options.items() <= config.items()
    again, copied = layer_class.from_config(config), pickle.loads(pickle.dumps(layer))
    assert repr(again.get_config()) == repr(config)
    x = np.zeros((2, 4, 3), "float32")
    assert_close(copied(x), layer(x), 0)
    again.build((None, None, 3))
    assert [w.shape for w in again.weights] == [w.shape for w in layer.weights]
    assert sum(w.size for w in layer.weights) == layer.count_params()


def test_zoneout_keeps_units_at_its_rate_and_is_reproducible():
    layer = GRU(50, zoneout=0.25, return_sequences=True, seed=3)
    x = np.random.default_rng(0).standard_normal((40, 20, 3)).astype("float32")
    first, second = layer(x, training=True), layer(x, training=True)
    assert not np.array_equal(first, second)
    kept = first[:, 1:] == first[:, :-1]
    assert kept.mean() == pytest.approx(0.25, abs=0.02)
    again = GRU(50, zoneout=0.25, return_sequences=True, seed=3)
    np.testing.assert_array_equal(again(x, training=True), first)


@pytest.mark.parametrize("shape", [(3, 7, 5), (1, 7, 3), (4, 1, 3), (0, 3, 2), (2, 0, 3)])
@pytest.mark.parametrize("begin", [0, 3, 10])
def test_steps_of_a_zoneout_mask_are_those_of_the_whole(shape, begin, dtype):
    seed, T = np.random.SeedSequence(5), shape[1]
    rng = np.random.default_rng(seed)
    rng.random(begin, np.float32)
    expected = (rng.random(shape, np.float32) < 0.4).astype(dtype)
    mask = ZoneoutMask(seed, begin, shape, 0.4, np.dtype(dtype))
    for first in range(T + 1):
        for end in range(first, T + 1):
            steps = mask[:, first:end]
            np.testing.assert_array_equal(steps, expected[:, first:end])
            assert steps.dtype == dtype


@pytest.mark.parametrize("rates", [{}, {"dropout": 0.5}, {"dropout": 0.5, "recurrent_dropout": 0.5}])
@both_directions
def test_checkpoints_draw_zoneout_in_segments_as_it_is_drawn_in_one(rates, go_backwards):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((5, 9, 3))
    options = dict(zoneout=0.3, seed=4, dtype="float64", return_sequences=True, go_backwards=go_backwards)
    results = []
    for checkpoint in (False, 4):
        layer = LSTM(5, **options, **rates)
        y, tape = layer.forward(x, lengths=[9, 3, 0, 5, 8], checkpoint=checkpoint)
        gradients = layer.backward(np.ones_like(y), tape)
        results.append((y, gradients))
    np.testing.assert_array_equal(results[1][0], results[0][0])
    assert_close(results[1][1], results[0][1], 1e-13)
    for wrong in (x[0], x[:, :, :2]):
        with pytest.raises(ValueError, match="LSTM: x must have"):
            layer.forward(wrong, checkpoint=4)
    with pytest.raises(ValueError, match="LSTM: mask must have shape"):
        layer.forward(x, mask=np.ones((5, 8), bool), checkpoint=4)


def test_checkpoints_refuse_drawn_masks_of_zoneout_that_do_not_fit():
    layer, x = GRU(4, zoneout=0.1), np.zeros((5, 9, 3), "float32")
    layer.build(x.shape)
    mask = ZoneoutMask(np.random.SeedSequence(1), 0, (5, 8, 4), 0.1, np.dtype("float32"))
    with pytest.raises(ValueError, match=r"zoneout_mask\[0\] must have shape \(5, 9, 4\)"):
        checkpoints.run_forward(layer._packed, x, every=2, zoneout_mask=[mask])


def test_zoneout_takes_the_memory_of_a_segment_with_checkpoints():
    layer, x = GRU(64, zoneout=0.1, seed=4), np.zeros((4, 2500, 2), "float32")
    layer.build(x.shape)
    tracemalloc.start()
    try:
        y, tape = layer.forward(x, checkpoint=True)
        layer.backward(y, tape)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 4 * 2500 * 64 * 4 / 4  # a fourth of one mask


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"proj_size": 6}, ValueError, "LSTM: proj_size must be at most units, 5, got 6"),
        ({"proj_size": 0}, ValueError, "LSTM: proj_size must be None or a positive integer, got 0"),
        ({"proj_size": 2, "variant": "nig"}, ValueError, "LSTM: variant 'nig' has no projection"),
        ({"zoneout": 1.0}, ValueError, "LSTM: zoneout must be a number from 0 to less than 1, got 1.0"),
        ({"layer_norm": 1}, TypeError, "LSTM: layer_norm must be True or False, got 1"),
    ],
)
def test_impossible_extensions_are_refused(options, error, message):
    with pytest.raises(error) as caught:
        LSTM(5, **options)
    assert str(caught.value).startswith(message)
