"""What a busy device draws, how a power limit or a lower clock slows it down, and the energy of both.

A GPU asks for ``demand = active + limit * (compute + memory + network)`` watts at its full clock:

* *active*: clocks up and nothing to do, a share of the limit that depends on the memory (GDDR keeps its clock, HBM
  draws less);
* *compute*: ``headroom * k_c * u_c ** g_c`` with the utilisation u_c of the arithmetic peak. Headroom is what full
  arithmetic draws relative to the limit: about 1 for matrix units; for float32 on vector units the energy of one
  operation in that generation of silicon times the peak, over the limit (a P100 never reaches its 250 W, an RTX 6000 is
  always held back by its 260 W);
* *memory*: ``k_m * u_m ** g_m`` with the utilisation of the memory's bandwidth; *network* alike.

The device lowers its clock until it draws no more than the limit. Power varies within a step, so its mean bends before
the limit: ``power = demand * (1 + (demand / limit) ** s) ** (-1 / s)``, where s is larger the less of the demand is
dynamic, and for one kind of work than for a whole training step. Above its lowest voltage, dynamic power goes with a
power of the clock, below it in proportion (frequency times voltage squared; Le Sueur and Heiser, "Dynamic voltage and
frequency scaling: the laws of diminishing returns", 2010), and only the part of the time that depends on the core clock
gets longer.

All parameters are in ``power.json``: fitted by ``python -m hpdlf.experiments.fit_power`` on the measurements of Zeus
(You et al., NSDI 2023) and of the ML.ENERGY benchmark, or recalled, as the file says.

>>> from hpdlf.hwprofiles import load_device
>>> h100 = load_device("H100-SXM")
>>> free = power_at(h100, compute=0.5, memory=0.4, precision="bfloat16")
>>> capped = power_at(h100, compute=0.5, memory=0.4, precision="bfloat16", limit_w=400)
>>> slower = slowdown_at(h100, compute=0.5, memory=0.4, precision="bfloat16", limit_w=400)
>>> free.value > 550, 350 < capped.value <= 400, 1.0 < slower.value < 1.6
(True, True, True)
>>> capped.value * slower.value < free.value  # the cap saves energy
True
"""

from __future__ import annotations

from typing import NamedTuple

from ...errors import ProfileError
from ...hwprofiles import Device
from .power_parameters import PowerParameters, power_parameters, stretched
from .workload import Workload

__all__ = ["Energy", "Load", "active_w", "busy_energy", "idle_energy", "load_of", "power_at", "slowdown_at", "stretch"]

# Shares of the range between idle and limit that any work draws on what is not a GPU, and their interval.
_ACTIVE, _ACTIVE_LOW, _ACTIVE_HIGH = 0.4, 0.2, 0.65


class Energy(NamedTuple):
    """A value between `low` and `high` in nine cases of ten: joules, watts, or a ratio."""

    value: float
    low: float
    high: float

    def times(self, factor: float) -> Energy:
        """All three times `factor`."""
        return Energy(self.value * factor, self.low * factor, self.high * factor)


class Load(NamedTuple):
    """Utilisations of a device's peaks (0 to 1) over the time that work takes, and the precision of the arithmetic."""

    compute: float
    memory: float
    network: float = 0.0
    precision: str = "float32"


# Energy of work, as the simulator asks for it


def busy_energy(workload: Workload, seconds: float, device: Device) -> Energy | None:
    """Joules of `device` while it works on `workload`, which takes `seconds` at its own limit and boost clock, idle
    power included; None where the profile lacks a power. A limit or clock that is set on the device stretches the time
    (:func:`stretch`) and lowers the power.
    """
    load = load_of(workload, seconds)
    watts = power_at(
        device,
        compute=load.compute,
        memory=load.memory,
        network=load.network,
        precision=load.precision,
        limit_w=device.set_limit_w,
        clock_hz=device.set_clock_hz,
    )
    return None if watts is None else watts.times(seconds * stretch(workload, seconds, device).value)


def stretch(workload: Workload, seconds: float, device: Device) -> Energy:
    """How many times longer `workload`, which takes `seconds` at the device's own limit and boost clock, takes under
    those that are set.

    Raises:
        ProfileError: the profile lacks the limit, or does not allow the one that is set.
    """
    if device.set_limit_w is None and device.set_clock_hz is None:
        return Energy(1.0, 1.0, 1.0)
    load = load_of(workload, seconds)
    found = slowdown_at(
        device,
        compute=load.compute,
        memory=load.memory,
        network=load.network,
        precision=load.precision,
        limit_w=device.set_limit_w,
        clock_hz=device.set_clock_hz,
    )
    if found is None:
        raise ProfileError(
            f"{device.name}: the profile has no limit_power, so nothing can be said of a power limit or clock. Add it."
        )
    return found


def idle_energy(device: Device, seconds: float) -> float | None:
    """Joules of a device that waits; None where the profile has no idle power."""
    return None if device.idle_w is None else device.idle_w.value * seconds


def load_of(workload: Workload, seconds: float) -> Load:
    """The utilisations of `workload` if it takes `seconds`; communication counts as a busy network. The precision is
    that of its largest operation.
    """
    if seconds <= 0:
        return Load(0.0, 0.0)
    most = max(workload.operations, key=lambda o: o.flops * o.count, default=None)
    precision = "float32" if most is None else most.precision
    compute, memory = (min(part / seconds, 1.0) for part in (workload.compute_s, workload.memory_s))
    return Load(compute, memory, 1.0 if workload.payload_bytes else 0.0, precision)


# Power and time under limits


def power_at(
    device: Device,
    *,
    compute: float,
    memory: float = 0.0,
    network: float = 0.0,
    precision: str = "float32",
    limit_w: float | None = None,
    clock_hz: float | None = None,
) -> Energy | None:
    """Mean watts of a device whose units are used at these shares of their peaks (measured at full clock).

    limit_w   a power limit; None is the device's own
    clock_hz  a clock that is set; None is the boost clock

    None where the profile lacks the limit (or, of what is not a GPU, the idle power).

    Raises:
        ProfileError: the limit or clock is outside what the device allows.
    """
    limit = _checked_limit(device, limit_w)
    clock = _checked_clock(device, clock_hz)
    if limit is None or device.limit_w is None or (device.kind != "gpu" and device.idle_w is None):
        return None
    if device.kind != "gpu":
        return _other_power(device, max(compute, memory), limit, clock)
    p = power_parameters()
    demand, active = demand_w(device, compute, memory, network, precision, p)
    if clock < 1.0:
        static = p.static_share * active
        demand = static + (demand - static) * float(p.dynamic_share(clock))
    value = _limited(demand, active, limit, p.steady_softness)
    low, high = p.interval["utilisation"]
    return Energy(value, max(value * low, min(active, value)), max(min(value * high, limit * 1.02), value))


def slowdown_at(
    device: Device,
    *,
    compute: float,
    memory: float = 0.0,
    network: float = 0.0,
    precision: str = "float32",
    limit_w: float | None = None,
    clock_hz: float | None = None,
) -> Energy | None:
    """How many times longer than under the device's own limit and boost clock (at least 1) work with these
    utilisations takes; None where the profile lacks the limit.

    Arithmetic follows the core clock, memory and network do not. See :func:`power_at` for the arguments and errors.
    """
    limit = _checked_limit(device, limit_w)
    clock = _checked_clock(device, clock_hz)
    if limit is None or device.limit_w is None:
        return None
    p = power_parameters()
    if device.kind == "gpu":
        demand, active = demand_w(device, compute, memory, network, precision, p)
    else:
        idle = device.idle_w.value if device.idle_w else 0.0
        active, demand = idle, idle + (device.limit_w.value - idle) * (_ACTIVE + (1 - _ACTIVE) * max(compute, memory))
    # Hardly anything is bound by memory alone: caches and the network on the chip follow the core clock.
    share = (
        min(max(compute / max(compute + memory + network, 1e-9), 0.2), 0.9) if compute + memory + network > 0 else 0.0
    )
    free = p.clock_at(demand, active, device.limit_w.value, steady=True)
    now = min(p.clock_at(demand, active, limit, steady=True), clock)
    value = float(stretched(now, share) / stretched(min(free, 1.0), share))
    low, high = p.interval["slowdown"]
    return Energy(max(value, 1.0), max(1.0, 1 + (value - 1) * low), max(1.0, 1 + (value - 1) * high))


def active_w(device: Device, p: PowerParameters | None = None) -> float | None:
    """Watts of a GPU with its clocks up and nothing to do; None where the profile lacks the limit."""
    if device.limit_w is None:
        return None
    p = p or power_parameters()
    return device.limit_w.value * p.active_share[memory_technology(device, p)]


# What a device asks for


