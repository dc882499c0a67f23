"""The discrete-event engine: programs interpreted in virtual time.

Every stream of every simulated rank is a SimPy process that works through its tasks in the program's order. A task starts when
its stream is free and its dependencies have ended, and takes what its price says:

* a send occupies its stream while the bytes travel, the receive ends when they have arrived;
* a collective starts when the last member has come and ends for all at once;
* a one-sided access takes its own time and asks nobody;
* where communication needs the device's own cores (its ``communication_overlap`` is below 1), computing that goes on meanwhile
  is held up by the share that is not hidden.

The same input gives the same events in the same order: ties are broken by the order in which streams were started.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import simpy

from ..errors import PlanError
from ..models.program import Instruction, Kind, Program, Role, Task, dependencies
from ..models.trace import Event

__all__ = ["replay"]

Prices = Mapping[int, Mapping[str, float]]


@dataclass
class _Rank:
    """One simulated rank: its program, its events, and how long its device has been communicating."""

    number: int
    role: Role
    needs: tuple[tuple[Any, ...], ...]
    seconds: Mapping[str, float]
    done: dict[tuple[int, int], simpy.Event] = field(default_factory=dict)
    communicating: int = 0
    communicated_s: float = 0.0
    communicating_since_s: float = 0.0

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


@dataclass
class _Rendezvous:
    """A collective that is gathering: who is still missing, and the event at which it ends."""

    missing: int
    longest_s: float
    members: list[_Rank]
    ended: simpy.Event


def replay(
    program: Program, seconds: Prices, *, steps: int, communication_overlap: float = 1.0
) -> tuple[Event, ...]:
    """Run `steps` steps and return every task's event, ordered by start, rank and stream.

    seconds                 for every rank to simulate, the duration of each of its instructions by id. Ranks that are left out
                            must behave as those that are in: a collective starts when the simulated members have come.
    communication_overlap   share of communication that the device hides behind computing

    Raises:
        PlanError: tasks wait for each other in a circle; the message names them.
    """
    engine = _Engine(program, seconds, steps, communication_overlap)
    return engine.run()


class _Engine:
    def __init__(self, program: Program, seconds: Prices, steps: int, communication_overlap: float) -> None:
        self.env = simpy.Environment()
        self.program = program
        self.steps = steps
        self.exposed = 1.0 - communication_overlap
        needs = {role.name: dependencies(role) for role in program.roles}
        self.ranks = {
            number: _Rank(number=number, role=(role := program.role_of(number)), needs=needs[role.name], seconds=seconds[number])
            for number in sorted(seconds)
        }
        self.mail: dict[tuple[Any, ...], simpy.Event] = {}
        self.gathering: dict[tuple[Any, ...], _Rendezvous] = {}
        self.waiting: dict[tuple[int, str], str] = {}
        self.events: list[Event] = []

    def run(self) -> tuple[Event, ...]:
        for rank in self.ranks.values():
            for stream in rank.role.streams:
                self.env.process(self._stream(rank, stream))
        self.env.run()
        if self.waiting:
            raise PlanError(_deadlock(self.waiting))
        self.events.sort(key=lambda e: (e.start_s, e.rank, e.stream, e.end_s))
        return tuple(self.events)

    def _stream(self, rank: _Rank, stream: str) -> Generator[simpy.Event, Any, None]:
        role, env = rank.role, self.env
        mine = [(p, t, role.instruction[t.instruction]) for p, t in enumerate(role.order)]
        mine = [(p, t, i) for p, t, i in mine if i.stream == stream]
        for step in range(self.steps):
            for position, task, instruction in mine:
                if not instruction.runs_in(step):
                    continue
                self.waiting[rank.number, stream] = f"{role.name} rank {rank.number}: {task} of step {step}"
                for need in rank.needs[position]:
                    yield from self._wait(rank, step - need.steps_back, need.position)
                start_s = env.now
                yield from self._perform(rank, instruction, task, step)
                self._done(rank, step, position).succeed()
                self.events.append(
                    Event(
                        role=role.name,
                        rank=rank.number,
                        step=step,
                        microbatch=task.microbatch,
                        instruction=task.instruction,
                        attempt=0,
                        stream=stream,
                        kind=instruction.kind.value,
                        phase=instruction.phase.value,
                        start_s=start_s,
                        end_s=env.now,
                        payload_bytes=role.payload_bytes(instruction),
                    )
                )
        del self.waiting[rank.number, stream]

    def _done(self, rank: _Rank, step: int, position: int) -> simpy.Event:
        return rank.done.setdefault((step, position), self.env.event())

    def _wait(self, rank: _Rank, step: int, position: int) -> Generator[simpy.Event, Any, None]:
        if step < 0:
            return
        instruction = rank.role.instruction[rank.role.order[position].instruction]
        if instruction.runs_in(step):
            event = self._done(rank, step, position)
            if not event.processed:
                yield event

    def _perform(self, rank: _Rank, instruction: Instruction, task: Task, step: int) -> Generator[simpy.Event, Any, None]:
        kind, seconds = instruction.kind, rank.seconds[instruction.id]
        if kind is Kind.COMPUTE:
            yield from self._compute(rank, seconds)
        elif kind is Kind.SEND:
            assert instruction.peer is not None
            receiver = self.program.mesh.peer(rank.number, instruction.peer)
            yield from self._communicate(rank, seconds)
            self._mail(rank.number, receiver, instruction.message, task.microbatch, step).succeed()
        elif kind is Kind.RECEIVE:
            assert instruction.peer is not None
            sender = self.program.mesh.peer(rank.number, instruction.peer)
            message = self._mail(sender, rank.number, instruction.message, task.microbatch, step)
            if not message.processed:
                yield message
        elif kind.is_collective:
            yield from self._collective(rank, instruction, task, step, seconds)
        elif kind.is_one_sided:
            yield from self._communicate(rank, seconds)
        else:
            yield self.env.timeout(seconds)

    def _compute(self, rank: _Rank, seconds: float) -> Generator[simpy.Event, Any, None]:
        communicated_s = rank.communicated_until(self.env.now)
        yield self.env.timeout(seconds)
        paid_s = 0.0
        while self.exposed > 0:
            owed_s = self.exposed * (rank.communicated_until(self.env.now) - communicated_s) - paid_s
            if owed_s <= 1e-12:
                break
            yield self.env.timeout(owed_s)
            paid_s += owed_s

    def _communicate(self, rank: _Rank, seconds: float) -> Generator[simpy.Event, Any, None]:
        rank.begin_communication(self.env.now)
        yield self.env.timeout(seconds)
        rank.end_communication(self.env.now)

    def _mail(self, *key: object) -> simpy.Event:
        return self.mail.setdefault(key, self.env.event())

    def _collective(
        self, rank: _Rank, instruction: Instruction, task: Task, step: int, seconds: float
    ) -> Generator[simpy.Event, Any, None]:
        assert instruction.group is not None
        members = self.program.mesh.group(rank.number, instruction.group)
        key = (members[0], instruction.group, instruction.message, task.microbatch, step)
        if key not in self.gathering:
            simulated = sum(1 for m in members if m in self.ranks)
            self.gathering[key] = _Rendezvous(missing=simulated, longest_s=0.0, members=[], ended=self.env.event())
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


def _deadlock(waiting: Mapping[tuple[int, str], str]) -> str:
    stuck: Sequence[str] = sorted(set(waiting.values()))
    listed = "\n  ".join(stuck[:12]) + (f"\n  and {len(stuck) - 12} more" if len(stuck) > 12 else "")
    return f"The schedule deadlocks: these tasks wait for each other and none can start.\n  {listed}\nChange the schedule's order."
