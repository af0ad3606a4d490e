"""systemd's own opinion of the units."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from grit_runtime.installation import services, wanted
from integration.requirements import do_without

FILES = Path(wanted.__file__).with_name("files")
SYSTEM = Path("/usr/lib/systemd/system")


def test_systemd_understands_the_units(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None or not SYSTEM.exists():
        do_without("systemd", "no systemd-analyze; Debian's package systemd has it")
    shutil.copytree(SYSTEM, tmp_path / SYSTEM.relative_to("/"), symlinks=True)
    (tmp_path / "lib").symlink_to("usr/lib")
    directory = tmp_path / services.UNIT_DIR[1:]
    directory.mkdir(parents=True)
    programs = tmp_path / "usr/local/bin"
    programs.mkdir()
    for name in ("grit", "containerd-shim-grit-v1"):
        (programs / name).write_text("#!/bin/sh\n")
        (programs / name).chmod(0o755)
    units = [path.name for path in FILES.glob("*.s*")]
    assert len(units) == 3
    for name in units:
        shutil.copy(FILES / name, directory)
    argv = ["systemd-analyze", "verify", f"--root={tmp_path}", *units]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.returncode == 0
