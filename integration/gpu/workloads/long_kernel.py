"""Waits for kernels of half a second, one after the other: it is nearly always inside that wait."""

from __future__ import annotations

import torch

from integration.gpu.workloads import steps
from integration.gpu.workloads.device import device

CYCLES = 800_000_000
WIDTH = 512


def main() -> None:
    torch.manual_seed(23)
    state = torch.randn(WIDTH, WIDTH, device=device())

    def step(_: int) -> float:
        nonlocal state
        torch.cuda._sleep(CYCLES)  # noqa: SLF001  the one way to a kernel that lasts
        state = torch.tanh(state @ state.T / WIDTH**0.5)
        torch.cuda.current_stream().synchronize()
        return float(state.sum())

    steps.run(step, lambda: state.cpu().numpy().tobytes())


if __name__ == "__main__":
    main()
