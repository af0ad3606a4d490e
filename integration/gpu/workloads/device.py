"""Where the workloads compute: a GPU, or a stand-in that the environment asks for by name."""

from __future__ import annotations

import os

import torch


def device(rank: int = 0) -> torch.device:
    """The card of *rank*, or the processor where GRIT_DEVICE says so."""
    if os.environ.get("GRIT_DEVICE") == "cpu":
        return torch.device("cpu")
    return torch.device("cuda", rank % torch.cuda.device_count())
