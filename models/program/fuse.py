"""Joining what always happens together: passes of one microbatch, and the compute instructions in them.

*Passes* are joined where each is always followed by one for the same microbatch: on the last stage of a pipeline a microbatch's
backward pass follows its forward pass at once, and a step of one microbatch is one pass.

*Compute instructions* that always run back to back are compiled as one. So a step without communication in between is one compiled
function, and what passed between the two never becomes an array. Fused are two instructions when in every pass that has the
first the second follows on its stream, no task that communicates lies in between, and the second waits for nothing in between.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from .instruction import Buffer, Content, Earlier, Instruction, Kind, Pass, Role, Scope

__all__ = ["fuse", "join"]


def join(role: Role) -> Role:
    """`role` with passes joined that always follow each other for the same microbatch (or end the step)."""
    while (joined := _join_once(role)) is not None:
        role = joined
    return role


def _join_once(role: Role) -> Role | None:
    schedule = role.schedule
    followed: dict[str, bool] = {}
    for i, (name, microbatch) in enumerate(schedule):
        after = schedule[i + 1] if i + 1 < len(schedule) else None
        joins = after is not None and after.microbatch in (microbatch, None) and after.name != name
        followed[name] = followed.get(name, True) and joins
    first = next((name for name in dict.fromkeys(p.name for p in schedule) if followed[name]), None)
    if first is None:
        return None
    passes: dict[str, tuple[str, ...]] = {}
    order: list[Pass] = []
    once: set[str] = set()
    i = 0
    while i < len(schedule):
        here = schedule[i]
        if here.name == first:
            after = schedule[i + 1]
            name = f"{first}+{after.name}"
            passes[name] = role.passes[first] + role.passes[after.name]
            order.append(Pass(name, here.microbatch))
            if after.microbatch is None:
                once.update(role.passes[after.name])
            i += 2
        else:
            passes[here.name] = role.passes[here.name]
            order.append(here)
            i += 1
    instructions = tuple(replace(x, once=True) if x.id in once and not x.once else x for x in role.instructions)
    return replace(role, instructions=instructions, passes=passes, schedule=tuple(order))


def fuse(role: Role) -> Role:
    """`role` with all fusible neighbours fused; buffers that stay inside are written and freed by the fused instruction."""
    chains = _Neighbours(role).chains()
    return _merge(role, chains) if chains else role


class _Neighbours:
    """Which compute instructions of a role may join which: found on its passes as they are, so that a chain is merged in one go."""

    def __init__(self, role: Role) -> None:
        self.role = role
        self.passes = [
            tuple(role.instruction[i] for i in role.passes[name])
            for name in dict.fromkeys(p.name for p in role.schedule)
        ]
        self.at: dict[str, list[tuple[int, int]]] = {}  # of a compute instruction: (pass, position)
        self.next: dict[tuple[int, int], int] = {}  # the position of the compute instruction that follows in the pass
        for number, members in enumerate(self.passes):
            before = None
            for position, instruction in enumerate(members):
                if instruction.kind is Kind.COMPUTE:
                    self.at.setdefault(instruction.id, []).append((number, position))
                    if before is not None:
                        self.next[number, before] = position
                    before = position

    def chains(self) -> list[list[str]]:
        """Runs of instructions to be merged, each as long as it can be, in the order of their first tasks."""
        found: list[list[str]] = []
        taken: set[str] = set()
        for name in self.at:
            if name in taken:
                continue
            chain = [name]
            while (follower := self._follower(chain)) is not None:
                chain.append(follower)
            taken.update(chain)
            if len(chain) > 1:
                found.append(chain)
        return found

    def _follower(self, chain: list[str]) -> str | None:
        """The instruction that follows those of `chain` wherever they stand, and stands nowhere else, and may join them."""
        heads, tails = self.at[chain[0]], self.at[chain[-1]]
        places = [(number, self.next.get((number, position))) for number, position in tails]
        if any(position is None for _, position in places):
            return None
        number, position = places[0]
        follower = self.passes[number][position or 0].id
        if self.at[follower] != places:
            return None
        joined = all(
            self._joins(number, start, end, chain)
            for (number, start), (_, end) in zip(heads, self.at[follower], strict=True)
        )
        return follower if joined else None

    def _joins(self, number: int, start: int, end: int, chain: list[str]) -> bool:
        """Whether the instruction at `end` may join the chain that starts at `start` of a pass."""
        members = self.passes[number]
        first, second = members[start], members[end]
        between = [i for i in members[start + 1 : end] if i.id not in chain]
        return (
            first.every == second.every
            and (second.once or not first.once)
            and not any(i.kind.communicates for i in between)
            and not any(_waits(second, i) for i in between)
        )


def _waits(later: Instruction, earlier: Instruction) -> bool:
    """Whether `later` must wait for `earlier` of the same microbatch."""
    changed = {*earlier.writes, *earlier.accumulates, *earlier.frees}
    changes = {*later.writes, *later.accumulates, *later.frees}
    return bool(changed & {*later.reads, *changes} or changes.intersection(earlier.reads) or earlier.id in later.after)


def _merge(role: Role, chains: Sequence[Sequence[str]]) -> Role:
    """One instruction in place of each chain, where the first of it stood."""
    fused: dict[str, Instruction] = {}  # by the id of the chain's first
    made: list[Buffer] = []
    new_id: dict[str, str] = {}
    gone: set[str] = set()
    for chain in chains:
        instruction, inside = _fused(role, [role.instruction[i] for i in chain])
        fused[chain[0]] = instruction
        made += inside
        new_id.update(dict.fromkeys(chain, instruction.id))
        gone.update(chain[1:])
    instructions = tuple(_renamed(fused.get(i.id, i), new_id) for i in role.instructions if i.id not in gone)
    used = {b for i in instructions for b in (*i.reads, *i.writes, *i.accumulates, *i.frees)}
    return replace(
        role,
        buffers=(*(b for b in role.buffers if b.name in used), *made),
        instructions=instructions,
        passes={
            name: tuple(new_id.get(i, i) for i in members if i not in gone) for name, members in role.passes.items()
        },
    )


def _fused(role: Role, chain: Sequence[Instruction]) -> tuple[Instruction, list[Buffer]]:
    """`chain` as one instruction, and the buffers of what never leaves it: as many bytes of each content as live at once inside."""
    first, last = chain[0], chain[-1]
    members = {i.id for i in chain}
    reads: dict[str, None] = {}
    made: dict[str, None] = {}
    freed: dict[str, None] = {}
    for i in chain:  # what the chain itself made is not read from outside
        reads.update(dict.fromkeys(b for b in i.reads if b not in made))
        changed = (*i.writes, *i.accumulates)
        made.update(dict.fromkeys(changed))
        for b in changed:  # what is made again after it was freed lives on
            freed.pop(b, None)
        freed.update(dict.fromkeys(i.frees))
    elsewhere = {b for i in role.instructions if i.id not in members for b in (*i.reads, *i.accumulates)}
    inside = {b for b in made if b in freed and b not in reads and b not in elsewhere}
    name = _named([i.id for i in chain])
    scope = Scope.STEP if first.once else Scope.MICROBATCH
    buffers = [
        Buffer(name=f"{content.name.lower()} of {name}", content=content, scope=scope, nbytes=nbytes)
        for content, nbytes in _most_at_once(role, chain, inside).items()
    ]
    own = tuple(b.name for b in buffers)
    fused = replace(
        first,
        id=name,
        phase=last.phase,
        reads=tuple(reads),
        writes=(*(b for b in _joined(*(i.writes for i in chain)) if b not in inside), *own),
        accumulates=tuple(b for b in _joined(*(i.accumulates for i in chain)) if b not in inside),
        frees=(*(b for b in freed if b not in inside), *own),
        parts=tuple(part for i in chain for part in i.parts),
        after=tuple(i for i in _joined(*(i.after for i in chain)) if i not in members),
        after_earlier=tuple(dict.fromkeys(e for i in chain for e in i.after_earlier)),
    )
    return fused, buffers


def _most_at_once(role: Role, chain: Sequence[Instruction], inside: set[str]) -> dict[Content, int]:
    """What of `inside` lives at once when most of it does, by content."""
    live: set[str] = set()
    now: Counter[Content] = Counter()
    most: dict[Content, int] = {}
    for instruction in chain:
        for b in dict.fromkeys((*instruction.writes, *instruction.accumulates)):
            if b in inside and b not in live:
                live.add(b)
                now[role.buffer[b].content] += role.buffer[b].nbytes
        if now.total() > sum(most.values()):
            most = dict(now)
        for b in instruction.frees:
            if b in live:
                live.remove(b)
                now[role.buffer[b].content] -= role.buffer[b].nbytes
    return {content: nbytes for content, nbytes in most.items() if nbytes}


def _named(ids: Sequence[str]) -> str:
    """The ids joined; three or more in a row of one kind are written as the first and the last of them.

    >>> _named(["forward.0", "forward.1", "forward.2", "backward.2"])
    'forward.0-2+backward.2'
    """
    runs: list[list[str]] = []
    for part in ids:
        kind = part.partition(".")[0]
        if runs and "+" not in part and "-" not in part and runs[-1][0].partition(".")[0] == kind:
            runs[-1].append(part)
        else:
            runs.append([part])
    named = []
    for run in runs:
        if len(run) < 3:
            named += run
        else:
            named.append(f"{run[0]}-{run[-1].partition('.')[2]}")
    return "+".join(named)


def _renamed(instruction: Instruction, new_id: Mapping[str, str]) -> Instruction:
    if not (instruction.after or instruction.after_earlier):
        return instruction
    return replace(
        instruction,
        after=tuple(dict.fromkeys(new_id.get(other, other) for other in instruction.after)),
        after_earlier=tuple(
            dict.fromkeys(
                Earlier(new_id.get(e.instruction, e.instruction), e.steps_back) for e in instruction.after_earlier
            )
        ),
    )


def _joined(*names: tuple[str, ...]) -> tuple[str, ...]:
    """All names, each once, in order."""
    return tuple(dict.fromkeys(name for some in names for name in some))
