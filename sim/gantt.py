"""A Gantt picture of a trace with matplotlib.

One band per rank: computing in a tall lane, its transfers in thin ones below. Grey behind a tall lane is a device that
waits; the numbers are microbatches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..models.trace import Trace
from .lanes import Bar, Chart, Lane, lay_out

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "INK", "gantt", "time_unit"]

# Told apart by lightness too, so that the picture survives a grey printer and colour-blind eyes.
COLOURS = {
    "forward": "#4c8fcb",
    "backward": "#e8965a",
    "update": "#4f9d69",
    "communication": "#8a63a8",
    "host": "#b3aca2",
}
INK = {
    "forward": "#ffffff",
    "backward": "#3b1d06",
    "update": "#ffffff",
    "communication": "#ffffff",
    "host": "#2b2823",
}
IDLE, TEXT, FAINT, RULE = "#eeecea", "#26282c", "#7a7d83", "#d8d6d3"
TALL, THIN, GAP = 1.0, 0.3, 0.36
WIDTH_IN, LANE_IN = 11.0, 0.4


def gantt(
    trace: Trace,
    *,
    title: str = "",
    steps: Sequence[int] | None = None,
    multiplicity: Mapping[int, int] | None = None,
) -> Figure:
    """Draw `trace`.

    steps         their numbers; None: one steady step, that of median length
    multiplicity  {rank: ranks that it stands for}, where alike ranks were simulated once

    Where there are many ranks, one of each role is drawn, and the picture says so. Needs no display; save with
    ``figure.savefig(path)``.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    chart = lay_out(trace, chosen=steps, multiplicity=multiplicity)
    tops, height = _places(chart.lanes)
    inches = max(height * LANE_IN, 0.5) + 1.45
    figure = Figure(figsize=(WIDTH_IN, inches), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    left, right = 0.125, 0.985
    axes = figure.add_axes((left, 0.62 / inches, right - left, (inches - 1.45) / inches))
    factor, unit = time_unit(chart.span_s)
    axes.set_xlim(0, max(chart.span_s * factor, 1e-12))
    axes.set_ylim(height, 0)
    for lane, top in zip(chart.lanes, tops, strict=True):
        _draw_lane(axes, lane, top, chart, factor)
    _draw_frame(axes, unit)
    _draw_words(figure, chart, title, trace.source, factor, unit, left, inches)
    return figure


def time_unit(seconds: float) -> tuple[float, str]:
    """The unit in which a picture of this length reads best: (units in a second, name).

    >>> time_unit(0.25), time_unit(90.0)
    ((1000.0, 'ms'), (1.0, 's'))
    """
    if seconds >= 2.0:
        return 1.0, "s"
    return (1e3, "ms") if seconds >= 2e-3 else (1e6, "µs")


def _places(lanes: Sequence[Lane]) -> tuple[list[float], float]:
    """The top of every lane, and the height of all, in tall lanes."""
    tops, y = [], 0.0
    for i, lane in enumerate(lanes):
        if i:
            y += GAP if lane.main else 0.07
        tops.append(y)
        y += TALL if lane.main else THIN
    return tops, y + 0.12


def _draw_lane(axes: Axes, lane: Lane, top: float, chart: Chart, factor: float) -> None:
    from matplotlib.patches import Rectangle

    height = TALL if lane.main else THIN
    span = chart.span_s * factor
    if lane.main:
        axes.add_patch(Rectangle((0, top), span, height, facecolor=IDLE, edgecolor="none", zorder=1))
        name = f"rank {lane.rank}"
        axes.text(-0.008 * span, top + 0.36, name, ha="right", va="center", fontsize=9.5, color=TEXT, weight="bold")
        also = lane.role + (f", one of {lane.stands_for}" if lane.stands_for > 1 else "")
        axes.text(-0.008 * span, top + 0.74, also, ha="right", va="center", fontsize=7.5, color=FAINT)
    else:
        axes.plot([0, span], [top + height / 2] * 2, color=RULE, linewidth=0.5, zorder=1)
        name = lane.stream.replace(".", " to ").replace("_", " ")
        axes.text(-0.008 * span, top + height / 2, name, ha="right", va="center", fontsize=6.8, color=FAINT)
    for bar in lane.bars:
        _draw_bar(axes, bar, lane.main, top, height, chart.span_s, factor)


def _draw_bar(axes: Axes, bar: Bar, main: bool, top: float, height: float, span_s: float, factor: float) -> None:
    from matplotlib.patches import Rectangle

    x, width = bar.start_s * factor, (bar.end_s - bar.start_s) * factor
    share = (bar.end_s - bar.start_s) / span_s if span_s else 0.0
    alpha = 0.35 if bar.other_step else 1.0
    band = height / len(bar.phases)
    for i, phase in enumerate(bar.phases):
        axes.add_patch(
            Rectangle(
                (x, top + i * band), width, band, facecolor=COLOURS[phase], edgecolor="none", alpha=alpha, zorder=2
            )
        )
    # A white line tells neighbours apart, unless it would eat a narrow bar.
    line = 0.7 if share > 0.004 else 0.0
    axes.add_patch(Rectangle((x, top), width, height, facecolor="none", edgecolor="white", linewidth=line, zorder=3))
    if main and bar.label and share >= 0.008 * len(bar.label):
        axes.text(
            x + width / 2,
            top + band / 2,
            bar.label,
            ha="center",
            va="center_baseline",
            fontsize=8.0 if share >= 0.014 * len(bar.label) else 6.5,
            color=INK[bar.phases[0]],
            weight="bold",
            zorder=4,
            clip_on=True,
        )


def _draw_frame(axes: Axes, unit: str) -> None:
    axes.set_yticks([])
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(RULE)
    axes.tick_params(axis="x", colors=FAINT, labelsize=8, length=3, color=RULE)
    axes.set_xlabel(unit, fontsize=8, color=FAINT, loc="right", labelpad=1)
    axes.grid(axis="x", color=RULE, linewidth=0.4, zorder=0)
    axes.set_axisbelow(True)


def _draw_words(
    figure: Figure, chart: Chart, title: str, source: str, factor: float, unit: str, left: float, inches: float
) -> None:
    from matplotlib.patches import Patch

    if title:
        figure.text(left, 1 - 0.26 / inches, title, fontsize=12, weight="bold", color=TEXT, va="center")
    subtitle = f"{source}, {chart.what}: {chart.span_s * factor:.4g} {unit}"
    if chart.note:
        subtitle += f". {chart.note}"
    figure.text(left, 1 - (0.5 if title else 0.3) / inches, subtitle, fontsize=8.5, color=FAINT, va="center")
    handles: list[Any] = [Patch(facecolor=COLOURS[p], label=p) for p in chart.phases]
    handles.append(Patch(facecolor=IDLE, edgecolor=RULE, linewidth=0.5, label="device waits"))
    figure.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(left - 0.008, 0.0),
        ncols=len(handles),
        frameon=False,
        fontsize=8,
        labelcolor=TEXT,
        handlelength=1.1,
        handleheight=0.9,
        columnspacing=1.4,
        handletextpad=0.5,
    )
    if chart.remarks:
        words = "; ".join(chart.remarks)
        figure.text(0.985, 0.16 / inches, words, fontsize=7.5, color=FAINT, ha="right", va="center")
