"""A role as the engine runs it: which streams are walked together, and the lines that each walk consists of.

**Walks.** The main stream (the one that computes) and all streams whose tasks can be taken along in the program's order without
anybody noticing are one walk; every other stream is a walk of its own. A stream can be taken along where its tasks never make the
main stream late and nobody outside sees them late: a send right after what it waits for, a receive right before what waits for it,
and work that stays on the rank and waits for nothing but the walk itself.

**Lines.** Neighbours of a stream between which nothing happens that anybody else waits for are one line: computing, and collectives
whose members are all of one class and so arrive at once.

**Competition.** Where computing and collectives hold each other up, tasks that may do so are *live*: the engine lets the clock come
to them. That is the computing from the first pass in which a collective of another stream may have begun until the main stream
has waited for it. Collectives of phase "host" (a few numbers for reports) hold up nobody.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

from ..models.program import Group, Instruction, Kind, Phase, Role
from ..models.program.waits import PassKind, Wait, waits

__all__ = [
    "COLLECTIVE",
    "LIVE_COLLECTIVE",
    "LIVE_COMPUTE",
    "RECEIVE",
    "SEND",
    "TIMED",
    "Line",
    "Need",
    "Script",
    "Walk",
]

# What a line asks of the engine.
TIMED, SEND, RECEIVE, COLLECTIVE, LIVE_COMPUTE, LIVE_COLLECTIVE = range(6)


class Need(NamedTuple):
    """A wait that is looked up: for a task of another walk, or of another pass."""

    instruction: str
    passes_back: int
    every: int


class Line(NamedTuple):
    """What one walk does at one go. `stream` counts the walk's streams, `waits` name lines of the same pass of the walk by their
    number, and `posted` says that others look for its end under its last instruction."""

    op: int
    stream: int
    members: tuple[Instruction, ...]
    waits: tuple[int, ...]
    needs: tuple[Need, ...]
    posted: bool


class _Task(NamedTuple):
    """An instruction of a kind of pass, its number there, and what it waits for."""

    kind: PassKind
    at: int
    instruction: Instruction
    needed: tuple[Wait, ...]


@dataclass(frozen=True, kw_only=True)
class Walk:
    """Streams that are worked through together: for the pass at each of `positions` of the schedule, its lines."""

    streams: tuple[str, ...]
    positions: tuple[int, ...]
    lines: tuple[tuple[Line, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Script:
    """A role to be run.

    alone      groups whose members are all of the rank's class: their collectives wait for nobody
    competes   whether computing and collectives hold each other up
    """

    role: Role
    alone: frozenset[Group]
    competes: bool
    _walks: dict[tuple[bool, ...], tuple[Walk, ...]] = field(default_factory=dict)

    @cached_property
    def _everies(self) -> tuple[int, ...]:
        return tuple(sorted({i.every for i in self.role.instructions} - {1}))

    def walks(self, step: int) -> tuple[Walk, ...]:
        """What is done in step number `step`."""
        due = tuple((step + 1) % every == 0 for every in self._everies)
        if due not in self._walks:
            running = {1, *(every for every, runs in zip(self._everies, due, strict=True) if runs)}
            self._walks[due] = tuple(self._walk(streams, running) for streams in self.streams)
        return self._walks[due]

    @cached_property
    def passes(self) -> int:
        """How many passes a step has."""
        return len(self.role.schedule)

    @cached_property
    def numbers(self) -> tuple[int, ...]:
        """What the tasks of each pass are told apart by in a step: 0 for those without a microbatch."""
        return tuple([0 if m is None else m + 1 for _, m in self.role.schedule])

    @cached_property
    def main(self) -> str:
        """The stream that computes."""
        computing: dict[str, int] = {}
        for i in self.role.instructions:
            computing[i.stream] = computing.get(i.stream, 0) + (i.kind is Kind.COMPUTE)
        return max(computing, key=lambda stream: computing[stream]) if computing else ""

    @cached_property
    def serial(self) -> frozenset[str]:
        """The main stream, and those whose collectives it waits for at once, as if they were its own (of tensor parallelism, say):
        in every pass each of their tasks and of the main stream's waits for the one before it.
        """
        instruction, role = self.role.instruction, self.role
        kinds: dict[str, set[bool]] = {}
        for i in role.instructions:
            kinds.setdefault(i.stream, set()).add(i.kind.is_collective)
        passes = [
            [(instruction[m].stream, m, needed) for m, needed in zip(role.passes[kind.name], kind.waits, strict=True)]
            for kind in waits(role).kinds
        ]
        found = {self.main}
        for stream in role.streams:
            if kinds[stream] == {True} and stream != self.main:
                alone, beside = {self.main, stream}, {*found, stream}
                if not any(self._breaks(members, alone) or self._breaks(members, beside) for members in passes):
                    found.add(stream)
        return frozenset(found)

    def _breaks(self, members: Sequence[tuple[str, str, tuple[Wait, ...]]], serial: set[str]) -> bool:
        """Whether the tasks of the streams `serial` in a pass do not wait for each other in a row from main task to main task."""
        row = [(stream, member, needed) for stream, member, needed in members if stream in serial]
        return (bool(row) and (row[0][0] != self.main or row[-1][0] != self.main)) or any(
            stream != before and Wait(last, 0) not in needed for (before, last, _), (stream, _, needed) in pairwise(row)
        )

    @cached_property
    def streams(self) -> tuple[tuple[str, ...], ...]:
        """The streams of each walk, the main one first."""
        if not self.role.streams:
            return ()
        together = dict.fromkeys((self.main, *(s for s in self.role.streams if s in self.serial)))
        waiting = [s for s in self.role.streams if s not in together]
        tasks = self._tasks
        while fitting := [s for s in waiting if self._fits(s, {*together, s}, tasks)]:
            together |= dict.fromkeys(fitting)
            waiting = [s for s in waiting if s not in together]
        return tuple(together), *((s,) for s in waiting)

    @cached_property
    def _tasks(self) -> Mapping[str, list[_Task]]:
        """By stream, its instructions in each kind of pass."""
        found: dict[str, list[_Task]] = {stream: [] for stream in self.role.streams}
        for kind in waits(self.role).kinds:
            members = self.role.passes[kind.name]
            for at, (member, needed) in enumerate(zip(members, kind.waits, strict=True)):
                i = self.role.instruction[member]
                found[i.stream].append(_Task(kind, at, i, needed))
        return found

    def _fits(self, stream: str, walked: set[str], tasks: Mapping[str, list[_Task]]) -> bool:
        """Whether the tasks of `stream` can be taken along in a walk of the streams `walked`: nothing in it waits for what
        comes later, and nobody else sees that they are taken along."""
        of = self.role.instruction
        for other in walked:
            for kind, at, _, needed in tasks[other]:
                for wait in needed:
                    if stream in (other, of[wait.instruction].stream) and of[wait.instruction].stream in walked:
                        ids = self.role.passes[kind.name]
                        if wait.passes_back < 0 or (not wait.passes_back and ids.index(wait.instruction) > at):
                            return False
        return all(self._unseen(task, walked, tasks) for task in tasks[stream])

    def _unseen(self, task: _Task, walked: set[str], tasks: Mapping[str, list[_Task]]) -> bool:
        """Whether it makes no difference outside a walk of the streams `walked` if a task is taken along there."""
        of, (kind, at, i, needed) = self.role.instruction, task
        if (
            i.kind.is_collective
            or i.kind is Kind.COMPUTE
            or any(of[w.instruction].stream not in walked for w in needed)
        ):
            return False
        members = [of[m] for m in self.role.passes[kind.name]]
        if i.kind is Kind.RECEIVE:  # taken along by the first that waits for it
            return self._reader(kind, at) is not None
        outside = (t for stream, theirs in tasks.items() if stream not in walked for t in theirs)
        if i.kind is not Kind.SEND and not any(w.instruction == i.id for t in outside for w in t.needed):
            return True
        # The one that computed last is what it waits for, so that it is not told later than it could be.
        before = next((k for k in range(at - 1, -1, -1) if members[k].stream in self.serial), None)
        return before is not None and Wait(members[before].id, 0) in needed

    def _reader(self, kind: PassKind, at: int) -> int | None:
        """The first task of the main stream in the pass that waits for its receive number `at`."""
        ids = self.role.passes[kind.name]
        wanted = Wait(ids[at], 0)
        for k in range(at + 1, len(ids)):
            if wanted in kind.waits[k]:
                return k if self.role.instruction[ids[k]].stream in self.serial else None
        return None

    def _in_order(self, kind: PassKind) -> list[tuple[Instruction, tuple[Wait, ...]]]:
        """The tasks of a pass as they are walked through: a receive right before the first that waits for it, or for a later one
        of its stream, so that nothing that could go on waits for it.
        """
        members = [self.role.instruction[m] for m in self.role.passes[kind.name]]
        place = {at: float(at) for at in range(len(members))}
        soonest: dict[str, float] = {}
        for at in reversed(range(len(members))):
            i = members[at]
            if i.kind is Kind.RECEIVE and self._walk_of[i.stream] == 0:
                reader = self._reader(kind, at)
                assert reader is not None
                place[at] = soonest[i.stream] = min(reader - 0.5, soonest.get(i.stream, reader))
        return [(members[at], kind.waits[at]) for at in sorted(place, key=lambda at: (place[at], at))]

    @cached_property
    def _walk_of(self) -> Mapping[str, int]:
        return {stream: number for number, streams in enumerate(self.streams) for stream in streams}

    @cached_property
    def _looked_up(self) -> tuple[frozenset[tuple[int, str]], frozenset[tuple[int, str]]]:
        """By kind of pass and instruction: whom others wait for at all, and whom they have to look up."""
        found = waits(self.role)
        stream = {i.id: self._walk_of[i.stream] for i in self.role.instructions if i.stream in self._walk_of}
        heard: set[tuple[int, str]] = set()
        posted: set[tuple[int, str]] = set()
        far: dict[int, list[Wait]] = {}
        for number, kind in enumerate(found.kinds):
            before = ""  # in the row of the main stream and its collectives
            for member, needed in zip(self.role.passes[kind.name], kind.waits, strict=True):
                in_row = self.role.instruction[member].stream in self.serial
                follows, before = (before, member) if in_row else ("", before)
                for wait in needed:
                    if wait.passes_back:
                        far.setdefault(number, []).append(wait)
                        continue
                    if wait.instruction != follows:
                        heard.add((number, wait.instruction))
                    if stream[member] != stream[wait.instruction]:
                        posted.add((number, wait.instruction))
        for position, number in enumerate(found.of_pass):
            for wait in far.get(number, ()):
                there = found.of_pass[(position - wait.passes_back) % self.passes]
                heard.add((there, wait.instruction))
                posted.add((there, wait.instruction))
        return frozenset(heard), frozenset(posted)

    def _walk(self, streams: tuple[str, ...], running: set[int]) -> Walk:
        """The lines of `streams` in a step in which instructions with these `every` run."""
        mine = set(streams)
        lines = {key: self._lines(key[0], streams, mine, running, live=key[1]) for key in dict.fromkeys(self._keys)}
        positions = [position for position, key in enumerate(self._keys) if lines[key]]
        return Walk(streams=streams, positions=tuple(positions), lines=tuple([lines[self._keys[p]] for p in positions]))

    @cached_property
    def _keys(self) -> list[tuple[int, bool]]:
        """For each pass of the schedule, its kind and whether it is live: all that its lines depend on."""
        live = self.live
        return [(number, position in live) for position, number in enumerate(waits(self.role).of_pass)]

    def _lines(
        self, number: int, streams: tuple[str, ...], mine: set[str], running: set[int], *, live: bool
    ) -> tuple[Line, ...]:
        kind = waits(self.role).kinds[number]
        instruction = self.role.instruction
        heard, posted = self._looked_up
        lines: list[Line] = []
        line_of: dict[str, int] = {}
        for i, needed in self._in_order(kind):
            if i.stream not in mine or i.every not in running:
                continue
            local, needs = [], []
            for wait in needed:
                if not wait.passes_back and wait.instruction in line_of:
                    local.append(line_of[wait.instruction])
                elif wait.passes_back or instruction[wait.instruction].stream not in mine:
                    needs.append(Need(*wait, instruction[wait.instruction].every))
            stream = 0 if i.stream in self.serial else streams.index(i.stream)
            line = Line(self._op(i, live), stream, (i,), tuple(local), tuple(needs), (number, i.id) in posted)
            last = lines[-1] if lines else None
            if (
                last is not None
                and last.op == line.op == TIMED
                and last.stream == line.stream
                and all(w == (last.members[-1].id, 0) for w in needed)
                and i.every == last.members[-1].every
                and (number, last.members[-1].id) not in heard
            ):
                lines[-1] = last._replace(members=(*last.members, i), posted=line.posted)
            else:
                lines.append(line)
            line_of[i.id] = len(lines) - 1
        return tuple(lines)

    def _op(self, i: Instruction, live: bool) -> int:
        if i.kind is Kind.SEND:
            return SEND
        if i.kind is Kind.RECEIVE:
            return RECEIVE
        if i.kind.is_collective:
            if self.holds_up(i):
                return LIVE_COLLECTIVE
            return TIMED if i.group in self.alone else COLLECTIVE
        return LIVE_COMPUTE if live and i.kind is Kind.COMPUTE else TIMED

    def holds_up(self, i: Instruction) -> bool:
        """Whether a collective and computing may go on at the same time and slow each other down."""
        beside = i.stream not in self.serial or len(self._computing) > 1
        return self.competes and beside and i.kind.is_collective and i.phase is not Phase.HOST

    @cached_property
    def _computing(self) -> frozenset[str]:
        return frozenset(i.stream for i in self.role.instructions if i.kind is Kind.COMPUTE)

    @cached_property
    def live(self) -> frozenset[int]:
        """The passes of the schedule in which computing may meet such a collective."""
        if not any(self.holds_up(i) for i in self.role.instructions):
            return frozenset()
        everything = frozenset(range(self.passes))
        if len(self._computing) > 1:
            return everything
        spans = _Spans(self).run()
        return everything if spans is None else spans


class _Spans:
    """When collectives beside the main stream can run at all: from the pass of the last main task that they wait for until the
    pass in which the main stream waits for them. Walked through so many steps that the last ones show what repeats.
    """

    def __init__(self, script: Script) -> None:
        self.script = script
        self.role = script.role
        self.began: dict[str, int] = {}  # by stream, the pass of the last main task that it has waited for
        self.seen: dict[str, dict[str, int]] = {
            s: {} for s in self.role.streams
        }  # how many tasks of others each waited for
        self.done = dict.fromkeys(self.role.streams, 0)
        self.posts: dict[tuple[str, int], tuple[int | None, dict[str, int]]] = {}
        self.open: list[tuple[str, int, int]] = []  # stream, its task's number, first pass
        self.repeats = max((i.every for i in script.role.instructions if script.holds_up(i)), default=1)
        self.steps = 2 * self.repeats + 1

    def run(self) -> frozenset[int] | None:
        found = waits(self.role)
        n = self.script.passes
        spans: list[tuple[int, int]] = []
        walked = {*self.script.streams[0]}
        of = self.role.instruction
        plain = {
            number
            for number, kind in enumerate(found.kinds)
            if all(of[i].stream in walked for i in self.role.passes[kind.name])
            and all(of[w.instruction].stream in walked for needed in kind.waits for w in needed)
        }
        for position in range(self.steps * n):
            number = found.of_pass[position % n]
            if number in plain:
                continue
            kind = found.kinds[number]
            for member, needed in zip(self.role.passes[kind.name], kind.waits, strict=True):
                i = self.role.instruction[member]
                if not i.runs_in(position // n):
                    continue
                spans += self._task(i, needed, position)
        if any(first // n < self.steps - self.repeats for _, _, first in self.open):
            return None
        spans += [(first, self.steps * n - 1) for _, _, first in self.open]
        return frozenset(p % n for first, last in spans for p in range(max(first, last - n), last + 1))

    def _task(self, i: Instruction, needed: tuple[Wait, ...], position: int) -> list[tuple[int, int]]:
        """The spans that end with this task of the main stream."""
        serial, stream = self.script.serial, i.stream
        seen = self.seen[self.script.main if stream in serial else stream]
        for wait in needed:
            other = self.role.instruction[wait.instruction].stream
            then = position - wait.passes_back
            if other in serial:
                self.began[stream] = max(self.began.get(stream, 0), then)
            elif (wait.instruction, then) in self.posts:
                began, knows = self.posts[wait.instruction, then]
                if began is not None:
                    self.began[stream] = max(self.began.get(stream, 0), began)
                for name, count in knows.items():
                    seen[name] = max(seen.get(name, 0), count)
        ended = []
        if stream in serial:
            ended = [(first, position) for other, count, first in self.open if seen.get(other, 0) >= count]
            self.open = [one for one in self.open if seen.get(one[0], 0) < one[1]]
            return ended
        self.done[stream] += 1
        if self.script.holds_up(i):
            self.open.append((stream, self.done[stream], self.began.get(stream, 0)))
        self.posts[i.id, position] = (self.began.get(stream), {**seen, stream: self.done[stream]})
        return ended
