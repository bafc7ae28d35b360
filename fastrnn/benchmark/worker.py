"""A process that runs one peer, and its remote control.

The two speak in lines of JSON over pipes. Requests: {"do": "load" | "limits" | "prepare" | "time" | "drop", ...};
a reply is a dict, with "unsupported" or "failed" and the reason when there is no result. While it isn't asked
anything a worker is stopped (SIGSTOP), so that no thread of it, however it waits, takes time from another one.
"""

from __future__ import annotations

import ctypes
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from fastrnn.benchmark import limits
from fastrnn.benchmark.peers import PEERS, Call, Unsupported
from fastrnn.benchmark.workloads import TOLERANCE, Workload, error_of, is_right

PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
SETTLE = 0.02  # seconds after a worker is woken up
LEAST_BATCH = 1e-4  # seconds: shorter calls are timed in groups that take so long
LIBRARY_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class WorkerError(Exception):
    """A worker died, or didn't answer in time; the message says which."""


# ---- In the worker's process


def shortest(run: Callable[[], Any], seconds: float) -> tuple[float, int]:
    """Call `run` again and again for about so many seconds, after a call to warm up.

    Returns:
        The shortest time of a call, in seconds, and how many calls there were. Calls of less than `LEAST_BATCH`
        are timed in groups.
    """
    clock = time.perf_counter
    start = clock()
    run()
    first = clock() - start
    group = 1
    if first < LEAST_BATCH:
        start = clock()
        run()
        group = max(1, int(LEAST_BATCH / max(clock() - start, 1e-7)))
    best, calls, end = float("inf"), 0, clock() + seconds
    while calls == 0 or clock() < end:
        start = clock()
        for _ in range(group):
            run()
        best = min(best, (clock() - start) / group)
        calls += group
    return best, calls


class _Server:
    def __init__(self, peer: str, threads: int) -> None:
        self.peer, self.threads = PEERS[peer], threads
        self.call: Call | None = None

    def load(self) -> dict[str, Any]:
        self.peer.load(self.threads)
        return {"versions": self.peer.versions()}

    def limits(self, dtype: str) -> dict[str, Any]:
        return limits.measure(dtype, self.threads).as_dict()

    def prepare(self, workload: dict[str, Any], mode: str, right: str) -> dict[str, Any]:
        row = Workload(**workload)
        self.call = None
        call = self.peer.build(row, mode)
        with np.load(right) as arrays:
            error = error_of(row, mode, call.answer(), [arrays[name] for name in arrays.files])
        if not is_right(row, error):
            return {"failed": f"wrong answer: error {error:.1e}, allowed {TOLERANCE[row.dtype]:.0e}"}
        self.call = call
        return {"error": error}

    def time(self, seconds: float) -> dict[str, Any]:
        if self.call is None:
            return {"failed": "nothing is prepared"}
        best, calls = shortest(self.call.run, seconds)
        return {"seconds": best, "calls": calls}

    def drop(self) -> dict[str, Any]:
        self.call = None
        return {}


def serve(peer: str, threads: int, parent: int) -> None:
    """Answer requests until the input ends or the parent process does."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no reply
    server = _Server(peer, threads)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = getattr(server, request.pop("do"))(**request)
        except Unsupported as reason:
            reply = {"unsupported": str(reason)}
        except Exception as error:
            text = (str(error).strip() or "no message").splitlines()[0]
            reply = {"failed": f"{type(error).__name__}: {text}"}
        print(json.dumps(reply), file=replies, flush=True)


# ---- In the process that compares


class Worker:
    """The remote control of a process that runs one peer."""

    def __init__(self, peer: str, threads: int, isa: str | None = None) -> None:
        self.peer = peer
        processors = sorted(os.sched_getaffinity(0))[:threads]
        environment = {
            **os.environ,
            **PEERS[peer].environment,
            **dict.fromkeys(LIBRARY_THREADS, str(threads)),
        }
        if isa is not None:
            environment["FASTRNN_ISA"] = isa
        call = f"from fastrnn.benchmark.worker import serve; serve({peer!r}, {threads}, {os.getpid()})"
        code = f"import os, sys; os.sched_setaffinity(0, {processors}); sys.path[:] = {sys.path!r}; {call}"
        self._stderr = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=environment,
            start_new_session=True,  # Ctrl-C in the terminal is for the parent, which then kills
        )
        self._selector = selectors.DefaultSelector()
        assert self._process.stdout is not None
        self._selector.register(self._process.stdout, selectors.EVENT_READ)

    @property
    def pid(self) -> int:
        """The process' id."""
        return self._process.pid

    def ask(self, do: str, timeout: float, **arguments: Any) -> dict[str, Any]:
        """Wake the worker, let it do something, and stop it again.

        Raises:
            WorkerError: It died, or took longer than `timeout` seconds; then it is killed.
        """
        assert self._process.stdin is not None
        try:
            os.kill(self.pid, signal.SIGCONT)
            time.sleep(SETTLE)
            line = json.dumps({"do": do, **arguments}) + "\n"
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()
            reply: dict[str, Any] = json.loads(self._line(timeout))
            os.kill(self.pid, signal.SIGSTOP)
        except TimeoutError:
            self.kill()
            raise WorkerError(f"no answer within {timeout:.0f} s") from None
        except (OSError, EOFError):
            raise WorkerError(self._epitaph()) from None
        return reply

    def kill(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()  # ends a stopped process too
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    pass
        self._selector.close()
        self._stderr.close()

    def _line(self, timeout: float) -> bytes:
        assert self._process.stdout is not None
        line, end = b"", time.monotonic() + timeout
        while not line.endswith(b"\n"):
            if not self._selector.select(max(0.0, end - time.monotonic())):
                raise TimeoutError
            piece = os.read(self._process.stdout.fileno(), 1 << 16)
            if not piece:
                raise EOFError
            line += piece
        return line

    def _epitaph(self) -> str:
        """How the process ended, and the last line of what it said."""
        self._process.kill() if self._process.poll() is None else None
        code = self._process.wait()
        how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        self.kill()
        return f"the process ended: {how}" + (f", {lines[-1].strip()}" if lines else "")
