"""Holds a little managed memory, which no driver so far checkpoints; prints `COUNT SUM`."""

from __future__ import annotations

import ctypes
import signal
import sys
import time

import torch

SIZE_BYTES = 4 << 20
ATTACH_GLOBAL = 1
PATTERN = 7
INTERVAL_S = 0.2


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    torch.ones(1, device="cuda")  # makes the context that the calls below are made in
    driver = ctypes.CDLL("libcuda.so.1")
    address = ctypes.c_uint64()
    must(
        driver.cuMemAllocManaged(ctypes.byref(address), ctypes.c_size_t(SIZE_BYTES), ATTACH_GLOBAL)
    )
    must(driver.cuMemsetD8_v2(address, ctypes.c_ubyte(PATTERN), ctypes.c_size_t(SIZE_BYTES)))
    must(driver.cuCtxSynchronize())
    count = 0
    while True:
        count += 1
        print(count, sum(ctypes.string_at(address.value or 0, SIZE_BYTES)), flush=True)
        time.sleep(INTERVAL_S)


def must(code: int) -> None:
    assert code == 0, f"CUDA error {code}"


if __name__ == "__main__":
    main()
