"""The plot of docs/fleet.md: which part of the pods arrives, by how many nodes have to go."""

from __future__ import annotations

import math

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Line = Sequence[tuple[int, float]]

_WIDTH, _HEIGHT = 880, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 250, 24, 56
_COLOURS = ("#0969da", "#9a6700", "#bf8700", "#1a7f37", "#2da44e")
_DASHED = "deltas"
_TOLD = (10, 20, 50, 100, 200, 500, 1000)
_STYLE = """\
  <style>
    text { font: 14px system-ui, sans-serif; fill: #1f2328; }
    .page { fill: #ffffff; }
    .small { font-size: 12px; fill: #59636e; }
    .grid { stroke: #d1d9e0; }
    .line { fill: none; stroke-width: 2; }
    .dashed { stroke-dasharray: 6 4; }
    @media (prefers-color-scheme: dark) {
      .page { fill: #0d1117; }
      text { fill: #f0f6fc; }
      .small { fill: #9198a1; }
      .grid { stroke: #3d444d; }
    }
  </style>
"""


def drawn(lines: Mapping[str, Line], nodes: int) -> str:
    """An SVG of the *lines*: so many of *nodes* are told, and such a part of their pods arrives."""
    page = f'<rect class="page" width="{_WIDTH}" height="{_HEIGHT}" rx="8"/>'
    words = f'x="{_x(0.5)}" y="{_HEIGHT - 12}" text-anchor="middle"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">\n',
        f"  <title>Pods verified in time, by how many of {nodes} nodes go</title>\n",
        f"{_STYLE}  {page}\n",
        *(_across(share) for share in (0, 0.25, 0.5, 0.75, 1)),
        *(_below(told, nodes) for told in _TOLD),
        f'  <text class="small" {words}>nodes told, of {nodes}: the rest are targets</text>\n',
        *(_line(number, name, line, nodes) for number, (name, line) in enumerate(lines.items())),
        "</svg>\n",
    ]
    return "".join(parts)


def _part(told: int, nodes: int) -> float:
    """How far along: twice as many are everywhere as far apart."""
    return math.log(told / _TOLD[0], nodes / _TOLD[0])


def _x(part: float) -> float:
    return round(_LEFT + part * (_WIDTH - _LEFT - _RIGHT), 1)


def _y(part: float) -> float:
    return round(_HEIGHT - _BOTTOM - part * (_HEIGHT - _TOP - _BOTTOM), 1)


def _across(share: float) -> str:
    y = _y(share)
    return (
        f'  <line class="grid" x1="{_x(0)}" y1="{y}" x2="{_x(1)}" y2="{y}"/>\n'
        f'  <text class="small" x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{share:.0%}</text>\n'
    )


def _below(told: int, nodes: int) -> str:
    x, y = _x(_part(told, nodes)), _y(0) + 18
    return f'  <text class="small" x="{x}" y="{y}" text-anchor="middle">{told}</text>\n'


def _line(number: int, name: str, line: Line, nodes: int) -> str:
    points = " ".join(f"{_x(_part(told, nodes))},{_y(share)}" for told, share in line)
    look = f'class="line{" dashed" if _DASHED in name else ""}" stroke="{_COLOURS[number]}"'
    x, y = _WIDTH - _RIGHT + 20, _TOP + 16 + 26 * number
    return (
        f'  <polyline {look} points="{points}"/>\n'
        f'  <line {look} x1="{x}" y1="{y - 5}" x2="{x + 30}" y2="{y - 5}"/>\n'
        f'  <text x="{x + 38}" y="{y}">{name}</text>\n'
    )
