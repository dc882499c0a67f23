"""Energy at the building's meter, and what the time and energy of a simulation cost."""

from __future__ import annotations

from ..hwprofiles import Cluster
from ..models.cost import CostModel
from .energy import NodePower, nodes_in_use
from .result import Interval

__all__ = ["energy", "money"]


def energy(seconds: Interval, power: NodePower | None, cluster: Cluster) -> Interval | None:
    """Joules at the meter of the building; None where the profile lacks a power or the PUE."""
    if power is None or cluster.pue is None:
        return None
    watts, pue = power.total_w, cluster.pue.value
    return Interval(
        value=watts.value * seconds.value * pue,
        low=watts.low * seconds.low * pue,
        high=watts.high * seconds.high * pue,
        provenance=seconds.provenance,
    )


def money(
    seconds: Interval, energy: Interval | None, ranks: int, cluster: Cluster, model: CostModel
) -> tuple[Interval | None, str | None]:
    """Rent of the nodes in use where the profile has a price; of own nodes, amortisation and energy; else the price of the
    energy; else unknown. And which of them.
    """
    nodes_usd_per_s = model.money_usd(1.0, cluster.with_nodes(nodes_in_use(cluster, ranks)))
    price = cluster.energy_price_usd_per_j
    electricity = energy.times(price.value) if energy is not None and price is not None else None
    if nodes_usd_per_s is None:
        return (None, None) if electricity is None else (electricity, "energy")
    nodes = seconds.times(nodes_usd_per_s)
    if cluster.price_kind != "own":
        return nodes, "rent"
    return (None, None) if electricity is None else (nodes.plus(electricity), "own")
