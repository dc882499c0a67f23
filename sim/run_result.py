"""What a whole run takes: time, energy, money and carbon by phase, as values, a table and a picture."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ..hwprofiles import Cluster
from ..models.cost import CostModel
from .energy import NodePower
from .money import money
from .result import Interval

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["Phase", "RunSimulation"]

Meter = Literal["ac", "dc"]


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One kind of what a run does: how often, how long in all, and what a node draws meanwhile (None: not known)."""

    name: str
    times: int
    seconds: Interval
    power: NodePower | None

    def joules(self, meter: Meter) -> Interval | None:
        """At the plugs of all nodes in use, or behind their power supplies."""
        if self.power is None:
            return None
        watts = self.power.ac_w if meter == "ac" else self.power.dc_w
        s, n = self.seconds, self.power.nodes
        return Interval(
            value=s.value * watts.value * n,
            low=s.low * watts.low * n,
            high=s.high * watts.high * n,
            provenance=s.provenance,
        )


@dataclass(frozen=True, kw_only=True)
class RunSimulation:
    """The result of :func:`hpdlf.sim.run.simulate_run`; `phases` in the order start-up, training and what interrupts it."""

    model: str
    cluster: Cluster
    strategy: str
    ranks: int
    steps: int
    batch: int
    phases: tuple[Phase, ...]
    cost_model: CostModel = field(repr=False, compare=False)

    @property
    def _timed(self) -> tuple[Phase, ...]:
        return tuple(p for p in self.phases if p.name != "start-up")

    @property
    def total_s(self) -> Interval:
        """From the start of the processes to the end."""
        return _summed([p.seconds for p in self.phases])

    @property
    def time_to_train_s(self) -> Interval:
        """From the first step to the end of the last evaluation: start-up is not in it (MLPerf's run_start to run_stop)."""
        return _summed([p.seconds for p in self._timed])

    @property
    def samples_per_s(self) -> Interval:
        """Samples trained on per second of that time."""
        return self.time_to_train_s.inverse(float(self.steps * self.batch))

    def node_energy_j(self, meter: Meter = "ac") -> Interval | None:
        """Joules of all nodes over the time to train, as meters at their plugs ("ac") or behind their supplies ("dc") see it."""
        parts = [p.joules(meter) for p in self._timed]
        return None if any(p is None for p in parts) else _summed([p for p in parts if p is not None])

    def node_power_w(self, meter: Meter = "ac") -> Interval | None:
        """Mean watts of a node over the time to train. Its bounds are those of the power, the time known."""
        total, known = self.time_to_train_s.value, [p for p in self._timed if p.power is not None]
        if len(known) < len(self._timed) or not total:
            return None
        parts = []
        for phase in known:
            assert phase.power is not None, "they were chosen for it"
            watts = phase.power.ac_w if meter == "ac" else phase.power.dc_w
            share = phase.seconds.value / total
            low, high, provenance = watts.low * share, watts.high * share, phase.seconds.provenance
            parts.append(Interval(value=watts.value * share, low=low, high=high, provenance=provenance))
        return _summed(parts)

    @property
    def energy_j(self) -> Interval | None:
        """Joules of the whole run with the switches between nodes and the building's overhead; None where a power or the PUE is
        not known.
        """
        if self.cluster.pue is None:
            return None
        parts = []
        for phase in self.phases:
            found = phase.joules("ac")
            if found is None or phase.power is None:
                return None
            parts.append(found.plus(phase.seconds.times(phase.power.network_w * phase.power.nodes)))
        return _summed(parts).times(self.cluster.pue.value)

    @property
    def cost_usd(self) -> Interval | None:
        """What the run costs (see :class:`hpdlf.sim.Figures`)."""
        return money(self.total_s, self.energy_j, self.ranks, self.cluster, self.cost_model)[0]

    @property
    def carbon_kg(self) -> Interval | None:
        """CO2 of the run's energy."""
        energy, carbon = self.energy_j, self.cluster.carbon_kg_per_j
        return energy.times(carbon.value) if energy is not None and carbon is not None else None

    def to_frame(self) -> pd.DataFrame:
        """One row a phase: how often, seconds with bounds, the share of the time, watts of a node, joules at the plugs."""
        import pandas as pd

        total = self.total_s.value
        rows = []
        for phase in self.phases:
            energy = phase.joules("ac")
            rows.append(
                {
                    "phase": phase.name,
                    "times": phase.times,
                    "seconds": phase.seconds.value,
                    "seconds_low": phase.seconds.low,
                    "seconds_high": phase.seconds.high,
                    "share": phase.seconds.value / total if total else 0.0,
                    "node_w": phase.power.ac_w.value if phase.power else None,
                    "energy_j": energy.value if energy else None,
                }
            )
        return pd.DataFrame(rows)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values."""
        from dataclasses import asdict

        names = ("total_s", "time_to_train_s", "samples_per_s", "energy_j", "cost_usd", "carbon_kg")
        plain: dict[str, Any] = {
            name: getattr(self, name) for name in ("model", "strategy", "ranks", "steps", "batch")
        } | {"cluster": self.cluster.name}
        for name in names:
            found = getattr(self, name)
            plain[name] = asdict(found) if found is not None else None
        return plain | {"phases": self.to_frame().astype(object).where(lambda f: f.notna(), None).to_dict("records")}

    def plot(self) -> Figure:
        """A bar of the run's time by phase."""
        from .pictures import stacked

        parts = {phase.name: phase.seconds.value for phase in self.phases}
        return stacked({f"{self.steps:,} steps": parts}, title=f"{self.model} on {self.cluster.name}: the run")


def _summed(parts: list[Interval]) -> Interval:
    total = parts[0]
    for part in parts[1:]:
        total = total.plus(part)
    return total
