"""What a comparison says: a table for the terminal, and one in Markdown with the times of every peer."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from fastrnn.benchmark.compare import OURS, Results, Row
from fastrnn.benchmark.limits import Limits
from fastrnn.benchmark.peers import PEERS

WIDTH = 110  # columns, where no terminal says how many there are


def milliseconds(seconds: float) -> str:
    """Return a time in ms with three significant digits.

    >>> milliseconds(1.23456), milliseconds(0.0123456), milliseconds(2.3456e-6)
    ('1,235', '12.3', '0.00235')
    """
    ms = seconds * 1e3
    if ms >= 100:
        return f"{ms:,.0f}"
    digits = next((n for n in range(1, 6) if ms >= 10 ** (2 - n)), 6)
    return f"{ms:.{digits}f}"


def _cells(row: Row) -> list[str]:
    """ms, GFLOP/s, share of the limit, best peer, its ms, ratio."""
    best, ratio = row.best_peer, row.ratio(row.best_peer)
    return [
        milliseconds(row.times[OURS]) if OURS in row.times else "-",
        f"{row.flop_rate / 1e9:.1f}" if row.flop_rate is not None else "-",
        f"{row.share:.0%}" if row.share is not None else "-",
        PEERS[best].label if best else "-",
        milliseconds(row.times[best]) if best else "-",
        f"{ratio:.2f}" if ratio is not None else "-",
    ]


def limits_lines(limits: Limits) -> list[str]:
    """Return the machine's limits in two lines."""
    levels = ", ".join(f"{level.name} {level.bandwidth / 1e9:.0f}" for level in limits.levels)
    threads = f"{limits.threads} thread{'' if limits.threads == 1 else 's'}"
    return [
        f"{limits.dtype}, {limits.isa}, {threads}: {limits.flops / 1e9:.0f} GFLOP/s; GB/s read: {levels}",
        f"barrier {limits.barrier * 1e9:.0f} ns; tanh {limits.activation * 1e9:.2f} ns per value",
    ]


def mean_lines(results: Results) -> list[str]:
    """Return the geometric means of the ratios, a line for each mode that has some."""
    lines = []
    for mode in ("infer", "train"):
        best = results.mean_ratio(mode)
        if best is None:
            continue
        each = [
            f"{PEERS[peer].label} {mean[0]:.2f}"
            for peer in results.peers
            if peer != OURS and (mean := results.mean_ratio(mode, peer))
        ]
        lines.append(
            f"{mode}: {best[0]:.2f} times as fast as the best peer (geometric mean of {best[1]}); "
            + ", ".join(each)
        )
    return lines


def note_lines(results: Results) -> list[str]:
    """Return which rows are beyond the limit, and why peers, or rows of theirs, have no times, a line for each reason."""
    beyond = [f"{row.workload.name} {row.mode}" for row in results.rows if (row.share or 0) > 1]
    lines = [
        f"More than 100 % of the limit ({_some(beyond)}): a part of weights that are too many for a cache stays in it "
        "from step to step; else other programs used the processors while the limits were measured, or their clock "
        "was lower: run again on an idle machine."
    ] * bool(beyond)
    lines += [
        f"{PEERS[what].label if what in PEERS else what}: {why}" for what, why in results.missing.items()
    ]
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in results.rows:
        for peer, why in row.notes.items():
            if peer not in results.missing:
                reasons.setdefault((peer, why), []).append(f"{row.workload.name} {row.mode}")
    for (peer, why), rows in reasons.items():
        lines.append(f"{PEERS[peer].label}: {why} ({_some(rows)})")
    return lines


def _some(rows: list[str]) -> str:
    return ", ".join(rows[:3]) + (f" and {len(rows) - 3} more" if len(rows) > 3 else "")


def print_table(results: Results, console: Console | None = None) -> None:
    """Print limits, the table, the means and the notes."""
    console = console or Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    for limits in results.limits.values():
        for line in limits_lines(limits):
            console.print(line, style="dim")
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("workload", no_wrap=True)
    table.add_column("B T I H", no_wrap=True)
    table.add_column("mode", no_wrap=True)
    for name in ("ms", "GFLOP/s", "of limit"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("best peer", no_wrap=True)
    table.add_column("its ms", justify="right", no_wrap=True)
    table.add_column("ratio", justify="right", no_wrap=True)
    for row in results.rows:
        cells, ratio = _cells(row), row.ratio(row.best_peer)
        if ratio is not None:
            cells[-1] = f"[{'green' if ratio >= 1 else 'red'}]{cells[-1]}[/]"
        table.add_row(row.workload.name, row.workload.sizes, row.mode, *cells)
    console.print(table)
    if not results.complete:
        console.print("Not complete: it was stopped.", style="yellow")
    for line in mean_lines(results):
        console.print(line)
    for line in note_lines(results):
        console.print(line, style="dim", markup=False)


def markdown(results: Results) -> str:
    """Return the table with the times of every peer, and under it how it was made."""
    peers = [peer for peer in results.peers if peer != OURS]
    head = ["workload", "B T I H", "mode", "fastrnn", "GFLOP/s", "of limit", "ratio"]
    lines = [
        "| " + " | ".join([*head, *(PEERS[peer].label for peer in peers)]) + " |",
        "|" + " --- | --- | --- |" + " ---: |" * (len(head) - 3 + len(peers)),
    ]
    for row in results.rows:
        ms, rate, share, _, _, ratio = _cells(row)
        times = [
            (f"**{milliseconds(row.times[p])}**" if p == row.best_peer else milliseconds(row.times[p]))
            if p in row.times
            else "-"
            for p in peers
        ]
        cells = [row.workload.name, row.workload.sizes, row.mode, ms, rate, share, ratio, *times]
        lines.append("| " + " | ".join(cells) + " |")
    limits = [line for limit in results.limits.values() for line in limits_lines(limit)]
    versions = dict(item for peer in results.versions.values() for item in peer.items())
    facts = [
        "Times in milliseconds, the best peer's in bold; ratio: its time by that of fastrnn.",
        *mean_lines(results),
        *(f"Limits: {line}" for line in limits),
        f"{results.date}, {results.machine['processor']}, {results.settings['threads']} threads of "
        f"{results.machine['processors']} processors, {results.machine['compiler']}, "
        f"Python {results.machine['python']}",
        "Versions: " + ", ".join(f"{name} {number}" for name, number in versions.items()),
        f"Command: `{results.command}`",
        *note_lines(results),
    ]
    return "\n".join([*lines, "", *(f"- {fact}" for fact in facts)]) + "\n"
