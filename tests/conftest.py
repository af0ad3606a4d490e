"""What tests of more than one folder stand on."""

from __future__ import annotations

import pytest

from grit_runtime.host import journal, records
from grit_runtime.pod import held_pods
from tests.plain_node import Node

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.setattr(journal, "PODS_DIR", str(tmp_path / "pods"))
    monkeypatch.setattr(records, "DIR", str(tmp_path / "records"))
    monkeypatch.setattr(held_pods, "DIR", str(tmp_path / "held"))
    return Node(tmp_path)
