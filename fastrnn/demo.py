"""Train a character-level language model: how to train with fastrnn, from text to generated text.

    ids [B, T]  ->  one-hot x [B, T, V]  ->  layer  ->  y [B, T, H]  ->  y @ W + b  ->  logits [B, T, V]

The recurrent layer is fastrnn's, forward and backward; the rest is NumPy: `Vocabulary` turns text into ids, `batches` cuts
them into sequences, `Model` is the layer with a softmax head over the next character, `Adam` changes the weights, `train`
is the loop. Then come the sample, the learning curve, and the comparison of speed; `run` puts all of it on the screen.

Legend: B batch, T time steps, V vocabulary, H units; shapes in brackets. Losses are in nats inside, and shown in bits per
character: 1 bit is log(2) nats.
"""

import importlib.util
import math
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import fastrnn
from fastrnn import reference

Array = NDArray[np.float32]
Ids = NDArray[np.integer[Any]]

BATCH, TIME = 64, 64
LEARNING_RATE, CLIP_NORM = 8e-3, 1.0
MOST_CHARACTERS = 128  # in the vocabulary; the others become one symbol
LEAST_TEXT = 1000
MOST_VALIDATION = 50_000  # characters of the validation part that are used: a quarter of a second


class Cell(NamedTuple):
    """A kind of layer: fastrnn's class, its reference in NumPy, and its name in torch.nn."""

    layer: Callable[..., Any]
    reference_forward: Callable[..., Any]
    reference_backward: Callable[..., Any]
    torch_name: str


CELLS = {
    "rnn": Cell(fastrnn.SimpleRNN, reference.simple_rnn_forward, reference.simple_rnn_backward, "RNN"),
    "lstm": Cell(fastrnn.LSTM, reference.lstm_forward, reference.lstm_backward, "LSTM"),
    "gru": Cell(fastrnn.GRU, reference.gru_forward, reference.gru_backward, "GRU"),
}


# ---- Text -> ids -> batches


def read_text(path: Path | None) -> tuple[str, str]:
    """Return a name and the text of a file, or of the topics of Python's own help for None.

    Raises:
        OSError: The file can't be read.
        ValueError: It isn't UTF-8 text, or too short.
    """
    if path is None:
        from pydoc_data.topics import topics

        return "the topics of Python's help()", "\n\n".join(topics.values())
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be UTF-8 text, got byte {error.object[error.start]:#04x} at {error.start}") from None
    if "\0" in text:
        raise ValueError(f"{path} must be text, got a file with zero bytes; is it binary?")
    if len(text) < LEAST_TEXT:
        raise ValueError(f"{path} must have at least {LEAST_TEXT:,} characters, got {len(text):,}")
    return path.name, text


class Vocabulary:
    """The characters of a text, most frequent first; those beyond `most` share the last place."""

    def __init__(self, text: str, most: int = MOST_CHARACTERS):
        self.characters = [c for c, _ in Counter(text).most_common()]
        if len(self.characters) > most:
            self.characters[most - 1 :] = "\N{REPLACEMENT CHARACTER}"
        self._ids = {c: i for i, c in enumerate(self.characters)}

    def __len__(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> Ids:
        """Return the ids [len(text)], int16."""
        last = len(self) - 1
        return np.array([self._ids.get(c, last) for c in text], np.int16)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of some ids."""
        return "".join(self.characters[i] for i in ids)


def batches(ids: Ids, B: int = BATCH, T: int = TIME) -> Iterator[Ids]:
    """Yield [B, T + 1] without end: inputs [:, :-1], targets [:, 1:].

    B readers start at equal distances in the text and read on, round and round: row b of a batch continues row b of the batch
    before, so the layer's final states are the next batch's initial ones.
    """
    start = np.arange(B)[:, None] * (len(ids) // B)
    while True:
        yield ids[(start + np.arange(T + 1)) % len(ids)]
        start = start + T


# ---- The model: a recurrent layer, a softmax head, Adam


def cross_entropy(logits: Array, targets: Ids) -> tuple[float, Array]:
    """Return the mean over N of -log softmax(logits)[target], in nats, and its gradient by the logits.

    Args:
        logits: [N, V] float32.
        targets: [N], the id that should be likely.
    """
    n = np.arange(len(targets))
    log_p = logits - logits.max(1, keepdims=True)
    p = np.exp(log_p)
    total = p.sum(1, keepdims=True)
    log_p -= np.log(total)
    p /= total
    p[n, targets] -= 1  # d(-log p_target) / d logits = p - onehot(target)
    return -float(log_p[n, targets].mean()), p / np.float32(len(targets))


class Model:
    """A recurrent layer over one-hot characters, and a head that gives the logits of the next character."""

    def __init__(self, cell: str, units: int, characters: int, seed: int):
        rng = np.random.default_rng(seed)
        self.one_hot = np.eye(characters, dtype=np.float32)  # row i is the vector of id i
        self.layer = CELLS[cell].layer(units, return_sequences=True, return_state=True, seed=seed)
        self.layer.build((None, None, characters))
        W = rng.standard_normal((units, characters)) / math.sqrt(units)
        self.weights = [*self.layer.get_weights(), W.astype(np.float32), np.zeros(characters, np.float32)]

    def update(self, weights: list[Array]) -> None:
        """Take new weights: those of the layer, then W [H, V] and b [V] of the head."""
        self.weights = weights
        self.layer.set_weights(weights[:-2])

    def loss(self, ids: Ids, states: list[Array] | None = None) -> tuple[float, list[Array]]:
        """Return the loss of guessing ids[:, 1:] from what comes before, ids [B, T + 1], and the layer's final states."""
        y, *states = self.layer(self.one_hot[ids[:, :-1]], initial_state=states)
        W, b = self.weights[-2:]
        return cross_entropy(y.reshape(-1, len(W)) @ W + b, ids[:, 1:].ravel())[0], states

    def gradients(self, ids: Ids, states: list[Array] | None) -> tuple[float, list[Array], list[Array]]:
        """Return the loss, its gradients in the order of `weights`, and the layer's final states."""
        (y, *states), tape = self.layer.forward(self.one_hot[ids[:, :-1]], initial_state=states)
        W, b = self.weights[-2:]
        y_rows = y.reshape(-1, len(W))  # [B, T, H] -> [B*T, H]
        loss, dlogits = cross_entropy(y_rows @ W + b, ids[:, 1:].ravel())
        dW, db, dy = y_rows.T @ dlogits, dlogits.sum(0), (dlogits @ W.T).reshape(y.shape)
        grads = self.layer.backward([dy] + [None] * len(states), tape)  # no loss hangs on the final states: None
        return loss, [*grads.weights, dW, db], states

    def step(self, i: int, states: list[Array] | None) -> tuple[Array, list[Array]]:
        """Read one character; return the logits [V] of the next, and the layer's states."""
        y, states = self.layer.step(self.one_hot[i : i + 1], states)
        W, b = self.weights[-2:]
        return y[0] @ W + b, states


class Adam:
    """Adam (Kingma and Ba, 2014, arXiv 1412.6980), after clipping the gradients to a global norm."""

    def __init__(self, weights: list[Array], beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8):
        self.beta1, self.beta2, self.epsilon = beta1, beta2, epsilon
        self.m = [np.zeros_like(w) for w in weights]
        self.v = [np.zeros_like(w) for w in weights]
        self.steps = 0

    def step(self, weights: list[Array], gradients: list[Array], rate: float) -> list[Array]:
        """Return the new weights."""
        self.steps += 1
        norm = math.sqrt(sum(float(np.vdot(g, g)) for g in gradients))
        scale = min(1.0, CLIP_NORM / (norm + 1e-12))
        rate *= math.sqrt(1 - self.beta2**self.steps) / (1 - self.beta1**self.steps)
        new_weights = []
        for w, g, m, v in zip(weights, gradients, self.m, self.v, strict=True):
            g = g * scale
            m += (1 - self.beta1) * (g - m)
            v += (1 - self.beta2) * (g * g - v)
            new_weights.append(w - rate * m / (np.sqrt(v) + self.epsilon))
        return new_weights


def learning_rate(step: int, steps: int) -> float:
    """Return the rate for one of `steps` steps: up in a line over the first 5 %, then down along a cosine."""
    warm_up = math.ceil(steps / 20)
    if step < warm_up:
        return LEARNING_RATE * (step + 1) / warm_up
    return LEARNING_RATE * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up))) / 2


