"""The pictures show the data that they were given, say what they show, and open no window."""

import sys

import numpy as np
import pytest
from support import random_problem

from fastrnn import functional, plot

matplotlib = pytest.importorskip("matplotlib", reason="draws with matplotlib, which is not installed")

B, T, H = 3, 20, 6


def lstm_gates(dtype="float64"):
    problem = random_problem("lstm", B, T, 4, H, dtype)
    return functional.gates(
        functional.run_forward(functional.Weights("lstm", *problem.weights), problem.x)[1]
    )


def panels(figure):
    """The axes of a figure that hold a heat map with a title, without the color bars."""
    return [axes for axes in figure.axes if axes.get_title(loc="left")]


@pytest.mark.parametrize("row", [0, 2, -1])
def test_heat_maps_show_the_gates_of_the_row(row, dtype):
    gates = lstm_gates(dtype)
    figure = plot.gates(gates, row)
    assert len(panels(figure)) == len(gates) == 5
    for axes, values in zip(panels(figure), gates.values(), strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), values[row].T)
    assert figure.get_suptitle() == f"Gates of sequence {row % B}: {T} steps, {H} units"


def test_heat_maps_are_labeled():
    axes = panels(plot.gates(lstm_gates()))
    assert [a.get_title(loc="left")[:11] for a in axes] == [
        "input gate ", "forget gate", "candidate g", "output gate", "cell state ",
    ]  # fmt: skip
    assert {a.get_ylabel() for a in axes} == {"unit"}
    assert axes[-1].get_xlabel() == "time step (in the order of computation)"


def test_gates_are_shown_from_0_to_1_and_signed_values_around_0():
    gates = {"z": np.full((1, T, H), 0.3), "n": np.full((1, T, H), 0.3), "r": np.full((1, T, H), -2.0)}
    limits = [axes.images[0].get_clim() for axes in panels(plot.gates(gates))]
    assert limits == [(0, 1), (-1, 1), (-2, 2)]


def test_a_gate_says_how_much_of_it_is_shut_and_open():
    values = np.full((1, 4, 5), 0.5)
    values[0, 0] = 0.05
    values[0, 1:3] = 0.95
    (axes,) = panels(plot.gates({"f": values}))
    assert axes.get_title(loc="right") == "25% shut (< 0.1), 50% open (> 0.9)"


def test_masked_steps_are_left_white_and_uncounted():
    values, mask = np.full((2, 4, 5), 0.95), np.ones((2, 4), bool)
    values[1, 1:] = 0
    mask[1, 1:] = False
    (axes,) = panels(plot.gates({"f": values}, row=1, mask=mask))
    np.testing.assert_array_equal(np.ma.getmaskarray(axes.images[0].get_array()), np.tile(~mask[1], (5, 1)))
    assert axes.get_title(loc="right") == "0% shut (< 0.1), 100% open (> 0.9)"


def test_values_that_are_not_finite_are_drawn(tmp_path):
    values = np.full((1, T, H), 0.5)
    values[0, 3], values[0, 4] = np.nan, np.inf
    plot.gates({"f": values, "c": np.full((1, T, H), np.nan)}).savefig(tmp_path / "gates.png")
    plot.gradient_norms(values[0]).savefig(tmp_path / "norms.png")
    assert (tmp_path / "gates.png").stat().st_size > 1000 and (tmp_path / "norms.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("gates", "got"),
    [
        ({}, r"\{\}"),
        ({"z": np.ones((2, 3))}, r"\{'z': \(2, 3\)\}"),
        ({"z": np.ones((2, 0, 3))}, r"\{'z': \(2, 0, 3\)\}"),
        ({"z": np.ones((2, 3, 4)), "r": np.ones((1, 3, 4))}, r"\{'z': \(2, 3, 4\), 'r': \(1, 3, 4\)\}"),
    ],
)
def test_what_are_no_gates_is_refused(gates, got):
    with pytest.raises(ValueError, match=rf"^plot.gates: gates must be .* got {got}; draw"):
        plot.gates(gates)


@pytest.mark.parametrize("row", [B, -B - 1])
def test_a_row_that_there_is_not_is_refused(row):
    with pytest.raises(IndexError, match=rf"^plot.gates: row must be from 0 to 2, .* got {row}$"):
        plot.gates(lstm_gates(), row)


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"^plot.gates: mask must have shape \(3, 20\), .* got \(3, 19\)$"):
        plot.gates(lstm_gates(), mask=np.ones((B, T - 1), bool))


