"""The machine's limits, measured, and the least time that a workload can take within them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastrnn import _core
from fastrnn.benchmark.workloads import GATES, Workload

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
MOST_READ = 16 << 20  # bytes of a cache per thread: a larger one is shared, and no weights fill it
ASSUMED = [("L1", 32 << 10, 1), ("L2", 1 << 20, 1), ("L3", 32 << 20, 8)]  # where the system names none


@dataclass(frozen=True)
class Level:
    """A cache level, or the memory behind the caches."""

    name: str
    capacity: float
    """bytes that fit in it, in the share of all threads together; of the memory infinite"""
    bandwidth: float
    """bytes per second that all threads together read from it"""


@dataclass(frozen=True)
class Limits:
    """What the machine can do, for one instruction set, dtype and number of threads."""

    isa: str
    dtype: str
    threads: int
    flops: float
    """operations per second in fused multiply-adds on registers, of all threads together"""
    levels: list[Level]
    """fastest first"""
    barrier: float
    """seconds that a barrier of fastrnn's threads takes"""
    activation: float
    """seconds per value that fastrnn's tanh takes in the first-level cache, all threads working"""

    def as_dict(self) -> dict[str, Any]:
        """Return the limits for JSON; the memory's capacity is null."""
        data = asdict(self)
        for level in data["levels"]:
            level["capacity"] = None if level["capacity"] == float("inf") else level["capacity"]
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Limits:
        """Return the limits that `as_dict` wrote."""
        levels = [
            Level(
                level["name"],
                float("inf") if level["capacity"] is None else level["capacity"],
                level["bandwidth"],
            )
            for level in data["levels"]
        ]
        return cls(**{**data, "levels": levels})


def cache_sizes(folder: Path = CACHES) -> list[tuple[str, int, int]]:
    """Return name, bytes, and how many processors share it, for each data cache of processor 0.

    If the system doesn't say, `ASSUMED`.
    """
    caches = []
    for index in sorted(folder.glob("index*")):
        try:
            kind, level, size, shared = (
                (index / name).read_text().strip() for name in ("type", "level", "size", "shared_cpu_list")
            )
            unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[size[-1]]
            processors = sum(
                int(last or first) - int(first) + 1
                for first, _, last in (part.partition("-") for part in shared.split(","))
            )
            if kind != "Instruction":
                caches.append((f"L{level}", int(size[:-1]) * unit, processors))
        except (OSError, ValueError, KeyError, IndexError):
            continue
    return sorted(caches) or ASSUMED


def measure(dtype: str, threads: int) -> Limits:
    """Measure the limits for the instruction set in use, in about a second."""
    levels = []
    last = 0.0
    for name, size, processors in cache_sizes():
        capacity = float(size * -(-threads // processors))
        read = int(min(capacity / threads / 2, MOST_READ))  # half of it, so that nothing else displaces it
        levels.append(Level(name, capacity, _core.measure_limit("bandwidth", dtype, threads, read)))
        last = capacity
    beyond = int(min(max(4 * last, 1 << 27), 1 << 30) / threads)
    memory = _core.measure_limit("bandwidth", dtype, threads, beyond)
    return Limits(
        isa=_core.isa(),
        dtype=dtype,
        threads=threads,
        flops=_core.measure_limit("flops", dtype, threads),
        levels=[*levels, Level("memory", float("inf"), memory)],
        barrier=_core.measure_limit("barrier", dtype, threads),
        activation=_core.measure_limit("activation", dtype, threads),
    )


def least_time(limits: Limits, workload: Workload, mode: str) -> float:
    """Return the seconds that one call takes at least.

        max(operations / peak, bytes of weights streamed / bandwidth of the level they fit in) + activations

    Every time step reads the recurrent kernels U once, and the kernels W once per call, because x.W of all steps
    can be one product; stepwise, each step reads both. Training does so twice, forward and backward. The level is
    the fastest that holds U (stepwise: U and W), divided among the threads. Activations are those of the forward
    pass. Reading and writing x, y and the tape, packing and barriers are not in it: no implementation is
    that good.
    """
    columns = GATES[workload.cell] * workload.H * int(workload.dtype[-2:]) // 8
    cells = workload.directions
    U = float(workload.H * columns * cells * workload.layers)
    W = float(sum(workload.layer_inputs) * columns * cells)
    steps = float(workload.lengths.max())
    stepwise = workload.stepwise and mode == "infer"
    resident = U + W if stepwise else U
    streamed = steps * resident if stepwise else (steps * U + W) * (2 if mode == "train" else 1)
    bandwidth = next(level.bandwidth for level in limits.levels if resident <= level.capacity)
    compute = workload.flops(mode) / limits.flops
    return max(compute, streamed / bandwidth) + workload.activations() * limits.activation
