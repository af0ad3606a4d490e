"""The cases of one group on this machine, as `run` starts them.

usage: run GROUP OUT [--cpu]

GROUP is smoke. With --cpu, workloads compute on the processor: what needs no card is tried where
there is none. Writes into the directory OUT: GROUP.json, and logs.txt where something failed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from integration.gpu import driver
from integration.gpu.machine import Machine
from integration.gpu.smoke import Smoke


def main() -> None:
    arguments = [word for word in sys.argv[1:] if word != "--cpu"]
    if len(arguments) != 2 or arguments[0] not in GROUPS:
        sys.exit(f"{__doc__}")
    group, out = arguments[0], Path(arguments[1])
    on_gpu = "--cpu" not in sys.argv
    out.mkdir(parents=True, exist_ok=True)
    library_dir = driver.library_dir()
    with Machine(library_dirs=[library_dir] if library_dir else []) as machine:
        all_well = GROUPS[group](machine, out, on_gpu=on_gpu)
        if not all_well:
            (out / "logs.txt").write_text(machine.collect_logs())
    sys.exit(not all_well)


def smoke(machine: Machine, out: Path, *, on_gpu: bool) -> bool:
    checks = Smoke(machine, on_gpu=on_gpu)
    checks.run()
    (out / "smoke.json").write_text(json.dumps(checks.outcomes, indent=1))
    return not any(outcome["failure"] for outcome in checks.outcomes)


GROUPS = {"smoke": smoke}


if __name__ == "__main__":
    main()
