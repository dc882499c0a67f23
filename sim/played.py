"""What a replay leaves behind: when every line began and ended, and what follows from that.

A record is two numbers a line, in the order in which a walk worked through its lines; which line, pass and microbatch a pair belongs
to follows from the script. Tasks within a line, and events, are written out only where somebody asks for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..models.program import Instruction, Kind
from ..models.trace import COLUMNS, Event
from .compiled import COLLECTIVE, LIVE_COLLECTIVE, Line, Script

__all__ = ["Intervals", "Played", "Record"]

Floats = NDArray[np.float64]


class Intervals(NamedTuple):
    """When a rank did something: where each interval starts and ends, and the share of it in which the device computes."""

    starts_s: Floats
    ends_s: Floats
    computing: Floats


@dataclass(eq=False)
class Record:
    """What one walk of one rank did.

    starts, ends   of its lines, in order
    gathered       of its collectives that waited for others, when the last had come
    marks          how many lines had been done at the end of each step
    waits          the line at which it waits, its step and pass, and for what; None when it is done
    """

    rank: int
    script: Script
    walk: int
    seconds: Mapping[str, float]
    starts: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    gathered: list[float] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    waits: tuple[Line, int, int, Any] | None = None

    def step_end_s(self, step: int) -> float:
        """When the last of a step's lines ended; 0 where there was none."""
        first = self.marks[step - 1] if step else 0
        return max(self.ends[first : self.marks[step]], default=0.0)

    def free_s(self, step: int) -> float:
        """When its last line up to the end of a step ended; 0 before the first."""
        return self.ends[self.marks[step] - 1] if self.marks[step] else 0.0

    def lines(self) -> Iterator[tuple[int, int, Line]]:
        """Step, pass and line, in order."""
        for step in range(len(self.marks)):
            walk = self.script.walks(step)[self.walk]
            for position, lines in zip(walk.positions, walk.lines, strict=True):
                for line in lines:
                    yield step, position, line

    def events(self) -> Iterator[Event]:
        """Every task's event."""
        role, schedule = self.script.role, self.script.role.schedule
        for (step, position, line), start_s, end_s in zip(self.lines(), self.starts, self.ends, strict=True):
            for i, begins_s, ends_s in self._tasks(line, start_s, end_s):
                yield Event(
                    role=role.name,
                    rank=self.rank,
                    step=step,
                    microbatch=None if i.once else schedule[position].microbatch,
                    instruction=i.id,
                    attempt=0,
                    stream=i.stream,
                    kind=i.kind.value,
                    phase=i.phase.value,
                    start_s=begins_s,
                    end_s=ends_s,
                    payload_bytes=role.payload_bytes(i),
                )

    def _tasks(self, line: Line, start_s: float, end_s: float) -> Iterator[tuple[Instruction, float, float]]:
        """The tasks of a line, one after the other."""
        now_s = start_s
        for i in line.members[:-1]:
            yield i, now_s, (now_s := min(now_s + self.seconds[i.id], end_s))  # sums round
        yield line.members[-1], now_s, end_s

    def intervals(self) -> Intervals:
        """When the rank computed, or communicated with the others there, in this walk."""
        index: dict[int, int] = {}
        known: list[list[tuple[bool, bool, float]]] = []
        order: list[int] = []
        for step in range(len(self.marks)):
            for lines in self.script.walks(step)[self.walk].lines:
                if id(lines) not in index:
                    index[id(lines)] = len(known)
                    known.append([self._traits(line) for line in lines])
                order.append(index[id(lines)])
        tables = [np.array(rows, dtype=np.float64).reshape(-1, 3) for rows in known]
        traits = np.concatenate([tables[k] for k in order]) if order else np.empty((0, 3))
        starts, ends = np.array(self.starts), np.array(self.ends)
        starts[traits[:, 1] > 0.0] = self.gathered
        kept = traits[:, 0] > 0.0
        return Intervals(starts[kept], ends[kept], traits[kept, 2])

    def _traits(self, line: Line) -> tuple[bool, bool, float]:
        """Whether the rank does something in a line, whether the others have to come first, and the share of computing."""
        computing = [self.seconds[i.id] for i in line.members if i.kind is Kind.COMPUTE]
        busy = bool(computing) or any(i.kind in _OCCUPYING for i in line.members)
        if len(line.members) == 1:
            return busy, line.op in (COLLECTIVE, LIVE_COLLECTIVE), float(bool(computing))
        total = sum(self.seconds[i.id] for i in line.members)
        return busy, False, sum(computing) / total if total else 0.0


# Who waits to receive is idle: the sender is busy.
_OCCUPYING = frozenset(kind for kind in Kind if kind.communicates and kind is not Kind.RECEIVE)


@dataclass(frozen=True, kw_only=True)
class Played:
    """A replay of so many steps. `multiplicity` says how many ranks each simulated one stands for."""

    steps: int
    records: tuple[Record, ...]
    multiplicity: Mapping[int, int]
    _busy_s: dict[float, Mapping[int, tuple[float, float]]] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def step_ends_s(self) -> tuple[float, ...]:
        """When the last task of each step ended, anywhere."""
        return tuple(max((r.step_end_s(step) for r in self.records), default=0.0) for step in range(self.steps))

    @property
    def end_s(self) -> float:
        """When the last task ended."""
        return max(self.step_ends_s, default=0.0)

    def offsets_s(self, step: int) -> Floats:
        """How long before the end of a step each walk had nothing left to do in it."""
        return self.step_ends_s[step] - np.array([record.free_s(step) for record in self.records])

    @cached_property
    def events(self) -> tuple[Event, ...]:
        """Every task's event, ordered by start, rank and stream."""
        found = [event for record in self.records for event in record.events()]
        found.sort(key=itemgetter(*map(COLUMNS.index, ("start_s", "rank", "stream", "end_s"))))
        return tuple(found)

    def busy_s(self, start_s: float) -> Mapping[int, tuple[float, float]]:
        """For each simulated rank, the seconds from `start_s` on in which its device computes, and in which it computes or
        communicates. A collective counts from when all have come.
        """
        if start_s not in self._busy_s:
            of_rank: dict[int, list[Intervals]] = {}
            for record in self.records:
                of_rank.setdefault(record.rank, []).append(record.intervals())
            self._busy_s[start_s] = {rank: _covered(each, start_s) for rank, each in of_rank.items()}
        return self._busy_s[start_s]


def _covered(each: list[Intervals], start_s: float) -> tuple[float, float]:
    starts = np.maximum(np.concatenate([i.starts_s for i in each]), start_s)
    ends = np.concatenate([i.ends_s for i in each])
    computing = np.concatenate([i.computing for i in each])
    kept = ends > starts
    starts, ends, computing = starts[kept], ends[kept], computing[kept]
    return _union_s(starts[computing > 0.0], ends[computing > 0.0], computing[computing > 0.0]), _union_s(starts, ends)


def _union_s(starts: Floats, ends: Floats, weight: Floats | None = None) -> float:
    """Length of the union; with weights, each part at that of the interval that begins it."""
    if not starts.size:
        return 0.0
    order = np.argsort(starts, kind="stable")
    starts, ends = starts[order], ends[order]
    before = np.concatenate([[-np.inf], np.maximum.accumulate(ends)[:-1]])
    parts = np.maximum(ends - np.maximum(starts, before), 0.0)
    return float(parts.sum() if weight is None else (parts * weight[order]).sum())
