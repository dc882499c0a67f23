"""A search in which the user fixed a part of the strategy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any

from ..errors import PlanError
from ..hwprofiles import Cluster
from ..models.cost import CostModel
from ..models.onnxpp import Graph
from ..models.plan import Strategy
from ..sim import Candidate, Search, simulate
from ..sim.search import MOST_STAGES, Objective

__all__ = ["narrowed_search"]


def narrowed_search(
    graph: Graph,
    cluster: Cluster,
    *,
    fixed: Mapping[str, Any],
    batch: int,
    objective: Objective = "time",
    model: CostModel | None = None,
    optimizer: str = "adam",
    precision: str = "float32",
    solver: str = "synchronous",
    ranks: int | None = None,
    samples_per_epoch: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Search:
    """As :func:`hpdlf.sim.search`, over strategies with the `fixed` parts: data, pipeline, microbatches, schedule.

    Raises:
        PlanError: the parts do not go together, or nothing that has them fits.
    """
    said = " ".join(f"--{name} {value}" for name, value in fixed.items())
    least = fixed.get("data", 1) * fixed.get("pipeline", 1)
    if least > cluster.n_devices:
        devices = f"{cluster.n_devices} device{'s' if cluster.n_devices > 1 else ''}"
        raise PlanError(
            f"`{said}` needs {least} devices, cluster {cluster.name} has {devices}: use fewer, or a larger cluster of "
            "`hpdlf profile list`."
        )
    more = {"batch": batch, "solver": solver, "precision": precision}
    chosen = [s for s in _strategies(fixed, cluster.n_devices, more) if ranks is None or s.ranks == ranks]
    if not chosen:
        # Says so where the parts themselves are impossible.
        Strategy.of(**{"microbatches": fixed.get("pipeline", 1), **fixed, **more})
        raise PlanError(
            f"No strategy has `{said}` with batch {batch} on the {cluster.n_devices} devices of {cluster.name}"
            + (f" and {ranks} ranks" if ranks else "")
            + ": change one of them, or leave it out to have it searched."
        )
    candidates = []
    for done, strategy in enumerate(chosen):
        if progress:
            progress(done, len(chosen))
        candidates.append(_candidate(graph, cluster, strategy, model, optimizer, samples_per_epoch))
    refused = tuple(c for c in candidates if c.refused)
    valued = [(value, c) for c in candidates if (value := c.objective(objective)) is not None]
    if len(refused) == len(candidates):
        reasons = "\n  ".join(f"{c.strategy}: {c.refused}" for c in refused[:8])
        raise PlanError(f"Nothing with `{said}` is possible for {graph.name} on {cluster.name}:\n  {reasons}")
    if not valued:
        raise PlanError(
            f"The {objective} of {graph.name} on {cluster.name} is unavailable: the profile lacks the power or price "
            f"that it needs. See `hpdlf profile show {cluster.name}`, or use `--objective time`."
        )
    valued.sort(key=lambda v: (v[0], v[1].strategy.ranks, v[1].strategy.pipeline, v[1].strategy.microbatches))
    return Search(objective=objective, ranked=tuple(c for _, c in valued), refused=refused)


def _strategies(fixed: Mapping[str, Any], devices: int, more: Mapping[str, Any]) -> Iterator[Strategy]:
    """All that have the fixed parts and are possible by their numbers; powers of two for the others."""
    sizes = sorted({1 << i for i in range(devices.bit_length()) if 1 << i <= devices} | {devices})
    stages = [s for s in sizes if s <= MOST_STAGES] if more["solver"] == "synchronous" else [1]
    for data, pipeline in product(_wanted(fixed, "data", sizes), _wanted(fixed, "pipeline", stages)):
        if data * pipeline > devices:
            continue
        counts = [1, 2, 4, 8] if pipeline == 1 else [pipeline * k for k in (1, 2, 4)]
        schedules = ["1f1b", "gpipe"] if pipeline > 1 else ["1f1b"]
        for microbatches in _wanted(fixed, "microbatches", counts):
            for schedule in _wanted(fixed, "schedule", schedules):
                try:
                    yield Strategy.of(
                        data=data, pipeline=pipeline, microbatches=microbatches, schedule=schedule, **more
                    )
                except PlanError:
                    continue


def _wanted(fixed: Mapping[str, Any], part: str, otherwise: list[Any]) -> list[Any]:
    return [fixed[part]] if part in fixed else otherwise


def _candidate(
    graph: Graph,
    cluster: Cluster,
    strategy: Strategy,
    model: CostModel | None,
    optimizer: str,
    samples: int | None,
) -> Candidate:
    try:
        found = simulate(graph, cluster, strategy, model=model, optimizer=optimizer, samples_per_epoch=samples)
    except PlanError as error:
        return Candidate(strategy=strategy, refused=str(error))
    crowded = next((m for m in found.memory if not m.fits), None)
    if crowded is None:
        return Candidate(strategy=strategy, figures=found.figures, complete=lambda: found)
    needed, there = crowded.peak_bytes / 1e9, crowded.capacity_bytes / 1e9
    why = f"{crowded.role} needs {needed:.2f} GB at {crowded.at}, the device has {there:.2f} GB"
    return Candidate(strategy=strategy, refused=why)
