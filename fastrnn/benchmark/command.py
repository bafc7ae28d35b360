"""What `fastrnn bench` does with its arguments."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from tqdm import tqdm  # type: ignore[import-untyped]

import fastrnn
from fastrnn.benchmark import report
from fastrnn.benchmark.compare import (
    OURS,
    Results,
    Settings,
    compare,
    describe_machine,
    units_of_work,
)
from fastrnn.benchmark.peers import PEERS
from fastrnn.benchmark.workloads import QUICK, WORKLOADS, select

QUICK_PEERS = (OURS, "torch", "onnxruntime", "openvino", "jax")


MEASURING = ("threads", "isa", "rounds", "seconds")  # arguments that say how to measure
WRITING = ("json", "markdown", "charts", "mode")  # arguments that say what becomes of it


class WrongArgument(Exception):
    """The message names the argument, and says what must hold, what came, and what to do."""


def run(arguments: argparse.Namespace) -> bool:
    """Do what `fastrnn bench` does; return whether Ctrl-C ended it.

    Raises:
        WrongArgument: One of the arguments can't be.
        ModuleNotFoundError: matplotlib is needed and isn't there.
    """
    if arguments.list:
        _refuse(arguments, "--list", [*MEASURING, *WRITING, "peers", "read"])
        for w in _workloads(arguments, "all"):
            print(w.cell, w.sizes, w.dtype, w.name, w.group, w.source)
        return False
    _check_paths(arguments)
    if arguments.charts is not None:
        from fastrnn.benchmark import plots
    stopped = False
    if arguments.read is not None:
        _refuse(arguments, "--read", [*MEASURING, "quick", "dtype", "peers"])
        results = _read(arguments)
    else:
        settings = _settings(arguments)
        results = Results(
            date=datetime.now().isoformat(" ", "minutes"),
            command=shlex.join(["fastrnn", *sys.argv[1:]]),
            machine=describe_machine(),
            settings={
                "threads": settings.threads,
                "isa": settings.isa,
                "rounds": settings.rounds,
                "seconds": settings.seconds,
            },
        )
        # The bar is drawn on a terminal only (disable=None).
        with tqdm(total=units_of_work(settings), leave=False, disable=None) as bar:

            def progress(what: str, done: int) -> None:
                bar.set_description_str(what, refresh=not done)
                bar.update(done)

            try:
                compare(settings, results, progress)
            except KeyboardInterrupt:
                stopped = True
    report.print_table(results)
    if arguments.json is not None:
        results.save(arguments.json)
    if arguments.markdown is not None:
        arguments.markdown.write_text(report.markdown(results), encoding="utf-8")
    if arguments.charts is not None:
        for path in plots.draw(results, arguments.charts):
            print(f"drawn: {path}")
    return stopped


def _refuse(arguments: argparse.Namespace, option: str, names: list[str]) -> None:
    """Raise WrongArgument if one of these arguments was given, which has no meaning beside `option`."""
    for name in names:
        if getattr(arguments, name) != arguments.parser.get_default(name):
            raise WrongArgument(
                f"argument --{name}: not allowed with {option}, which doesn't measure; leave it out"
            )


def _read(arguments: argparse.Namespace) -> Results:
    """An earlier run's results, of the workloads and modes that are asked for."""
    try:
        results = Results.read(arguments.read)
    except (OSError, ValueError) as error:
        raise WrongArgument(f"argument --read: {error}") from None
    if arguments.workloads is not None:
        chosen = {w.name for w in _workloads(arguments, "all")}
        results.rows = [row for row in results.rows if row.workload.name in chosen]
    if arguments.mode is not None:
        results.rows = [row for row in results.rows if arguments.mode in (row.mode, "all")]
    return results


def _names(value: str) -> list[str]:
    return [name.strip() for name in value.split(",") if name.strip()]


def _workloads(arguments: argparse.Namespace, default: str) -> list[fastrnn.benchmark.workloads.Workload]:
    names = _names(default if arguments.workloads is None else arguments.workloads)
    if arguments.quick and arguments.workloads is None:
        chosen = [w for w in WORKLOADS if w.name in QUICK]
    else:
        try:
            chosen = select(names)
        except ValueError as error:
            raise WrongArgument(f"argument --workloads: {error}") from None
    if not chosen:
        raise WrongArgument("argument --workloads: must name a workload, got none; see --list")
    return [w if arguments.dtype is None else replace(w, dtype=arguments.dtype) for w in chosen]


def _settings(arguments: argparse.Namespace) -> Settings:
    processors = len(os.sched_getaffinity(0))
    threads = processors if arguments.threads is None else arguments.threads
    if threads > processors:
        raise WrongArgument(
            f"argument --threads: must be from 1 to {processors}, the processors here, got {threads}"
        )
    if arguments.isa is not None and arguments.isa not in fastrnn.available_isas():
        raise WrongArgument(
            f"argument --isa: must be one of {', '.join(fastrnn.available_isas())}, got {arguments.isa}"
        )
    wanted = list(QUICK_PEERS if arguments.quick else PEERS)
    if arguments.peers is not None:
        wanted = [OURS, *_names(arguments.peers)]
        if unknown := [name for name in wanted if name not in PEERS]:
            raise WrongArgument(
                f"argument --peers: must be some of {', '.join(PEERS)}, got {', '.join(unknown)}"
            )
    return Settings(
        workloads=_workloads(arguments, "table"),
        peers=[name for name in PEERS if name in wanted],
        mode=arguments.mode or "all",
        threads=threads,
        isa=arguments.isa,
        rounds=arguments.rounds or (2 if arguments.quick else 5),
        seconds=arguments.seconds or (0.1 if arguments.quick else 0.2),
    )


def _check_paths(arguments: argparse.Namespace) -> None:
    for option in ("json", "markdown"):
        path: Path | None = getattr(arguments, option)
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            raise WrongArgument(f"argument --{option}: must be a file in an existing folder, got {path}")
    if arguments.charts is not None and not arguments.charts.is_dir():
        raise WrongArgument(f"argument --charts: must be an existing folder, got {arguments.charts}")
