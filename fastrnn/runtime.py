"""Threads, instruction sets, and what this build is."""

import platform
from typing import Any

import numpy as np

from fastrnn import _core


def set_num_threads(n: int) -> None:
    """Set how many threads one call may use, in this process and for fastrnn alone.

    Args:
        n: At least 1. More threads than cores are never faster.

    Raises:
        TypeError: `n` is not an integer.
        ValueError: `n` is less than 1.

    A small call uses fewer. Without this, the number is OpenMP's: `OMP_NUM_THREADS`, else the processors
    that this process may use. Results have the same bits for any number of threads. A process forked from
    one that has already imported fastrnn runs on one thread.

    >>> import fastrnn
    >>> before = fastrnn.get_num_threads()
    >>> fastrnn.set_num_threads(1)
    >>> fastrnn.get_num_threads()
    1
    >>> fastrnn.set_num_threads(before)
    """
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)):
        raise TypeError(f"set_num_threads: n must be an integer, got {type(n).__name__}")
    if not 1 <= n <= _MOST_THREADS:
        raise ValueError(f"set_num_threads: n must be from 1 to {_MOST_THREADS}, got {n}")
    _core.set_num_threads(int(n))


_MOST_THREADS = 1024


def get_num_threads() -> int:
    """Return how many threads one call may use."""
    return _core.num_threads()


def compiled_isas() -> list[str]:
    """Return the instruction sets that the kernels were compiled for, weakest first."""
    return _core.compiled_isas()


def available_isas() -> list[str]:
    """Return those of `compiled_isas` that run on this processor, weakest first."""
    return _core.available_isas()


def get_isa() -> str:
    """Return the instruction set in use: the best one unless `FASTRNN_ISA` or `set_isa` named another."""
    return _core.isa()


def release_memory() -> None:
    """Give the memory that fastrnn keeps for its next call back to the system.

    Results, tapes, packed weights and workspaces of 256 KiB and more are kept when they are no longer in use, at
    most 1 GiB in all, because a training step asks for the same sizes again. The system may take kept
    memory by itself when it runs short. (Results of that size are views of such memory: NumPy says that they
    don't own their data, and can't resize them in place.)

    >>> import fastrnn
    >>> fastrnn.release_memory()
    """
    _core.release_memory()


def set_isa(name: str) -> None:
    """Use the kernels of one instruction set from now on, in this process.

    Args:
        name: One of `available_isas()`.

    Raises:
        TypeError: `name` is not a string.
        ValueError: `name` is not available here.

    Results of different instruction sets differ in rounding.

    >>> import fastrnn
    >>> before = fastrnn.get_isa()
    >>> fastrnn.set_isa(fastrnn.available_isas()[0])
    >>> fastrnn.set_isa(before)
    """
    if not isinstance(name, str):
        raise TypeError(f"set_isa: name must be a string, got {type(name).__name__}")
    _core.set_isa(name)


def config() -> dict[str, Any]:
    """Return what `show_config` prints, by name."""
    return {
        "fastrnn": _core.__version__,
        "instruction sets compiled": compiled_isas(),
        "instruction sets available": available_isas(),
        "instruction set in use": get_isa(),
        "threads": get_num_threads(),
        "compiler": _core.compiler(),
        "processor": processor_name(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def show_config() -> None:
    """Print version, instruction sets, threads, compiler and processor."""
    for name, value in config().items():
        print(f"{name:26} {' '.join(value) if isinstance(value, list) else value}")


def processor_name() -> str:
    """Return the processor's name as the operating system gives it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
