"""The closing table of the demo."""

import pytest

import fastrnn
from fastrnn import _demo_times

SHAPE = (2, 3, 4)
LAYERS = [fastrnn.SimpleRNN, fastrnn.LSTM, fastrnn.GRU]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    threads = fastrnn.get_num_threads()
    fastrnn.set_num_threads(1)
    monkeypatch.setattr(_demo_times.best_time, "__defaults__", (0.0,))
    yield
    fastrnn.set_num_threads(threads)


@pytest.mark.parametrize("layer_class", LAYERS)
def test_every_layer_is_timed(layer_class):
    assert 0 < _demo_times.time_fastrnn(layer_class, 5, SHAPE) < 1e4
    assert 0 < _demo_times.time_reference(layer_class, 5, SHAPE) < 1e4


@pytest.mark.parametrize("layer_class", LAYERS)
def test_torch_is_timed(layer_class):
    pytest.importorskip("torch")
    assert 0 < _demo_times.time_torch(layer_class.__name__, 5, SHAPE, 1) < 1e4


def test_torch_is_timed_in_another_process(monkeypatch, capsys):
    pytest.importorskip("torch")
    _demo_times.print_times(fastrnn.GRU, 5, SHAPE)
    out = capsys.readouterr().out
    assert "GRU(5) alone, forward and backward, x [2, 3, 4], 1 thread:" in out
    assert "PyTorch  " in out


def test_missing_torch_is_said(monkeypatch, capsys):
    monkeypatch.setattr(_demo_times.importlib.util, "find_spec", lambda name: None)
    _demo_times.print_times(fastrnn.LSTM, 5, SHAPE)
    assert capsys.readouterr().out.endswith("PyTorch is not installed, not compared.\n")


def test_broken_torch_is_said(monkeypatch, tmp_path, capsys):
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch is broken')")
    monkeypatch.syspath_prepend(tmp_path)
    _demo_times.print_times(fastrnn.LSTM, 5, SHAPE)
    assert capsys.readouterr().out.endswith("PyTorch failed, not compared: ImportError: libtorch is broken\n")


def test_best_time_is_the_shortest_of_at_least_three():
    pauses = iter([0.0, 0.02, 0.01, 0.03])
    ran = []

    def step():
        ran.append(1)
        _demo_times.time.sleep(next(pauses))

    assert 10 <= _demo_times.best_time(step, 0.0) < 20
    assert len(ran) == 4
