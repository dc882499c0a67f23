"""What a program's buffers say of the order of its tasks.

A *slot* is one instance of a buffer: a RUN buffer has one for ever, a STEP buffer one a step, a MICROBATCH buffer one for every
microbatch of every step. A task depends

* on the last writer of every slot that it reads or adds to (read after write),
* on the last writer and all readers since of every slot that it writes or frees (write after write, write after read),
* on what ``after`` and ``after_earlier`` name: with the same microbatch where both have one, else with the last of them.

RUN slots carry dependencies from one step into the next; they are found by walking the order twice.

This is the reference, task by task, that the executor follows. :mod:`.waits` finds the same from a role's passes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from .instruction import Instruction, Role, Scope, Task

__all__ = ["Dependency", "dependencies"]


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
