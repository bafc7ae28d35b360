"""Train a character-level language model: how to train with fastrnn, from text to generated text.

    ids [B, T]  ->  one-hot x [B, T, V]  ->  layer  ->  y [B, T, H]  ->  y @ W + b  ->  logits [B, T, V]

The recurrent layer is fastrnn's, forward and backward; the rest is NumPy: `Vocabulary` turns text into ids,
`batches` cuts them into sequences, `Model` is the layer with a softmax head for the next character, `Adam`
changes the weights, `train` is the loop, `generate` writes, `plot` draws the learning curve. `run` is what
`fastrnn demo` does.

Legend: B batch, T time steps, V vocabulary, H units; shapes in brackets. Losses are computed in nats and
shown in bits per character; a bit is log(2) nats.
"""

import math
import textwrap
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from tqdm import tqdm  # type: ignore[import-untyped]

import fastrnn
from fastrnn._demo_times import count, print_times

Array = NDArray[Any]  # of float32
Ids = NDArray[np.int16]

BATCH, TIME = 32, 64
LEARNING_RATE, CLIP_NORM = 1e-2, 1.0
MOST_CHARACTERS = 128  # in a vocabulary
LEAST_TEXT = 1000  # characters
SMOOTH = 25  # training losses are shown as the mean of so many steps
MOST_VALIDATION = 50_000  # characters of the validation part that are read: a quarter of a second


CELLS = {"rnn": fastrnn.SimpleRNN, "lstm": fastrnn.LSTM, "gru": fastrnn.GRU}


# ---- From text to batches


def read_text(path: Path | None) -> tuple[str, str]:
    """Return name and content of a text file; None stands for the topics of Python's help().

    Raises:
        OSError: The file can't be read.
        ValueError: It isn't UTF-8 text, or it is too short.
    """
    if path is None:
        from pydoc_data.topics import topics

        return "the topics of Python's help()", "\n\n".join(topics.values())
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be UTF-8 text, but byte {error.start} isn't") from None
    if "\0" in text:
        raise ValueError(f"{path} must be text, but it has zero bytes; is it a binary file?")
    if len(text) < LEAST_TEXT:
        raise ValueError(f"{path} must have at least {LEAST_TEXT:,} characters, got {len(text):,}")
    return path.name, text


class Vocabulary:
    """The characters of a text, most frequent first. Beyond `most`, the rare ones share the last place."""

    def __init__(self, text: str, most: int = MOST_CHARACTERS) -> None:
        self.characters = [c for c, _ in Counter(text).most_common()]
        if len(self.characters) > most:
            self.characters[most - 1 :] = "\N{REPLACEMENT CHARACTER}"
        self._ids = {c: i for i, c in enumerate(self.characters)}

    def encode(self, text: str) -> Ids:
        """Return the ids [len(text)]; a character that isn't in the vocabulary is taken as the last one."""
        last = len(self.characters) - 1
        return np.array([self._ids.get(c, last) for c in text], np.int16)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of some ids."""
        return "".join(self.characters[i] for i in ids)


def batches(ids: Ids, B: int = BATCH, T: int = TIME) -> Iterator[Ids]:
    """Yield arrays [B, T + 1] without end: [:, :-1] are inputs, [:, 1:] the characters to guess.

    B readers start at equal distances in the text and read on, round and round. So each row goes on where it
    ended in the batch before, and the layer's final states are the initial states of the next batch.
    """
    start = np.arange(B)[:, None] * (len(ids) // B)
    while True:
        yield ids[(start + np.arange(T + 1)) % len(ids)]
        start = start + T


# ---- Model, loss, and Adam


def cross_entropy(logits: Array, targets: Ids) -> tuple[float, Array]:
    """Return the loss, the mean of -log softmax(logits)[target] in nats, and its gradient by the logits.

    Args:
        logits: [N, V].
        targets: [N], ids.
    """
    n = np.arange(len(targets))
    log_p = logits - logits.max(axis=1, keepdims=True)
    p = np.exp(log_p)
    total = p.sum(axis=1, keepdims=True)
    loss = np.log(total).mean() - log_p[n, targets].mean()
    dlogits = p / total
    dlogits[n, targets] -= 1  # softmax(logits) - one_hot(target)
    dlogits /= len(targets)
    return float(loss), dlogits


class Model:
    """A recurrent layer over one-hot characters, and a head W [H, V], b [V]: the next character's logits."""

    def __init__(self, cell: str, units: int, characters: int, seed: int) -> None:
        self.layer = CELLS[cell](units, return_sequences=True, return_state=True, seed=seed)
        self.layer.build((None, None, characters))
        self.one_hot = np.eye(characters, dtype=np.float32)  # row i stands for id i
        W = np.random.default_rng(seed).standard_normal((units, characters), np.float32)
        self.W, self.b = W / math.sqrt(units), np.zeros(characters, np.float32)

    @property
    def weights(self) -> list[Array]:
        """The layer's weights, W, and b."""
        return [*self.layer.get_weights(), self.W, self.b]

    @weights.setter
    def weights(self, weights: list[Array]) -> None:
        *layer_weights, self.W, self.b = weights
        self.layer.set_weights(layer_weights)

    def loss(self, ids: Ids, states: list[Array] | None) -> tuple[float, list[Array]]:
        """Return the loss of guessing ids [B, T + 1] from the second column on, and the final states."""
        y, *states = self.layer(self.one_hot[ids[:, :-1]], initial_state=states)
        logits = y.reshape(-1, len(self.W)) @ self.W + self.b
        return cross_entropy(logits, ids[:, 1:].ravel())[0], states

    def gradients(self, ids: Ids, states: list[Array] | None) -> tuple[float, list[Array], list[Array]]:
        """Return what `loss` does, with the gradients of the loss by the weights in the middle."""
        (y, *states), tape = self.layer.forward(self.one_hot[ids[:, :-1]], initial_state=states)
        rows = y.reshape(-1, len(self.W))  # [B*T, H]
        loss, dlogits = cross_entropy(rows @ self.W + self.b, ids[:, 1:].ravel())
        dy = (dlogits @ self.W.T).reshape(y.shape)
        layer = self.layer.backward(
            [dy] + [None] * len(states), tape
        )  # None: the loss doesn't use the states
        return loss, [*layer.weights, rows.T @ dlogits, dlogits.sum(axis=0)], states

    def step(self, i: int, states: list[Array] | None) -> tuple[Array, list[Array]]:
        """Read one character; return the next one's logits [V], and the states."""
        y, states = self.layer.step(self.one_hot[i : i + 1], states)
        return y[0] @ self.W + self.b, states


