"""What a program's buffers say: dependencies, correctness, liveness.

A *slot* is one instance of a buffer: a RUN buffer has one for ever, a STEP buffer one a step, a MICROBATCH buffer one for every
microbatch of every step. A task depends

* on the last writer of every slot that it reads or adds to (read after write),
* on the last writer and all readers since of every slot that it writes or frees (write after write, write after read),
* on what ``after`` and ``after_earlier`` name: with the same microbatch where both have one, else with the last of them.

RUN slots carry dependencies from one step into the next; they are found by walking the order twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from .instruction import Buffer, Content, Instruction, Kind, Program, Role, Scope, Task

__all__ = ["Dependency", "MemoryPeak", "check", "dependencies", "peak_memory"]


class Dependency(NamedTuple):
    """The task at `position` of the order, `steps_back` steps ago (0: in this step)."""

    position: int
    steps_back: int


class _Touch(NamedTuple):
    """What an instruction does to buffers of one kind of scope: whose writers it waits for, what it reads, what it changes."""

    seen: tuple[str, ...]
    read: tuple[str, ...]
    changed: tuple[str, ...]

    @classmethod
    def of(cls, instruction: Instruction, keep: Callable[[str], bool]) -> _Touch:
        """Of the buffers that `keep` says yes to, each once."""
        i = instruction
        changed = dict.fromkeys(filter(keep, (*i.writes, *i.accumulates, *i.frees)))
        read = dict.fromkeys(filter(keep, i.reads))
        return cls(tuple({**read, **changed}), tuple(read), tuple(changed))


def dependencies(role: Role) -> tuple[tuple[Dependency, ...], ...]:
    """For every task of the order, what must have ended before it may start; ascending, without what its own stream implies twice.

    Dependencies on earlier steps hold from the step on that has them. An instruction that does not run in every step neither
    waits for nor holds up the steps that leave it out.
    """
    memo = vars(role)  # a role never changes, and both interpreters ask for every rank that plays it
    if "_dependencies" not in memo:
        memo["_dependencies"] = _dependencies(role)
    found: tuple[tuple[Dependency, ...], ...] = memo["_dependencies"]
    return found


def _dependencies(role: Role) -> tuple[tuple[Dependency, ...], ...]:
    scope = {b.name: b.scope for b in role.buffers}
    lasting = {i.id: _Touch.of(i, lambda b: scope[b] is Scope.RUN) for i in role.instructions}
    everything = {i.id: _Touch.of(i, lambda b: True) for i in role.instructions}
    places: dict[str, dict[int | None, int]] = {}
    last: dict[str, int] = {}
    for position, task in enumerate(role.order):
        places.setdefault(task.instruction, {}).setdefault(task.microbatch, position)
        last[task.instruction] = position

    def matching(instruction: str, task: Task) -> int:
        same = places[instruction].get(task.microbatch) if task.microbatch is not None else None
        return last[instruction] if same is None else same

    writers: dict[object, list[Dependency]] = {}  # several where the later ones do not run in every step
    readers: dict[object, list[Dependency]] = {}
    found: list[tuple[Dependency, ...]] = []
    for steps_back, touches in ((1, lasting), (0, everything)):  # only RUN buffers reach from one step into the next
        for position, task in enumerate(role.order):
            instruction, touch = role.instruction[task.instruction], touches[task.instruction]
            if steps_back and not touch.seen:
                continue
            slot: dict[str, object] = {
                name: (name, task.microbatch) if scope[name] is Scope.MICROBATCH else name for name in touch.seen
            }
            here = Dependency(position, steps_back)
            if not steps_back:
                needed = {d for name in touch.seen for d in writers.get(slot[name], ())}
                needed.update(d for name in touch.changed for d in readers.get(slot[name], ()))
                needed.update(Dependency(matching(other, task), 0) for other in instruction.after)
                needed.update(
                    Dependency(matching(e.instruction, task), e.steps_back) for e in instruction.after_earlier
                )
                needed.discard(here)
                found.append(tuple(sorted(needed)))
            for name in touch.read:
                readers.setdefault(slot[name], []).append(here)
            for name in touch.changed:
                if instruction.every > 1:
                    writers.setdefault(slot[name], []).append(here)
                else:
                    writers[slot[name]], readers[slot[name]] = [here], []
    return tuple(found)


def check(program: Program) -> list[str]:
    """What is wrong with a program: use before definition, use after or double free, leaks, unmatched messages
    and collectives. Empty when nothing is.
    """
    problems: list[str] = []
    for role in program.roles:
        problems += _check_role(role)
    for role in program.roles:
        for instruction in role.instructions:
            if instruction.kind in (Kind.SEND, Kind.RECEIVE):
                problems += _check_partner(program, role, instruction)
            elif instruction.kind.is_collective:
                problems += _check_meeting(program, role, instruction)
    return problems


def _check_role(role: Role) -> list[str]:
    problems = []
    of_microbatch = {b.name for b in role.buffers if b.scope is Scope.MICROBATCH}
    defined: set[tuple[str, int | None]] = {(b.name, None) for b in role.buffers if b.scope is Scope.RUN}
    freed: set[tuple[str, int | None]] = set()
    for task in role.order:
        where = f"{role.name}: {task}"
        instruction = role.instruction.get(task.instruction)
        if instruction is None:
            problems.append(f"{where}: no such instruction")
            continue
        named = dict.fromkeys((*instruction.reads, *instruction.writes, *instruction.accumulates, *instruction.frees))
        unknown = [b for b in named if b not in role.buffer]
        if unknown:
            problems.append(f"{where}: unknown buffer {', '.join(unknown)}")
            continue
        slot = {name: (name, task.microbatch if name in of_microbatch else None) for name in named}
        for name in instruction.reads:
            if slot[name] in freed:
                problems.append(f"{where}: reads {name} after it was freed")
            elif slot[name] not in defined:
                problems.append(f"{where}: reads {name} before anything wrote it")
        for name in (*instruction.writes, *instruction.accumulates):
            defined.add(slot[name])
            freed.discard(slot[name])
        for name in instruction.frees:
            if slot[name] in freed:
                problems.append(f"{where}: frees {name} twice")
            elif slot[name] not in defined:
                problems.append(f"{where}: frees {name} before anything wrote it")
            freed.add(slot[name])
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
        return [
            f"{where}: {other.name} has {len(partners)} instructions to {wanted} {instruction.message}, expected one"
        ]
    here, there = _tasks(role, instruction), _tasks(other, partners[0])
    if here != there:
        return [f"{where}: {len(here)} tasks here, {len(there)} to {wanted} it in {other.name}"]
    if role.payload_bytes(instruction) != other.payload_bytes(partners[0]):
        return [
            f"{where}: {role.payload_bytes(instruction)} bytes here, {other.payload_bytes(partners[0])} in {other.name}"
        ]
    return []


def _check_meeting(program: Program, role: Role, instruction: Instruction) -> list[str]:
    """Every role whose ranks are in the group must come to the same collective as often and with as many bytes."""
    assert instruction.group is not None
    where, axes = f"{role.name}: {instruction.id}", instruction.group.axes
    outside = {axis: index for axis, index in role.coordinates.items() if axis not in axes}
    problems = []
    for other in program.roles:
        if any(other.coordinates.get(axis, index) != index for axis, index in outside.items()):
            continue
        same = [i for i in other.instructions if (i.kind, i.group, i.message) == _meeting(instruction)]
        if len(same) != 1:
            found = f"{len(same)} instructions"
            problems.append(
                f"{where}: {other.name} has {found} to {instruction.kind} {instruction.message}, expected one"
            )
        elif _tasks(other, same[0]) != _tasks(role, instruction) or same[0].every != instruction.every:
            problems.append(f"{where}: {other.name} does not come to {instruction.message} as often")
        elif role.payload_bytes(instruction) != other.payload_bytes(same[0]):
            there = other.payload_bytes(same[0])
            problems.append(f"{where}: {role.payload_bytes(instruction)} bytes here, {there} in {other.name}")
    return problems


def _meeting(instruction: Instruction) -> tuple[object, ...]:
    return instruction.kind, instruction.group, instruction.message


def _tasks(role: Role, instruction: Instruction) -> list[int | None]:
    return sorted((t.microbatch for t in role.order if t.instruction == instruction.id), key=str)


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

    size = {b.name: held(b) for b in role.buffers}
    content = {b.name: b.content for b in role.buffers}
    of_microbatch = {b.name for b in role.buffers if b.scope is Scope.MICROBATCH}
    live: set[tuple[str, int | None]] = {(b.name, None) for b in role.buffers if b.scope is Scope.RUN}
    by_content: Counter[Content] = Counter()
    for name, _ in live:
        by_content[content[name]] += size[name]
    total = by_content.total()
    peak_bytes, at, composition = total, None, dict(by_content)
    for task in role.order:
        instruction = role.instruction[task.instruction]
        for name in (*instruction.writes, *instruction.accumulates):
            slot = (name, task.microbatch if name in of_microbatch else None)
            if slot not in live:
                live.add(slot)
                by_content[content[name]] += size[name]
                total += size[name]
        if total > peak_bytes:
            peak_bytes, at, composition = total, task, dict(by_content)
        for name in instruction.frees:
            slot = (name, task.microbatch if name in of_microbatch else None)
            if slot in live:
                live.remove(slot)
                by_content[content[name]] -= size[name]
                total -= size[name]
    return MemoryPeak(peak_bytes=peak_bytes, task=at, by_content={c: n for c, n in sorted(composition.items()) if n})
