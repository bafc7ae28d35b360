"""Whether PyTorch and fastrnn, which share one OpenMP runtime and its threads, cost each other time.

    python bench/torch_threads.py [threads]

Times a PyTorch operation and a fastrnn layer, each in a loop of its own, then both in turns in one loop, in rounds: in
inference, and in training, a linear layer and an LSTM, each forward and backward. If
threads of one that still wait for work kept cores from the other, the loop of both would take longer than the sum. Shortest
and middle times of the rounds, in ms per turn.
"""

import sys
import time

import numpy as np
import torch

import fastrnn
import fastrnn.torch


def timed(calls, seconds=0.3):
    """ms per turn of calling each of `calls`."""
    begin, turns = time.perf_counter(), 0
    while (now := time.perf_counter()) - begin < seconds:
        for call in calls:
            call()
        turns += 1
    return (now - begin) / turns * 1e3


def main(threads, rounds=15):
    torch.set_num_threads(threads)
    fastrnn.set_num_threads(threads)
    torch.manual_seed(0)
    x = torch.randn(64, 50, 64)
    a = torch.randn(512, 512)
    gelu = torch.randn(64, 50, 512)
    layer = fastrnn.torch.LSTM(64, 128, batch_first=True)
    linear = torch.nn.Linear(512, 512)

    def train(module, x):
        y = module(x)
        (y[0] if module is layer else y).square().mean().backward()

    infer = torch.no_grad()(lambda: layer(x))
    operations = {
        "matrix product": (torch.no_grad()(lambda: a @ a), infer),
        "element-wise": (torch.no_grad()(lambda: torch.nn.functional.gelu(gelu)), infer),
        "training": (lambda: train(linear, gelu), lambda: train(layer, x)),
    }
    print(f"{threads} threads; {torch.__version__=}; OpenMP runtimes in this process:")
    with open("/proc/self/maps", encoding="utf-8") as maps:
        print("   ", *sorted({line.split()[-1] for line in maps if "omp." in line.split()[-1]}))
    print(f"{'':16}{'':10}{'PyTorch':>9}{'fastrnn':>9}{'sum':>9}{'in turns':>9}{'ratio':>7}")
    for name, (operation, ours) in operations.items():
        sets = ([operation], [ours], [operation, ours])
        for calls in sets:
            timed(calls, 0.05)
        times = np.array([[timed(calls) for calls in sets] for _ in range(rounds)])
        for statistic, found in (("shortest", times.min(0)), ("middle", np.median(times, 0))):
            one, other, both = found
            print(
                f"{name:16}{statistic:10}{one:9.3f}{other:9.3f}{one + other:9.3f}{both:9.3f}"
                f"{both / (one + other):7.2f}"
            )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else torch.get_num_threads())
