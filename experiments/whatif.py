"""What if it ran there? One model on several clusters and sizes, the best of a few strategies each.

``python -m hpdlf.experiments.whatif`` asks it of the ResNet-50 that comes with the onnx package: data and pipeline
parallel on 8 to 512 devices of three clusters, as one table and one picture. The batch grows with the devices.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import HpdlfError, PlanError
from ..hwprofiles import Cluster, load_cluster
from ..models.cost import CostModel
from ..models.onnxpp import Graph, Onnxpp, import_model
from ..models.plan import Strategy
from ..sim import Interval, Simulation, simulate

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from rich.table import Table

__all__ = ["Outcome", "WhatIf", "main", "resnet50", "whatif"]

CLUSTERS = ("xeon-128", "dgx-a100:64", "dgx-h100:64")
DEVICES = (8, 16, 32, 64, 128, 256, 512)
PIPELINES = (1, 2, 4)
# Microbatches per stage: the bubble of a pipeline is then at most a fifth of its step.
MICROBATCHES_PER_STAGE = 4


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The best strategy for so many devices of a cluster, or the reason why there is none.

    efficiency   samples per second over those of as many single devices; None where one device cannot hold the model
    considered   {strategy: what became of it}
    """

    cluster: str
    devices: int
    strategy: Strategy | None
    simulation: Simulation | None
    efficiency: Interval | None
    considered: dict[str, str]
    refused: str = ""

    @property
    def energy_j_per_sample(self) -> Interval | None:
        """Joules at the meter; None where the cluster's profile lacks a power."""
        return self._per_sample(self.simulation.figures.energy_j) if self.simulation else None

    @property
    def cost_usd_per_million_samples(self) -> Interval | None:
        """Dollars; None where the cluster's profile has no price."""
        found = self._per_sample(self.simulation.figures.cost_usd) if self.simulation else None
        return found.times(1e6) if found else None

    def _per_sample(self, step: Interval | None) -> Interval | None:
        return step.times(1.0 / self.simulation.batch) if step and self.simulation else None


@dataclass(frozen=True, kw_only=True)
class WhatIf:
    """All outcomes, cluster by cluster in the order asked for."""

    model: str
    batch_per_device: int
    outcomes: tuple[Outcome, ...]

    @property
    def clusters(self) -> tuple[str, ...]:
        """Names of the clusters."""
        return tuple(dict.fromkeys(o.cluster for o in self.outcomes))

    def of(self, cluster: str) -> tuple[Outcome, ...]:
        """The outcomes of one cluster that has one, by devices."""
        return tuple(o for o in self.outcomes if o.cluster == cluster and o.simulation)

    def to_frame(self) -> pd.DataFrame:
        """One row a cluster and number of devices; None where unknown, `refused` says why where nothing is possible."""
        import pandas as pd

        rows = []
        for o in self.outcomes:
            row: dict[str, object] = {"cluster": o.cluster, "devices": o.devices, "strategy": str(o.strategy or "")}
            f = o.simulation.figures if o.simulation else None
            for name, interval in (
                ("step_s", f.step_s if f else None),
                ("samples_per_s", f.samples_per_s if f else None),
                ("efficiency", o.efficiency),
                ("energy_j_per_sample", o.energy_j_per_sample),
                ("cost_usd_per_million_samples", o.cost_usd_per_million_samples),
            ):
                row[name] = interval.value if interval else None
                row[f"{name}_low"] = interval.low if interval else None
                row[f"{name}_high"] = interval.high if interval else None
            row |= {
                "batch": o.simulation.batch if o.simulation else None,
                "utilisation": f.utilisation if f else None,
                "exposed_communication": f.exposed_communication if f else None,
                "bubble": f.bubble if f else None,
                "peak_bytes": o.simulation.peak_bytes if o.simulation else None,
                "cost_basis": f.cost_basis if f else None,
                "provenance": f.step_s.provenance if f else None,
                "refused": o.refused,
            }
            rows.append(row)
        return pd.DataFrame(rows)

    def plot(self) -> Figure:
        """Throughput, efficiency, energy and money over devices, clusters as series with bands of their intervals."""
        from .whatif_plot import draw

        return draw(self)

    def table(self) -> Table:
        """All of it for a terminal."""
        from .whatif_plot import table

        return table(self)


def whatif(
    model: Onnxpp | Graph,
    clusters: Sequence[Cluster | str],
    devices: Sequence[int],
    *,
    batch_per_device: int = 32,
    pipelines: Sequence[int] = PIPELINES,
    precision: str = "float32",
    optimizer: str = "momentum",
    cost_model: CostModel | None = None,
    progress: Callable[[str, int], None] | None = None,
    **parts: Any,
) -> WhatIf:
    """Simulate `model` on so many devices of every cluster, and keep the fastest strategy that fits in memory.

    devices           a cluster's devices are GPUs, or sockets of a CPU cluster
    batch_per_device  samples per device and step: the global batch grows with the devices
    pipelines         stages to try, each with data parallelism over the rest
    parts             fields that all strategies tried have: tensor, context, zero, recompute, ... of :class:`hpdlf.Strategy`
    progress          told of each (cluster, devices) before it is simulated

    Raises:
        ProfileError: there is no such cluster.
        PlanError: no cluster, no number of devices, or one below 1.
    """
    if not clusters or not devices or min(devices) < 1 or batch_per_device < 1:
        raise PlanError("A what-if needs clusters, and devices and a batch of at least 1: `--on NAME --devices 8 16`.")
    graph = model.graph if isinstance(model, Onnxpp) else model
    known = [c if isinstance(c, Cluster) else load_cluster(c) for c in clusters]
    costs = cost_model or CostModel.default()

    def run(cluster: Cluster, strategy: Strategy) -> Simulation:
        return simulate(graph, cluster, strategy, model=costs, optimizer=optimizer)

    outcomes = []
    for cluster in known:
        single = _single(cluster, batch_per_device, precision, run)
        for count in devices:
            if progress:
                progress(cluster.name, count)
            tried, why = _strategies(count, batch_per_device, pipelines, {"precision": precision, **parts})
            outcomes.append(_best(cluster, count, tried, why, single, run))
    return WhatIf(model=graph.name, batch_per_device=batch_per_device, outcomes=tuple(outcomes))


