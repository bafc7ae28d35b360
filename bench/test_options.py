"""What the options cost: each beside the plain layer, in training. Groups: one per layer; the answer is checked first."""

import numpy as np
import pytest

import fastrnn
from fastrnn import functional, reference

LAYERS = {"lstm": (32, 100, 16, 32), "gru": (64, 100, 64, 128), "simple_rnn": (64, 100, 64, 128)}
GATES = {"lstm": 4, "gru": 3, "simple_rnn": 1}
OPTIONS = {
    "plain": lambda B, T, I, H, G, rng: {},
    "mask": lambda B, T, I, H, G, rng: {"mask": np.arange(T) < np.linspace(0, T, B).astype(int)[:, None]},
    "dropout": lambda B, T, I, H, G, rng: {"dropout_mask": factors(rng, B, I)},
    "recurrent_dropout": lambda B, T, I, H, G, rng: {
        "dropout_mask": factors(rng, B, G, I),
        "recurrent_dropout_mask": factors(rng, B, G, H),
    },
    "softsign": lambda B, T, I, H, G, rng: {"activation": "softsign"},
    "cifg": lambda B, T, I, H, G, rng: {"variant": "cifg"},
    "peephole": lambda B, T, I, H, G, rng: {"peephole": rng.standard_normal((3, H)).astype("float32")},
}
OF_LSTM = ("cifg", "peephole")


def factors(rng, *shape):
    return ((rng.random(shape) < 0.5) * 2).astype("float32")


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("layer", "option"),
    [(layer, option) for layer in LAYERS for option in OPTIONS if layer == "lstm" or option not in OF_LSTM],
)
def test_option(benchmark, layer, option, request):
    B, T, I, H = LAYERS[layer]
    G = GATES[layer] - (option == "cifg")
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal(shape).astype("float32") for shape in [(B, T, I), (B, T, H)])
    weights = [(rng.standard_normal((n, G * H)) / np.sqrt(n)).astype("float32") for n in (I, H)]
    options = OPTIONS[option](B, T, I, H, G, rng) | {"return_sequences": True}
    forward, backward = (getattr(functional, f"{layer}_{name}") for name in ("forward", "backward"))
    fastrnn.set_num_threads(request.config.threads)

    def train():
        y, tape = forward(x, *weights, **options)
        return y, backward(dy, tape)

    y, gradients = train()
    wide = {
        name: value.astype("float64") if getattr(value, "dtype", None) == "float32" else value
        for name, value in options.items()
    }
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
