"""A story as a page: whatever its texts are, it is well-formed, inert, and readable by all."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from grit_runtime.explain import page
from grit_runtime.explain.story import Act, Container, Phase, Process, Story

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

HOSTILE = "\x1b[31m</style><script>alert(1)</script>\"'>&<img src=x onerror=alert(2)>\n"
EMPTY = {"meta", "rect"}


def story(text: str) -> Story:
    phases = (
        Phase("freeze", 0.0, 0.25, None, failed=False),
        Phase(text, 0.25, 0.75, 1 << 30, failed=True),
    )
    acts = (
        Act(text, text, "failed", phases, text, "RestoreFailed", (text,), (text,)),
        Act("2026-11-30T04:57:12Z", "nothing", "sealed", (), "", "", (), ()),
    )
    processes = (Process(1, text, 0), Process(2, text, 1), Process(3, text, 0))
    return Story(text, ((text, text),), acts, (Container(text, text, processes, (text,)),))


class Parsed(HTMLParser):
    """The elements of a page, each with its attributes; every end tag ends what is open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag


def test_texts_of_a_checkpoint_do_nothing_in_a_page() -> None:
    written = page.page(story(HOSTILE))
    assert "\x1b" not in written
    found = Parsed(written).found
    assert {tag for tag, _ in found} & {"script", "img", "link", "iframe", "a"} == set()
    assert [name for _, attributes in found for name in attributes if name.startswith("on")] == []
    assert not re.search(r"(?:src|href)=|url\(|@import|https?:", written.replace("src=x", ""))
    assert "default-src &#x27;none&#x27;" in written or "default-src 'none'" in written


def test_a_page_can_be_read_by_its_structure() -> None:
    found = Parsed(page.page(story("text"))).found
    assert found[0] == ("html", {"lang": "en"})
    levels = [int(tag[1]) for tag, _ in found if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    ids = [one["id"] for _, one in found if "id" in one]
    assert len(set(ids)) == len(ids)
    assert {one["aria-labelledby"] for _, one in found if "aria-labelledby" in one} <= set(ids)
    tags = [tag for tag, _ in found]
    assert tags.count("table") == tags.count("caption") == 1
    assert all("scope" in one for tag, one in found if tag == "th")
    assert all(one.get("aria-hidden") == "true" for tag, one in found if tag == "svg")
    assert all(one.get("tabindex") == "0" for _, one in found if one.get("role") == "region")


def test_a_bar_lies_where_its_phase_lies_in_the_whole() -> None:
    bars = [one for tag, one in Parsed(page.page(story("text"))).found if tag == "rect"]
    assert [(bar["x"], bar["width"]) for bar in bars] == [("0.00", "25.00"), ("25.00", "75.00")]


@pytest.mark.parametrize("theme", [0, 1])
def test_colours_have_enough_contrast_in_both_themes(theme: int) -> None:
    style = page.page(story("text"))
    colours = re.findall(r"--(\w+): #(\w{6})", style)
    half = len(colours) // 2
    chosen = dict(colours[half * theme : half * (theme + 1)])
    for name in ("text", "soft", "bad", "good"):
        assert contrast(chosen[name], chosen["page"]) >= 4.5, name
    assert contrast(chosen["bar"], chosen["page"]) >= 3


def contrast(one: str, other: str) -> float:
    """WCAG 2.2's contrast ratio."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_processes_are_shown_below_their_parents_however_many_there_are() -> None:
    depths = [0, 1, 2, 1, 0, *range(1, 3000)]
    processes = tuple(Process(number, "sh", depth) for number, depth in enumerate(depths))
    written = page.page(story("text")._replace(containers=(Container("a", "", processes, ()),)))
    Parsed(written)
    assert written.count(" sh<") == len(depths)
    first = "<ul><li>0 sh<ul><li>1 sh<ul><li>2 sh</li></ul></li><li>3 sh</li></ul></li><li>4 sh"
    assert first in written
