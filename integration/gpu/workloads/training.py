"""Trains a small model, the same way each time.

usage: training STEPS PACE_S

Prints `STEP LOSS` for each step, to the last digit, with a pause of PACE_S after it, and at the end
`parameters SHA256` of all it has learnt. Convolutions, matrix products, dropout and the optimizer's
moments are all on the device; the batches come from the processor's random numbers.
"""

from __future__ import annotations

import hashlib
import signal
import sys
import time

import torch
from torch import nn

from integration.gpu.workloads.device import device

SEED = 7
BATCH = 64
CLASSES = 10


def main() -> None:
    steps, pace_s = int(sys.argv[1]), float(sys.argv[2])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(mode=True)
    torch.backends.cudnn.benchmark = False
    model = make_model().to(device())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for step in range(1, steps + 1):
        print(step, repr(train(model, optimizer)), flush=True)
        time.sleep(pace_s)
    print("parameters", digest(model), flush=True)
    signal.pause()


def make_model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(64 * 16 * 16, 256),
        nn.GELU(),
        nn.Linear(256, CLASSES),
    )


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    """One step on a batch of its own; the loss before it."""
    images = torch.randn(BATCH, 3, 32, 32).to(device())
    labels = torch.randint(CLASSES, (BATCH,)).to(device())
    loss = nn.functional.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def digest(model: nn.Module) -> str:
    values = model.state_dict().values()
    return hashlib.sha256(b"".join(value.cpu().numpy().tobytes() for value in values)).hexdigest()


if __name__ == "__main__":
    main()
