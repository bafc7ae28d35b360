"""A layer of one or two directions in plain PyTorch operations, step by step: what a gradient of a gradient is made of.

The equations are those of torch.nn.RNN, LSTM and GRU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def layer(
    mode: str,
    x: Tensor,
    mask: Tensor | None,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    directions: int,
    batch_first: bool,
) -> list[Tensor]:
    """The same as the operator fastrnn::layer, with the same arguments; masked outputs are zeros."""
    steps = x.unbind(1 if batch_first else 0)
    masks = None if mask is None else mask.unsqueeze(-1).unbind(1)  # of each step [B, 1]
    n = len(weights) // directions
    outputs, finals = [], []
    for d in range(directions):
        w = weights[n * d : n * (d + 1)]
        if states:
            state = [s[d] for s in states]
        else:
            rows, lstm = steps[0].shape[0], mode.startswith("LSTM")
            state = [x.new_zeros(rows, w[1].shape[1])]
            state += [x.new_zeros(rows, w[0].shape[0] // 4)] if lstm else []
        y: list[Tensor] = []
        for t in reversed(range(len(steps))) if d else range(len(steps)):
            new = _step(mode, steps[t], state, w)
            if masks is None:
                y.append(new[0])
                state = new
            else:
                y.append(torch.where(masks[t], new[0], torch.zeros_like(new[0])))
                state = [
                    torch.where(masks[t], after, before) for after, before in zip(new, state, strict=True)
                ]
        outputs.append(torch.stack(y[::-1] if d else y, 1 if batch_first else 0))
        finals.append(state)
    return [torch.cat(outputs, -1), *(torch.stack(s) for s in zip(*finals, strict=True))]


def _step(mode: str, x: Tensor, state: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    w_ih, w_hh, *biases = weights
    w_hr = biases.pop() if mode == "LSTM_PROJECTED" else None
    b_ih, b_hh = biases or (None, None)
    h = state[0]
    of_x = torch.nn.functional.linear(x, w_ih, b_ih)
    of_h = torch.nn.functional.linear(h, w_hh, b_hh)
    if mode.startswith("LSTM"):
        i, f, g, o = (of_x + of_h).chunk(4, -1)
        c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return [h if w_hr is None else torch.nn.functional.linear(h, w_hr), c]
    if mode == "GRU":
        r, z, n = of_x.chunk(3, -1)
        r_h, z_h, n_h = of_h.chunk(3, -1)
        z = (z + z_h).sigmoid()
        n = (n + (r + r_h).sigmoid() * n_h).tanh()
        return [z * h + (1 - z) * n]
    return [(of_x + of_h).relu() if mode == "RNN_RELU" else (of_x + of_h).tanh()]
