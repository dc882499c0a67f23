"""The discrete-event engine: programs interpreted in virtual time.

Every stream of every simulated rank is a SimPy process that works through its tasks in the program's order. A task starts when
its stream is free and its dependencies have ended, and takes what its price says:

* a send occupies its stream while the bytes travel, the receive ends when they have arrived;
* a collective starts when the last member has come and ends for all at once;
* a one-sided access takes its own time and asks nobody;
* where communication needs the device's own cores (its ``communication_overlap`` is below 1), computing that goes on meanwhile
  is held up by the share that is not hidden.

A process yields to SimPy only where time passes or where it has to wait: what has already happened costs no event. The same
input gives the same events in the same order: ties are broken by the order in which streams were started.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, NamedTuple

import simpy

from ..errors import PlanError
from ..models.program import Group, Instruction, Kind, Peer, Program, Role, Task, dependencies
from ..models.trace import COLUMNS, Event

__all__ = ["replay"]

Prices = Mapping[int, Mapping[str, float]]
Waiting = Generator[simpy.Event, Any, None]


class _Wait(NamedTuple):
    """A task of another stream that must have ended: its place in the order, how many steps ago, how often it runs."""

    position: int
    steps_back: int
    every: int


class _Line(NamedTuple):
    """One task of a stream, and what the engine needs to know about it."""

    position: int
    task: Task
    instruction: Instruction
    waits: tuple[_Wait, ...]
    heard: bool  # whether a task of another stream waits for it
    columns: tuple[str, str, str, int]  # of its event: stream, kind, phase, payload_bytes


def _script(role: Role) -> Mapping[str, tuple[_Line, ...]]:
    """What each stream does in one step. A stream's own order makes dependencies within it superfluous."""
    order = [(task, role.instruction[task.instruction]) for task in role.order]
    columns = {i.id: (i.stream, i.kind.value, i.phase.value, role.payload_bytes(i)) for i in role.instructions}
    waits: list[tuple[_Wait, ...]] = []
    heard: set[int] = set()
    for (_, instruction), needs in zip(order, dependencies(role), strict=True):
        others = [n for n in needs if order[n.position][1].stream != instruction.stream]
        heard.update(n.position for n in others)
        waits.append(tuple(_Wait(n.position, n.steps_back, order[n.position][1].every) for n in others))
    lines: dict[str, list[_Line]] = {stream: [] for stream in role.streams}
    for position, (task, instruction) in enumerate(order):
        line = _Line(position, task, instruction, waits[position], position in heard, columns[instruction.id])
        lines[instruction.stream].append(line)
    return {stream: tuple(mine) for stream, mine in lines.items()}


@dataclass
class _Rank:
    """One simulated rank: what has ended, who waits for what has not, and how long its device has been communicating."""

    number: int
    role: Role
    seconds: Mapping[str, float]
    ended: set[tuple[int, int]] = field(default_factory=set)  # (step, position)
    awaited: dict[tuple[int, int], simpy.Event] = field(default_factory=dict)
    peers: dict[Peer, int] = field(default_factory=dict)
    at: dict[str, tuple[Task, int]] = field(default_factory=dict)  # where each stream is: its task and step
    communicating: int = 0
    communicated_s: float = 0.0
    communicating_since_s: float = 0.0
    quiet: simpy.Event | None = None  # of somebody who waits for the last transfer to end

    def communicated_until(self, now_s: float) -> float:
        """Seconds in which at least one transfer ran, up to now."""
        return self.communicated_s + (now_s - self.communicating_since_s if self.communicating else 0.0)

    def begin_communication(self, now_s: float) -> None:
        if not self.communicating:
            self.communicating_since_s = now_s
        self.communicating += 1

    def end_communication(self, now_s: float) -> None:
        self.communicating -= 1
        if not self.communicating:
            self.communicated_s += now_s - self.communicating_since_s
            if self.quiet:
                self.quiet.succeed()
                self.quiet = None


@dataclass
class _Meeting:
    """A collective that is gathering: how many are still missing, and the event at which it ends."""

    missing: int
    ended: simpy.Event
    longest_s: float = 0.0
    members: list[_Rank] = field(default_factory=list)


def replay(program: Program, seconds: Prices, *, steps: int, communication_overlap: float = 1.0) -> tuple[Event, ...]:
    """Run `steps` steps and return every task's event, ordered by start, rank and stream.

    seconds                 for every rank to simulate, the duration of each of its instructions by id. Ranks that are left out
                            must behave as those that are in: a collective starts when the simulated members have come.
    communication_overlap   share of communication that the device hides behind computing

    Raises:
        PlanError: tasks wait for each other in a circle; the message names them.
    """
    return _Engine(program, seconds, steps, communication_overlap).run()


