"""Fits the three numbers of every framework to whole training steps that were published.

    python -m hpdlf.experiments.fit_software CASES.csv [--write] [--jobs N]

A row's time grows with a framework's factors on products, on rows and on communication. How much it grows with each (the *elasticity*)
is read off its simulation: the shares of the step in which devices compute products, compute anything else, or wait for
communication; the bubble of a pipeline goes with what fills it. To first order the logarithm of a row's time is linear in the
logarithms of the factors, so a ridge regression finds them, with Huber's weights (1964) against rows that something else is wrong
with. A gap between steps is a number of seconds: it adds its share of the step. Versions of a framework are drawn towards the
framework, frameworks towards the mean of all; what no row supports stays there. Every source weighs as the square root of its rows.
Since shares change with the factors, rows are simulated again and fitted twice.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import HpdlfError
from ..models.cost.segment import compute_workload
from ..models.cost.software import SOFTWARE_FILE, softwares
from ..sim.pricing import product_share
from .published.system_cases import Case, read_cases
from .published.system_prediction import predict
from .published.system_simulation import setting_of

__all__ = ["Row", "fit", "row_of"]

FACTORS = ("products", "rows", "communication")
ROWS = FACTORS.index("rows")
GAP = 0.1  # standard deviation of a gap between steps, in seconds
# Standard deviations of logarithms: of a version about its framework, of a framework about the mean of all, of the mean about 1,
# and of a row about its prediction.
VERSION, FRAMEWORK, MEAN, NOISE = 0.2, 0.3, 0.3, 0.08
HUBER = 1.5  # times the noise
ROUNDS = 2
TIMES = ("iteration_time", "time_to_train", "train_fwd_bwd_latency", "inference_latency", "device_hours")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """What a row says: by how much its measured time is longer than predicted (a logarithm), its elasticities, and a step's seconds."""

    case_id: str
    source: str
    software: str
    weight: float
    residual: float
    elasticity: tuple[float, float, float]
    step_s: float


Fitted = tuple[tuple[float, ...], float, int, float]


def row_of(case: Case) -> Row | None:
    """The row of a case; None where it cannot be simulated, measures no time, or does not count."""
    if case.weight <= 0 or not case.measured_value:
        return None
    try:
        setting = setting_of(case)
        found = predict(case).value
        forward = case.measured_quantity == "inference_latency"
        figures = (setting.forward() if forward else setting.train()).figures
    except HpdlfError:
        return None
    inverse = case.measured_quantity not in TIMES
    residual = np.log(case.measured_si / found.value)
    busy = max(figures.utilisation + figures.exposed_communication, 1e-9)
    device = figures.utilisation / busy
    products = _products(setting)
    return Row(
        case_id=case.case_id,
        source=case.source,
        software=setting.software.name,
        weight=case.weight,
        residual=float(-residual if inverse else residual),
        elasticity=(device * products, device * (1.0 - products), 1.0 - device),
        step_s=figures.step_s.value if not forward else float("inf"),
    )


def _products(setting: object) -> float:
    """The share of a device's time that is products, over a pass forward and back through the network."""
    cutter, strategy, software = setting._cutter, setting.strategy, setting.software  # type: ignore[attr-defined]
    graph = cutter.local(strategy).graph
    names = tuple(o.name for o in graph.operators if o.family != "collective")
    workload = compute_workload(
        graph,
        [(names, "forward"), (names, "backward")],
        batch=strategy.microbatch_samples,
        device=cutter.cluster.device,
        precision=strategy.precision,
        fuses=software.fuses,
    )
    return product_share(workload)


def fit(rows: Sequence[Row], now: Mapping[str, Sequence[float]], gaps: Mapping[str, float]) -> dict[str, Fitted]:
    """By software, the logarithms of its factors, the spread of what is left, how many rows it was fitted on, and its gap in seconds.

    now   the logarithms with which the rows were predicted
    gaps  the gaps with which they were, of the software that has one in place of a factor on rows
    """
    names = sorted(now)
    kinds = sorted({_framework(n) for n in names})
    width = len(FACTORS)
    # Unknowns: the mean of all, what frameworks add, what versions add.
    place = {("mean", ""): 0}
    place |= {("framework", k): width * (1 + i) for i, k in enumerate(kinds)}
    place |= {("version", n): width * (1 + len(kinds) + i) for i, n in enumerate(names)}
    place |= {("gap", n): width * (1 + len(kinds) + len(names)) + i for i, n in enumerate(sorted(gaps))}
    size = width * (1 + len(kinds) + len(names)) + len(gaps)
    design = np.zeros((len(rows), size))
    for i, row in enumerate(rows):
        for key in (("mean", ""), ("framework", _framework(row.software)), ("version", row.software)):
            design[i, place[key] : place[key] + width] = row.elasticity
            if row.software in gaps:
                design[i, place[key] + ROWS] = 0.0
        if row.software in gaps:
            design[i, place["gap", row.software]] = 1.0 / row.step_s
    target = np.array([r.residual + _explained(r, now[r.software], gaps.get(r.software, 0.0)) for r in rows])
    prior = np.concatenate(
        [
            np.full(width, MEAN),
            np.full(width * len(kinds), FRAMEWORK),
            np.full(width * len(names), VERSION),
            np.full(len(gaps), GAP),
        ]
    )
    many: dict[str, float] = {}
    for row in rows:
        many[row.source] = many.get(row.source, 0.0) + row.weight
    given = np.array([r.weight / np.sqrt(max(many[r.source], 1.0)) for r in rows]) / NOISE**2
    solved = np.zeros(size)
    for _ in range(25):
        off = np.abs(target - design @ solved)
        weights = given * np.minimum(1.0, HUBER * NOISE / np.maximum(off, 1e-12))
        solved = np.linalg.solve(design.T * weights @ design + np.diag(prior**-2), design.T @ (weights * target))
    left = target - design @ solved
    found = {}
    for name in names:
        mine = [i for i, r in enumerate(rows) if r.software == name]
        # A framework that nobody knows is the mean of all, whatever the rows say that do not name theirs.
        keys = (("mean", ""), *((("framework", _framework(name)), ("version", name)) if name != "any" else ()))
        total = np.sum([solved[place[key] : place[key] + width] for key in keys], axis=0)
        spread = _spread(left[mine]) if mine and name != "any" else float(np.hypot(FRAMEWORK, NOISE))
        if name in gaps:
            total[ROWS] = 0.0
        gap_s = max(float(solved[place["gap", name]]), 0.0) if name in gaps else 0.0
        found[name] = (tuple(float(v) for v in total), spread, len(mine), gap_s)
    return found


