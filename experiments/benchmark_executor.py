"""How fast the executor trains, beside the same training written by hand.

``python -m hpdlf.experiments.benchmark_executor [--json]`` runs both sides in one go, in turns: an approved plan through
:func:`hpdlf.exec.train`, and the baseline of :mod:`.benchmark_baselines` through the same launcher (same binding, same
environment), on the same data in the same order from the same weights. A figure is the median over windows of steps in all
repeats; both sides must arrive at the same losses, else there is no figure.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..errors import HpdlfError, RunError
from .benchmark_baselines import Job, Measured, read_measured

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["WORKLOADS", "Result", "Row", "Workload", "benchmark", "main"]

COMPARED_STEPS, TOLERANCE = 36, 1e-4
"""So many first losses of both sides must agree to this share of their value: rounding alone, which grows from step to step."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A network, how it is trained, and what it is compared with.

    samples        of the data set, random but for the digits
    window_steps   steps per reading of the clock
    least          the ratio that we hold ourselves to
    """

    name: str
    network: Literal["digits_cnn", "mlp"]
    ranks: int
    baseline: Literal["jax", "ddp"]
    batch: int
    steps: int
    window_steps: int
    optimizer: Literal["sgd", "adam"]
    learning_rate: float
    least: float
    widths: tuple[int, ...] = ()


WORKLOADS = (
    Workload(
        name="digits_cnn",
        network="digits_cnn",
        ranks=1,
        baseline="jax",
        batch=64,
        steps=1000,
        window_steps=50,
        optimizer="adam",
        learning_rate=1e-3,
        least=0.9,
    ),
    Workload(
        name="mlp 3x2048",
        network="mlp",
        ranks=1,
        baseline="jax",
        batch=256,
        steps=28,
        window_steps=4,
        optimizer="sgd",
        learning_rate=0.01,
        least=0.9,
        widths=(2048, 2048, 2048, 2048),
    ),
    Workload(
        name="mlp 3x2048",
        network="mlp",
        ranks=2,
        baseline="ddp",
        batch=256,
        steps=36,
        window_steps=4,
        optimizer="sgd",
        learning_rate=0.01,
        least=1.2,
        widths=(2048, 2048, 2048, 2048),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One workload's figures: medians; `ratio` above 1 where ours is faster."""

    workload: str
    ranks: int
    baseline: str
    ours_samples_per_s: float
    baseline_samples_per_s: float
    ratio: float


@dataclass(frozen=True, kw_only=True)
class Detail:
    """How far a row is to be trusted.

    ratios              one per repeat, from the medians of its two runs
    ours_spread         half the range between the 10th and the 90th percentile of the windows, over their median
    others_cpu_share    of the machine's cores, what other programs used meanwhile; None where the system does not say
    loss_difference     largest relative difference between the two loss curves where they are compared
    """

    workload: str
    ranks: int
    least: float
    ratios: tuple[float, ...]
    ours_spread: float
    baseline_spread: float
    others_cpu_share: float | None
    loss_difference: float


@dataclass
class Result:
    """Rows, and what could not be run, in words."""

    rows: list[Row] = field(default_factory=list)
    details: list[Detail] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "rows": [asdict(r) for r in self.rows],
            "details": [asdict(d) for d in self.details],
            "skipped": self.skipped,
        }


def benchmark(
    workloads: Sequence[Workload] = WORKLOADS, *, repeats: int = 3, folder: Path, tell: Callable[[str], None] = lambda text: None
) -> Result:
    """Run every workload `repeats` times on both sides in turns; files go to `folder`.

    Raises:
        RunError: a run failed, or the two sides do not compute the same losses.
    """
    result = Result()
    for number, workload in enumerate(workloads):
        if workload.baseline == "ddp" and find_spec("torch") is None:
            reason = "PyTorch is not installed, and it is the baseline: `pip install 'hpdlf[benchmark]'`"
            result.skipped.append({"workload": f"{workload.name}, {workload.ranks} ranks", "reason": reason})
            continue
        place = folder / f"{number}-{workload.network}-{workload.ranks}"
        prepare(workload, place)
        before, began = _cpu_seconds(), time.monotonic()
        ours: list[Measured] = []
        theirs: list[Measured] = []
        for repeat in range(repeats):
            tell(f"{workload.name}, {workload.ranks} rank(s): repeat {repeat + 1} of {repeats}")
            ours.append(_run_ours(workload, place, repeat))
            theirs.append(_run_baseline(workload, place, repeat))
        row, detail = _compare(workload, ours, theirs)
        share = _others(before, _cpu_seconds(), time.monotonic() - began)
        result.rows.append(row)
        result.details.append(Detail(**{**asdict(detail), "others_cpu_share": share}))
    return result


