"""Why one simulation is slower than another: the difference of their steps by cause, in parts that add up to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..errors import PlanError
from .activity import GROUPS, Cause
from .breakdown import breakdown
from .result import Simulation

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["Comparison", "Per", "compare"]

Per = Literal["step", "sample"]
NEGLIGIBLE = 0.02  # of the difference: causes of less are not told


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Seconds by cause of the mean rank of `a` and of `b`, of a step or of a sample."""

    names: tuple[str, str]
    per: Per
    a: Mapping[Cause, float]
    b: Mapping[Cause, float]

    @property
    def a_s(self) -> float:
        """Seconds of `a` in all."""
        return sum(self.a.values())

    @property
    def b_s(self) -> float:
        """Seconds of `b` in all."""
        return sum(self.b.values())

    @property
    def difference_s(self) -> float:
        """How much longer `b` takes; negative where it is faster."""
        return self.b_s - self.a_s

    @property
    def by_cause(self) -> dict[Cause, float]:
        """How much longer `b` spends on each cause, what weighs most first; they add up to the difference."""
        causes = dict.fromkeys((*self.a, *self.b))
        found = {cause: self.b.get(cause, 0.0) - self.a.get(cause, 0.0) for cause in causes}
        return dict(sorted(found.items(), key=lambda item: (-abs(item[1]), GROUPS.index(item[0].group), item[0].name)))

    @property
    def reason(self) -> str:
        """The difference in words."""
        first, second = self.names
        more = self.difference_s
        whole = max(abs(more), 1e-300)
        if abs(more) <= 1e-6 * self.a_s:
            return f"{second} takes as long a {self.per} as {first}."
        word = "longer" if more > 0 else "shorter"
        told = [
            f"{abs(s):.3g} s {'more' if s > 0 else 'less'} {_words(cause)}"
            for cause, s in list(self.by_cause.items())[:4]
            if abs(s) >= NEGLIGIBLE * whole
        ]
        return f"{second} takes {abs(more):.3g} s ({abs(more) / self.a_s:.1%}) {word} a {self.per} than {first}: {', '.join(told)}."

    def to_frame(self) -> pd.DataFrame:
        """One row a cause: seconds of both and their difference, what weighs most first."""
        import pandas as pd

        rows = [
            {
                "group": cause.group,
                "cause": cause.name,
                "a_s": self.a.get(cause, 0.0),
                "b_s": self.b.get(cause, 0.0),
                "difference_s": more,
            }
            for cause, more in self.by_cause.items()
        ]
        return pd.DataFrame(rows, columns=["group", "cause", "a_s", "b_s", "difference_s"])

    def plot(self) -> Figure:
        """Both as bars, stacked by cause."""
        from .pictures import stacked

        first, second = self.names
        if first == second:
            first, second = f"a: {first}", f"b: {second}"
        return stacked({first: self.a, second: self.b}, title=f"Time of a {self.per}")


def _together(parts: Mapping[Cause, float]) -> dict[Cause, float]:
    """Passes under one name, where some compile as one what others do apart."""
    passes = Cause("computing", "passes")
    found: dict[Cause, float] = {passes: 0.0}
    for cause, seconds in parts.items():
        words = set(cause.name.split(" and "))
        into = passes if cause.group == "computing" and words <= {"forward", "backward", "recompute"} else cause
        found[into] = found.get(into, 0.0) + seconds
    return found


def _words(cause: Cause) -> str:
    return {"computing": cause.name, "communication": f"exposed {cause.name}", "waiting": f"waiting {cause.name}"}.get(
        cause.group, cause.name
    )


def compare(
    a: Simulation, b: Simulation, *, per: Per | None = None, names: tuple[str, str] | None = None
) -> Comparison:
    """Where `b` spends more time than `a`.

    per     "step" or "sample"; None: a step where both have the same batch, else a sample
    names   what to call them; None: their strategies, with the clusters where these differ

    Raises:
        PlanError: another word for `per`, or a simulation that does not carry its program.
    """
    per = per or ("step" if a.batch == b.batch else "sample")
    if per not in ("step", "sample"):
        raise PlanError(f"Simulations are compared per step or per sample, not per {per!r}.")
    parts = [dict(breakdown(simulation).by_cause) for simulation in (a, b)]
    if any(" and " in cause.name for part in parts for cause in part):
        parts = [_together(part) for part in parts]
    if per == "sample":
        parts = [{c: s / each.batch for c, s in part.items()} for part, each in zip(parts, (a, b), strict=True)]
    if names is None:
        where = (f"{a.strategy} on {a.cluster}", f"{b.strategy} on {b.cluster}")
        names = where if a.cluster != b.cluster else (a.strategy, b.strategy)
    return Comparison(names=names, per=per, a=parts[0], b=parts[1])
