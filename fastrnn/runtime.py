"""Threads, instruction sets, and what this build is."""

import platform
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

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
    if not 1 <= n <= MOST_THREADS:
        raise ValueError(f"set_num_threads: n must be from 1 to {MOST_THREADS}, got {n}")
    _core.set_num_threads(int(n))


MOST_THREADS = 1024


def get_num_threads() -> int:
    """Return how many threads one call may use."""
    return _core.num_threads()


def kernel_calls() -> dict[str, dict[str, int]]:
    """Count how often each cell's kernels have run in this process, over all threads: proof that they did.

    Returns:
        By the cell's name, as `functional` and errors have it ("lstm", "gru", "gru_reset_before", "simple_rnn" ...),
        {"forward": n, "backward": m}. A step is a forward pass; so is a pass of any length; a pass that failed its checks
        is none. A cell that is computed in NumPy (see `functional`) tries its arguments out on the kernels, which counts.

    >>> import fastrnn, numpy as np
    >>> layer, before = fastrnn.LSTM(8), fastrnn.kernel_calls()["lstm"]["forward"]
    >>> _ = layer(np.zeros((2, 5, 3), "float32"))
    >>> fastrnn.kernel_calls()["lstm"]["forward"] - before
    1
    """
    return _core.kernel_calls()


class _Limit(threading.local):
    """The most threads of those calls of one Python thread that say nothing of it; 0: get_num_threads()."""

    threads = 0


limit = _Limit()


@contextmanager
def at_most(threads: int) -> Iterator[None]:
    """Within it, calls from this Python thread use at most so many threads."""
    before, limit.threads = limit.threads, threads
    try:
        yield
    finally:
        limit.threads = before


First = TypeVar("First")
Second = TypeVar("Second")


def at_once(first: Callable[[], First], second: Callable[[], Second]) -> tuple[First, Second]:
    """(first(), second()), both at the same time, each with half of the threads that a call may use.

    Calls of kernels with at least 15 ms of work are worth it: less is faster one after the other, as with one thread or
    in a forked process, where this does so. If `first` raises, as Ctrl-C makes it do, nothing waits for `second`: it
    runs to its end, which nobody sees, so it must change nothing.

    A thread is made for each call, which takes 0.1 ms: it has the modes of rounding and denormals of its maker, holds
    nothing between calls, and is none of the threads that a fork would have to make anew.
    """
    threads = limit.threads or get_num_threads()
    outcome: list[tuple[Any, BaseException | None]] = []

    def run() -> None:
        try:
            with at_most(threads // 2):
                outcome.append((second(), None))
        except BaseException as error:
            outcome.append((None, error))

    if threads == 1:
        return first(), second()
    worker = threading.Thread(target=run, name="fastrnn", daemon=True)
    try:
        worker.start()
    except RuntimeError:  # the system, or an interpreter that ends, has no thread to give
        return first(), second()
    with at_most(threads - threads // 2):
        result = first()
    worker.join()
    other, error = outcome.pop()
    if error is not None:
        try:
            raise error
        finally:
            del error  # its traceback refers to this frame
    return result, other


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
