"""Which streams of a role are walked through together.

The *main* stream is the one that computes. *Serial* streams are those whose collectives the main stream waits for at once, as if they
were its own (those of tensor parallelism, say). They make up the first walk, together with all streams whose tasks can be taken along
in it without anybody noticing: a send right after the main task that it waits for, a receive right before the main task that waits for
it, and work that stays on the rank and waits for nothing but the walk itself. Every other stream is a walk of its own.

That nobody notices means: whoever is outside learns of the end of a task as soon as all that the task waits for is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from ..models.program import Instruction, Kind, Role
from ..models.program.waits import PassKind, Wait, waits

__all__ = ["Walks", "reader", "walks_of"]


@dataclass(frozen=True, kw_only=True)
class Walks:
    """The streams of each walk, the main one first, and which of that behave as one stream."""

    main: str
    serial: frozenset[str]
    streams: tuple[tuple[str, ...], ...]


def walks_of(role: Role, timed: frozenset[str] = frozenset()) -> Walks:
    """How the streams of `role` are walked through. Streams that are `timed` take the clock's time and go by themselves."""
    memo = vars(role).setdefault("_walks", {})  # a role never changes, and every class that plays it asks
    if timed not in memo:
        memo[timed] = _Choice(role).made(timed)
    found: Walks = memo[timed]
    return found


def reader(role: Role, walks: Walks, kind: PassKind, at: int) -> int | None:
    """The first task in a pass that waits for its receive number `at`; None where there is none or it is not of the main stream."""
    ids = role.passes[kind.name]
    wanted = Wait(ids[at], 0)
    for k in range(at + 1, len(ids)):
        if wanted in kind.waits[k]:
            return k if role.instruction[ids[k]].stream in walks.serial else None
    return None


class _Task(NamedTuple):
    """An instruction of a kind of pass, its number there, and what it waits for."""

    kind: PassKind
    at: int
    instruction: Instruction
    needed: tuple[Wait, ...]


class _Choice:
    def __init__(self, role: Role) -> None:
        self.role, self.of = role, role.instruction
        self.tasks: dict[str, list[_Task]] = {stream: [] for stream in role.streams}
        self.passes: list[list[_Task]] = []
        for kind in waits(role).kinds:
            ids = role.passes[kind.name]
            self.passes.append(
                [_Task(kind, at, self.of[i], w) for at, (i, w) in enumerate(zip(ids, kind.waits, strict=True))]
            )
            for task in self.passes[-1]:
                self.tasks[task.instruction.stream].append(task)
        self.waiters: dict[str, set[str]] = {}  # by instruction, the streams that wait for it
        for stream, tasks in self.tasks.items():
            for task in tasks:
                for wait in task.needed:
                    self.waiters.setdefault(wait.instruction, set()).add(stream)

    def made(self, timed: frozenset[str]) -> Walks:
        streams = self.role.streams
        computing = {s: sum(t.instruction.kind is Kind.COMPUTE for t in self.tasks[s]) for s in streams}
        main = max(computing, key=lambda stream: computing[stream]) if computing else ""
        serial = {main}
        for stream in streams:
            if stream != main and all(t.instruction.kind.is_collective for t in self.tasks[stream]):
                beside = ({main, stream}, {*serial, stream})
                if all(_in_a_row(tasks, main, row) for tasks in self.passes for row in beside):
                    serial.add(stream)
        walks = Walks(main=main, serial=frozenset(serial), streams=())
        together = dict.fromkeys((main, *(s for s in streams if s in serial))) if streams else {}
        waiting = [s for s in streams if s not in together]
        while fitting := [s for s in waiting if s not in timed and self._fits(s, {*together, s}, walks)]:
            together |= dict.fromkeys(fitting)
            waiting = [s for s in waiting if s not in together]
        first = (tuple(together),) if together else ()
        return Walks(main=main, serial=frozenset(serial), streams=(*first, *((s,) for s in waiting)))

    def _fits(self, stream: str, walked: set[str], walks: Walks) -> bool:
        """Whether the tasks of `stream` can be taken along in a walk of the streams `walked`."""
        return not any(self._too_early(task, stream, walked) for other in walked for task in self.tasks[other]) and all(
            self._unnoticed(task, walked, walks) for task in self.tasks[stream]
        )

    def _too_early(self, task: _Task, stream: str, walked: set[str]) -> bool:
        """Whether a task in a walk waits for one that comes later in it, with `stream` on either side."""
        for wait in task.needed:
            other = self.of[wait.instruction].stream
            if stream in (other, task.instruction.stream) and other in walked:
                ids = self.role.passes[task.kind.name]
                if wait.passes_back < 0 or (not wait.passes_back and ids.index(wait.instruction) > task.at):
                    return True
        return False

    def _unnoticed(self, task: _Task, walked: set[str], walks: Walks) -> bool:
        """Whether it makes no difference outside the walk if the task is taken along."""
        kind, at, i, needed = task
        if (
            i.kind.is_collective
            or i.kind is Kind.COMPUTE
            or any(self.of[w.instruction].stream not in walked for w in needed)
        ):
            return False
        heard = bool(self.waiters.get(i.id, set()) - walked)
        if i.kind is Kind.RECEIVE:
            return not heard and reader(self.role, walks, kind, at) is not None
        if i.kind is not Kind.SEND and not heard:
            return True
        ids = self.role.passes[kind.name]
        before = next((k for k in range(at - 1, -1, -1) if self.of[ids[k]].stream in walks.serial), None)
        return before is not None and Wait(ids[before], 0) in needed


def _in_a_row(tasks: Sequence[_Task], main: str, streams: set[str]) -> bool:
    """Whether the tasks of `streams` in a pass each wait for the one before, from a main task to a main task."""
    row = [t for t in tasks if t.instruction.stream in streams]
    if row and (row[0].instruction.stream != main or row[-1].instruction.stream != main):
        return False
    return all(
        after.instruction.stream == before.instruction.stream or Wait(before.instruction.id, 0) in after.needed
        for before, after in pairwise(row)
    )
