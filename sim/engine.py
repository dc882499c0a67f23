"""The discrete-event engine: programs interpreted in virtual time.

Streams are queues that are served in order. A task starts when its stream is free and what it waits for has ended, and takes what
its price says:

* a send occupies its stream while the bytes travel, the receive ends when they have arrived;
* a collective starts when the last member has come and ends for all at once;
* a one-sided access takes its own time and asks nobody;
* where collectives and computing hold each other up, or transfers meet on a link, they go on at a share of their speed meanwhile
  (see :mod:`.competing`).

**Who runs.** One rank of every class (:mod:`.folding`), and of each rank a SimPy process for each walk (:mod:`.compiled`).

**Running ahead.** A time is a number that a task carries, not the moment at which it is worked out. Where all that a task waits for
is known, however far in the future, its own end is known too, and the process goes on without an event. It yields to SimPy only
where what it waits for is not known yet, and where tasks compete. That is exact, since without competition an end is a maximum of
sums of other ends, whatever the order in which they are worked out.

**Competing** tasks are worked out in the order of time: before it begins one, a process lets the clock come to its start. Nobody can
come too late to compete: a time is always worked out at a moment at or before it. For a task that competes ends when the clock
says so; any other one is worked out as soon as the last thing that it waits for is, which by the same argument is not after that
thing's end; and walks never keep back what they could already say (:mod:`.compiled` takes along only such streams).

The same input gives the same times: processes are started and woken in a fixed order.
"""

from __future__ import annotations

import gc
from collections.abc import Generator, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import simpy

from ..errors import PlanError
from ..models.program import Group, Instruction, Program, Role
from ..models.trace import Event
from .competing import Competition, Device
from .compiled import COLLECTIVE, LIVE_COLLECTIVE, LIVE_COMPUTE, LIVE_SEND, RECEIVE, SEND, TIMED, Line, Script
from .folding import Folding, unfolded
from .meeting import Channel, Gathering, Meeting, Post, deadlock
from .network import Shares
from .played import Played, Record

__all__ = ["play", "replay"]

Prices = Mapping[int, Mapping[str, float]]
Waiting = Generator[simpy.Event, Any, None]


def replay(program: Program, seconds: Prices, *, steps: int, communication_overlap: float = 1.0) -> tuple[Event, ...]:
    """Run `steps` steps of the ranks in `seconds` and return every task's event, ordered by start, rank and stream.

    Ranks that are left out must behave as those that are in. For the rest see :func:`play`.
    """
    folding = unfolded(program.mesh, list(seconds))
    return play(program, seconds, folding=folding, steps=steps, communication_overlap=communication_overlap).events


def play(
    program: Program,
    seconds: Prices,
    *,
    folding: Folding,
    steps: int,
    communication_overlap: float = 1.0,
    collective_share: float = 1.0,
    shares: Mapping[int, Mapping[str, Shares]] | None = None,
) -> Played:
    """Run `steps` steps of one rank of every class.

    seconds                 for every rank to simulate, the duration of each of its instructions by id
    communication_overlap   share of its speed at which a device computes while a collective runs beside
    collective_share        share of its speed at which a collective runs while a device of it computes
    shares                  for every rank to simulate, the links that a send or a collective of its uses, by the instruction's id,
                            and how much of each when alone (:func:`.network.shares_of`): transfers that meet there slow down.
                            A link has the transfers of the simulated ranks only

    Raises:
        PlanError: tasks wait for each other in a circle; the message names them.
    """
    return _Engine(program, seconds, folding, steps, communication_overlap, collective_share, shares or {}).run()


@dataclass(eq=False)
class _Rank:
    """One simulated rank."""

    number: int
    role: Role
    script: Script
    seconds: Mapping[str, float]
    device: Device
    posts: dict[str, Post] = field(default_factory=dict)

    def post(self, instruction: str) -> Post:
        if instruction not in self.posts:
            self.posts[instruction] = Post(instruction)
        return self.posts[instruction]


