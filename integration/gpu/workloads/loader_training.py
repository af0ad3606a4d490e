"""Trains on batches that forked workers make, which live on, through pinned memory."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader

from integration.gpu.workloads import steps
from integration.gpu.workloads.device import device

WIDTH = 256
BATCH = 32
WORKERS = 3


class Numbers:
    """Random rows, each the same whenever it is asked for."""

    def __len__(self) -> int:
        return 20 * BATCH

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.randn(WIDTH, generator=torch.Generator().manual_seed(index))


def main() -> None:
    torch.manual_seed(5)
    torch.use_deterministic_algorithms(mode=True)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Dropout(0.1), nn.Linear(WIDTH, 1))
    model = model.to(device())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    loader = DataLoader(
        Numbers(),
        batch_size=BATCH,
        shuffle=True,
        num_workers=WORKERS,
        multiprocessing_context="fork",
        pin_memory=device().type == "cuda",
        persistent_workers=True,
    )
    batches = iter(loader)

    def step(_: int) -> float:
        nonlocal batches
        batch = next(batches, None)
        if batch is None:
            batches = iter(loader)
            batch = next(batches)
        rows = batch.to(device(), non_blocking=True)
        loss = ((model(rows) - rows.sum(1, keepdim=True).tanh()) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    steps.run(
        step, lambda: b"".join(p.detach().cpu().numpy().tobytes() for p in model.parameters())
    )


if __name__ == "__main__":
    main()
