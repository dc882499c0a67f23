"""The cost model: seconds, joules, dollars and kilograms of CO2 of anything that a program does, each with where it
comes from.

``seconds = sum over components (roofline seconds * factor)``: a :class:`~.workload.Workload` has the roofline
seconds, the factors ship with the package or are learned (:mod:`.factors`, :mod:`.fit`). What the user's database
holds of exactly the same work is returned as measured.

>>> from hpdlf.hwprofiles import load_cluster
>>> cluster = load_cluster("dgx-a100:2")
>>> estimate = CostModel.default().collective("all_reduce", 100_000_000, ranks=range(16), cluster=cluster)
>>> 1e-4 < estimate.seconds < 1e-2, estimate.bound, estimate.provenance
(True, 'network', 'modelled')
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from os import PathLike
from pathlib import Path

from ...hwprofiles import Cluster, Device, Link, Node
from ..onnxpp.graph import Graph
from .communication import (
    collective_workload,
    host_workload,
    one_sided_workload,
    transfer_workload,
    update_workload,
)
from .database import ObservationDatabase
from .drift import CORRECTED, Drift, find_drifts, slower_nodes, up_to_date
from .estimate import Estimate, Provenance
from .factors import NINETY, Factors, load_prior
from .fit import FitReport, fit
from .interpolation import Anchors
from .local_times import Part
from .money import carbon_kg, energy_usd, node_price
from .observations import Observation
from .power import busy_energy, stretch
from .recency import merge
from .relatives import Relatives, kin_of, kin_of_device
from .segment import Parts, compute_workload, seconds_of
from .workload import Workload

__all__ = ["CostModel", "Share"]

_NOTHING = Estimate(
    seconds=0.0, low_s=0.0, high_s=0.0, joules=0.0, low_j=0.0, high_j=0.0, provenance="measured", bound="network"
)


# Relatives that narrow the interval to this share count as measurements of the device itself.
WELL_RELATED = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """One component's part of an estimate, in seconds; `factor` times the roofline."""

    component: str
    roofline_s: float
    factor: float
    seconds: float
    low_s: float
    high_s: float
    learned: bool


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """`factors` for what was never measured, `observations` of what was, `reports` on how well the factors explain
    them, `drifts` of what changed meanwhile.
    """

    factors: Factors
    observations: tuple[Observation, ...] = ()
    reports: tuple[FitReport, ...] = field(default=())
    drifts: tuple[Drift, ...] = ()

    @classmethod
    def default(cls) -> CostModel:
        """The model that ships with the package and knows nothing of this machine."""
        return cls(factors=load_prior())

    @classmethod
    def load(cls, database: str | PathLike[str] | None = None) -> CostModel:
        """The model refined on the user's database (None: the default one; a file that is not there holds nothing).

        Raises:
            DataError: the database is locked, damaged or from a newer version.
        """
        source = ObservationDatabase() if database is None else ObservationDatabase(Path(database))
        return cls.fitted(source.all())

    @classmethod
    def fitted(cls, observations: Sequence[Observation]) -> CostModel:
        """The model refined on `observations`."""
        observations = [o for o in observations if o.kind != "lowering"]
        if not observations:
            return cls.default()
        drifts = (*find_drifts(observations), *slower_nodes(observations))
        current = up_to_date(observations, drifts)
        found = fit(current, load_prior())
        return cls(
            factors=found.factors,
            observations=tuple(merge(current, crowds_apart=True)),
            reports=found.reports,
            drifts=drifts,
        )

    # What a program does

    def compute(
        self, graph: Graph, parts: Parts, *, batch: int, device: Device, precision: str = "float32"
    ) -> Estimate:
        """`parts`, each the names of operators and a phase, compiled as one, for `batch` samples on one `device`."""
        return self.price(compute_workload(graph, parts, batch=batch, device=device, precision=precision), device)

    def update(
        self, parameter_elements: int, *, optimizer: str, device: Device, precision: str = "float32"
    ) -> Estimate:
        """One optimiser update of `parameter_elements` parameters."""
        return self.price(
            update_workload(parameter_elements, optimizer=optimizer, device=device, precision=precision), device
        )

    def transfer(self, nbytes: int, link: Link, *, device: Device | None = None) -> Estimate:
        """One message of `nbytes` over `link`; its energy is that of the `device` that waits for it, if given."""
        return self.price(transfer_workload(nbytes, link), device)

    def collective(self, kind: str, nbytes: int, *, ranks: Sequence[int], cluster: Cluster) -> Estimate:
        """A collective on `nbytes` held by each of the devices `ranks`; the energy is that of one device. Free for
        one rank.
        """
        workload = collective_workload(kind, nbytes, ranks=ranks, cluster=cluster)
        return _NOTHING if workload is None else self.price(workload, cluster.device)

    def one_sided(self, kind: str, nbytes: int, *, ranks: Sequence[int], cluster: Cluster) -> Estimate:
        """A put, get or notify by ``ranks[0]`` on a buffer of `nbytes` whose equal parts lie with `ranks`."""
        workload = one_sided_workload(kind, nbytes, ranks, cluster)
        return _NOTHING if workload is None else self.price(workload, cluster.device)

    def host_io(self, kind: str, nbytes: int, *, node: Node) -> Estimate:
        """Reading a batch ("load") or writing a checkpoint ("checkpoint") of `nbytes`; no profile knows the host's
        energy for it.
        """
        return self.price(host_workload(kind, nbytes, node))

    # What it costs

    def money_usd(self, seconds: float, cluster: Cluster, kind: str | None = None) -> float | None:
        """What all nodes of the cluster cost for `seconds` by `kind` of price (None: the cluster's choice); for own
        nodes without their energy. None where its profile has no such price.
        """
        price = node_price(cluster, kind)
        return None if price is None else price.usd_per_s * cluster.n_nodes * seconds

    def energy_usd(self, joules: float | None, cluster: Cluster) -> float | None:
        """The price of `joules` at the devices and hosts, with the building's overhead (PUE); None where anything is
        unknown.
        """
        return energy_usd(joules, cluster)

    def carbon_kg(self, joules: float | None, cluster: Cluster) -> float | None:
        """CO2 emitted for `joules` at the devices and hosts, with the building's overhead (PUE); None where anything
        is unknown.
        """
        return carbon_kg(joules, cluster)

    # How it comes about

    def price(self, workload: Workload, device: Device | None = None, *, ranks_on_node: int | None = None) -> Estimate:
        """The estimate for a workload; energy is that of `device` while it works (or waits) for it."""
        seen = self._seen(workload, ranks_on_node)
        provenance: Provenance = "measured"
        if seen is not None:
            seconds, low_s, high_s = seen.seconds, seen.low_s, seen.high_s
        else:
            shares = self.explain(workload, device)
            seconds, low_s, high_s = (sum(getattr(s, f) for s in shares) for f in ("seconds", "low_s", "high_s"))
            known_s = sum(s.seconds for s in shares if s.learned)
            provenance = "learned" if known_s > 0.5 * seconds else "modelled"
            modelled = seconds, low_s, high_s
            near = self._anchors.estimate(
                workload, modelled, lambda o: self._at_anchor(o, device), ranks_on_node=ranks_on_node
            )
            if near is not None:
                seconds, low_s, high_s = near.seconds, near.low_s, near.high_s
                provenance = "interpolated" if near.inside else "learned"
        energy = busy_energy(workload, seconds, device) if device is not None else None
        if device is not None and not workload.payload_bytes:
            longer = stretch(workload, seconds, device)
            seconds, low_s, high_s = seconds * longer.value, low_s * longer.low, high_s * longer.high
            provenance = "learned" if provenance == "measured" and longer.high > 1 else provenance
        return Estimate(
            seconds=seconds,
            low_s=low_s,
            high_s=high_s,
            joules=energy and energy.value,
            low_j=energy and energy.low,
            high_j=energy and energy.high,
            provenance=provenance,
            bound=workload.bound,
        )

    def explain(self, workload: Workload, device: Device | None = None) -> tuple[Share, ...]:
        """What the model would say part by part, whether or not the work was measured. `device`: whose relatives may
        have been measured.
        """
        shares = []
        kin = kin_of_device(device) if device is not None and device.name == workload.subject else None
        own = self.factors.parts(workload.subject, workload.operations)
        for component, roofline_s in workload.components.items():
            if own:
                # Calls of kernels are part of what their operations take.
                if component in own:
                    shares.append(_own_share(component, roofline_s, own[component]))
                continue
            factor = self.factors.factor(workload.subject, workload.subject_kind, component)
            learned = self.factors.is_learned(workload.subject, component)
            if component in workload.spreads and not learned:
                factor = replace(factor, spread=workload.spreads[component])
            if kin is not None and not learned:
                told = self.relatives.factor(kin, component, factor)
                learned, factor = told.spread < WELL_RELATED * factor.spread, told
            shares.append(
                Share(
                    component=component,
                    roofline_s=roofline_s,
                    factor=factor.value,
                    seconds=roofline_s * factor.value,
                    low_s=roofline_s * factor.low,
                    high_s=roofline_s * factor.high,
                    learned=learned or component in workload.learned,
                )
            )
        return tuple(shares)

    def _at_anchor(self, observation: Observation, device: Device | None) -> float:
        """Seconds that the model has for what was measured, on `device` as its profile is today."""
        key = observation.subject, observation.kind, observation.key
        if key not in self._at_anchors or self._at_anchors[key][0] is not device:
            workload = observation.workload
            if device is not None and device.name == observation.subject and observation.operations:
                now = seconds_of(observation.operations, device, observation.operations[0].precision)
                # An update behind the operations is none of them.
                workload = replace(workload, **now | {"components": {**workload.components, **now["components"]}})
            self._at_anchors[key] = device, sum(share.seconds for share in self.explain(workload, device))
        return self._at_anchors[key][1]

    def _seen(self, workload: Workload, ranks_on_node: int | None) -> Observation | None:
        """The work as measured, if it was, and with as many ranks on the node where both numbers are known."""
        rows = [
            o
            for o in self._measured.get((workload.subject, workload.kind, workload.key), ())
            if ranks_on_node is None or o.ranks_on_node in (None, ranks_on_node)
        ]
        return merge(rows)[0] if len(rows) > 1 else rows[0] if rows else None

    @cached_property
    def _measured(self) -> Mapping[tuple[str, str, str], Sequence[Observation]]:
        found: dict[tuple[str, str, str], list[Observation]] = {}
        for o in self.observations:
            if CORRECTED not in o.conditions:
                found.setdefault((o.subject, o.kind, o.key), []).append(o)
        return found

    @cached_property
    def relatives(self) -> Relatives:
        """What measured devices tell of others."""
        return Relatives.of(self.factors, kin_of(self.observations))

    @cached_property
    def _anchors(self) -> Anchors:
        return Anchors(self.observations)

    @cached_property
    def _at_anchors(self) -> dict[tuple[str, str, str], tuple[Device | None, float]]:
        return {}


def _own_share(component: str, roofline_s: float, part: Part) -> Share:
    """The share of a component whose operations were measured one by one."""
    low, high = (math.exp(sign * NINETY * part.spread) for sign in (-1, 1))
    return Share(
        component=component,
        roofline_s=roofline_s,
        factor=part.seconds / max(roofline_s, 1e-30),
        seconds=part.seconds,
        low_s=part.seconds * low,
        high_s=part.seconds * high,
        learned=True,
    )
