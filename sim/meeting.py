"""Where processes meet: ends that are looked up, messages, collectives; and who waits there for ever."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import simpy

from ..models.program import Instruction, Role, Task
from .competing import Device
from .played import Record

__all__ = ["Channel", "Gathering", "Meeting", "Post", "deadlock"]


@dataclass(eq=False, slots=True)
class Post:
    """The ends of an instruction's tasks on one rank, by the number of their pass, and the processes that wait for more."""

    instruction: str
    ends: dict[int, float] = field(default_factory=dict)
    waiters: list[simpy.Event] = field(default_factory=list)

    def wake(self) -> None:
        waiters, self.waiters = self.waiters, []
        for event in waiters:
            event.succeed()


@dataclass(eq=False, slots=True)
class Channel:
    """Messages on their way from one class to another: when they arrive, and who waits for the next."""

    sender: str
    arrivals: dict[int, float] = field(default_factory=dict)
    reader: simpy.Event | None = None


@dataclass(eq=False, slots=True)
class Meeting:
    """A collective that is gathering: how many are still missing, when the last has come, and when it ends."""

    missing: int
    latest_s: float = 0.0
    longest_s: float = 0.0
    end_s: float = 0.0
    ended: simpy.Event | None = None
    devices: list[Device] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class Gathering:
    """All meetings of one collective among the same classes, by task."""

    size: int
    open: dict[int, Meeting] = field(default_factory=dict)


def deadlock(stuck: Sequence[Record]) -> str:
    """Who waits for whom."""
    lines = []
    for record in stuck:
        assert record.waits is not None
        line, step, position, cause = record.waits
        role = record.script.role
        task = _task(line.members[0], role, position)
        if isinstance(cause, Meeting):
            others = f"{cause.missing} of {cause.missing + len(cause.devices)} simulated members, who have not come"
        elif isinstance(cause, str):
            others = f"{cause} to send it"
        else:
            instruction, number = cause
            back, there = divmod(number, len(role.schedule))
            others = f"{_task(role.instruction[instruction], role, there)}" + (
                f" of step {back}" if back != step else ""
            )
        lines.append(f"{role.name} rank {record.rank}: {task} of step {step} waits for {others}")
    listed = "\n  ".join(sorted(lines)[:12]) + (f"\n  and {len(lines) - 12} more" if len(lines) > 12 else "")
    return f"The schedule deadlocks: these tasks wait for each other and none can start.\n  {listed}\nChange the schedule's order."


def _task(i: Instruction, role: Role, position: int) -> Task:
    return Task(i.id, None if i.once else role.schedule[position].microbatch)