class Adam:
    """Adam (Kingma and Ba, 2014, arXiv 1412.6980) on gradients clipped to a global norm."""

    def __init__(self, weights: list[Array], beta1: float = 0.9, beta2: float = 0.99) -> None:
        self.beta1, self.beta2, self.steps = beta1, beta2, 0
        self.means = [np.zeros_like(w) for w in weights]
        self.squares = [np.zeros_like(w) for w in weights]

    def step(self, weights: list[Array], gradients: list[Array], rate: float) -> list[Array]:
        """Return the weights after one step."""
        self.steps += 1
        norm = math.sqrt(sum(float(np.vdot(g, g)) for g in gradients))
        clip = min(1.0, CLIP_NORM / max(norm, 1e-30))
        rate *= math.sqrt(1 - self.beta2**self.steps) / (1 - self.beta1**self.steps)
        new_weights = []
        for w, g, mean, square in zip(weights, gradients, self.means, self.squares, strict=True):
            g = g * clip
            mean += (1 - self.beta1) * (g - mean)
            square += (1 - self.beta2) * (g * g - square)
            new_weights.append(w - rate * mean / (np.sqrt(square) + 1e-8))
        return new_weights


def learning_rate(step: int, steps: int) -> float:
    """Return the rate of one of `steps` steps: up along a line for 5 %, then down along a cosine."""
    warm_up = math.ceil(steps / 20)
    if step < warm_up:
        return LEARNING_RATE * (step + 1) / warm_up
    return LEARNING_RATE * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up))) / 2


# ---- Training


@dataclass
class History:
    """The losses in bits per character: of each training step, and (steps done, loss) of each validation."""

    training: list[float] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    stopped: bool = False  # by Ctrl-C


def train(model: Model, training: Ids, validation: Ids, steps: int) -> History:
    """Train for `steps` steps or until Ctrl-C, and validate ten times and at the end."""
    history = History()
    try:
        train_steps(model, training, validation, steps, history)
    except KeyboardInterrupt:
        history.stopped = True
    if history.stopped:  # by now the bar is gone, whose end would swallow a second Ctrl-C
        print(f"  stopped after {count(len(history.training), 'step')}")
    if not history.validation or history.validation[-1][0] < len(history.training):
        report(model, validation, history)
    return history


def train_steps(model: Model, training: Ids, validation: Ids, steps: int, history: History) -> None:
    """Train, and note in `history` how it goes."""
    adam, states = Adam(model.weights), None
    pause = math.ceil(steps / 10)
    # The bar is drawn on a terminal only (disable=None).
    with tqdm(total=steps, unit=" steps", leave=False, disable=None) as bar:
        for step, ids in zip(range(steps), batches(training), strict=False):
            loss, gradients, states = model.gradients(ids, states)
            model.weights = adam.step(model.weights, gradients, learning_rate(step, steps))
            history.training.append(loss / math.log(2))
            bar.set_postfix_str(f"{history.training[-1]:.2f} bits per character", refresh=False)
            bar.update()
            for state in states:
                state[step % BATCH] = 0  # one row in turn forgets, so that the model learns to begin
            if (step + 1) % pause == 0:
                report(model, validation, history)