class _Engine:
    def __init__(self, program: Program, seconds: Prices, steps: int, communication_overlap: float) -> None:
        self.env = simpy.Environment()
        self.mesh = program.mesh
        self.steps = steps
        self.exposed = 1.0 - communication_overlap
        self.scripts = {role.name: _script(role) for role in program.roles}
        self.ranks = {r: _Rank(number=r, role=program.role_of(r), seconds=seconds[r]) for r in sorted(seconds)}
        self.groups: dict[tuple[int, Group], tuple[int, int]] = {}
        self.delivered: set[tuple[Any, ...]] = set()
        self.expected: dict[tuple[Any, ...], simpy.Event] = {}
        self.gathering: dict[tuple[Any, ...], _Meeting] = {}
        self.events: list[Event] = []

    def run(self) -> tuple[Event, ...]:
        for rank in self.ranks.values():
            for stream, lines in self.scripts[rank.role.name].items():
                self.env.process(self._stream(rank, stream, lines))
        self.env.run()
        if any(rank.at for rank in self.ranks.values()):
            raise PlanError(_deadlock(self.ranks))
        self.events.sort(key=itemgetter(*map(COLUMNS.index, ("start_s", "rank", "stream", "end_s"))))
        return tuple(self.events)

    def _stream(self, rank: _Rank, stream: str, lines: tuple[_Line, ...]) -> Waiting:
        env, ended, role, number = self.env, rank.ended, rank.role.name, rank.number
        for step in range(self.steps):
            for position, task, instruction, waits, heard, columns in lines:
                if not instruction.runs_in(step):
                    continue
                rank.at[stream] = (task, step)
                for other, steps_back, every in waits:
                    then = step - steps_back
                    if then >= 0 and (then, other) not in ended and (then + 1) % every == 0:
                        yield rank.awaited.setdefault((then, other), env.event())
                start_s = env.now
                yield from self._perform(rank, instruction, task, step)
                if heard:
                    ended.add((step, position))
                    if waiter := rank.awaited.pop((step, position), None):
                        waiter.succeed()
                name, microbatch = task
                _, kind, phase, nbytes = columns
                self.events.append(
                    Event(role, number, step, microbatch, name, 0, stream, kind, phase, start_s, env.now, nbytes)
                )
        del rank.at[stream]

    def _perform(self, rank: _Rank, instruction: Instruction, task: Task, step: int) -> Waiting:
        kind, seconds = instruction.kind, rank.seconds[instruction.id]
        if kind is Kind.COMPUTE:
            if self.exposed:
                yield from self._compute(rank, seconds)
            elif seconds:
                yield self.env.timeout(seconds)
        elif kind is Kind.SEND:
            yield from self._communicate(rank, seconds)
            key = (rank.number, self._peer(rank, instruction), instruction.message, task.microbatch, step)
            if reader := self.expected.pop(key, None):
                reader.succeed()
            else:
                self.delivered.add(key)
        elif kind is Kind.RECEIVE:
            key = (self._peer(rank, instruction), rank.number, instruction.message, task.microbatch, step)
            if key in self.delivered:
                self.delivered.remove(key)
            else:
                yield self.expected.setdefault(key, self.env.event())
        elif kind.is_collective:
            yield from self._collective(rank, instruction, task, step, seconds)
        elif kind.is_one_sided:
            yield from self._communicate(rank, seconds)
        elif seconds:
            yield self.env.timeout(seconds)

    def _peer(self, rank: _Rank, instruction: Instruction) -> int:
        assert instruction.peer is not None
        if instruction.peer not in rank.peers:
            rank.peers[instruction.peer] = self.mesh.peer(rank.number, instruction.peer)
        return rank.peers[instruction.peer]

    def _compute(self, rank: _Rank, seconds: float) -> Waiting:
        """Compute at full speed, or at the hidden share of it while the device communicates."""
        env, exposed = self.env, self.exposed
        start_s, communicated_s = env.now, rank.communicated_until(env.now)
        left_s = seconds
        while left_s > 1e-12 + 1e-15 * env.now:  # a clock of many seconds has no room for less
            if not rank.communicating:
                yield env.timeout(left_s)
            else:
                rank.quiet = quiet = rank.quiet or env.event()
                yield env.timeout(left_s / (1.0 - exposed)) | quiet if exposed < 1.0 else quiet
            held_up_s = exposed * (rank.communicated_until(env.now) - communicated_s)
            left_s = seconds - (env.now - start_s - held_up_s)

    def _communicate(self, rank: _Rank, seconds: float) -> Waiting:
        rank.begin_communication(self.env.now)
        yield self.env.timeout(seconds)
        rank.end_communication(self.env.now)

    def _collective(self, rank: _Rank, instruction: Instruction, task: Task, step: int, seconds: float) -> Waiting:
        assert instruction.group is not None
        first, simulated = self._group(rank, instruction.group)
        key = (first, instruction.group, instruction.message, task.microbatch, step)
        if key not in self.gathering:
            self.gathering[key] = _Meeting(missing=simulated, ended=self.env.event())
        meeting = self.gathering[key]
        meeting.missing -= 1
        meeting.longest_s = max(meeting.longest_s, seconds)
        meeting.members.append(rank)
        if meeting.missing:
            yield meeting.ended
            return
        for member in meeting.members:
            member.begin_communication(self.env.now)
        yield self.env.timeout(meeting.longest_s)
        for member in meeting.members:
            member.end_communication(self.env.now)
        del self.gathering[key]
        meeting.ended.succeed()

    def _group(self, rank: _Rank, group: Group) -> tuple[int, int]:
        """The first member of a rank's group, simulated or not, and how many are simulated."""
        key = (rank.number, group)
        if key not in self.groups:
            members = self.mesh.group(rank.number, group)
            self.groups[key] = members[0], sum(1 for m in members if m in self.ranks)
        return self.groups[key]


def _deadlock(ranks: Mapping[int, _Rank]) -> str:
    stuck = sorted(
        f"{rank.role.name} rank {rank.number}: {task} of step {step}"
        for rank in ranks.values()
        for task, step in rank.at.values()
    )
    listed = "\n  ".join(stuck[:12]) + (f"\n  and {len(stuck) - 12} more" if len(stuck) > 12 else "")
    return f"The schedule deadlocks: these tasks wait for each other and none can start.\n  {listed}\nChange the schedule's order."
