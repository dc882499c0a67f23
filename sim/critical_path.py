"""The critical path of a step: the tasks that its length hangs on, from its end back to its beginning.

From the task that ends last, the path goes to what that task had to wait for: the last member of its collective to come, the send
whose bytes it received, else whichever ended last of the task before it on its stream and the tasks that it depends on. The links
of the path follow each other without gaps, so their times by cause add up to the steps that were looked at. Of work that is not on
it, some could take longer at no cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ..models.program import Dependency, Kind, Program, Task, dependencies
from ..models.trace import Event
from .activity import IDLE, SLOWED, Cause, Window, begun, cause_of, program_of, steady_window
from .result import Simulation

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CriticalPath", "Link", "critical_path"]

_TOUCH = 1e-12  # seconds (and that share of the clock) between what follows each other


class Link(NamedTuple):
    """One stretch of the path: the event that goes on, from when to when, and as what. No event where nothing goes on."""

    start_s: float
    end_s: float
    cause: Cause
    event: Event | None

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.end_s - self.start_s


@dataclass(frozen=True, kw_only=True)
class CriticalPath:
    """The links in order of time, over `steps` steps."""

    links: tuple[Link, ...]
    steps: int

    @property
    def step_s(self) -> float:
        """Seconds of one step."""
        return sum(link.seconds for link in self.links) / self.steps

    @property
    def by_cause(self) -> dict[Cause, float]:
        """Seconds of one step by cause, most first; they add up to the step."""
        sums: dict[Cause, float] = {}
        for link in self.links:
            sums[link.cause] = sums.get(link.cause, 0.0) + link.seconds / self.steps
        return dict(sorted(sums.items(), key=lambda item: -item[1]))

    @property
    def by_role(self) -> dict[str, float]:
        """Seconds of one step that the path spends on each role."""
        sums: dict[str, float] = {}
        for link in self.links:
            name = link.event.role if link.event else IDLE.name
            sums[name] = sums.get(name, 0.0) + link.seconds / self.steps
        return sums

    def to_frame(self) -> pd.DataFrame:
        """One row a link, in order."""
        import pandas as pd

        rows = [
            {
                "start_s": link.start_s,
                "end_s": link.end_s,
                "seconds": link.seconds,
                "group": link.cause.group,
                "cause": link.cause.name,
                "task": link.event.task_id if link.event else "",
            }
            for link in self.links
        ]
        return pd.DataFrame(rows, columns=["start_s", "end_s", "seconds", "group", "cause", "task"])


def critical_path(simulation: Simulation) -> CriticalPath:
    """The critical path through the steady steps of a simulation.

    Raises:
        PlanError: the simulation does not carry its program.
    """
    window = steady_window(simulation)
    return CriticalPath(links=_Walk(simulation, program_of(simulation), window).back(), steps=window.steps)


class _Walk:
    """The way back from the last event."""

    def __init__(self, simulation: Simulation, program: Program, window: Window) -> None:
        self.program, self.window, self.prices = program, window, simulation.prices
        self.events = [e for e in simulation.trace.events if e.start_s < window.end_s]
        self.begun = dict(zip(map(_key, self.events), begun(self.events), strict=True))
        self.before: dict[tuple[object, ...], Event] = {}
        self.at: dict[tuple[object, ...], Event] = {}
        self.sends: dict[tuple[object, ...], Event] = {}
        self.last: dict[tuple[object, ...], Event] = {}
        latest: dict[tuple[int, str], Event] = {}
        for e in self.events:
            if (earlier := latest.get((e.rank, e.stream))) is not None:
                self.before[_key(e)] = earlier
            latest[e.rank, e.stream] = e
            self.at[_key(e)] = e
            if e.kind == Kind.SEND:
                self.sends[e.instruction.removeprefix("send."), e.step, e.microbatch, e.end_s] = e
            elif Kind(e.kind).is_collective:
                meeting = (e.instruction, e.step, e.microbatch, e.end_s)
                if meeting not in self.last or e.start_s > self.last[meeting].start_s:
                    self.last[meeting] = e
        self.needs: dict[str, Sequence[tuple[Dependency, ...]]] = {}
        self.places: dict[str, Mapping[Task, int]] = {}

    def back(self) -> tuple[Link, ...]:
        """The links, first to last."""
        links: list[Link] = []
        event: Event | None = max(self.events, key=lambda e: e.end_s, default=None)
        until_s = self.window.end_s
        while event is not None and until_s > self.window.start_s:
            if event.kind == Kind.RECEIVE and self.begun[_key(event)] < event.end_s:
                message = (event.instruction.removeprefix("receive."), event.step, event.microbatch, event.end_s)
                event = self.sends.get(message, event)
            elif Kind(event.kind).is_collective:
                event = self.last[event.instruction, event.step, event.microbatch, event.end_s]
            since_s = min(self.begun[_key(event)], until_s)
            self._add(links, event, since_s, until_s)
            earlier = self._released_by(event)
            if earlier is not None and earlier.end_s < since_s - _TOUCH * (1 + since_s):
                links.append(Link(earlier.end_s, since_s, IDLE, None))
                since_s = earlier.end_s
            event, until_s = earlier, since_s
        found = [link._replace(start_s=max(link.start_s, self.window.start_s)) for link in reversed(links)]
        found = [link for link in found if link.end_s > link.start_s]
        if found and found[0].start_s > self.window.start_s:
            found.insert(0, Link(self.window.start_s, found[0].start_s, IDLE, None))
        return tuple(found)

    def _add(self, links: list[Link], event: Event, since_s: float, until_s: float) -> None:
        """An event's stretch; of computing that takes longer than by itself, the end is what slows it."""
        instruction = self.program.role_of(event.rank).instruction[event.instruction]
        alone_s = self.prices.get(event.rank, {}).get(event.instruction, until_s - since_s)
        if instruction.kind is Kind.COMPUTE and since_s + alone_s < until_s - _TOUCH * (1 + until_s):
            links.append(Link(since_s + alone_s, until_s, SLOWED, event))
            until_s = since_s + alone_s
        links.append(Link(since_s, until_s, cause_of(instruction), event))

    def _released_by(self, event: Event) -> Event | None:
        """What ended last of all that had to end before the event: the task before it, and those that it depends on."""
        role = self.program.role_of(event.rank)
        if role.name not in self.needs:
            self.needs[role.name] = dependencies(role)
            self.places[role.name] = {task: place for place, task in enumerate(role.order)}
        candidates = [self.before.get(_key(event))]
        for need in self.needs[role.name][self.places[role.name][Task(event.instruction, event.microbatch)]]:
            task = role.order[need.position]
            candidates.append(
                self.at.get((event.rank, event.step - need.steps_back, task.instruction, task.microbatch))
            )
        return max((e for e in candidates if e is not None), key=lambda e: e.end_s, default=None)


def _key(event: Event) -> tuple[object, ...]:
    return event.rank, event.step, event.instruction, event.microbatch