def report(model: Model, validation: Ids, history: History) -> None:
    """Validate, and print the losses."""
    history.validation.append((len(history.training), validate(model, validation)))
    step, bits = history.validation[-1]
    mean = f"{np.mean(history.training[-SMOOTH:]):.3f}" if step else "    -"
    tqdm.write(f"  step {step:6,}    training {mean}    validation {bits:.3f}    bits per character")


def validate(model: Model, ids: Ids) -> float:
    """Return the loss of guessing `ids`, in bits per character; up to 32 readers share them."""
    rows = min(32, math.ceil(len(ids) / TIME))
    ids = ids[: len(ids) // rows * rows].reshape(rows, -1)
    total, guesses, states = 0.0, ids.shape[1] - 1, None
    for t in range(0, guesses, TIME):
        piece = ids[:, t : t + TIME + 1]
        loss, states = model.loss(piece, states)
        total += loss * (piece.shape[1] - 1)
    return total / guesses / math.log(2)


# ---- What comes of it


def generate(model: Model, vocabulary: Vocabulary, length: int, temperature: float, seed: int) -> str:
    """Return a text, its characters drawn one by one from softmax(logits / temperature), and read in turn."""
    random = np.random.default_rng(seed)
    states = None
    for i in vocabulary.encode("\n\n"):  # where a paragraph begins
        logits, states = model.step(i, states)
    ids: list[int] = []
    while len(ids) < length:
        # argmax(logits / temperature + Gumbel noise) is such a draw (the Gumbel trick)
        ids.append(int(np.argmax(logits + temperature * random.gumbel(size=len(logits)))))
        logits, states = model.step(ids[-1], states)
    return vocabulary.decode(ids)


def plot(path: Path, history: History, title: str) -> None:
    """Draw the learning curve, if matplotlib is there, and print where it is."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        print('No learning curve: matplotlib is not installed; run: pip install "fastrnn[demo]"')
        return
    steps = len(history.training)
    window = min(SMOOTH, steps)
    smooth = np.convolve(history.training, np.ones(window) / window, "valid")
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(np.arange(steps) + 1, history.training, color="C0", alpha=0.25, linewidth=0.8)
    axes.plot(
        np.arange(len(smooth)) + (window + 1) / 2,
        smooth,
        color="C0",
        label=f"training, mean of {window} steps",
    )
    axes.plot(*zip(*history.validation, strict=True), "o-", color="C1", label="validation")
    axes.set(title=title, xlabel="training steps", ylabel="bits per character")
    axes.set(xlim=(0, None), ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    try:
        figure.savefig(path, format="png", dpi=120)
    except OSError as error:
        print(f"No learning curve: {error}")
    else:
        print(f"The learning curve is in {path} (--no-plot draws none).")


# ---- The command


def run(
    name: str,
    text: str,
    *,
    cell: str,
    steps: int,
    units: int,
    seed: int,
    temperature: float,
    sample_length: int,
    plot_path: Path | None,
) -> History:
    """Do what `fastrnn demo` does with a text called `name`, and return the losses."""
    start = time.perf_counter()
    vocabulary = Vocabulary(text)
    ids, characters = vocabulary.encode(text), len(vocabulary.characters)
    split = len(ids) * 9 // 10
    model = Model(cell, units, characters, seed)
    layer = f"{type(model.layer).__name__}({units})"
    print(
        f"text     {name}: {len(ids):,} characters (10 % to validate)\n"
        f"model    {characters} different characters, {layer}, softmax: "
        f"{sum(w.size for w in model.weights):,} parameters\n"
        f"train    {count(steps, 'step')} of {BATCH} x {TIME} characters, Adam, seed {seed}\n"
        f"compute  {count(fastrnn.get_num_threads(), 'thread')}, {fastrnn.get_isa()}\n"
    )
    # After a product, NumPy's threads stay busy waiting for the next one, on the cores that the layer needs then:
    # with them a step of the LSTM took 57 ms, without them 31 ms (2 cores, OpenBLAS).
    with threadpool_limits(1, "blas"):
        history = train(model, ids[:split], ids[split:][:MOST_VALIDATION], steps)
    bits = history.validation[-1][1]
    print(f"\nValidation: {bits:.3f} bits per character after {time.perf_counter() - start:.0f} s.\n")
    if sample_length:
        sample = generate(model, vocabulary, sample_length, temperature, seed)
        print(f"A sample at temperature {temperature:g}:\n")
        print(textwrap.indent(sample.strip("\n"), "    ") + "\n")
    if plot_path is not None and history.training:
        plot(plot_path, history, f"{layer}: {bits:.2f} bits per character")
    if not history.stopped:
        print_times(type(model.layer), units, (BATCH, TIME, characters))
    return history
