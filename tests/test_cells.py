"""The cells and RNN: steps, sequences, stacks, masks, states and gradients are those of Keras."""

import copy
import inspect
import json
import pickle

import numpy as np
import pytest
from support import (
    ALL_CELLS,
    CELLS,
    STATES,
    as_list,
    assert_close,
    import_keras,
    keras_in_float64,
    random_problem,
)
from test_layers import (
    INPUTS,
    LAYERS,
    B,
    H,
    T,
    assert_same,
    both_directions,
    build,
    initial_or_zeros,
    sequences_or_last,
    state_or_not,
)

import fastrnn
from fastrnn import RNN, GRUCell, IndRNNCell, LSTMCell, SimpleRNNCell, StackedRNNCells, functional, inspection

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

OURS = {
    "simple_rnn": SimpleRNNCell,
    "indrnn": IndRNNCell,
    "lstm": LSTMCell,
    "gru": GRUCell,
    "gru_reset_before": GRUCell,
}
CELL_CLASSES = [SimpleRNNCell, LSTMCell, GRUCell]

cells = pytest.mark.parametrize("cell", CELLS)
all_cells = pytest.mark.parametrize("cell", ALL_CELLS)
cell_classes = pytest.mark.parametrize("cell_class", CELL_CLASSES)


def make_cell(cell, weights=None, dtype="float64", **options):
    if cell == "gru_reset_before":
        options["reset_after"] = False
    made = OURS[cell](H, dtype=dtype, **options)
    if weights is not None:
        made.build((None, len(weights[0])))
        made.set_weights(weights)
    return made


def to_keras_cell(cell):
    """Keras' cell of the same arguments; it has no weights yet."""
    return getattr(import_keras().layers, type(cell).__name__).from_config(cell.get_config())


def flat(nested):
    if isinstance(nested, (list, tuple)):
        return [leaf for item in nested for leaf in flat(item)]
    return [nested]


def structure(nested):
    return [structure(item) for item in nested] if isinstance(nested, (list, tuple)) else None


def to_numpy(keras, nested):
    return [keras.ops.convert_to_numpy(leaf) for leaf in flat(nested)]


class Minimal:
    """A cell of one's own: h = x W + h_prev U, and as output 2 h."""

    def __init__(self, units, dtype="float64"):
        self.state_size = units
        self.dtype = dtype
        self.weights = []

    def build(self, input_shape):
        rng = np.random.default_rng(3)
        shapes = (input_shape[-1], self.state_size), (self.state_size, self.state_size)
        self.weights = [rng.standard_normal(shape).astype(self.dtype) / 3 for shape in shapes]

    def set_weights(self, weights):
        self.weights = list(weights)

    def __call__(self, x_t, states):
        w, u = self.weights
        h = x_t @ w + states[0] @ u
        return 2 * h, [h]

    def forward(self, x_t, states):
        return *self(x_t, states), (x_t, states[0])

    def backward(self, dy, dstates, saved):
        (w, u), (x_t, h_prev) = self.weights, saved
        dh = 2 * dy + dstates[0]
        return dh @ w.T, [dh @ u.T], [x_t.T @ dh, h_prev.T @ dh]

    def get_config(self):
        return {"units": self.state_size, "dtype": self.dtype}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def keras_minimal(units, weights):
    keras = import_keras()

    class KerasMinimal(keras.layers.Layer):
        def __init__(self):
            super().__init__(dtype="float64")
            self.state_size = units

        def build(self, input_shape):
            self.w, self.u = (self.add_weight(shape=w.shape) for w in weights)
            self.set_weights(weights)

        def call(self, x_t, states):
            h = keras.ops.matmul(x_t, self.w) + keras.ops.matmul(states[0], self.u)
            return 2 * h, [h]

    return KerasMinimal()


MASK = np.array(
    [
        [True, True, False, True, False],
        [False, False, True, False, True],
        [False] * 5,
    ]  # trailing, leading, all
)


X = np.ones((B, T, INPUTS))


# ---- Cells ----


@cell_classes
def test_cells_have_the_arguments_order_and_defaults_of_keras(cell_class):
    theirs = inspect.signature(getattr(import_keras().layers, cell_class.__name__)).parameters.values()
    theirs = [(p.name, p.kind, p.default) for p in theirs if p.kind is not p.VAR_KEYWORD]
    ours = [(p.name, p.kind, p.default) for p in inspect.signature(cell_class).parameters.values()]
    assert ours[: len(theirs)] == theirs
    beyond = ["variant", "peephole", "proj_size"] if cell_class is LSTMCell else []
    beyond += ["layer_norm", "zoneout"]
    assert [name for name, *_ in ours[len(theirs) :]] == [
        *beyond,
        "trainable",
        "dtype",
        "name",
        "of_weights",
    ]


@cells
@initial_or_zeros
def test_a_step_of_a_cell_is_that_of_keras(cell, initial):
    problem = random_problem(cell, B, T, INPUTS, H)
    ours = make_cell(cell, problem.weights)
    x_t = problem.x[:, 0]
    states = problem.initial_state if initial else ours.get_initial_state(batch_size=B)
    with keras_in_float64() as keras:
        theirs = to_keras_cell(ours)
        theirs.build((None, INPUTS))
        theirs.set_weights(problem.weights)
        expected = theirs(
            keras.ops.convert_to_tensor(x_t), [keras.ops.convert_to_tensor(s) for s in states], training=False
        )
        result = ours(x_t, states, training=False)
        assert structure(result) == structure(expected)
        assert_close(flat(result), to_numpy(keras, expected), 1e-13)
        assert (ours.state_size, ours.output_size) == (theirs.state_size, theirs.output_size)
        zeros = theirs.get_initial_state(batch_size=B)
        assert_same(ours.get_initial_state(batch_size=B), to_numpy(keras, zeros))
    if STATES[cell] == 1:  # an array for an array
        assert_same(ours(x_t, states[0])[1], result[1][0])


