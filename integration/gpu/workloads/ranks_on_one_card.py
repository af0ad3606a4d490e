"""Two ranks of torch.distributed that share one card, and reduce by gloo; the first one prints."""

from __future__ import annotations

import os
import sys
import time

import torch
from torch import distributed

from integration.gpu.workloads import processes, steps
from integration.gpu.workloads.device import device

RANKS = 2
WIDTH = 512
PORT = "29517"


def main() -> None:
    processes.run(RANKS, work)


def work(rank: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": PORT}
    distributed.init_process_group("gloo", rank=rank, world_size=RANKS)
    torch.manual_seed(19 + rank)
    state = torch.randn(WIDTH, WIDTH, device=device(rank))

    def step(_: int) -> float:
        nonlocal state
        shared = state.mean(0).cpu()
        distributed.all_reduce(shared)
        state = torch.tanh(state @ state.T / WIDTH**0.5 + shared.to(device(rank)))
        return float(state.sum())

    if rank == 0:
        steps.run(step, lambda: state.cpu().numpy().tobytes())
    for number in range(int(sys.argv[1])):
        step(number)
    time.sleep(1000)


if __name__ == "__main__":
    main()
