"""What a simulation says: times, energy, money, memory, utilisation, with intervals, as values, tables and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ..hwprofiles import Cluster
from ..models.cost import Estimate
from ..models.program import Program
from ..models.trace import Trace
from .energy import NodePower

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from .breakdown import Breakdown
    from .comparison import Comparison
    from .critical_path import CriticalPath
    from .power_trace import PowerTrace

__all__ = ["Figures", "Interval", "RoleMemory", "Simulation"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A value between `low` and `high` in nine cases of ten; `provenance` says on what it rests."""

    value: float
    low: float
    high: float
    provenance: str

    def times(self, factor: float) -> Interval:
        """The interval scaled by an exactly known factor."""
        return Interval(
            value=self.value * factor, low=self.low * factor, high=self.high * factor, provenance=self.provenance
        )

    def plus(self, other: Interval) -> Interval:
        """The sum, as wide as if both erred the same way."""
        low, high = self.low + other.low, self.high + other.high
        return Interval(value=self.value + other.value, low=low, high=high, provenance=self.provenance)

    def inverse(self, numerator: float) -> Interval:
        """numerator / value."""
        return Interval(
            value=numerator / self.value,
            low=numerator / self.high,
            high=numerator / self.low,
            provenance=self.provenance,
        )


@dataclass(frozen=True, kw_only=True)
class RoleMemory:
    """Peak memory of one rank of a role, and of what it consists, in bytes."""

    role: str
    peak_bytes: int
    at: str
    by_content: Mapping[str, int]
    capacity_bytes: int

    @property
    def fits(self) -> bool:
        """Whether the device holds it."""
        return self.peak_bytes <= self.capacity_bytes


@dataclass(frozen=True, kw_only=True)
class Figures:
    """A steady step and what follows from it. Energy, money and carbon are None where a profile does not say what they need.

    step_s, samples_per_s   of one optimiser step over all ranks
    energy_j                of one step: devices, hosts, and the building's overhead (PUE)
    cost_usd                of one step: rent of the nodes in use, or, where there is none, the energy's price
    cost_basis              "rent", "own" (amortisation and energy), "energy" or None
    carbon_kg               of one step
    utilisation             share of the step in which devices compute, mean over ranks
    exposed_communication   share of the step in which a device waits while it communicates
    bubble                  share of the step in which a device neither computes nor communicates
    power                   mean of a node in use
    """

    step_s: Interval
    samples_per_s: Interval
    energy_j: Interval | None
    cost_usd: Interval | None
    cost_basis: str | None
    carbon_kg: Interval | None
    utilisation: float
    exposed_communication: float
    bubble: float
    power: NodePower | None = None


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """The result of :func:`hpdlf.sim.simulate`.

    epoch_s, epochs' energy and cost are None where the number of samples is not known.
    `trace` holds the simulated ranks only; `multiplicity` says how many ranks each of them stands for. `program` is what
    was simulated, on `hardware`, at `estimates` by simulated rank and instruction, of which `prices` are the seconds that
    were replayed, a rank's own slowness included.
    """

    model: str
    cluster: str
    strategy: str
    ranks: int
    batch: int
    figures: Figures
    memory: tuple[RoleMemory, ...]
    trace: Trace
    multiplicity: Mapping[int, int]
    samples_per_epoch: int | None = None
    program: Program | None = field(default=None, repr=False, compare=False)
    hardware: Cluster | None = field(default=None, repr=False, compare=False)
    estimates: Mapping[int, Mapping[str, Estimate]] = field(default_factory=dict, repr=False, compare=False)
    prices: Mapping[int, Mapping[str, float]] = field(default_factory=dict, repr=False, compare=False)

    def per_epoch(self, per_step: Interval | None) -> Interval | None:
        """A figure of one step for one pass over the data; None where the figure or the number of samples is unknown."""
        if per_step is None or self.samples_per_epoch is None:
            return None
        return per_step.times(self.samples_per_epoch // self.batch)

    @property
    def epoch_s(self) -> Interval | None:
        """Seconds for one pass over the data."""
        return self.per_epoch(self.figures.step_s)

    @property
    def peak_bytes(self) -> int:
        """The most memory that any rank needs."""
        return max(m.peak_bytes for m in self.memory)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the trace, as plain values."""
        told = ("model", "cluster", "strategy", "ranks", "batch", "samples_per_epoch")
        plain = {name: getattr(self, name) for name in told}
        plain |= {"figures": asdict(self.figures), "memory": [asdict(m) for m in self.memory]}
        plain["epoch_s"] = asdict(self.epoch_s) if self.epoch_s else None
        plain["epoch_energy_j"] = asdict(e) if (e := self.per_epoch(self.figures.energy_j)) else None
        plain["epoch_cost_usd"] = asdict(c) if (c := self.per_epoch(self.figures.cost_usd)) else None
        for memory, row in zip(self.memory, plain["memory"], strict=True):
            row["fits"] = memory.fits
        return plain

    def to_frame(self) -> pd.DataFrame:
        """One row: the figures with their bounds, for tables of many simulations."""
        import pandas as pd

        f = self.figures
        row: dict[str, Any] = {
            "model": self.model,
            "cluster": self.cluster,
            "strategy": self.strategy,
            "ranks": self.ranks,
            "batch": self.batch,
        }
        for name in ("step_s", "samples_per_s", "energy_j", "cost_usd", "carbon_kg"):
            interval = getattr(f, name)
            row[name] = interval.value if interval else None
            row[f"{name}_low"] = interval.low if interval else None
            row[f"{name}_high"] = interval.high if interval else None
        row |= {
            "utilisation": f.utilisation,
            "exposed_communication": f.exposed_communication,
            "bubble": f.bubble,
            "peak_bytes": self.peak_bytes,
            "fits": all(m.fits for m in self.memory),
            "provenance": f.step_s.provenance,
        }
        return pd.DataFrame([row])

    def breakdown(self) -> Breakdown:
        """What the step's time goes to, per role and over all: :mod:`.breakdown`."""
        from .breakdown import breakdown

        return breakdown(self)

    def critical_path(self) -> CriticalPath:
        """The tasks that the step's length hangs on: :mod:`.critical_path`."""
        from .critical_path import critical_path

        return critical_path(self)

    def compare(self, other: Simulation) -> Comparison:
        """Why `other` is slower or faster: :mod:`.comparison`."""
        from .comparison import compare

        return compare(self, other)

    def power_trace(self) -> PowerTrace:
        """Watts of devices and nodes through a step: :mod:`.power_trace`."""
        from .power_trace import power_trace

        return power_trace(self)

    def plot(self) -> Figure:
        """A Gantt chart of the simulated steps."""
        from .gantt import gantt

        return gantt(self.trace, title=f"{self.model} on {self.cluster}: {self.strategy}")
