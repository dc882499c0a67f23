"""Watts over time: devices and nodes through the steady steps of a simulation.

A device draws what its task draws while it computes, what communication draws while it communicates without computing, and what a
device with its clocks up draws while it waits (:mod:`.energy`); hosts and switches draw the same throughout. Times are cut into equal
bins, each with the mean power in it, so that energy is kept whatever their number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import ProfileError
from ..models.program import Kind
from .activity import activities, program_of, steady_window
from .energy import SUPPLY_EFFICIENCY, DeviceStates, NodePower, device_states
from .result import Simulation

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["PowerTrace", "power_trace"]

Floats = NDArray[np.float64]
BINS = 1000


@dataclass(frozen=True, kw_only=True)
class PowerTrace:
    """Mean watts in each of n bins, over `steps` steady steps.

    edges_s     [n + 1] where bins begin and end, from the first step's begin
    device_w    by role, [n] of the mean device of its ranks
    mean_w      [n] of the mean device of all ranks
    node_w      [n] of the mean node in use, at its plug
    power       the same as means over the steps, with bounds
    """

    title: str
    steps: int
    edges_s: Floats
    device_w: Mapping[str, Floats]
    mean_w: Floats
    node_w: Floats
    power: NodePower

    @property
    def node_dc_w(self) -> Floats:
        """The node behind its power supplies."""
        return self.node_w * SUPPLY_EFFICIENCY

    @property
    def node_step_j(self) -> float:
        """Joules of the mean node in one step."""
        return float((self.node_w * np.diff(self.edges_s)).sum()) / self.steps

    def to_frame(self) -> pd.DataFrame:
        """One row a bin: its begin and end, watts of a device of each role, of the mean device, and of the mean node."""
        import pandas as pd

        columns = {"start_s": self.edges_s[:-1], "end_s": self.edges_s[1:]}
        columns |= {f"{role}_w": watts for role, watts in self.device_w.items()}
        return pd.DataFrame(columns | {"device_w": self.mean_w, "node_w": self.node_w})

    def plot(self) -> Figure:
        """Devices by role above, the node below."""
        from .pictures import power

        return power(self)


def power_trace(simulation: Simulation, *, bins: int = BINS) -> PowerTrace:
    """Power through the steady steps of a simulation.

    Raises:
        PlanError: the simulation does not carry its program.
        ProfileError: the profile lacks a power of the device or the host.
    """
    program, window, cluster = program_of(simulation), steady_window(simulation), simulation.hardware
    states = device_states(cluster.device) if cluster is not None else None
    mean = simulation.figures.power
    if cluster is None or states is None or mean is None:
        raise ProfileError(
            f"The power of {simulation.cluster} is not known: its profile needs idle_power and limit_power of the device and "
            "host_active_power of the node. See `hpdlf profile show`."
        )
    edges = np.linspace(window.start_s, window.end_s, bins + 1)
    joules: dict[str, Floats] = {}
    ranks: dict[str, int] = {}
    for rank, (at_s, watts) in _levels(simulation, states).items():
        role, times = program.role_of(rank).name, simulation.multiplicity[rank]
        drawn = np.concatenate([[0.0], np.cumsum(watts * np.diff(at_s))])
        joules[role] = joules.get(role, 0.0) + times * np.diff(np.interp(edges, at_s, drawn))
        ranks[role] = ranks.get(role, 0) + times
    length_s = np.diff(edges)
    everybody = sum(ranks.values())
    devices_w = sum(joules.values()) / length_s
    unused = mean.nodes * cluster.devices_per_node - everybody
    node_w = (devices_w + unused * states.idle_w) / mean.nodes + mean.host_w.value
    return PowerTrace(
        title=f"{simulation.model} on {simulation.cluster}: {simulation.strategy}",
        steps=window.steps,
        edges_s=edges - window.start_s,
        device_w={role: joules[role] / ranks[role] / length_s for role in joules},
        mean_w=devices_w / everybody,
        node_w=node_w,
        power=mean,
    )


def _levels(simulation: Simulation, states: DeviceStates) -> dict[int, tuple[Floats, Floats]]:
    """By simulated rank, edges of intervals and the watts in each."""
    window = steady_window(simulation)
    found: dict[int, tuple[Floats, Floats]] = {}
    tasks: dict[int, list[tuple[float, float, float]]] = {rank: [] for rank in simulation.multiplicity}
    for e in simulation.trace.events:
        estimate = simulation.estimates.get(e.rank, {}).get(e.instruction)
        if e.kind != Kind.COMPUTE or e.end_s <= window.start_s or estimate is None or not estimate.seconds:
            continue
        assert estimate.joules is not None, "the mean power was known"
        end_s = min(e.end_s, e.start_s + estimate.seconds)
        tasks[e.rank].append((max(e.start_s, window.start_s), end_s, estimate.joules / estimate.seconds))
    for rank, activity in activities(simulation, window).items():
        busy = sorted(t for t in tasks[rank] if t[1] > t[0])
        cuts = np.array([edge for start_s, end_s, _ in busy for edge in (start_s, end_s)])
        edges = np.unique(np.clip(np.concatenate([activity.edges_s, cuts]), window.start_s, window.end_s))
        middles = (edges[:-1] + edges[1:]) / 2
        communicates = np.array([cause.group == "communication" for cause in activity.names])
        of = activity.causes[np.searchsorted(activity.edges_s, middles, side="right") - 1]
        watts = np.where(communicates[of], states.communicating_w.value, states.waiting_w.value)
        if busy:
            starts, ends, levels = (np.array(column) for column in zip(*busy, strict=True))
            place = np.searchsorted(starts, middles, side="right") - 1
            inside = (place >= 0) & (middles < ends[place])
            watts = np.where(inside, levels[place], watts)
        found[rank] = edges, watts
    return found
