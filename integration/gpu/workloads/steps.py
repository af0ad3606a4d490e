"""A program of numbered steps, which is the same each time that it runs.

usage of each: PROGRAM STEPS PACE_S

Prints `STEP VALUE` for each step, to the last digit, with a pause of PACE_S after it, and at the
end `parameters SHA256` of all that it has come to.
"""

from __future__ import annotations

import hashlib
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def run(step: Callable[[int], object], outcome: Callable[[], bytes]) -> None:
    """Take the steps that the command line asks for; *outcome* is what was come to."""
    count, pace_s = int(sys.argv[1]), float(sys.argv[2])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    for number in range(1, count + 1):
        print(number, repr(step(number)), flush=True)
        time.sleep(pace_s)
    print("parameters", hashlib.sha256(outcome()).hexdigest(), flush=True)
    signal.pause()
