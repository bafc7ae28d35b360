"""The regularizers: losses and gradients, alone and in a layer, are those of Keras."""

import json

import numpy as np
import pytest
from support import (
    CELLS,
    as_list,
    assert_close,
    import_keras,
    keras_in_float64,
    keras_layer,
    random_gradients,
    random_problem,
)
from test_layers import INPUTS, LAYERS, B, H, T, assert_same, build, sequences_or_last, state_or_not

from fastrnn import (
    GRU,
    LSTM,
    RNN,
    Bidirectional,
    GRUCell,
    IndRNN,
    LSTMCell,
    SimpleRNN,
    constraints,
    regularizers,
)
from fastrnn.arguments import OF_WEIGHTS
from fastrnn.regularizers import L1, L1L2, L2, OrthogonalRegularizer

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

REGULARIZERS = [
    L1(0.3),
    L2(0.2),
    L1L2(0.3, 0.2),
    L1L2(),
    OrthogonalRegularizer(0.4),
    OrthogonalRegularizer(0.4, mode="columns"),
]
NAMES = ["l1", "l2", "l1l2", "orthogonal_regularizer", "L1", "L2", "L1L2", "OrthogonalRegularizer"]

every_regularizer = pytest.mark.parametrize("regularizer", REGULARIZERS, ids=repr)
cells = pytest.mark.parametrize("cell", CELLS)


class Cubic:
    """A regularizer of one's own: 0.1 * sum |w|**3."""

    def __call__(self, w):
        return 0.1 * np.sum(np.abs(w) ** 3)

    def gradient(self, w):
        return 0.3 * np.sign(w) * w**2


def to_keras(regularizer):
    return import_keras().regularizers.get(regularizers.serialize(regularizer))


def matrix(dtype="float64", shape=(5, 7)):
    w = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    w[1, 2] = 0
    return w


# ---- Alone ----


@every_regularizer
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_loss_and_gradient_are_those_of_keras(regularizer, dtype):
    w = matrix(dtype)
    with keras_in_float64() as keras:
        if keras.backend.backend() != "torch":
            pytest.skip("takes the gradient with PyTorch")
        tensor = keras.ops.convert_to_tensor(w).requires_grad_()
        loss = to_keras(regularizer)(tensor)
        if loss.requires_grad:
            loss.backward()
    expected = np.zeros_like(w) if tensor.grad is None else tensor.grad.numpy()
    tolerance = {"float32": 1e-6, "float64": 1e-7}[dtype]  # Keras keeps some factors in float32
    assert regularizer(w) == pytest.approx(float(loss.detach()), rel=tolerance)
    assert regularizer.gradient(w).dtype == dtype
    assert_close(regularizer.gradient(w), expected, tolerance)


@every_regularizer
def test_gradient_is_that_of_finite_differences(regularizer):
    w = np.random.default_rng(1).standard_normal((3, 4))
    numeric = np.zeros_like(w)
    for at in np.ndindex(w.shape):
        step = np.zeros_like(w)
        step[at] = 1e-6
        numeric[at] = (regularizer(w + step) - regularizer(w - step)) / 2e-6
    np.testing.assert_allclose(regularizer.gradient(w), numeric, atol=1e-8)


def test_a_row_of_zeros_has_no_angle():
    w = matrix()
    w[2] = 0
    assert not OrthogonalRegularizer().gradient(w)[2].any()


@pytest.mark.parametrize("shape", [(3,), (1, 3), (2, 3, 4)], ids=str)
def test_angles_need_a_matrix_of_two_rows(shape):
    message = rf"^OrthogonalRegularizer: w must be a matrix of two rows or more, got shape \({shape[0]}"
    for call in (OrthogonalRegularizer(), OrthogonalRegularizer().gradient):
        with pytest.raises(ValueError, match=message):
            call(np.ones(shape))


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), "a", True], ids=str)
@pytest.mark.parametrize(
    "make, name",
    [(L1, "l1"), (L2, "l2"), (lambda v: L1L2(l2=v), "l2"), (OrthogonalRegularizer, "factor")],
    ids=["L1", "L2", "L1L2", "OrthogonalRegularizer"],
)
def test_a_factor_is_a_finite_number_of_0_or_more(make, name, value):
    with pytest.raises(ValueError, match=rf"^\w+: {name} must be a finite number of 0 or more, got "):
        make(value)


