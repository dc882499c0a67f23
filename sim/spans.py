"""Passes in which computing may meet a collective that runs beside it."""

from __future__ import annotations

from collections.abc import Callable

from ..models.program import Instruction, Role
from ..models.program.waits import Wait, waits
from .walks import Walks

__all__ = ["live_passes"]


def live_passes(role: Role, walks: Walks, meets: Callable[[Instruction], bool]) -> frozenset[int]:
    """The passes of the schedule in which one of the collectives that `meets` says yes to may run while the main stream computes.

    Such a collective runs at the earliest from the pass of the last main task that it waits for, and at the latest until the pass in
    which the main stream waits for it.
    """
    if not any(meets(i) for i in role.instructions):
        return frozenset()
    return _Spans(role, walks, meets).run()


class _Spans:
    """The schedule walked through so many steps that the last ones show what repeats."""

    def __init__(self, role: Role, walks: Walks, meets: Callable[[Instruction], bool]) -> None:
        self.role, self.walks, self.meets = role, walks, meets
        self.began: dict[str, int] = {}  # by stream, the pass of the last main task that it has waited for
        # By stream, how many tasks of each other one it has waited for; the main stream and its collectives are one.
        self.seen: dict[str, dict[str, int]] = {s: {} for s in role.streams}
        self.done = dict.fromkeys(role.streams, 0)
        self.posts: dict[tuple[str, int], tuple[int, dict[str, int]]] = {}  # what a task of another stream knew
        self.open: list[
            tuple[str, int, int]
        ] = []  # collectives nobody has waited for: stream, task's number, first pass
        self.repeats = max(i.every for i in role.instructions if meets(i))
        self.steps = 2 * self.repeats + 1

    def run(self) -> frozenset[int]:
        found, passes, of = waits(self.role), len(self.role.schedule), self.role.instruction
        walked = {*self.walks.streams[0]}
        plain = {
            number
            for number, kind in enumerate(found.kinds)
            if all(of[i].stream in walked for i in self.role.passes[kind.name])
            and all(of[w.instruction].stream in walked for needed in kind.waits for w in needed)
        }
        spans: list[tuple[int, int]] = []
        for position in range(self.steps * passes):
            number = found.of_pass[position % passes]
            if number in plain:
                continue
            kind = found.kinds[number]
            for member, needed in zip(self.role.passes[kind.name], kind.waits, strict=True):
                if of[member].runs_in(position // passes):
                    spans += self._task(of[member], needed, position)
        if any(first // passes < self.steps - self.repeats for _, _, first in self.open):
            return frozenset(range(passes))  # nobody ever waits for it
        spans += [(first, self.steps * passes - 1) for _, _, first in self.open]
        return frozenset(p % passes for first, last in spans for p in range(max(first, last - passes), last + 1))

    def _task(self, i: Instruction, needed: tuple[Wait, ...], position: int) -> list[tuple[int, int]]:
        """Go past a task; the spans that end with it."""
        serial, stream = self.walks.serial, i.stream
        seen = self.seen[self.walks.main if stream in serial else stream]
        for wait in needed:
            then = position - wait.passes_back
            if self.role.instruction[wait.instruction].stream in serial:
                self.began[stream] = max(self.began.get(stream, 0), then)
            elif (wait.instruction, then) in self.posts:
                began, knows = self.posts[wait.instruction, then]
                self.began[stream] = max(self.began.get(stream, 0), began)
                for name, count in knows.items():
                    seen[name] = max(seen.get(name, 0), count)
        if stream in serial:
            ended = [(first, position) for other, count, first in self.open if seen.get(other, 0) >= count]
            self.open = [one for one in self.open if seen.get(one[0], 0) < one[1]]
            return ended
        self.done[stream] += 1
        if self.meets(i):
            self.open.append((stream, self.done[stream], self.began.get(stream, 0)))
        self.posts[i.id, position] = (self.began.get(stream, 0), {**seen, stream: self.done[stream]})
        return []
