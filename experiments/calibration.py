"""From micro-benchmarks of this machine to observations that the cost model learns from.

Every timed chain of operators is a graph, so that its workload is the one that the same operators have in a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ..exec.microbenchmarks_chains import UPSTREAM, Case, graph_of
from ..hwprofiles import Cluster, Device
from ..models.cost import (
    Observation,
    ObservationDatabase,
    Workload,
    collective_workload,
    compute_workload,
    transfer_workload,
    update_workload,
)
from ..models.cost.observations import said_by
from ..models.cost.workload import together

if TYPE_CHECKING:
    from ..exec.microbenchmarks import Measurement

__all__ = ["calibrate", "conditions_on", "observations_of", "record", "workload_of_case"]

RUN = "profile measure"


def record(
    measurement: Measurement,
    database: ObservationDatabase | None = None,
    *,
    rehearsals: bool = True,
    tell: Callable[[str], None] = lambda text: None,
) -> int:
    """Put a measurement into the database, beside earlier ones, which show whether the machine changed; returns how many
    entries. `rehearsals`: train small networks in real ranks as well (:mod:`.rehearsal`), about 20 seconds.
    """
    found = calibrate(measurement, rehearsals=rehearsals, tell=tell)
    (database or ObservationDatabase()).add(found)
    return len(found)


def calibrate(
    measurement: Measurement, *, rehearsals: bool = True, tell: Callable[[str], None] = lambda text: None
) -> list[Observation]:
    """All that a measurement teaches. Where ranks rehearsed, their messages and all-reduces stand for those of MPI alone,
    which no program sees.
    """
    from ..exec.environment import examine_conditions, examine_machine, package_versions
    from .rehearsal import rehearse

    machine = examine_machine()
    rehearsed = list(rehearse(measurement.cluster, tell=tell)) if rehearsals else []
    seen = observations_of(
        measurement,
        machine=machine.fingerprint,
        host=machine.name,
        versions=package_versions(),
        conditions={**examine_conditions(), "threads": 1},
    )
    kinds = {o.kind for o in rehearsed}
    return [*(o for o in seen if o.subject_kind != "link" or o.kind not in kinds), *rehearsed]


def observations_of(
    measurement: Measurement,
    *,
    machine: str = "",
    host: str = "",
    versions: Mapping[str, str] | None = None,
    conditions: Mapping[str, float | str] | None = None,
) -> list[Observation]:
    """What a measurement says about the operators and links of its own profile."""
    time = datetime.now(UTC).isoformat(timespec="seconds")
    about: dict[str, Any] = {
        "run": f"{RUN} {measurement.cluster.name} {time}",
        "machine": machine,
        "host": host,
        "versions": dict(versions or {}),
        "conditions": {**(conditions or {}), **conditions_on(measurement.cluster)},
        "time": time,
    }
    return [*_operators(measurement, about), *_messages(measurement, about)]


def conditions_on(cluster: Cluster, ranks_on_node: int = 1) -> dict[str, float | str]:
    """What a cluster's profile says of the circumstances: who the device is related to, and how many work on a node."""
    device = cluster.device
    related = {"vendor": device.vendor, "architecture": device.architecture}
    return {"ranks_on_node": ranks_on_node, **{name: value for name, value in related.items() if value}}


def _operators(measurement: Measurement, about: dict[str, Any]) -> Iterable[Observation]:
    for timed in measurement.operators:
        yield _observation(workload_of_case(timed.case, measurement.cluster.device), timed, about)


def workload_of_case(case: Case, device: Device) -> Workload:
    """What a micro-benchmark asks of `device`."""
    bench = graph_of(case)
    elements = sum(bench.graph.tensors[p].elements(1) for p in bench.graph.parameters if p != UPSTREAM)
    updates = case.passes not in ("forward", "training")
    parts: list[tuple[tuple[str, ...], str]] = []
    if bench.core:
        parts = [(bench.core, "forward"), *([] if case.passes == "forward" else [(bench.core, "backward")])]
    workloads = []
    if parts:
        workloads.append(compute_workload(bench.graph, parts, batch=1, device=device, precision=case.dtype))
    if updates:
        workloads.append(update_workload(elements, optimizer=case.passes, device=device, precision=case.dtype))
    return together(workloads)


def _messages(measurement: Measurement, about: dict[str, Any]) -> Iterable[Observation]:
    cluster: Cluster = measurement.cluster
    for timed in measurement.communication:
        if cluster.node.link is None or timed.ranks > cluster.n_devices:
            continue
        if timed.kind == "allreduce":
            workload = collective_workload("all_reduce", timed.bytes, ranks=range(timed.ranks), cluster=cluster)
        else:
            workload = transfer_workload(timed.bytes, cluster.node.link)
        if workload is not None and timed.bytes:
            together = {"conditions": {**about["conditions"], "ranks_on_node": timed.ranks}}
            yield _observation(workload, timed, about | together)


def _observation(workload: Any, timed: Any, about: dict[str, Any]) -> Observation:
    return Observation(
        **said_by(workload),
        seconds=timed.seconds,
        low_s=min(timed.low_s, timed.seconds),
        high_s=max(timed.high_s, timed.seconds),
        repeats=timed.repeats,
        **about,
    )
