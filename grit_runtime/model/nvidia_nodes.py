"""Recognizing the device nodes of the NVIDIA driver. Pure."""

from __future__ import annotations

import re

_NAME = r"nvidia(?:\d+|ctl|-uvm|-uvm-tools|-modeset|-caps/[^/]+)"
_NODE = re.compile(f"/dev/{_NAME}")
_CARD = re.compile(r"/dev/nvidia\d+")
_ANYWHERE = re.compile(f"(?:.*/)?{_NAME}")


def is_node(path: str) -> bool:
    return _NODE.fullmatch(path) is not None


def is_card(path: str) -> bool:
    """Whether it is a GPU's node; the number in its name need not be the card's, its minor is."""
    return _CARD.fullmatch(path) is not None


def is_named_as_one(path: str) -> bool:
    """Whether a file in any directory has the name of such a node."""
    return _ANYWHERE.fullmatch(path) is not None
