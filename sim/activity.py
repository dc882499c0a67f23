"""What every simulated rank is busy with at any time of its steady steps: one cause for each moment.

A device computes, or else communicates, or else the host holds it up, or else it waits for others, or else it is idle: where
several streams are at work the first of these counts, so that communication behind computing costs nothing and the parts add up.
A collective communicates from when its last member has come, a receive from when its send has begun; before, they wait. Computing
that takes longer than by itself is slowed by communication at its end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import lcm
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import PlanError
from ..models.program import Instruction, Kind, Phase, Program
from ..models.trace import Event
from .result import Simulation

__all__ = [
    "GROUPS",
    "Activity",
    "Cause",
    "Window",
    "activities",
    "begun",
    "cause_of",
    "program_of",
    "steady_window",
    "waits_for",
]

GROUPS = ("computing", "communication", "host", "waiting", "idle")


class Cause(NamedTuple):
    """What time goes to: a group, and what exactly."""

    group: str
    name: str


IDLE = Cause("idle", "idle")
REPORT = Cause("host", "report")
SLOWED = Cause("computing", "slowed by communication")
_PHASES = {
    Phase.FORWARD: "forward",
    Phase.RECOMPUTE: "recompute",
    Phase.BACKWARD: "backward",
    Phase.BACKWARD_INPUT: "backward",
    Phase.BACKWARD_WEIGHT: "backward",
    Phase.UPDATE: "update",
    Phase.HOST: "other",
}
_HOST = {Kind.LOAD: "input", Kind.CHECKPOINT: "checkpoint"}


@dataclass(frozen=True, kw_only=True)
class Window:
    """The steady steps of a simulation: from when to when, and how many."""

    start_s: float
    end_s: float
    steps: int


@dataclass(frozen=True, kw_only=True)
class Activity:
    """One rank's window: intervals without gaps between `edges_s` [n + 1], each with the number of its cause in `causes` [n]."""

    edges_s: NDArray[np.float64]
    causes: NDArray[np.int64]
    names: tuple[Cause, ...]

    @property
    def seconds(self) -> dict[Cause, float]:
        """Seconds of each cause over the window."""
        sums = np.bincount(self.causes, weights=np.diff(self.edges_s), minlength=len(self.names))
        return {cause: float(s) for cause, s in zip(self.names, sums, strict=True) if s > 0.0}


def program_of(simulation: Simulation) -> Program:
    """The program that was simulated.

    Raises:
        PlanError: the simulation does not carry it.
    """
    if simulation.program is None:
        raise PlanError(
            "This simulation does not carry its program, so its time cannot be broken down: simulate it anew."
        )
    return simulation.program


def steady_window(simulation: Simulation) -> Window:
    """The steps that :class:`~.result.Figures` speak of: the last period of the replay."""
    program = program_of(simulation)
    ends: dict[int, float] = {}
    for event in simulation.trace.events:
        ends[event.step] = max(ends.get(event.step, 0.0), event.end_s)
    steps = len(ends)
    every = [i.every for role in program.roles for i in role.instructions if i.phase is not Phase.HOST]
    period = min(lcm(*every, 1), max(steps - 1, 1))
    reached = [max((end for s, end in ends.items() if s <= step), default=0.0) for step in range(steps)]
    start_s = reached[steps - period - 1] if steps > period else 0.0
    return Window(start_s=start_s, end_s=max(ends.values(), default=0.0), steps=period)


def cause_of(instruction: Instruction) -> Cause:
    """What an instruction's time goes to when it works. What is compiled as one carries the names of all its phases."""
    if instruction.kind.communicates and instruction.phase is Phase.HOST:
        return REPORT
    if instruction.kind.communicates:
        axes = instruction.group.axes if instruction.group else (instruction.peer.axis,) if instruction.peer else ()
        kind = "send" if instruction.kind is Kind.RECEIVE else instruction.kind.value.replace("_", "-")
        return Cause("communication", f"{kind} over {' x '.join(axes)}" if axes else kind)
    if instruction.kind in _HOST:
        return Cause("host", _HOST[instruction.kind])
    if instruction.kind is Kind.REPORT:
        return REPORT
    phases = {part.phase for part in instruction.parts} or {instruction.phase}
    return Cause("computing", " and ".join(dict.fromkeys(word for phase, word in _PHASES.items() if phase in phases)))


