"""Pictures of what happens inside a recurrent layer; needs matplotlib: pip install "fastrnn[plot]".

    fastrnn.plot.gates(gates, row=0).savefig("gates.png")
    fastrnn.plot.gradient_norms(norms).savefig("norms.png")

Each function makes a `matplotlib.figure.Figure` and returns it; no window is opened, pyplot is not touched.

Legend: B batch, T time steps, H units.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from fastrnn.functional import Array

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.ticker import Locator

__all__ = ["gates", "gradient_norms"]

_TITLES = {
    "i": "input gate i",
    "f": "forget gate f (1: c stays as it was)",
    "g": "candidate g",
    "o": "output gate o",
    "c": "cell state c",
    "z": "update gate z (1: h stays as it was)",
    "r": "reset gate r",
    "n": "candidate n",
    "h": "hidden state h",
}
_SIGNED = {"g", "n", "c", "h"}


def gates(gates: Mapping[str, Array], row: int = 0, mask: Array | None = None) -> Figure:
    """Draw what the gates of one sequence were: a heat map of units over time for each gate.

    Over a gate's heat map stands how much of it is shut (below 0.1) and open (above 0.9): a gate that is always either
    lets no gradient through. (Karpathy et al., "Visualizing and Understanding Recurrent Networks", 2015, arXiv 1506.02078.)

    Args:
        gates: Names and arrays [B, T, H], as `functional.gates` and the `gates()` of a tape of `reference` return them.
            What lies between 0 and 1 is shown so; candidates and states, and what lies elsewhere, around 0.
        row: Which sequence of the batch.
        mask: [B, T] bool, in the order of computation: steps where it is False are left white.

    Returns:
        A figure with one image per gate, from top to bottom in the order of `gates`.

    Raises:
        ImportError: matplotlib isn't installed.
        IndexError: There is no such row.
        ValueError: There are no gates, or an array isn't [B, T, H], or their shapes differ, or T or H is 0, or the mask's
            shape is another.

    >>> figure = gates({"z": np.full((2, 30, 8), 0.5), "r": np.ones((2, 30, 8))}, row=1)
    >>> [axes.get_title(loc="left") for axes in figure.axes[:2]]
    ['update gate z (1: h stays as it was)', 'reset gate r']
    """
    arrays = {name: np.asarray(values) for name, values in gates.items()}
    shapes = {array.shape for array in arrays.values()}
    shape = next(iter(shapes), ())
    if len(shapes) != 1 or len(shape) != 3 or not shape[1] * shape[2]:
        raise ValueError(
            "plot.gates: gates must be a dict of arrays of one shape [batch, time, units], with steps and units, got "
            f"{ {name: array.shape for name, array in arrays.items()} }; draw what functional.gates(tape) returns"
        )
    B, T, H = shape
    if not -B <= row < B:
        raise IndexError(f"plot.gates: row must be from 0 to {B - 1}, a sequence of the batch, got {row}")
    real = np.ones((B, T), bool) if mask is None else np.asarray(mask, bool)
    if real.shape != (B, T):
        raise ValueError(f"plot.gates: mask must have shape {(B, T)}, that of the gates, got {real.shape}")
    figure = _figure(figsize=(9, 0.9 + 1.7 * len(arrays)))
    panels = figure.subplots(len(arrays), sharex=True, squeeze=False)[:, 0]
    for axes, (name, array) in zip(panels, arrays.items(), strict=True):
        values = array[row][real[row]]
        finite = values[np.isfinite(values)]
        low, high = finite.min(initial=0), finite.max(initial=0)
        where, _, letter = name.rpartition("_")  # "forward_i"
        signed = letter in _SIGNED or low < 0 or high > 1
        limit = max(1.0, -low, high) if signed else 1.0
        image = axes.imshow(
            np.ma.array(array[row].T, mask=np.broadcast_to(~real[row], (H, T))),
            aspect="auto",
            interpolation="nearest",
            origin="lower",
            cmap="RdBu_r" if signed else "viridis",
            vmin=-limit if signed else 0.0,
            vmax=limit,
        )
        figure.colorbar(
            image, ax=axes, pad=0.01, aspect=10, ticks=[-limit, 0, limit] if signed else [0, 0.5, 1]
        )
        axes.set_title(f"{where} {_TITLES.get(letter, letter)}".strip(), loc="left", fontsize="medium")
        if not signed and values.size:
            shut, opened = np.mean(values < 0.1), np.mean(values > 0.9)
            axes.set_title(
                f"{shut:.0%} shut (< 0.1), {opened:.0%} open (> 0.9)", loc="right", fontsize="medium"
            )
        axes.set_ylabel("unit")
        axes.yaxis.set_major_locator(_whole_numbers(4))
    figure.align_ylabels(panels)
    panels[-1].set_xlabel("time step (in the order of computation)")
    panels[-1].xaxis.set_major_locator(_whole_numbers())
    figure.suptitle(f"Gates of sequence {row % B}: {T} steps, {H} units", fontweight="bold")
    return figure


def gradient_norms(norms: Array | Mapping[str, Array]) -> Figure:
    """Draw how the gradient of the hidden state changes over time, on a logarithmic scale.

    A line that falls towards the first step shows a gradient that vanishes on its way back, one that rises a gradient
    that explodes.

    Args:
        norms: [T], or [B, T] as `inspection.gradient_norms` returns it: then a line for the median of the rows, in a band
            from the smallest to the largest; or a dict of names and such arrays, for a comparison. Zeros, which have no
            logarithm, are left out.

    Returns:
        A figure with one line per array.

    Raises:
        ImportError: matplotlib isn't installed.
        ValueError: There is no array, or one isn't [T] or [B, T] with at least one row and one step.

    >>> gradient_norms(0.9 ** np.arange(50, 0, -1)).axes[0].get_title()
    "Gradients vanish: 0.0057 of the last step's is left at the first"
    """
    named = norms if isinstance(norms, Mapping) else {"": norms}
    arrays = {name: np.atleast_2d(np.asarray(values)) for name, values in named.items()}
    if not arrays or any(np.ndim(a) not in (1, 2) or not np.size(a) for a in named.values()):
        raise ValueError(
            "plot.gradient_norms: norms must have shape [time] or [batch, time], with rows and steps, got "
            f"{[np.shape(values) for values in named.values()]}; draw what inspection.gradient_norms returns"
        )
    figure = _figure(figsize=(8, 4.5))
    axes = figure.subplots()
    if any((array > 0).any() for array in arrays.values()):
        axes.set_yscale("log", nonpositive="mask")
    for name, array in arrays.items():
        steps = np.arange(array.shape[1])
        median = np.median(array, axis=0)
        rows = f"median of {len(array)} sequences" if len(array) > 1 else ""
        (line,) = axes.plot(steps, median, label=", ".join(filter(None, (name, rows))), linewidth=1.8)
        if len(array) > 1:
            axes.fill_between(
                steps,
                array.min(axis=0),
                array.max(axis=0),
                color=line.get_color(),
                alpha=0.2,
                linewidth=0,
                label="smallest to largest" if len(arrays) == 1 else None,
            )
    axes.set_title(_verdict(arrays), fontweight="bold")
    axes.set_xlabel("time step t (in the order of computation)")
    axes.set_ylabel(r"norm of the gradient of $h_t$:  $\|\partial L\,/\,\partial h_t\|_2$")
    axes.xaxis.set_major_locator(_whole_numbers())
    axes.margins(x=0.01)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    return figure


def _verdict(arrays: Mapping[str, Array]) -> str:
    """A title that says what a single array shows."""
    if len(arrays) > 1:
        return "Gradients on their way back, from the last step to the first"
    (array,) = arrays.values()
    if not array.any():
        return "There is no gradient: all norms are 0"
    first, last = np.median(array[:, 0]), np.median(array[:, -1])
    if not (last > 0 and np.isfinite(first) and np.isfinite(last)):
        return "Gradients on their way back, from the last step to the first"
    ratio = first / last
    if ratio < 0.5:
        return f"Gradients vanish: {ratio:.2g} of the last step's is left at the first"
    if ratio > 2:
        return f"Gradients grow: {ratio:.2g} times the last step's at the first"
    return f"Gradients last: {ratio:.2g} times the last step's at the first"


def _figure(figsize: tuple[float, float]) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ImportError(
            'plot: matplotlib is needed and is not installed; run: pip install "fastrnn[plot]"',
            name=error.name,
        ) from error
    return Figure(figsize=figsize, layout="constrained")


def _whole_numbers(most: int = 9) -> Locator:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(most, integer=True)
