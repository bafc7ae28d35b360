"""The closing table of the demo: time per training step of fastrnn, of the NumPy reference, and of PyTorch.

Here a training step is the layer alone: forward and backward over x [B, T, I], with the gradients by x and by
all weights; for fastrnn also packing new weights. A time is the shortest of several runs.
"""

import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from fastrnn import get_num_threads, reference

Shape = tuple[int, int, int]

# Of each layer class: its functions in fastrnn.reference begin with, and it is called in torch.nn
NAMES = {"SimpleRNN": ("simple_rnn", "RNN"), "LSTM": ("lstm", "LSTM"), "GRU": ("gru", "GRU")}


def print_times(layer_class: Callable[..., Any], units: int, shape: Shape) -> None:
    """Measure a layer on x of this shape, and print the table."""
    name, threads = layer_class.__name__, get_num_threads()
    times = {
        "fastrnn": time_fastrnn(layer_class, units, shape),
        "NumPy reference": time_reference(layer_class, units, shape),
    }
    torch = time_torch_elsewhere(name, units, shape, threads)
    if isinstance(torch, float):
        times["PyTorch"] = torch
    table = Table()
    table.add_column("time per training step")
    table.add_column("ms per step", justify="right")
    table.add_column("ratio to fastrnn", justify="right")
    for row, ms in times.items():
        table.add_row(row, f"{ms:.1f}", f"{ms / times['fastrnn']:.2f}")
    print(f"\n{name}({units}) alone, forward and backward, x {list(shape)}, {count(threads, 'thread')}:")
    Console().print(table)
    if isinstance(torch, str):
        print(torch)


def count(number: int, thing: str) -> str:
    """Return the number with its noun, such as 1 thread, 2 threads."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def best_time(step: Callable[[], None], seconds: float = 1.5) -> float:
    """Return the shortest time of a run, in ms, of at least 3 runs and about `seconds`, after a first run."""
    step()
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return min(times) * 1e3


def time_fastrnn(layer_class: Callable[..., Any], units: int, shape: Shape) -> float:
    """Return ms per step of fastrnn."""
    layer, x, dy = _problem(layer_class, units, shape)

    def step() -> None:
        layer.set_weights(layer.weights)
        _, tape = layer.forward(x)
        layer.backward(dy, tape)

    return best_time(step)


def time_reference(layer_class: Callable[..., Any], units: int, shape: Shape) -> float:
    """Return ms per step of the reference in plain NumPy."""
    layer, x, dy = _problem(layer_class, units, shape)
    name = NAMES[layer_class.__name__][0]
    forward, backward = getattr(reference, f"{name}_forward"), getattr(reference, f"{name}_backward")

    def step() -> None:
        _, tape = forward(x, *layer.weights, return_sequences=True)
        backward(dy, tape)

    return best_time(step)


def _problem(layer_class: Callable[..., Any], units: int, shape: Shape) -> tuple[Any, Any, Any]:
    layer = layer_class(units, return_sequences=True)
    layer.build(shape)
    rng = np.random.default_rng(0)
    return layer, rng.standard_normal(shape, "float32"), rng.standard_normal((*shape[:2], units), "float32")


def time_torch(name: str, units: int, shape: Shape, threads: int) -> float:
    """Return ms per step of PyTorch."""
    import torch

    torch.set_num_threads(threads)
    layer = getattr(torch.nn, NAMES[name][1])(shape[2], units, batch_first=True)
    x, dy = torch.randn(shape, requires_grad=True), torch.randn((*shape[:2], units))

    def step() -> None:
        layer.zero_grad()
        x.grad = None
        layer(x)[0].backward(dy)

    return best_time(step)


def time_torch_elsewhere(*arguments: object) -> float | str:
    """Return `time_torch` as measured in a process of its own, where no other library's threads disturb it.

    If that can't be, return a line that says why.
    """
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed, not compared."
    call = f"from fastrnn import _demo_times; print(_demo_times.time_torch(*{arguments!r}))"
    code = f"import sys; sys.path[:] = {sys.path!r}; {call}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode:
        return f"PyTorch failed, not compared: {(done.stderr.strip() or 'no message').splitlines()[-1]}"
    return float(done.stdout)
