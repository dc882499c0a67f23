"""How well steps of networks that were never measured are predicted on this machine.

``python -m hpdlf.experiments.validate_machine [--json FILE]`` measures the machine as ``hpdlf profile measure`` does, then
trains networks for a few steps in real ranks, and measures and trains once more, in turns. Calibration knows nothing
of the networks. Beside each measured step time stand

* the prediction by calibration alone ("before refinement");
* the prediction at other batch sizes after refinement on the run at one of them (the first), as ``hpdlf refine`` does;
* noise: half the range between the 10th and the 90th percentile of the steps, over their median; and how far the
  medians of repeats lie apart.

Everything happens in a folder of its own (``--keep DIR``); the user's database and profile stay as they are.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import HpdlfError

if TYPE_CHECKING:
    from onnx import ModelProto

    from ..hwprofiles import Cluster
    from ..models.cost import CostModel, Observation
    from ..models.onnxpp import Onnxpp
    from .recorded import Recorded

__all__ = ["NETWORKS", "Network", "Row", "main", "predicted_step_s", "summary"]

Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network to train: how it is made, its loss, and batch sizes of one rank (refinement learns from the first)."""

    name: str
    make: Callable[[], ModelProto]
    batches: tuple[int, ...]
    loss: str = "softmax_xent"


def _zoo(name: str, **parameters: Any) -> Callable[[], ModelProto]:
    def make() -> ModelProto:
        from ..models import zoo

        model: ModelProto = getattr(zoo, name)(**parameters)
        return model

    return make


NETWORKS = (
    Network(name="perceptron 3x2048", make=_zoo("mlp", widths=(2048,) * 4), batches=(256, 64, 512)),
    Network(name="ResNet-18 64x64", make=_zoo("resnet18", image=64), batches=(16, 4, 32)),
    Network(name="GPT 4x512x256", make=_zoo("gpt_blocks"), batches=(2, 1, 4), loss="mse"),
    Network(name="MobileNetV2 64x64", make=_zoo("mobilenet_v2", image=64), batches=(8, 2, 16)),
    Network(name="U-Net 64x64", make=_zoo("unet", image=64), batches=(2, 1, 4), loss="mse"),
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One network at one batch size on so many ranks; seconds of a step.

    measured_s   median of the repeats' medians
    before_s     predicted by calibration alone, after_s after refinement on another batch size (None at that one)
    low_s, high_s   of the prediction before refinement
    noise        of steps within a repeat; apart: largest distance of a repeat's median from `measured_s`, relative
    """

    network: str
    ranks: int
    batch: int
    measured_s: float
    repeats_s: tuple[float, ...]
    noise: float
    apart: float
    before_s: float
    low_s: float
    high_s: float
    after_s: float | None = None

    @property
    def before(self) -> float:
        """Relative error before refinement."""
        return self.before_s / self.measured_s - 1

    @property
    def after(self) -> float | None:
        """Relative error after refinement on another batch size."""
        return None if self.after_s is None else self.after_s / self.measured_s - 1


@dataclass
class Session:
    """Where everything lies, and what was found so far."""

    folder: Path
    budget_s: float
    tell: Tell
    clusters: list[Cluster] = field(default_factory=list)
    calibrations: list[list[Observation]] = field(default_factory=list)
    runs: dict[tuple[str, int, int], list[Recorded]] = field(default_factory=dict)
    skipped: list[dict[str, str]] = field(default_factory=list)
    _calibrated: CostModel | None = None

    def calibrate(self) -> None:
        """Measure the machine; every time anew, with the median of all times as what is known."""
        from ..exec.microbenchmarks import measure_machine
        from .calibration import calibrate
        from .rehearsal import REHEARSAL_S

        self.tell(f"calibrating for about {self.budget_s:.0f} s")
        began = time.monotonic()
        found = measure_machine(budget_s=self.budget_s - REHEARSAL_S, folder=self.folder, name="local")
        observations = calibrate(found, tell=self.tell)
        self.tell(f"  took {time.monotonic() - began:.0f} s: {len(observations)} observations")
        for note in (*found.skipped, *found.notes[:3]):
            self.tell(f"  {note}")
        self.clusters.append(found.cluster)
        self.calibrations.append(
            [replace(o, run=f"calibration {len(self.calibrations)} {o.run}") for o in observations]
        )

    def train(self, network: Network, model: Onnxpp, batch: int, ranks: int, repeat: int) -> None:
        """Train for a few steps and keep the traces; `batch` samples per rank."""
        from ..models.plan import Strategy
        from .rehearsal import train_briefly

        strategy = Strategy(batch=batch * ranks, data=ranks)
        cluster = self.clusters[0]
        if self._calibrated is None:
            self._calibrated = self.model()
        run = train_briefly(
            model,
            cluster,
            strategy,
            self.folder / f"{network.name.replace(' ', '-')}-{ranks}-{batch}",
            steps=_steps_for(predicted_step_s(model.graph, cluster, strategy, self._calibrated, optimizer="sgd")),
            run=f"run{repeat}",
            tell=self.tell,
        )
        self.runs.setdefault((network.name, ranks, batch), []).append(run)

    def model(self, *runs: Recorded) -> CostModel:
        """The cost model that knows all calibrations and `runs`."""
        from ..models.cost import CostModel
        from .refine import observe

        found = [o for calibration in self.calibrations for o in calibration]
        for run in runs:
            found += observe(run)
        return CostModel.fitted(found)

    def rows(self) -> list[Row]:
        """Every network, number of ranks and batch size that was run."""
        before = self.model()
        cluster = self.clusters[0]
        first: dict[tuple[str, int], int] = {}
        found = []
        for (name, ranks, batch), runs in self.runs.items():
            learned_from = first.setdefault((name, ranks), batch)
            times = [t for t in (_step_times(r) for r in runs) if t is not None]
            medians = [t[0] for t in times]
            graph, strategy = runs[0].graph, runs[0].plan.strategy
            interval = _prediction(graph, cluster, strategy, before, "sgd")
            after_s = None
            if batch != learned_from:
                refined = self.model(*self.runs[name, ranks, learned_from])
                after_s = predicted_step_s(graph, cluster, strategy, refined, optimizer="sgd")
            middle = median(medians)
            found.append(
                Row(
                    network=name,
                    ranks=ranks,
                    batch=batch,
                    measured_s=middle,
                    repeats_s=tuple(medians),
                    noise=median(t[1] for t in times),
                    apart=max(abs(m / middle - 1) for m in medians),
                    before_s=interval.value,
                    low_s=interval.low,
                    high_s=interval.high,
                    after_s=after_s,
                )
            )
        return found


_RUN_S, _LEAST_STEPS, _MOST_STEPS = 6.0, 8, 300


def _steps_for(step_s: float) -> int:
    """Steps for a few seconds of training."""
    return int(min(max(_RUN_S / step_s, _LEAST_STEPS), _MOST_STEPS))


def _step_times(run: Recorded) -> tuple[float, float] | None:
    """(median, noise) of the steady steps."""
    from .compare import step_times

    found = step_times(run.measured) if run.measured is not None else None
    return None if found is None or found.median_s is None else (found.median_s, found.noise or 0.0)


def _prediction(graph: Any, cluster: Cluster, strategy: Any, model: CostModel, optimizer: str) -> Any:
    from ..sim import simulate

    return simulate(graph, cluster, strategy, model=model, optimizer=optimizer).figures.step_s


def predicted_step_s(graph: Any, cluster: Cluster, strategy: Any, model: CostModel, *, optimizer: str) -> float:
    """Seconds of a steady step by simulation."""
    seconds: float = _prediction(graph, cluster, strategy, model, optimizer).value
    return seconds


def validate(session: Session, networks: Sequence[Network], ranks: Sequence[int], repeats: int) -> None:
    """Calibrate and train in turns."""
    import onnx

    from ..models.onnxpp import import_model

    models = {}
    for network in networks:
        path = session.folder / f"{network.name.replace(' ', '-')}.onnx"
        onnx.save(network.make(), path)
        models[network.name] = import_model(path, loss=network.loss)
    for repeat in range(repeats):
        session.calibrate()
        for network in networks:
            for n in ranks:
                if n > session.clusters[0].n_devices:
                    session.skipped.append({"network": network.name, "reason": f"{n} ranks, but fewer cores"})
                    continue
                for batch in network.batches:
                    session.tell(f"{network.name}, {n} rank(s), batch {batch} a rank, repeat {repeat + 1}")
                    session.train(network, models[network.name], batch, n, repeat)


def summary(rows: Sequence[Row]) -> Mapping[str, float]:
    """Mean and largest absolute errors, before and after refinement."""
    before = [abs(r.before) for r in rows]
    after = [abs(r.after) for r in rows if r.after is not None]
    found = {"before_mean": float(np.mean(before)), "before_max": max(before)} if before else {}
    if after:
        found |= {"after_mean": float(np.mean(after)), "after_max": max(after)}
    return found


def _show(rows: Sequence[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="A training step: measured and predicted")
    for column in ("network", "ranks", "batch", "measured", "noise", "repeats", "before", "interval", "after"):
        table.add_column(column, justify="left" if column == "network" else "right")
    for r in rows:
        inside = "in" if r.low_s <= r.measured_s <= r.high_s else "out"
        table.add_row(
            r.network,
            str(r.ranks),
            str(r.batch * r.ranks),
            f"{r.measured_s * 1e3:.1f} ms",
            f"± {r.noise:.1%}",
            f"± {r.apart:.1%}",
            f"{r.before:+.1%}",
            f"{r.low_s / r.before_s - 1:+.0%} {r.high_s / r.before_s - 1:+.0%} {inside}",
            "learned from" if r.after is None else f"{r.after:+.1%}",
        )
    Console(width=120).print(table)
    for name, value in summary(rows).items():
        print(f"{name.replace('_', ', ')}: {value:.1%}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    names = [n.name for n in NETWORKS]
    parser = argparse.ArgumentParser(prog="python -m hpdlf.experiments.validate_machine", description=__doc__)
    parser.add_argument("--network", action="append", choices=names, help="only this one; may be given again")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], help="numbers of ranks (default: 1 2)")
    parser.add_argument("--repeats", type=int, default=2, help="calibrations and runs in turns (default: 2)")
    parser.add_argument("--budget-s", type=float, default=75.0, help="seconds for each calibration")
    parser.add_argument("--keep", type=Path, help="keep all files in this new folder")
    parser.add_argument("--json", type=Path, help="write the rows there as well")
    options = parser.parse_args(arguments)
    chosen = [n for n in NETWORKS if n.name in (options.network or names)]
    with tempfile.TemporaryDirectory(prefix="hpdlf-validate-") as scratch:
        folder = options.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["HPDLF_PROFILES"] = str(folder)
        session = Session(
            folder=folder, budget_s=options.budget_s, tell=lambda t: print(t, file=sys.stderr, flush=True)
        )
        try:
            validate(session, chosen, options.ranks, options.repeats)
            rows = session.rows()
        except HpdlfError as error:
            print(f"error: {error}", file=sys.stderr)
            return error.exit_code
    if options.json:
        found = [asdict(r) | {"before": r.before, "after": r.after} for r in rows]
        options.json.write_text(
            json.dumps({"rows": found, "summary": summary(rows), "skipped": session.skipped}, indent=1)
        )
    _show(rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
