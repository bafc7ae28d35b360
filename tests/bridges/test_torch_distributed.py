"""Data-parallel training in two processes on this machine: the gradients and the losses are those of one process."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from support import assert_close

import fastrnn

torch = pytest.importorskip("torch", reason="tests fastrnn.torch, and PyTorch is not installed")

# The processes find the fastrnn that is tested here.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(fastrnn.__file__).parents[1])}
EXAMPLE = Path(__file__).parents[2] / "examples" / "distributed_torch.py"

# One of two processes: trains by the example's function, and process 0 saves what came out.
PROGRAM = """
import runpy, sys, torch, torch.distributed as dist, fastrnn
example, rank, store, result = sys.argv[1:]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=int(rank), world_size=2)
model, losses = runpy.run_path(example)["train"](steps=5)
torch.save([[p.grad for p in model.parameters()], losses, fastrnn.kernel_calls()["gru"]], f"{result}.{rank}")
dist.destroy_process_group()
"""


def test_two_processes_have_the_gradients_of_one(tmp_path):
    arguments = [str(tmp_path / "store"), str(tmp_path / "result")]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(EXAMPLE), str(rank), *arguments],
            env=ENVIRONMENT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    of_two = [torch.load(f"{arguments[1]}.{rank}") for rank in range(2)]
    model, losses = runpy.run_path(str(EXAMPLE))["train"](steps=5)
    expected = [p.grad for p in model.parameters()]
    for gradients, _, calls in of_two:
        assert_close(gradients, expected, 1e-4)
        assert calls == {"forward": 5, "backward": 5}
    assert_close([(a + b) / 2 for a, b in zip(of_two[0][1], of_two[1][1], strict=True)], losses, 1e-5)


def test_the_example_learns_in_two_processes():
    done = subprocess.run(
        [sys.executable, str(EXAMPLE)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    lines = sorted(done.stdout.splitlines())
    assert [line.partition(":")[0] for line in lines] == ["process 0 of 2", "process 1 of 2"]
    assert all(float(line.split()[-1]) < 0.4 for line in lines), lines  # guessing: 0.69
