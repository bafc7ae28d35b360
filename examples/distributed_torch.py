"""Data-parallel training of a PyTorch model on fastrnn's kernels, with torch's own DistributedDataParallel over gloo.

Every process has the whole model and reads its own part of each batch; after each backward pass the processes average
their gradients, so that the models stay the same. fastrnn needs nothing for this: its modules' gradients are
parameters' gradients as any others.

Here a GRU learns to tell which of two numbers occurs more often in a sequence. Run it

    on one machine, two processes:   python examples/distributed_torch.py
    the same with torchrun:          torchrun --nproc-per-node 2 examples/distributed_torch.py

and for several machines see docs/several_machines.md.
"""

import os
import socket

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

import fastrnn
import fastrnn.torch


class Model(nn.Module):
    """Token ids [B, T] -> a score [B]."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(2, 8)
        self.gru = fastrnn.torch.GRU(8, 32, batch_first=True)
        self.dense = nn.Linear(32, 1)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the score, above 0 for more ones than zeros."""
        _, h = self.gru(self.embedding(ids))
        return self.dense(h[-1])[:, 0]


def batch_of(step: int, rows: int = 64, time: int = 25) -> tuple[Tensor, Tensor]:
    """A batch that is the same in every process."""
    ids = torch.randint(0, 2, (rows, time), generator=torch.Generator().manual_seed(step))
    return ids, (ids.float().mean(1) > 0.5).float()


def train(steps: int = 60) -> tuple[nn.Module, list[float]]:
    """Train in this process, one of those of the process group, or alone if there is none."""
    rank, processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    torch.manual_seed(
        0
    )  # the same model everywhere; DistributedDataParallel would also send rank 0's to the others
    model: nn.Module = Model()
    if processes > 1:
        model = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    losses = []
    for step in range(steps):
        ids, target = (t[rank::processes] for t in batch_of(step))  # this process' rows
        optimizer.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(model(ids), target)
        loss.backward()  # here the gradients are averaged
        optimizer.step()
        losses.append(loss.item())
    return model, losses


def main() -> None:
    """What one process does; the variables RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT say which one it is."""
    dist.init_process_group("gloo")
    # Processes on one machine share its cores.
    here = int(os.environ.get("LOCAL_WORLD_SIZE", dist.get_world_size()))
    threads = max(1, len(os.sched_getaffinity(0)) // here)
    torch.set_num_threads(threads)
    fastrnn.set_num_threads(threads)
    losses = train()[1]
    line = f"process {dist.get_rank()} of {dist.get_world_size()}: loss {losses[0]:.3f} -> {losses[-1]:.3f}\n"
    print(line, end="", flush=True)  # in one write: the processes share a terminal
    dist.barrier()  # nobody leaves while another process still needs it
    dist.destroy_process_group()


def _spawned(rank: int, processes: int, port: int) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = str(port)
    main()


if __name__ == "__main__":
    if "RANK" in os.environ:  # torchrun set it
        main()
    else:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        mp.spawn(_spawned, (2, port), 2)
