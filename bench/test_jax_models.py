"""Whole training steps in JAX: a layer in jax.numpy and lax.scan beside fastrnn.jax's. Groups: one per model.

Each step is one jitted call: embedding, recurrent layers, dense, loss, their gradients and Adam. The losses and gradients of
both are compared first. `python -m pytest bench/test_jax_models.py --benchmark-group-by=group`
"""

from functools import partial

import numpy as np
import pytest

import fastrnn

jax = pytest.importorskip("jax", reason="trains in JAX, which is not installed")
jnp = jax.numpy
from fastrnn import jax as bridge  # noqa: E402

GATES = {"simple_rnn": 1, "lstm": 4, "gru": 3}
WORDS = 20_000


class Model:
    """Layers of one cell: B, T, inputs of the first, units; `words`: the inputs are rows of an embedding."""

    def __init__(self, cell, B, T, I, H, layers=1, words=False, bidirectional=False, recurrent_dropout=0.0):
        self.cell, self.sizes, self.layers = cell, (B, T, I, H), layers
        self.words, self.bidirectional, self.recurrent_dropout = words, bidirectional, recurrent_dropout

    def parameters(self):
        rng = np.random.default_rng(0)
        _, _, I, H = self.sizes
        G, directions = GATES[self.cell], 1 + self.bidirectional

        def matrix(*shape):
            return jnp.asarray(rng.standard_normal(shape) / np.sqrt(shape[0]), "float32")

        def layer(inputs):
            bias = jnp.zeros((2, G * H) if self.cell == "gru" else (G * H,))
            return [matrix(inputs, G * H), matrix(H, G * H), bias]

        inputs = [I, *[H * directions] * (self.layers - 1)]
        return {
            "embedding": matrix(WORDS, I) if self.words else (),
            "layers": [[layer(n) for _ in range(directions)] for n in inputs],
            "dense": matrix(H * directions),
        }

    def batch(self):
        rng = np.random.default_rng(1)
        B, T, I, _ = self.sizes
        x = rng.integers(0, WORDS, (B, T)) if self.words else rng.standard_normal((B, T, I), "float32")
        return jnp.asarray(x), jnp.asarray(rng.integers(0, 2, B), "float32")

    def loss(self, run, parameters, x, labels, key):
        if self.words:
            x = parameters["embedding"][x]
        B, _, _, H = self.sizes
        for i, directions in enumerate(parameters["layers"]):
            all_steps = i < self.layers - 1
            outputs = []
            for weights, back in zip(directions, (False, True), strict=False):
                options = {"return_sequences": all_steps, "go_backwards": back}
                if self.recurrent_dropout:
                    kept = 1 - self.recurrent_dropout
                    mask = jax.random.bernoulli(key, kept, (B, GATES[self.cell], H)) / kept
                    options["recurrent_dropout_mask"] = mask.astype("float32")
                y = run(self.cell, x, *weights, **options)
                outputs.append(y[:, ::-1] if back and all_steps else y)
            x = jnp.concatenate(outputs, axis=-1)
        logits = x @ parameters["dense"]
        return jnp.mean(jnp.logaddexp(0, logits) - labels * logits)

    def step(self, run):
        def adam(parameter, gradient, mean, square):
            mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
            return parameter - 1e-3 * mean / (jnp.sqrt(square) + 1e-7), mean, square

        @partial(jax.jit, donate_argnums=0)
        def step(state, x, labels, key):
            key, new_key = jax.random.split(key)
            parameters, means, squares = state
            value, gradients = jax.value_and_grad(partial(self.loss, run))(parameters, x, labels, key)
            updated = jax.tree.map(adam, parameters, gradients, means, squares)
            state = jax.tree.transpose(jax.tree.structure(parameters), jax.tree.structure((0, 0, 0)), updated)
            return state, value, new_key

        return step


MODELS = {
    "imdb-lstm": Model("lstm", 32, 100, 16, 32, words=True),
    "imdb-rnn-stack": Model("simple_rnn", 32, 100, 16, 32, layers=3, words=True),
    "jena-gru": Model("gru", 128, 120, 14, 32),
    "jena-gru-dropout": Model("gru", 128, 120, 14, 32, recurrent_dropout=0.5),
    "bi-lstm-2": Model("lstm", 32, 100, 64, 128, layers=2, bidirectional=True),
}


def fused(cell, *arrays, **options):
    return getattr(bridge, cell)(*arrays, **options)


def scanned(cell, x, W, U, b, return_sequences, go_backwards, recurrent_dropout_mask=None):
    """The equations in jax.numpy: x.W for all steps in one product, then lax.scan over time."""
    sigmoid, G, H = jax.nn.sigmoid, GATES[cell], len(U)

    def product(h):
        if recurrent_dropout_mask is None:
            return h @ U
        parts = zip(jnp.moveaxis(recurrent_dropout_mask, 1, 0), jnp.split(U, G, axis=1), strict=True)
        return jnp.concatenate([(h * mask) @ part for mask, part in parts], axis=1)

    def step(states, a):
        h, *c = states
        if cell == "simple_rnn":
            states = (jnp.tanh(a + product(h)),)
        elif cell == "lstm":
            i, f, g, o = jnp.split(a + product(h), 4, axis=1)
            c = sigmoid(f) * c[0] + sigmoid(i) * jnp.tanh(g)
            states = (sigmoid(o) * jnp.tanh(c), c)
        else:
            (a_z, a_r, a_n), (h_z, h_r, h_n) = (jnp.split(v, 3, axis=1) for v in (a, product(h) + b[1]))
            z = sigmoid(a_z + h_z)
            states = (z * h + (1 - z) * jnp.tanh(a_n + sigmoid(a_r + h_r) * h_n),)
        return states, states[0] if return_sequences else None

    zeros = (jnp.zeros((len(x), H), x.dtype),) * (2 if cell == "lstm" else 1)
    a = jnp.moveaxis(x @ W + (b[0] if cell == "gru" else b), 1, 0)
    states, y = jax.lax.scan(step, zeros, a[::-1] if go_backwards else a)
    return jnp.moveaxis(y, 0, 1) if return_sequences else states[0]


@pytest.mark.smoke
@pytest.mark.parametrize("layer", ["scan", "fastrnn"])
@pytest.mark.parametrize("name", MODELS)
def test_training_step(benchmark, name, layer, request):
    model = MODELS[name]
    fastrnn.set_num_threads(request.config.threads)
    run = {"scan": scanned, "fastrnn": fused}[layer]
    parameters, batch, key = model.parameters(), model.batch(), jax.random.key(0)
    both = [
        jax.jit(jax.value_and_grad(partial(model.loss, run)))(parameters, *batch, key)
        for run in (scanned, fused)
    ]
    for a, b in zip(*map(jax.tree.leaves, both), strict=True):
        assert jnp.abs(a - b).max() <= 1e-4 * max(jnp.abs(b).max(), 1e-2)

    step = model.step(run)
    zeros = jax.tree.map(jnp.zeros_like, parameters)
    # Arrays of their own each, as the step is given them for good.
    state = (parameters, zeros, jax.tree.map(jnp.zeros_like, parameters))
    current = [step(state, *batch, key)]

    def train():
        state, _, key = current[0]
        current[0] = jax.block_until_ready(step(state, *batch, key))

    B, T, I, H = model.sizes
    benchmark.group = f"{name}: {model.layers} {model.cell} {B} {T} {I} {H}, one training step"
    benchmark.extra_info.update(threads=request.config.threads, isa=fastrnn.get_isa(), jax=jax.__version__)
    benchmark(train)
