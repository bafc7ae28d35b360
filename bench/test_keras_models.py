"""Whole models in Keras: an epoch of `fit` with Keras' own layers and with fastrnn's, on each backend.

Groups: one per model and backend. Each model runs in an interpreter of its own, as Keras has one backend in a process; this
file is also the program that it runs.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

BACKENDS = ("torch", "jax", "tensorflow")
IMPLEMENTATIONS = ("keras", "fastrnn")


def imdb_lstm(layers, keras):
    ids, labels = reviews()
    return [keras.layers.Embedding(10000, 16), layers.LSTM(32), sigmoid(keras)], ids, labels, 32


def imdb_rnn(layers, keras):
    ids, labels = reviews()
    recurrent = [layers.SimpleRNN(32, return_sequences=True), layers.SimpleRNN(32)]
    return [keras.layers.Embedding(10000, 16), *recurrent, sigmoid(keras)], ids, labels, 32


def imdb_lstm_dropout(layers, keras):
    ids, labels = reviews()
    recurrent = layers.LSTM(32, dropout=0.5, recurrent_dropout=0.5)
    return [keras.layers.Embedding(10000, 16), recurrent, sigmoid(keras)], ids, labels, 32


def jena_gru(layers, keras):
    rows = 128 * batches(10, 50)
    weather, temperature = numbers(rows, 120, 14), numbers(rows, 1)
    recurrent = layers.GRU(32, dropout=0.5, recurrent_dropout=0.5)
    return [recurrent, keras.layers.Dense(1)], weather, temperature, 128


def bidirectional_lstm(layers, keras):
    ids, labels = reviews(10, 10)
    recurrent = [
        keras.layers.Bidirectional(layers.LSTM(128, return_sequences=sequences))
        for sequences in (True, False)
    ]
    return [keras.layers.Embedding(10000, 128), *recurrent, sigmoid(keras)], ids, labels, 32


def tiny(layers, keras):
    """A layer whose arithmetic takes next to no time: what remains is the bridge and the program around it."""
    return [layers.LSTM(4), keras.layers.Dense(1)], numbers(100, 2, 3), numbers(100, 1), 1


def sigmoid(keras):
    return keras.layers.Dense(1, activation="sigmoid")


def batches(on_torch, elsewhere):
    """How many an epoch has, if not as many as the variable BATCHES says.

    With Keras' own layers one takes long on PyTorch; elsewhere its beginning takes long.
    """
    few = on_torch if os.environ["KERAS_BACKEND"] == "torch" else elsewhere
    return int(os.environ.get("BATCHES", few))


def reviews(on_torch=20, elsewhere=100):
    """Ids [B, 100] and labels."""
    count = 32 * batches(on_torch, elsewhere)
    rng = np.random.default_rng(0)
    return rng.integers(1, 10000, (count, 100)), rng.integers(0, 2, (count, 1)).astype("float32")


def numbers(*shape):
    return np.random.default_rng(1).standard_normal(shape).astype("float32")


MODELS = {f.__name__: f for f in (imdb_lstm, imdb_rnn, imdb_lstm_dropout, jena_gru, bidirectional_lstm, tiny)}

# ---- The program: an epoch for each line that it reads, a line for each epoch


def run(name, implementation):
    import keras

    layers = keras.layers
    if implementation == "fastrnn":
        import fastrnn
        import fastrnn.keras as layers
    keras.utils.set_random_seed(0)
    stack, x, y, batch = MODELS[name](layers, keras)
    model = keras.Sequential([keras.Input(x.shape[1:], dtype=str(x.dtype)), *stack])
    model.compile("rmsprop", "mse" if name in ("jena_gru", "tiny") else "binary_crossentropy")

    def fit():
        return model.fit(x, y, batch_size=batch, epochs=1, verbose=0, shuffle=False).history["loss"][0]

    loss = fit()
    fit()
    ran = implementation == "keras" or any(c["backward"] for c in fastrnn.kernel_calls().values())
    print(json.dumps({"loss": loss, "ran": ran, "batches": len(x) // batch}), flush=True)
    for _ in sys.stdin:
        fit()
        print("done", flush=True)


# ---- The test


def pytest_generate_tests(metafunc):
    metafunc.parametrize("model", MODELS)
    metafunc.parametrize("backend", BACKENDS)
    metafunc.parametrize("implementation", IMPLEMENTATIONS)


def test_epoch(benchmark, model, backend, implementation, request):
    import pytest

    pytest.importorskip("keras", reason="Keras is not installed")
    pytest.importorskip(backend, reason=f"Keras' backend {backend} is not installed")
    environment = os.environ | {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    program = subprocess.Popen(
        [sys.executable, __file__, model, implementation],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with program:
        try:
            started = json.loads(program.stdout.readline())
            assert np.isfinite(started["loss"]) and started["ran"]

            def epoch():
                program.stdin.write("\n")
                program.stdin.flush()
                assert program.stdout.readline() == "done\n"

            benchmark.group = f"{model} {backend}: fit, {started['batches']} batches"
            benchmark.extra_info.update(started, threads=request.config.threads)
            benchmark.pedantic(epoch, rounds=3)
        finally:
            program.stdin.close()
            program.kill()


if __name__ == "__main__":
    run(*sys.argv[1:])
