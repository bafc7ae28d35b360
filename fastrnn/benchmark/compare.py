"""The comparison: every peer in a process of its own, rounds interleaved, the shortest time of each."""

from __future__ import annotations

import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastrnn import runtime
from fastrnn.benchmark.limits import Limits, least_time
from fastrnn.benchmark.peers import PEERS
from fastrnn.benchmark.worker import Worker, WorkerError
from fastrnn.benchmark.workloads import Array, Workload, right_answer

TIMEOUT = 300.0  # seconds for a peer to load, or to prepare a workload
OURS = "fastrnn"
MEMORY = 0.6  # of what is available: a workload that may need more is left out

Progress = Callable[[str, int], None]  # what is done now, and how many units of work were finished


@dataclass(frozen=True)
class Settings:
    """What to compare and how."""

    workloads: list[Workload]
    peers: list[str]
    mode: str = "all"
    threads: int = 1
    isa: str | None = None
    rounds: int = 3
    seconds: float = 0.2  # per peer and round


@dataclass
class Row:
    """One workload in one mode."""

    workload: Workload
    mode: str
    limit: float | None
    """seconds that the machine needs at least; None: its limits couldn't be measured"""
    times: dict[str, float] = field(default_factory=dict)
    """of each peer, in seconds"""
    errors: dict[str, float] = field(default_factory=dict)
    """of each peer's answer, against the reference"""
    notes: dict[str, str] = field(default_factory=dict)
    """why a peer has no time"""

    @property
    def best_peer(self) -> str | None:
        """The fastest peer but fastrnn."""
        others = {name: seconds for name, seconds in self.times.items() if name != OURS}
        return min(others, key=others.__getitem__) if others else None

    def ratio(self, peer: str | None) -> float | None:
        """How many times as long as fastrnn a peer takes."""
        if peer is None or peer not in self.times or OURS not in self.times:
            return None
        return self.times[peer] / self.times[OURS]

    @property
    def flop_rate(self) -> float | None:
        """Operations per second of fastrnn."""
        return self.workload.flops(self.mode) / self.times[OURS] if OURS in self.times else None

    @property
    def share(self) -> float | None:
        """The part of the limit that fastrnn reaches."""
        return self.limit / self.times[OURS] if OURS in self.times and self.limit else None


@dataclass
class Results:
    """A comparison, with all that one must know about it."""

    date: str
    command: str
    machine: dict[str, Any]
    settings: dict[str, Any]
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    """why a peer isn't in it, or "limits" aren't"""
    limits: dict[str, Limits] = field(default_factory=dict)
    """by dtype"""
    rows: list[Row] = field(default_factory=list)
    complete: bool = False

    @property
    def peers(self) -> list[str]:
        """The peers that took part, fastrnn first."""
        return [name for name in PEERS if name in self.versions]

    def mean_ratio(self, mode: str, peer: str | None = None) -> tuple[float, int] | None:
        """Return the geometric mean of the ratios to one peer, or to the best one of each row, and of how many."""
        ratios = [row.ratio(peer or row.best_peer) for row in self.rows if row.mode == mode]
        logs = [math.log(ratio) for ratio in ratios if ratio is not None]
        return (math.exp(sum(logs) / len(logs)), len(logs)) if logs else None

    def save(self, path: Path) -> None:
        """Write everything as JSON."""
        data = asdict(self) | {"limits": {dtype: limit.as_dict() for dtype, limit in self.limits.items()}}
        for row, entry in zip(self.rows, data["rows"], strict=True):
            entry["flops"] = row.workload.flops(row.mode)
            entry["share"], entry["best_peer"], entry["ratio"] = (
                row.share,
                row.best_peer,
                row.ratio(row.best_peer),
            )
        path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Results:
        """Return what `save` wrote.

        Raises:
            OSError: The file can't be read.
            ValueError: It isn't such a file.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            rows = [
                Row(
                    Workload(**{**row["workload"], "modes": tuple(row["workload"]["modes"])}),
                    *(row[name] for name in ("mode", "limit", "times", "errors", "notes")),
                )
                for row in data["rows"]
            ]
            limits = {dtype: Limits.from_dict(limit) for dtype, limit in data["limits"].items()}
            return cls(**{**data, "rows": rows, "limits": limits})
        except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"must be what `fastrnn bench --json` wrote, got {path} ({error})") from None


def describe_machine() -> dict[str, Any]:
    """Return the machine's and Python's properties that times depend on."""
    config = runtime.config()
    names = ("processor", "compiler", "instruction set in use", "python", "numpy")
    return {name: config[name] for name in names} | {
        "processors": len(os.sched_getaffinity(0)),
        "system": platform.platform(terse=True),
    }


def available_memory() -> float:
    """Return the bytes that can be had without swapping; infinity if the system doesn't say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError, IndexError):
        return math.inf


def memory_needed(workload: Workload, mode: str, peers: int) -> float:
    """Return bytes that so many peers are likely to need together.

    Each holds x, dy, dx and y, some 20 values per unit and time step to train, and the weights, packed and
    as gradients.
    """
    units = workload.H * workload.directions * workload.layers
    values = 2 * workload.I + (20 if mode == "train" else 3) * units
    weights = sum(4 * workload.H * (i + workload.H) for i in workload.layer_inputs) * workload.directions
    size = int(workload.dtype[-2:]) // 8
    return peers * size * (workload.B * workload.T * float(values) + 6.0 * weights)


