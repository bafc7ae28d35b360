"""The programs in examples/: what they compute is what they say, and they learn."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from support import assert_close, random_gradients, random_problem, torch_layer, torch_weight_gradients

import fastrnn

EXAMPLES = Path(__file__).parent.parent / "examples"
LAYERS = {"simple_rnn": fastrnn.SimpleRNN, "lstm": fastrnn.LSTM, "gru": fastrnn.GRU}
B, T, I, H = 3, 12, 2, 5


def truncated(cell, k):
    """The problem, the gradient of its outputs, and the gradients of its segments by the example's function."""
    truncated_bptt = runpy.run_path(str(EXAMPLES / "truncated_bptt.py"))["truncated_bptt"]
    problem = random_problem(cell, B, T, I, H)
    layer = LAYERS[cell](H, stateful=True, return_sequences=True, dtype="float64")
    layer.build((B, None, I))
    layer.set_weights(problem.weights)
    dy = random_gradients(np.empty((B, T, H)))
    return problem, dy, list(truncated_bptt(layer, problem.x, lambda y, t: dy[:, t : t + y.shape[1]], k))


@pytest.mark.parametrize("cell", LAYERS)
@pytest.mark.parametrize("k", [T, T + 1])
def test_truncation_as_long_as_the_sequence_is_full_backpropagation(cell, k):
    problem, dy, (actual,) = truncated(cell, k)
    layer = LAYERS[cell](H, return_sequences=True, dtype="float64")
    layer.build((B, None, I))
    layer.set_weights(problem.weights)
    np.testing.assert_equal(actual, layer.backward(dy, layer.forward(problem.x)[1]))


@pytest.mark.parametrize("cell", LAYERS)
@pytest.mark.parametrize("k", [1, 4, 5])
def test_truncation_is_what_pytorch_computes_of_detached_states(cell, k):
    problem, dy, actual = truncated(cell, k)
    torch_cell = torch_layer(cell, problem.weights)
    import torch

    x, state = torch.from_numpy(problem.x).requires_grad_(), None
    outputs = []
    for begin in range(0, T, k):
        y, state = torch_cell(x[:, begin : begin + k], state)
        state = tuple(s.detach() for s in state) if cell == "lstm" else state.detach()
        outputs.append(y)
    torch.cat(outputs, dim=1).backward(torch.from_numpy(dy))
    assert_close(np.concatenate([gradients.x for gradients in actual], axis=1), x.grad.numpy(), 1e-12)
    total = [sum(parts) for parts in zip(*(gradients.weights for gradients in actual), strict=True)]
    assert_close(total, torch_weight_gradients(cell, torch_cell), 1e-12)


def test_the_program_of_truncated_backpropagation_learns(capsys):
    right = runpy.run_path(str(EXAMPLES / "truncated_bptt.py"))["main"]()
    assert np.mean(right[:10]) < 0.6  # guessing: 0.5
    assert np.mean(right[-100:]) > 0.99
    assert capsys.readouterr().out.count("of the bits are right") == 4
