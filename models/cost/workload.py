"""A piece of work on one device or link, as seconds at the roofline per component: what factors multiply and fits
explain.

The time of a workload is linear in the factors, ``sum(components[c] * factor[subject, c])``, which makes the fit a
linear one. Components of devices are operator families ("conv"; ".backward" and ".half" appended where they apply),
"update", "kernels" (what every kernel costs at least) and "dispatch" (what a call costs); those of links are
"<kind>.latency" and "<kind>.bandwidth".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from .estimate import Bound
from .operation import Operation

__all__ = ["SubjectKind", "WorkKind", "Workload", "together"]

SubjectKind = Literal["cpu", "gpu", "link", "host"]
WorkKind = Literal["operator", "segment", "transfer", "collective", "update", "host", "lowering"]
"""A "lowering" is one way to compute an operator, timed alone: a choice among ways, and nothing that a program does."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is done, and what it would cost at the roofline of `subject` (the name of a device, link or node).

    key          names exactly this work, so that a measurement can be found again: a fingerprint, or kind, size and
                 placement
    components   seconds at the roofline
    spreads      standard deviation of the logarithm of a component, where the profile knows how sure its values are;
                 it takes the place of the prior's, not of what was learned
    learned      components that a regression on measurements of the device, or of its relatives, stands behind
    operations   what a device is asked to do, operator by operator; none for links and hosts
    n_launches   calls that the framework makes
    payload_bytes  bytes moved by communication, 0 for computation
    compute_s, memory_s  time that arithmetic and memory traffic alone would take at the device's peaks: the
                 utilisation that power depends on
    """

    subject: str
    subject_kind: SubjectKind
    kind: WorkKind
    key: str
    components: Mapping[str, float]
    spreads: Mapping[str, float] = field(default_factory=dict)
    learned: frozenset[str] = frozenset()
    operations: tuple[Operation, ...] = ()
    n_launches: int = 0
    payload_bytes: int = 0
    compute_s: float = 0.0
    memory_s: float = 0.0
    bound: Bound = "compute"
    flops: float = field(default=0.0)
    traffic_bytes: float = field(default=0.0)

    @property
    def roofline_s(self) -> float:
        """The time if every component ran at its roofline."""
        return sum(self.components.values())


def together(workloads: Sequence[Workload]) -> Workload:
    """Several workloads of one device behind one call: components add, but the call is dispatched once, and an update
    that follows what it updates is no call of its own.
    """
    first, *others = workloads
    if not others:
        return first
    components = dict(first.components)
    for other in others:
        for component, seconds in other.components.items():
            if component != "dispatch":
                components[component] = components.get(component, 0.0) + seconds
    joined = (replace(each, own_kernel=False) for other in others for each in other.operations)
    return replace(
        first,
        key="+".join(w.key for w in workloads),
        components=components,
        operations=(*first.operations, *joined),
        compute_s=sum(w.compute_s for w in workloads),
        memory_s=sum(w.memory_s for w in workloads),
        flops=sum(w.flops for w in workloads),
        traffic_bytes=sum(w.traffic_bytes for w in workloads),
    )
