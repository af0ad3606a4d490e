"""Holds random tensors in device memory.

usage: tensors GIB PROCESSES

Each process, on a card of its own if there are as many, holds GIB of them and prints, five times
a second, `RANK COUNT CHECK`: COUNT is counted on the device, CHECK summed there. SIGUSR1 makes it
print `digest RANK SHA256` of every byte, read back.
"""

from __future__ import annotations

import functools
import hashlib
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import torch

from integration.gpu.workloads import processes
from integration.gpu.workloads.device import device

INTERVAL_S = 0.2
BLOCK_BYTES = 1 << 30
PIECE_NUMBERS = (64 << 20) // 8
THREADS = 8


def main() -> None:
    size_bytes = int(float(sys.argv[1]) * (1 << 30))
    processes.run(int(sys.argv[2]), functools.partial(hold, size_bytes))


def hold(size_bytes: int, rank: int) -> None:
    """Hold tensors and report on them until told to end."""
    asked = False

    def ask(*_: object) -> None:
        nonlocal asked
        asked = True

    signal.signal(signal.SIGUSR1, ask)
    blocks = make_blocks(size_bytes, rank)
    count = torch.zeros((), dtype=torch.int64, device=device(rank))
    while True:
        count += 1
        print(rank, int(count), check(blocks), flush=True)
        if asked:
            asked = False
            print("digest", rank, digest(blocks), flush=True)
        time.sleep(INTERVAL_S)


def make_blocks(size_bytes: int, rank: int) -> list[torch.Tensor]:
    """Random numbers, other ones for each rank, of *size_bytes* in all."""
    generator = torch.Generator(device=device(rank)).manual_seed(1 + rank)
    sizes = [
        min(BLOCK_BYTES, size_bytes - begin) // 8 for begin in range(0, size_bytes, BLOCK_BYTES)
    ]
    return [
        torch.empty(size, dtype=torch.int64, device=device(rank)).random_(generator=generator)
        for size in sizes
    ]


def check(blocks: list[torch.Tensor]) -> str:
    """A sum, modulo 2**64, that depends on where each number is among its neighbours."""
    total = sum(int(block.sum()) + 3 * int(block[::2].sum()) for block in blocks)
    return f"{total % (1 << 64):016x}"


def digest(blocks: list[torch.Tensor]) -> str:
    """SHA-256 over the digests of all pieces."""
    pieces = [piece for block in blocks for piece in block.split(PIECE_NUMBERS)]
    with ThreadPoolExecutor(THREADS) as threads:
        digests = list(threads.map(digest_piece, pieces))
    return hashlib.sha256(b"".join(digests)).hexdigest()


def digest_piece(piece: torch.Tensor) -> bytes:
    return hashlib.sha256(piece.cpu().numpy()).digest()


if __name__ == "__main__":
    main()