def test_mode_is_rows_or_columns():
    with pytest.raises(
        ValueError, match=r'^OrthogonalRegularizer: mode must be "rows" or "columns", got 3; '
    ):
        OrthogonalRegularizer(mode=3)


# ---- Names and configs ----


@pytest.mark.parametrize("name", NAMES)
def test_names_mean_what_they_mean_in_keras(name):
    theirs = import_keras().regularizers.get(name)
    ours = regularizers.get(name)
    assert type(ours).__name__ == type(theirs).__name__
    assert ours.get_config() == pytest.approx(theirs.get_config())


@every_regularizer
def test_configs_go_to_keras_and_back(regularizer):
    keras = import_keras()
    assert regularizers.get(json.loads(json.dumps(regularizers.serialize(regularizer)))) == regularizer
    theirs = to_keras(regularizer)
    for again in (theirs, keras.regularizers.serialize(theirs)):
        again = regularizers.get(again)
        assert type(again) is type(regularizer)
        assert again.get_config() == pytest.approx(regularizer.get_config())


def test_get_takes_none_classes_and_objects():
    own = Cubic()
    assert regularizers.get(None) is None and regularizers.serialize(None) is None
    assert regularizers.get(L2) == L2()
    assert regularizers.get(own) is own
    assert isinstance(regularizers.get(Cubic), Cubic)


def test_equal_settings_make_equal_regularizers():
    assert L2(0.5) == L2(0.5) != L2(0.25)
    assert L1(0.5) != L2(0.5)
    assert len({L2(0.5), L2(0.5), L2(0.25)}) == 2
    assert repr(L1L2(0.5, 1)) == "L1L2(l1=0.5, l2=1.0)"


@pytest.mark.parametrize(
    "identifier, error, message",
    [
        (
            "l3",
            ValueError,
            r'a regularizer must have a known name, got "l3"; the known ones are "l1", "l1l2", ',
        ),
        ({"class_name": "L3"}, ValueError, r'a regularizer must have a known name, got "L3"; '),
        ({}, ValueError, r"a regularizer's config must have a class_name and a dict config, got \{\}; "),
        (
            {"class_name": "L2", "config": {"l1": 0.1}},
            ValueError,
            r"L2: the settings must be among \['l2'\], got \['l1'\]; leave the others out",
        ),
        (
            3,
            TypeError,
            r"a regularizer must be a name, a config or an object with .* gradient\(w\), .* got 3; ",
        ),
        (
            np.sum,
            TypeError,
            r"a regularizer must be .*, got <function sum.*> without gradient; put both into a",
        ),
    ],
)
def test_what_is_no_regularizer_is_refused(identifier, error, message):
    with pytest.raises(error, match=f"^{message}"):
        regularizers.get(identifier)
    with pytest.raises(error, match=f"^LSTM: kernel_regularizer: {message}"):
        LSTM(3, kernel_regularizer=identifier)


def test_a_regularizer_of_ones_own_without_config_is_not_written():
    with pytest.raises(
        TypeError, match=r"^a regularizer of one's own cannot be written into a config, got <"
    ):
        LSTM(3, kernel_regularizer=Cubic()).get_config()


# ---- In a layer ----

ALL_FOUR = dict(
    kernel_regularizer=L2(0.2),
    recurrent_regularizer=OrthogonalRegularizer(0.4),
    bias_regularizer=L1(0.3),
    activity_regularizer=L1L2(0.1, 0.5),
)


