"""A whole training step of PyTorch models with torch.nn's layers and with fastrnn.torch's, and of the layers alone.

Each model trains on the same data from the same weights; the losses of the first steps are compared before the clock
runs. Groups: one per model and what is timed, so that the two libraries stand side by side. In one process the threads
of one library may still wait for work when the other begins: for figures, run each library by itself,

    for library in torch.nn fastrnn.torch; do
        pytest bench/test_torch_models.py -k "$library" --benchmark-save=$library
    done

or `python bench/test_torch_models.py`, which does that in turns and prints the ratios; options go to pytest.
"""

import json
import subprocess
import sys
import tempfile
from functools import partial

import numpy as np
import pytest

import fastrnn

torch = pytest.importorskip("torch", reason="trains in PyTorch, which is not installed")
import fastrnn.torch  # noqa: E402

nn = torch.nn
LIBRARIES = {"torch.nn": nn, "fastrnn.torch": fastrnn.torch}


class Reviews(nn.Module):
    """IMDB: ids [B, T] -> a score [B]. The layers are an LSTM, or two RNNs, of 32 units."""

    def __init__(self, library, kinds):
        super().__init__()
        self.embedding = nn.Embedding(10_000, 16)
        self.layers = nn.ModuleList(
            getattr(library, kind)(16 if i == 0 else 32, 32, batch_first=True) for i, kind in enumerate(kinds)
        )
        self.dense = nn.Linear(32, 1)

    def forward(self, ids):
        y = self.embedding(ids)
        for layer in self.layers:
            y, _ = layer(y)
        return self.dense(y[:, -1])[:, 0]


class Series(nn.Module):
    """x [B, T, I] -> a number [B], from the last step."""

    def __init__(self, library, kind, inputs, units, **options):
        super().__init__()
        self.recurrent = getattr(library, kind)(inputs, units, batch_first=True, **options)
        self.dense = nn.Linear(units * (1 + self.recurrent.bidirectional), 1)

    def forward(self, x):
        y, _ = self.recurrent(x)
        return self.dense(y[:, -1])[:, 0]


class Ragged(Series):
    """The same of sequences of their own lengths, from the final state."""

    def forward(self, packed):
        _, (h, _) = self.recurrent(packed)
        return self.dense(h[-1])[:, 0]


def ids(rng, B=32, T=100):
    return torch.from_numpy(rng.integers(0, 10_000, (B, T)))


def numbers(rng, B, T, I):
    return torch.from_numpy(rng.standard_normal((B, T, I)).astype("float32"))


def packed(rng, B=32, T=100, I=64):
    lengths = torch.from_numpy(rng.integers(T // 10, T + 1, B))
    return nn.utils.rnn.pack_padded_sequence(numbers(rng, B, T, I), lengths, True, enforce_sorted=False)


# Model, input, batch size; the recurrent layers alone are timed on what they get there.
MODELS = {
    "imdb-rnn-rnn": (partial(Reviews, kinds=("RNN", "RNN")), ids, 32),
    "imdb-lstm": (partial(Reviews, kinds=("LSTM",)), ids, 32),
    "jena-gru": (partial(Series, kind="GRU", inputs=14, units=32), partial(numbers, B=128, T=120, I=14), 128),
    "bi-lstm-2x128": (
        partial(Series, kind="LSTM", inputs=64, units=128, num_layers=2, bidirectional=True),
        partial(numbers, B=32, T=100, I=64),
        32,
    ),
    "packed-lstm-32": (partial(Ragged, kind="LSTM", inputs=16, units=32), partial(packed, I=16), 32),
    "packed-lstm-128": (partial(Ragged, kind="LSTM", inputs=64, units=128), packed, 32),
}


def model_step(model, library):
    """A function that trains one step and returns the loss."""
    make, data, B = MODELS[model]
    rng = np.random.default_rng(0)
    x, target = data(rng), torch.from_numpy((rng.random(B) < 0.5).astype("float32"))
    torch.manual_seed(0)
    module = make(LIBRARIES[library])
    optimizer = torch.optim.Adam(module.parameters())

    def step():
        optimizer.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(module(x), target)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def layer_step(model, library):
    """A function that runs a model's recurrent layers forward and backward, with gradients of x and of the weights."""
    make, data, _ = MODELS[model]
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    module = make(LIBRARIES[library])
    x = data(rng)
    if isinstance(module, Reviews):
        layers, x = module.layers, module.embedding(x).detach()
    else:
        layers = [module.recurrent]
    if isinstance(x, nn.utils.rnn.PackedSequence):
        leaf = x.data.clone().requires_grad_()
        x = x._replace(data=leaf)
    else:
        leaf = x = x.requires_grad_()

    def step():
        leaf.grad = None
        for layer in layers:
            layer.zero_grad()
        y = x
        for layer in layers:
            y, _ = layer(y)
        y = y.data if isinstance(y, nn.utils.rnn.PackedSequence) else y
        y.backward(torch.ones_like(y))
        return float(leaf.grad.norm())

    return step


STEPS = {"model": model_step, "layers": layer_step}


@pytest.mark.smoke
@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("what", STEPS)
@pytest.mark.parametrize("model", MODELS)
def test_training_step(benchmark, model, what, library, request):
    threads = request.config.threads
    torch.set_num_threads(threads)
    fastrnn.set_num_threads(threads)
    step = STEPS[what](model, library)
    expected = STEPS[what](model, "torch.nn")
    for _ in range(3):
        np.testing.assert_allclose(step(), expected(), rtol=1e-3)
    benchmark.group = f"{model}: training step, {what}"
    benchmark.extra_info.update(threads=threads, isa=fastrnn.get_isa(), torch=torch.__version__)
    benchmark(step)


def main(rounds=2, options=()):
    """Each library in processes of its own, in turns; the shortest times and their ratios."""
    shortest = {}
    for _ in range(rounds):
        for library in LIBRARIES:
            with tempfile.NamedTemporaryFile() as file:
                command = [sys.executable, "-m", "pytest", __file__, "-q", "-k", f"{library}]", *options]
                subprocess.run(
                    [*command, f"--benchmark-json={file.name}"], check=True, stdout=subprocess.DEVNULL
                )
                for row in json.load(file)["benchmarks"]:
                    at = (row["group"], library)
                    shortest[at] = min(shortest.get(at, np.inf), row["stats"]["min"])
    print(f"{'':44}{'torch.nn':>10}{'fastrnn':>10}  ms   ratio")
    for group in dict.fromkeys(group for group, _ in shortest):
        theirs, ours = (1e3 * shortest[group, library] for library in LIBRARIES)
        print(f"{group:44}{theirs:10.2f}{ours:10.2f}{theirs / ours:12.1f}")


if __name__ == "__main__":
    main(options=sys.argv[1:])
