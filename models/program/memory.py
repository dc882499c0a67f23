"""Peak memory of a role, from the life of its buffers.

A task's writes come to life before it, its frees end after it. What a pass adds and how high it reaches in between is the same for
all microbatches that come to it by the same passes, as long as it finds the STEP buffers in the same state; so each such pass is
walked through once, and the schedule only adds up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from .checking import lives
from .instruction import Content, Program, Role, Scope, Task

__all__ = ["MemoryPeak", "peak_memory"]


@dataclass(frozen=True, kw_only=True)
class MemoryPeak:
    """The most bytes that a role holds at once: when, and of what."""

    peak_bytes: int
    task: Task | None
    by_content: dict[Content, int]


class _Course(NamedTuple):
    """What a pass does to memory: bytes above its start at the worst, at which instruction, of what; and what it leaves behind."""

    highest: int
    at: str
    composition: Mapping[Content, int]
    left: Mapping[Content, int]
    live: frozenset[str]  # MICROBATCH buffers that live when it ends
    step_live: frozenset[str]  # STEP buffers that live when it ends


def peak_memory(program: Program, role: Role) -> MemoryPeak:
    """Peak memory of one rank of `role`. A buffer shared by a group counts with the part that one rank holds."""
    walk = _Walk(program, role)
    held: Counter[Content] = Counter()
    for buffer in role.buffers:
        if buffer.scope is Scope.RUN:
            held[buffer.content] += walk.size[buffer.name]
    total = peak_bytes = held.total()
    at, composition = None, dict(held)
    life_of = {m: names for names, microbatches in lives(role).items() for m in microbatches}
    stage: Counter[int | None] = Counter()  # how many of its passes a microbatch has behind it
    live: dict[int | None, frozenset[str]] = {}
    step_live: frozenset[str] = frozenset()
    courses: dict[tuple[object, ...], _Course] = {}
    for name, microbatch in role.schedule:
        key = (life_of[microbatch], stage[microbatch], step_live)
        if key not in courses:
            courses[key] = walk.course(name, live.get(microbatch, frozenset()), step_live)
        course = courses[key]
        if total + course.highest > peak_bytes:
            peak_bytes = total + course.highest
            once = role.instruction[course.at].once
            at, composition = Task(course.at, None if once else microbatch), dict(held + Counter(course.composition))
        for content, nbytes in course.left.items():
            held[content] += nbytes
            total += nbytes
        stage[microbatch] += 1
        live[microbatch], step_live = course.live, course.step_live
    return MemoryPeak(
        peak_bytes=peak_bytes, task=at, by_content={c: n for c, n in sorted(composition.items()) if n > 0}
    )


class _Walk:
    """Passes of one role, instruction by instruction."""

    def __init__(self, program: Program, role: Role) -> None:
        self.role = role
        shares = {b.name: program.mesh.group_size(b.shared) if b.shared else 1 for b in role.buffers}
        self.size = {b.name: -(-b.nbytes // shares[b.name]) for b in role.buffers}

    def course(self, name: str, live: frozenset[str], step_live: frozenset[str]) -> _Course:
        buffers, size = self.role.buffer, self.size
        alive = {Scope.MICROBATCH: set(live), Scope.STEP: set(step_live)}
        change: Counter[Content] = Counter()
        highest, at, composition, now = 0, self.role.passes[name][0], dict[Content, int](), 0
        for member in self.role.passes[name]:
            instruction = self.role.instruction[member]
            for b in (*instruction.writes, *instruction.accumulates):
                buffer = buffers[b]
                if buffer.scope is not Scope.RUN and b not in alive[buffer.scope]:
                    alive[buffer.scope].add(b)
                    change[buffer.content] += size[b]
                    now += size[b]
            if now > highest:
                highest, at, composition = now, member, dict(change)
            for b in instruction.frees:
                buffer = buffers[b]
                if buffer.scope is not Scope.RUN and b in alive[buffer.scope]:
                    alive[buffer.scope].remove(b)
                    change[buffer.content] -= size[b]
                    now -= size[b]
        left = {content: nbytes for content, nbytes in change.items() if nbytes}
        return _Course(highest, at, composition, left, frozenset(alive[Scope.MICROBATCH]), frozenset(alive[Scope.STEP]))