@cells
@sequences_or_last
@state_or_not
@pytest.mark.parametrize("trainable", [True, False], ids=["trainable", "frozen"])
def test_losses_and_gradients_are_those_of_keras(cell, return_sequences, return_state, trainable):
    problem = random_problem(cell, B, T, INPUTS, H, "float64")
    options = dict(return_sequences=return_sequences, return_state=return_state, trainable=trainable)
    with keras_in_float64() as keras:
        if keras.backend.backend() != "torch":
            pytest.skip("takes the gradient with PyTorch")
        theirs = keras_layer(
            cell, problem.weights, **options, **{name: to_keras(r) for name, r in ALL_FOUR.items()}
        )
        # Up to Keras 3.15 SimpleRNN doesn't hand this argument on.
        theirs.activity_regularizer = to_keras(ALL_FOUR["activity_regularizer"])
        x = keras.ops.convert_to_tensor(problem.x).requires_grad_()
        outputs = as_list(theirs(x))
        ours = build(cell, problem.weights, **options, **ALL_FOUR)
        our_outputs, tape = ours.forward(problem.x)
        dy = random_gradients(our_outputs)
        loss = sum(
            (o * keras.ops.convert_to_tensor(d)).sum() for o, d in zip(outputs, as_list(dy), strict=True)
        )
        (loss + sum(theirs.losses)).backward()
    losses = [float(part.detach()) for part in theirs.losses]
    assert tape.losses == pytest.approx(losses, rel=1e-7)
    assert len(losses) == len(outputs) + 3 * trainable
    assert ours.losses == tape.losses[len(outputs) :]
    gradients = ours.backward(dy, tape)
    assert_close(gradients.x, x.grad.numpy(), 1e-6)
    if trainable:
        assert_close(gradients.weights, [v.value.grad.numpy() for v in theirs.weights], 1e-6)
    else:
        plain = build(
            cell,
            problem.weights,
            return_sequences=return_sequences,
            return_state=return_state,
            activity_regularizer=ALL_FOUR["activity_regularizer"],
        )
        assert_same(gradients.weights, plain.backward(dy, plain.forward(problem.x)[1]).weights)


@state_or_not
def test_a_missing_dy_counts_as_zeros(return_state):
    problem = random_problem("lstm", B, T, INPUTS, H)
    layer = build("lstm", problem.weights, return_state=return_state, **ALL_FOUR)
    outputs, tape = layer.forward(problem.x)
    zeros = [np.zeros_like(o) for o in outputs] if return_state else np.zeros_like(outputs)
    expected = layer.backward(zeros, tape)
    for nothing in (None, [None] * 3) if return_state else (None,):
        gradients = layer.backward(nothing, layer.forward(problem.x)[1])
        assert_same([gradients.x, *gradients.weights], [expected.x, *expected.weights])


@pytest.mark.parametrize("return_state", [True, False])
def test_a_gradient_that_does_not_fit_is_refused_with_regularizers_as_without(return_state):
    layer = LSTM(H, return_state=return_state, **ALL_FOUR)
    _, tape = layer.forward(np.ones((B, T, INPUTS)))
    h = np.ones((B, H))
    for wrong in [[h], [h[:1], h, h], [h, h, h, h]] if return_state else [h[:1], h[:, :1]]:
        with pytest.raises(ValueError, match=r"^LSTM\.backward: d\w+ must "):
            layer.backward(wrong, tape)
    if return_state:
        with pytest.raises(
            TypeError, match=r"^LSTM\.backward: dy must be a list or tuple of 3 arrays, got ndarray"
        ):
            layer.backward(h, tape)
    layer.backward(None, tape)


def test_a_tape_keeps_the_penalties_of_its_own_weights():
    problem = random_problem("gru", B, T, INPUTS, H)
    layer = build("gru", problem.weights, **ALL_FOUR)
    y, tape = layer.forward(problem.x)
    expected = layer.backward(y, tape)
    y, tape = layer.forward(problem.x)
    before = layer.losses
    layer.set_weights([2 * w for w in layer.weights])
    assert tape.losses[1:] == before != layer.losses
    assert_same(layer.backward(y, tape).weights, expected.weights)


def test_a_regularizer_of_ones_own_is_used():
    problem = random_problem("simple_rnn", B, T, INPUTS, H)
    plain = build("simple_rnn", problem.weights)
    layer = build("simple_rnn", problem.weights, recurrent_regularizer=Cubic())
    y, tape = layer.forward(problem.x)
    assert tape.losses == layer.losses == [Cubic()(layer.recurrent_kernel)]
    expected = plain.backward(y, plain.forward(problem.x)[1]).weights
    expected[1] += Cubic().gradient(layer.recurrent_kernel)
    assert_same(layer.backward(y, tape).weights, expected)


@pytest.mark.parametrize("argument", ["kernel_regularizer", "activity_regularizer"])
def test_a_gradient_of_another_shape_is_refused_and_the_tape_survives(argument):
    class Wrong(Cubic):
        def gradient(self, w):
            return np.ones(3)

    layer = LSTM(H, **{argument: Wrong()})
    y, tape = layer.forward(np.ones((B, T, INPUTS)))
    message = rf"^LSTM: what {argument}\.gradient returns must have shape \(\d, \d+\), got \(3,\); it is the "
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            layer.backward(y, tape)


