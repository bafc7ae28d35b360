"""What fastrnn.torch adds to a call of the kernels, and short calls beside torch.nn's: python bench/torch_overhead.py

The first table has layers so tiny that the call is all there is to time: module(x) without gradients beside
`functional.run` on weights that are ready. The second has small sizes, in inference and in training (forward, backward and
gradients that are added up), with torch.nn's time by ours. Shortest time of many groups of calls, which take turns, in
microseconds, on one thread.
"""

import time

import numpy as np
import torch

import fastrnn
import fastrnn.torch
from fastrnn import functional

GATES = {"RNN": ("simple_rnn", 1), "LSTM": ("lstm", 4), "GRU": ("gru", 3)}
LAYERS = [(1, 1, 8), (1, 10, 8), (8, 10, 8), (1, 10, 64), (8, 10, 64)]  # B, T, H
CELLS = [(1, None, 8), (8, None, 8), (1, None, 64), (8, None, 64)]


def microseconds(calls, groups, size=20):
    """The shortest time of each of `calls`."""
    shortest = [float("inf")] * len(calls)
    for call in calls:
        call()
    for _ in range(groups):
        for i, call in enumerate(calls):
            begin = time.perf_counter()
            for _ in range(size):
                call()
            shortest[i] = min(shortest[i], (time.perf_counter() - begin) / size * 1e6)
    return shortest


def infer(module, x):
    return torch.no_grad()(lambda: module(x))


def train(module, x):
    def output():
        y = module(x)
        while isinstance(y, tuple):
            y = y[0]
        return y

    gradient = torch.ones_like(output())
    return lambda: output().backward(gradient)


def pair(name, units):
    return [getattr(m, name)(units, units) for m in (fastrnn.torch, torch.nn)]


def added(name, kind):
    """Times of the kernels, of the module, and what is between them."""
    cell, gates = GATES[name]
    module, _ = pair(name + kind, 4)
    x = torch.zeros(2, 4) if kind else torch.zeros(1, 2, 4)
    array = x.numpy()[:, None] if kind else x.numpy().transpose(1, 0, 2)
    zeros = [np.zeros((4, 4 * gates), "float32") for _ in range(2)]
    bias = np.zeros((2, 12) if name == "GRU" else 4 * gates, "float32")
    weights = functional.make_weights(cell, *zeros, bias, ("sigmoid", "tanh", "tanh"), name)
    options = {"return_sequences": True, "return_state": True}
    kernels, ours = microseconds(
        [lambda: functional.run(weights, array, **options), infer(module, x)], groups=300
    )
    return kernels, ours, ours - kernels


def main():
    fastrnn.set_num_threads(1)
    torch.set_num_threads(1)
    print(f"{'µs':20}" + "".join(f"{c:>10}" for c in ("kernels", "module", "added")))
    for name in GATES:
        for kind in ("", "Cell"):
            print(f"{name + kind:20}" + "".join(f"{t:10.1f}" for t in added(name, kind)))
    columns = ("inference", "torch.nn", "ratio", "training", "torch.nn", "ratio")
    print(f"\n{'µs':20}" + "".join(f"{c:>10}" for c in columns))
    for kind, sizes in (("", LAYERS), ("Cell", CELLS)):
        for B, T, H in sizes:
            for name in GATES:
                modules = pair(name + kind, H)
                x = torch.randn(*(() if kind else (T,)), B, H)
                calls = [call(module, x) for call in (infer, train) for module in modules]
                i, i_nn, t, t_nn = microseconds(calls, groups=30)
                times = f"{i:10.1f}{i_nn:10.1f}{i_nn / i:10.2f}{t:10.1f}{t_nn:10.1f}{t_nn / t:10.2f}"
                print(f"{name + kind:9}{f'B{B}' if kind else f'B{B} T{T}':7}{f'H{H}':4}{times}")


if __name__ == "__main__":
    main()