@all_cells
def test_a_cell_has_the_weights_and_attributes_of_its_layer(cell):
    made = make_cell(cell, kernel_regularizer="l2", kernel_constraint="non_neg", seed=3)
    assert not made.built and made.weights == []
    made.build((B, INPUTS))
    layer = LAYERS[cell](H, dtype="float64", seed=3)
    layer.build((None, None, INPUTS))
    assert_same(made.weights, layer.weights)
    assert made.units == H and made.dtype == "float64" and made.count_params() == layer.count_params()
    assert made.losses == [made.kernel_regularizer(made.kernel)]
    made.apply_constraints()
    assert made.kernel.min() == 0
    made.trainable = False
    assert made.trainable_weights == made.losses == []
    assert {"kernel", "units", "set_weights", "state_size"} <= set(dir(made))


@cell_classes
def test_configs_of_cells_go_to_keras_and_back(cell_class):
    ours = cell_class(3, use_bias=False, kernel_regularizer="l1", name="a", dtype="float64")
    again = cell_class.from_config(json.loads(json.dumps(to_keras_cell(ours).get_config())))
    assert again.use_bias is False and again.name == "a" and again.dtype == "float64"
    assert again.kernel_regularizer.get_config() == pytest.approx({"l1": 0.01})
    assert cell_class.from_config(ours.get_config()).get_config() == ours.get_config()
    assert repr(ours).startswith(f"{cell_class.__name__}(3, use_bias=False")
    assert cell_class(3).name == to_snake(cell_class.__name__)