# ---- Training


@dataclass
class History:
    """What `train` saw: the loss of every step, and (steps done, loss) of every validation, in bits per character."""

    training: list[float] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    stopped: bool = False


def validate(model: Model, ids: Ids) -> float:
    """Return the loss over `ids`, read by up to 32 readers side by side, in bits per character."""
    rows = max(1, min(32, len(ids) // (2 * TIME)))
    ids = ids[: len(ids) // rows * rows].reshape(rows, -1)
    total, states = 0.0, None
    for t in range(0, ids.shape[1] - 1, TIME):  # in pieces, so that memory doesn't grow with the text
        piece = ids[:, t : t + TIME + 1]
        loss, states = model.loss(piece, states)
        total += loss * (piece.shape[1] - 1)
    return total / (ids.shape[1] - 1) / math.log(2)


def train(model: Model, training: Ids, validation: Ids, steps: int) -> History:
    """Train for `steps` steps, or until Ctrl-C; print the losses ten times."""
    adam, history, states = Adam(model.weights), History(), None
    pause = max(1, steps // 10)
    # A bar on a terminal; when piped to a file, only the ten lines.
    with tqdm(zip(range(steps), batches(training)), total=steps, unit=" steps", leave=False, disable=None) as bar:
        try:
            for step, ids in bar:
                loss, gradients, states = model.gradients(ids, states)
                model.update(adam.step(model.weights, gradients, learning_rate(step, steps)))
                history.training.append(loss / math.log(2))
                bar.set_postfix_str(f"{history.training[-1]:.2f} bits per character", refresh=False)
                if (step + 1) % pause == 0 or step + 1 == steps:
                    report(model, validation, history, pause)
        except KeyboardInterrupt:
            history.stopped = True
    if history.stopped:
        print(f"  stopped after {len(history.training)} steps")
        report(model, validation, history, pause)
    return history


def report(model: Model, validation: Ids, history: History, pause: int) -> None:
    """Validate, and print a line."""
    step = len(history.training)
    history.validation.append((step, validate(model, validation)))
    ...
