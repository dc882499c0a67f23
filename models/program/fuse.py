"""Fusing neighbours: compute instructions that always run back to back are compiled as one.

So a step without communication in between is one compiled function, the last stage runs each microbatch's forward and backward
pass at once, and what passed between the two never becomes an array. Fused are two instructions when each task of the first is
followed on its stream by a task of the second for the same microbatch (or, for a task once per step, by it alone), no task that
communicates lies in between, and the second waits for nothing in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

from .dependencies import Dependency, dependencies
from .instruction import Earlier, Instruction, Kind, Role, Task

__all__ = ["fuse"]


def fuse(role: Role) -> Role:
    """`role` with all fusible neighbours fused; buffers that stay inside are written and freed by the fused instruction."""
    for chain in _Neighbours(role).chains():
        role = _merge(role, [role.instruction[i] for i in chain])
    return role


class _Neighbours:
    """Which compute instructions of a role may join which: found on the order as it is, so that a chain is merged in one go."""

    def __init__(self, role: Role) -> None:
        self.role = role
        self.needs: Sequence[Sequence[Dependency]] = dependencies(role)
        communicating = (role.instruction[t.instruction].kind.communicates for t in role.order)
        self.messages_before = [0, *accumulate(communicating)]
        self.computing = [p for p, t in enumerate(role.order) if role.instruction[t.instruction].kind is Kind.COMPUTE]
        self.places: dict[str, list[int]] = {}  # of an instruction's tasks, as places in `computing`
        for place, position in enumerate(self.computing):
            self.places.setdefault(role.order[position].instruction, []).append(place)

    def chains(self) -> list[list[str]]:
        """Runs of instructions to be merged, each as long as it can be, in the order of their first tasks."""
        found: list[list[str]] = []
        taken: set[str] = set()
        for name in self.places:
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
        """The instruction whose tasks follow those of `chain`, and they alone, and may join every one of them."""
        heads, tails = self.places[chain[0]], self.places[chain[-1]]
        if tails[-1] + 1 >= len(self.computing):
            return None
        follower = self.role.order[self.computing[tails[-1] + 1]].instruction
        if self.places[follower] != [place + 1 for place in tails]:
            return None
        joined = all(self._joins(head, tail, chain) for head, tail in zip(heads, tails, strict=True))
        return follower if joined else None

    def _joins(self, head: int, tail: int, chain: list[str]) -> bool:
        """Whether the task after place `tail` may join the task that starts at place `head` and runs the whole chain."""
        role, start, end = self.role, self.computing[head], self.computing[tail + 1]
        first, second = role.order[start], role.order[end]
        return (
            role.instruction[first.instruction].every == role.instruction[second.instruction].every
            and second.microbatch in (first.microbatch, None)
            and self.messages_before[start] == self.messages_before[end]
            and not any(
                d.steps_back == 0 and start < d.position < end and role.order[d.position].instruction not in chain
                for d in self.needs[end]
            )
        )


def _merge(role: Role, chain: Sequence[Instruction]) -> Role:
    """One instruction in place of `chain`, where the first of it stood."""
    first, last = chain[0], chain[-1]
    members = {i.id for i in chain}
    name = "+".join(i.id for i in chain)
    made: dict[str, None] = {}
    reads: dict[str, None] = {}
    for i in chain:  # what the chain itself made is not read from outside
        reads.update(dict.fromkeys(b for b in i.reads if b not in made))
        made.update(dict.fromkeys((*i.writes, *i.accumulates)))
    fused = replace(
        first,
        id=name,
        phase=last.phase,
        reads=tuple(reads),
        writes=_joined(*(i.writes for i in chain)),
        accumulates=_joined(*(i.accumulates for i in chain)),
        frees=_joined(*(i.frees for i in chain)),
        parts=tuple(part for i in chain for part in i.parts),
        after=tuple(i for i in _joined(*(i.after for i in chain)) if i not in members),
        after_earlier=tuple(dict.fromkeys(e for i in chain for e in i.after_earlier)),
    )
    new_id = {**{i.id: i.id for i in role.instructions}, **dict.fromkeys(members, name)}
    instructions = [
        fused if i.id == first.id else i for i in role.instructions if i.id == first.id or i.id not in members
    ]
    return replace(
        role,
        instructions=tuple(
            replace(
                i,
                after=tuple(dict.fromkeys(new_id[other] for other in i.after)),
                after_earlier=tuple(
                    dict.fromkeys(Earlier(new_id[e.instruction], e.steps_back) for e in i.after_earlier)
                ),
            )
            if i.after or i.after_earlier
            else i
            for i in instructions
        ),
        order=tuple(
            Task(new_id[t.instruction], t.microbatch)
            for t in role.order
            if t.instruction == first.id or t.instruction not in members
        ),
    )


def _joined(*names: tuple[str, ...]) -> tuple[str, ...]:
    """All names, each once, in order."""
    return tuple(dict.fromkeys(name for some in names for name in some))