def _strategies(
    devices: int, batch_per_device: int, pipelines: Sequence[int], parts: Mapping[str, Any]
) -> tuple[list[Strategy], str]:
    """The strategies to try, and why another was none."""
    shared = parts.get("tensor", 1) * parts.get("context", 1)  # ranks that a stage of a replica lies on
    found, why = [], f"{devices} devices do not divide into groups of tensor {shared}"
    for stages in pipelines:
        if devices % (stages * shared) or (stages == 1 and parts.get("interleave", 1) > 1):
            continue
        data = devices // (stages * shared)
        batch = batch_per_device * devices
        microbatches = 1 if stages == 1 else MICROBATCHES_PER_STAGE * stages
        if batch % (data * microbatches):
            why = "the batch per device divides into no strategy tried"
            continue
        try:
            found.append(Strategy.of(batch=batch, data=data, pipeline=stages, microbatches=microbatches, **parts))
        except PlanError as error:
            why = str(error)
    return found, why


Run = Callable[[Cluster, Strategy], Simulation]


def _single(cluster: Cluster, batch: int, precision: str, run: Run) -> Interval | None:
    """Samples per second of one device alone."""
    one = run(cluster, Strategy(batch=batch, precision=precision))  # type: ignore[arg-type]
    return one.figures.samples_per_s if all(m.fits for m in one.memory) else None


def _best(
    cluster: Cluster, devices: int, tried: Sequence[Strategy], why: str, single: Interval | None, run: Run
) -> Outcome:
    considered: dict[str, str] = {}
    best: tuple[Strategy, Simulation] | None = None
    for strategy in tried:
        try:
            found = run(cluster, strategy)
        except PlanError as error:
            considered[str(strategy)] = str(error)
            continue
        crowded = next((m for m in found.memory if not m.fits), None)
        if crowded:
            considered[str(strategy)] = (
                f"{crowded.role} needs {crowded.peak_bytes / 1e9:.3g} GB, "
                f"the device has {crowded.capacity_bytes / 1e9:.3g} GB"
            )
            continue
        considered[str(strategy)] = f"{found.figures.samples_per_s.value:.4g} samples/s"
        if best is None or found.figures.step_s.value < best[1].figures.step_s.value:
            best = strategy, found
    refused = "" if best else _why_not(cluster, devices, considered, why)
    efficiency = None
    if best and single:
        # Both rest on the same operators' times, whose error cancels: the interval would only pretend to know less.
        value = best[1].figures.samples_per_s.value / devices / single.value
        efficiency = Interval(value=value, low=value, high=value, provenance=single.provenance)
    return Outcome(
        cluster=cluster.name,
        devices=devices,
        strategy=best[0] if best else None,
        simulation=best[1] if best else None,
        efficiency=efficiency,
        considered=considered,
        refused=refused,
    )


def _why_not(cluster: Cluster, devices: int, considered: dict[str, str], otherwise: str) -> str:
    if devices > cluster.n_devices:
        return f"the cluster has {cluster.n_devices} devices"
    return next(iter(considered.values()), otherwise)


def resnet50() -> Onnxpp:
    """The ResNet-50 of the onnx package, with a cross-entropy loss."""
    import onnx.backend.test

    folder = Path(onnx.backend.test.__file__).parent
    return import_model(folder / "data" / "light" / "light_resnet50.onnx", loss="softmax_xent")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: a table on the terminal, a picture in a file."""
    from rich.console import Console

    parser = argparse.ArgumentParser(prog="python -m hpdlf.experiments.whatif", description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?", help="ONNX or ONNX++ file (default: the onnx package's ResNet-50)")
    parser.add_argument("--on", nargs="+", default=list(CLUSTERS), metavar="CLUSTER", help="clusters to compare")
    parser.add_argument("--devices", nargs="+", type=int, default=list(DEVICES), help="numbers of devices")
    parser.add_argument("--batch-per-device", type=int, default=32, help="samples per device and step")
    parser.add_argument("--precision", default="float32", help="float32, tf32, bfloat16, float16 or float64")
    parser.add_argument("--out", type=Path, default=Path("whatif.png"), help="the picture")
    options = parser.parse_args(arguments)
    console = Console(stderr=True)
    try:
        model = import_model(options.model, loss="softmax_xent") if options.model else resnet50()
        with console.status("simulating") as status:
            found = whatif(
                model,
                options.on,
                options.devices,
                batch_per_device=options.batch_per_device,
                precision=options.precision,
                progress=lambda cluster, count: status.update(f"simulating {count} devices of {cluster}"),
            )
            figure = found.plot()
            options.out.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(options.out)
    except (HpdlfError, OSError) as error:
        console.print(str(error), style="red", markup=False)
        return getattr(error, "exit_code", 2)
    Console().print(found.table())
    Console().print(f"Picture: {options.out}", markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
