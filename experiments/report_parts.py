"""Parts of a report: tables and cards as HTML. Everything that comes from a file is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from ..sim.lanes import PHASES, Chart
from .compare import ClassRow, Comparison
from .recorded import Recorded
from .report_svg import curve, seconds_text

__all__ = [
    "bytes_text",
    "classes_table",
    "definitions",
    "energy_card",
    "legend",
    "memory_card",
    "percent",
    "training_cards",
]

MOST_POINTS = 800
LARGE_ERROR = 0.25
LEAST_SHARE = 0.001


def percent(value: float | None, *, signed: bool = False) -> str:
    """A fraction in percent; a dash for None.

    >>> percent(0.123), percent(-0.02, signed=True), percent(None)
    ('12.3 %', '−2.0 %', '–')
    """
    if value is None:
        return "–"
    text = f"{100 * value:+.1f} %" if signed else f"{100 * value:.1f} %"
    return text.replace("-", "−")


def bytes_text(count: float) -> str:
    """Bytes with a unit.

    >>> bytes_text(1.5e9), bytes_text(2048)
    ('1.5 GB', '2.05 kB')
    """
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} bytes"


def definitions(rows: Iterable[tuple[str, str]]) -> str:
    """Names and what they mean."""
    return "<dl>" + "".join(f"<dt>{escape(a)}</dt><dd>{escape(b)}</dd>" for a, b in rows) + "</dl>"


def legend(charts: Sequence[Chart]) -> str:
    """The colours that the charts use."""
    seen = {phase for chart in charts for phase in chart.phases}
    items = [f'<span style="--c: var(--{p})">{p}</span>' for p in PHASES if p in seen]
    items.append('<span style="--c: var(--idle)">device waits</span>')
    return f'<div class="legend">{"".join(items)}</div>'


def classes_table(comparison: Comparison, refined: Comparison | None) -> str:
    """Predicted beside measured for every class of tasks, with the refined prediction where there is one."""
    later = {(r.kind, r.phase, r.instruction): r for r in refined.rows} if refined else {}
    heads = ["task", "share of step", "measured", "predicted", "error"]
    heads += ["after refining"] if refined else []
    shown, rest = [], 0
    for row in comparison.rows:
        if (row.share or 0.0) < LEAST_SHARE and not (row.error is not None and (row.share or 0.0) > 0):
            rest += 1
            continue
        shown.append(_class_row(row, later.get((row.kind, row.phase, row.instruction)), bool(refined)))
    heading = "".join(f"<th>{h}</th>" for h in heads)
    kind = "refined-table" if refined else "plain-table"
    body = f'<thead><tr>{heading}</tr></thead><tbody>{"".join(shown)}</tbody>'
    table = f'<div class="scroll"><table class="{kind}">{body}</table></div>'
    said = [f"Mean error of tasks, by their share of the step: {percent(comparison.task_error)}"]
    if refined:
        said[0] += f", after refining {percent(refined.task_error)}"
    said.append("what overlaps counts twice, so shares may add up to more than one")
    if rest:
        said.append(f"{rest} classes without a measurable time are left out")
    return table + f'<p class="note">{escape("; ".join(said))}.</p>'


def _class_row(row: ClassRow, later: ClassRow | None, refined: bool) -> str:
    spread = ""
    if row.count >= 3 and row.low_s is not None and row.high_s is not None:
        spread = f'<small class="spread">{seconds_text(row.low_s)} to {seconds_text(row.high_s)}</small>'
    share = min(row.share or 0.0, 1.0)
    meter = f'<span class="meter"><span style="width:{100 * share:.0f}%"></span></span>'
    cells = [
        f"{escape(row.instruction)}<small>{escape(row.kind)}, {escape(row.phase)}; {row.count:,} measured</small>",
        f"{percent(row.share)}{meter}",
        (seconds_text(row.measured_s) if row.measured_s is not None else "–") + spread,
        seconds_text(row.predicted_s) if row.predicted_s is not None else "–",
        _error(row.error),
    ]
    if refined:
        cells.append(_error(later.error if later else None))
    return "<tr>" + "".join(f"<td>{c}</td>" for c in cells) + "</tr>"


def _error(error: float | None) -> str:
    text = percent(error, signed=True)
    return f'<span class="off">{text}</span>' if error is not None and abs(error) > LARGE_ERROR else text


def training_cards(metrics: Sequence[Mapping[str, Any]], metric: str) -> str:
    """Loss and evaluations over steps. A step that was done again after a restart counts as it came out last."""
    losses: dict[int, float] = {}
    attempts: dict[int, int] = {}
    scores: dict[int, float] = {}
    for line in metrics:
        step = line.get("step")
        if not isinstance(step, int):
            continue
        attempts.setdefault(int(line.get("attempt") or 0), step)
        if isinstance(line.get("loss"), (int, float)):
            losses[step] = float(line["loss"])
        found = line.get("evaluation")
        if isinstance(found, Mapping) and isinstance(found.get("value"), (int, float)):
            metric, scores[step] = str(found.get("metric", metric)), float(found["value"])
    marks = [(step, f"attempt {attempt} began") for attempt, step in sorted(attempts.items()) if attempt]
    last = max([*losses, *scores], default=1)
    return _loss_card(losses, marks, last) + _score_card(scores, metric, last)


def _loss_card(losses: Mapping[int, float], marks: Sequence[tuple[float, str]], last: int) -> str:
    finite = [(float(s), v) for s, v in sorted(losses.items()) if v == v and abs(v) != float("inf")]
    if not finite:
        return '<div class="card"><h3>Loss</h3><p class="unavailable">unavailable: no step was reported</p></div>'
    points, every = _thinned(finite)
    low = min(0.0, min(v for _, v in points))
    drawn = curve(points, name="loss over steps", low=low, marks=marks, x_range=(0.0, float(last)))
    said = f"from {finite[0][1]:.4g} to {finite[-1][1]:.4g} in {len(finite):,} steps"
    if len(finite) < len(losses):
        said += f"; {len(losses) - len(finite)} steps had no finite loss"
    said += f"; means of {every} steps are drawn" if every > 1 else ""
    said += "; dashed: started again" if marks else ""
    return f'<div class="card"><h3>Loss <span class="faint">{escape(said)}</span></h3>{drawn}</div>'


def _thinned(points: Sequence[tuple[float, float]]) -> tuple[list[tuple[float, float]], int]:
    every = -(-len(points) // MOST_POINTS)
    if every == 1:
        return list(points), 1
    groups = [points[i : i + every] for i in range(0, len(points), every)]
    return [(g[0][0], sum(v for _, v in g) / len(g)) for g in groups], every


def _score_card(scores: Mapping[int, float], metric: str, last: int) -> str:
    if not scores:
        return (
            '<div class="card"><h3>Evaluation</h3><p class="unavailable">unavailable: the recipe keeps no data for an '
            "evaluation, or none came up</p></div>"
        )
    points = [(float(s), v) for s, v in sorted(scores.items())]
    value = points[-1][1]
    whole = metric == "accuracy"
    text = percent(value) if whole else f"{value:.4g}"
    drawn = curve(
        points,
        name=f"{metric} over steps",
        low=0.0 if whole else None,
        high=1.0 if whole else None,
        dots=len(points) <= 60,
        x_range=(0.0, float(last)),
    )
    heading = f'{escape(metric.capitalize())} <span class="faint">{text} at the end</span>'
    return f'<div class="card"><h3>{heading}</h3>{drawn}</div>'


def memory_card(run: Recorded) -> str:
    """Predicted peak memory by role and of what, beside the ranks' own peak."""
    roles = run.plan.prediction.get("memory") or []
    measured = run.about.get("peak_bytes") or {}
    rows = []
    for role in roles:
        of_what = sorted(role["by_content"].items(), key=lambda item: -item[1])
        parts = ", ".join(f"{name} {bytes_text(size)}" for name, size in of_what if size >= 0.01 * role["peak_bytes"])
        ranks = [r for r in range(run.program.mesh.size) if run.program.role_of(r).name == role["role"]]
        known = [float(measured[str(r)]) for r in ranks if str(r) in measured]
        beside = bytes_text(max(known)) if known else '<span class="unavailable">unavailable</span>'
        rows.append(
            f"<tr><td>{escape(role['role'])}<small>{escape(parts)}</small></td>"
            f"<td>{bytes_text(role['peak_bytes'])}</td><td>{beside}</td></tr>"
        )
    if not rows:
        return '<div class="card"><h3>Memory</h3><p class="unavailable">unavailable: the plan predicts none</p></div>'
    head = "<tr><th>role</th><th>predicted</th><th>measured</th></tr>"
    note = (
        "Predicted: the buffers of one rank at their peak. Measured: the whole process, with Python, JAX, compiled "
        "code and the data set."
        if measured
        else "Measured memory is unavailable: the ranks report it when a run ends well."
    )
    table = f'<div class="scroll"><table><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>'
    return f'<div class="card"><h3>Peak memory per rank</h3>{table}<p class="note">{escape(note)}</p></div>'


