"""What the time of a step goes to, per role and over all ranks: parts that add up to the step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .activity import GROUPS, Cause, activities, program_of, steady_window
from .result import Simulation

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["Breakdown", "breakdown"]


@dataclass(frozen=True, kw_only=True)
class Breakdown:
    """Seconds of one step by cause: of the mean rank of each role, and of the mean rank of all.

    `by_role` and `by_cause` are in the order of groups: computing, exposed communication, host, waiting, idle. The parts of each
    add up to `step_s`.
    """

    title: str
    step_s: float
    by_role: Mapping[str, Mapping[Cause, float]]
    by_cause: Mapping[Cause, float]

    @property
    def by_group(self) -> dict[str, float]:
        """Seconds by group of causes."""
        sums = dict.fromkeys(GROUPS, 0.0)
        for cause, seconds in self.by_cause.items():
            sums[cause.group] += seconds
        return sums

    def to_frame(self) -> pd.DataFrame:
        """One row a role and cause, those of all ranks under the role "all": seconds of a step, and their share of it."""
        import pandas as pd

        rows = [
            {
                "role": role,
                "group": cause.group,
                "cause": cause.name,
                "seconds": seconds,
                "share": seconds / self.step_s,
            }
            for role, parts in {**self.by_role, "all": self.by_cause}.items()
            for cause, seconds in parts.items()
        ]
        return pd.DataFrame(rows, columns=["role", "group", "cause", "seconds", "share"])

    def to_text(self) -> str:
        """The parts of the mean rank, one a line."""
        width = max(len(f"{c.group}: {c.name}") for c in self.by_cause)
        lines = [
            f"{f'{cause.group}: {cause.name}':{width}}  {seconds:10.4g} s  {seconds / self.step_s:6.1%}"
            for cause, seconds in self.by_cause.items()
        ]
        return "\n".join([*lines, f"{'step':{width}}  {self.step_s:10.4g} s"])

    def plot(self) -> Figure:
        """A bar for each role and for the mean rank, stacked by cause."""
        from .pictures import stacked

        bars = {**self.by_role, "all": self.by_cause} if len(self.by_role) > 1 else {"all": self.by_cause}
        return stacked(bars, title=self.title)


def breakdown(simulation: Simulation) -> Breakdown:
    """Break the steady step of a simulation down.

    Raises:
        PlanError: the simulation does not carry its program.
    """
    program, window = program_of(simulation), steady_window(simulation)
    sums: dict[str, dict[Cause, float]] = {role.name: {} for role in program.roles}
    ranks: dict[str, int] = {}
    for rank, activity in activities(simulation, window).items():
        role, times = program.role_of(rank).name, simulation.multiplicity[rank]
        ranks[role] = ranks.get(role, 0) + times
        for cause, seconds in activity.seconds.items():
            sums[role][cause] = sums[role].get(cause, 0.0) + times * seconds / window.steps
    everybody = sum(ranks.values())
    overall: dict[Cause, float] = {}
    for parts in sums.values():
        for cause, seconds in parts.items():
            overall[cause] = overall.get(cause, 0.0) + seconds / everybody
    return Breakdown(
        title=f"{simulation.model} on {simulation.cluster}: {simulation.strategy}",
        step_s=(window.end_s - window.start_s) / window.steps,
        by_role={
            role: _ordered({cause: s / ranks[role] for cause, s in parts.items()})
            for role, parts in sums.items()
            if role in ranks
        },
        by_cause=_ordered(overall),
    )


def _ordered(parts: Mapping[Cause, float]) -> dict[Cause, float]:
    return dict(sorted(parts.items(), key=lambda item: (GROUPS.index(item[0].group), -item[1], item[0].name)))
