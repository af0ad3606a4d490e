"""Two ranks, one a card, that add up a tensor over NCCL each step; rank 0 prints `STEP SUM`."""

from __future__ import annotations

import os
import sys
import time

import torch
from torch import distributed

from integration.gpu.workloads import processes
from integration.gpu.workloads.device import device

RANKS = 2
NUMBERS = 1 << 20
INTERVAL_S = 0.2
RENDEZVOUS = "/tmp/rendezvous"


def main() -> None:
    os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    processes.run(RANKS, work)


def work(rank: int) -> None:
    place = device(rank)
    backend = "gloo" if place.type == "cpu" else "nccl"
    distributed.init_process_group(
        backend, init_method=f"file://{RENDEZVOUS}", rank=rank, world_size=RANKS
    )
    step = 0
    while True:
        step += 1
        tensor = torch.full((NUMBERS,), float(step * (rank + 1)), device=place)
        distributed.all_reduce(tensor)
        low, high = float(tensor.min()), float(tensor.max())
        if not low == high == step * (1 + RANKS) * RANKS / 2:
            sys.exit(f"rank {rank}, step {step}: sums from {low} to {high}")
        if rank == 0:
            print(step, low, flush=True)
        time.sleep(INTERVAL_S)


if __name__ == "__main__":
    main()
