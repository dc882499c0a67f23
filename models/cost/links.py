"""How sure the values of a link are: from its profile to the intervals of predictions.

A value with `low` and `high` says it itself: nine tenths of a log-normal distribution lie between them. One without has
the width of its tier, as the left-out systems of ``experiments/validate_collectives.py`` show it. Measured values come
from all-reduces and messages; other collectives of the same link scatter around them.

>>> from hpdlf.hwprofiles import load_link
>>> measured, assumed = (spreads_of(load_link(name), ["all_reduce.bandwidth"]) for name in ("nvlink3", "nvlink5"))
>>> measured["all_reduce.bandwidth"] < assumed["all_reduce.bandwidth"]
True
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import hypot, log

from ...hwprofiles import Link, Quantity

__all__ = ["spread_of", "spreads_of"]

NINETY = 1.645
BY_TIER: Mapping[str, float] = {"measured": 0.1, "datasheet": 0.2, "modelled": 0.25, "recalled": 0.35}
# Collectives other than the measured one: SimuMax's efficiencies of all-gather, reduce-scatter and all-to-all lie up to
# a third below that of the all-reduce on the same link.
OTHER_KIND = 0.15
# Groups between those that were measured, and beyond them.
OTHER_GROUP = 0.1
# Start and steps are constants of the library (measured on other machines), whatever the link.
LEAST_LATENCY = 0.25


def spread_of(quantity: Quantity) -> float:
    """Standard deviation of the logarithm of a value."""
    if quantity.low and quantity.high:
        return log(quantity.high / quantity.low) / (2 * NINETY)
    return BY_TIER[quantity.tier]


def spreads_of(link: Link, components: Iterable[str], group: int | None = None) -> dict[str, float]:
    """The spreads of a workload's components on `link`, such as "all_reduce.bandwidth" or "transfer.latency".

    `group` is the number of ranks (of nodes, for a link between them) that take part.
    """
    found = {}
    for component in components:
        kind, _, part = component.rpartition(":")[2].partition(".")
        if part == "latency":
            held = (link.latency_s, link.collective_overhead_s) if kind in _COLLECTIVES else (link.latency_s,)
            found[component] = max(LEAST_LATENCY, *(spread_of(one) for one in held if one is not None))
        elif kind in _COLLECTIVES:
            spread = spread_of(link.collective_efficiency or link.efficiency)
            unlike = [OTHER_KIND] if kind != "all_reduce" else []
            if group is not None and link.group_share and str(group) not in link.group_share:
                unlike.append(OTHER_GROUP)
            found[component] = hypot(spread, *unlike)
        else:
            found[component] = hypot(spread_of(link.bandwidth_bytes_per_s), spread_of(link.efficiency))
    return found


_COLLECTIVES = frozenset({"all_reduce", "all_gather", "reduce_scatter", "broadcast", "all_to_all"})