def energy_card(run: Recorded) -> str:
    """Energy, money and carbon: predicted for a step, measured for the run."""
    figures = run.plan.prediction.get("figures") or {}
    energy, cost, carbon = (figures.get(k) for k in ("energy_j", "cost_usd", "carbon_kg"))
    absent = _missing_power(run)
    why = f"unavailable: the profile of {run.plan.cluster} lacks {absent}" if absent else "unavailable"
    if energy:
        why = f"{energy['value']:.4g} J ({energy['low']:.3g} to {energy['high']:.3g} J)"
    rows = [("Predicted, one step", why)]
    measured = run.about.get("energy_j")
    if isinstance(measured, (int, float)):
        rows.append(("Measured, whole run", f"{measured:,.4g} J at the counters of devices and packages"))
    else:
        said = "unavailable: the run found no energy counter that it may read; `hpdlf doctor` says how to mend it"
        rows.append(("Measured, whole run", said))
    basis = f" ({figures.get('cost_basis')})" if figures.get("cost_basis") else ""
    no_price = f"unavailable: the profile of {run.plan.cluster} has no price"
    rows.append(("Money, one step", f"{cost['value']:.3g} USD{basis}" if cost else no_price))
    if carbon:
        rows.append(("CO₂, one step", f"{carbon['value'] * 1e3:.3g} g"))
    return f'<div class="card"><h3>Energy and money</h3>{definitions(rows)}</div>'


def _missing_power(run: Recorded) -> str:
    cluster = run.cluster
    needed = {
        "the device's idle power": cluster.device.idle_w,
        "the device's power limit": cluster.device.limit_w,
        "the host's power": cluster.node.host_active_w,
        "the building's overhead (PUE)": cluster.pue,
    }
    return ", ".join(name for name, value in needed.items() if value is None)
