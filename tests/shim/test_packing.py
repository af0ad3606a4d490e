"""Memory without holes, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

# Every other object is given up again: a thousand holes and more, in no order.
NEIGHBOURS = """
import random
from grit_runtime.shim import packing
size = 96
kept = [bytes(size - 33) for _ in range(3_000)]
random.Random(1).shuffle(kept)
del kept[::2]
if {filled}:
    packing.fill_holes()
made = [bytes(size - 33) for _ in range(100)]
places = sorted(map(id, made))
print(sum(b - a == size for a, b in zip(places, places[1:])))
"""


def neighbours(*, filled: bool) -> int:
    """Of 99 objects made one after the other, how many lie right before the next."""
    argv = [sys.executable, "-c", NEIGHBOURS.format(filled=filled)]
    return int(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)


def test_what_is_made_once_all_holes_are_filled_lies_close_together() -> None:
    assert neighbours(filled=False) < 80
    assert neighbours(filled=True) > 95