def _limited(demand: float, active: float, limit: float, softness: float) -> float:
    """:func:`.power_parameters.limited` of single numbers, ten times as fast: every priced task asks for it."""
    sharpness = min(softness * demand / max(demand - active, 1e-3), 60.0)
    return float(demand * (1.0 + (demand / limit) ** sharpness) ** (-1.0 / sharpness))


def demand_w(
    device: Device, compute: float, memory: float, network: float, precision: str, p: PowerParameters
) -> tuple[float, float]:
    """(demand, active) watts of a GPU at full clock; demand may exceed the limit."""
    assert device.limit_w is not None, "callers refuse devices without a limit"
    limit = device.limit_w.value
    active = limit * p.active_share[memory_technology(device, p)]
    load = (
        headroom(device, precision, p) * p.compute_share * max(compute, 0.0) ** p.compute_power
        + p.memory_share * max(memory, 0.0) ** p.memory_power
        + p.network_share * max(network, 0.0)
    )
    return active + limit * load, active


def headroom(device: Device, precision: str, p: PowerParameters) -> float:
    """What full arithmetic draws relative to the limit: 1 on matrix units, by the silicon on vector units."""
    assert device.limit_w is not None, "callers refuse devices without a limit"
    peak = device.peak_flops_per_s.get(precision)
    vector = vector_flops_per_s(device)
    if precision != "float32" and peak is not None and peak.value > 1.5 * vector:
        return 1.0
    return min(max(full_vector_w(device, p) / device.limit_w.value, 0.5), 1.25)


def full_vector_w(device: Device, p: PowerParameters) -> float:
    """Watts of float32 arithmetic at the vector units' peak: operations per second times the energy of one."""
    return vector_flops_per_s(device) * p.joules_per_flop * p.silicon.get(device.architecture, p.silicon[""])


def vector_flops_per_s(device: Device) -> float:
    """The float32 peak outside the matrix units."""
    found = device.vector_flops_per_s.get("float32") or device.peak_flops_per_s.get("float32")
    return found.value if found is not None else max(q.value for q in device.peak_flops_per_s.values()) / 8


def memory_technology(device: Device, p: PowerParameters) -> str:
    """ "hbm" or "gddr": within an architecture the bandwidth tells them apart."""
    threshold = p.hbm_from_bytes_per_s.get(device.architecture, p.hbm_from_bytes_per_s[""])
    return "hbm" if device.memory_bandwidth_bytes_per_s.value >= threshold else "gddr"


def _other_power(device: Device, busy: float, limit: float, clock: float) -> Energy:
    """Between idle power and limit by the busier of the units; `active` is what any work adds."""
    assert device.idle_w is not None, "callers refuse profiles without powers"
    assert device.limit_w is not None, "callers refuse profiles without powers"
    idle, top = device.idle_w.value, device.limit_w.value
    busy = min(max(busy, 0.0), 1.0)
    shares = (active + (1.0 - active) * busy for active in (_ACTIVE, _ACTIVE_LOW, _ACTIVE_HIGH))
    scale = float(power_parameters().dynamic_share(clock)) if clock < 1.0 else 1.0
    return Energy(*(min(idle + (top - idle) * share * scale, max(limit, idle)) for share in shares))


def _checked_limit(device: Device, limit_w: float | None) -> float | None:
    if device.limit_w is None:
        return None
    if limit_w is None:
        return device.limit_w.value
    top = device.greatest_limit_w or device.limit_w
    bottom = device.least_limit_w.value if device.least_limit_w else (device.idle_w.value if device.idle_w else 0.0)
    if not bottom <= limit_w <= max(top.value, device.limit_w.value):
        raise ProfileError(
            f"{device.name} cannot be limited to {limit_w:g} W: its profile allows {bottom:g} to {top.value:g} W. "
            "Choose a limit within, or correct least_limit_power and greatest_limit_power in the profile."
        )
    return float(limit_w)


def _checked_clock(device: Device, clock_hz: float | None) -> float:
    """The clock as a share of the boost clock."""
    if clock_hz is None:
        return 1.0
    if device.clock_hz is None:
        raise ProfileError(
            f"{device.name} has no clock in its profile. Add clock = {{ value = ..., unit = 'MHz', ... }}."
        )
    if not 0 < clock_hz <= device.clock_hz.value * 1.001:
        raise ProfileError(
            f"{device.name} cannot run at {clock_hz / 1e6:g} MHz: its boost clock is {device.clock_hz.value / 1e6:g} MHz."
        )
    return max(clock_hz / device.clock_hz.value, 0.05)
