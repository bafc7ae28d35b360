"""Every workload, mode and peer: the answer is checked, then the call is timed. Groups: one per workload and mode."""

import pytest

import fastrnn
from fastrnn.benchmark.limits import least_time
from fastrnn.benchmark.peers import Unsupported
from fastrnn.benchmark.workloads import TOLERANCE, error_of, is_right


def test_workload(benchmark, workload, mode, peer, right, measured_limits, request):
    try:
        call = peer.build(workload, mode)
        error = error_of(workload, mode, call.answer(), right)
    except Unsupported as reason:
        pytest.skip(f"{peer.label}: {reason}")
    assert is_right(workload, error), f"error {error:.1e}, allowed {TOLERANCE[workload.dtype]:.0e}"

    benchmark.group = f"{workload.name} {mode}: {workload.cell} {workload.sizes} {workload.dtype}"
    benchmark.extra_info.update(
        versions=peer.versions(),
        threads=request.config.threads,
        isa=fastrnn.get_isa(),
        source=workload.source,
        error=error,
    )
    benchmark(call.run)
    if benchmark.enabled:
        shortest = benchmark.stats.stats.min
        benchmark.extra_info.update(
            gflops=workload.flops(mode) / shortest / 1e9,
            share_of_limit=least_time(measured_limits(workload.dtype), workload, mode) / shortest,
        )
