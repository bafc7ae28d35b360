"""The demo: its parts compute what they say, and the whole learns, repeats itself, and reports."""

import math
import re
from itertools import islice

import numpy as np
import pytest
import threadpoolctl

import fastrnn
from fastrnn import _demo_times, demo

FOX = "The quick brown fox jumps over the lazy dog.\n" * 40
V = len(set(FOX))
CELLS = sorted(demo.CELLS)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Everything is small here: one thread, and no time for times."""
    threads = fastrnn.get_num_threads()
    fastrnn.set_num_threads(1)
    monkeypatch.setattr(_demo_times.best_time, "__defaults__", (0.0,))
    monkeypatch.setattr(_demo_times, "time_torch_elsewhere", lambda *arguments: "PyTorch is not installed.")
    with threadpoolctl.threadpool_limits(1, "blas"):
        yield
    fastrnn.set_num_threads(threads)


def run(**changes):
    """Runs the demo with tiny settings."""
    options = {"cell": "lstm", "steps": 5, "units": 8, "seed": 1, "temperature": 0.7, "sample_length": 50}
    return demo.run("fox", FOX, **{**options, "plot_path": None, **changes})


def model_and_ids(cell="lstm", units=8):
    vocabulary = demo.Vocabulary(FOX)
    return demo.Model(cell, units, len(vocabulary.characters), seed=1), vocabulary.encode(FOX)


# ---- The whole


@pytest.mark.parametrize("cell", CELLS)
def test_it_learns(cell, capsys):
    history = run(cell=cell, steps=60, units=32)
    assert len(history.training) == 60
    assert history.training[-1] < 2.5 < 4.5 < history.training[0]
    assert [step for step, _ in history.validation] == list(range(6, 61, 6))
    assert history.validation[-1][1] < min(3.5, history.validation[0][1])
    assert not history.stopped


def test_output(capsys):
    history = run()
    out, err = capsys.readouterr()
    assert err == ""
    assert f"fox: {len(FOX):,} characters" in out
    assert f"{V} different characters, LSTM(8)" in out
    parameters = V * 32 + 8 * 32 + 32 + 8 * V + V
    assert f"{parameters:,} parameters" in out
    assert f"1 thread, {fastrnn.get_isa()}" in out
    assert f"Validation: {history.validation[-1][1]:.3f} bits per character" in out
    assert re.search(r"fastrnn +│ +[\d.]+ │ +1\.00 │", out)
    assert re.search(r"NumPy reference +│ +[\d.]+ │ +[\d.]+ │", out)
    assert "PyTorch is not installed." in out
    assert max(map(len, out.splitlines())) <= 80


def test_same_seed_gives_the_same_result_for_any_number_of_threads(monkeypatch, capsys):
    monkeypatch.setattr(demo, "print_times", lambda *arguments: None)

    def result(**changes):
        history = run(units=64, **changes)
        return history.training, history.validation, capsys.readouterr().out.split("A sample")[1]

    first, again, other = result(), result(), result(seed=2)
    fastrnn.set_num_threads(2)
    with threadpoolctl.threadpool_limits(2, "blas"):
        threads = result()
    assert first == again == threads
    assert first[0] != other[0]


def test_default_text_is_english():
    name, text = demo.read_text(None)
    assert name == "the topics of Python's help()"
    assert len(text) > 300_000
    assert text.count(" the ") > 3000


def test_text_with_byte_order_mark_and_any_line_ends(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"\xef\xbb\xbf" + b"ab\r\n" * 500)
    assert demo.read_text(path) == ("text.txt", "ab\n" * 500)


@pytest.mark.parametrize("steps", [1, 2, 9, 10, 11, 25])
def test_validation_happens_ten_times_and_at_the_end(steps, capsys):
    history = run(steps=steps, sample_length=0)
    done = [step for step, _ in history.validation]
    assert done == sorted(set(done))
    assert done[-1] == steps
    assert len(done) <= 11


def test_shortest_text_is_enough(capsys):
    text = "ab" * (demo.LEAST_TEXT // 2)
    options = {"units": 4, "seed": 0, "temperature": 1.0, "sample_length": 10, "plot_path": None}
    history = demo.run("ab", text, cell="rnn", steps=30, **options)
    assert history.validation[-1][1] < 1


# ---- Text, batches


def test_vocabulary_gives_the_text_back():
    vocabulary = demo.Vocabulary(FOX)
    assert sorted(vocabulary.characters) == sorted(set(FOX))
    assert vocabulary.decode(vocabulary.encode(FOX)) == FOX


def test_rare_characters_share_one_symbol():
    vocabulary = demo.Vocabulary("aaaabbbccd", most=3)
    assert (
        vocabulary.decode(vocabulary.encode("abcdz"))
        == "ab\N{REPLACEMENT CHARACTER}" + 2 * "\N{REPLACEMENT CHARACTER}"
    )
    assert len(vocabulary.characters) == 3


def test_each_row_goes_on_where_it_ended():
    ids = np.arange(100, dtype=np.int16)
    first, second = islice(demo.batches(ids, B=4, T=7), 2)
    assert first.shape == second.shape == (4, 8)
    assert first[:, 0].tolist() == [0, 25, 50, 75]
    assert (first[:, -1] == second[:, 0]).all()
    assert ((np.diff(first) % 100) == 1).all()


def test_batches_read_round_and_round():
    ids = np.arange(100, dtype=np.int16)
    read = np.concatenate([batch[:, :-1] for batch in islice(demo.batches(ids, B=4, T=5), 20)], axis=1)
    assert [row.tolist() for row in read] == [np.roll(ids, -25 * row).tolist() for row in range(4)]


# ---- Model, loss, Adam


def test_cross_entropy_and_its_gradient():
    rng = np.random.default_rng(0)
    logits, targets = rng.standard_normal((6, 5)) * 3, np.array([0, 4, 2, 2, 1, 3])
    loss, dlogits = demo.cross_entropy(logits, targets)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert loss == pytest.approx(-np.log(p[range(6), targets]).mean(), rel=1e-12)
    for index in np.ndindex(logits.shape):
        step = np.zeros_like(logits)
        step[index] = 1e-6
        slope = (
            demo.cross_entropy(logits + step, targets)[0] - demo.cross_entropy(logits - step, targets)[0]
        ) / 2e-6
        assert dlogits[index] == pytest.approx(slope, abs=1e-9)


def test_cross_entropy_of_huge_logits_is_finite():
    logits = np.array([[1e4, -1e4, 0]], np.float32)
    loss, dlogits = demo.cross_entropy(logits, np.array([1]))
    assert loss == pytest.approx(2e4)
    assert dlogits.tolist() == [[1, -1, 0]]


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_are_the_slope_of_the_loss(cell):
    model, ids = model_and_ids(cell)
    batch = next(demo.batches(ids, B=4, T=10))
    loss, gradients, states = model.gradients(batch, None)
    same_loss, same_states = model.loss(batch, None)
    assert loss == same_loss
    assert all((a == b).all() for a, b in zip(states, same_states, strict=True))
    weights = model.weights
    assert [g.shape for g in gradients] == [w.shape for w in weights]
    for k, gradient in enumerate(gradients):
        step = np.float32(0.02 / np.linalg.norm(gradient)) * gradient
        losses = []
        for sign in (1, -1):
            model.weights = [w + sign * step if j == k else w for j, w in enumerate(weights)]
            losses.append(model.loss(batch, None)[0])
        assert (losses[0] - losses[1]) / 0.04 == pytest.approx(np.linalg.norm(gradient), rel=0.02)


def test_adam_follows_its_paper_and_clips():
    w, g = [np.array([1.0, 2.0]), np.array([[3.0]])], [np.array([3.0, -4.0]), np.array([[12.0]])]
    adam = demo.Adam(w)
    after = adam.step(w, g, rate=0.1)
    for old, new, gradient in zip(w, after, g, strict=True):  # the first step is rate * sign(g)
        assert new == pytest.approx(old - 0.1 * np.sign(gradient), rel=1e-6)
    assert [0.1 * a / 13 for a in g[0]] == pytest.approx(
        adam.means[0].tolist()
    )  # the norm of g is 13, clipped to 1
    m, v, expected, rng = 0.0, 0.0, 5.0, np.random.default_rng(0)
    adam, w = demo.Adam([np.array([5.0])]), [np.array([5.0])]
    for t, gradient in enumerate(rng.uniform(-1, 1, 20), start=1):
        w = adam.step(w, [np.array([gradient])], rate=0.01)
        m, v = 0.9 * m + 0.1 * gradient, 0.99 * v + 0.01 * gradient**2
        expected -= 0.01 * (m / (1 - 0.9**t)) / (math.sqrt(v / (1 - 0.99**t)) + 1e-8)
        assert w[0][0] == pytest.approx(expected, rel=1e-6)


def test_adam_does_not_move_without_gradient():
    w = [np.ones(3, np.float32)]
    assert (demo.Adam(w).step(w, [np.zeros(3, np.float32)], rate=0.1)[0] == w[0]).all()


@pytest.mark.parametrize("steps", [1, 2, 3, 19, 20, 21, 1000])
def test_learning_rate_rises_then_falls(steps):
    rates = [demo.learning_rate(step, steps) for step in range(steps)]
    top = math.ceil(steps / 20) - 1
    assert rates[top] == max(rates) == demo.LEARNING_RATE
    assert all(0 < rate <= demo.LEARNING_RATE for rate in rates)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


# ---- Validation, sample, plot, times


@pytest.mark.parametrize("length", [2, 63, 64, 65, 100, 1000, 1800])
def test_validation_counts_every_guess_once(length):
    model, ids = model_and_ids()
    model.weights = [
        *model.layer.weights,
        np.zeros_like(model.W),
        np.log(1 + np.arange(V, dtype=np.float32)),
    ]
    rows = min(32, math.ceil(length / demo.TIME))
    guessed = ids[: length // rows * rows].reshape(rows, -1)[:, 1:]
    p = (1 + guessed) / (V * (V + 1) / 2)
    assert demo.validate(model, ids[:length]) == pytest.approx(-np.log2(p).mean(), rel=1e-5)


def test_sample_has_its_length_and_temperature():
    model, _ = model_and_ids()
    vocabulary = demo.Vocabulary(FOX)

    def sample(temperature, seed):
        return demo.generate(model, vocabulary, 40, temperature, seed)

    assert len(sample(1.0, 0)) == 40
    assert sample(1.0, 0) == sample(1.0, 0) != sample(1.0, 1)
    assert sample(1e-300, 0) == sample(1e-300, 1)
    assert len(set(sample(1e6, 0))) > len(set(sample(1e-3, 0)))


def test_sample_follows_the_softmax():
    model, _ = model_and_ids()
    vocabulary = demo.Vocabulary(FOX)
    p = np.linspace(1, 2, V)
    model.weights = [*model.layer.weights, np.zeros_like(model.W), 0.5 * np.log(p).astype(np.float32)]
    ids = vocabulary.encode(demo.generate(model, vocabulary, 20_000, 0.5, 0))
    np.testing.assert_allclose(np.bincount(ids, minlength=V) / 20_000, p / p.sum(), atol=0.006)


@pytest.mark.parametrize("steps", [1, 7, 120])
def test_learning_curve_is_a_png(steps, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    history = demo.History([5 / (1 + i) for i in range(steps)], [(steps, 1.5)])
    path = tmp_path / "curve"
    demo.plot(path, history, "LSTM(8) on fox")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out == f"The learning curve is in {path} (--no-plot draws none).\n"


def test_learning_curve_that_cannot_be_written_is_reported(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    demo.plot(tmp_path / "no" / "curve.png", demo.History([1.0], [(1, 1.0)]), "")
    assert capsys.readouterr().out.startswith("No learning curve: [Errno 2]")