def test_without_regularizers_there_are_no_losses():
    layer = LSTM(H)
    assert layer.losses == []
    _, tape = layer.forward(np.ones((B, T, INPUTS)))
    assert layer.losses == tape.losses == []
    assert LSTM(H, kernel_regularizer="l2").losses == []  # not built


def test_a_batch_without_rows_has_no_activity_loss():
    layer = LSTM(H, activity_regularizer="l2")
    y, tape = layer.forward(np.ones((0, T, INPUTS)))
    assert tape.losses == [0.0]
    assert not layer.backward(y, tape).weights[0].any()


@pytest.mark.parametrize("cell", ["simple_rnn", "lstm", "gru"])
def test_layers_take_regularizers_from_keras_and_give_them_back(cell):
    keras = import_keras()
    layer = LAYERS[cell](3, **ALL_FOUR)
    theirs = getattr(keras.layers, type(layer).__name__).from_config(layer.get_config())
    again = LAYERS[cell].from_config(theirs.get_config())
    for name in ALL_FOUR.keys() - ({"activity_regularizer"} if cell == "simple_rnn" else set()):  # see above
        assert getattr(again, name).get_config() == pytest.approx(ALL_FOUR[name].get_config())
    assert "kernel_regularizer={'class_name': 'L2', 'config': {'l2': 0.2}}" in repr(layer)


# ---- Of weights that Keras' layers don't have: regularizers and constraints

EMBEDDING = np.random.default_rng(9).standard_normal((7, INPUTS))
BEYOND_KERAS = {
    "peephole": (LSTM, {"peephole": True}),
    "projection": (LSTM, {"proj_size": 2}),
    "gate": (LSTM, {"variant": "fgr"}),
    "gate_of_ids": (LSTM, {"variant": "fgr", "embedding": EMBEDDING}),
    "cell_norm": (LSTM, {"layer_norm": True, "peephole": True, "proj_size": 2}),
    "layer_norm": (GRU, {"layer_norm": True}),
    "layer_norm_of_ids": (SimpleRNN, {"layer_norm": True, "embedding": EMBEDDING}),
    "layer_norm_in_numpy": (IndRNN, {"layer_norm": True}),
    "embedding": (GRU, {"embedding": EMBEDDING}),
    "embedding_of_ids": (LSTM, {"embedding": EMBEDDING, "layer_norm": True, "proj_size": 2}),
}
beyond_keras = pytest.mark.parametrize(
    ("weight", "layer_class", "options"),
    [(name.partition("_of_ids")[0].removesuffix("_in_numpy"), *made) for name, made in BEYOND_KERAS.items()],
    ids=BEYOND_KERAS,
)


def inputs_of(options):
    rng = np.random.default_rng(0)
    return rng.integers(0, 7, (B, T)) if "embedding" in options else rng.standard_normal((B, T, INPUTS)) / 2


def place_of(weight, layer):
    """Where it is in `weights`."""
    names = [name.removesuffix("_kernel") for name in layer._weight_shapes(INPUTS)]
    return names.index(weight)


def moved(layer, seed=5):
    """The layer with other weights: those at first are zeros and ones."""
    rng = np.random.default_rng(seed)
    layer.build((None, None, INPUTS)[: 3 if layer.embedding is None else 2])
    layer.set_weights([w + rng.normal(0, 0.3, w.shape) for w in layer.weights])
    return layer


@beyond_keras
@pytest.mark.parametrize("checkpoint", [False, 3])
@pytest.mark.parametrize("trainable", [True, False], ids=["trainable", "frozen"])
def test_penalties_of_weights_beyond_keras_are_losses_with_gradients(
    weight, layer_class, options, checkpoint, trainable
):
    regularizer = {f"{weight}_regularizer": L2(0.5)}
    others = options | {"dtype": "float64", "seed": 1, "trainable": trainable}
    layer, plain = moved(layer_class(H, **others, **regularizer)), moved(layer_class(H, **others))
    x = inputs_of(options)
    y, tape = layer.forward(x, checkpoint=checkpoint)
    place = place_of(weight, layer)
    w = layer.weights[place]
    assert layer.losses == tape.losses == ([pytest.approx(0.5 * (w**2).sum())] if trainable else [])
    dy = random_gradients(y)
    gradients, expected = (
        layer.backward(dy, tape),
        plain.backward(dy, plain.forward(x, checkpoint=checkpoint)[1]),
    )
    assert_same(gradients.x, expected.x)
    if trainable:
        expected.weights[place] += w
    assert_close(gradients.weights, expected.weights, 1e-14)


