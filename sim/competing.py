"""Computing and collectives that hold each other up, on the clock.

While a collective runs on a device, the device computes at a share of its speed (the collective needs some of its cores and its
memory's bandwidth); while any of its devices computes, a collective runs at a share of its own. Rates change only where something
begins or ends, so what is left of everybody is settled there and the end is set anew.

>>> env = simpy.Environment()
>>> competition = Competition(env, computing_share=0.5, collective_share=1.0)
>>> device = Device()
>>> collective, computing = competition.collective([device], 1.5), competition.compute(device, 2.0)
>>> env.run(until=computing)
>>> env.now  # 1.5 s at half speed leave 1.25 s
2.75
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import simpy

__all__ = ["Competition", "Device"]


@dataclass(eq=False)
class _Activity:
    """Something that takes `left_s` more seconds at full speed and goes on at `rate` since `since_s`."""

    left_s: float
    since_s: float
    ended: simpy.Event
    devices: Sequence[Device]
    rate: float = 0.0
    version: int = 0  # of the end that is set: an alarm for another one rings in vain


@dataclass(eq=False)
class Device:
    """What runs on one device."""

    computing: list[_Activity] = field(default_factory=list)
    collectives: list[_Activity] = field(default_factory=list)


class Competition:
    """All devices of a simulation."""

    def __init__(self, env: simpy.Environment, *, computing_share: float, collective_share: float) -> None:
        self.env = env
        self.computing_share, self.collective_share = computing_share, collective_share

    def compute(self, device: Device, seconds: float) -> simpy.Event:
        """Compute for so many seconds at full speed, from now on. Returns the event at its end."""
        activity = _Activity(seconds, self.env.now, self.env.event(), (device,))
        device.computing.append(activity)
        self._compute_at(activity)
        if len(device.computing) == 1:
            self._recalculate(device.collectives)
        return activity.ended

    def collective(self, devices: Sequence[Device], seconds: float) -> simpy.Event:
        """A collective of so many seconds among `devices`, from now on. Returns the event at its end."""
        activity = _Activity(seconds, self.env.now, self.env.event(), devices)
        for device in devices:
            device.collectives.append(activity)
            if len(device.collectives) == 1:
                self._recalculate(device.computing)
        self._collective_at(activity)
        return activity.ended

    def _compute_at(self, activity: _Activity) -> None:
        self._go(activity, self.computing_share if activity.devices[0].collectives else 1.0)

    def _collective_at(self, activity: _Activity) -> None:
        self._go(activity, self.collective_share if any(d.computing for d in activity.devices) else 1.0)

    def _recalculate(self, activities: Iterable[_Activity]) -> None:
        for activity in activities:
            if activity in activity.devices[0].computing:
                self._compute_at(activity)
            else:
                self._collective_at(activity)

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
        for device in activity.devices:
            if activity in device.computing:
                device.computing.remove(activity)
                if not device.computing:
                    self._recalculate(device.collectives)
            else:
                device.collectives.remove(activity)
                if not device.collectives:
                    self._recalculate(device.computing)
        activity.ended.succeed()
