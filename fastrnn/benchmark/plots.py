"""The charts: the ratio to each peer per workload, and the share of the limit against the number of units."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, PercentFormatter

from fastrnn.benchmark.compare import Results, Row
from fastrnn.benchmark.peers import PEERS

# Okabe and Ito's palette, told apart with any color vision, and a marker each for print in gray.
STYLES = {
    "torch": ("#D55E00", "o"),
    "onnxruntime": ("#0072B2", "s"),
    "openvino": ("#CC79A7", "D"),
    "jax": ("#009E73", "^"),
    "keras-jax": ("#56B4E9", "v"),
    "keras-tensorflow": ("#E69F00", "P"),
}
CELLS = {
    "simple_rnn": ("SimpleRNN", "#009E73", "^"),
    "lstm": ("LSTM", "#0072B2", "o"),
    "gru": ("GRU", "#D55E00", "s"),
}
MODES = {"infer": "inference", "train": "training"}


def draw(results: Results, folder: Path) -> list[Path]:
    """Draw ratios.png and limits.png, each if there is something to show, and return the paths."""
    paths = []
    for name, make in (("ratios.png", ratios), ("limits.png", limits)):
        figure = make(results)
        if figure is not None:
            paths.append(folder / name)
            figure.savefig(paths[-1], dpi=120)
    return paths


def _panels(results: Results, what: str) -> list[tuple[str, list[Row]]]:
    """The rows of each mode for which there is something to draw."""
    rows = {mode: [row for row in results.rows if row.mode == mode] for mode in MODES}
    if what == "ratios":
        rows = {
            mode: [row for row in some if row.ratio(row.best_peer) is not None] for mode, some in rows.items()
        }
    else:
        rows = {mode: [row for row in some if row.share] for mode, some in rows.items()}
    return [(mode, some) for mode, some in rows.items() if some]


def _title(results: Results) -> str:
    threads = results.settings["threads"]
    isa = next(iter(results.limits.values())).isa if results.limits else ""
    return f"{results.machine['processor']}, {threads} thread{'' if threads == 1 else 's'}, {isa}, {results.date[:10]}"


def ratios(results: Results) -> Figure | None:
    """Draw how many times as long as fastrnn each peer takes, a line of markers per workload; None: no ratios."""
    panels = _panels(results, "ratios")
    if not panels:
        return None
    most = max(len(rows) for _, rows in panels)
    figure = Figure(figsize=(6.2 * len(panels) + 0.8, 1.9 + 0.3 * most), layout="constrained")
    columns: Any = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (mode, rows) in zip(columns, panels, strict=True):
        for y, row in enumerate(rows):
            times = [ratio for peer in STYLES if (ratio := row.ratio(peer)) is not None]
            axes.plot([min(times), max(times)], [y, y], color="0.8", linewidth=1, zorder=1)
            for number, (peer, (color, marker)) in enumerate(STYLES.items()):
                if (ratio := row.ratio(peer)) is not None:
                    beside = 0.09 * (number - (len(STYLES) - 1) / 2)  # equal ratios don't hide each other
                    axes.plot(
                        ratio,
                        y + beside,
                        marker,
                        color=color,
                        markersize=6,
                        markeredgecolor="white",
                        zorder=3,
                    )
        axes.set_xscale("log")
        axes.axvline(1, color="black", linewidth=1.2, zorder=2)
        low, high = axes.get_xlim()
        axes.set_xlim(min(low, 0.8), max(high, 2))
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_yticks(range(len(rows)), [f"{row.workload.name}  {row.workload.sizes}" for row in rows])
        axes.tick_params(axis="y", labelsize=8, length=0)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(axis="x", alpha=0.25)
        mean = results.mean_ratio(mode)
        text = f" (best peer: {mean[0]:.2f} in the geometric mean)" if mean else ""
        axes.set_title(f"{MODES[mode]}{text}", fontsize=10)
        axes.set_xlabel("time of the peer / time of fastrnn; right of 1 fastrnn is faster")
    handles = [
        Line2D([], [], color=color, marker=marker, linestyle="", label=PEERS[peer].label)
        for peer, (color, marker) in STYLES.items()
        if peer in results.peers
    ]
    figure.suptitle(f"fastrnn and its peers: B T I H; {_title(results)}", fontsize=11)
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


def limits(results: Results) -> Figure | None:
    """Draw the share of the machine's limit that fastrnn reaches, by the number of units; None: nothing to show."""
    panels = _panels(results, "limits")
    if not panels:
        return None
    figure = Figure(figsize=(5.6 * len(panels) + 0.6, 4.6), layout="constrained")
    columns: Any = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, (mode, rows) in zip(columns, panels, strict=True):
        for cell, (_, color, marker) in CELLS.items():
            for filled, some in (
                (True, [row for row in rows if row.workload.cell == cell and row.workload.B > 1]),
                (False, [row for row in rows if row.workload.cell == cell and row.workload.B == 1]),
            ):
                axes.plot(
                    [row.workload.H for row in some],
                    [row.share for row in some],
                    marker,
                    color=color,
                    markerfacecolor=color if filled else "white",
                    markersize=6,
                    alpha=0.85,
                )
        sweep = sorted((row.workload.H, row.share) for row in rows if row.workload.group == "units")
        if sweep:
            axes.plot(*zip(*sweep, strict=True), color=CELLS["lstm"][1], linewidth=1, alpha=0.6)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.set_ylim(0, max(1.0, *(row.share or 0 for row in rows)) * 1.03)
        axes.axhline(1, color="black", linewidth=1.2)
        axes.grid(alpha=0.25)
        axes.set_title(MODES[mode], fontsize=10)
        axes.set_xlabel("units H")
    columns[0].set_ylabel("share of the machine's limit")
    handles = [
        Line2D([], [], color=color, marker=marker, linestyle="", label=label)
        for label, color, marker in CELLS.values()
    ]
    handles.append(
        Line2D([], [], color="0.3", marker="o", markerfacecolor="white", linestyle="", label="B = 1")
    )
    figure.suptitle(f"Share of the limit: {_title(results)}", fontsize=11)
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure
