"""Fitting a link to measured messages and collectives: the values of its profile that no datasheet has.

The same function makes the shipped profiles from published tables and the profile of this machine from its
micro-benchmarks. It varies what the link leaves to measurement (:data:`COLLECTIVE`, :data:`MESSAGE`) so that the
predictions of :mod:`.collectives` and :mod:`.communication` come close to the times in relative terms: least squares of
the logarithm of predicted over measured, with a loss that grows linearly beyond 10 % so that outliers count little
(SciPy's trust region, started from the link as it is; deterministic).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from math import exp, log
from typing import NamedTuple

import numpy as np

from ...errors import DataError
from ...hwprofiles import Cluster, Device, Link, Node, Quantity
from .collectives import collective_legs, slowdown

__all__ = ["COLLECTIVE", "MESSAGE", "Timed", "fit_link", "laid_out", "predicted_s"]

COLLECTIVE = ("collective_efficiency", "collective_overhead_s", "half_bandwidth_bytes", "group_share")
MESSAGE = ("efficiency", "latency_s", "half_bandwidth_bytes")
# Bounds and a start for what a link does not say yet, in the units of the field.
_BOUNDS = {
    "efficiency": (0.01, 1.0, 0.7),
    "latency_s": (5e-8, 1e-3, 2e-6),
    "half_bandwidth_bytes": (1e2, 1e9, 1e5),
    "collective_efficiency": (0.01, 10.0, 0.7),
    "collective_overhead_s": (1e-7, 1e-2, 1e-5),
    "group_share": (0.02, 4.0, 1.0),
}
_LOSSES = ("half_bandwidth_bytes", "collective_overhead_s")
_UNITS = {"latency_s": "s", "half_bandwidth_bytes": "B", "collective_overhead_s": "s"}
NINETY = 1.645
# The same link is never measured twice alike: another day, driver or node.
LEAST_SPREAD = 0.03


class Timed(NamedTuple):
    """One measurement: "message", or the kind of a collective; bytes of the buffer; ranks over nodes; seconds.

    `algorithm` is the start of the names of those that the library had, "" for all.
    """

    kind: str
    nbytes: float
    ranks: int
    seconds: float
    nodes: int = 1
    algorithm: str = ""

    def placed(self, cluster: Cluster) -> tuple[int, ...]:
        """The devices that take part, as many on each node."""
        per_node, devices = self.ranks // self.nodes, cluster.devices_per_node
        return tuple(node * devices + one for node in range(self.nodes) for one in range(per_node))


Layout = Callable[[Link, Timed], Cluster]


def predicted_s(timed: Timed, cluster: Cluster) -> float:
    """What the model says of a measurement, before any factor."""
    if timed.kind == "message":
        link = cluster.link if timed.nodes > 1 else cluster.node.link
        assert link is not None
        sent_s = timed.nbytes / link.message_bandwidth_bytes_per_s
        return link.latency_s.value + sent_s * slowdown(link, timed.nbytes)
    legs = collective_legs(timed.kind, timed.nbytes, timed.placed(cluster), cluster, algorithm=timed.algorithm)
    return sum(leg.latency_s + leg.transmission_s for leg in legs)


def laid_out(inner: Link | None, outer: Link | None, *, nodes: int, per_node: int, device: Device) -> Cluster:
    """A cluster of nothing but these links: enough to price communication on."""
    count = Quantity(value=float(per_node), unit="1", source="the measurement", tier="measured")
    node = Node(name="node", device=device, devices=count, link=inner)
    return Cluster(name="network", node=node, n_nodes=nodes, link=outer)


def fit_link(
    link: Link, measured: Sequence[Timed], layout: Layout, *, vary: Sequence[str], source: str, date: str | None = None
) -> Link:
    """`link` with the fields `vary` fitted to `measured`; `layout` puts a link into the cluster of a measurement.

    "group_share" varies for every number of ranks (of nodes, where they span nodes); the group that sees most has the
    share 1. `source` names the measurements. Each fitted value is the tier "measured", with `low` and `high` nine tenths of a log-normal
    distribution apart whose width is the scatter of the residuals.

    Raises:
        DataError: nothing was measured, or a time is not positive.
    """
    from scipy.optimize import least_squares

    if not measured:
        raise DataError(f"link '{link.name}': nothing was measured, so there is nothing to fit")
    if any(one.seconds <= 0 or one.nbytes < 0 for one in measured):
        raise DataError(f"link '{link.name}': a measured time must be positive and a size not negative")
    across = any(one.nodes > 1 for one in measured)
    *groups, top = sorted({one.nodes if across else one.ranks for one in measured})
    names = [n for field in vary for n in ([f"group_share.{g}" for g in groups] if field == "group_share" else [field])]
    if "group_share" in vary and groups:
        whole = Quantity(value=1.0, unit="1", source="trial", tier="modelled")
        link = dataclasses.replace(link, group_share={**link.group_share, str(top): whole})
    if not names:
        return link
    seen = _seen(link, measured, across)
    low, high, start = (np.log(v) for v in zip(*(_start(link, name, seen) for name in names), strict=True))

    def residuals(logs: np.ndarray) -> np.ndarray:
        trial = _with(link, dict(zip(names, np.exp(logs), strict=True)))
        return np.array([log(predicted_s(one, layout(trial, one)) / one.seconds) for one in measured])

    found = least_squares(
        residuals, np.clip(start, low + 1e-6, high - 1e-6), bounds=(low, high), loss="soft_l1", f_scale=0.1
    )
    spread = max(float(np.sqrt(np.mean(residuals(found.x) ** 2))), LEAST_SPREAD)
    text = f"fitted on {source}"

    def quantity(name: str, value: float) -> Quantity:
        value = float(f"{value:.3g}")
        return Quantity(
            value=value,
            unit=_UNITS.get(name, "1"),
            low=float(f"{value * exp(-NINETY * spread):.3g}"),
            high=float(f"{value * exp(NINETY * spread):.3g}"),
            source=text,
            tier="measured",
            date=date,
        )

    values = {n: float(np.exp(v)) for n, v in zip(names, found.x, strict=True)}
    values = _scaled(link, values, None if not groups or "group_share" not in vary else str(top))
    # A loss at the lower end of what is possible is none that anybody could see.
    none = {n for n in _LOSSES if n in values and values[n] < 1.2 * _BOUNDS[n][0]}
    fitted = _with(link, {n: v for n, v in values.items() if n not in none}, quantity)
    return dataclasses.replace(fitted, **dict.fromkeys(none))  # type: ignore[arg-type]


def _scaled(link: Link, values: dict[str, float], top: str | None) -> dict[str, float]:
    """The same bandwidths with the largest share 1."""
    if top is None or "collective_efficiency" not in values:
        return values
    values = {**values, f"group_share.{top}": 1.0}
    most = max(value for name, value in values.items() if name.startswith("group_share."))
    scaled = {name: value / most for name, value in values.items() if name.startswith("group_share.")}
    return {**values, **scaled, "collective_efficiency": values["collective_efficiency"] * most}


def _seen(link: Link, measured: Sequence[Timed], across: bool) -> dict[str, float]:
    """Where the fit of bandwidths starts: from the bus bandwidth of each group's largest all-reduce."""
    largest: dict[int, Timed] = {}
    for one in measured:
        group = one.nodes if across else one.ranks
        if one.kind == "all_reduce" and one.nbytes >= largest.get(group, one).nbytes:
            largest[group] = one
    bus = {g: 2 * one.nbytes * (one.ranks - 1) / one.ranks / one.seconds for g, one in largest.items()}
    if not bus:
        return {}
    most = bus[max(bus)]
    shares = {f"group_share.{group}": value / most for group, value in bus.items()}
    return {**shares, "collective_efficiency": most / link.bandwidth_bytes_per_s.value}


def _start(link: Link, name: str, seen: Mapping[str, float]) -> tuple[float, float, float]:
    field, _, group = name.partition(".")
    low, high, start = _BOUNDS[field]
    held = link.group_share.get(group) if group else getattr(link, field)
    return low, high, seen.get(name) or (held.value if held is not None and held.value > 0 else start)


def _plain(name: str, value: float) -> Quantity:
    return Quantity(value=value, unit=_UNITS.get(name, "1"), source="trial", tier="modelled")


def _with(link: Link, values: Mapping[str, float], quantity: Callable[[str, float], Quantity] = _plain) -> Link:
    fields = {name: quantity(name, value) for name, value in values.items() if "." not in name}
    shares = {name.partition(".")[2]: quantity(name, value) for name, value in values.items() if "." in name}
    return dataclasses.replace(link, **fields, group_share={**link.group_share, **shares})  # type: ignore[arg-type]