def to_snake(name):
    from keras.src.utils.naming import to_snake_case

    return to_snake_case(name)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: LSTMCell(0), ValueError, "LSTMCell: units must be a positive integer, got 0"),
        (
            lambda: LSTMCell(3, return_sequences=True),
            TypeError,
            "unexpected keyword argument 'return_sequences'",
        ),
        (lambda: LSTMCell(3).nothing, AttributeError, "'LSTMCell' object has no attribute 'nothing'"),
        (
            lambda: LSTMCell(3).return_state,
            AttributeError,
            "'LSTMCell' object has no attribute 'return_state'",
        ),
        (lambda: setattr(LSTMCell(3), "units", 4), AttributeError, "LSTMCell: units cannot be changed after"),
        (lambda: LSTMCell(3).set_weights([]), ValueError, "LSTMCell: set_weights needs a layer with weights"),
        (
            lambda: LSTMCell(3)(np.ones((2, 3), int), None),
            TypeError,
            "LSTMCell.step: x_t must be a floating array",
        ),
    ],
)
def test_cells_refuse_what_layers_refuse(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_of_a_cell_live_on_their_own(duplicate):
    made = make_cell("lstm", seed=1)
    made.build((None, INPUTS))
    twin = duplicate(made)
    assert_same(twin.weights, made.weights)
    twin.set_weights([2 * w for w in twin.weights])
    assert not np.array_equal(twin.kernel, made.kernel)
    assert repr(twin) == repr(made)


# ---- Dropout ----


def make_dropping_cell(cell, weights, **options):
    return make_cell(cell, weights, dropout=0.4, **options)


@cells
@pytest.mark.parametrize("recurrent_dropout", [0.0, 0.3], ids=["inputs", "both"])
def test_steps_in_training_are_those_of_keras_with_the_same_masks(cell, recurrent_dropout, monkeypatch):
    problem = random_problem(cell, B, T, INPUTS, H)
    ours = make_dropping_cell(cell, problem.weights, recurrent_dropout=recurrent_dropout)
    x_t, states = problem.x[:, 0], problem.initial_state
    y, new = ours(x_t, states, training=True)
    again, _ = ours(x_t, states, training=True)
    assert_same(again, y)  # the masks are kept
    with keras_in_float64() as keras:
        theirs = to_keras_cell(ours)
        theirs.build((None, INPUTS))
        theirs.set_weights(problem.weights)
        for name in ("dropout_mask", "recurrent_dropout_mask"):
            mask = for_keras_cell(keras, ours._masks.get(name))
            monkeypatch.setattr(theirs, f"get_{name}", lambda step_input, mask=mask: mask)
        tensors = [keras.ops.convert_to_tensor(a) for a in (x_t, *states)]
        expected = theirs(tensors[0], tensors[1:], training=True)
        assert_close(flat((y, new)), to_numpy(keras, expected), 1e-13)
    assert_same(flat(ours(x_t, states)), flat(make_cell(cell, problem.weights)(x_t, states)))


def for_keras_cell(keras, mask):
    """[B, K] as it is, [B, G, K] as a list of one for each gate; a SimpleRNN has one gate."""
    if mask is None:
        return None
    if mask.ndim == 2:
        return keras.ops.convert_to_tensor(mask)
    masks = [keras.ops.convert_to_tensor(m) for m in np.moveaxis(mask, 1, 0)]
    return masks if len(masks) > 1 else masks[0]


def test_each_mask_of_a_cell_is_kept_until_it_is_reset():
    cell = LSTMCell(H, dropout=0.5, recurrent_dropout=0.5, seed=1)
    x_t, states = np.ones((B, INPUTS), "float32"), [np.ones((B, H), "float32")] * 2

    def masks():
        cell(x_t, states, training=True)
        return dict(cell._masks)

    first = masks()
    assert masks() == first
    for reset, name, other in (
        (cell.reset_dropout_mask, "dropout_mask", "recurrent_dropout_mask"),
        (cell.reset_recurrent_dropout_mask, "recurrent_dropout_mask", "dropout_mask"),
    ):
        before = masks()
        reset()
        after = masks()
        assert after[other] is before[other]
        assert not np.array_equal(after[name], before[name])
    twin = copy.copy(cell)
    assert twin._masks == {} != cell._masks
    with pytest.raises(ValueError, match=r"^LSTMCell: dropout_mask must have shape \(1, "):
        cell(x_t[:1], None, training=True)
    cell.reset_dropout_mask()
    cell.reset_recurrent_dropout_mask()
    assert cell(x_t[:1], None, training=True)[0].shape == (1, H)


@pytest.mark.parametrize("training", ["yes", 1])
def test_training_of_a_cell_must_be_a_flag(training):
    with pytest.raises(TypeError, match=r"^GRUCell: training must be True, False or None, got "):
        GRUCell(3, dropout=0.5)(np.ones((2, 3), "float32"), None, training=training)


@all_cells
@pytest.mark.parametrize("rates", [(0.4, 0.0), (0.0, 0.3), (0.4, 0.3)], ids=str)
def test_rnn_of_a_cell_uses_dropout_as_its_layer_does(cell, rates):
    problem = random_problem(cell, B, T, INPUTS, H)
    options = dict(dropout=rates[0], recurrent_dropout=rates[1], seed=5)
    layer = build(cell, problem.weights, return_sequences=True, **options)
    rnn = RNN(make_cell(cell, problem.weights, **options), return_sequences=True)
    before = None
    for _ in range(2):
        expected, expected_tape = layer.forward(problem.x)
        y, tape = rnn.forward(problem.x)
        assert_same(y, expected)
        assert before is None or not np.array_equal(y, before)
        before = y
        for actual, wanted in zip(
            rnn.backward(expected, tape), layer.backward(expected, expected_tape), strict=True
        ):
            assert_same(actual, wanted)
    assert_same(rnn(problem.x), RNN(make_cell(cell, problem.weights), return_sequences=True)(problem.x))


def test_rnn_resets_the_masks_of_a_cell_that_it_steps():
    class Plain(GRUCell):
        def __call__(self, x_t, states, training=False):
            return super().__call__(x_t, states, training)

    cell = Plain(H, dropout=0.5, recurrent_dropout=0.5)
    rnn = RNN(cell)
    x = np.ones((B, T, INPUTS), "float32")
    y, first = rnn(x, training=True), dict(cell._masks)
    assert not np.array_equal(rnn(x, training=True), y)
    assert not np.array_equal(first["dropout_mask"], cell._masks["dropout_mask"])
    assert rnn(x[:1], training=True).shape == (1, H)


# ---- What Keras' cells don't have ----

BEYOND_KERAS = [
    *((cell, {"zoneout": 0.3}) for cell in OURS),
    *((cell, {"layer_norm": True, "zoneout": 0.1, "dropout": 0.2}) for cell in OURS),
    ("lstm", {"proj_size": 2}),
    ("lstm", {"proj_size": 2, "variant": "vanilla", "layer_norm": True, "recurrent_dropout": 0.3}),
    ("lstm", {"proj_size": 2, "variant": "fgr", "zoneout": 0.2}),
]
beyond_keras = pytest.mark.parametrize(
    ("cell", "options"), BEYOND_KERAS, ids=[f"{cell}-{'-'.join(options)}" for cell, options in BEYOND_KERAS]
)


@beyond_keras
@sequences_or_last
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("mask", [None, MASK], ids=["no_mask", "mask"])
def test_rnn_of_a_cell_gives_what_its_layer_gives(cell, options, return_sequences, training, mask):
    returns = dict(return_sequences=return_sequences, return_state=True)
    made = make_cell(cell, seed=1, **options)
    layer = type(made._layer)(
        H,
        dtype="float64",
        seed=1,
        **returns,
        **options | ({"reset_after": False} if cell == "gru_reset_before" else {}),
    )
    rnn, x = RNN(made, **returns), np.random.default_rng(0).standard_normal((B, T, INPUTS))
    rnn.build(x.shape), layer.build(x.shape)
    assert_same(rnn.weights, layer.weights)
    assert_same(rnn(x, mask=mask, training=training), layer(x, mask=mask, training=training))
    outputs, tape = rnn.forward(x, mask=mask, training=training)
    expected, expected_tape = layer.forward(x, mask=mask, training=training)
    assert_same(outputs, expected)
    before = fastrnn.kernel_calls()
    gradients = rnn.backward(outputs, tape)
    in_numpy = ("layer_norm" in options and cell == "indrnn") or options.get("variant") == "fgr"
    assert in_numpy or fastrnn.kernel_calls() != before
    for actual, wanted in zip(gradients, layer.backward(expected, expected_tape), strict=True):
        assert_same(actual, wanted)


@beyond_keras
def test_steps_of_a_cell_are_those_of_its_sequence(cell, options):
    made = make_cell(cell, seed=1, **options)
    x = np.random.default_rng(0).standard_normal((B, T, INPUTS))
    y, *final = RNN(made, return_sequences=True, return_state=True)(x)
    states = made.get_initial_state(B)
    assert [s.shape for s in states] == [s.shape for s in final]
    sizes = made.state_size if isinstance(made.state_size, list) else [made.state_size]
    assert ([s.shape[1] for s in states], y.shape[2]) == (sizes, made.output_size)
    for t in range(T):
        y_t, states = made(x[:, t], states)
        assert_close(y_t, y[:, t], 1e-13)
    assert_close(list(states), final, 1e-13)


def test_zoneout_keeps_other_units_at_each_step_of_a_cell_in_training():
    made = LSTMCell(50, zoneout=0.25, dropout=0.5, seed=3)
    x_t, states = np.ones((20, INPUTS), "float32"), [np.full((20, 50), v, "float32") for v in (5, 7)]
    kept = []
    for _ in range(2):
        _, new = made(x_t, states, training=True)
        kept.append([a == b for a, b in zip(new, states, strict=True)])
    assert all(0.2 < k.mean() < 0.3 for of_step in kept for k in of_step)
    assert not np.array_equal(kept[0], kept[1]) and not np.array_equal(*kept[0])
    assert list(made._masks) == ["dropout_mask"]


@beyond_keras
def test_a_config_has_what_keras_cells_do_not_have(cell, options):
    made = make_cell(cell, **options)
    config = json.loads(json.dumps(made.get_config()))
    assert {name: config[name] for name in options} == options
    assert type(made).from_config(config).get_config() == config
    assert not {"zoneout", "layer_norm", "proj_size"} & make_cell(cell).get_config().keys()


# ---- Masks of our cells, and LSTM variants ----


@pytest.mark.parametrize("cell", [*CELLS, "peephole"])
@sequences_or_last
@both_directions
@pytest.mark.parametrize("zero_output", [False, True], ids=["repeated", "zeros"])
def test_rnn_of_a_cell_takes_masks_as_its_layer_does(cell, return_sequences, go_backwards, zero_output):
    options = dict(
        return_sequences=return_sequences,
        return_state=True,
        go_backwards=go_backwards,
        zero_output_for_mask=zero_output,
    )
    if cell == "peephole":
        made = LSTMCell(H, variant="vanilla", dtype="float64", seed=1)
        layer = fastrnn.LSTM(H, variant="vanilla", dtype="float64", seed=1, **options)
    else:
        made = make_cell(cell, seed=1)
        layer = LAYERS[cell](H, dtype="float64", seed=1, **options)
    rnn, x = RNN(made, **options), np.random.default_rng(0).standard_normal((B, T, INPUTS))
    for given in ({"mask": MASK}, {"lengths": [5, 2, 0]}):
        expected, expected_tape = layer.forward(x, **given)
        outputs, tape = rnn.forward(x, **given)
        assert_same(outputs, expected)
        assert_same(rnn(x, **given), expected)
        for actual, wanted in zip(
            rnn.backward(expected, tape), layer.backward(expected, expected_tape), strict=True
        ):
            assert_same(actual, wanted)


@sequences_or_last
@pytest.mark.parametrize("zero_output", [False, True], ids=["repeated", "zeros"])
@both_directions
@initial_or_zeros
def test_masks_of_stacks_of_our_cells_are_those_of_keras(
    return_sequences, zero_output, go_backwards, initial
):
    options = dict(return_sequences=return_sequences, return_state=True, go_backwards=go_backwards)
    options["zero_output_for_mask"] = zero_output
    ours = RNN([LSTMCell(4, dtype="float64"), GRUCell(3, dtype="float64")], **options)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((B, T, INPUTS))
    ours.build(x.shape)
    states = [[rng.standard_normal((B, 4))] * 2, [rng.standard_normal((B, 3))]] if initial else None
    with keras_in_float64() as keras:
        theirs = keras.layers.RNN.from_config(ours.get_config())
        theirs.build(x.shape)
        theirs.set_weights(ours.get_weights())
        tensor, mask = (keras.ops.convert_to_tensor(a) for a in (x, MASK))
        their_states = states and [[keras.ops.convert_to_tensor(s) for s in c] for c in states]
        expected = theirs(tensor, initial_state=their_states, mask=mask)
        outputs = ours(x, initial_state=states, mask=MASK)
        assert_close(flat(outputs[1:]), to_numpy(keras, expected[1:]), 1e-12)
        assert_close(outputs[0], to_numpy(keras, expected[0])[0], 1e-12)


@pytest.mark.parametrize("variant, peephole, rows", [("cifg", None, 2), ("np", None, 0), (None, True, 3)])
def test_an_lstm_cell_has_variants_and_peepholes(variant, peephole, rows):
    cell = LSTMCell(H, variant=variant, peephole=peephole, seed=1)
    x = np.random.default_rng(0).standard_normal((B, T, INPUTS)).astype("float32")
    cell.build((None, INPUTS))
    assert sum(w.shape == (rows, H) for w in cell.weights) == bool(rows)
    layer = fastrnn.LSTM(H, variant=variant, peephole=peephole)
    layer.build(x.shape)
    layer.set_weights(cell.weights)
    states = cell.get_initial_state(B)
    for t in range(T):
        y_t, states = cell(x[:, t], states)
    assert_close(y_t, layer(x), 1e-6)
    again = LSTMCell.from_config(cell.get_config())
    assert (again.variant, again.peephole) == (variant, peephole)
    assert ("variant" in cell.get_config()) == (variant is not None)


# ---- RNN of one of our cells ----


def test_rnn_has_the_arguments_order_and_defaults_of_keras():
    for name in ("RNN", "StackedRNNCells"):
        theirs = inspect.signature(getattr(import_keras().layers, name)).parameters.values()
        ours = inspect.signature(getattr(fastrnn, name)).parameters.values()
        expected = [(p.name, p.default) for p in theirs if p.kind is not p.VAR_KEYWORD]
        assert [(p.name, p.default) for p in ours][: len(expected)] == expected


@all_cells
@sequences_or_last
@state_or_not
@both_directions
@initial_or_zeros
def test_rnn_of_a_cell_gives_the_bits_of_its_layer(
    cell, return_sequences, return_state, go_backwards, initial
):
    problem = random_problem(cell, B, T, INPUTS, H)
    options = dict(return_sequences=return_sequences, return_state=return_state, go_backwards=go_backwards)
    regularizer = dict(kernel_regularizer="l2")
    layer = build(cell, problem.weights, **options, **regularizer)
    rnn = RNN(make_cell(cell, problem.weights, **regularizer), **options)
    states = problem.initial_state if initial else None
    expected, expected_tape = layer.forward(problem.x, initial_state=states)
    outputs, tape = rnn.forward(problem.x, initial_state=states)
    assert_same(outputs, expected)
    assert_same(rnn(problem.x, initial_state=states), expected)
    assert isinstance(outputs, tuple) == return_state
    assert tape.losses == expected_tape.losses == rnn.losses
    for actual, wanted in zip(
        rnn.backward(expected, tape), layer.backward(expected, expected_tape), strict=True
    ):
        assert_same(actual, wanted)
    assert rnn.compute_output_shape((B, T, INPUTS)) == layer.compute_output_shape((B, T, INPUTS))


def test_rnn_takes_the_weights_of_the_cell_at_each_call():
    cell = LSTMCell(H)
    first, second = RNN(cell), RNN(cell, return_sequences=True)
    x = np.ones((B, T, INPUTS), "float32")
    assert_same(first(x), second(x)[:, -1])
    y, tape = first.forward(x)
    before = first.backward(y, tape).x
    y, tape = first.forward(x)
    first.set_weights([2 * w for w in first.weights])
    assert_same(second.weights, cell.weights)
    assert_same(first(x), second(x)[:, -1])
    assert not np.array_equal(first(x), y)
    assert_same(first.backward(y, tape).x, before)  # of the weights that forward used


# ---- Stacks ----

STACKS = {
    "two_of_ours": lambda: [LSTMCell(4, dtype="float64"), GRUCell(5, dtype="float64")],
    "one": lambda: [LSTMCell(4, dtype="float64")],
    "three": lambda: [
        GRUCell(4, dtype="float64"),
        SimpleRNNCell(3, dtype="float64"),
        LSTMCell(2, dtype="float64"),
    ],
}


@pytest.mark.parametrize("stack", STACKS)
@sequences_or_last
@state_or_not
@both_directions
@initial_or_zeros
def test_stacks_of_cells_and_their_gradients_are_those_of_keras(
    stack, return_sequences, return_state, go_backwards, initial
):
    options = dict(return_sequences=return_sequences, return_state=return_state, go_backwards=go_backwards)
    ours = RNN(STACKS[stack](), **options)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((B, T, INPUTS))
    ours.build(x.shape)
    states = None
    if initial:
        states = [
            [rng.standard_normal((B, s.shape[1])) for s in c.get_initial_state(B)] for c in ours.cell.cells
        ]
    with keras_in_float64() as keras:
        if keras.backend.backend() != "torch":
            pytest.skip("takes the gradient with PyTorch")
        theirs = keras.layers.RNN.from_config(ours.get_config())
        theirs.build(x.shape)
        theirs.set_weights(ours.get_weights())
        their_states = states and [
            [keras.ops.convert_to_tensor(s).requires_grad_() for s in c] for c in states
        ]
        tensor = keras.ops.convert_to_tensor(x).requires_grad_()
        expected = theirs(tensor, initial_state=their_states)
        outputs, tape = ours.forward(x, initial_state=states)
        assert_close(flat(outputs), to_numpy(keras, expected), 1e-12)
        assert isinstance(outputs, tuple) == return_state
        if return_state:
            assert structure(outputs) == structure(expected)
        dy = [rng.standard_normal(o.shape) for o in flat(outputs)]
        sum(
            (o * keras.ops.convert_to_tensor(d)).sum() for o, d in zip(flat(expected), dy, strict=True)
        ).backward()
    assert_same(flat(ours(x, initial_state=states)), flat(outputs))
    rest = iter(dy[1:])
    nested = [dy[0], *[[next(rest) for _ in c.get_initial_state(1)] for c in ours.cell.cells if return_state]]
    gradients = ours.backward(nested if return_state else dy[0], tape)
    assert_close(gradients.x, tensor.grad.numpy(), 1e-11)
    assert_close(gradients.weights, [v.value.grad.numpy() for v in theirs.weights], 1e-11)
    if initial:
        assert_close(flat(gradients.initial_state), [s.grad.numpy() for s in flat(their_states)], 1e-11)
    shapes = ours.compute_output_shape(x.shape)
    assert shapes == ((outputs[0].shape, *shapes[1:]) if return_state else outputs.shape)


def test_a_stack_is_a_cell_whose_steps_give_what_one_call_gives():
    stack = StackedRNNCells([LSTMCell(4, dtype="float64"), Minimal(3)])
    rnn = RNN(stack, return_sequences=True, return_state=True)
    x = np.random.default_rng(0).standard_normal((B, T, INPUTS))
    y, *final = rnn(x)
    states = stack.get_initial_state(batch_size=B)
    for t in range(T):
        y_t, states = stack(x[:, t], states)
        assert_close(y_t, y[:, t], 1e-13)
    assert structure(states) == structure(final) == [[None, None], None]
    assert_close(flat(states), flat(final), 1e-13)
    assert stack.state_size == [[4, 4], 3] and stack.output_size == 3


# ---- A cell of one's own ----


@sequences_or_last
@pytest.mark.parametrize("zero_output", [False, True], ids=["repeated", "zeros"])
@both_directions
@initial_or_zeros
@pytest.mark.parametrize("mask", [None, MASK], ids=["no_mask", "mask"])
@pytest.mark.parametrize("stacked", [False, True], ids=["one", "stack"])
def test_a_cell_of_ones_own_and_its_gradients_are_those_of_keras(
    return_sequences, go_backwards, initial, mask, zero_output, stacked
):
    options = dict(
        return_sequences=return_sequences,
        return_state=True,
        go_backwards=go_backwards,
        zero_output_for_mask=zero_output,
    )
    rng = np.random.default_rng(0)
    x = rng.standard_normal((B, T, INPUTS))
    ours = RNN([Minimal(4), Minimal(3)] if stacked else Minimal(4), dtype="float64", **options)
    ours.build(x.shape)
    sizes = [4, 3] if stacked else [4]
    states = [rng.standard_normal((B, s)) for s in sizes] if initial else None
    with keras_in_float64() as keras:
        if keras.backend.backend() != "torch":
            pytest.skip("takes the gradient with PyTorch")
        theirs = [keras_minimal(s, ours.weights[2 * i : 2 * i + 2]) for i, s in enumerate(sizes)]
        their_cell = keras.layers.StackedRNNCells(theirs, dtype="float64") if stacked else theirs[0]
        theirs = keras.layers.RNN(their_cell, dtype="float64", **options)
        tensor = keras.ops.convert_to_tensor(x).requires_grad_()
        their_states = states and [keras.ops.convert_to_tensor(s).requires_grad_() for s in states]
        their_mask = None if mask is None else keras.ops.convert_to_tensor(mask)
        expected = theirs(tensor, initial_state=their_states, mask=their_mask)
        outputs, tape = ours.forward(x, initial_state=states, mask=mask)
        assert_close(flat(outputs), to_numpy(keras, expected), 1e-13)
        dy = [rng.standard_normal(o.shape) for o in outputs]
        sum((o * keras.ops.convert_to_tensor(d)).sum() for o, d in zip(expected, dy, strict=True)).backward()
    assert_same(ours(x, initial_state=states, mask=mask), outputs)
    gradients = ours.backward(dy, tape)
    assert_close(gradients.x, tensor.grad.numpy(), 1e-12)
    assert_close(gradients.weights, [v.value.grad.numpy() for v in theirs.weights], 1e-12)
    if initial:
        assert_close(flat(gradients.initial_state), [s.grad.numpy() for s in their_states], 1e-12)


def test_what_padding_holds_has_no_say():
    rnn = RNN(Minimal(4), dtype="float64", return_sequences=True)
    x = np.random.default_rng(0).standard_normal((B, T, INPUTS))
    results = []
    for padding in (0.0, np.nan):
        padded = np.where(MASK[..., None], x, padding)
        y, tape = rnn.forward(padded, mask=MASK)
        gradients = rnn.backward(y, tape)
        results.append([y, gradients.x, *gradients.weights])
        assert not gradients.x[~MASK].any()
    assert_same(*results)


def test_training_reaches_the_cells_that_ask_for_it():
    class Asks(Minimal):
        def __call__(self, x_t, states, training=None):
            seen.append(training)
            return super().__call__(x_t, states)

    seen = []
    x = np.ones((1, 1, INPUTS))
    RNN(Asks(2))(x, training=True)
    RNN([Minimal(2), Asks(2)])(x, training=False)
    stack = StackedRNNCells([SimpleRNNCell(2), Asks(2)])
    RNN(stack)(x)  # builds
    stack(x[:, 0], stack.get_initial_state(1), training=True)
    assert seen == [True, False, False, True]


def test_a_cell_says_its_first_states():
    class Starts(Minimal):
        def get_initial_state(self, batch_size=None):
            return np.ones((batch_size, self.state_size))

    x = np.ones((B, T, INPUTS))
    expected = RNN(Minimal(2))(x, initial_state=[np.ones((B, 2))])
    assert_same(RNN(Starts(2))(x), expected)

    class StartsToo(SimpleRNNCell):
        def get_initial_state(self, batch_size=None):
            return [np.ones((batch_size, self.units), "float32")]

    cell = StartsToo(2)
    expected = RNN(cell)(x)
    assert_close(RNN(SimpleRNNCell.from_config(cell.get_config()))(x).shape, expected.shape, 0)
    plain = RNN(SimpleRNNCell(2))
    plain.build(x.shape)
    plain.set_weights(cell.weights)
    assert_close(expected, plain(x, initial_state=[np.ones((B, 2))]), 1e-6)


def test_a_step_that_a_subclass_overrides_is_the_one_that_runs():
    class Doubled(LSTMCell):
        def __call__(self, x_t, states, training=False):
            y, states = super().__call__(x_t, states)
            return 2 * y, states

    cell = Doubled(3, seed=1)
    x = np.ones((B, T, INPUTS), "float32")
    y = RNN(cell, return_sequences=True)(x)
    plain = RNN(LSTMCell(3, seed=1), return_sequences=True)
    assert_close(y, 2 * plain(x), 1e-6)


@pytest.mark.parametrize("time", [0, 1])
def test_small_and_empty_inputs_work(time):
    for cell in (Minimal(3), LSTMCell(3, dtype="float64"), [LSTMCell(3, dtype="float64"), Minimal(2)]):
        for return_sequences in (True, False):
            rnn = RNN(cell, return_sequences=return_sequences, return_state=True, dtype="float64")
            x = np.ones((2, time, INPUTS))
            outputs, tape = rnn.forward(x)
            assert [o.shape for o in flat(outputs)] == flat_shapes(rnn.compute_output_shape(x.shape))
            assert rnn.backward(list(outputs), tape).x.shape == x.shape


def flat_shapes(shapes):
    if isinstance(shapes, tuple) and all(isinstance(n, int) for n in shapes):
        return [shapes]
    return [shape for item in shapes for shape in flat_shapes(item)]


# ---- States that are kept ----


@pytest.mark.parametrize(
    "make",
    [
        lambda: LSTMCell(4, dtype="float64"),
        lambda: [LSTMCell(4, dtype="float64"), Minimal(3)],
        lambda: Minimal(3),
    ],
    ids=["lstm", "stack", "own"],
)
@state_or_not
def test_stateful_calls_go_on_where_the_last_one_ended(make, return_state):
    x = np.random.default_rng(0).standard_normal((B, 2 * T, INPUTS))
    rnn = RNN(make(), stateful=True, return_sequences=True, return_state=return_state, dtype="float64")
    whole = RNN(rnn.cell, return_sequences=True, return_state=True, dtype="float64")
    y, *states = whole(x)
    assert rnn.states is None
    first = as_list(rnn(x[:, :T]))[0]
    second = as_list(rnn.forward(x[:, T:])[0])[0]
    assert_close(np.concatenate([first, second], 1), y, 1e-13)
    assert structure(rnn.states) == structure(states)
    assert_close(flat(rnn.states), flat(states), 1e-13)
    with pytest.raises(ValueError, match=r"^RNN: x must have the batch size 3 of the states that are kept"):
        rnn(x[:1])
    rnn.reset_state()
    assert not any(state.any() for state in flat(rnn.states))
    assert_close(as_list(rnn(x[:1, :T]))[0], first[:1], 1e-13)
    assert copy.copy(rnn).states is None
    rnn(
        x[:1, :T],
        initial_state=whole(x[:1])[1:] if not isinstance(rnn.cell, StackedRNNCells) else states_of(whole, x),
    )
    assert_close(as_list(whole(x[:1, :T], initial_state=states_of(whole, x)))[1:], rnn.states, 1e-13)


def states_of(rnn, x):
    return list(rnn(x[:1])[1:])


# ---- Weights, configs, copies, errors ----


def test_weights_of_a_stack_are_those_of_its_cells_in_order():
    rnn = RNN([LSTMCell(4, kernel_constraint="non_neg", recurrent_regularizer="l2"), Minimal(3, "float32")])
    assert rnn.weights == []
    rnn.build((None, None, INPUTS))
    lstm, minimal = rnn.cell.cells
    assert all(a is b for a, b in zip(rnn.weights, [*lstm.weights, *minimal.weights], strict=True))
    assert rnn.count_params() == sum(w.size for w in rnn.weights)
    assert len(rnn.losses) == 1
    new = [w + 1 for w in rnn.get_weights()]
    rnn.set_weights(new)
    assert_same(rnn.weights, new)
    rnn.set_weights([-w for w in new])
    rnn.apply_constraints()
    assert lstm.kernel.min() == 0
    lstm.trainable = False
    assert_same(rnn.trainable_weights, minimal.weights)
    rnn.trainable = False
    assert rnn.trainable_weights == rnn.losses == rnn.forward(np.ones((1, 1, INPUTS)))[1].losses == []
    with pytest.raises(
        ValueError, match=r"^RNN: weights must have the shapes \[\(4, 16\), .*, got \[\(4, 16\)\]; "
    ):
        rnn.set_weights(new[:1])


def test_configs_go_to_keras_and_back():
    keras = import_keras()
    for cell in (GRUCell(3, reset_after=False), [LSTMCell(3, name="a"), SimpleRNNCell(2)]):
        ours = RNN(cell, return_sequences=True, go_backwards=True, name="b")
        theirs = keras.layers.RNN.from_config(ours.get_config())
        again = RNN.from_config(json.loads(json.dumps(theirs.get_config())))
        assert again.return_sequences and again.go_backwards and again.name == "b"
        assert repr(again.cell) == repr(ours.cell)
        assert RNN.from_config(ours.get_config()).get_config() == ours.get_config()


@pytest.mark.parametrize("stacked", [False, True], ids=["one", "stack"])
@pytest.mark.parametrize("go_backwards", [False, True], ids=["forwards", "backwards"])
@pytest.mark.parametrize("stateful", [False, True], ids=["stateless", "stateful"])
def test_checkpoints_change_neither_outputs_nor_gradients(stacked, go_backwards, stateful):
    cells = [LSTMCell(3, dtype="float64", seed=1), GRUCell(2, dtype="float64", seed=2)]
    options = dict(return_sequences=True, return_state=True, go_backwards=go_backwards, stateful=stateful)
    rnn = RNN(cells if stacked else cells[0], **options)
    x = np.random.default_rng(0).standard_normal((B, T, INPUTS))
    results = []
    for checkpoint in (False, 2, True):
        rnn.reset_state()
        for _ in range(1 + stateful):
            outputs, tape = rnn.forward(x, mask=MASK, checkpoint=checkpoint)
        gates = functional.gates(tape)  # which backward uses up
        gradients = rnn.backward(list(outputs), tape)
        results.append([*flat(outputs), *flat(list(gradients)), *gates.values()])
    for found in results[1:]:
        assert_close(found, results[0], 1e-13)


def test_gates_of_a_stack_are_those_of_its_cells_by_number():
    cells = [LSTMCell(3, dtype="float64"), SimpleRNNCell(2, dtype="float64"), GRUCell(2, dtype="float64")]
    x = np.random.default_rng(0).standard_normal((B, T, INPUTS))
    _, tape = RNN(cells).forward(x)
    found = functional.gates(tape)
    assert list(found) == ["0_i", "0_f", "0_g", "0_o", "0_c", "2_z", "2_r", "2_n"]
    expected = functional.gates(RNN(cells[0]).forward(x)[1])
    assert list(expected) == ["i", "f", "g", "o", "c"]
    for name, gate in expected.items():
        assert_same(found[f"0_{name}"], gate)


@pytest.mark.parametrize(
    ("result", "got"),
    [(None, "None"), (3, "3"), ((1, 2, 3, 4), "4 items"), ([], "0 items"), (X, "array")],
    ids=str,
)
def test_a_cell_must_return_outputs_and_states(result, got):
    class Wrong(Minimal):
        def __call__(self, x_t, states):
            return result

        def forward(self, x_t, states):
            return result

    with pytest.raises(TypeError, match=rf"^RNN: the cell's __call__ must return \(y_t, states\), got {got}"):
        RNN(Wrong(3))(X)
    with pytest.raises(
        TypeError, match=rf"^RNN: the cell's forward must return \(y_t, states, saved\), got {got}"
    ):
        RNN(Wrong(3)).forward(X)


class Refuses(Minimal):
    def set_weights(self, weights):
        super().set_weights(weights)
        if any(np.asarray(w).dtype.kind != "f" for w in weights):
            raise TypeError("must be a floating array")


@pytest.mark.parametrize(
    "make",
    [
        lambda: RNN([LSTMCell(3), Refuses(2, "float32"), GRUCell(2)]),
        lambda: fastrnn.Bidirectional(fastrnn.LSTM(3)),
        lambda: fastrnn.Bidirectional(
            fastrnn.GRU(3), backward_layer=RNN([LSTMCell(3), Refuses(2, "float32")], go_backwards=True)
        ),
    ],
    ids=["stack", "bidirectional", "stack_in_bidirectional"],
)
def test_weights_stay_as_they_were_if_one_is_refused(make):
    layer, x = make(), X.astype("float32")
    y, before = layer(x), layer.get_weights()
    changed = [w + 1 for w in before]
    for index, w in enumerate(changed):
        with pytest.raises(TypeError, match="must be a floating array"):
            layer.set_weights([*changed[:index], w.astype(int), *changed[index + 1 :]])
        assert_same(layer.get_weights(), before)
        with pytest.raises(ValueError, match="must have the shapes"):
            layer.set_weights([*changed[:index], w[1:], *changed[index + 1 :]])
    assert_same(layer(x), y)
    layer.set_weights(changed)
    assert_same(layer.get_weights(), changed)


def test_checkpoints_and_gates_need_cells_of_ours():
    rnn = RNN([LSTMCell(3, dtype="float64"), Minimal(2)])
    with pytest.raises(TypeError, match=r"^RNN: checkpoint needs cells of fastrnn, got <.*; leave it out"):
        rnn.forward(X, checkpoint=2)
    _, tape = rnn.forward(X)
    assert list(functional.gates(tape)) == ["0_i", "0_f", "0_g", "0_o", "0_c"]
    y, tape = RNN(Minimal(2)).forward(X)
    with pytest.raises(TypeError, match=r"^RNN: gates are known of cells of fastrnn, got <"):
        functional.gates(tape)
    with pytest.raises(TypeError, match=r"^inspection: tape must come .*, got one of a cell of one's own; "):
        inspection.gradient_norms(y, tape)


def test_arrays_with_a_mask_are_refused_by_cells_of_ones_own_too():
    masked = np.ma.masked_greater(X, 0)
    for rnn in (RNN(Minimal(3)), RNN(LSTMCell(3, dtype="float64"))):
        for call in (
            lambda rnn=rnn: rnn(masked),
            lambda rnn=rnn: rnn(X, [masked[:, 0, :3]]),
            lambda rnn=rnn: rnn(X, mask=np.ma.array(MASK)),
        ):
            with pytest.raises(TypeError, match=r"^\w+: \S+ must be a plain array, got a masked array; "):
                call()


def test_cells_that_keras_does_not_have_are_written_as_ours():
    rnn = RNN([IndRNNCell(3, recurrent_initializer="random_uniform"), LSTMCell(2)], return_state=True)
    config = json.loads(json.dumps(rnn.get_config()))
    first, second = config["cell"]["config"]["cells"]
    assert (first["module"], second["module"]) == ("fastrnn.cells", "keras.layers")
    again = RNN.from_config(config)
    assert again.get_config() == rnn.get_config() and repr(again) == repr(rnn)


def test_a_cell_of_ones_own_is_written_and_found_by_its_class():
    config = json.loads(json.dumps(RNN([Minimal(3), LSTMCell(2)]).get_config()))
    again = RNN.from_config(config, custom_objects={"Minimal": Minimal})
    assert [type(c) for c in again.cell.cells] == [Minimal, LSTMCell]
    with pytest.raises(
        ValueError, match=r"^a cell's class_name must be one of \[.*\], got 'Minimal'; hand a class"
    ):
        RNN.from_config(config)

    class Bare:
        state_size = 3

        def __call__(self, x_t, states):
            return x_t, states

    with pytest.raises(TypeError, match=r"^a cell of one's own cannot be written into a config, got <"):
        RNN(Bare()).get_config()
    with pytest.raises(
        TypeError, match=r"^RNN: to be trained the cell must have forward\(x_t, states\) and "
    ):
        RNN(Bare()).forward(np.ones((1, 1, 3)))


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_give_the_same_results(duplicate):
    rnn = RNN([LSTMCell(4, dtype="float64"), Minimal(3)], return_sequences=True)
    x = np.ones((B, T, INPUTS))
    y = rnn(x)
    twin = duplicate(rnn)
    assert_same(twin(x), y)
    assert repr(twin)[:40] == repr(rnn)[:40]
    if duplicate is not copy.copy:  # which shares the cells
        twin.set_weights([2 * w for w in twin.get_weights()])
        assert_same(rnn(x), y)
        assert not np.array_equal(twin(x), y)


CELL = LSTMCell(3)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: RNN(3), TypeError, r"RNN: a cell must have state_size, .*, got 3 with state_size None; "),
        (lambda: RNN([]), ValueError, r"StackedRNNCells: cells must be one cell or more, got none; "),
        (
            lambda: RNN([CELL, CELL]),
            ValueError,
            r"StackedRNNCells: cells must be different objects, got one ",
        ),
        (
            lambda: StackedRNNCells(3),
            TypeError,
            r"StackedRNNCells: cells must be a list of cells, .*, got 3; ",
        ),
        (
            lambda: RNN([RNN(LSTMCell(3)).cell, StackedRNNCells([LSTMCell(3)])]),
            TypeError,
            r"StackedRNNCells: cells",
        ),
        (lambda: RNN(LSTMCell(3), stateful=1), TypeError, r"RNN: stateful must be True or False, got 1; "),
        (
            lambda: RNN(LSTMCell(3), dtype="float64"),
            ValueError,
            r"RNN: dtype must be that of all cells, got 'float64'",
        ),
        (
            lambda: setattr(RNN(LSTMCell(3)), "stateful", True),
            AttributeError,
            r"RNN: stateful cannot be changed",
        ),
        (
            lambda: RNN(LSTMCell(3))(X[0]),
            ValueError,
            r"\w+: x must have shape \[batch, time, features\], got \(5, 4\)",
        ),
        (
            lambda: RNN(Minimal(3))(X[0]),
            ValueError,
            r"\w+: x must have shape \[batch, time, features\], got \(5, 4\)",
        ),
        (
            lambda: RNN(Minimal(3))(X.astype(int)),
            TypeError,
            r"RNN: x must be a floating array, got int64; convert",
        ),
        (
            lambda: RNN(Minimal(3))(X, [X]),
            ValueError,
            r"RNN: initial_state must be 1 arrays of the shapes \[\(3, 3\)\]",
        ),
        (
            lambda: RNN([Minimal(3)])(X, [X, X]),
            ValueError,
            r"RNN: initial_state must have the states of 1 cells, got ",
        ),
        (
            lambda: RNN(Minimal(3))(X, mask=MASK[:2]),
            ValueError,
            r"RNN: mask must be a bool array of shape \(3, 5\), ",
        ),
        (lambda: RNN(LSTMCell(3))(X, mask=MASK[:2]), ValueError, r"\w+: mask must have shape \(3, 5\) "),
        (
            lambda: RNN(LSTMCell(3))(X, mask=MASK.astype(int)),
            TypeError,
            r"\w+: mask must be an array of bool",
        ),
        (
            lambda: RNN(LSTMCell(3))(X, mask=MASK, lengths=[1, 2, 3]),
            ValueError,
            r"RNN: lengths and mask must ",
        ),
        (
            lambda: RNN(Minimal(3))(X, lengths=[1, 2, 6]),
            ValueError,
            r"RNN: lengths must be from 0 to 5, .*, got 6",
        ),
        (lambda: RNN(Minimal(3))(X[0, 0], lengths=[1]), ValueError, r"RNN: x must have shape "),
    ],
)
def test_what_does_not_fit_is_refused(call, error, message):
    with pytest.raises(error, match=f"^{message}"):
        call()


