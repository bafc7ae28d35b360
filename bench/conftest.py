"""Options of the suite: which workloads and peers, how many threads, which instruction set."""

import os
from functools import cache, lru_cache

import pytest

import fastrnn
from fastrnn import runtime
from fastrnn.benchmark import limits
from fastrnn.benchmark.peers import PEERS, Unsupported
from fastrnn.benchmark.workloads import WORKLOADS, right_answer, select

PEERS_OF_ONE_PROCESS = "fastrnn,torch,onnxruntime,openvino,jax"  # Keras has one backend in a process
SMOKE = (
    "imdb-rnn",
    "imdb-lstm",
    "jena-gru",
    "audio-step",
    "bi-gru",
    "stack-gru",
    "ragged-gru",
    "imdb-lstm-64",
)


def pytest_addoption(parser):
    group = parser.getgroup("fastrnn")
    group.addoption("--workloads", help="groups or parts of names, with commas (default: all but deepbench)")
    group.addoption("--peers", default=PEERS_OF_ONE_PROCESS, help="with commas (default: %(default)s)")
    group.addoption("--threads", type=int, help="of each library (default: all processors)")
    group.addoption("--isa", help="instruction set of fastrnn (default: the best one)")


def pytest_configure(config):
    processors = sorted(os.sched_getaffinity(0))
    threads = config.getoption("threads") or len(processors)
    if not 1 <= threads <= len(processors):
        raise pytest.UsageError(f"--threads: must be from 1 to {len(processors)}, got {threads}")
    os.sched_setaffinity(0, processors[:threads])  # some libraries have no other way to set it
    config.threads = threads
    if config.getoption("isa"):
        try:
            fastrnn.set_isa(config.getoption("isa"))
        except ValueError as error:
            raise pytest.UsageError(f"--isa: {error}") from None
    unknown = set(_names(config.getoption("peers"))) - set(PEERS)
    if unknown:
        raise pytest.UsageError(f"--peers: must be some of {', '.join(PEERS)}, got {', '.join(unknown)}")
    try:
        config.workloads = _workloads(config.getoption("workloads"))
    except ValueError as error:
        raise pytest.UsageError(f"--workloads: {error}") from None


def _names(value):
    return [name.strip() for name in value.split(",") if name.strip()]


def _workloads(option):
    if option is None:
        return [w for w in WORKLOADS if not w.group.startswith("deepbench")]
    return select(_names(option))


def pytest_generate_tests(metafunc):
    if "peer_name" in metafunc.fixturenames:
        wanted = _names(metafunc.config.getoption("peers"))
        metafunc.parametrize(
            "workload, mode, peer_name",
            [
                pytest.param(
                    workload,
                    mode,
                    name,
                    id=f"{workload.name}-{mode}-{name}",
                    marks=[pytest.mark.smoke] if workload.name in SMOKE else [],
                )
                for workload in metafunc.config.workloads
                for mode in workload.modes
                for name in wanted
                if mode in PEERS[name].modes and workload.dtype in PEERS[name].dtypes
            ],
        )


def pytest_report_header(config):
    return f"fastrnn {fastrnn.__version__}, {fastrnn.get_isa()}, {config.threads} threads, {runtime.processor_name()}"


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["fastrnn"] = runtime.config() | {"threads": config.threads}


@cache
def _load(name, threads):
    """Why the peer can't be used, or None; it is imported when the first test asks for it."""
    try:
        return PEERS[name].missing() or PEERS[name].load(threads)
    except Unsupported as reason:
        return str(reason)


@pytest.fixture
def peer(peer_name, request):
    """The peer, loaded; skips the test where it isn't installed."""
    reason = _load(peer_name, request.config.threads)
    if reason:
        pytest.skip(f"{PEERS[peer_name].label}: {reason}")
    return PEERS[peer_name]


@pytest.fixture
def measured_limits(request):
    """A function: the machine's limits for a dtype, measured when they are first asked for."""
    return lambda dtype: _limits(dtype, request.config.threads)


_limits = cache(limits.measure)


@pytest.fixture
def right(workload, mode):
    """The right answer, computed once for all peers."""
    return _right(workload, mode)


_right = lru_cache(maxsize=1)(right_answer)
