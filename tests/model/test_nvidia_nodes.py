"""The NVIDIA driver's device nodes, by their names."""

from __future__ import annotations

import pytest

from grit_runtime.model import nvidia_nodes

NODES = (
    *("/dev/nvidia0", "/dev/nvidia17", "/dev/nvidiactl", "/dev/nvidia-uvm"),
    *("/dev/nvidia-uvm-tools", "/dev/nvidia-modeset", "/dev/nvidia-caps/nvidia-cap1"),
)
OTHERS = (
    *("/dev/nvidia", "/dev/nvidia0x", "/dev/nvidia0\n", "/dev/nvidia-caps", "/dev/nvme0"),
    *("/dev/nvidia-caps/", "/dev/nvidia-caps/a/b", "/dev/xnvidia0"),
)


@pytest.mark.parametrize("path", NODES)
def test_a_node_of_the_driver_is_one_wherever_it_lies(path: str) -> None:
    assert nvidia_nodes.is_node(path)
    assert not nvidia_nodes.is_node(f"/run{path}")
    assert nvidia_nodes.is_named_as_one(f"/run{path}")
    assert nvidia_nodes.is_named_as_one(path.removeprefix("/dev/"))


@pytest.mark.parametrize("path", OTHERS)
def test_what_is_called_otherwise_is_none(path: str) -> None:
    assert not nvidia_nodes.is_node(path)
    assert not nvidia_nodes.is_named_as_one(path)


def test_only_numbered_nodes_are_cards() -> None:
    assert [path for path in NODES if nvidia_nodes.is_card(path)] == list(NODES[:2])
