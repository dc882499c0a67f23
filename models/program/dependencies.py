"""What a program's buffers say: dependencies, correctness, liveness.

A *slot* is one instance of a buffer: a RUN buffer has one for ever, a STEP buffer one a step, a MICROBATCH buffer one for every
microbatch of every step. A task depends

* on the last writer of every slot that it reads or adds to (read after write),
* on the last writer and all readers since of every slot that it writes or frees (write after write, write after read),
* on what ``after`` and ``after_earlier`` name: with the same microbatch where both have one, else with the last of them.

RUN slots carry dependencies from one step into the next; they are found by walking the order twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from .instruction import Buffer, Content, Instruction, Kind, Program, Role, Scope, Task

__all__ = ["Dependency", "MemoryPeak", "check", "dependencies", "peak_memory"]


class Dependency(NamedTuple):
    """The task at `position` of the order, `steps_back` steps ago (0: in this step)."""

    position: int
    steps_back: int


def _slot(buffer: Buffer, microbatch: int | None, step: int) -> tuple[str, int | None, int | None]:
    match buffer.scope:
        case Scope.RUN:
            return buffer.name, None, None
        case Scope.STEP:
            return buffer.name, None, step
        case Scope.MICROBATCH:
            return buffer.name, microbatch, step


def dependencies(role: Role) -> tuple[tuple[Dependency, ...], ...]:
    """For every task of the order, what must have ended before it may start; ascending, without what its own stream implies twice.

    Dependencies on earlier steps hold from the step on that has them. An instruction that does not run in every step neither
    waits for nor holds up the steps that leave it out.
    """
    writers: dict[object, list[tuple[int, int]]] = {}  # several where the later ones do not run in every step
    readers: dict[object, list[tuple[int, int]]] = {}
    found: list[set[tuple[int, int]]] = [set() for _ in role.order]
    positions: dict[str, list[int]] = {}
    for position, task in enumerate(role.order):
        positions.setdefault(task.instruction, []).append(position)

    for step in (0, 1):
        for position, task in enumerate(role.order):
            instruction = role.instruction[task.instruction]
            needed: set[tuple[int, int]] = set()
            for name in (*instruction.reads, *instruction.accumulates):
                slot = _slot(role.buffer[name], task.microbatch, step)
                needed.update(writers.get(slot, ()))
            for name in (*instruction.writes, *instruction.accumulates, *instruction.frees):
                slot = _slot(role.buffer[name], task.microbatch, step)
                needed.update(writers.get(slot, ()))
                needed.update(readers.get(slot, ()))
            for other in instruction.after:
                needed.add((step, _matching(role, positions[other], task)))
            for earlier in instruction.after_earlier:
                needed.add((step - earlier.steps_back, _matching(role, positions[earlier.instruction], task)))
            here = (step, position)
            for name in instruction.reads:
                readers.setdefault(_slot(role.buffer[name], task.microbatch, step), []).append(here)
            for name in (*instruction.writes, *instruction.accumulates, *instruction.frees):
                slot = _slot(role.buffer[name], task.microbatch, step)
                if instruction.every > 1:
                    writers.setdefault(slot, []).append(here)
                else:
                    writers[slot], readers[slot] = [here], []
            if step:
                found[position] = {n for n in needed if n != here}
    return tuple(tuple(sorted(Dependency(p, 1 - s) for s, p in needs)) for needs in found)


def _matching(role: Role, positions: list[int], task: Task) -> int:
    same = [p for p in positions if role.order[p].microbatch == task.microbatch and task.microbatch is not None]
    return same[0] if same else positions[-1]


def check(program: Program) -> list[str]:
    """What is wrong with a program: use before definition, use after or double free, leaks, unmatched messages. Empty when nothing is."""
    problems: list[str] = []
    for role in program.roles:
        problems += _check_role(role)
    for role in program.roles:
        for instruction in role.instructions:
            if instruction.kind in (Kind.SEND, Kind.RECEIVE):
                problems += _check_partner(program, role, instruction)
    return problems


def _check_role(role: Role) -> list[str]:
    problems = []
    defined = {(b.name, None) for b in role.buffers if b.scope is Scope.RUN}
    freed: set[tuple[str, int | None]] = set()
    for task in role.order:
        where = f"{role.name}: {task}"
        instruction = role.instruction.get(task.instruction)
        if instruction is None:
            problems.append(f"{where}: no such instruction")
            continue
        named = (*instruction.reads, *instruction.writes, *instruction.accumulates, *instruction.frees)
        unknown = [b for b in named if b not in role.buffer]
        if unknown:
            problems.append(f"{where}: unknown buffer {', '.join(unknown)}")
            continue

        def slot(name: str, task: Task = task) -> tuple[str, int | None]:
            return name, task.microbatch if role.buffer[name].scope is Scope.MICROBATCH else None

        for name in instruction.reads:
            if slot(name) in freed:
                problems.append(f"{where}: reads {name} after it was freed")
            elif slot(name) not in defined:
                problems.append(f"{where}: reads {name} before anything wrote it")
        for name in (*instruction.writes, *instruction.accumulates):
            defined.add(slot(name))
            freed.discard(slot(name))
        for name in instruction.frees:
            if slot(name) in freed:
                problems.append(f"{where}: frees {name} twice")
            elif slot(name) not in defined:
                problems.append(f"{where}: frees {name} before anything wrote it")
            freed.add(slot(name))
    for name, microbatch in sorted(defined - freed, key=str):
        if role.buffer[name].scope is not Scope.RUN:
            problems.append(f"{role.name}: {Task(name, microbatch)} is never freed")
    return problems


def _check_partner(program: Program, role: Role, instruction: Instruction) -> list[str]:
    assert instruction.peer is not None
    wanted = Kind.RECEIVE if instruction.kind is Kind.SEND else Kind.SEND
    where = f"{role.name}: {instruction.id}"
    rank = program.ranks_of(role)[0]
    try:
        other = program.role_of(program.mesh.peer(rank, instruction.peer))
    except IndexError as error:
        return [f"{where}: {error}"]
    partners = [i for i in other.instructions if i.kind is wanted and i.message == instruction.message]
    if len(partners) != 1:
        return [f"{where}: {other.name} has {len(partners)} instructions to {wanted} {instruction.message}, expected one"]
    here = [t.microbatch for t in role.order if t.instruction == instruction.id]
    there = [t.microbatch for t in other.order if t.instruction == partners[0].id]
    if sorted(here, key=str) != sorted(there, key=str):
        return [f"{where}: {len(here)} tasks here, {len(there)} to {wanted} it in {other.name}"]
    if role.payload_bytes(instruction) != other.payload_bytes(partners[0]):
        return [f"{where}: {role.payload_bytes(instruction)} bytes here, {other.payload_bytes(partners[0])} in {other.name}"]
    return []


@dataclass(frozen=True, kw_only=True)
class MemoryPeak:
    """The most bytes that a role holds at once: when, and of what."""

    peak_bytes: int
    task: Task | None
    by_content: dict[Content, int]


def peak_memory(program: Program, role: Role) -> MemoryPeak:
    """Peak memory of one rank of `role`, walking its order: a task's writes come to life before it, its frees end after it.

    A buffer shared by a group counts with the part that one rank holds.
    """

    def held(buffer: Buffer) -> int:
        parts = program.mesh.group_size(buffer.shared) if buffer.shared else 1
        return -(-buffer.nbytes // parts)

    live = {(b.name, None): b for b in role.buffers if b.scope is Scope.RUN}
    total = sum(held(b) for b in live.values())
    peak, at, composition = total, None, dict(live)
    for task in role.order:
        instruction = role.instruction[task.instruction]
        for name in (*instruction.writes, *instruction.accumulates):
            buffer = role.buffer[name]
            slot = (name, task.microbatch if buffer.scope is Scope.MICROBATCH else None)
            if slot not in live:
                live[slot] = buffer
                total += held(buffer)
        if total > peak:
            peak, at, composition = total, task, dict(live)
        for name in instruction.frees:
            buffer = role.buffer[name]
            slot = (name, task.microbatch if buffer.scope is Scope.MICROBATCH else None)
            if live.pop(slot, None) is not None:
                total -= held(buffer)
    by_content: dict[Content, int] = {}
    for buffer in composition.values():
        by_content[buffer.content] = by_content.get(buffer.content, 0) + held(buffer)
    return MemoryPeak(peak_bytes=peak, task=at, by_content=by_content)