def test_the_line_of_norms_is_the_data_on_a_logarithmic_scale():
    norms = 2.0 ** np.arange(T)
    (axes,) = plot.gradient_norms(norms).axes
    (line,) = axes.lines
    np.testing.assert_array_equal(line.get_xydata(), np.stack([np.arange(T), norms], axis=1))
    assert axes.get_yscale() == "log"
    assert axes.get_xlabel() == "time step t (in the order of computation)"
    assert "norm of the gradient" in axes.get_ylabel()
    assert axes.get_legend() is None


def test_of_several_rows_the_median_is_drawn_in_a_band_of_all():
    norms = np.random.default_rng(0).uniform(1, 2, (7, T))
    (axes,) = plot.gradient_norms(norms).axes
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), np.median(norms, axis=0))
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert set(norms.min(axis=0)) | set(norms.max(axis=0)) == set(band)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "median of 7 sequences",
        "smallest to largest",
    ]


def test_a_dict_of_norms_gives_a_line_for_each_name():
    norms = {"LSTM": np.ones(T), "GRU": np.full((2, T), 3.0)}
    (axes,) = plot.gradient_norms(norms).axes
    assert [line.get_ydata()[0] for line in axes.lines] == [1.0, 3.0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "LSTM",
        "GRU, median of 2 sequences",
    ]


@pytest.mark.parametrize(
    ("norms", "title"),
    [
        (0.5 ** np.arange(T, 0.0, -1), "Gradients vanish: 1.9e-06 of the last step's is left at the first"),
        (2.0 ** np.arange(10, 0, -1), "Gradients grow: 5.1e+02 times the last step's at the first"),
        (np.ones(T), "Gradients last: 1 times the last step's at the first"),
        (np.zeros(T), "There is no gradient: all norms are 0"),
        (np.full(T, np.nan), "Gradients on their way back, from the last step to the first"),
        (np.eye(1, T)[0], "Gradients on their way back, from the last step to the first"),
        ({"a": np.ones(T), "b": np.ones(T)}, "Gradients on their way back, from the last step to the first"),
    ],
)
def test_the_title_says_what_becomes_of_the_gradient(norms, title, tmp_path):
    figure = plot.gradient_norms(norms)
    assert figure.axes[0].get_title() == title
    figure.savefig(tmp_path / "norms.png")  # without a warning, also where there is nothing for a logarithm


@pytest.mark.parametrize(
    ("norms", "got"),
    [
        ({}, r"\[\]"),
        (np.ones((1, 2, 3)), r"\[\(1, 2, 3\)\]"),
        ({"a": np.ones((2, 0))}, r"\[\(2, 0\)\]"),
        (1.0, r"\[\(\)\]"),
    ],
)
def test_what_are_no_norms_is_refused(norms, got):
    with pytest.raises(ValueError, match=rf"^plot.gradient_norms: norms must have shape .* got {got}; draw"):
        plot.gradient_norms(norms)


def test_no_window_is_opened_and_matplotlib_is_imported_by_the_first_picture_alone(run_python):
    printed = run_python(
        """
        import sys
        import numpy as np
        from fastrnn import plot
        print("matplotlib" in sys.modules)
        plot.gates({"z": np.ones((1, 2, 3))})
        plot.gradient_norms(np.ones(3))
        print("matplotlib" in sys.modules, "matplotlib.pyplot" in sys.modules)
        """
    )
    assert printed.split() == ["False", "True", "False"]


def test_without_matplotlib_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'^plot: matplotlib .* run: pip install "fastrnn\[plot\]"$'):
        plot.gradient_norms(np.ones(3))


def test_gates_of_both_directions_have_their_titles_and_scales():
    gates = {"forward_z": np.full((2, 3, 4), 0.5), "backward_c": np.full((2, 3, 4), 0.5)}
    first, second, *_ = plot.gates(gates).axes
    assert first.get_title(loc="left") == "forward update gate z (1: h stays as it was)"
    assert second.get_title(loc="left").startswith("backward ")
    assert (first.images[0].norm.vmin, second.images[0].norm.vmin) == (0, -1)
