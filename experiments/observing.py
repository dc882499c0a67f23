"""What a run's trace says of the work that was done in it: one observation for each workload and node.

What a task took is counted from when it could have begun (what the machine needs to dispatch it belongs to it), without
its wait for partners, and without what the device spent on communication meanwhile where it cannot hide it (the
simulator adds that back, see ``communication_overlap``).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..errors import DataError
from ..models.cost import CostModel, Observation, Workload
from ..models.program import Kind
from ..models.trace import Event, Trace
from ..sim import Pricing
from ..sim.timeline import Working, from_ready, steps, working
from .calibration import conditions_on
from .recorded import Recorded

__all__ = ["observe"]

# Of what a task took, at least this much is its own, however much communication went on meanwhile.
LEAST_OWN = 0.05


def observe(run: Recorded) -> tuple[Observation, ...]:
    """What the steady steps of a run say of its workloads: one observation each on every node, over steps, microbatches
    and ranks.

    Raises:
        DataError: the trace has no step beside each attempt's first, which compiles; or ranks are missing in it, so that
            nobody can tell how long others waited for them.
    """
    assert run.measured is not None
    plan, program = run.plan, run.program
    pricing = Pricing(
        program=program,
        graph=run.graph,
        cluster=run.cluster,
        model=CostModel.default(),
        precision=plan.strategy.precision,
        optimizer=plan.recipe.optimizer.name,
    )
    nodes = {rank: _Node.of(run.about_rank(rank)) for rank in range(program.mesh.size)}
    seconds, workloads = _by_workload(_whole_attempts(run), pricing, {rank: n.host for rank, n in nodes.items()})
    if not seconds:
        raise DataError(
            f"{run.folder.path}: only first steps were measured, and they compile: train at least two steps, better "
            "ten, and refine again."
        )
    ended = str(run.about.get("ended") or run.about.get("started") or "")
    crowd = min(program.mesh.size, run.cluster.devices_per_node)
    by_host = {node.host: node for node in nodes.values()}
    return tuple(
        Observation.of(
            workloads[key],
            samples_s,
            run=run.name,
            plan=str(run.about.get("plan_sha256") or ""),
            machine=by_host[host].machine,
            host=host,
            versions=by_host[host].versions,
            conditions={**by_host[host].conditions, **conditions_on(run.cluster, crowd)},
            time=ended,
        )
        for (key, host), samples_s in seconds.items()
    )


class _Node(NamedTuple):
    """Where a rank ran."""

    host: str
    machine: str
    versions: Mapping[str, str]
    conditions: Mapping[str, float | str]

    @classmethod
    def of(cls, about: Mapping[str, Any]) -> _Node:
        machine, versions, conditions = (_mapping(about.get(name)) for name in ("machine", "versions", "conditions"))
        return cls(
            host=str(machine.get("name") or ""),
            machine=str(machine.get("fingerprint") or ""),
            versions={str(name): str(value) for name, value in versions.items()},
            conditions={str(name): v for name, v in conditions.items() if isinstance(v, (int, float, str))},
        )


def _whole_attempts(run: Recorded) -> Trace:
    """The trace without attempts that lack a rank: a wait for it cannot be told from work."""
    assert run.measured is not None
    size = run.program.mesh.size
    ranks: dict[int, set[int]] = {}
    for event in run.measured.events:
        ranks.setdefault(event.attempt, set()).add(event.rank)
    whole = {attempt for attempt, found in ranks.items() if len(found) >= size}
    if not whole:
        attempt, found = max(ranks.items(), key=lambda item: len(item[1]))
        missing = [run.folder.trace(rank, attempt) for rank in range(size) if rank not in found]
        raise DataError(
            f"{missing[0]}: holds no whole step of its rank"
            + (f" (nor do those of {len(missing) - 1} others)" if len(missing) > 1 else "")
            + ", so that nobody can tell how long others waited for it. Go on with the run by `--resume` and refine again."
        )
    events = tuple(e for e in run.measured.events if e.attempt in whole)
    return Trace(source=run.measured.source, events=events, about=run.measured.about)


def _mapping(value: object) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}


WorkKey = tuple[str, str, str]


def _by_workload(
    trace: Trace, pricing: Pricing, hosts: Mapping[int, str]
) -> tuple[dict[tuple[WorkKey, str], list[float]], dict[WorkKey, Workload]]:
    """Seconds of every workload on every host, and the workloads."""
    steady = {(s.attempt, s.number) for s in steps(trace) if s.left_out in ("", "checkpoint")}
    trace = from_ready(trace, pricing.program)
    when = working(trace)
    busy = _communicating(trace, when)
    exposed = 1.0 - float(pricing.cluster.device.communication_overlap)
    seconds: dict[tuple[WorkKey, str], list[float]] = {}
    workloads: dict[WorkKey, Workload] = {}
    kinds: dict[tuple[int, str], Workload | None] = {}
    for event in trace.events:
        if (event.attempt, event.step) not in steady or event.kind == Kind.RECEIVE:
            continue
        place = (event.rank, event.instruction)
        if place not in kinds:
            instruction = pricing.program.role_of(event.rank).instruction.get(event.instruction)
            kinds[place] = pricing.workload(event.rank, instruction) if instruction else None
        workload = kinds[place]
        if workload is None or not any(workload.components.values()):
            continue
        took_s = when[event].seconds
        if event.kind == Kind.COMPUTE and exposed:
            shared_s = _overlap(busy.get((event.attempt, event.rank), ((), ())), when[event])
            took_s = max(took_s - exposed * shared_s, LEAST_OWN * took_s)
        if took_s > 0:
            key = (workload.subject, workload.kind, workload.key)
            seconds.setdefault((key, hosts[event.rank]), []).append(took_s)
            workloads[key] = workload
    return seconds, workloads


Spans = tuple[tuple[float, ...], tuple[float, ...]]
"""Starts and ends of disjoint intervals, ascending."""


def _communicating(trace: Trace, when: Mapping[Event, Working]) -> dict[tuple[int, int], Spans]:
    """When each (attempt, rank) was sending, or in a collective that had gathered, or reaching into others' memory."""
    found: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for event in trace.events:
        if Kind(event.kind).communicates and event.kind != Kind.RECEIVE:
            found.setdefault((event.attempt, event.rank), []).append((when[event].start_s, when[event].end_s))
    merged: dict[tuple[int, int], Spans] = {}
    for key, spans in found.items():
        starts: list[float] = []
        ends: list[float] = []
        for start_s, end_s in sorted(spans):
            if ends and start_s <= ends[-1]:
                ends[-1] = max(ends[-1], end_s)
            else:
                starts.append(start_s)
                ends.append(end_s)
        merged[key] = (tuple(starts), tuple(ends))
    return merged


def _overlap(spans: Spans, span: Working) -> float:
    starts, ends = spans
    total = 0.0
    i = bisect_left(ends, span.start_s)
    while i < len(starts) and starts[i] < span.end_s:
        total += max(min(ends[i], span.end_s) - max(starts[i], span.start_s), 0.0)
        i += 1
    return total
