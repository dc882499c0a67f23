"""Predicted beside measured: step times, the error of every class of tasks, and whether the program was honoured.

A class is what one instruction does on all ranks that do it. Both traces are read the same way
(:mod:`hpdlf.sim.timeline`): a transfer counts from the moment its last partner entered, and only steady steps count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING

from ..errors import DataError
from ..models.program import Dependency, Kind, Program, Role, Task, dependencies
from ..models.trace import Event, Trace
from ..sim.timeline import Step, from_ready, message, steps, working

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ClassRow", "Comparison", "StepTimes", "compare", "step_times", "task_seconds", "violations"]

Key = tuple[str, str, str]
"""Kind, phase and instruction; of a send and its receive together "transfer", phase and message."""

CLOCK_RESOLUTION_S = 2e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTimes:
    """The steady steps of a trace.

    median_s       None where there is no steady step
    low_s, high_s  the 10th and 90th percentile
    left_out       {reason: steps}
    """

    median_s: float | None
    low_s: float | None
    high_s: float | None
    count: int
    left_out: Mapping[str, int]

    @property
    def noise(self) -> float | None:
        """Half the range between the 10th and the 90th percentile over the median; None for fewer than three steps."""
        if self.count < 3 or not self.median_s or self.low_s is None or self.high_s is None:
            return None
        return (self.high_s - self.low_s) / 2 / self.median_s


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassRow:
    """One class of tasks: median seconds of a task, None where a trace has none.

    count             measured tasks in steady steps, all ranks
    error             predicted over measured, minus 1
    share             part of a measured step that the tasks of one rank take; what overlaps counts twice
    low_s, high_s     10th and 90th percentile of what was measured
    """

    kind: str
    phase: str
    instruction: str
    count: int
    predicted_s: float | None
    measured_s: float | None
    error: float | None
    share: float | None
    low_s: float | None
    high_s: float | None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What :func:`compare` found; `rows` by share, the largest first."""

    predicted: StepTimes
    measured: StepTimes
    rows: tuple[ClassRow, ...]

    @property
    def error(self) -> float | None:
        """Predicted step time over the measured one, minus 1."""
        if not self.predicted.median_s or not self.measured.median_s:
            return None
        return self.predicted.median_s / self.measured.median_s - 1

    @property
    def task_error(self) -> float | None:
        """Mean of the classes' absolute errors, each weighted by its share of the step."""
        known = [(abs(r.error), r.share) for r in self.rows if r.error is not None and r.share]
        total = sum(share for _, share in known)
        return sum(error * share for error, share in known) / total if total else None

    def to_frame(self) -> pd.DataFrame:
        """One row a class, the columns as in :class:`ClassRow`."""
        import pandas as pd

        return pd.DataFrame([asdict(r) for r in self.rows], columns=list(ClassRow.__dataclass_fields__))


def compare(predicted: Trace, measured: Trace, program: Program | None = None) -> Comparison:
    """Compare a simulated trace with a measured one of the same program.

    program   if given, measured tasks count from when they could have begun: what the machine needs to dispatch a task
              belongs to the task

    Raises:
        DataError: they have no task in common.
    """
    counted = from_ready(measured, program) if program else measured
    ours, theirs = task_seconds(predicted), task_seconds(counted)
    if not set(ours) & set(theirs):
        raise DataError(
            f"The two traces have no task in common: one has {_named(ours)}, the other {_named(theirs)}. "
            "Compare a run with the prediction of its own plan (RUN/predicted.trace.jsonl)."
        )
    before, after = step_times(predicted), step_times(measured)
    per_rank = _tasks_per_rank_and_step(measured)
    classes = {**ours, **theirs}
    rows = [_row(c, ours.get(c, []), theirs.get(c, []), per_rank.get(c, 0.0), after) for c in classes]
    rows.sort(key=lambda r: (-(r.share or 0.0), -(r.predicted_s or 0.0), r.kind, r.phase, r.instruction))
    return Comparison(predicted=before, measured=after, rows=tuple(rows))


def step_times(trace: Trace) -> StepTimes:
    """How long the steady steps took."""
    import numpy as np

    found = steps(trace)
    seconds = [s.seconds for s in found if not s.left_out and s.seconds is not None]
    left_out: dict[str, int] = {}
    for step in found:
        if step.left_out:
            left_out[step.left_out] = left_out.get(step.left_out, 0) + 1
    low_s, high_s = (float(q) for q in np.quantile(seconds, (0.1, 0.9))) if seconds else (None, None)
    middle_s = median(seconds) if seconds else None
    return StepTimes(median_s=middle_s, low_s=low_s, high_s=high_s, count=len(seconds), left_out=left_out)


def task_key(event: Event) -> Key:
    """The class of an event."""
    if event.kind in (Kind.SEND, Kind.RECEIVE):
        return "transfer", event.phase, message(event)
    return event.kind, event.phase, event.instruction


def task_seconds(trace: Trace) -> dict[Key, list[float]]:
    """Seconds of every task of every class in steady steps (of all steps where none is steady)."""
    when, counted = working(trace), _counted(trace)
    found: dict[Key, list[float]] = {}
    for event in trace.events:
        if event.kind != Kind.RECEIVE and (event.attempt, event.step) in counted:
            found.setdefault(task_key(event), []).append(when[event].seconds)
    return found


def _counted(trace: Trace) -> set[tuple[int, int]]:
    """Steps whose tasks count: the steady ones, and those that write a checkpoint."""
    found = steps(trace)
    steady = {_id(s) for s in found if s.left_out in ("", "checkpoint")}
    return steady or {_id(s) for s in found}


def _id(step: Step) -> tuple[int, int]:
    return step.attempt, step.number


