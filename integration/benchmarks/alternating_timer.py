"""Runs on a node, by the node's own python: times two ways to do a thing, turn and turn about.

Reads {"pairs": N, "ours": SIDE, "theirs": SIDE} as JSON, where a SIDE has "before" and "after"
(shell, not timed), "calls" (a list of argv, timed together) and the "directory" to make them in.
Writes {"ours": [SECONDS...], "theirs": [SECONDS...]}.
"""

import json
import subprocess
import sys
import time
from typing import Any


def seconds(side: dict[str, Any]) -> float:
    """What the timed calls of one side took."""
    subprocess.run(["sh", "-ec", side["before"]], check=True, stdout=subprocess.DEVNULL)
    begin = time.perf_counter()
    for argv in side["calls"]:
        # A container's standard streams are pipes, as containerd makes them.
        with subprocess.Popen(
            argv,
            cwd=side["directory"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            if process.wait() != 0:
                sys.exit(f"{argv} ended {process.returncode}: {process.communicate()}")
    taken = time.perf_counter() - begin
    subprocess.run(["sh", "-ec", side["after"]], check=True, stdout=subprocess.DEVNULL)
    return taken


def main() -> None:
    asked = json.load(sys.stdin)
    taken: dict[str, list[float]] = {"ours": [], "theirs": []}
    for at in range(asked["pairs"] + 1):
        for name in ("ours", "theirs") if at % 2 else ("theirs", "ours"):
            spent = seconds(asked[name])
            if at:  # the first of each warms the caches
                taken[name].append(spent)
    json.dump(taken, sys.stdout)


main()
