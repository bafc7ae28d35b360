"""The gradient of every step's hidden state: against PyTorch's autograd, over masks, through the layers."""

import numpy as np
import pytest
from support import as_list, assert_close, random_gradients, random_problem, torch_layer

import fastrnn
from fastrnn import checkpoint, functional, inspection

B, T, I, H = 4, 11, 3, 5


def hidden_gradients(cell, problem, dy=random_gradients, every=4, **options):
    outputs, tape = checkpoint.run_forward(
        functional.Weights(cell, *problem.weights), problem.x, every=every, **options
    )
    return inspection.hidden_gradients(dy(outputs), tape)


@pytest.mark.parametrize("cell", ["simple_rnn", "lstm", "gru"])
@pytest.mark.parametrize("return_sequences", [True, False], ids=["sequences", "last"])
@pytest.mark.parametrize("go_backwards", [False, True], ids=["forwards", "backwards"])
def test_hidden_gradients_are_those_of_pytorch(cell, return_sequences, go_backwards):
    problem = random_problem(cell, B, T, I, H)
    torch_cell = torch_layer(cell, problem.weights)
    import torch

    x = torch.from_numpy(problem.x).flip(1) if go_backwards else torch.from_numpy(problem.x)
    h, *c = (torch.from_numpy(state)[None] for state in problem.initial_state)
    all_h = []
    for t in range(T):
        y, state = torch_cell(x[:, t : t + 1], (h, *c) if c else h)
        y.retain_grad()
        all_h.append(y)
        h, c = y.transpose(0, 1), list(state[1:]) if c else []
    outputs = torch.cat(all_h, dim=1) if return_sequences else all_h[-1][:, 0]
    dy = random_gradients([outputs.detach().numpy(), *problem.initial_state])
    torch.autograd.backward([outputs, h[0], *(s[0] for s in c)], [torch.from_numpy(d) for d in dy])
    options = {"return_sequences": return_sequences, "go_backwards": go_backwards, "return_state": True}
    actual = hidden_gradients(cell, problem, lambda _: dy, initial_state=problem.initial_state, **options)
    assert_close(actual, np.concatenate([y.grad.numpy() for y in all_h], axis=1), 1e-12)


@pytest.mark.parametrize("every", [1, 2, T, True])
def test_hidden_gradients_do_not_depend_on_where_the_checkpoints_are(cell, every):
    problem = random_problem(cell, B, T, I, H)
    options = {"return_sequences": True, "initial_state": problem.initial_state}
    np.testing.assert_array_equal(
        hidden_gradients(cell, problem, every=every, **options), hidden_gradients(cell, problem, **options)
    )


@pytest.mark.parametrize("return_sequences", [True, False], ids=["sequences", "last"])
@pytest.mark.parametrize("go_backwards", [False, True], ids=["forwards", "backwards"])
def test_real_steps_have_the_gradients_that_they_have_without_the_masked_ones(
    cell, return_sequences, go_backwards
):
    problem = random_problem(cell, 1, T, I, H)
    mask = np.array([[0, 0, 1, 1, 0, 1, 0, 0, 1, 0, 0]], bool)
    options = {"return_sequences": return_sequences, "go_backwards": go_backwards}
    dy = np.random.default_rng(1).standard_normal((1, T, H) if return_sequences else (1, H))
    order = mask[0, ::-1] if go_backwards else mask[0]
    alone = dy
    if return_sequences:  # the output of each real step has the gradients of those that repeat it
        starts = np.flatnonzero(order)
        alone = np.add.reduceat(dy, starts, axis=1)
    short = problem._replace(x=problem.x[:, mask[0]])
    expected = hidden_gradients(cell, short, lambda _: alone, **options)
    actual = hidden_gradients(cell, problem, lambda _: dy, mask=mask, **options)
    assert_close(actual[:, order], expected, 1e-12)


def test_norms_are_those_of_the_hidden_gradients(cell, dtype):
    problem = random_problem(cell, B, T, I, H, dtype)
    y, tape = checkpoint.run_forward(functional.Weights(cell, *problem.weights), problem.x, every=3)
    norms = inspection.gradient_norms(y, tape)
    assert norms.dtype == dtype
    np.testing.assert_allclose(norms, np.linalg.norm(inspection.hidden_gradients(y, tape), axis=2), rtol=1e-6)


