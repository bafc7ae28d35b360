"""What the options cost: each beside the plain layer, in training. Groups: one per layer; the answer is checked first."""

import numpy as np
import pytest

import fastrnn
from fastrnn import functional, reference

LAYERS = {"lstm": (32, 100, 16, 32), "gru": (64, 100, 64, 128), "simple_rnn": (64, 100, 64, 128)}
LAYERS["indrnn"] = LAYERS["simple_rnn"]
GATES = {"lstm": 4, "gru": 3, "simple_rnn": 1, "indrnn": 1}
OPTIONS = {
    "plain": lambda B, T, I, H, G, rng: {},
    "mask": lambda B, T, I, H, G, rng: {"mask": np.arange(T) < np.linspace(0, T, B).astype(int)[:, None]},
    "dropout": lambda B, T, I, H, G, rng: {"dropout_mask": factors(rng, B, I)},
    "recurrent_dropout": lambda B, T, I, H, G, rng: {
        "dropout_mask": factors(rng, B, G, I),
        "recurrent_dropout_mask": factors(rng, B, G, H),
    },
    "softsign": lambda B, T, I, H, G, rng: {"activation": "softsign"},
    "zoneout": lambda B, T, I, H, G, rng: {
        "zoneout_mask": [(rng.random((B, T, H)) < 0.5).astype("float32")] * (2 if G == 4 else 1)
    },
    "layer_norm": lambda B, T, I, H, G, rng: {
        "layer_norm": normal(rng, 2, G * H),
        **({"cell_norm": normal(rng, 2, H)} if G == 4 else {}),
    },
    "cifg": lambda B, T, I, H, G, rng: {"variant": "cifg"},
    "peephole": lambda B, T, I, H, G, rng: {"peephole": normal(rng, 3, H)},
    "fgr": lambda B, T, I, H, G, rng: {"variant": "fgr", "gate_kernel": normal(rng, 3 * H, 3 * H) / 10},
    "projection": lambda B, T, I, H, G, rng: {"projection": normal(rng, H, H) / np.float32(np.sqrt(H))},
}
OF_LSTM = ("cifg", "peephole", "fgr", "projection")


def normal(rng, *shape):
    return rng.standard_normal(shape).astype("float32")


def factors(rng, *shape):
    return ((rng.random(shape) < 0.5) * 2).astype("float32")


def as_float64(value):
    if isinstance(value, list):
        return [as_float64(v) for v in value]
    return value.astype("float64") if getattr(value, "dtype", None) == "float32" else value


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("layer", "option"),
    [
        (layer, option)
        for layer in LAYERS
        for option in OPTIONS
        if (layer == "lstm" or option not in OF_LSTM) and (layer, option) != ("indrnn", "layer_norm")
    ],
)
def test_option(benchmark, layer, option, request):
    B, T, I, H = LAYERS[layer]
    G = GATES[layer] - (option == "cifg")
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal(shape).astype("float32") for shape in [(B, T, I), (B, T, H)])
    weights = [normal(rng, n, G * H) / np.float32(np.sqrt(n)) for n in (I, H)]
    if layer == "indrnn":
        weights[1] = rng.uniform(-1, 1, H).astype("float32")
    options = OPTIONS[option](B, T, I, H, G, rng) | {"return_sequences": True}
    forward, backward = (getattr(functional, f"{layer}_{name}") for name in ("forward", "backward"))
    fastrnn.set_num_threads(request.config.threads)

    def train():
        y, tape = forward(x, *weights, **options)
        return y, backward(dy, tape)

    y, gradients = train()
    wide = {name: as_float64(value) for name, value in options.items()}
    expected, tape = getattr(reference, f"{layer}_forward")(
        *(array.astype("float64") for array in (x, *weights)), **wide
    )
    expected_gradients = getattr(reference, f"{layer}_backward")(dy.astype("float64"), tape)
    for actual, right in [(y, expected), (gradients.x, expected_gradients.x)]:
        assert np.abs(actual - right).max() <= 1e-4 * np.abs(right).max()
    for actual, right in zip(gradients.weights, expected_gradients.weights, strict=True):
        assert np.abs(actual - right).max() <= 1e-4 * np.abs(right).max()

    benchmark.group = f"{layer} {B} {T} {I} {H}, training"
    benchmark.extra_info.update(threads=request.config.threads, isa=fastrnn.get_isa())
    benchmark(train)


@pytest.mark.smoke
@pytest.mark.parametrize("given", ["ids", "rows", "one_hot"])
def test_embedding(benchmark, given, request):
    """Ids with an embedding, the same rows as x, and one-hot rows with the embedding in the kernel."""
    B, T, V, I, H = 32, 100, 2000, 64, 64
    rng = np.random.default_rng(0)
    ids, embedding = rng.integers(0, V, (B, T)), normal(rng, V, I)
    kernel, recurrent_kernel = (normal(rng, n, 4 * H) / np.float32(np.sqrt(n)) for n in (I, H))
    expected = reference.lstm_forward(embedding[ids], kernel, recurrent_kernel)[0]
    x = {"ids": ids, "rows": embedding[ids], "one_hot": np.eye(V, dtype="float32")[ids]}[given]
    layer_kernel = embedding @ kernel if given == "one_hot" else kernel
    options = {"embedding": embedding} if given == "ids" else {}
    fastrnn.set_num_threads(request.config.threads)
    weights = functional.make_weights(
        "lstm", layer_kernel, recurrent_kernel, None, ("sigmoid", "tanh", "tanh"), "lstm"
    )
    y = functional.run(weights, x, **options)
    assert np.abs(y - expected).max() <= 1e-4 * np.abs(expected).max()
    benchmark.group = f"embedding, lstm {B} {T} {I} {H}, {V} rows, inference"
    benchmark.extra_info.update(threads=request.config.threads, isa=fastrnn.get_isa())
    benchmark(functional.run, weights, x, **options)


@pytest.mark.smoke
@pytest.mark.parametrize("checkpoint", [False, True])
def test_checkpoint(benchmark, checkpoint, request):
    """Training that keeps all steps, or a state now and then."""
    B, T, I, H = 8, 1000, 64, 64
    rng = np.random.default_rng(0)
    x, dy = normal(rng, B, T, I), normal(rng, B, H)
    layer = fastrnn.LSTM(H, seed=0)
    fastrnn.set_num_threads(request.config.threads)

    def train():
        y, tape = layer.forward(x, checkpoint=checkpoint)
        return y, layer.backward(dy, tape)

    y, gradients = train()
    expected, tape = reference.lstm_forward(
        x.astype("float64"), *(w.astype("float64") for w in layer.get_weights())
    )
    right = reference.lstm_backward(dy.astype("float64"), tape)
    assert np.abs(y - expected).max() <= 1e-4 * np.abs(expected).max()
    for actual, of_reference in zip(gradients.weights, right.weights, strict=True):
        assert np.abs(actual - of_reference).max() <= 1e-4 * np.abs(of_reference).max()
    benchmark.group = f"checkpoint, lstm {B} {T} {I} {H}, training"
    benchmark.extra_info.update(threads=request.config.threads, isa=fastrnn.get_isa())
    benchmark(train)
