"""Stacked bars of what time goes to, in the colours of the Gantt charts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .activity import GROUPS, Cause
from .gantt import COLOURS, FAINT, RULE, TEXT, time_unit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .power_trace import PowerTrace

__all__ = ["power", "stacked"]

# From dark to light within a group, so that neighbours can be told apart.
_SHADES: Mapping[str, tuple[str, ...]] = {
    "forward": (COLOURS["forward"],),
    "backward": (COLOURS["backward"],),
    "recompute": ("#c7b04a",),
    "update": (COLOURS["update"],),
    "slowed by communication": ("#b5543c",),
    "computing": ("#7fa7c9", "#c98f7f", "#9fb8a6"),
    "communication": ("#8a63a8", "#b493c9", "#5e3f78", "#cdb6da", "#a04f92", "#e0d3e8"),
    "host": ("#b3aca2", "#8e877c"),
    "waiting": ("#d9d6d2", "#c6c2bd", "#e6e4e1", "#b8b4ae"),
    "idle": ("#f0eeec",),
}
_OTHERS = ("#4c8fcb", "#e8965a", "#4f9d69", "#8a63a8", "#b3aca2", "#c7b04a")
SMALL = 0.004  # of the longest bar: parts that are smaller everywhere share one entry
WIDTH_IN, BAR_IN = 9.0, 0.5


def stacked(bars: Mapping[str, Mapping[Cause, float] | Mapping[str, float]], *, title: str) -> Figure:
    """One horizontal bar for each entry, its parts in seconds one after the other, with a legend. Needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    longest = max((sum(parts.values()) for parts in bars.values()), default=0.0)
    factor, unit = time_unit(longest)
    causes: dict[Cause | str, float] = {}
    for parts in bars.values():
        for cause, seconds in parts.items():
            causes[cause] = max(causes.get(cause, 0.0), seconds)
    shown = [cause for cause, most in causes.items() if most >= SMALL * longest]
    shown.sort(key=lambda c: GROUPS.index(c.group) if isinstance(c, Cause) else 0)
    colours = _colours(shown)
    figure = Figure(figsize=(WIDTH_IN, 1.5 + BAR_IN * len(bars) + 0.2 * ((len(shown) + 2) // 3)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    labels = [_shortened(name) for name in bars]
    left = [0.0] * len(bars)
    for cause in shown:
        widths = [dict[Cause | str, float](parts.items()).get(cause, 0.0) * factor for parts in bars.values()]
        axes.barh(range(len(bars)), widths, left=left, color=colours[cause], height=0.62, label=_name(cause))
        for y, (start, width) in enumerate(zip(left, widths, strict=True)):
            if width > 0.05 * longest * factor:
                axes.text(start + width / 2, y, f"{width:.3g}", ha="center", va="center", fontsize=8, color=TEXT)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(bars)), labels, fontsize=9, color=TEXT)
    axes.invert_yaxis()
    axes.set_xlabel(unit, color=FAINT)
    axes.tick_params(colors=FAINT, length=0)
    axes.tick_params(axis="y", labelcolor=TEXT)
    axes.set_xlim(0.0, longest * factor * 1.01 or 1.0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(RULE)
    axes.set_title(_shortened(title, 100), loc="left", fontsize=10, color=TEXT)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False, labelcolor=TEXT)
    return figure


MOST_ROLES = 6


def power(trace: PowerTrace) -> Figure:
    """Watts over time: above, a device of each role (of the first, middle and last where there are many), below, the mean node."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    factor, unit = time_unit(float(trace.edges_s[-1]))
    roles = list(trace.device_w)
    if len(roles) > MOST_ROLES:
        roles = [roles[0], roles[len(roles) // 2], roles[-1]]
    figure = Figure(figsize=(WIDTH_IN, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1))
    for role, colour in zip(roles, _OTHERS, strict=False):
        above.stairs(trace.device_w[role], trace.edges_s * factor, color=colour, label=role, linewidth=1.0)
    below.stairs(trace.node_w, trace.edges_s * factor, color=COLOURS["forward"], fill=True, alpha=0.35)
    below.axhline(trace.power.ac_w.value, color=TEXT, linewidth=0.8, linestyle="--")
    below.text(1.0, trace.power.ac_w.value, f" mean {trace.power.ac_w.value:,.0f} W", transform=below.get_yaxis_transform(),
               fontsize=8, color=TEXT, va="center")  # fmt: skip
    for axes, what in ((above, "W a device"), (below, "W a node")):
        axes.set_ylim(bottom=0.0)
        axes.set_xlim(0.0, float(trace.edges_s[-1]) * factor)
        axes.set_ylabel(what, color=FAINT)
        axes.tick_params(colors=FAINT, length=0)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color(RULE)
        axes.grid(axis="y", color=RULE, linewidth=0.6)
    if len(roles) > 1:
        above.legend(fontsize=8, frameon=False, ncols=len(roles), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    below.set_xlabel(unit, color=FAINT)
    figure.suptitle(_shortened(trace.title, 100), x=0.01, ha="left", fontsize=10, color=TEXT)
    return figure


def _colours(causes: list[Cause | str]) -> dict[Cause | str, str]:
    used: dict[str, int] = {}
    found: dict[Cause | str, str] = {}
    for cause in causes:
        if isinstance(cause, Cause):
            group = cause.name if cause.name in _SHADES else cause.group
            shades = _SHADES[group]
        else:
            group, shades = "", _OTHERS
        found[cause] = shades[used.get(group, 0) % len(shades)]
        used[group] = used.get(group, 0) + 1
    return found


def _name(cause: Cause | str) -> str:
    if isinstance(cause, Cause):
        return f"waiting {cause.name}" if cause.group == "waiting" else cause.name
    return cause


def _shortened(name: str, most: int = 44) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(name, most)[:3])
