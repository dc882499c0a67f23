"""Whether a program can be right: every buffer defined before it is used and freed once, every message and collective met.

A role is checked pass by pass. A MICROBATCH buffer is followed through the life of one microbatch (the passes that it goes through,
in the order of the schedule; microbatches that go through the same passes are alike), a STEP buffer through the schedule, where only
passes count that find it in another state than the last time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from .instruction import Instruction, Kind, Program, Role, Scope, Task

__all__ = ["check", "lives"]


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


def lives(role: Role) -> Mapping[tuple[str, ...], list[int | None]]:
    """The distinct sequences of passes that one microbatch goes through, each with its microbatches (None: the step's own passes)."""
    gone: dict[int | None, list[str]] = {}
    for name, microbatch in role.schedule:
        gone.setdefault(microbatch, []).append(name)
    found: dict[tuple[str, ...], list[int | None]] = {}
    for microbatch, names in gone.items():
        found.setdefault(tuple(names), []).append(microbatch)
    return found


def _check_role(role: Role) -> list[str]:
    strange = [
        f"{role.name}: {name}: no such instruction"
        for members in role.passes.values()
        for name in members
        if name not in role.instruction
    ]
    strange += [
        f"{role.name}: pass {p.name} is scheduled and nowhere defined"
        for p in role.schedule
        if p.name not in role.passes
    ]
    unknown = [
        f"{role.name}: {i.id}: unknown buffer {', '.join(absent)}"
        for i in role.instructions
        if (absent := [b for b in _named(i) if b not in role.buffer])
    ]
    if strange or unknown:
        return [*dict.fromkeys(strange), *unknown]
    problems: list[str] = []
    for names, microbatches in lives(role).items():
        slots = _Slots(role, Scope.MICROBATCH)
        for name in names:
            for instruction in role.passes[name]:
                slots.touch(role.instruction[instruction], microbatches[0])
        problems += [*slots.problems, *slots.leaks(microbatches[0])]
    slots = _Slots(role, Scope.STEP)
    left: dict[str, int] = {}  # by pass: how often buffers had changed state when it ended last
    for name, microbatch in role.schedule:
        if left.get(name) == slots.changes:
            continue
        for instruction in role.passes[name]:
            slots.touch(role.instruction[instruction], microbatch)
        left[name] = slots.changes
    return [*problems, *slots.problems, *slots.leaks(None)]


def _named(instruction: Instruction) -> Iterator[str]:
    i = instruction
    return iter(dict.fromkeys((*i.reads, *i.writes, *i.accumulates, *i.frees)))


class _Slots:
    """The state of a role's buffers of one scope while tasks go by."""

    def __init__(self, role: Role, scope: Scope) -> None:
        self.role, self.scope = role, scope
        self.defined: dict[str, None] = {}
        self.freed: set[str] = set()
        self.changes = 0
        self.problems: list[str] = []

    def touch(self, instruction: Instruction, microbatch: int | None) -> None:
        buffer, scope = self.role.buffer, self.scope
        where = f"{self.role.name}: {Task(instruction.id, None if instruction.once else microbatch)}"
        for name in instruction.reads:
            if buffer[name].scope is scope and name not in self.defined:
                what = "after it was freed" if name in self.freed else "before anything wrote it"
                self.problems.append(f"{where}: reads {name} {what}")
        for name in (*instruction.writes, *instruction.accumulates):
            if buffer[name].scope is scope and name not in self.defined:
                self.defined[name] = None
                self.freed.discard(name)
                self.changes += 1
        for name in instruction.frees:
            if buffer[name].scope is not scope:
                continue
            if name not in self.defined:
                what = "twice" if name in self.freed else "before anything wrote it"
                self.problems.append(f"{where}: frees {name} {what}")
            self.defined.pop(name, None)
            self.freed.add(name)
            self.changes += 1

    def leaks(self, microbatch: int | None) -> list[str]:
        return [f"{self.role.name}: {Task(name, microbatch)} is never freed" for name in sorted(self.defined)]


def _check_partner(program: Program, role: Role, instruction: Instruction) -> list[str]:
    assert instruction.peer is not None
    wanted = Kind.RECEIVE if instruction.kind is Kind.SEND else Kind.SEND
    where = f"{role.name}: {instruction.id}"
    try:
        other = _partner(program, role, instruction)
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


def _partner(program: Program, role: Role, instruction: Instruction) -> Role:
    """The role that the first rank of `role` exchanges messages with."""
    assert instruction.peer is not None
    mesh = program.mesh
    first = mesh.rank({axis: role.coordinates.get(axis, 0) for axis in mesh.axes})
    return program.role_of(mesh.peer(first, instruction.peer))


def _check_meeting(program: Program, role: Role, instruction: Instruction) -> list[str]:
    """Every role whose ranks are in the group must come to the same collective as often and with as many bytes."""
    assert instruction.group is not None
    where, axes = f"{role.name}: {instruction.id}", instruction.group.axes
    if not set(role.coordinates) & set(axes):
        return []  # all members play this role
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
    """The microbatches of an instruction's tasks; found once a role, as every partner asks."""
    memo: dict[str, list[int | None]] = vars(role).setdefault("_microbatches", {})
    if instruction.id not in memo:
        within = {name for name, members in role.passes.items() if instruction.id in members}
        found = [None if instruction.once else microbatch for name, microbatch in role.schedule if name in within]
        memo[instruction.id] = sorted(found, key=lambda m: -1 if m is None else m)
    return memo[instruction.id]
