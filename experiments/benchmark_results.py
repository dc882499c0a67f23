"""What the benchmark of the executor found: rows of figures, how far each is to be trusted, and both as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from statistics import median
from typing import Any

import numpy as np

from ..errors import RunError
from .benchmark_baselines import Measured
from .benchmark_workloads import BASELINES, SECOND, Workload

WIDTH = 140
"""Of the table where nobody says how wide a line is: in a file or a pipe."""

__all__ = ["COMPARED_STEPS", "TOLERANCE", "Detail", "Result", "Row", "compare", "show"]

COMPARED_STEPS, TOLERANCE = 36, 1e-4
"""So many first losses of both sides must agree to this share of their value: rounding alone, which grows from step to step.
Predictions must agree to this share of the largest."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One workload's figures beside one baseline's: medians; `ratio` above 1 where ours is faster.

    kind           "training" or "inference"
    threads        cores of each rank
    *_peak_bytes   resident memory of the largest rank's process, compilation included; the median of the repeats
    memory_ratio   above 1 where ours takes more
    """

    workload: str
    ranks: int
    baseline: str
    ours_samples_per_s: float
    baseline_samples_per_s: float
    ratio: float
    kind: str
    threads: int
    ours_peak_bytes: int
    baseline_peak_bytes: int
    memory_ratio: float


@dataclass(frozen=True, kw_only=True)
class Detail:
    """How far a row is to be trusted, and what was wanted.

    least, aim          of the ratio; None where nothing was promised
    ratios              one per repeat, from the medians of its two runs
    ours_spread         half the range between the 10th and the 90th percentile of the windows, over their median
    others_cpu_share    of the machine's cores, what other programs used meanwhile; None where the system does not say
    loss_difference     largest relative difference between the two loss curves where they are compared, or between predictions
    """

    workload: str
    ranks: int
    baseline: str
    kind: str
    least: float | None
    aim: float | None
    ratios: tuple[float, ...]
    ours_spread: float
    baseline_spread: float
    others_cpu_share: float | None
    loss_difference: float


@dataclass
class Result:
    """Rows with their details, in the same order; what could not be run here, and what went wrong, in words.

    machine    the processor, its cores that were used, and versions
    profiles   where our time went, of workloads that were profiled (:mod:`.benchmark_profile`)
    """

    machine: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    details: list[Detail] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)
    profiles: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "machine": self.machine,
            "rows": [asdict(r) for r in self.rows],
            "details": [asdict(d) for d in self.details],
            "skipped": self.skipped,
            "failed": self.failed,
            "profiles": self.profiles,
        }


def compare(
    workload: Workload,
    baseline: str,
    ours: Sequence[Measured],
    theirs: Sequence[Measured],
    *,
    others_cpu_share: float | None = None,
    predicted: float = 0.0,
) -> tuple[Row, Detail]:
    """The row of two sides' runs, one of each per repeat.

    predicted   how far predictions differ, where there are no losses

    Raises:
        RunError: the two sides do not compute the same.
    """
    pairs = [
        (a, b)
        for m, n in zip(ours, theirs, strict=True)
        for a, b in zip(m.losses[:COMPARED_STEPS], n.losses[:COMPARED_STEPS], strict=True)
    ]
    apart = [abs(a - b) / max(abs(b), 1e-6) for a, b in pairs] + [predicted]
    difference = float(np.max(apart))  # not a number where one of them is none
    if not difference <= TOLERANCE:
        what, does = ("losses", "train") if workload.kind == "training" else ("predictions", "compute")
        raise RunError(
            f"{workload.title}: the {what} differ from those of {BASELINES[baseline]} by up to {difference:.2g} of their "
            f"value (allowed: {TOLERANCE:g}). The two sides do not {does} the same, so their speeds cannot be compared."
        )
    samples = workload.batch * workload.window_steps
    mine, other = ([w for m in side for w in m.window_s] for side in (ours, theirs))
    ours_per_s, theirs_per_s = samples / median(mine), samples / median(other)
    ours_bytes, theirs_bytes = (int(median(m.peak_bytes for m in side)) for side in (ours, theirs))
    row = Row(
        workload=workload.name,
        ranks=workload.ranks,
        baseline=BASELINES[baseline],
        ours_samples_per_s=ours_per_s,
        baseline_samples_per_s=theirs_per_s,
        ratio=ours_per_s / theirs_per_s,
        kind=workload.kind,
        threads=workload.cores,
        ours_peak_bytes=ours_bytes,
        baseline_peak_bytes=theirs_bytes,
        memory_ratio=ours_bytes / theirs_bytes,
    )
    promised = baseline != SECOND[workload.kind]
    detail = Detail(
        workload=workload.name,
        ranks=workload.ranks,
        baseline=BASELINES[baseline],
        kind=workload.kind,
        least=workload.least if promised else None,
        aim=workload.aim if promised else None,
        ratios=tuple(median(n.window_s) / median(m.window_s) for m, n in zip(ours, theirs, strict=True)),
        ours_spread=_spread(mine),
        baseline_spread=_spread(other),
        others_cpu_share=others_cpu_share,
        loss_difference=difference,
    )
    return row, detail


def _spread(seconds: Sequence[float]) -> float:
    low, middle, high = np.percentile(seconds, (10, 50, 90))
    return float((high - low) / 2 / middle)


def show(result: Result) -> None:
    """Print it for people."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    for kind, title in (("training", "Training"), ("inference", "Inference")):
        table = Table(title=f"{title} (samples/s, medians; memory: ours over theirs)")
        for column in (
            "workload",
            "ranks x cores",
            "baseline",
            "ours",
            "theirs",
            "ratio",
            "wanted",
            "repeats",
            "spread",
            "memory",
            "others' CPU",
        ):
            table.add_column(column, justify="left" if column in ("workload", "baseline") else "right")
        for row, detail in zip(result.rows, result.details, strict=True):
            if row.kind == kind:
                table.add_row(*_cells(row, detail))
        if table.row_count:
            console.print(table)
    for found in result.profiles:
        console.print(_profile_table(found))
    for what, words in ((result.skipped, "Left out"), (result.failed, "Failed")):
        for entry in what:
            console.print(f"{words}: {entry['workload']}. {entry['reason'].rstrip('.')}.", markup=False)


