"""Reading a trace: who waited for whom, when work rather than waiting went on, and where its steps begin and end.

A receive, a collective, and on a real machine a send too, begin when their rank comes to them, not when bytes begin to
move: they wait for their partners. What a transfer *took* counts from the moment the last partner entered. Pictures,
comparisons and refinement all look at traces through these functions, so that simulated and measured times mean the
same.

Partners are found from the trace alone: a send and a receive carry the same message (their instructions' names without
the kind: ``send.act.0`` and ``receive.act.0``), and ranks that do the same keep their order, so the k-th rank of the
sending role sends to the k-th of the receiving one.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from ..models.program import Kind, Program, Task, dependencies
from ..models.trace import Event, Trace

__all__ = [
    "Meeting",
    "Step",
    "Transfer",
    "Working",
    "from_ready",
    "meetings",
    "message",
    "steps",
    "transfers",
    "working",
]


class Transfer(NamedTuple):
    """A send and the receive that it answers; `start_s`: when both had entered, `end_s`: when the bytes had arrived."""

    send: Event
    receive: Event

    @property
    def start_s(self) -> float:
        """When the later of the two entered."""
        return min(max(self.send.start_s, self.receive.start_s), self.receive.end_s)

    @property
    def end_s(self) -> float:
        """When the receiver had everything."""
        return self.receive.end_s


class Meeting(NamedTuple):
    """A collective: the events of all its members, by rank."""

    members: tuple[Event, ...]

    @property
    def start_s(self) -> float:
        """When the last member entered."""
        return min(max(e.start_s for e in self.members), self.end_s)

    @property
    def end_s(self) -> float:
        """When the last member was done."""
        return max(e.end_s for e in self.members)


class Working(NamedTuple):
    """The part of an event in which something went on: the event without its wait for partners."""

    start_s: float
    end_s: float

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.end_s - self.start_s


_BEGINNING = ("first of its attempt", "still warming up")


class Step(NamedTuple):
    """One optimiser step of one attempt.

    start_s, end_s   from the first work to the end of the last task, over all ranks
    seconds          from the end of the step before; None where that is not in the trace
    left_out         why it says nothing about a steady step; empty if it does
    """

    attempt: int
    number: int
    start_s: float
    end_s: float
    seconds: float | None
    left_out: str = ""


def message(event: Event) -> str:
    """What a communicating event moves, the same name for all partners."""
    return event.instruction.removeprefix(f"{event.kind}.")


def _places(trace: Trace) -> dict[str, dict[int, int]]:
    """{role: {rank: its place among the ranks of the role}}."""
    ranks: dict[str, set[int]] = {}
    for event in trace.events:
        ranks.setdefault(event.role, set()).add(event.rank)
    return {role: {rank: place for place, rank in enumerate(sorted(found))} for role, found in ranks.items()}


def transfers(trace: Trace) -> list[Transfer]:
    """Every send with its receive, in the order of the sends; those without a partner in the trace are left out."""
    places = _places(trace)

    def key(event: Event) -> tuple[object, ...]:
        return message(event), places[event.role][event.rank], event.attempt, event.step, event.microbatch

    receives = {key(e): e for e in trace.events if e.kind == Kind.RECEIVE}
    return [Transfer(e, receives[key(e)]) for e in trace.events if e.kind == Kind.SEND and key(e) in receives]


def meetings(trace: Trace) -> list[Meeting]:
    """Every collective, in the order of its first member's entry."""
    found: dict[tuple[object, ...], list[Event]] = {}
    for event in trace.events:
        if Kind(event.kind).is_collective:
            key = (event.kind, event.instruction, event.attempt, event.step, event.microbatch)
            found.setdefault(key, []).append(event)
    return [Meeting(tuple(sorted(members, key=lambda e: e.rank))) for members in found.values()]


def working(trace: Trace) -> dict[Event, Working]:
    """For every event, when it worked rather than waited. A receive and its send work at the same time."""
    found = {event: Working(event.start_s, event.end_s) for event in trace.events}
    for transfer in transfers(trace):
        found[transfer.send] = found[transfer.receive] = Working(transfer.start_s, transfer.end_s)
    for meeting in meetings(trace):
        for member in meeting.members:
            found[member] = Working(min(meeting.start_s, member.end_s), member.end_s)
    return found


