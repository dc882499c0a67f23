"""The picture and the table of a what-if."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..sim import Interval
from ..sim.gantt import FAINT, RULE, TEXT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

    from .whatif import Outcome, WhatIf

__all__ = ["draw", "table"]

SERIES = ("#3f7cb8", "#d9803f", "#4f9d69", "#8a63a8", "#b3473f", "#6b6f78")
MARKERS = ("o", "s", "D", "^", "v", "P")

Value = Callable[["Outcome"], Interval | None]


def draw(found: WhatIf) -> Figure:
    """Four panels over the number of devices."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.6), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 2, sharex=True)
    figure.subplots_adjust(left=0.07, right=0.985, top=0.845, bottom=0.075, hspace=0.24, wspace=0.17)
    title = f"{found.model}, {found.batch_per_device} samples per device and step"
    figure.text(0.07, 0.965, title, fontsize=12.5, weight="bold", color=TEXT, va="center")
    said = "the fastest of data parallel and data × pipeline (2, 4 stages) that fits; bands: nine cases in ten"
    figure.text(0.07, 0.933, said, fontsize=8.5, color=FAINT, va="center")

    def speed(o: Outcome) -> Interval | None:
        return o.simulation.figures.samples_per_s if o.simulation else None

    wanted: tuple[tuple[Axes, str, Value, bool], ...] = (
        (panels[0][0], "samples per second", speed, True),
        (panels[0][1], "efficiency: speed over that of as many single devices", lambda o: o.efficiency, False),
        (panels[1][0], "energy per sample, J", lambda o: o.energy_j_per_sample, True),
        (panels[1][1], "cost of a million samples, USD", lambda o: o.cost_usd_per_million_samples, True),
    )
    for axes, words, value, logarithmic in wanted:
        _panel(axes, found, words, value, logarithmic)
    panels[0][1].set_ylim(0, 1.08)
    panels[0][1].yaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
    for axes in panels[1]:
        axes.set_xlabel("devices", fontsize=8.5, color=FAINT, loc="right")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="upper left",
        bbox_to_anchor=(0.062, 0.925),
        ncols=len(labels) or 1,
        frameon=False,
        fontsize=9,
        labelcolor=TEXT,
        handlelength=1.6,
    )
    return figure


def _panel(axes: Axes, found: WhatIf, words: str, value: Value, logarithmic: bool) -> None:
    from matplotlib.ticker import LogLocator

    axes.set_title(words, loc="left", fontsize=9.5, color=TEXT)
    unknown = []
    for i, cluster in enumerate(found.clusters):
        points = [(o.devices, v) for o in found.of(cluster) if (v := value(o)) is not None]
        colour, marker = SERIES[i % len(SERIES)], MARKERS[i % len(MARKERS)]
        if not points:
            unknown.append(cluster)
            continue
        xs = [d for d, _ in points]
        axes.fill_between(xs, [v.low for _, v in points], [v.high for _, v in points], color=colour, alpha=0.13, lw=0)
        ys = [v.value for _, v in points]
        axes.plot(xs, ys, label=cluster, color=colour, marker=marker, markersize=5, linewidth=1.8)
    if unknown:
        note = f"unavailable for {', '.join(unknown)}: the profile lacks what it needs"
        axes.text(0.02, 0.03, note, transform=axes.transAxes, fontsize=8, color=FAINT, style="italic")
    axes.set_xscale("log", base=2)
    counts = sorted({o.devices for o in found.outcomes})
    axes.set_xticks(counts, [str(c) for c in counts])
    if logarithmic and len(unknown) < len(found.clusters):
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        subs = (1.0, 2.0, 5.0) if high < 200 * low else (1.0,)
        axes.yaxis.set_major_locator(LogLocator(subs=subs))
        axes.yaxis.set_major_formatter(lambda v, _: f"{v:,.0f}" if v >= 1 else f"{v:g}")
    axes.minorticks_off()
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(RULE)
    axes.tick_params(colors=FAINT, labelsize=8, length=0)
    axes.grid(color=RULE, linewidth=0.4)
    axes.set_axisbelow(True)


def table(found: WhatIf) -> Table:
    """One row a cluster and number of devices."""
    from rich import box
    from rich.table import Table

    shown = Table(
        title=f"{found.model}, {found.batch_per_device} samples per device and step",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    shown.add_column("cluster", overflow="fold", min_width=8)
    shown.add_column("devices", justify="right", no_wrap=True)
    shown.add_column("best", no_wrap=True)
    for name in ("step (9 of 10 cases)", "samples/s", "scaling", "J/sample", "$/M", "GB"):
        shown.add_column(name, justify="right", no_wrap=True)
    for cluster in found.clusters:
        for o in (o for o in found.outcomes if o.cluster == cluster):
            shown.add_row(*_cells(o))
        shown.add_section()
    refused = "".join(f"\n{o.cluster}, {o.devices} devices: {o.refused}" for o in found.outcomes if o.refused)
    shown.caption_justify = "left"
    shown.caption = (
        "best: d data, p pipeline, m microbatches, t tensor, c context; scaling: speed over that of as many single devices; "
        "$/M: rent for a million samples; GB: per device; "
        f"–: unavailable, the profile lacks what it needs{refused}"
    )
    return shown


def _cells(o: Outcome) -> list[str]:
    if o.simulation is None or o.strategy is None:
        return [o.cluster, str(o.devices), "none", *["–"] * 6]
    f = o.simulation.figures
    strategy = f"d{o.strategy.data}"
    if o.strategy.pipeline > 1:
        strategy += f" p{o.strategy.pipeline} m{o.strategy.microbatches}"
    for axis in ("tensor", "context"):
        if (size := getattr(o.strategy, axis)) > 1:
            strategy += f" {axis[0]}{size}"
    step = f.step_s
    return [
        o.cluster,
        str(o.devices),
        strategy,
        f"{step.value * 1e3:,.1f} ms ({step.low * 1e3:,.0f} to {step.high * 1e3:,.0f})",
        f"{f.samples_per_s.value:,.0f}",
        f"{o.efficiency.value:.0%}" if o.efficiency else "–",
        f"{e.value:.3g}" if (e := o.energy_j_per_sample) else "–",
        f"{c.value:.3g}" if (c := o.cost_usd_per_million_samples) else "–",
        f"{o.simulation.peak_bytes / 1e9:.3g}",
    ]
