"""CDI's specs are those files that containerd reads as such."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from grit_runtime.doctor import cards
from grit_runtime.doctor.finding import BROKEN, OK, Finding
from tests.doctor import nodes

if TYPE_CHECKING:
    from pathlib import Path

GONE = "/usr/lib/libcuda.so.550.1"
SPEC = "kind: nvidia.com/gpu\ncontainerEdits:\n  mounts:\n  - hostPath: {path}\n"


def found(directory: Path) -> Finding:
    return cards.cdi(nodes.node(containerd=nodes.containerd(cdi_directories=(str(directory),))))


@pytest.fixture
def specs(tmp_path: Path) -> Path:
    """A directory with a spec in order, and the file that it names."""
    (tmp_path / "lib cuda.so").touch()
    (tmp_path / "nvidia.yaml").write_text(SPEC.format(path="/bin/sh"))
    return tmp_path


def test_a_spec_that_names_what_is_not_there_is_told(specs: Path) -> None:
    (specs / "other.json").write_text(
        json.dumps({"kind": "nvidia.com/gpu", "mounts": [{"hostPath": GONE}]})
    )
    told = found(specs)
    assert told.verdict == BROKEN
    assert told.evidence.startswith(f"{specs}/other.json names {GONE}, which is not there")


def test_other_files_are_none_of_cdi_s(specs: Path) -> None:
    text = SPEC.format(path=GONE)
    (specs / "nvidia.yaml.bak").write_text(text)
    (specs / "notes").write_text(text)
    (specs / "directory.yaml").mkdir()
    os.mkfifo(specs / "fifo.yaml")
    (specs / "link.json").symlink_to(specs / "none")
    assert found(specs) == (
        "",
        OK,
        f"{specs}/nvidia.yaml; all files that it names are there",
        *[""] * 2,
    )


@pytest.mark.parametrize(
    "text",
    [
        f"# not nvidia.com/gpu\nkind: acme.com/card\nmounts:\n- hostPath: {GONE}\n",
        json.dumps(
            {"kind": "acme.com/card", "note": "nvidia.com/", "mounts": [{"hostPath": GONE}]}
        ),
    ],
)
def test_specs_of_others_are_theirs(specs: Path, text: str) -> None:
    (specs / "acme.yaml").write_text(text)
    assert found(specs).evidence.startswith(f"{specs}/nvidia.yaml;")


@pytest.mark.parametrize(
    "line",
    [
        "- hostPath: '{path}'",
        '- hostPath: "{path}"',
        '- "hostPath": "{path}"',
        "- hostPath: {path}",
        "- hostPath: {path} # the driver's",
        "- {{hostPath: {path}, containerPath: /lib}}",
        "- {{containerPath: /lib, hostPath: {path}}}",
        f"# - hostPath: {GONE}",
    ],
)
@pytest.mark.parametrize("head", ["kind: nvidia.com/gpu", "\"kind\": 'nvidia.com/gpu'"])
def test_paths_are_read_as_yaml_has_them(specs: Path, line: str, head: str) -> None:
    line = line.format(path=specs / "lib cuda.so")
    (specs / "nvidia.yaml").write_text(f"{head}\nmounts:\n{line}\n- hostPath: /bin/sh\n")
    assert found(specs).verdict == OK