@contextmanager
def _workers() -> Iterator[dict[str, Worker]]:
    workers: dict[str, Worker] = {}
    try:
        yield workers
    finally:
        for worker in workers.values():
            worker.kill()


def units_of_work(settings: Settings) -> int:
    """Return how many units `compare` reports to its progress."""
    rows = sum(len(workload.modes_at(settings.mode)) for workload in settings.workloads)
    return len(settings.peers) * (1 + rows * (1 + settings.rounds))


def compare(settings: Settings, results: Results, progress: Progress = lambda what, done: None) -> None:
    """Fill `results`, row by row, so that what is done stays when Ctrl-C ends it.

    Only one process computes at any time: the workers take turns and are stopped in between. A peer that fails,
    dies or doesn't answer gets a note in that row, and a new process for the next one.
    """
    with _workers() as workers, tempfile.TemporaryDirectory() as folder:
        for peer in settings.peers:
            progress(f"load {peer}", 0)
            why = PEERS[peer].missing() or _load(workers, peer, settings, results)
            if why:
                results.missing[peer] = why
            progress(f"load {peer}", 1)
        for dtype in dict.fromkeys(workload.dtype for workload in settings.workloads):
            if OURS in workers:
                progress(f"limits, {dtype}", 0)
                _measure_limits(workers, dtype, results)
        for workload in settings.workloads:
            for mode in workload.modes_at(settings.mode):
                _compare_row(workload, mode, settings, results, workers, Path(folder), progress)
    results.complete = True


def _load(workers: dict[str, Worker], peer: str, settings: Settings, results: Results) -> str | None:
    """Start a worker; return why there is none."""
    worker = Worker(peer, settings.threads, settings.isa)
    workers[peer] = worker
    try:
        reply = worker.ask("load", TIMEOUT)
    except WorkerError as error:
        reply = {"failed": str(error)}
    if "versions" in reply:
        results.versions[peer] = reply["versions"]
        return None
    workers.pop(peer).kill()
    return str(reply.get("unsupported") or reply["failed"])


def _measure_limits(workers: dict[str, Worker], dtype: str, results: Results) -> None:
    try:
        reply = workers[OURS].ask("limits", TIMEOUT, dtype=dtype)
    except WorkerError as error:
        workers.pop(OURS)
        reply = {"failed": str(error)}
    if "failed" in reply:
        results.missing["limits"] = reply["failed"]
    else:
        results.limits[dtype] = Limits.from_dict(reply)


def _compare_row(
    workload: Workload,
    mode: str,
    settings: Settings,
    results: Results,
    workers: dict[str, Worker],
    folder: Path,
    progress: Progress,
) -> None:
    limits = results.limits.get(workload.dtype)
    row = Row(workload, mode, least_time(limits, workload, mode) if limits else None)
    results.rows.append(row)
    what = f"{workload.name}, {mode}"
    needed, available = memory_needed(workload, mode, len(settings.peers)), available_memory()
    if needed > MEMORY * available:
        row.notes = dict.fromkeys(
            settings.peers,
            f"may need {needed / 1e9:.0f} GB of memory, {available / 1e9:.0f} GB are available",
        )
        progress(what, len(settings.peers) * (1 + settings.rounds))
        return
    progress(what, 0)
    right = folder / "right.npz"
    _save(right, right_answer(workload, mode))
    time.sleep(0.05)  # NumPy's threads go to sleep

    def ask(peer: str, do: str, timeout: float, **arguments: Any) -> dict[str, Any] | None:
        """The reply; None and a note if there is no result."""
        try:
            reply = workers[peer].ask(do, timeout, **arguments)
        except WorkerError as error:
            workers.pop(peer).kill()
            reply = {"failed": str(error)}
        note = reply.get("unsupported") or reply.get("failed")
        if note:
            row.notes[peer] = note
            row.times.pop(peer, None)
        return None if note else reply

    prepared = []
    for peer in settings.peers:
        if peer in results.missing:
            row.notes[peer] = results.missing[peer]
        elif peer not in workers and (why := _load(workers, peer, settings, results)):
            row.notes[peer] = why
        elif reply := ask(peer, "prepare", TIMEOUT, workload=asdict(workload), mode=mode, right=str(right)):
            row.errors[peer] = reply["error"]
            prepared.append(peer)
        progress(what, 1 if peer in prepared else 1 + settings.rounds)
    for _ in range(settings.rounds):
        for peer in prepared:
            if peer not in row.notes and (
                reply := ask(peer, "time", TIMEOUT + settings.seconds, seconds=settings.seconds)
            ):
                row.times[peer] = min(row.times.get(peer, math.inf), reply["seconds"])
            progress(what, 1)
    for peer in prepared:
        if peer in workers:
            ask(peer, "drop", TIMEOUT)


def _save(path: Path, arrays: Sequence[Array]) -> None:
    with path.open("wb") as file:
        np.savez(file, *arrays)