@beyond_keras
def test_constraints_of_weights_beyond_keras_are_applied(weight, layer_class, options):
    layer = moved(layer_class(H, **options, **{f"{weight}_constraint": "max_norm"}))
    place, before = place_of(weight, layer), layer.get_weights()
    before[place] *= 50
    layer.set_weights(before)
    layer.apply_constraints()
    before[place] = constraints.MaxNorm()(before[place])
    assert_same(layer.weights, before)


@beyond_keras
def test_arguments_of_weights_beyond_keras_go_through_configs(weight, layer_class, options):
    given = {f"{weight}_regularizer": "l2", f"{weight}_constraint": "non_neg"}
    layer = layer_class(H, **options, **given)
    again = layer_class.from_config(json.loads(json.dumps(layer.get_config())))
    assert again.get_config() == layer.get_config()
    assert getattr(again, f"{weight}_regularizer") == L2() and f"{weight}_constraint" in repr(again)
    assert not OF_WEIGHTS & layer_class(H, **options).get_config().keys()
    assert getattr(layer_class(H, **options, **dict.fromkeys(given)), f"{weight}_regularizer") is None
    with pytest.raises(AttributeError, match=f"{weight}_regularizer cannot be changed after the layer"):
        setattr(layer, f"{weight}_regularizer", None)
    with pytest.raises(ValueError, match=f": {weight}_regularizer must be None in a layer without that w"):
        layer_class(H, **given)


def test_cells_take_what_their_layers_take():
    given = {"projection_regularizer": "l2", "peephole_constraint": "non_neg"}
    options = {"proj_size": 2, "peephole": True, "dtype": "float64", "seed": 1}
    cell, layer = LSTMCell(H, **options, **given), LSTM(H, **options, **given)
    assert {name: getattr(cell, name) for name in given} == {name: getattr(layer, name) for name in given}
    assert cell.layer_norm_regularizer is None
    assert "peephole_regularizer" in dir(cell) and "peephole_regularizer" not in dir(GRUCell(H))
    again = LSTMCell.from_config(json.loads(json.dumps(cell.get_config())))
    assert again.get_config() == cell.get_config()
    rnn, x = RNN(cell), inputs_of({})
    (y, tape), (expected, expected_tape) = rnn.forward(x), layer.forward(x)
    assert tape.losses == rnn.losses == layer.losses == expected_tape.losses != []
    assert_same(rnn.backward(y, tape).weights, layer.backward(expected, expected_tape).weights)


def test_both_directions_share_the_penalty_of_their_embedding():
    layer = Bidirectional(GRU(H, embedding=EMBEDDING, embedding_regularizer=L2(0.5), dtype="float64", seed=1))
    x = inputs_of({"embedding": EMBEDDING})
    y, tape = layer.forward(x)
    assert tape.losses == layer.losses == [pytest.approx(0.5 * (EMBEDDING**2).sum())]
    place = len(layer.forward_layer.weights) - 1
    gradient = layer.backward(np.zeros_like(y), tape).weights[place]
    assert_same(gradient, layer.weights[place])


@pytest.mark.parametrize(
    "make, error, message",
    [
        (
            lambda: GRU(3, projection_regularizer="l2"),
            TypeError,
            "GRU: got an unexpected keyword argument 'pr",
        ),
        (
            lambda: LSTMCell(3, peephole_regulariser="l2"),
            TypeError,
            "LSTMCell: got an unexpected keyword arg",
        ),
        (
            lambda: GRUCell(3, embedding_regularizer="l2"),
            ValueError,
            "GRUCell: embedding_regularizer must be None in a layer without that weight, got {'class_name': 'L2'",
        ),
        (
            lambda: LSTM(3, peephole=True, peephole_regularizer="l3"),
            ValueError,
            "LSTM: peephole_regularizer: a regularizer must have a known name",
        ),
    ],
)
def test_what_a_layer_has_no_weight_for_is_refused(make, error, message):
    with pytest.raises(error, match=f"^{message}"):
        make()