# A line as a process runs it: what to do, on which stream, how long, for which lines of the pass it waits, what it looks up (a
# post, passes back, how often it runs), where it posts its end, whom it deals with, whether its task has no microbatch, itself.
_Bound = tuple[int, int, float, tuple[int, ...], tuple[tuple[Post, int, int], ...], Post | None, Any, bool, Line]


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without the garbage collector, which would look through everything again and again while events come and go by the million."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class _Engine:
    def __init__(
        self,
        program: Program,
        seconds: Prices,
        folding: Folding,
        steps: int,
        overlap: float,
        collective_share: float,
        shares: Mapping[int, Mapping[str, Shares]],
    ) -> None:
        self.env = simpy.Environment()
        self.program, self.mesh, self.folding, self.steps = program, program.mesh, folding, steps
        self.competes = overlap < 1.0 or collective_share < 1.0
        self.competition = Competition(self.env, computing_share=overlap, collective_share=collective_share)
        self.stride = 1 + max((m + 1 for role in program.roles for _, m in role.schedule if m is not None), default=0)
        self.channels: dict[tuple[int, int, str], Channel] = {}
        self.gatherings: dict[tuple[Group, tuple[int, ...], str], Gathering] = {}
        self.scripts: dict[tuple[object, ...], Script] = {}
        self.met: dict[tuple[int, Group], tuple[int, ...]] = {}
        self.shares = self._contended(shares)
        self.records: list[Record] = []
        self.ranks = [self._rank(r, seconds[r]) for r in folding.representatives]

    def run(self) -> Played:
        for rank in self.ranks:
            for number, streams in enumerate(rank.script.of.streams):
                record = Record(rank=rank.number, script=rank.script, walk=number, seconds=rank.seconds)
                self.records.append(record)
                self.env.process(self._walk(rank, number, streams, record))
        with _uncollected():
            self.env.run()
        stuck = [record for record in self.records if record.waits is not None]
        if stuck:
            raise PlanError(deadlock(stuck))
        return Played(steps=self.steps, records=tuple(self.records), multiplicity=self.folding.multiplicity)

    # --- binding a role's lines to a rank -----------------------------------------------------------------------------------

    def _rank(self, number: int, seconds: Mapping[str, float]) -> _Rank:
        role = self.program.role_of(number)
        groups = {i.group for i in role.instructions if i.group is not None and i.kind.is_collective}
        alone = frozenset(g for g in groups if len(self._met(number, g)) == 1)
        flows = frozenset(self.shares.get(number, ()))
        key = (role.name, alone, flows)
        if key not in self.scripts:
            self.scripts[key] = Script(role=role, alone=alone, competes=self.competes, flows=flows)
        return _Rank(number, role, self.scripts[key], seconds, Device())

    def _contended(self, shares: Mapping[int, Mapping[str, Shares]]) -> dict[int, dict[str, Shares]]:
        """The shares of links that more than one stream uses: nobody else is ever held up."""
        users: dict[Hashable, set[tuple[object, ...]]] = {}
        for rank, of in shares.items():
            instruction = self.program.role_of(rank).instruction
            for id, used in of.items():
                i = instruction[id]
                who = (i.stream, rank) if i.group is None else (i.stream, i.group, self._met(rank, i.group))
                for link in used:
                    users.setdefault(link, set()).add(who)
        crowded = {link for link, of_link in users.items() if len(of_link) > 1}
        kept = {
            rank: {id: {k: v for k, v in used.items() if k in crowded} for id, used in of.items()}
            for rank, of in shares.items()
        }
        return {rank: {id: used for id, used in of.items() if used} for rank, of in kept.items()}

    def _met(self, rank: int, group: Group) -> tuple[int, ...]:
        if (rank, group) not in self.met:
            self.met[rank, group] = self.folding.met(rank, group)
        return self.met[rank, group]

    def _bound(self, rank: _Rank, line: Line) -> _Bound:
        first = line.members[0]
        needs = tuple((rank.post(n.instruction), n.passes_back, n.every) for n in line.needs)
        post = rank.post(line.members[-1].id) if line.posted else None
        seconds = sum([rank.seconds[i.id] for i in line.members])
        partner = self._partner(rank, first, line.op)
        return line.op, line.stream, seconds, line.waits, needs, post, partner, first.once, line

    def _partner(self, rank: _Rank, i: Instruction, op: int) -> Channel | Gathering | None:
        if op in (SEND, RECEIVE, LIVE_SEND):
            assert i.peer is not None
            mine, theirs = int(self.folding.class_of[rank.number]), self.folding.peer(rank.number, i.peer)
            pair = (theirs, mine) if op == RECEIVE else (mine, theirs)
            key = (*pair, i.message)
            if key not in self.channels:
                sender = self.folding.representatives[pair[0]]
                self.channels[key] = Channel(f"{self.program.role_of(sender).name} rank {sender}")
            return self.channels[key]
        if op in (COLLECTIVE, LIVE_COLLECTIVE):
            assert i.group is not None
            classes = self._met(rank.number, i.group)
            meeting = (i.group, classes, i.message)
            if meeting not in self.gatherings:
                self.gatherings[meeting] = Gathering(len(classes))
            return self.gatherings[meeting]
        return None

    # --- a process --------------------------------------------------------------------------------------------------------

    def _walk(self, rank: _Rank, number: int, streams: tuple[str, ...], record: Record) -> Waiting:
        """Work through the lines of some streams of a rank. The one place where time is made; it runs for every line of every
        pass, so it keeps what it needs in local names.
        """
        env, script, passes = self.env, rank.script, rank.script.passes
        numbers, stride = script.numbers, self.stride
        free = [0.0] * len(streams)
        ends = record.ends
        started, ended, gathered = record.starts.append, ends.append, record.gathered.append
        bound: dict[int, list[_Bound]] = {}
        shares = self.shares.get(rank.number, {})
        for step in range(self.steps):
            walk = script.walks(step)[number]
            first_pass, first_task = step * passes, step * stride
            for position, lines in zip(walk.positions, walk.lines, strict=True):
                if id(lines) not in bound:
                    bound[id(lines)] = [self._bound(rank, line) for line in lines]
                this_pass, this_task = first_pass + position, first_task + numbers[position]
                before = len(ends)
                for op, stream, seconds, waits, needs, post, partner, once, line in bound[id(lines)]:
                    start_s = free[stream]
                    for k in waits:
                        if ends[before + k] > start_s:
                            start_s = ends[before + k]
                    for other, passes_back, every in needs:
                        then = this_pass - passes_back
                        if then < 0 or (every > 1 and (then // passes + 1) % every):
                            continue
                        while then not in other.ends:
                            record.waits = line, step, position, (other.instruction, then)
                            other.waiters.append(event := env.event())
                            yield event
                        if other.ends[then] > start_s:
                            start_s = other.ends[then]
                    if op == TIMED:
                        end_s = start_s + seconds
                    elif op == RECEIVE:
                        task = first_task if once else this_task
                        while (arrival_s := partner.arrivals.pop(task, None)) is None:
                            record.waits = line, step, position, partner.sender
                            partner.reader = env.event()
                            yield partner.reader
                        end_s = arrival_s if arrival_s > start_s else start_s
                    elif op in (SEND, LIVE_SEND):
                        end_s = start_s + seconds
                        if op == LIVE_SEND:
                            if start_s > env.now:
                                yield env.timeout(start_s - env.now)
                            yield self.competition.transfer(seconds, shares=shares[line.members[0].id])
                            end_s = env.now
                        partner.arrivals[first_task if once else this_task] = end_s
                        if partner.reader is not None:
                            partner.reader.succeed()
                            partner.reader = None
                    elif op == LIVE_COMPUTE:
                        if start_s > env.now:
                            yield env.timeout(start_s - env.now)
                        yield self.competition.compute(rank.device, seconds)
                        end_s = env.now
                    else:
                        meeting = self._come(partner, first_task if once else this_task, start_s, seconds, rank.device)
                        if meeting.missing:
                            if meeting.ended is None:
                                meeting.ended = env.event()
                            record.waits = line, step, position, meeting
                            yield meeting.ended
                        elif op == COLLECTIVE:
                            meeting.end_s = meeting.latest_s + meeting.longest_s
                        else:
                            if meeting.latest_s > env.now:
                                yield env.timeout(meeting.latest_s - env.now)
                            used = shares.get(line.members[0].id)
                            yield self.competition.transfer(meeting.longest_s, devices=meeting.devices, shares=used)
                            meeting.end_s = env.now
                        if meeting.ended is not None and not meeting.ended.triggered:
                            meeting.ended.succeed()
                        end_s = meeting.end_s
                        gathered(meeting.latest_s)
                    free[stream] = end_s
                    started(start_s)
                    ended(end_s)
                    if post is not None:
                        post.ends[this_pass] = end_s
                        if post.waiters:
                            post.wake()
            record.marks.append(len(record.ends))
        record.waits = None

    @staticmethod
    def _come(gathering: Gathering, task: int, start_s: float, seconds: float, device: Device) -> Meeting:
        """Join the meeting of a task; the last one closes it."""
        meeting = gathering.open.get(task)
        if meeting is None:
            meeting = gathering.open[task] = Meeting(gathering.size)
        meeting.missing -= 1
        meeting.latest_s = max(meeting.latest_s, start_s)
        meeting.longest_s = max(meeting.longest_s, seconds)
        meeting.devices.append(device)
        if not meeting.missing:
            del gathering.open[task]
        return meeting
