"""Pictures of a report as inline SVG: timelines and curves that follow the page's width and its light or dark colours.

Positions are percentages, so that lines of text keep their size on a narrow screen. Colours are the page's CSS classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import ceil, floor, log10

from ..sim.gantt import time_unit
from ..sim.lanes import Bar, Chart, Lane

__all__ = ["curve", "seconds_text", "ticks", "timeline"]

Point = tuple[float, float]

# Bars narrower than this share of the width carry their number only on a wide page.
NARROW, NARROWEST = 0.035, 0.011


def seconds_text(seconds: float) -> str:
    """A time with its unit.

    >>> seconds_text(0.0123), seconds_text(75)
    ('12.3 ms', '75 s')
    """
    for size, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= size:
            value = seconds / size
            return f"{value:,.0f} {unit}" if value >= 1000 else f"{value:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from `low` to `high`, at most about `most`.

    >>> ticks(0, 12.3)
    [0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0]
    """
    if high <= low:
        return [low]
    raw = (high - low) / most
    power = 10.0 ** floor(log10(raw))
    size = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.8)
    first, last = ceil(low / size - 1e-9), floor(high / size + 1e-9)
    return [round(i * size, 12) for i in range(first, last + 1)]


def timeline(chart: Chart, scale_s: float) -> str:
    """The lanes of `chart` on a time axis of `scale_s` seconds."""
    rows = [_lane(lane, chart, scale_s) for lane in chart.lanes]
    factor, unit = time_unit(scale_s)
    marks = []
    for value in ticks(0.0, scale_s * factor):
        share = 100 * value / (scale_s * factor) if scale_s else 0.0
        anchor = "start" if share < 4 else "end" if share > 96 else "middle"
        marks.append(f'<text x="{share:.2f}%" y="11" text-anchor="{anchor}">{value:g}</text>')
    rows.append(
        f'<div class="lane axis"><span class="who">{escape(unit)}</span>'
        f'<svg height="14" aria-hidden="true">{"".join(marks)}</svg></div>'
    )
    return f'<div class="timeline">{"".join(rows)}</div>'


def _lane(lane: Lane, chart: Chart, scale_s: float) -> str:
    height = 30 if lane.main else 9
    parts = []
    if lane.main:
        width = 100 * chart.span_s / scale_s if scale_s else 0.0
        parts.append(f'<rect class="idle" width="{width:.3f}%" height="{height}"/>')
        also = f", one of {lane.stands_for}" if lane.stands_for > 1 else ""
        who = f"<b>rank {lane.rank}</b> <i>{escape(lane.role)}{also}</i>"
    else:
        who = f"<i>{escape(lane.stream.replace('.', ' to ').replace('_', ' '))}</i>"
    parts += [_bar(bar, lane.main, height, scale_s) for bar in lane.bars]
    kind = "lane main" if lane.main else "lane"
    return f'<div class="{kind}"><span class="who">{who}</span><svg height="{height}">{"".join(parts)}</svg></div>'


def _bar(bar: Bar, main: bool, height: int, scale_s: float) -> str:
    if not scale_s:
        return ""
    left, share = 100 * bar.start_s / scale_s, (bar.end_s - bar.start_s) / scale_s
    band = height / len(bar.phases)
    rects = "".join(
        f'<rect class="{escape(phase)}" x="{left:.3f}%" y="{i * band:g}" width="{100 * share:.3f}%" height="{band:g}"/>'
        for i, phase in enumerate(bar.phases)
    )
    edge = f'<rect class="edge" x="{left:.3f}%" width="{100 * share:.3f}%" height="{height}"/>' if share > 0.004 else ""
    label = ""
    if main and bar.label and share >= NARROWEST * len(bar.label):
        kind = f"n on-{bar.phases[0]}" + (" wide" if share < NARROW * len(bar.label) else "")
        y = band / 2 + 3.5
        label = f'<text class="{kind}" x="{left + 50 * share:.3f}%" y="{y:g}">{escape(bar.label)}</text>'
    title = f"<title>{escape(bar.task_id)}: {seconds_text(bar.end_s - bar.start_s)}</title>"
    kind = "other" if bar.other_step else "task"
    return f'<g class="{kind}">{title}{rects}{edge}{label}</g>'


def curve(
    points: Sequence[Point],
    *,
    name: str,
    height: int = 190,
    low: float | None = None,
    high: float | None = None,
    dots: bool = False,
    marks: Sequence[tuple[float, str]] = (),
    x_range: tuple[float, float] | None = None,
) -> str:
    """A curve of (step, value), with the axes' numbers; `marks` are named places on the step axis.

    dots   show every point, for few
    """
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    left, right = x_range or (min(xs), max(xs))
    bottom = min(ys) if low is None else low
    top = max(ys) if high is None else high
    right, top = (right if right > left else left + 1), (top if top > bottom else bottom + 1)

    def x(value: float) -> float:
        return 100 * (value - left) / (right - left)

    def y(value: float) -> float:
        return 100 * (1 - (value - bottom) / (top - bottom))

    lines, numbers = [], []
    for value in ticks(bottom, top, 4):
        lines.append(f'<line class="grid" x1="0" x2="100%" y1="{y(value):.2f}%" y2="{y(value):.2f}%"/>')
        numbers.append(f'<span style="top:{y(value):.2f}%">{value:g}</span>')
    path = " ".join(f"{x(a):.3f},{y(b):.3f}" for a, b in points)
    drawn = f'<svg class="fill" viewBox="0 0 100 100" preserveAspectRatio="none"><polyline points="{path}"/></svg>'
    if dots:
        drawn += "".join(
            f'<circle cx="{x(a):.3f}%" cy="{y(b):.3f}%" r="4"><title>step {a:g}: {b:.4g}</title></circle>'
            for a, b in points
        )
    for value, words in marks:
        place = f'x1="{x(value):.2f}%" x2="{x(value):.2f}%" y1="0" y2="100%"'
        lines.append(f'<line class="mark" {place}><title>{escape(words)}</title></line>')
    steps = "".join(
        f'<span style="left:{x(value):.2f}%">{value:g}</span>' for value in ticks(left, right, 5) if value == int(value)
    )
    return (
        f'<div class="curve" role="img" aria-label="{escape(name)}"><div class="ys" style="height:{height}px">'
        f'{"".join(numbers)}</div><svg class="area" height="{height}">{"".join(lines)}{drawn}</svg>'
        f'<div class="xs">{steps}</div></div>'
    )
