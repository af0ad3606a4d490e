"""A story as one page of HTML, without scripts and without anything from elsewhere.

The bars are for the eye alone; what they show is in the cells beside them, as numbers.
"""

from __future__ import annotations

import html

from grit_runtime import reasons
from grit_runtime.errors import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.explain.story import Act, Container, Phase, Process, Story

_THINNEST = 0.3  # of 100
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"

_STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --page: #ffffff; --soft: #57606a;
  --line: #d0d7de; --bar: #0969da; --bad: #b3261e; --good: #1a7f37; }
@media (prefers-color-scheme: dark) { :root { --text: #e6edf3; --page: #0d1117; --soft: #9198a1;
  --line: #30363d; --bar: #58a6ff; --bad: #ff8182; --good: #56d364; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem; max-width: 72rem; color: var(--text);
  background: var(--page); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; }
caption { text-align: left; color: var(--soft); padding: .3rem 0; }
th { min-width: 9rem; } th.number { min-width: 0; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: left; }
td.number, th.number { text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
td.bar { width: 40%; min-width: 8rem; } svg { display: block; width: 100%; height: 1rem; }
rect { fill: var(--bar); } .failed rect { fill: var(--bad); }
.good { color: var(--good); } .bad, .failed th { color: var(--bad); }
pre { white-space: pre-wrap; border-left: 3px solid var(--line); padding-left: .8rem; }
:focus-visible { outline: 3px solid var(--bar); outline-offset: 2px; }
"""


def page(story: Story) -> str:
    facts = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in story.facts)
    acts = "".join(_act(number, act) for number, act in enumerate(story.acts, 1))
    containers = "".join(map(_container, story.containers))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(story.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{_text(story.title)}</h1>\n<dl>{facts}</dl>\n{acts}{containers}"
        "</main>\n</body>\n</html>\n"
    )


def _act(number: int, act: Act) -> str:
    kind = "good" if act.is_good else "bad"
    parts = [f'<section aria-labelledby="act-{number}">\n']
    parts.append(
        f'<h2 id="act-{number}"><time datetime="{_text(act.time)}">{_text(act.time)}</time> '
        f'<span class="{kind}">{_text(act.title)}</span></h2>\n'
    )
    if act.phases:
        parts.append(_table(number, act))
    if act.reason:
        parts.append(f'<p class="{kind}">{_text(act.reason)}</p>\n')
    if page := reasons.find(act.error) if act.error else None:
        parts.append(f"<p><strong>{_text(page.name)}</strong>: {_text(page.remedy)}</p>\n")
    if act.evidence:
        lines = "\n".join(map(_text, act.evidence))
        parts.append(f"<details open><summary>Logs</summary><pre>{lines}</pre></details>\n")
    parts.append(_list("Warnings", act.warnings))
    return "".join(parts) + "</section>\n"


def _table(number: int, act: Act) -> str:
    rows = "".join(_row(phase, act.seconds) for phase in act.phases)
    heads = "".join(
        f'<th scope="col" class="number">{name}</th>'
        for name in ("begins", "takes", "size", "rate")
    )
    return (
        f'<div class="wide" role="region" tabindex="0" aria-labelledby="phases-{number}">\n'
        f'<table><caption id="phases-{number}">Phases, {act.seconds:.3f} s together</caption>\n'
        f'<thead><tr><th scope="col">phase</th>{heads}<td></td></tr></thead>\n'
        f"<tbody>\n{rows}</tbody></table>\n</div>\n"
    )


def _row(phase: Phase, total_s: float) -> str:
    scale = 100 / total_s if total_s else 0.0
    width = max(_THINNEST, phase.seconds * scale)
    begin = min(phase.begin_s * scale, 100 - width)
    bar = (
        '<svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect x="{begin:.2f}" y="1" width="{width:.2f}" height="8"/></svg>'
    )
    numbers = (f"{phase.begin_s:.3f} s", f"{phase.seconds:.3f} s", phase.size, phase.rate)
    cells = "".join(f'<td class="number">{number}</td>' for number in numbers)
    name = f"{_text(phase.name)}{', failed' * phase.failed}"
    kind = ' class="failed"' if phase.failed else ""
    return f'<tr{kind}><th scope="row">{name}</th>{cells}<td class="bar">{bar}</td></tr>\n'


def _container(container: Container) -> str:
    return (
        f"<section>\n<h2>Container {_text(container.name)}</h2>\n<p>{_text(container.text)}</p>\n"
        + ("<h3>Processes</h3>\n" if container.processes else "")
        + _processes(container.processes)
        + _list("Mounts from outside", container.mounts)
        + "</section>\n"
    )


def _processes(processes: tuple[Process, ...]) -> str:
    parts, depth = [], -1
    for one in processes:
        ended = "</li>" + "</ul></li>" * (depth - one.depth)
        parts.append("<ul>" if one.depth > depth else ended)
        parts.append(f"<li>{one.pid} {_text(one.text)}")
        depth = one.depth
    return "".join(parts) + "</li></ul>" * (depth + 1) + "\n" * bool(processes)


def _list(title: str, lines: tuple[str, ...]) -> str:
    if not lines:
        return ""
    items = "".join(f"<li>{_text(line)}</li>" for line in lines)
    return f"<h3>{title}</h3>\n<ul>{items}</ul>\n"


def _text(value: str) -> str:
    return html.escape(printable(value))