def test_a_cell_that_returns_something_else_is_refused():
    class Wrong(Minimal):
        def __call__(self, x_t, states):
            return x_t, [states[0][:, 1:]]

    with pytest.raises(
        ValueError, match=r"^RNN: the cell must return \(y_t, states\), 3 rows and states of the "
    ):
        RNN(Wrong(3))(X)


@pytest.mark.parametrize("make", [lambda: LSTMCell(3), lambda: Minimal(3)], ids=["ours", "own"])
def test_a_tape_serves_once_and_its_own_layer(make):
    rnn = RNN(make(), return_state=True)
    (y, *states), tape = rnn.forward(X)
    for wrong, error in ((y, TypeError), ([y], ValueError), ([y[:1], *states], ValueError)):
        with pytest.raises(error, match=r"^(RNN|LSTMCell)(\.backward)?: dy must "):
            rnn.backward(wrong, tape)
    for other, error in ((3, TypeError), (RNN(make()).forward(X)[1], ValueError)):
        with pytest.raises(error, match=r"^RNN: tape must be what this layer's forward returned, got "):
            rnn.backward([y, *states], other)
    assert not rnn.backward(None, tape).x.any()
    with pytest.raises(RuntimeError, match=r"^(RNN|LSTMCell)(\.backward)?: .*used"):
        rnn.backward([y, *states], tape)
