"""Truncated backpropagation through time: training on a stream that has no end, k steps at a time.

The states go on from segment to segment, the gradient doesn't: it stops at a segment's beginning, so that a step of
training takes the time and memory of k steps, and the network learns what is at most k steps apart (Williams and Peng, "An
Efficient Gradient-Based Algorithm for On-Line Training of Recurrent Network Trajectories", 1990). Full backpropagation in
little memory is another thing: `layer.forward(x, checkpoint=True)`.

Here an LSTM listens to random bits and says each one again 4 steps later. Run it: python examples/truncated_bptt.py
"""

from collections.abc import Callable, Iterator

import numpy as np

import fastrnn
from fastrnn.gradients import clip_norm

Array = np.ndarray


def truncated_bptt(
    layer: fastrnn.LSTM, x: Array, dloss: Callable[[Array, int], Array], k: int
) -> Iterator[fastrnn.Gradients]:
    """Yield the gradients of each segment of k steps of x [B, T, I], from the first segment to the last.

    The weights may be changed in between. The layer has stateful=True and return_sequences=True; `dloss` is given a
    segment's outputs and its first step, and returns the gradient of the loss by these outputs.
    """
    for begin in range(0, x.shape[1], k):
        y, tape = layer.forward(
            x[:, begin : begin + k]
        )  # stateful: it begins with the states of the last segment
        yield layer.backward(dloss(y, begin), tape)  # no gradient goes from here to the last segment


def main(steps: int = 8_000, k: int = 20, delay: int = 4, units: int = 24, seed: int = 0) -> list[float]:
    """Train, print how many bits are right as it goes, and return these shares."""
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2, (16, steps)).astype("float32")
    x, target = bits[:, :, None], np.roll(bits, delay, axis=1)
    layer = fastrnn.LSTM(units, stateful=True, return_sequences=True, seed=seed)
    layer.build((16, None, 1))
    w = rng.normal(0, 0.1, units).astype("float32")  # from the outputs to one number, positive for the bit 1
    dw = np.zeros_like(w)
    right = []

    def dloss(y: Array, begin: int) -> Array:
        logits, bit = y @ w, target[:, begin : begin + k]
        right.append(float(np.mean((logits > 0) == (bit > 0.5))))
        dlogits = (1 / (1 + np.exp(-logits)) - bit) / bit.size  # of the mean cross entropy
        dw[:] = np.einsum("btu,bt->u", y, dlogits)
        return dlogits[:, :, None] * w

    velocity = [np.zeros_like(a) for a in [*layer.weights, w]]
    for number, gradients in enumerate(truncated_bptt(layer, x, dloss, k), 1):
        clip_norm([gradients, dw], 1.0)
        for v, gradient in zip(velocity, [*gradients.weights, dw], strict=True):
            v *= 0.9
            v -= 0.5 * gradient
        layer.set_weights([a + v for a, v in zip(layer.weights, velocity[:-1], strict=True)])
        w += velocity[-1]
        if number % 100 == 0:
            print(f"{number * k:6} steps: {np.mean(right[-100:]):.1%} of the bits are right")
    return right


if __name__ == "__main__":
    main()
