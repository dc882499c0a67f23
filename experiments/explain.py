"""Which operators of a model matter on a device, what bounds them, and how sure the cost model is of each.

An operator is priced alone: what it takes when nothing is fused with it. Operators that are the same work (a network's
equal layers) share a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..errors import PlanError, ProfileError
from ..hwprofiles import Device, load_cluster, load_device
from ..models.cost import CostModel, Estimate, compute_workload
from ..models.onnxpp import Graph

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Explanation", "OperatorCost", "device_of", "explain"]

PHASES = ("forward", "backward")


@dataclass(frozen=True, kw_only=True)
class OperatorCost:
    """Equal operators in one phase: `count` of them take `seconds` together, between `low_s` and `high_s`.

    share        of the time of all operators
    utilisation  time at the nominal peaks (the longer of arithmetic and traffic) over the time that it takes
    bound        "compute", "memory" or "launch"
    joules       None where the profile lacks what energy needs
    """

    name: str
    op_type: str
    phase: str
    shape: str
    count: int
    seconds: float
    low_s: float
    high_s: float
    share: float
    utilisation: float
    bound: str
    provenance: str
    joules: float | None


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What `explain` found, the longest first. `fused_s` is the time of all operators compiled as one."""

    model: str
    device: str
    batch: int
    precision: str
    operators: tuple[OperatorCost, ...]
    fused_s: float
    fused_low_s: float
    fused_high_s: float

    @property
    def seconds(self) -> float:
        """All operators one by one."""
        return sum(o.seconds for o in self.operators)

    def to_frame(self) -> pd.DataFrame:
        """One row an operator."""
        import pandas as pd

        return pd.DataFrame([asdict(o) for o in self.operators])

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def device_of(name: str) -> Device:
    """A device by its own name or that of a cluster which is made of it.

    Raises:
        ProfileError: there is neither.
    """
    try:
        return load_device(name)
    except ProfileError as no_device:
        try:
            return load_cluster(name).device
        except ProfileError:
            raise no_device from None


def explain(
    graph: Graph,
    device: Device,
    *,
    batch: int = 1,
    precision: str = "float32",
    phases: Sequence[str] | None = None,
    model: CostModel | None = None,
) -> Explanation:
    """Price every operator of `graph` for `batch` samples on `device`.

    phases   "forward" and "backward"; None: both where the graph has a loss, else the forward pass

    Raises:
        PlanError: a backward pass of a graph without loss.
        ProfileError: the profile has no peak for `precision`.
    """
    chosen = tuple(phases or (PHASES if graph.loss else PHASES[:1]))
    if "backward" in chosen and not graph.loss:
        raise PlanError(f"{graph.name} has no loss, and so no backward pass: import it with `--loss softmax_xent`.")
    costs = model or CostModel.default()
    rows: dict[tuple[str, str], tuple[str, str, str, int, Estimate, float]] = {}
    for phase in chosen:
        for operator in graph.operators:
            workload = compute_workload(
                graph, [((operator.name,), phase)], batch=batch, device=device, precision=precision
            )
            if not workload.operations:
                continue
            key = (phase, workload.key)
            if key in rows:
                name, op_type, shape, count, estimate, ideal_s = rows[key]
                rows[key] = name, op_type, shape, count + 1, estimate, ideal_s
                continue
            result = graph.tensors[next(filter(None, operator.outputs))].dims(batch)
            rows[key] = (
                operator.name,
                operator.op_type,
                "x".join(map(str, result)),
                1,
                costs.price(workload, device),
                max(workload.compute_s, workload.memory_s),
            )
    total_s = sum(count * estimate.seconds for *_, count, estimate, _ in rows.values())
    found = [
        OperatorCost(
            name=name,
            op_type=op_type,
            phase=phase,
            shape=shape,
            count=count,
            seconds=count * estimate.seconds,
            low_s=count * estimate.low_s,
            high_s=count * estimate.high_s,
            share=count * estimate.seconds / total_s if total_s else 0.0,
            utilisation=ideal_s / estimate.seconds if estimate.seconds else 0.0,
            bound=estimate.bound,
            provenance=estimate.provenance,
            joules=None if estimate.joules is None else count * estimate.joules,
        )
        for (phase, _), (name, op_type, shape, count, estimate, ideal_s) in rows.items()
    ]
    every = tuple(o.name for o in graph.operators)
    fused = costs.compute(graph, [(every, phase) for phase in chosen], batch=batch, device=device, precision=precision)
    return Explanation(
        model=graph.name,
        device=device.name,
        batch=batch,
        precision=precision,
        operators=tuple(sorted(found, key=lambda o: -o.seconds)),
        fused_s=fused.seconds,
        fused_low_s=fused.low_s,
        fused_high_s=fused.high_s,
    )
