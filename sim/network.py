"""Transfers that meet on a link share it: max-min fair rates in virtual time, and which links a transfer uses.

A *flow* takes `seconds` when it is alone, and uses a share (0 to 1) of each of its links then. Where flows ask for more than
a link has, they slow down: rates grow together, each measured by the share of the link that it needs most, until a link is
full; the flows over that link stay as they are, and the others go on (progressive filling; Bertsekas and Gallager, "Data
networks", 1992, section 6.5.2). No flow is faster than alone. When a flow comes or goes, what is left of the others goes on
at their new rates.

A flow that meets nobody ends at exactly its start plus `seconds`: an uncontended simulation is not changed by a bit.

>>> fair_rates([{"a": 1.0}, {"a": 1.0}])
[0.5, 0.5]
>>> fair_rates([{"a": 1.0, "b": 1.0}, {"a": 1.0}, {"b": 0.25}])
[0.5, 0.5, 1.0]
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import simpy

from ..errors import PlanError
from ..hwprofiles import Cluster
from ..hwprofiles.topology import Port
from ..models.cost import transfer_workload
from ..models.cost.collectives import collective_legs, placement_of

__all__ = ["Network", "Shares", "fair_rates", "shares_of"]

Shares = Mapping[Hashable, float]
# Shares are sums of quotients: links are full from here on.
FULL = 1.0 + 1e-9


def fair_rates(flows: Sequence[Shares]) -> list[float]:
    """The rates of `flows`, each from 0 to 1 of its speed when alone, by progressive filling.

    No link carries more than all of itself, and no rate could be larger without making a smaller one smaller still.
    """
    rates = [1.0] * len(flows)
    needs = [max(shares.values(), default=0.0) for shares in flows]
    growing = [i for i, need in enumerate(needs) if need > 0.0]
    links: dict[Hashable, list[int]] = {}
    for i in growing:
        for link in flows[i]:
            links.setdefault(link, []).append(i)
    free = dict.fromkeys(links, 1.0)
    left = set(growing)
    while left:
        # The level, in shares of the link that a flow needs most, at which the first link is full or a flow at full speed.
        level, full = min(needs[i] for i in left), None
        for link, sharers in links.items():
            growth = sum(flows[i][link] / needs[i] for i in sharers if i in left)
            if growth > 0.0 and free[link] / growth < level / FULL:
                level, full = free[link] / growth, link
        settled = [i for i in growing if i in left and (needs[i] <= level or (full is not None and full in flows[i]))]
        for i in settled:
            rates[i] = min(1.0, level / needs[i])
            for link, share in flows[i].items():
                free[link] = max(0.0, free[link] - share * rates[i])
        left.difference_update(settled)
    return rates


@dataclass(eq=False)
class _Flow:
    """A transfer on its way: what is left of it in seconds at full speed, since when it goes at which rate."""

    shares: Shares
    left_s: float
    since_s: float
    ended: simpy.Event
    rate: float = 0.0
    turn: int = 0  # counts changes of the rate: an alarm set before the last change is void


@dataclass(eq=False)
class Network:
    """The links of a simulation and the flows on them."""

    env: simpy.Environment
    _on: dict[Hashable, dict[_Flow, None]] = field(default_factory=dict)

    def flow(self, seconds: float, shares: Shares) -> simpy.Event:
        """Start a transfer that takes `seconds` alone; the event comes when it has ended and says when, in seconds.

        shares   for each link, the part of it that the transfer uses when alone, over 0 and up to 1

        Raises:
            PlanError: a negative time, or a share outside that range.
        """
        wrong = next((link for link, share in shares.items() if not 0.0 < share <= FULL), None)
        if not seconds >= 0.0 or wrong is not None:
            what = f"{seconds} s" if wrong is None else f"{shares[wrong]} of {wrong}"
            raise PlanError(f"a transfer of {what} cannot be: it takes 0 s or more and over 0 to 1 of a link")
        flow = _Flow(shares, seconds, self.env.now, self.env.event())
        crowded = any(self._demand(link) + share > FULL for link, share in shares.items())
        for link in shares:
            self._on.setdefault(link, {})[flow] = None
        if crowded:
            self._settle(self._met_by(flow))
        else:
            self._go(flow, 1.0)
        return flow.ended

    def _demand(self, link: Hashable) -> float:
        return sum(flow.shares[link] for flow in self._on.get(link, ()))

    def _end(self, flow: _Flow) -> None:
        crowded = any(self._demand(link) > FULL for link in flow.shares)
        met = self._met_by(flow) if crowded else []
        for link in flow.shares:
            del self._on[link][flow]
        flow.ended.succeed(self.env.now)
        if crowded:
            self._settle([other for other in met if other is not flow])

    def _met_by(self, flow: _Flow) -> list[_Flow]:
        """The flow and all that share links with it, or with those that do, in an order that is always the same."""
        found, links = {flow: None}, dict.fromkeys(flow.shares)
        for link in (waiting := list(links)):
            for other in self._on.get(link, ()):
                if other not in found:
                    found[other] = None
                    waiting += [one for one in other.shares if one not in links]
                    links |= dict.fromkeys(other.shares)
        return list(found)

    def _settle(self, flows: Sequence[_Flow]) -> None:
        for flow, rate in zip(flows, fair_rates([flow.shares for flow in flows]), strict=True):
            if rate != flow.rate:
                self._go(flow, rate)

    def _go(self, flow: _Flow, rate: float) -> None:
        """Go on with a flow at another rate."""
        now = self.env.now
        flow.left_s = max(0.0, flow.left_s - flow.rate * (now - flow.since_s))
        flow.since_s, flow.rate, flow.turn = now, rate, flow.turn + 1
        turn = flow.turn

        def ring(_: simpy.Event) -> None:
            if flow.turn == turn:
                self._end(flow)

        if rate > 0.0:  # else it waits for somebody to leave
            alarm = self.env.timeout(flow.left_s / rate)
            assert alarm.callbacks is not None  # it has just been made
            alarm.callbacks.append(ring)


def shares_of(
    kind: str,
    nbytes: float,
    ranks: tuple[int, ...],
    cluster: Cluster,
    *,
    siblings: int = 1,
    active: int | None = None,
    present: Iterable[int] | None = None,
) -> dict[Hashable, float]:
    """Which links a transfer uses, and which share of each when alone.

    kind       "send" (of `ranks`, the sender and the receiver) or a collective among `ranks`
    nbytes     of the whole buffer
    siblings   how many equal transfers at the same time it stands for that go through the same nodes (folded ranks)
    active     devices of a node that take part in such a collective at the same time, as its price was asked for
    present    the ranks whose links matter (those simulated): all of them unless it is said

    A share is an average: over the time that the transfer takes, with its latencies. It is 1 at most.
    """
    if len(ranks) < 2 or nbytes <= 0:
        return {}
    there = set(ranks if present is None else present).intersection(ranks)
    if kind == "send":
        return _shares_of_message(int(nbytes), ranks, cluster, siblings)
    legs = collective_legs(kind, nbytes, ranks, cluster, active=active)
    taken_s = sum(leg.latency_s + leg.transmission_s for leg in legs)
    at = placement_of(kind, ranks, cluster, active=active)
    found: dict[Hashable, float] = {}
    for link, used in ((at.inner, "device"), (at.outer, "adapters")):
        if link is None:
            continue
        busy = sum(leg.transmission_s + leg.hidden_s for leg in legs if leg.link is link) / taken_s
        if used == "device":
            found |= _both_ways("device", map(cluster.place_of, there), busy)
            continue
        part = min(1.0, siblings * at.outer_bytes_per_s / link.collective_bandwidth_bytes_per_s / at.hosts)
        nodes = sorted({cluster.node_of(rank) for rank in there})
        found |= _both_ways("adapters", nodes, busy * part)
        everywhere = sorted({cluster.node_of(rank) for rank in ranks})
        for level, ratio in cluster.levels.items():
            for switch in sorted({node // level for node in nodes}):
                below = sum(1 for node in everywhere if node // level == switch)
                apart = len(everywhere) - below
                if apart:
                    leaving = apart / (len(everywhere) - 1) if kind == "all_to_all" else 1.0 / below
                    found |= _both_ways("switch", [switch], busy * part * leaving * ratio, level)
    return found


def _both_ways(kind: str, indices: Iterable[int], share: float, level: int = 1) -> dict[Hashable, float]:
    if share <= 0.0:
        return {}
    return {Port(kind, i, way, level): min(1.0, share) for i in sorted(indices) for way in (False, True)}


def _shares_of_message(nbytes: int, ranks: tuple[int, ...], cluster: Cluster, siblings: int) -> dict[Hashable, float]:
    sender, receiver = ranks
    link = cluster.link_between(sender, receiver)
    times = transfer_workload(nbytes, link, siblings=siblings).components
    bytes_per_s = nbytes / sum(times.values())
    found: dict[Hashable, float] = {}
    for port in cluster.route(sender, receiver):
        many = 1 if port.kind == "device" else siblings
        width = port.level / cluster.levels[port.level] if port.kind == "switch" else 1.0
        found[port] = min(1.0, many * bytes_per_s / (link.effective_bandwidth_bytes_per_s * width))
    return found
