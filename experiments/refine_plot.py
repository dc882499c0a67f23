"""The picture of a refinement: step times with intervals, and every class's error before and after."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..sim.gantt import FAINT, RULE, TEXT, time_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .refine import Refinement

__all__ = ["draw"]

BEFORE, AFTER, MEASURED = "#c9a27e", "#3f7cb8", "#26282c"
MOST_CLASSES = 14
FURTHEST = 3.0


def draw(refinement: Refinement) -> Figure:
    """Two panels: how long a step takes, and which tasks are mispredicted."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    frame = refinement.to_frame()
    frame = frame[frame["error_after"].notna() & frame["share"].notna()].head(MOST_CLASSES)
    height = max(2.6, 1.5 + 0.3 * len(frame))
    figure = Figure(figsize=(10.5, height), dpi=150, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.35))
    figure.suptitle(
        f"{refinement.strategy} on {refinement.cluster}", x=0.01, ha="left", fontsize=11.5, weight="bold", color=TEXT
    )
    _step_times(left, refinement)
    rows = frame.to_dict("records")
    for y, row in enumerate(rows):
        _class_error(right, y, row["error_before"], row["error_after"])
    right.set_yticks(range(len(rows)), [f"{row['instruction']}  {row['share']:.0%}" for row in rows])
    right.invert_yaxis()
    right.axvline(0, color=RULE, linewidth=1, zorder=0)
    right.xaxis.set_major_formatter(lambda value, _: f"{value:+.0%}" if value else "0")
    right.set_title("predicted over measured, by task (its share of the step)", loc="left", fontsize=9, color=FAINT)
    _quiet(right)
    return figure


def _step_times(axes: Axes, refinement: Refinement) -> None:
    measured = refinement.measured
    longest_s = max(refinement.predicted_before.value, refinement.predicted_after.value, measured.median_s or 0.0)
    factor, unit = time_unit(longest_s)
    for y, interval, colour in ((0, refinement.predicted_before, BEFORE), (1, refinement.predicted_after, AFTER)):
        value = interval.value * factor
        around = [[value - interval.low * factor], [interval.high * factor - value]]
        axes.errorbar(value, y, xerr=around, fmt="o", color=colour, capsize=4, markersize=7, linewidth=2)
        _say(axes, value, y)
    if measured.median_s and measured.low_s is not None and measured.high_s is not None:
        value = measured.median_s * factor
        around = [[value - measured.low_s * factor], [measured.high_s * factor - value]]
        axes.errorbar(value, 2, xerr=around, fmt="D", color=MEASURED, capsize=4, markersize=6, linewidth=2)
        _say(axes, value, 2)
        axes.axvline(value, color=RULE, linewidth=1, zorder=0)
    axes.set_yticks([0, 1, 2], ["predicted before", "predicted after", "measured"])
    axes.set_ylim(2.5, -0.6)
    axes.set_xlim(left=0)
    axes.set_xlabel(unit, fontsize=8, color=FAINT, loc="right")
    axes.set_title("one step, with its interval", loc="left", fontsize=9, color=FAINT)
    _quiet(axes)


def _say(axes: Axes, value: float, y: int) -> None:
    axes.annotate(
        f"{value:.4g}", (value, y), xytext=(0, 8), textcoords="offset points", ha="center", fontsize=8.5, color=TEXT
    )


def _class_error(axes: Axes, y: int, before: float | None, after: float) -> None:
    shown = min(after, FURTHEST)
    if before is not None and before == before:  # pandas writes None as NaN
        axes.plot([min(before, FURTHEST), shown], [y, y], color=RULE, linewidth=2, zorder=1)
        axes.plot(min(before, FURTHEST), y, "o" if before <= FURTHEST else ">", color=BEFORE, markersize=6, zorder=2)
    axes.plot(shown, y, "o" if after <= FURTHEST else ">", color=AFTER, markersize=6, zorder=3)


def _quiet(axes: Axes) -> None:
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(RULE)
    axes.tick_params(colors=FAINT, labelsize=8, length=0)
    axes.tick_params(axis="y", labelcolor=TEXT)
    axes.grid(axis="x", color=RULE, linewidth=0.4)
    axes.set_axisbelow(True)
