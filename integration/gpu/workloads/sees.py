"""Says what a container sees of the cards, and which device nodes come to be as it looks."""

from __future__ import annotations

import ctypes
import os
import time

import torch


def main() -> None:
    say_nodes("at start")
    nvml = ctypes.CDLL("libnvidia-ml.so.1")
    count = ctypes.c_uint()
    started = nvml.nvmlInit_v2(), nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
    print(f"NVML answers {started}, {count.value} cards")
    say_nodes("after NVML")
    print(
        f"torch {torch.__version__}, CUDA {torch.version.cuda}, {torch.cuda.device_count()} cards"
    )
    print(f"{torch.ones(1, device='cuda')} on {torch.cuda.get_device_name(0)}")
    say_nodes("after CUDA")
    print("seen", flush=True)
    time.sleep(1000)


def say_nodes(when: str) -> None:
    print(f"{when}:", *sorted(name for name in os.listdir("/dev") if name.startswith("nvidia")))


if __name__ == "__main__":
    main()
