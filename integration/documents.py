"""The project's documents, as far as tests hold them to what the code does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

REPO = Path(__file__).parent.parent
FILES = (
    *(REPO / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((REPO / "docs").glob("*.md")),
)

# A fenced block, perhaps in a list, and the comment on the line before it.
_BLOCK = re.compile(
    r"(?:^ *<!-- (?P<comment>[^\n]*) -->\n)?"
    r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$",
    flags=re.MULTILINE | re.DOTALL,
)
_REMARK = re.compile(r"(?:^|\s+)#.*$")


class Block(NamedTuple):
    """A fenced block of a document; *comment* is "" where none is before it."""

    file: Path
    comment: str
    language: str
    text: str

    @property
    def commands(self) -> list[str]:
        """Its lines as a shell would run them, without what is said about them."""
        joined = self.text.replace("\\\n", " ").splitlines()
        lines = (_REMARK.sub("", line).strip() for line in joined)
        return [line for line in lines if line]


def blocks() -> list[Block]:
    """All fenced blocks of all documents."""
    return [
        Block(file, match["comment"] or "", match["language"], match["text"])
        for file in FILES
        for match in _BLOCK.finditer(file.read_text())
    ]


def prose(file: Path) -> str:
    """The document without its fenced blocks."""
    return _BLOCK.sub("", file.read_text())


def documented(name: str) -> list[str]:
    """The commands of the block that has the comment ``run: NAME``."""
    (block,) = (block for block in blocks() if block.comment == f"run: {name}")
    return block.commands