def waits_for(instruction: Instruction) -> Cause:
    """What it is waiting for before it works. Ranks report when a step has ended for them."""
    if instruction.phase is Phase.HOST:
        return Cause("waiting", "for the end of the step")
    if instruction.peer is not None:
        return Cause("waiting", f"for a message over {instruction.peer.axis}")
    axes = instruction.group.axes if instruction.group else ()
    return Cause("waiting", f"for others of {' x '.join(axes)}")


def begun(events: Sequence[Event]) -> list[float]:
    """For every event, when it began to work: when the last member of its collective had come, when the send it waits for began.

    Members of a collective end together. Ranks that stand for others may meet in name only; what they meet ends when they do.
    """
    last_s: dict[tuple[object, ...], float] = {}
    sends_s: dict[tuple[object, ...], float] = {}
    for e in events:
        if _is_collective(e):
            key = (e.instruction, e.step, e.microbatch, e.end_s)
            last_s[key] = max(last_s.get(key, e.start_s), e.start_s)
        elif e.kind == Kind.SEND:
            sends_s[_message(e)] = e.start_s
    found = []
    for e in events:
        if _is_collective(e):
            found.append(last_s[e.instruction, e.step, e.microbatch, e.end_s])
        elif e.kind == Kind.RECEIVE:
            found.append(min(max(sends_s.get(_message(e), e.end_s), e.start_s), e.end_s))
        else:
            found.append(e.start_s)
    return found


def _is_collective(event: Event) -> bool:
    return Kind(event.kind).is_collective


def _message(event: Event) -> tuple[object, ...]:
    """What a send and its receive share: the message's name, its time of arrival."""
    return event.instruction.removeprefix(f"{event.kind}."), event.step, event.microbatch, event.end_s


def activities(simulation: Simulation, window: Window | None = None) -> Mapping[int, Activity]:
    """By simulated rank, what it is busy with through its steady steps.

    Raises:
        PlanError: the simulation does not carry its program.
    """
    program = program_of(simulation)
    window = window or steady_window(simulation)
    events = [e for e in simulation.trace.events if e.end_s > window.start_s and e.start_s < window.end_s]
    by_rank: dict[int, list[tuple[float, float, Cause]]] = {rank: [] for rank in simulation.multiplicity}
    for event, begin_s in zip(events, begun(events), strict=True):
        instruction = program.role_of(event.rank).instruction[event.instruction]
        mine, cause, end_s = by_rank[event.rank], cause_of(instruction), event.end_s
        if begin_s > event.start_s:
            mine.append((event.start_s, begin_s, waits_for(instruction)))
        if instruction.kind is Kind.COMPUTE:
            alone_s = simulation.prices.get(event.rank, {}).get(event.instruction, end_s - begin_s)
            if end_s - begin_s > alone_s * (1 + 1e-9):
                mine.append((begin_s + alone_s, end_s, SLOWED))
                end_s = begin_s + alone_s
        mine.append((begin_s, end_s, cause))
    return {rank: _resolved(found, window) for rank, found in by_rank.items()}


def _resolved(found: Sequence[tuple[float, float, Cause]], window: Window) -> Activity:
    """One cause for each moment: the first in the order of groups, then of the alphabet."""
    names = tuple(sorted({cause for _, _, cause in found} | {IDLE}, key=lambda c: (GROUPS.index(c.group), c.name)))
    place = {cause: i for i, cause in enumerate(names)}
    starts = np.clip(np.array([s for s, _, _ in found] or [window.start_s]), window.start_s, window.end_s)
    ends = np.clip(np.array([e for _, e, _ in found] or [window.end_s]), window.start_s, window.end_s)
    which = np.array([place[cause] for _, _, cause in found] or [place[IDLE]])
    edges = np.unique(np.concatenate([starts, ends, [window.start_s, window.end_s]]))
    causes = np.full(len(edges) - 1, place[IDLE], dtype=np.int64)
    for number in range(len(names) - 1, -1, -1):
        mine = (which == number) & (ends > starts)
        change = np.bincount(np.searchsorted(edges, starts[mine]), minlength=len(edges)).astype(np.int64)
        change -= np.bincount(np.searchsorted(edges, ends[mine]), minlength=len(edges))
        causes[np.cumsum(change)[:-1] > 0] = number
    kept = np.concatenate([[True], causes[1:] != causes[:-1]])
    return Activity(edges_s=np.concatenate([edges[:-1][kept], edges[-1:]]), causes=causes[kept], names=names)
