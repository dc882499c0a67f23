"""One self-contained page about a run: predicted beside measured, errors by task, training, memory, energy."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from ..errors import DataError
from ..models.trace import Trace
from ..sim.lanes import Chart, lay_out
from .compare import Comparison, StepTimes, compare, step_times, violations
from .recorded import Recorded, read_run
from .report_parts import (
    bytes_text,
    classes_table,
    definitions,
    energy_card,
    legend,
    memory_card,
    percent,
    training_cards,
)
from .report_svg import seconds_text, timeline

__all__ = ["report"]

TEMPLATE = Path(__file__).with_name("report.html")


def report(run_folder: str | Path, out: str | Path) -> Path:
    """Write the report of a run to the HTML file `out`, which opens from disk without a network. Returns its path.

    Raises:
        RunError: the folder holds no run.
        DataError: a file of the run is damaged, or `out` cannot be written.
    """
    run, target = read_run(run_folder), Path(out)
    page = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(_content(run))
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(page, encoding="utf-8")
        part.replace(target)
    except OSError as error:
        part.unlink(missing_ok=True)
        mend = "Choose another place with `-o FILE`."
        raise DataError(f"{target}: the report cannot be written: {error.strerror}. {mend}") from None
    return target


def _content(run: Recorded) -> dict[str, str]:
    measured = step_times(run.measured) if run.measured else None
    before = compare(run.predicted, run.measured, run.program) if run.predicted and run.measured else None
    after = compare(run.refined, run.measured, run.program) if run.refined and run.measured else None
    name = run.graph.name or "model"
    state = str(run.about.get("state", "unknown"))
    folder = run.folder.path.resolve().name
    return {
        "title": escape(f"{name} on {run.plan.cluster}"),
        "subtitle": escape(f"{run.plan.strategy}. {_when(run, state)}"),
        "cards": _cards(run, measured),
        "what": _what(run),
        "timelines": _timelines(run),
        "classes": _classes(run, before, after),
        "training": training_cards(run.metrics, run.plan.recipe.evaluation.metric),
        "resources": memory_card(run) + energy_card(run),
        "restarts": _restarts(run),
        "footer": escape(f"Written by hpdlf from {folder}/. No part of this page is loaded from elsewhere."),
    }


def _when(run: Recorded, state: str) -> str:
    started, ended = run.about.get("started"), run.about.get("ended")
    words = {"finished": "Finished", "failed": "Failed", "running": "Still running, or stopped without a word"}
    said = words.get(state, state)
    return f"{said}; started {started}" + (f", ended {ended}." if ended else ".")


def _cards(run: Recorded, measured: StepTimes | None) -> str:
    figures = run.plan.prediction.get("figures") or {}
    planned = figures.get("step_s")
    refined = run.refined.about.get("step_s") if run.refined else None
    median_s = measured.median_s if measured else None
    cards = [_step_card("predicted", "Step time, predicted", planned, median_s)]
    if refined:
        cards.append(_step_card("refined", "Step time, predicted after refining", refined, median_s))
    if measured is not None and median_s:
        noise = f"± {percent(measured.noise)} between" if measured.noise is not None else "median of"
        steps = f"{noise} {measured.count} step{'s' if measured.count != 1 else ''}"
        cards.append(_card("measured", "Step time, measured", seconds_text(median_s), steps))
        batch = run.plan.strategy.batch
        speed = figures.get("samples_per_s")
        planned_speed = f"predicted {_rate(speed['value'])}" if speed else "not predicted"
        cards.append(_card("", "Samples per second", _rate(batch / median_s), planned_speed))
    else:
        cards.append(_card("measured", "Step time, measured", "none", "no steady step was traced"))
    return f'<div class="cards">{"".join(cards)}</div>'


def _step_card(kind: str, label: str, interval: Mapping[str, Any] | None, measured_s: float | None) -> str:
    if not interval:
        return _card(kind, label, "none", "the plan holds no prediction")
    more = f"{seconds_text(interval['low'])} to {seconds_text(interval['high'])}, {interval['provenance']}"
    if measured_s:
        more = f"error {percent(interval['value'] / measured_s - 1, signed=True)}; {more}"
    return _card(kind, label, seconds_text(interval["value"]), more)


def _card(kind: str, label: str, value: str, more: str) -> str:
    return (
        f'<div class="card {kind}"><div class="label">{escape(label)}</div>'
        f'<div class="value">{escape(value)}</div><div class="more">{escape(more)}</div></div>'
    )


def _what(run: Recorded) -> str:
    plan, recipe = run.plan, run.plan.recipe
    approval, machine = run.approval, run.about.get("machine")
    approved = "unavailable: the run's folder holds no approval"
    if approval:
        approved = f"{approval.get('approved_by', 'unknown')}, {approval.get('approved_at', 'no date')}"
    length = f"{recipe.steps} steps" if recipe.steps else f"{recipe.epochs or 10} epochs"
    optimizer, device, used = recipe.optimizer, run.cluster.device.name, plan.strategy.ranks
    rate = optimizer.hyperparameters["learning_rate"]
    digest = str(run.about.get("plan_sha256", ""))[:12]
    rows = [
        ("Plan", f"{plan.strategy}; configuration {plan.configuration}, SHA-256 {digest}"),
        ("Why this plan", plan.reason or "no reason was noted"),
        ("Approved by", approved),
        ("Model", f"{run.graph.name}: {run.graph.parameter_count:,} parameters, {len(run.graph.operators)} operators"),
        ("Model file", f"{plan.model.path}, SHA-256 {plan.model.sha256[:12]}"),
        ("Cluster", f"{plan.cluster}: {used} of {run.cluster.n_devices} devices ({device})"),
        ("Data", str(recipe.data.source or "none named")),
        (
            "Recipe",
            f"{optimizer.name}, learning rate {rate:g}, batch {plan.strategy.batch}, {length}, seed {recipe.seed}, "
            f"{plan.strategy.precision}",
        ),
        ("Machine", _plain(machine)),
        ("Versions", _plain(run.about.get("versions"))),
    ]
    return definitions(rows)


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        said = [(str(k), bytes_text(v) if str(k).endswith("bytes") else v) for k, v in value.items() if v is not None]
        return ", ".join(f"{k.removesuffix('_bytes').replace('_', ' ')} {v}" for k, v in said)
    return str(value) if value else "not noted"


def _timelines(run: Recorded) -> str:
    charts: list[tuple[str, Chart]] = []
    sources: Sequence[tuple[str, Trace | None]] = (
        ("Predicted by the plan", run.predicted),
        ("Predicted after refining", run.refined),
        ("Measured", run.measured),
    )
    for words, trace in sources:
        if trace is not None:
            charts.append((words, lay_out(trace)))
    if not charts:
        return '<p class="unavailable">unavailable: the run kept neither a simulated nor a measured trace</p>'
    scale_s = max(chart.span_s for _, chart in charts)
    parts = []
    for words, chart in charts:
        note = f"{chart.what}, {seconds_text(chart.span_s)}" + (f". {chart.note}" if chart.note else "")
        parts.append(f'<h3>{words} <span class="faint">{escape(note)}</span></h3>{timeline(chart, scale_s)}')
    missing = [words for words, trace in sources[::2] if trace is None]
    parts += [f'<p class="unavailable">{words}: unavailable, no trace was kept</p>' for words in missing]
    remarks = list(dict.fromkeys(r for _, chart in charts for r in chart.remarks))
    said = "All on one time scale. A transfer is drawn at its sender, from when both sides had entered"
    parts.append(legend([c for _, c in charts]))
    parts.append(f'<p class="note">{escape("; ".join([said, *remarks]))}. Hover over a bar for its task and time.</p>')
    return "".join(parts)


def _classes(run: Recorded, before: Comparison | None, after: Comparison | None) -> str:
    if run.measured is None:
        return '<p class="unavailable">unavailable: nothing was measured</p>'
    comparison = before or after
    if comparison is None:
        return '<p class="unavailable">unavailable: the simulated trace of the plan was not kept beside it</p>'
    parts = [classes_table(comparison, after if before else None)]
    if before is None:
        parts.append('<p class="note">Predicted: after refining; the simulated trace of the plan was not kept.</p>')
    left_out = comparison.measured.left_out
    if left_out:
        listed = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()))
        parts.append(f'<p class="note">Steps left out of the step time: {escape(listed)}.</p>')
    broken = violations(run.program, run.measured)
    if broken:
        listed = "".join(f"<li>{escape(line)}</li>" for line in broken[:8])
        more = f"<li>and {len(broken) - 8} more</li>" if len(broken) > 8 else ""
        words = f"{len(broken)} dependencies of the program are not honoured:"
        parts.append(f'<p class="off">{words}</p><ul>{listed}{more}</ul>')
    else:
        parts.append('<p class="note">Every dependency of the program is honoured in the measured times.</p>')
    return "".join(parts)


def _restarts(run: Recorded) -> str:
    reasons = run.about.get("restarts") or []
    resumed = max(len(run.about.get("attempts") or []) - 1, 0)
    parts = []
    if reasons:
        listed = "".join(f"<li>{escape(str(reason))}</li>" for reason in reasons)
        parts.append(f"<p>Started again from the last checkpoint {_times(len(reasons))}:</p><ul>{listed}</ul>")
    if resumed:
        parts.append(f"<p>Resumed by hand {_times(resumed)}.</p>")
    return "".join(parts) or "<p>None: the run went through in one attempt.</p>"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