def prepare(workload: Workload, folder: Path) -> None:
    """Write data, weights, the order of samples, and an approved plan (plan.json) that trains the same."""
    import onnx
    from onnx import numpy_helper

    from ..exec.sampling import Sampler, split_samples
    from ..models.plan import Recipe

    folder.mkdir(parents=True)
    network = _network(workload)
    onnx.save(network, folder / "network.onnx")
    x, labels = _data(workload)
    np.savez(folder / "data.npz", x=x, labels=labels)
    np.savez(folder / "weights.npz", **{w.name: numpy_helper.to_array(w) for w in network.graph.initializer})
    recipe = Recipe.model_validate(
        {
            "steps": workload.steps,
            "data": {"source": "data.npz"},
            "optimizer": {"name": workload.optimizer, "learning_rate": workload.learning_rate},
        }
    )
    train, _ = split_samples(len(x), recipe)
    sampler = Sampler(train=train, batch=workload.batch, seed=recipe.seed)
    np.save(folder / "batches.npy", np.stack([sampler.global_batch(s) for s in range(workload.steps)]))
    Job(
        network=workload.network,
        optimizer=workload.optimizer,
        learning_rate=workload.learning_rate,
        window_steps=workload.window_steps,
    ).write(folder)
    _write_plan(workload, recipe, folder)


def _network(workload: Workload) -> ModelProto:
    from ..models.zoo import digits_cnn, mlp

    return digits_cnn() if workload.network == "digits_cnn" else mlp(workload.widths)


def _data(workload: Workload) -> tuple[np.ndarray, np.ndarray]:
    if workload.network == "digits_cnn":
        from sklearn.datasets import load_digits

        digits = load_digits()
        return (digits.images[:, None] / 16).astype(np.float32), digits.target.astype(np.int64)
    rng = np.random.default_rng(0)
    samples = 8 * workload.batch
    x = rng.standard_normal((samples, workload.widths[0]), dtype=np.float32)
    return x, rng.integers(0, workload.widths[-1], samples)


def _write_plan(workload: Workload, recipe: Any, folder: Path) -> None:
    """Plan data parallel over the ranks and approve it: the benchmark runs what a user runs."""
    from ..exec.data import data_sha256
    from ..hwprofiles import load_cluster
    from ..models.onnxpp import annotate, import_model, save_onnxpp
    from ..models.plan import HashedFile, Plan, Strategy, file_sha256, write_approval, write_plan
    from ..sim import build, simulate

    cluster = load_cluster(f"generic-x86:1x{workload.ranks}")
    strategy = Strategy(batch=workload.batch, data=workload.ranks)
    model = import_model(folder / "network.onnx", loss="softmax_xent")
    cut, _ = build(model.graph, cluster, strategy, optimizer=workload.optimizer)
    placed = annotate(
        model, configuration="benchmark", stages=cut.stages, segments=cut.segments, n_devices=strategy.ranks
    )
    save_onnxpp(placed, folder / "model.onnx")
    prediction = simulate(model.graph, cluster, strategy, optimizer=workload.optimizer)
    plan = Plan(
        configuration="benchmark",
        model=HashedFile(path="model.onnx", sha256=file_sha256(folder / "model.onnx")),
        data_sha256=data_sha256("data.npz", base_folder=folder),
        cluster=cluster.name,
        cluster_sha256=cluster.sha256,
        cluster_toml=cluster.to_toml(),
        strategy=strategy,
        recipe=recipe,
        placement=tuple(range(strategy.ranks)),
        prediction=prediction.to_dict(),
    )
    write_plan(plan, folder / "plan.json")
    write_approval(folder / "plan.json", approved_by="benchmark_executor", data_sha256=plan.data_sha256)


def _run_ours(workload: Workload, folder: Path, repeat: int) -> Measured:
    from ..exec.train import train

    run = train(folder / "plan.json", folder / f"run{repeat}")
    with (run.folder / "metrics.jsonl").open() as file:
        steps = [entry for entry in map(json.loads, file) if "loss" in entry]
    if [s["step"] for s in steps] != list(range(workload.steps)):
        raise RunError(f"{run.folder}: metrics.jsonl does not have every step once; run the benchmark again.")
    ends_s = [s["time_s"] for s in steps[workload.window_steps - 1 :: workload.window_steps]]
    return Measured(window_s=tuple(np.diff(ends_s).tolist()), losses=tuple(s["loss"] for s in steps))


def _run_baseline(workload: Workload, folder: Path, repeat: int) -> Measured:
    from ..exec.launcher import launch

    (folder / "rendezvous").unlink(missing_ok=True)
    command = [sys.executable, "-m", "hpdlf.experiments.benchmark_baselines", workload.baseline, str(folder)]
    launch(
        command,
        workload.ranks,
        run_folder=folder / f"baseline{repeat}",
        max_restarts=0,
        environment={"GLOO_SOCKET_IFNAME": "lo"} if workload.baseline == "ddp" else {},
    )
    return read_measured(folder, workload.baseline, workload.ranks)


