"""Looking into a simulation from the command line: what its time goes to, and why a variant of it is slower."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from ..errors import PlanError
from ..models.plan import Strategy
from .tables import plain_table
from .units import seconds

if TYPE_CHECKING:
    from rich.table import Table

    from ..sim import Simulation

__all__ = ["breakdown_table", "comparison_table", "told", "variant"]

_FLAGS = {"true": True, "yes": True, "false": False, "no": False}


def variant(asked: Mapping[str, Any], fields: str) -> dict[str, Any]:
    """The arguments of a simulation with those replaced that `fields` names: "data=2,pipeline=4", "on=dgx-h100".

    Microbatches follow the pipeline where that changes and they are not said.

    Raises:
        PlanError: what is no field, or has no value.
    """
    known = ("on", "optimizer", *Strategy.model_fields)
    said: dict[str, Any] = {}
    for part in (p.strip() for p in fields.split(",") if p.strip()):
        name, equals, value = (word.strip() for word in part.partition("="))
        if not equals or not value or name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}? " if close and close[0] != name else ""
            raise PlanError(
                f"--versus cannot use {part!r}: {hint}Give fields of a strategy, as in 'data=2,pipeline=4'."
            )
        said[name] = int(value) if value.isdecimal() else _FLAGS.get(value.lower(), value)
    if "pipeline" in said and "microbatches" not in said:
        said["microbatches"] = max(said["pipeline"], 1)
    return {**asked, **said}


def breakdown_table(simulation: Simulation) -> Table:
    """Of the mean rank: seconds and share of the step by cause, and how much of it lies on the critical path."""
    found, path = simulation.breakdown(), simulation.critical_path().by_cause
    table = plain_table(
        "What a step's time goes to", "", "cause", "mean rank", "share", "critical path", right=("share",)
    )
    for cause in dict.fromkeys((*found.by_cause, *path)):
        mean_s, on_path_s = found.by_cause.get(cause, 0.0), path.get(cause, 0.0)
        if max(mean_s, on_path_s) >= 1e-4 * found.step_s:
            table.add_row(cause.group, cause.name, seconds(mean_s), f"{mean_s / found.step_s:.1%}", seconds(on_path_s))
    table.add_row("", "step", seconds(found.step_s), "100.0%", seconds(found.step_s))
    return table


def comparison_table(simulation: Simulation, other: Simulation) -> Table:
    """Both by cause, and the difference."""
    found = simulation.compare(other)
    table = plain_table(f"Time of a {found.per}", "", "cause", "this", "variant", "difference", right=("difference",))
    for cause, more in found.by_cause.items():
        both = found.a.get(cause, 0.0), found.b.get(cause, 0.0)
        if max(both) >= 1e-4 * max(found.a_s, found.b_s):
            table.add_row(cause.group, cause.name, seconds(both[0]), seconds(both[1]), _signed(more))
    table.add_row("", found.per, seconds(found.a_s), seconds(found.b_s), _signed(found.difference_s))
    return table


def _signed(value_s: float) -> str:
    return f"{'-' if value_s < 0 else '+'}{seconds(abs(value_s))}"


def told(simulation: Simulation, *, breakdown: bool, other: Simulation | None) -> dict[str, Any]:
    """The simulation as plain values, with what else was asked for."""
    plain = simulation.to_dict()
    if breakdown:
        plain["breakdown"] = simulation.breakdown().to_frame().to_dict("records")
    if other is not None:
        found = simulation.compare(other)
        plain["versus"] = other.to_dict()
        plain["comparison"] = {"reason": found.reason, "causes": found.to_frame().to_dict("records")}
    return plain