@pytest.mark.parametrize(("factor", "grows"), [(0.5, False), (2.0, True)])
def test_norms_show_vanishing_and_exploding(factor, grows):
    weights = functional.make_weights(
        "simple_rnn", np.zeros((I, H)), factor * np.eye(H), None, ("linear",) * 3, "here"
    )
    y, tape = checkpoint.run_forward(weights, np.zeros((1, T, I)), every=True)
    norms = inspection.gradient_norms(np.ones_like(y), tape)[0]
    np.testing.assert_allclose(norms, np.sqrt(H) * factor ** np.arange(T - 1, -1, -1.0))
    assert (norms[0] > norms[-1]) == grows


def test_no_steps_have_no_gradients(cell):
    problem = random_problem(cell, B, 0, I, H)
    assert hidden_gradients(cell, problem).shape == (B, 0, H)


@pytest.mark.parametrize("options", [{}, {"stateful": True}, {"return_state": True}], ids=str)
def test_a_layers_hidden_gradients_are_those_of_the_loss_with_its_penalties(options):
    lstm = fastrnn.LSTM(H, return_sequences=True, activity_regularizer="l2", dtype="float64", **options)
    x = np.random.default_rng(0).standard_normal((B, T, I))
    outputs, tape = lstm.forward(x, checkpoint=4)
    dy = random_gradients(outputs)
    y = outputs[0] if lstm.return_state else outputs
    penalized = [d + 2 * 0.01 * o / B for d, o in zip(as_list(dy), as_list(outputs), strict=True)]
    _, core = checkpoint.run_forward(
        functional.Weights("lstm", *lstm.weights),
        x,
        every=1,
        return_sequences=True,
        return_state=lstm.return_state,
    )
    expected = inspection.hidden_gradients(penalized if lstm.return_state else penalized[0], core)
    assert y.shape == expected.shape
    for _ in range(2):  # the tape is not used up
        assert_close(inspection.hidden_gradients(dy, tape), expected, 1e-14)
    lstm.backward(dy, tape)


@pytest.mark.parametrize("return_state", [True, False])
def test_each_cell_of_a_stack_has_hidden_gradients(return_state):
    rnn = fastrnn.RNN(
        [fastrnn.LSTMCell(4, dtype="float64"), fastrnn.GRUCell(H, dtype="float64")], return_state=return_state
    )
    x = np.random.default_rng(0).standard_normal((B, T, I))
    _, tape = rnn.forward(x, checkpoint=True)
    first, second = fastrnn.LSTM(4, return_sequences=True, dtype="float64"), fastrnn.GRU(H, dtype="float64")
    for layer, cell, features in ((first, rnn.cell.cells[0], I), (second, rnn.cell.cells[1], 4)):
        layer.build((None, None, features))
        layer.set_weights(cell.weights)
    between, first_tape = first.forward(x, checkpoint=True)
    y, second_tape = second.forward(between, checkpoint=True)
    dy = random_gradients(y)
    found = inspection.hidden_gradients([dy, None, None] if return_state else dy, tape)
    assert list(found) == ["0", "1"]
    assert_close(found["1"], inspection.hidden_gradients(dy, second_tape), 1e-13)
    dbetween = second.backward(dy, second_tape).x
    assert_close(found["0"], inspection.hidden_gradients(dbetween, first_tape), 1e-13)
    single = fastrnn.RNN(rnn.cell.cells[0], return_sequences=True)
    between, tape = single.forward(x, checkpoint=True)
    assert_close(inspection.hidden_gradients(dbetween, tape), found["0"], 1e-13)


def test_a_tape_without_checkpoints_is_refused():
    lstm = fastrnn.LSTM(4)
    y, tape = lstm.forward(np.ones((2, 5, 3), "float32"))
    with pytest.raises(
        TypeError, match=r"^inspection: tape must come from .*, got one without checkpoints; call"
    ):
        inspection.gradient_norms(y, tape)
    with pytest.raises(TypeError, match=r"^inspection: tape must come from .*, got NoneType; call"):
        inspection.hidden_gradients(y, None)