def _compare(workload: Workload, ours: Sequence[Measured], theirs: Sequence[Measured]) -> tuple[Row, Detail]:
    difference = max(
        abs(a - b) / max(abs(b), 1e-6)
        for m, n in zip(ours, theirs, strict=True)
        for a, b in zip(m.losses[:COMPARED_STEPS], n.losses[:COMPARED_STEPS], strict=True)
    )
    if not difference <= TOLERANCE:
        raise RunError(
            f"{workload.name}, {workload.ranks} ranks: the losses differ from the baseline's by up to {difference:.2g} of "
            f"their value (allowed: {TOLERANCE:g}). The two sides do not train the same, so their speeds cannot be compared."
        )
    samples = workload.batch * workload.window_steps
    mine, other = ([w for m in side for w in m.window_s] for side in (ours, theirs))
    ours_per_s, theirs_per_s = samples / median(mine), samples / median(other)
    row = Row(
        workload=workload.name,
        ranks=workload.ranks,
        baseline={"jax": "hand-written JAX", "ddp": "PyTorch DDP"}[workload.baseline],
        ours_samples_per_s=ours_per_s,
        baseline_samples_per_s=theirs_per_s,
        ratio=ours_per_s / theirs_per_s,
    )
    detail = Detail(
        workload=workload.name,
        ranks=workload.ranks,
        least=workload.least,
        ratios=tuple(median(n.window_s) / median(m.window_s) for m, n in zip(ours, theirs, strict=True)),
        ours_spread=_spread(mine),
        baseline_spread=_spread(other),
        others_cpu_share=None,
        loss_difference=difference,
    )
    return row, detail


def _spread(seconds: Sequence[float]) -> float:
    low, middle, high = np.percentile(seconds, (10, 50, 90))
    return float((high - low) / 2 / middle)


def _cpu_seconds() -> tuple[float, float] | None:
    """(of the whole machine, of this process and its ended children) so far; None where the system does not say."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq = map(int, fields[1:8])
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    busy = (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
    return busy, sum(u.ru_utime + u.ru_stime for u in used)


def _others(before: tuple[float, float] | None, after: tuple[float, float] | None, seconds: float) -> float | None:
    if before is None or after is None:
        return None
    busy, own = (b - a for a, b in zip(before, after, strict=True))
    return max(0.0, busy - own) / (seconds * (os.cpu_count() or 1))


def _show(result: Result) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Training speed (samples/s, medians)")
    for column in ("workload", "ranks", "baseline", "ours", "theirs", "ratio", "wanted", "repeats", "spread", "others' CPU"):
        table.add_column(column, justify="left" if column in ("workload", "baseline") else "right")
    for row, detail in zip(result.rows, result.details, strict=True):
        table.add_row(
            row.workload,
            str(row.ranks),
            row.baseline,
            f"{row.ours_samples_per_s:,.0f}",
            f"{row.baseline_samples_per_s:,.0f}",
            f"{row.ratio:.2f}",
            f"≥ {detail.least:.1f}",
            " ".join(f"{r:.2f}" for r in detail.ratios),
            f"{detail.ours_spread:.0%} / {detail.baseline_spread:.0%}",
            "?" if detail.others_cpu_share is None else f"{detail.others_cpu_share:.0%}",
        )
    console = Console()
    console.print(table)
    for skipped in result.skipped:
        console.print(f"Left out: {skipped['workload']}. {skipped['reason']}.", markup=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    names = sorted({w.name for w in WORKLOADS})
    parser = argparse.ArgumentParser(prog="python -m hpdlf.experiments.benchmark_executor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON and nothing else")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side (default: 3)")
    parser.add_argument("--workload", action="append", choices=names, help="only this one; may be given again")
    parser.add_argument("--ranks", type=int, help="only workloads of so many ranks")
    parser.add_argument("--keep", type=Path, help="keep all files in this new folder")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error(f"--repeats {options.repeats}: give at least 1")
    chosen = [w for w in WORKLOADS if w.name in (options.workload or names) and options.ranks in (None, w.ranks)]
    try:
        with tempfile.TemporaryDirectory(prefix="hpdlf-benchmark-") as scratch:
            result = benchmark(
                chosen,
                repeats=options.repeats,
                folder=options.keep or Path(scratch),
                tell=lambda text: print(text, file=sys.stderr, flush=True),
            )
    except HpdlfError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(result.to_dict(), indent=1))
    else:
        _show(result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
