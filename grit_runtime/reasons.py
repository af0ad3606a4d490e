"""The pages of docs/errors.md, which the package carries: what each reason means, what to do."""

from __future__ import annotations

import os
import re

from grit_runtime.startup.named import NamedTuple

_PATH = f"{os.path.dirname(__file__)}/errors.md"
_HEAD = "| reason |"
_LINK = re.compile(r"\[([^\]]+)\]\(([^)]+)\)")


class Reason(NamedTuple):
    name: str
    happened: str
    remedy: str


def find(name: str) -> Reason | None:
    """The page of a reason, whatever its letters' case; None if there is none."""
    with open(_PATH, encoding="utf-8") as file:
        lines = iter(file)
        for line in lines:
            if line.startswith(_HEAD):
                next(lines)  # the rule below it
                break
        for line in lines:
            if not line.startswith("|"):
                break
            cells = [_plain(cell.strip()) for cell in line.strip().strip("|").split("|")]
            if cells[0].lower() == name.lower():
                return Reason(*cells)
    return None


def _plain(markdown: str) -> str:
    """Text for a terminal; a link becomes the place that it leads to."""
    text = _LINK.sub(lambda link: f"{link[1]} ({_place(link[2])})", markdown)
    return text.replace("`", "")


def _place(target: str) -> str:
    return target if "://" in target else os.path.normpath(f"docs/{target}")
