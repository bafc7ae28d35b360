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


# One of two processes whose parameters are in parts, and whole only while they are used, in other memory each time. It saves
# the losses by way and library.
SHARDED_PROGRAM = """
import sys, torch, torch.distributed as dist, fastrnn.torch
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
rank, store, result = sys.argv[1:]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=int(rank), world_size=2)
found = {}
for way in ("FullyShardedDataParallel", "fully_shard"):
    for library in (torch.nn, fastrnn.torch):
        torch.manual_seed(0)
        recurrent, dense = library.LSTM(4, 8, batch_first=True), torch.nn.Linear(8, 1)
        if way == "fully_shard":
            fully_shard(recurrent)
        else:
            recurrent = FullyShardedDataParallel(recurrent, device_id=torch.device("cpu"))
        optimizer = torch.optim.SGD([*recurrent.parameters(), *dense.parameters()], 0.5)
        losses = found[f"{way} {library.__name__}"] = []
        for step in range(3):
            optimizer.zero_grad()
            loss = dense(recurrent(torch.randn(5, 6, 4))[0][:, -1]).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
torch.save([found, fastrnn.kernel_calls()["lstm"]], f"{result}.{rank}")
dist.destroy_process_group()
"""


def in_two_processes(program, tmp_path, *arguments):
    """What each of the two saved."""
    result = str(tmp_path / "result")
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program, *arguments, str(rank), str(tmp_path / "store"), result],
            env=ENVIRONMENT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    return [torch.load(f"{result}.{rank}") for rank in range(2)]


def test_parameters_in_parts_train_as_in_torch_nn(tmp_path):
    for losses, calls in in_two_processes(SHARDED_PROGRAM, tmp_path):
        for way in ("FullyShardedDataParallel", "fully_shard"):
            assert_close(losses[f"{way} fastrnn.torch"], losses[f"{way} torch.nn"], 1e-5)
        assert calls == {"forward": 6, "backward": 6}


def test_two_processes_have_the_gradients_of_one(tmp_path):
    of_two = in_two_processes(PROGRAM, tmp_path, str(EXAMPLE))
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
