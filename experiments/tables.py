"""What the command line shows: results as rich tables for a terminal of 100 columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from .units import UNAVAILABLE, count, dollars, interval, joules, kilograms, nbytes, seconds

if TYPE_CHECKING:
    from ..exec.doctor import Finding
    from ..hwprofiles import ProfileRow, ValueRow
    from ..models.onnxpp import Graph, Strategy
    from ..models.onnxpp.graph import Tensor
    from ..models.plan import Plan
    from ..sim import Candidate, Interval, Search, Simulation
    from .explain import Explanation
    from .refine import Refinement

__all__ = [
    "accuracy_table",
    "approval_table",
    "candidates_table",
    "doctor_table",
    "explanation_table",
    "memory_table",
    "model_sentence",
    "operators_table",
    "plain_table",
    "profile_table",
    "profiles_table",
    "refinement_table",
    "refused_table",
    "simulation_table",
]

MOST_ROWS = 12


class _Plain(Table):
    """A table whose cells say what they say: brackets are no markup."""

    def add_row(self, *cells: Any, **options: Any) -> None:
        """A row; text is taken literally."""
        super().add_row(*(Text(c) if isinstance(c, str) else c for c in cells), **options)


def plain_table(title: str, *columns: str, right: Sequence[str] = ()) -> Table:
    """An empty table in the style of all."""
    table = _Plain(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, title_style="bold", pad_edge=False)
    table.collapse_padding = True
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def _shown(value: Interval | Mapping[str, Any] | None, unit: Callable[[float], str]) -> str:
    if value is None:
        return UNAVAILABLE
    if isinstance(value, Mapping):
        return interval(value["value"], value["low"], value["high"], unit)
    return interval(value.value, value.low, value.high, unit)


def model_sentence(graph: Graph) -> str:
    """A model in one line: operators, parameters, work and loss."""
    from ..models.onnxpp import work

    flops = sum(work(operator, graph, batch=1, phase="forward").flops for operator in graph.operators)
    trained = f"{count(graph.parameter_count)} trainable parameters ({nbytes(graph.parameter_bytes())})"
    work_text = f"{count(flops)}FLOP forward per sample"
    return f"{graph.name}, {len(graph.operators)} operators, {trained}, {work_text}, loss: {graph.loss or 'none'}."


def operators_table(graph: Graph, *, batch: int, annotated: Iterable[Strategy] = ()) -> Table:
    """Every operator with its family, work and shapes for `batch` samples; the totals and what is `annotated` below."""
    from ..models.onnxpp import work
    from ..models.onnxpp.host import on_host

    trained = set(graph.parameters)
    numbers = ("FLOP", "bytes", "FLOP/B", "parameters")
    table = plain_table(f"{graph.name}, batch {batch}", "operator", "type", "family", *numbers, "result", right=numbers)
    given = ", ".join(_tensor(graph, name) for name in (*graph.inputs, *graph.targets))
    table.caption = (
        f"forward pass; bytes: operands read and results written, each once\nfed with: {given}\n"
        f"predicts: {', '.join(_tensor(graph, name) for name in graph.outputs)}"
    )
    loose = {name for name, tensor in graph.tensors.items() if tensor.at_most}
    bounded = sum(1 for o in graph.operators if not loose.isdisjoint((*o.inputs, *o.outputs)))
    if bounded:
        table.caption += f"\n<=: depends on data, at most this; work of {bounded} operators is an upper bound"
    if graph.fixed_batch is not None:
        table.caption += f"\nthe batch is fixed, {graph.fixed_batch} a run: it can be simulated and run, not trained"
    slow = sum(on_host(o.op_type, o.domain) for o in graph.operators)
    if slow:
        table.caption += (
            f"\n*: XLA cannot compile it; the executor runs {slow} such in NumPy, and trains nothing before them"
        )
    for strategy in annotated:
        table.caption += f"\nconfiguration {strategy}"
    table.caption_justify = "left"
    total_flops = total_bytes = 0.0
    for operator in graph.operators:
        forward = work(operator, graph, batch=batch, phase="forward")
        held = sum(graph.tensors[i].elements(1) for i in dict.fromkeys(operator.inputs) if i in trained)
        moved = forward.read_bytes + forward.write_bytes
        total_flops, total_bytes = total_flops + forward.flops, total_bytes + moved
        result = graph.tensors.get(operator.outputs[0])
        shape = _dims(result, "x") if result else "?"
        table.add_row(
            operator.name,
            operator.op_type + ("*" if on_host(operator.op_type, operator.domain) else ""),
            operator.family,
            count(forward.flops) if forward.flops else "",
            nbytes(moved) if moved else "",
            f"{forward.flops / moved:.3g}" if forward.flops and moved else "",
            count(held) if held else "",
            shape,
        )
    table.add_section()
    table.add_row(
        "total, forward",
        "",
        "",
        count(total_flops),
        nbytes(total_bytes),
        f"{total_flops / total_bytes:.3g}" if total_bytes else "",
        count(graph.parameter_count),
        f"loss: {graph.loss or 'none'}",
    )
    return table


def _tensor(graph: Graph, name: str) -> str:
    tensor = graph.tensors[name]
    return f"{name} ({_dims(tensor, ' x ')}) {tensor.dtype}"


def _dims(tensor: Tensor, between: str) -> str:
    """A shape, N for the batch, "<=" before a dimension that depends on data and is at most that."""
    return between.join(
        ("<=" if axis in tensor.at_most else "") + ("N" if str(dim) == "batch" else str(dim))
        for axis, dim in enumerate(tensor.shape)
    )


def accuracy_table(report: Sequence[Mapping[str, Any]]) -> Table:
    """Errors on measurements that were left out of fitting."""
    numbers = ("n", "median", "p90", "bias", "covered", "width")
    table = plain_table(
        "Errors on what was left out", "left out", "table", "device", "operators", *numbers, right=numbers
    )
    for row in report:
        table.add_row(
            row["left_out"].removesuffix(" left out"),
            row["file"].removesuffix(".csv"),
            row["device"],
            row["op"],
            f"{row['n']:,}",
            f"{row['median_ape']:.1%}",
            f"{row['p90_ape']:.0%}",
            f"{row['bias']:+.0%}",
            f"{row['coverage90']:.0%}",
            f"{row['relative_width']:.2f}",
        )
    table.caption = (
        "device: the whole chip was left out; shapes: a fifth of the cells of shapes was, of a device that is known.\n"
        "covered: measured within the interval of nine cases in ten; width: of that interval over the prediction."
    )
    table.caption_justify = "left"
    return table


def explanation_table(found: Explanation, *, rows: int) -> Table:
    """The operators that take the most time on a device."""
    numbers = ("times", "time (9 of 10)", "share", "peak")
    columns = ("operator", "type", "phase", "result", *numbers, "bound", "rests on")
    title = f"{found.model} on {found.device}, batch {found.batch}, {found.precision}"
    table = plain_table(title, *columns, right=numbers)
    for row in found.operators[:rows]:
        table.add_row(
            row.name if len(row.name) <= 18 else f"{row.name[:8]}…{row.name[-9:]}",
            row.op_type if len(row.op_type) <= 12 else f"{row.op_type[:11]}…",
            {"forward": "fwd", "backward": "bwd"}.get(row.phase, row.phase),
            row.shape,
            str(row.count),
            interval(row.seconds, row.low_s, row.high_s, seconds),
            f"{row.share:.1%}",
            f"{row.utilisation:.0%}",
            row.bound,
            row.provenance,
        )
    left = found.operators[rows:]
    if left:
        rest = sum(o.seconds for o in left)
        table.add_row(f"{len(left)} more", "", "", "", "", seconds(rest), f"{rest / found.seconds:.1%}", "", "", "")
    fused = interval(found.fused_s, found.fused_low_s, found.fused_high_s, seconds)
    table.caption = (
        f"One by one: {seconds(found.seconds)}; compiled as one: {fused}.\n"
        "times: equal operators in the row; peak: time at the device's nominal peaks over the time taken."
    )
    table.caption_justify = "left"
    return table


def profiles_table(rows: Sequence[ProfileRow]) -> Table:
    """The profiles that there are."""
    table = plain_table("Hardware profiles", "name", "kind", "what it is")
    for row in rows:
        table.add_row(row.name, row.kind, f"cannot be read: {row.problem}" if row.problem else row.summary)
    return table


def profile_table(name: str, rows: Sequence[ValueRow]) -> Table:
    """Every value of a profile with its source."""
    table = plain_table(name, "field", "value", "tier", "source")
    for row in rows:
        table.add_row(row.field, row.value, row.tier, row.source)
    return table


def simulation_table(simulation: Simulation) -> Table:
    """The figures of a simulation, each with unit, interval and provenance."""
    f = simulation.figures
    title = f"{simulation.model} on {simulation.cluster}: {simulation.strategy}"
    table = plain_table(title, "", "predicted (9 cases of 10)", "rests on")
    basis = {"rent": " (rent)", "own": " (own nodes and energy)", "energy": " (energy alone)", None: ""}[f.cost_basis]
    rows: list[tuple[str, Interval | None, Callable[[float], str]]] = [
        ("step time", f.step_s, seconds),
        ("samples per second", f.samples_per_s, lambda v: f"{v:,.0f}"),
        ("energy per step", f.energy_j, joules),
        (f"cost per step{basis}", f.cost_usd, dollars),
        ("CO2 per step", f.carbon_kg, kilograms),
        ("time per epoch", simulation.epoch_s, seconds),
        ("energy per epoch", simulation.per_epoch(f.energy_j), joules),
        (f"cost per epoch{basis}", simulation.per_epoch(f.cost_usd), dollars),
    ]
    for name, value, unit in rows:
        if value is None and name.endswith("epoch") and simulation.samples_per_epoch is None:
            continue
        table.add_row(name, _shown(value, unit), value.provenance if value else "")
    table.add_row("devices compute", f"{f.utilisation:.0%} of the time", "simulated")
    table.add_row("devices wait for communication", f"{f.exposed_communication:.0%}", "simulated")
    table.add_row("pipeline bubble and idle", f"{f.bubble:.0%}", "simulated")
    return table


def memory_table(simulation: Simulation) -> Table:
    """Peak memory per rank, and of what."""
    table = plain_table("Peak memory per rank", "role", "peak", "of", "made of", "at", right=("peak", "of"))
    for memory in simulation.memory[:MOST_ROWS]:
        parts = sorted(memory.by_content.items(), key=lambda item: -item[1])
        made = ", ".join(f"{name} {nbytes(size)}" for name, size in parts if size >= 0.01 * memory.peak_bytes)
        peak = nbytes(memory.peak_bytes) if memory.fits else f"{nbytes(memory.peak_bytes)} does not fit"
        table.add_row(memory.role, peak, nbytes(memory.capacity_bytes), made, memory.at)
    return table


def candidates_table(found: Search) -> Table:
    """The ranking, best first."""
    columns = ("#", "ranks", "data", "pipe", "micro", "order", "step", "samples/s", "energy", "cost", "memory", "busy")
    right = tuple(column for column in columns if column != "order")
    table = plain_table(f"Ranked by {found.objective}", *columns, right=right)
    for place, candidate in enumerate(found.ranked[:MOST_ROWS], start=1):
        _candidate_row(table, place, candidate)
    more = len(found.ranked) - MOST_ROWS
    assert found.best.simulation is not None
    step = found.best.simulation.figures.step_s
    table.caption = (
        "data: replicas; pipe: stages; micro: microbatches x samples in each; order: the pipeline's schedule; "
        "figures are per step, memory per device; busy: share of the step in which devices compute; -: unavailable. "
        f"All are {step.provenance}: the first one's step takes {seconds(step.low)} to {seconds(step.high)} in nine cases of ten"
        + (f"; {more} more combinations" if more > 0 else "")
    )
    table.caption_justify = "left"
    return table


def _candidate_row(table: Table, place: int, candidate: Candidate) -> None:
    simulation, strategy = candidate.simulation, candidate.strategy
    assert simulation is not None
    f = simulation.figures
    schedule = "async" if strategy.solver == "asynchronous" else strategy.schedule if strategy.pipeline > 1 else "-"
    table.add_row(
        str(place),
        str(strategy.ranks),
        str(strategy.data),
        str(strategy.pipeline),
        f"{strategy.microbatches} x {strategy.microbatch_samples}",
        schedule,
        seconds(f.step_s.value),
        f"{f.samples_per_s.value:,.0f}",
        joules(f.energy_j.value) if f.energy_j else "-",
        dollars(f.cost_usd.value) if f.cost_usd else "-",
        nbytes(simulation.peak_bytes),
        f"{f.utilisation:.0%}",
    )


def refused_table(found: Search) -> Table:
    """What was refused, and why."""
    table = plain_table("Refused", "strategy", "because")
    for candidate in found.refused[:MOST_ROWS]:
        table.add_row(str(candidate.strategy), candidate.refused)
    if len(found.refused) > MOST_ROWS:
        table.caption = f"and {len(found.refused) - MOST_ROWS} more"
    return table


def approval_table(plan: Plan, *, steps: int | None) -> Table:
    """What an approved plan will run, and what it is predicted to take."""
    figures, recipe = plan.prediction["figures"], plan.recipe
    table = plain_table(f"Plan {plan.configuration}", "", "")
    length = f"{recipe.steps} steps" if recipe.steps else f"{recipe.epochs or 10} epochs"
    rows = [
        ("model", f"{plan.model.path} ({plan.prediction['model']})"),
        ("data", f"{recipe.data.source or 'none: this plan can be simulated, not trained'}"),
        ("cluster", f"{plan.cluster}, {plan.strategy.ranks} ranks on devices {_span(plan.placement)}"),
        ("strategy", str(plan.strategy)),
        (
            "training",
            f"{length}, batch {plan.strategy.batch}, {recipe.optimizer.name}, seed {recipe.seed}, {recipe.precision}",
        ),
        ("if a rank dies", f"restart from the last checkpoint, up to {plan.max_restarts} times"),
        ("step time", _shown(figures["step_s"], seconds) + f", {figures['step_s']['provenance']}"),
    ]
    if steps is not None:
        rows += [
            (f"all {steps:,} steps", f"{_times(figures['step_s'], steps, seconds)}; starting, evaluating excluded"),
            ("energy", _times(figures["energy_j"], steps, joules)),
            ("cost", _times(figures["cost_usd"], steps, dollars)),
            ("CO2", _times(figures["carbon_kg"], steps, kilograms)),
        ]
    worst = max(plan.prediction["memory"], key=lambda m: m["peak_bytes"])
    rows += [
        ("peak memory per rank", f"{nbytes(worst['peak_bytes'])} of {nbytes(worst['capacity_bytes'])}, modelled"),
        ("bounds", "hold in nine cases of ten"),
        ("why this one", plan.reason),
    ]
    for row in rows:
        table.add_row(*row)
    table.show_header = False
    return table


def _times(value: Mapping[str, Any] | None, steps: int, unit: Callable[[float], str]) -> str:
    if value is None:
        return f"{UNAVAILABLE} (the cluster's profile lacks what it needs)"
    shown = interval(steps * value["value"], steps * value["low"], steps * value["high"], unit)
    return f"{shown}, {value['provenance']}"


def _span(numbers: Sequence[int]) -> str:
    """Numbers as a range where they are one."""
    first, last = min(numbers), max(numbers)
    if first == last:
        return str(first)
    return f"{first} to {last}" if len(numbers) == last - first + 1 else ", ".join(map(str, sorted(numbers)))


def refinement_table(found: Refinement) -> Table:
    """Predicted beside measured, class by class of tasks, before and after refining."""
    numbers = ("before", "after", "measured (8 of 10)", "error before", "after", "share")
    table = plain_table("Median time of a task", "task", *numbers, right=numbers)
    earlier = {(r.instruction, r.phase): r for r in found.before.rows}
    for row in found.after.rows:
        if not row.share or row.share < 0.002:
            continue
        before = earlier.get((row.instruction, row.phase))
        table.add_row(
            row.instruction,
            seconds(before.predicted_s) if before and before.predicted_s is not None else UNAVAILABLE,
            seconds(row.predicted_s) if row.predicted_s is not None else UNAVAILABLE,
            interval(row.measured_s, row.low_s, row.high_s, seconds)
            if row.measured_s is not None and row.low_s is not None and row.high_s is not None
            else UNAVAILABLE,
            f"{before.error:+.0%}" if before and before.error is not None else "",
            f"{row.error:+.0%}" if row.error is not None else "",
            f"{row.share:.0%}",
        )
    noise = found.measured.noise
    between = f"; noise between steps: ±{noise:.0%}" if noise is not None else ""
    table.caption = f"share: of a measured step of one rank{between}"
    table.caption_justify = "left"
    return table


def doctor_table(findings: Sequence[Finding]) -> Table:
    """What was examined, and how to mend it."""
    table = plain_table("hpdlf doctor", "what", "state", "found", "mend")
    colour = {"ok": "green", "warn": "yellow", "missing": "red"}
    for finding in findings:
        table.add_row(finding.name, Text(finding.status, style=colour[finding.status]), finding.value, finding.mend)
    return table
