"""Fusing neighbours: compute instructions that always run back to back are compiled as one.

So a step without communication in between is one compiled function, the last stage runs each microbatch's forward and backward
pass at once, and what passed between the two never becomes an array. Fused are two instructions when each task of the first is
followed on its stream by a task of the second for the same microbatch (or, for a task once per step, by it alone), no task that
communicates lies in between, and the second waits for nothing in between.
"""

from __future__ import annotations

from dataclasses import replace

from .dependencies import dependencies
from .instruction import Earlier, Instruction, Kind, Role, Task

__all__ = ["fuse"]


def fuse(role: Role) -> Role:
    """`role` with all fusible neighbours fused; buffers that stay inside are written and freed by the fused instruction."""
    while pair := _fusible(role):
        role = _merge(role, *pair)
    return role


def _fusible(role: Role) -> tuple[Instruction, Instruction] | None:
    needs = dependencies(role)
    followers: dict[str, set[str]] = {}
    leaders: dict[str, set[str]] = {}
    last: int | None = None
    for position, task in enumerate(role.order):
        instruction = role.instruction[task.instruction]
        if instruction.kind is not Kind.COMPUTE:
            continue
        before = role.order[last] if last is not None else None
        joined = before is not None and _adjoin(role, last, position) and not any(
            d.steps_back == 0 and last < d.position < position  # type: ignore[operator]
            for d in needs[position]
        )
        followers.setdefault(before.instruction if before else "", set()).add(task.instruction if joined else "")
        leaders.setdefault(task.instruction, set()).add(before.instruction if joined and before else "")
        last = position
    if last is not None:
        followers.setdefault(role.order[last].instruction, set()).add("")
    for first, second in followers.items():
        if first and len(second) == 1 and (name := next(iter(second))) and leaders[name] == {first}:
            return role.instruction[first], role.instruction[name]
    return None


def _adjoin(role: Role, first: int | None, second: int) -> bool:
    assert first is not None
    a, b = role.order[first], role.order[second]
    if role.instruction[a.instruction].every != role.instruction[b.instruction].every:
        return False
    between = role.order[first + 1 : second]
    return (a.microbatch == b.microbatch or b.microbatch is None) and not any(
        role.instruction[t.instruction].kind.communicates for t in between
    )


def _merge(role: Role, first: Instruction, second: Instruction) -> Role:
    made = {*first.writes, *first.accumulates}
    name = f"{first.id}+{second.id}"
    fused = replace(
        first,
        id=name,
        phase=second.phase,
        reads=tuple(dict.fromkeys([*first.reads, *(b for b in second.reads if b not in made)])),
        writes=tuple(dict.fromkeys([*first.writes, *second.writes])),
        accumulates=tuple(dict.fromkeys([*first.accumulates, *second.accumulates])),
        frees=tuple(dict.fromkeys([*first.frees, *second.frees])),
        parts=first.parts + second.parts,
        after=tuple(dict.fromkeys([*first.after, *(i for i in second.after if i != first.id)])),
        after_earlier=tuple(dict.fromkeys([*first.after_earlier, *second.after_earlier])),
    )
    renamed = {first.id: name, second.id: name}

    def rename(ids: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(renamed.get(i, i) for i in ids))

    instructions = [fused if i.id == first.id else i for i in role.instructions if i.id != second.id]
    return replace(
        role,
        instructions=tuple(
            replace(
                i,
                after=rename(i.after),
                after_earlier=tuple(dict.fromkeys(Earlier(renamed.get(e.instruction, e.instruction), e.steps_back) for e in i.after_earlier)),
            )
            for i in instructions
        ),
        order=tuple(Task(name, t.microbatch) if t.instruction == first.id else t for t in role.order if t.instruction != second.id),
    )
