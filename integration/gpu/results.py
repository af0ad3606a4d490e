"""What came of each case: a row of results.json, written as soon as it is known."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

from integration.node import rootfs

VERIFIED = "restored and verified"
REFUSED = "refused, source unharmed"
IN_PLACE = "suspended and resumed in place"
FAILED = "failed"
SKIPPED = "skipped: no time left"

PRINTED_ERROR = 900


class Outcome(NamedTuple):
    """How a case ended; *seconds* by phase, *digests_equal* None where nothing is digested."""

    outcome: str
    seconds: dict[str, float]
    digests_equal: bool | None = None
    note: str | None = None


class Results:
    """The rows of one run."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._facts = _facts()
        self.rows: list[dict[str, object]] = []

    def add(self, case: str, way: str, gib: float | None, outcome: Outcome) -> None:
        """Keep and print a row; *way* is grit, or the driver and runc by hand."""
        row: dict[str, object] = {
            "case": case,
            "way": way,
            "gib": gib,
            "outcome": outcome.outcome,
            "digests_equal": outcome.digests_equal,
            "seconds": {name: round(value, 3) for name, value in outcome.seconds.items()},
            "note": outcome.note,
            **self._facts,
        }
        self.rows.append(row)
        self._path.write_text("".join(["[\n", ",\n".join(map(json.dumps, self.rows)), "\n]\n"]))
        equal = {True: ", digests equal", False: ", DIGESTS DIFFER", None: ""}
        print(f"{case} ({way}): {outcome.outcome}{equal[outcome.digests_equal]}", flush=True)
        if outcome.seconds:
            print("    " + " ".join(f"{k} {v:.2f}" for k, v in outcome.seconds.items()), flush=True)
        if outcome.note:
            print(f"    {outcome.note[:PRINTED_ERROR]}", flush=True)


def _facts() -> dict[str, object]:
    version = _read("/proc/driver/nvidia/version")
    cards = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    models = [re.findall(r"Model:\s*(.*)", card.read_text()) for card in cards]
    found = re.search(r"\d+\.\d+(\.\d+)?", version)
    return {
        "driver": found[0] if found else None,
        "card": models[0][0] if models and models[0] else None,
        "cards": len(cards),
        "kernel": platform.release(),
        "commit": os.environ.get("GRIT_COMMIT") or _commit(),
    }


def _commit() -> str | None:
    argv = ["git", "-C", str(rootfs.REPO), "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _read(path: str) -> str:
    return Path(path).read_text() if Path(path).exists() else ""
