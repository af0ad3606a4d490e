"""What containerd runs as grit has to be grit's, and to answer."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from google import protobuf

from grit_runtime.doctor import programs
from grit_runtime.doctor.finding import ABSENT, BROKEN, OK, Finding
from grit_runtime.installation import wanted
from tests.doctor import nodes

PACKAGES = {
    "grit_runtime": Path(programs.__file__).parents[1],
    "google": Path(protobuf.__file__).parents[1],
}
RUNC = "#!/bin/sh\necho usage\n"
SHIM = "containerd-shim-grit-v1"


def examined(path: Path) -> Finding:
    """What is found of a launcher or a shim that containerd's handler calls."""
    is_shim = path.name == SHIM
    key = "runtimePath" if is_shim else "options"
    handler = {key: str(path) if is_shim else {"BinaryName": str(path)}}
    node = nodes.node(containerd=nodes.containerd(handler=handler))
    return programs.shim(node) if is_shim else programs.launcher(node)


@pytest.fixture(params=["grit-runtime", SHIM])
def program(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    runc = tmp_path / "runc"
    runc.write_text(RUNC)
    runc.chmod(0o755)
    packages = tmp_path / "packages"
    packages.mkdir()
    for name, place in PACKAGES.items():
        (packages / name).symlink_to(place)
    path = tmp_path / str(request.param)
    paths = {"python": sys.executable, "packages": str(packages)}
    if path.name != SHIM:
        paths["runc"] = str(runc)
    path.write_bytes(wanted.launcher(path.name, **paths).content)
    path.chmod(0o755)
    return path


def test_one_that_answers_is_in_order(program: Path) -> None:
    assert examined(program).verdict == OK


@pytest.mark.parametrize("text", ["", "#!/bin/sh\nexit 0\n"])
def test_one_that_is_not_grit_s_is_broken(program: Path, text: str) -> None:
    program.write_text(text)
    found = examined(program)
    assert found.verdict == BROKEN
    assert found.evidence.startswith(f"{program} is not grit's: ")
    assert "grit install" in found.remedy


def test_one_that_was_cut_is_broken(program: Path) -> None:
    lines = program.read_text().splitlines()
    last = max(at for at, line in enumerate(lines) if line.startswith(("packages=", "runc=")))
    program.write_text("\n".join(lines[: last + 1]))
    found = examined(program)
    assert found.verdict == BROKEN
    assert found.evidence.startswith(f"{program} prints nothing for ")


def test_one_without_its_packages_is_broken(program: Path) -> None:
    (program.parent / "packages/grit_runtime").unlink()
    found = examined(program)
    assert found.verdict == BROKEN
    assert found.evidence.startswith(f"{program} does not work: ")


def test_a_node_without_grit_s_shim_misses_none() -> None:
    assert programs.shim(nodes.node()).verdict == ABSENT
