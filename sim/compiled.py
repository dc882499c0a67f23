"""A role as the engine runs it: the lines that each walk consists of.

Neighbours of a stream between which nothing happens that anybody else waits for are one *line*: computing, and collectives whose
members are all of one class and so arrive at once. A *walk* is the lines of some streams (:mod:`.walks`), pass by pass.

Where computing and collectives hold each other up, tasks that may do so are *live*: the engine lets the clock come to them. That is
the computing of passes in which a collective of another stream may run (:mod:`.spans`), those collectives, and transfers that share
links with others. Collectives of phase "host" (a few numbers for reports) hold up nobody's computing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from ..models.program import Group, Instruction, Kind, Phase, Role
from ..models.program.waits import Wait, waits
from .spans import live_passes
from .walks import Walks, reader, walks_of

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
TIMED, SEND, RECEIVE, COLLECTIVE, LIVE_COMPUTE, LIVE_COLLECTIVE, LIVE_SEND = range(7)


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

    def of(self, members: Sequence[Instruction], posted: bool) -> Line:
        """This line with its members."""
        return Line(self.op, self.stream, tuple(members), self.waits, self.needs, posted)


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
    flows      messages and collectives that share links with others
    """

    role: Role
    alone: frozenset[Group]
    competes: bool
    flows: frozenset[str] = frozenset()
    _walks: dict[tuple[bool, ...], tuple[Walk, ...]] = field(default_factory=dict)

    @cached_property
    def _everies(self) -> tuple[int, ...]:
        return tuple(sorted({i.every for i in self.role.instructions} - {1}))

    def walks(self, step: int) -> tuple[Walk, ...]:
        """What is done in step number `step`."""
        due = tuple((step + 1) % every == 0 for every in self._everies)
        if due not in self._walks:
            running = {1, *(every for every, runs in zip(self._everies, due, strict=True) if runs)}
            self._walks[due] = tuple(self._walk(streams, running) for streams in self.of.streams)
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
    def of(self) -> Walks:
        """Which streams are walked through together."""
        instruction = self.role.instruction
        sends = {instruction[i].stream for i in self.flows if instruction[i].kind is Kind.SEND}
        return walks_of(self.role, frozenset(sends))

    @cached_property
    def _orders(self) -> list[list[tuple[Instruction, tuple[Wait, ...]]]]:
        """The tasks of each kind of pass as they are walked through, and what they wait for. A receive comes right before the first
        that waits for it or for a later one of its stream, so that nothing waits for it that could go on.
        """
        orders = []
        for kind in waits(self.role).kinds:
            members = [self.role.instruction[m] for m in self.role.passes[kind.name]]
            place = [float(at) for at in range(len(members))]
            soonest: dict[str, float] = {}
            for at in reversed(range(len(members))):
                i = members[at]
                if i.kind is Kind.RECEIVE and i.stream in self.of.streams[0]:
                    first = reader(self.role, self.of, kind, at)
                    assert first is not None
                    place[at] = soonest[i.stream] = min(first - 0.5, soonest.get(i.stream, first))
            walked = sorted(range(len(members)), key=lambda at: place[at]) if soonest else range(len(members))
            orders.append([(members[at], kind.waits[at]) for at in walked])
        return orders

    @cached_property
    def _looked_up(self) -> tuple[frozenset[tuple[int, str]], frozenset[tuple[int, str]]]:
        """By kind of pass and instruction: whom others wait for at all, and whom they have to look up."""
        found = waits(self.role)
        walk_of = {stream: number for number, streams in enumerate(self.of.streams) for stream in streams}
        walk = {i.id: walk_of[i.stream] for i in self.role.instructions if i.stream in walk_of}
        heard: set[tuple[int, str]] = set()
        posted: set[tuple[int, str]] = set()
        far: dict[int, list[Wait]] = {}
        for number, kind in enumerate(found.kinds):
            before = ""  # in the row of the main stream and its collectives
            for member, needed in zip(self.role.passes[kind.name], kind.waits, strict=True):
                in_row = self.role.instruction[member].stream in self.of.serial
                follows, before = (before, member) if in_row else ("", before)
                for wait in needed:
                    if wait.passes_back:
                        far.setdefault(number, []).append(wait)
                        continue
                    if wait.instruction != follows:
                        heard.add((number, wait.instruction))
                    if walk[member] != walk[wait.instruction]:
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
        instruction, serial = self.role.instruction, self.of.serial
        heard, posted = self._looked_up
        lines: list[Line] = []
        line_of: dict[str, int] = {}
        members: list[Instruction] = []  # of the last line
        for i, needed in self._orders[number]:
            if i.stream not in mine or i.every not in running:
                continue
            op, stream = self._op(i, live), 0 if i.stream in serial else streams.index(i.stream)
            if (
                members
                and op == lines[-1].op == TIMED
                and stream == lines[-1].stream
                and i.every == members[-1].every
                and (number, members[-1].id) not in heard
                and all(wait == (members[-1].id, 0) for wait in needed)
            ):
                members.append(i)
            else:
                if members:
                    lines[-1] = lines[-1].of(members, (number, members[-1].id) in posted)
                members = [i]
                local, needs = [], []
                for wait in needed:
                    other = instruction[wait.instruction]
                    if not wait.passes_back and other.id in line_of:
                        local.append(line_of[other.id])
                    elif wait.passes_back or other.stream not in mine:
                        needs.append(Need(*wait, other.every))
                lines.append(Line(op, stream, (), tuple(local), tuple(needs), False))
            line_of[i.id] = len(lines) - 1
        if members:
            lines[-1] = lines[-1].of(members, (number, members[-1].id) in posted)
        return tuple(lines)

    def _op(self, i: Instruction, live: bool) -> int:
        if i.kind is Kind.SEND:
            return LIVE_SEND if i.id in self.flows else SEND
        if i.kind is Kind.RECEIVE:
            return RECEIVE
        if i.kind.is_collective:
            if i.id in self.flows or self.holds_up(i):
                return LIVE_COLLECTIVE
            return TIMED if i.group in self.alone else COLLECTIVE
        return LIVE_COMPUTE if live and i.kind is Kind.COMPUTE else TIMED

    def holds_up(self, i: Instruction) -> bool:
        """Whether a collective and computing may go on at the same time and slow each other down."""
        beside = i.stream not in self.of.serial or len(self._computing) > 1
        return self.competes and beside and i.kind.is_collective and i.phase is not Phase.HOST

    @cached_property
    def _computing(self) -> frozenset[str]:
        return frozenset(i.stream for i in self.role.instructions if i.kind is Kind.COMPUTE)

    @cached_property
    def live(self) -> frozenset[int]:
        """The passes of the schedule in which computing may meet such a collective."""
        if len(self._computing) > 1 and any(self.holds_up(i) for i in self.role.instructions):
            return frozenset(range(self.passes))
        return live_passes(self.role, self.of, self.holds_up)
