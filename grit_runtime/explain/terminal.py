"""A story on a terminal, as wide as that is."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from grit_runtime import reasons
from grit_runtime.errors import printable
from grit_runtime.model import outcomes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from grit_runtime.explain.story import Act, Container, Phase, Story
    from grit_runtime.model.outcomes import Outcome

_NAME_WIDTH = 24
_NUMBERS_WIDTH = 37
_LEAST_BAR = 10
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def show(story: Story) -> None:
    console = _console()
    _print(console, Text(printable(story.title), style="bold"))
    for name, value in story.facts:
        _print(console, _named(name, value), indent=2)
    for act in story.acts:
        _show_act(console, act)
    for container in story.containers:
        _show_container(console, container)


def show_reason(page: reasons.Reason, past: Iterable[Outcome]) -> None:
    """A reason's page, and where it was met on this node last."""
    console = _console()
    _print(console, Text(page.name, style="bold"))
    _print(console, _named("what has happened", page.happened), indent=2)
    _print(console, _named("what to do", page.remedy), indent=2)
    for one in past:
        _print(console, Text(outcomes.line(one._replace(warnings=()))), indent=2)


def _console() -> Console:
    return Console(highlight=False, emoji=False, markup=False)


def _show_act(console: Console, act: Act) -> None:
    style = "green" if act.is_good else "red"
    console.print()
    head = Text(f"{printable(act.time)} {printable(act.title)}", style=f"bold {style}")
    _print(console, head)
    for phase in act.phases:
        console.print(_phase_line(phase, act.seconds, console.width), soft_wrap=True)
    if act.phases:
        total = f"{'together':<{_NAME_WIDTH}} {act.seconds:>9.3f} s"
        console.print(Text(f"  {total}", style="dim"), soft_wrap=True)
    if act.reason:
        _print(console, Text(printable(act.reason), style=style), indent=2)
    for line in act.evidence:
        _print(console, Text(printable(line), style="dim"), indent=4)
    if page := reasons.find(act.error) if act.error else None:
        _print(console, Text(f"→ {page.remedy} (grit explain {page.name})"), indent=2)
    for warning in act.warnings:
        _print(console, Text(f"warning: {printable(warning)}", style="yellow"), indent=2)


def _phase_line(phase: Phase, total_s: float, width: int) -> Text:
    name = printable(f"{'✗ ' * phase.failed}{phase.name}")
    if len(name) > _NAME_WIDTH:
        name = f"{name[: _NAME_WIDTH - 1]}…"
    line = Text(f"  {name:<{_NAME_WIDTH}} {phase.seconds:>9.3f} s ")
    bar_width = width - 2 - _NAME_WIDTH - _NUMBERS_WIDTH
    if bar_width >= _LEAST_BAR:
        line.append(_bar(phase, total_s, bar_width), style="red" if phase.failed else "cyan")
        line.append(" ")
    line.append(f"{phase.size:>10} {phase.rate:>12}".rstrip())
    line.rstrip()
    return line


def _bar(phase: Phase, total_s: float, width: int) -> str:
    """Where the phase lies in the whole, to an eighth of a column."""
    scale = width * 8 / total_s if total_s else 0.0
    begin = min(int(phase.begin_s * scale), width * 8 - 1)
    eighths = max(1, min(int(phase.seconds * scale), width * 8 - begin))
    blanks = begin // 8
    full, rest = divmod(eighths, 8)
    return (" " * blanks + "█" * full + _EIGHTHS[rest].strip())[:width].ljust(width)


def _show_container(console: Console, container: Container) -> None:
    console.print()
    _print(console, _named(f"container {container.name}", container.text, style="bold"))
    for one in container.processes:
        _print(console, Text(printable(f"{one.pid} {one.text}")), indent=2 + 2 * one.depth)
    if container.mounts:
        _print(console, Text("mounts from outside"), indent=2)
        for mount in container.mounts:
            _print(console, Text(printable(mount)), indent=4)


def _named(name: str, value: str, *, style: str = "dim") -> Text:
    return Text.assemble((f"{printable(name)}: ", style), printable(value))


def _print(console: Console, text: Text, *, indent: int = 0) -> None:
    indent = min(indent, console.width // 2)
    for at, line in enumerate(text.wrap(console, max(1, console.width - indent - 2))):
        line.rstrip()
        console.print(Text(" " * (indent + (2 if at else 0))) + line, soft_wrap=True)
