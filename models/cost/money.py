"""Money and carbon: what a node-hour costs by kind of price, what energy costs, and the CO2 that it stands for.

Three kinds of price (``price_kind`` of a cluster):

* ``on_demand`` and ``spot``: the rent of a node; the energy is in it.
* ``own``: ``(purchase / lifetime + hosting) / occupancy``, and the energy on top. Dividing by the occupancy charges the
  hours without work to those with work; what the node draws in them is not counted.

Energy at devices, hosts and network is multiplied by the building's PUE before it is priced. What a profile does not
say makes the result None, never 0.

>>> from hpdlf.hwprofiles import load_cluster
>>> price = node_price(load_cluster("dgx-a100"), "own")
>>> f"{price.usd_per_hour:.2f} USD per node-hour, energy included: {price.includes_energy}"
'7.95 USD per node-hour, energy included: False'
"""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import ProfileError
from ...hwprofiles import PRICE_KINDS, Cluster, Quantity

__all__ = ["Bill", "NodePrice", "bill", "carbon_kg", "energy_usd", "full_power_w", "node_hour_usd", "node_price"]

HOUR_S = 3600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class NodePrice:
    """What one node costs per second, at least and at most, and where that comes from."""

    kind: str
    usd_per_s: float
    low_usd_per_s: float
    high_usd_per_s: float
    includes_energy: bool
    source: str
    tier: str
    date: str | None

    @property
    def usd_per_hour(self) -> float:
        """The price per node-hour."""
        return self.usd_per_s * HOUR_S


@dataclass(frozen=True, kw_only=True, slots=True)
class Bill:
    """What using a cluster costs, None where the profile does not say it.

    node_usd    rent of the nodes; amortisation and hosting of own ones
    energy_usd  of the electricity, whoever pays it
    total_usd   what the user pays: the rent, or amortisation, hosting and energy
    carbon_kg   CO2 of the electricity
    """

    kind: str
    node_usd: float | None
    energy_usd: float | None
    total_usd: float | None
    carbon_kg: float | None


def node_price(cluster: Cluster, kind: str | None = None) -> NodePrice | None:
    """What a node costs by `kind` of price (None: the cluster's own choice); None where the profile does not say it.

    Raises:
        ProfileError: there is no such kind.
    """
    kind = cluster.price_kind if kind is None else kind
    if kind not in PRICE_KINDS:
        raise ProfileError(f"there is no price '{kind}'; it is one of {', '.join(PRICE_KINDS)}")
    if kind == "own":
        return _own(cluster)
    rent = cluster.price_usd_per_node_s if kind == "on_demand" else cluster.spot_usd_per_node_s
    if rent is None:
        return None
    low, high = _range(rent)
    return NodePrice(
        kind=kind,
        usd_per_s=rent.value,
        low_usd_per_s=low,
        high_usd_per_s=high,
        includes_energy=True,
        source=rent.source,
        tier=rent.tier,
        date=rent.date,
    )


def _own(cluster: Cluster) -> NodePrice | None:
    bought, life, hosting = cluster.purchase_usd_per_node, cluster.lifetime_s, cluster.hosting_usd_per_node_s
    if bought is None or life is None:
        return None
    used = cluster.occupancy
    share, share_low, share_high = (used.value, *_range(used)) if used is not None else (1.0, 1.0, 1.0)
    keep, keep_low, keep_high = (hosting.value, *_range(hosting)) if hosting is not None else (0.0, 0.0, 0.0)
    (bought_low, bought_high), (life_low, life_high) = _range(bought), _range(life)
    parts = ["purchase price over lifetime" + (" and occupancy" if used is not None else " with work in every hour")]
    parts += ["hosting" if hosting is not None else "hosting not counted"]
    return NodePrice(
        kind="own",
        usd_per_s=(bought.value / life.value + keep) / share,
        low_usd_per_s=(bought_low / life_high + keep_low) / share_high,
        high_usd_per_s=(bought_high / life_low + keep_high) / share_low,
        includes_energy=False,
        source=f"{', '.join(parts)}; purchase price: {bought.source}",
        tier="modelled",
        date=bought.date,
    )


def _range(quantity: Quantity) -> tuple[float, float]:
    low = quantity.value if quantity.low is None else quantity.low
    return low, quantity.value if quantity.high is None else quantity.high


def energy_usd(joules: float | None, cluster: Cluster) -> float | None:
    """The price of `joules` at devices, hosts and network, with the building's overhead; None where it is unknown."""
    if joules is None or cluster.energy_price_usd_per_j is None or cluster.pue is None:
        return None
    return joules * cluster.pue.value * cluster.energy_price_usd_per_j.value


def carbon_kg(joules: float | None, cluster: Cluster) -> float | None:
    """CO2 of `joules` at devices, hosts and network, with the building's overhead; None where it is unknown."""
    if joules is None or cluster.carbon_kg_per_j is None or cluster.pue is None:
        return None
    return joules * cluster.pue.value * cluster.carbon_kg_per_j.value


def full_power_w(cluster: Cluster) -> float | None:
    """What a node draws with every device at its power limit, network share included; None where it is unknown.

    A node's own limit caps it. A network share that the profile does not say is not counted.
    """
    node, device = cluster.node, cluster.device
    if device.limit_w is None or node.host_active_w is None:
        return None
    network_w = cluster.network_w_per_node.value if cluster.network_w_per_node else 0.0
    node_w = node.devices_per_node * device.limit_w.value + node.host_active_w.value
    return (min(node_w, node.limit_w.value) if node.limit_w else node_w) + network_w


def node_hour_usd(cluster: Cluster, kind: str | None = None, *, node_w: float | None = None) -> float | None:
    """What a node-hour costs in all: the rent, or amortisation, hosting and the energy of a node that draws `node_w`
    (None: :func:`full_power_w`). None where anything is unknown.
    """
    price = node_price(cluster, kind)
    if price is None:
        return None
    if price.includes_energy:
        return price.usd_per_hour
    watts = full_power_w(cluster) if node_w is None else node_w
    energy = energy_usd(None if watts is None else watts * HOUR_S, cluster)
    return None if energy is None else price.usd_per_hour + energy


def bill(seconds: float, joules: float | None, cluster: Cluster, kind: str | None = None) -> Bill:
    """What it costs to use the whole `cluster` for `seconds`, `joules` at devices, hosts and network meanwhile."""
    kind = cluster.price_kind if kind is None else kind
    price = node_price(cluster, kind)
    node_usd = None if price is None else price.usd_per_s * cluster.n_nodes * seconds
    energy = energy_usd(joules, cluster)
    total = node_usd
    if price is not None and not price.includes_energy:
        total = None if node_usd is None or energy is None else node_usd + energy
    return Bill(kind=kind, node_usd=node_usd, energy_usd=energy, total_usd=total, carbon_kg=carbon_kg(joules, cluster))
