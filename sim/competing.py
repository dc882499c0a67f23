"""Computing, collectives and messages that hold each other up, on the clock.

While a collective runs on a device, the device computes at a share of its speed (the collective needs some of its cores and its
memory's bandwidth); while any of its devices computes, a collective runs at a share of its own. Transfers that meet on a link share it
fairly (:func:`.network.fair_rates`); one that is slowed by its devices asks for less of its links. Rates change only where something
begins or ends, so what is left of everybody concerned is settled there and the end is set anew.

>>> env = simpy.Environment()
>>> competition = Competition(env, computing_share=0.5, collective_share=1.0)
>>> device = Device()
>>> collective, computing = competition.transfer(1.5, devices=[device]), competition.compute(device, 2.0)
>>> env.run(until=computing)
>>> env.now  # 1.5 s at half speed leave 1.25 s
2.75
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import simpy

from .network import fair_rates

__all__ = ["Competition", "Device"]

# Shares of links are sums of quotients: a link is full from here on.
FULL = 1.0 + 1e-9


@dataclass(eq=False)
class _Activity:
    """Something that takes `left_s` more seconds at full speed and goes on at `rate` since `since_s`."""

    left_s: float
    since_s: float
    ended: simpy.Event
    devices: Sequence[Device]
    shares: Mapping[Hashable, float]
    computes: bool
    rate: float = 0.0
    version: int = 0  # of the end that is set: an alarm for another one rings in vain


@dataclass(eq=False)
class Device:
    """What runs on one device."""

    computing: dict[_Activity, None] = field(default_factory=dict)
    collectives: dict[_Activity, None] = field(default_factory=dict)


class Competition:
    """All devices and links of a simulation."""

    def __init__(self, env: simpy.Environment, *, computing_share: float, collective_share: float) -> None:
        self.env = env
        self.computing_share, self.collective_share = computing_share, collective_share
        self.links: dict[Hashable, dict[_Activity, None]] = {}

    def compute(self, device: Device, seconds: float) -> simpy.Event:
        """Compute for so many seconds at full speed, from now on. Returns the event at its end."""
        activity = _Activity(seconds, self.env.now, self.env.event(), (device,), {}, True)
        device.computing[activity] = None
        self._refresh([activity, *(device.collectives if len(device.computing) == 1 else ())])
        return activity.ended

    def transfer(
        self, seconds: float, *, devices: Sequence[Device] = (), shares: Mapping[Hashable, float] | None = None
    ) -> simpy.Event:
        """A collective of so many seconds among `devices`, or a message if there are none, from now on. Returns the event at its end.

        shares   of each link that others may use too, how much it uses when alone: over 0 up to 1
        """
        activity = _Activity(seconds, self.env.now, self.env.event(), devices, shares or {}, False)
        concerned = [activity]
        for device in devices:
            device.collectives[activity] = None
            if len(device.collectives) == 1:
                concerned += device.computing
        for link in activity.shares:
            self.links.setdefault(link, {})[activity] = None
        self._refresh(concerned)
        return activity.ended

    def _cap(self, activity: _Activity) -> float:
        """The share of its speed that its devices leave to it."""
        if activity.computes:
            return self.computing_share if activity.devices[0].collectives else 1.0
        return self.collective_share if any(d.computing for d in activity.devices) else 1.0

    def _refresh(self, concerned: Iterable[_Activity]) -> None:
        """New rates for what something that began or ended has to do with."""
        flows: dict[_Activity, None] = {}
        for activity in concerned:
            if activity.shares:
                self._meet(activity, flows)
            else:
                self._go(activity, self._cap(activity))
        caps = {flow: self._cap(flow) for flow in flows}
        asked = [{link: share * caps[flow] for link, share in flow.shares.items()} for flow in flows]
        demand: dict[Hashable, float] = {}
        for shares in asked:
            for link, share in shares.items():
                demand[link] = demand.get(link, 0.0) + share
        crowded = any(total > FULL for total in demand.values())
        rates = fair_rates(asked) if crowded else [1.0] * len(asked)
        for flow, rate in zip(flows, rates, strict=True):
            self._go(flow, rate * caps[flow])

    def _meet(self, flow: _Activity, found: dict[_Activity, None]) -> None:
        """Add a flow and all that share links with it, or with those that do."""
        waiting = [flow]
        for one in waiting:
            if one not in found:
                found[one] = None
                waiting += [other for link in one.shares for other in self.links[link] if other not in found]

    def _go(self, activity: _Activity, rate: float) -> None:
        """Settle what was done until now, and go on at `rate`."""
        if rate == activity.rate and activity.version:
            return
        now_s = self.env.now
        activity.left_s = max(activity.left_s - activity.rate * (now_s - activity.since_s), 0.0)
        activity.since_s, activity.rate = now_s, rate
        activity.version += 1
        if rate or not activity.left_s:
            version = activity.version
            alarm = self.env.timeout(activity.left_s / rate if activity.left_s else 0.0)
            assert alarm.callbacks is not None
            alarm.callbacks.append(lambda _: self._ring(activity, version))

    def _ring(self, activity: _Activity, version: int) -> None:
        if activity.version != version:
            return
        activity.version = -1
        concerned: list[_Activity] = []
        for device in activity.devices:
            mine, others = device.computing, device.collectives
            if not activity.computes:
                mine, others = others, mine
            del mine[activity]
            if not mine:
                concerned += others
        for link in activity.shares:
            del self.links[link][activity]
        for link in activity.shares:
            concerned += self.links[link]
        activity.ended.succeed()
        self._refresh(concerned)
