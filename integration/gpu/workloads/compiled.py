"""Trains a model that torch.compile has made kernels for, with one more kernel in Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import nn

from integration.gpu.workloads import steps
from integration.gpu.workloads.device import device

WIDTH = 256


def scale(out: tl.tensor, given: tl.tensor, count: int, block: tl.constexpr) -> None:
    """Write half of each number, and a bit."""
    places = tl.program_id(0) * block + tl.arange(0, block)
    mask = places < count
    tl.store(out + places, tl.load(given + places, mask=mask) * 0.5 + 0.125, mask=mask)


scale_kernel = triton.jit(scale)


def scaled(given: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(given)
    scale_kernel[(triton.cdiv(given.numel(), 1024),)](out, given, given.numel(), 1024)
    return out


def main() -> None:
    torch.manual_seed(17)
    torch.use_deterministic_algorithms(mode=True)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH)).to(device())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    loss_of = torch.compile(lambda rows: ((model(rows) - rows.tanh()) ** 2).mean())

    def step(number: int) -> float:
        generator = torch.Generator().manual_seed(number)
        rows = scaled(torch.randn(64, WIDTH, generator=generator).to(device()))
        loss = loss_of(rows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    steps.run(
        step, lambda: b"".join(p.detach().cpu().numpy().tobytes() for p in model.parameters())
    )


if __name__ == "__main__":
    main()