def _tasks_per_rank_and_step(trace: Trace) -> dict[Key, float]:
    counted = _counted(trace)
    tasks: dict[Key, int] = {}
    ranks: dict[Key, set[int]] = {}
    for event in trace.events:
        if event.kind != Kind.RECEIVE and (event.attempt, event.step) in counted:
            key = task_key(event)
            tasks[key] = tasks.get(key, 0) + 1
            ranks.setdefault(key, set()).add(event.rank)
    return {key: count / len(ranks[key]) / len(counted) for key, count in tasks.items()}


def _row(key: Key, ours: list[float], theirs: list[float], per_rank: float, measured: StepTimes) -> ClassRow:
    import numpy as np

    predicted_s = median(ours) if ours else None
    measured_s = median(theirs) if theirs else None
    low_s, high_s = (float(q) for q in np.quantile(theirs, (0.1, 0.9))) if theirs else (None, None)
    known = predicted_s is not None and measured_s
    return ClassRow(
        kind=key[0],
        phase=key[1],
        instruction=key[2],
        count=len(theirs),
        predicted_s=predicted_s,
        measured_s=measured_s,
        error=predicted_s / measured_s - 1 if known and predicted_s is not None and measured_s else None,
        share=measured_s * per_rank / measured.median_s if measured_s is not None and measured.median_s else None,
        low_s=low_s,
        high_s=high_s,
    )


def _named(classes: Mapping[Key, object]) -> str:
    names = [instruction for _, _, instruction in classes]
    return ", ".join(names[:4]) + (" ..." if len(names) > 4 else "") if names else "none"


def violations(program: Program, trace: Trace, *, resolution_s: float = CLOCK_RESOLUTION_S) -> list[str]:
    """Where the times of a trace contradict its program; empty when every dependency was honoured.

    Within a rank a task starts after all that it depends on has ended, and a stream does one task at a time in the
    program's order. Between ranks a receive ends after its send began, and nobody leaves a collective before its last
    member has entered. `resolution_s` is what clocks may be apart.
    """
    problems: list[str] = []
    for role in program.roles:
        needs = dependencies(role)
        for rank in program.ranks_of(role):
            mine = [e for e in trace.events if e.rank == rank]
            if mine:
                problems += _within(role, needs, mine, resolution_s)
    return problems + _between(program, trace, resolution_s)


def _within(
    role: Role, needs: Sequence[tuple[Dependency, ...]], events: Sequence[Event], resolution_s: float
) -> list[str]:
    position = {task: i for i, task in enumerate(role.order)}
    by_task: dict[tuple[int, int, int], Event] = {}
    problems = []
    traced = {(e.attempt, e.step) for e in events}
    for event in events:
        place = position.get(Task(event.instruction, event.microbatch))
        if place is None:
            problems.append(f"{event.task_id}: the program has no such task")
            continue
        by_task[event.attempt, event.step, place] = event
    previous: dict[tuple[int, str], Event] = {}
    for (attempt, step, place), event in sorted(by_task.items()):
        for need in needs[place]:
            earlier = step - need.steps_back
            task = role.order[need.position]
            if (attempt, earlier) not in traced or not role.instruction[task.instruction].runs_in(earlier):
                continue
            awaited = by_task.get((attempt, earlier, need.position))
            if awaited is None:
                problems.append(f"{event.task_id}: ran, but {task} of step {earlier}, which it depends on, did not")
            elif event.start_s < awaited.end_s - resolution_s:
                early_s = awaited.end_s - event.start_s
                problems.append(f"{event.task_id}: started {early_s:.2e} s before {awaited.task_id} ended")
        before = previous.get((attempt, event.stream))
        if before is not None and event.start_s < before.end_s - resolution_s:
            problems.append(f"{event.task_id}: started before {before.task_id} on its own stream {event.stream} ended")
        previous[attempt, event.stream] = event
    return problems


def _between(program: Program, trace: Trace, resolution_s: float) -> list[str]:
    problems = []
    sends: dict[tuple[object, ...], Event] = {}
    groups: dict[tuple[object, ...], list[Event]] = {}
    receives: list[tuple[tuple[object, ...], Event]] = []
    present = {e.rank for e in trace.events}
    last_step: dict[int, int] = {}
    for event in trace.events:
        last_step[event.attempt] = max(last_step.get(event.attempt, 0), event.step)
        instruction = program.role_of(event.rank).instruction.get(event.instruction)
        if instruction is None:
            continue
        about = (instruction.message, event.attempt, event.step, event.microbatch)
        if instruction.peer is not None:
            other = program.mesh.peer(event.rank, instruction.peer)
            if instruction.kind is Kind.SEND:
                sends[event.rank, other, *about] = event
            elif other in present:
                receives.append(((other, event.rank, *about), event))
        elif instruction.kind.is_collective and instruction.group is not None:
            members = program.mesh.group(event.rank, instruction.group)
            groups.setdefault((members[0], instruction.group, instruction.kind, *about), []).append(event)
    for key, receive in receives:
        send = sends.get(key)
        # A rank that was killed leaves its last tasks unwritten, a send that its partner received among them.
        if send is None and receive.step < last_step[receive.attempt] - 1:
            problems.append(f"{receive.task_id}: received what nobody sent")
        elif send is not None and receive.end_s < send.start_s - resolution_s:
            problems.append(f"{receive.task_id}: ended before {send.task_id} started")
    for members_seen in groups.values():
        last = max(members_seen, key=lambda e: e.start_s)
        problems += [
            f"{e.task_id}: left before {last.task_id} had entered"
            for e in members_seen
            if e.end_s < last.start_s - resolution_s
        ]
    return problems

