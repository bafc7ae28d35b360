"""What fastrnn.torch adds to a call of the kernels: python bench/torch_overhead.py

Tiny layers, so that the call is all there is to time: module(x) without gradients beside `functional.run` on weights that
are ready, and beside torch.nn's module. Shortest time of many groups of calls, in microseconds.
"""

import time

import numpy as np
import torch

import fastrnn
import fastrnn.torch
from fastrnn import functional


def microseconds(call, calls=30, groups=600):
    call()
    shortest = float("inf")
    for _ in range(groups):
        begin = time.perf_counter()
        for _ in range(calls):
            call()
        shortest = min(shortest, time.perf_counter() - begin)
    return shortest / calls * 1e6


def main():
    fastrnn.set_num_threads(1)
    torch.set_num_threads(1)
    columns = ("kernels", "module", "added", "torch.nn", "training", "torch.nn")
    print(f"{'µs':10}{''.join(f'{c:>10}' for c in columns)}")
    for name, cell, gates in [("RNN", "simple_rnn", 1), ("LSTM", "lstm", 4), ("GRU", "gru", 3)]:
        for kind in ("", "Cell"):
            ours, theirs = (getattr(m, name + kind)(4, 4) for m in (fastrnn.torch, torch.nn))
            x = torch.zeros(2, 4) if kind else torch.zeros(1, 2, 4)
            array = x.numpy()[:, None] if kind else x.numpy().transpose(1, 0, 2)
            zeros = [np.zeros(s, "float32") for s in [(4, 4 * gates), (4, 4 * gates)]]
            bias = np.zeros((2, 12) if name == "GRU" else 4 * gates, "float32")
            weights = functional.make_weights(cell, *zeros, bias, ("sigmoid", "tanh", "tanh"), name)
            kernels = microseconds(
                lambda w=weights, a=array: functional.run(w, a, return_sequences=True, return_state=True)
            )

            def train(module, x=x):
                y = module(x)
                while isinstance(y, tuple):
                    y = y[0]
                y.backward(torch.ones_like(y))

            with torch.no_grad():
                module, other = (microseconds(lambda m=m, x=x: m(x)) for m in (ours, theirs))
            both = [microseconds(lambda m=m, f=train: f(m)) for m in (ours, theirs)]
            times = [f"{t:10.1f}" for t in (kernels, module, module - kernels, other, *both)]
            print(f"{name + kind:10}{''.join(times)}")


if __name__ == "__main__":
    main()