def _explained(row: Row, logarithms: Sequence[float], gap_s: float) -> float:
    """How much longer (a logarithm, to first order) a row takes for factors and a gap."""
    return float(np.dot(row.elasticity, logarithms)) + gap_s / row.step_s


# The same name over other compilers and devices is another framework.
APART = frozenset({"tensorflow tpu", "tensorflow gaudi"})


def _framework(name: str) -> str:
    if name in APART:
        return name
    return re.split(r"[ -]", name)[0]


def _spread(left: np.ndarray) -> float:
    """The standard deviation of what is left: with few rows, drawn towards that of a framework nobody measured."""
    few = 3.0
    return float(np.sqrt((np.sum(left**2) + few * 0.12**2) / (len(left) + few)))


def write(found: Mapping[str, Fitted], path: Path) -> None:
    """Put the numbers into the file, whose other lines stay as they are."""
    lines, name = [], ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if said := re.fullmatch(r'name = "(.*)"', line):
            name = said[1]
        factor = next((i for i, f in enumerate(FACTORS) if line.startswith(f"{f} = ")), None)
        gap = line.startswith("step_s = ")
        if name in found and (factor is not None or gap):
            logarithms, spread, count, gap_s = found[name]
            on = f"{count} published steps" if count else "what its kind has in common: no published step"
            value = gap_s if factor is None else float(np.exp(logarithms[factor]))
            line = f'{"step_s" if factor is None else FACTORS[factor]} = {{ value = {value:.4g}, spread = {spread:.3f}, on = "{on}" }}'
        lines.append(line)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def rows_of(cases: Iterable[Case], jobs: int) -> list[Row]:
    """All rows that say something."""
    if jobs == 1:
        return [row for case in cases if (row := row_of(case))]
    with ProcessPoolExecutor(jobs) as pool:
        return [row for row in pool.map(row_of, cases, chunksize=24) if row]


def left_out(rows: Sequence[Row], now: Mapping[str, Sequence[float]], gaps: Mapping[str, float]) -> float:
    """The mean over sources of the median error of a source's rows when its own rows were not fitted on."""
    errors = []
    for source in sorted({r.source for r in rows}):
        mine = [r for r in rows if r.source == source]
        found = fit([r for r in rows if r.source != source], now, gaps)
        off = [
            abs(
                np.expm1(
                    r.residual
                    + _explained(r, now[r.software], gaps.get(r.software, 0.0))
                    - _explained(r, found[r.software][0], found[r.software][3])
                )
            )
            for r in mine
        ]
        errors.append(float(np.median(off)))
    return float(np.mean(errors))


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(prog="python -m hpdlf.experiments.fit_software", description="Fit frameworks.")
    parser.add_argument("cases", type=Path, metavar="CASES.csv")
    parser.add_argument("--write", action="store_true", help="write the numbers into the package's file")
    parser.add_argument("--jobs", type=int, default=1)
    given = parser.parse_args()
    cases = [c for c in read_cases(given.cases) if c.group != "energy"]
    for turn in range(ROUNDS if given.write else 1):
        softwares.cache_clear()
        rows = rows_of(cases, given.jobs)
        now = {s.name: [float(np.log(getattr(s, f).value)) for f in FACTORS] for s in softwares()}
        gaps = {s.name: s.step_s.value for s in softwares() if s.step_s.spread}
        found = fit(rows, now, gaps)
        off = np.abs([r.residual for r in rows])
        print(
            f"round {turn}: {len(rows)} rows, median error before {np.expm1(np.median(off)):.3f}; "
            f"each source left out, mean of medians {left_out(rows, now, gaps):.3f}"
        )
        for name, (logarithms, spread, count, gap_s) in sorted(found.items()):
            values = "  ".join(f"{f} {np.exp(v):.2f}" for f, v in zip(FACTORS, logarithms, strict=True))
            print(f"  {name:22s} {values}  gap {1e3 * gap_s:.1f} ms  spread {spread:.2f}  rows {count}")
        if given.write:
            write(found, SOFTWARE_FILE)


if __name__ == "__main__":
    main()