def _profile_table(found: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table(
        title=f"{found['workload']}, {found['kind']}: {found['step_s'] * 1e3:,.0f} ms a step (instructions: "
        f"{found['covered']:.0%}, of known operators: {found['attributed']:.0%})"
    )
    for column in ("by type", "share", "by operator", "share", "ms"):
        table.add_column(column, justify="right" if column in ("share", "ms") else "left")
    for by_type, share in zip_longest(found["by_type"], found["operators"]):
        table.add_row(
            f"{by_type['op_type']} {by_type['direction']}" if by_type else "",
            f"{by_type['share']:.1%}" if by_type else "",
            f"{share['operator']} {share['op_type']} {share['direction']}" if share else "",
            f"{share['share']:.1%}" if share else "",
            f"{share['seconds'] * 1e3:,.1f}" if share else "",
        )
    return table


def _cells(row: Row, detail: Detail) -> list[str]:
    wanted = "" if detail.least is None else f"≥ {detail.least:.1f}"
    if detail.aim is not None:
        wanted += f", aim {detail.aim:.1f}"
    return [
        row.workload,
        f"{row.ranks} x {row.threads}",
        row.baseline,
        _speed(row.ours_samples_per_s),
        _speed(row.baseline_samples_per_s),
        f"{row.ratio:.2f}",
        wanted,
        " ".join(f"{r:.2f}" for r in detail.ratios),
        f"{detail.ours_spread:.0%} / {detail.baseline_spread:.0%}",
        f"{row.memory_ratio:.2f}",
        "?" if detail.others_cpu_share is None else f"{detail.others_cpu_share:.0%}",
    ]


def _speed(samples_per_s: float) -> str:
    return f"{samples_per_s:,.0f}" if samples_per_s >= 100 else f"{samples_per_s:.3g}"