def from_ready(trace: Trace, program: Program) -> Trace:
    """The trace with every task beginning when it could have begun: all that it depends on had ended, its stream was
    free.

    The difference is what a real machine needs to wake a thread and dispatch a task; in a simulated trace it is
    nothing. Where the task before, or one that is depended on, is not in the trace, a task begins when it began.
    """
    needs = {role.name: dependencies(role) for role in program.roles}
    order = {role.name: {task: i for i, task in enumerate(role.order)} for role in program.roles}
    instructions = {role.name: role.instruction for role in program.roles}
    orders = {role.name: role.order for role in program.roles}
    by_task: dict[tuple[int, int, int, int], Event] = {}
    for e in trace.events:
        place = order.get(e.role, {}).get(Task(e.instruction, e.microbatch))
        if place is not None:
            by_task[e.rank, e.attempt, e.step, place] = e
    previous: dict[tuple[int, int, str], tuple[int, Event]] = {}
    ready: dict[Event, float] = {}
    for (rank, attempt, step, place), event in sorted(by_task.items()):
        before = previous.get((rank, attempt, event.stream))
        previous[rank, attempt, event.stream] = step, event
        if before is None or before[0] < step - 1:
            continue
        ended = [before[1].end_s]
        for need in needs[event.role][place]:
            needed = instructions[event.role][orders[event.role][need.position].instruction]
            if not needed.runs_in(step - need.steps_back):
                continue
            found = by_task.get((rank, attempt, step - need.steps_back, need.position))
            ended.append(found.end_s if found else event.start_s)
        ready[event] = min(max(ended), event.start_s)
    events = [e._replace(start_s=ready.get(e, e.start_s)) for e in trace.events]
    return Trace(source=trace.source, events=tuple(events), about=trace.about)


def steps(trace: Trace) -> tuple[Step, ...]:
    """The steps of every attempt in order.

    Left out as not steady are the first step of an attempt (it compiles and fills the pipeline), further ones right
    after it that take over thrice the usual time (something compiles late), steps whose predecessor was not traced,
    steps that write a checkpoint where most do not, and a step after a pause of more than half a step (an
    evaluation). An attempt whose end was cut off loses its last step too.
    """
    start_s: dict[tuple[int, int], float] = {}
    end_s: dict[tuple[int, int], float] = {}
    tasks: dict[tuple[int, int], int] = {}
    checkpointing: set[tuple[int, int]] = set()
    for event in trace.events:
        key = (event.attempt, event.step)
        end_s[key] = max(end_s.get(key, event.end_s), event.end_s)
        tasks[key] = tasks.get(key, 0) + 1
        if event.kind in (Kind.COMPUTE, Kind.SEND, Kind.GET):
            start_s[key] = min(start_s.get(key, event.start_s), event.start_s)
        if event.kind == Kind.CHECKPOINT:
            checkpointing.add(key)
    if 2 * len(checkpointing) >= len(end_s):
        checkpointing.clear()
    found: list[Step] = []
    for key in sorted(end_s):
        attempt, number = key
        before = found[-1] if found and found[-1].attempt == attempt else None
        follows = before is not None and before.number == number - 1
        seconds = end_s[key] - before.end_s if before is not None and follows else None
        left_out = "first of its attempt" if before is None else "not traced from its begin" if not follows else ""
        if not left_out and key in checkpointing:
            left_out = "checkpoint"
        found.append(Step(*key, min(start_s.get(key, end_s[key]), end_s[key]), end_s[key], seconds, left_out))
    return _without_pauses(found, tasks)


def _without_pauses(found: Sequence[Step], tasks: dict[tuple[int, int], int]) -> tuple[Step, ...]:
    steady = [s.seconds for s in found if s.seconds is not None and not s.left_out]
    usual_s = median(steady) if steady else 0.0
    usual_tasks = median(tasks.values()) if tasks else 0
    checked: list[Step] = []
    for i, step in enumerate(found):
        left_out = step.left_out
        beginning = bool(checked) and checked[-1].attempt == step.attempt and checked[-1].left_out in _BEGINNING
        last = i + 1 == len(found) or found[i + 1].attempt != step.attempt
        if not left_out and beginning and step.seconds is not None and step.seconds > 3 * usual_s:
            left_out = "still warming up"
        elif not left_out and step.start_s - found[i - 1].end_s > usual_s / 2:
            left_out = "after a pause"
        elif not left_out and last and tasks[step.attempt, step.number] < usual_tasks:
            left_out = "cut off"
        checked.append(step._replace(left_out=left_out))
    return tuple(checked)
