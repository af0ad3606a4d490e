"""What tests need besides Python, and what becomes of them without it."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def is_required(what: str) -> bool:
    """Whether $GRIT_REQUIRE, a list with commas, has *what*: its lack is then a failure."""
    return what in os.environ.get("GRIT_REQUIRE", "").split(",")


def do_without(what: str, reason: str) -> NoReturn:
    """Skip, or fail where *what* is required."""
    if is_required(what):
        pytest.fail(reason)
    pytest.skip(reason)
