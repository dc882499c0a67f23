"""Fitting what ships as ``models/cost/lowering_times.json``: how long each way to compute an operator takes.

``python -m hpdlf.experiments.fit_lowerings DATABASE ...`` reads the timings that ``measure_lowerings`` left there (of all
databases, which were measured on one machine) and finds the thetas of every way by :func:`.nonnegative.fit_logarithms`. The
same timings give the same file.

``--networks DATABASE ...`` names databases that ``hpdlf tune`` filled. They show what the choice is worth where it counts: for the
report nothing is fitted to them, and what ships is fitted to everything. The report has for drawn shapes (each fifth predicted
by the thetas of the others) and for networks the median error of the predicted seconds, and the *regret*: the time of the ways
that would be taken over that of the fastest, summed over everything measured; beside it that of XLA's own ways.
"""

from __future__ import annotations

import argparse
import json
import sys
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError, HpdlfError
from ..exec.tuning import LONG_S
from ..models.cost import ObservationDatabase
from ..models.cost.lowering_terms import ARITHMETIC, group_of
from ..models.cost.lowering_times import (
    ALONE,
    CALL_S,
    FORMAT,
    LOWERING_TIMES_FILE,
    VERSION,
    LoweringTimes,
    shared_and_alone,
)
from ..models.cost.lowerings import Direction, Shape, among_others, family_of, shape_named, ways
from ..models.cost.observations import lowering_of
from .nonnegative import fit_logarithms

__all__ = ["Timing", "choices", "fit_thetas", "left_out", "main", "read_timings"]

SCATTER = 0.05
# What a call costs beside the work differs from call to call; ways that were given up after few calls were timed badly.
SHORT_S, SHORT_NOISE = 1e-4, 0.25
FEW, FEW_NOISE = 5, 0.1
FOLDS = 5
# Thetas of a way that was timed fewer times say nothing.
LEAST = 12
# Choices between ways that all take less are not worth a word.
COUNTS_S = 1e-4


@dataclass(frozen=True, kw_only=True)
class Timing:
    """A way that was timed, with so many threads and kernels by one of XLA's generators; the relative spread of its repeats."""

    shape: Shape
    direction: Direction
    way: str
    threads: int
    seconds: float
    noise: float
    older: bool = False

    @property
    def group(self) -> str:
        """Under which its thetas are learned."""
        return group_of(self.shape, self.direction, self.way, older=self.older)


def read_timings(paths: Iterable[Path]) -> list[Timing]:
    """What databases hold of ways that there are, the newest of each, in the order of keys.

    Raises:
        DataError: a database cannot be read, or the timings are of several machines.
    """
    rows = sorted((o for path in paths for o in ObservationDatabase(path).all_lowerings()), key=lambda o: o.time)
    if len(machines := {o.machine for o in rows}) > 1:
        raise DataError(
            f"The timings are of {len(machines)} machines ({', '.join(sorted(machines))}): fit those of one."
        )
    found = {}
    for o in rows:
        key, side, way = lowering_of(o.key)
        direction: Direction = side  # type: ignore[assignment]
        try:
            shape = shape_named(key)
        except ValueError:  # of another version
            continue
        few = o.repeats < 2 and o.seconds < LONG_S  # a short first call says nothing
        if o.conditions.get("dtype") != "float32" or few or way not in ways(shape, direction):
            continue
        noise = (o.high_s - o.low_s) / (2 * 1.282 * o.seconds)  # between the 10th and the 90th percentile
        noise += SHORT_NOISE * (o.seconds < SHORT_S) + FEW_NOISE * (o.repeats < FEW)
        threads, older = int(o.conditions["threads"]), o.conditions.get("kernels") == "older"
        found[o.key, threads, older] = Timing(
            shape=shape,
            direction=direction,
            way=way,
            threads=threads,
            seconds=o.seconds,
            noise=min(noise, 0.5),
            older=older,
        )
    return [found[key] for key in sorted(found)]


def fit_thetas(timings: Sequence[Timing]) -> dict[str, dict[str, float]]:
    """Thetas by group and term, of the groups that were timed for enough shapes."""
    groups: dict[str, list[Timing]] = {}
    for timing in timings:
        groups.setdefault(timing.group, []).append(timing)
    return {name: _thetas(rows) for name, rows in sorted(groups.items()) if len(rows) >= LEAST}


def _thetas(rows: Sequence[Timing]) -> dict[str, float]:
    parts = [shared_and_alone(r.shape, r.direction, r.way, threads=r.threads) for r in rows]
    names = sorted({name for part in parts for name in part})
    design = np.array([[part.get(name, 0.0) for name in names] for part in parts])
    seconds = np.maximum(np.array([r.seconds for r in rows]) - CALL_S, 2e-6)
    trust = 1.0 / np.sqrt(SCATTER**2 + np.array([r.noise for r in rows]) ** 2)
    means, spreads = (np.array(v) for v in zip(*map(_prior, names), strict=True))
    theta = fit_logarithms(design, seconds, trust=trust, means=means, spreads=spreads)
    return {name: float(f"{value:.4g}") for name, value in zip(names, theta, strict=True) if value > 1e-6}


def _prior(name: str) -> tuple[float, float]:
    """Mean and spread of a theta: that threads share arithmetic and traffic is likely, all else may be nothing."""
    if name == "f":
        return 0.5, 0.5
    plain = not name.endswith(ALONE) and "_" not in name and name not in ARITHMETIC
    return (0.3 if plain else 0.0), 3.0


def known_groups() -> set[str]:
    """What the shipped file knows of, and a new one has to."""
    return set(LoweringTimes.default().thetas)


def left_out(timings: Sequence[Timing]) -> list[tuple[Timing, float]]:
    """Each timing with the seconds that the thetas of other shapes predict; those of groups that few were timed of are passed over."""
    found = []
    for fold in range(FOLDS):
        out = [t for t in timings if zlib.crc32(t.shape.key.encode()) % FOLDS == fold]
        inside = set(map(id, out))
        times = LoweringTimes(fit_thetas([t for t in timings if id(t) not in inside]), 1.0)
        found += predicted(times, out)
    return found


def predicted(times: LoweringTimes, timings: Iterable[Timing]) -> list[tuple[Timing, float]]:
    """Each timing of a known group with its predicted seconds."""
    return [
        (t, sum(times.parts(t.shape, t.direction, t.way, threads=t.threads, older=t.older)))
        for t in timings
        if t.group in times.thetas
    ]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A direction of a shape that several ways were timed of: seconds measured and predicted by way."""

    shape: Shape
    direction: Direction
    threads: int
    measured: Mapping[str, float]
    predicted: Mapping[str, float]

    @property
    def taken(self) -> str:
        """The way that would be taken, of those that were timed (as :func:`..models.cost.lowerings.expected_way`)."""
        if "matmul" in self.predicted:
            return "matmul"
        factor = partial(among_others, self.shape, self.direction)
        return min(self.predicted, key=lambda way: self.predicted[way] * factor(way))

    @property
    def best_s(self) -> float:
        """The least measured."""
        return min(self.measured.values())


def choices(rows: Iterable[tuple[Timing, float]]) -> list[Choice]:
    """What there is to choose, where the best takes :data:`COUNTS_S` or more."""
    found: dict[tuple[Shape, Direction, int, bool], list[tuple[Timing, float]]] = {}
    for timing, seconds in rows:
        asked = timing.shape, timing.direction, timing.threads, timing.older
        found.setdefault(asked, []).append((timing, seconds))
    made = [
        Choice(
            shape=shape,
            direction=direction,
            threads=threads,
            measured={t.way: t.seconds for t, _ in several},
            predicted={t.way: s for t, s in several},
        )
        for (shape, direction, threads, _), several in found.items()
        if len(several) > 1
    ]
    return [c for c in made if c.best_s >= COUNTS_S]


def regrets(rows: Sequence[tuple[Timing, float]]) -> dict[str, dict[str, float]]:
    """By family and direction, and for all: how much longer the ways that are taken take than the best, and XLA's own."""
    lots: dict[str, list[Choice]] = {}
    for choice in choices(rows):
        for name in ("all", f"{family_of(choice.shape).name} {choice.direction}"):
            lots.setdefault(name, []).append(choice)
    found = {}
    for name, lot in sorted(lots.items()):
        best = np.array([c.best_s for c in lot])
        taken = np.array([c.measured[c.taken] for c in lot])
        own = [c for c in lot if "xla" in c.measured]
        found[name] = {
            "n": len(lot),
            "of_time": _short(taken.sum() / best.sum()),
            "of_a_choice": _short(float(np.exp(np.log(taken / best).mean()))),
            "of_time_by_xla": _short(sum(c.measured["xla"] for c in own) / sum(c.best_s for c in own)) if own else 0.0,
        }
    return found


def errors(rows: Iterable[tuple[Timing, float]]) -> dict[str, dict[str, float]]:
    """By group: of how many timings, the median error of predicted seconds, and the error that nine in ten stay below."""
    lots: dict[str, list[float]] = {}
    for timing, seconds in rows:
        lots.setdefault(timing.group, []).append(abs(float(np.log(seconds / timing.seconds))))
    return {
        name: {"n": len(lot), "median": _short(np.median(lot)), "nine_in_ten": _short(np.quantile(lot, 0.9))}
        for name, lot in sorted(lots.items())
    }


def _short(value: float) -> float:
    return float(f"{value:.3g}")


def report_of(
    timings: Sequence[Timing], networks: Mapping[str, Sequence[Timing]], times: LoweringTimes
) -> dict[str, Any]:
    """How well shapes are predicted that the thetas have not seen."""
    outside = left_out(timings)
    return {
        "timings": len(timings),
        "errors": errors(outside),
        "regret": regrets(outside),
        "networks": {name: regrets(predicted(times, rows)) for name, rows in networks.items()},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m hpdlf.experiments.fit_lowerings", description=__doc__)
    parser.add_argument("measured", nargs="+", type=Path)
    parser.add_argument("--networks", nargs="+", type=Path, default=[])
    parser.add_argument("--out", type=Path, default=LOWERING_TIMES_FILE)
    options = parser.parse_args(arguments)
    try:
        timings = read_timings(options.measured)
        networks = {path.stem: read_timings([path]) for path in options.networks}
    except HpdlfError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    thetas = fit_thetas(timings)
    if short := sorted(({t.group for t in timings} | known_groups()) - set(thetas)):
        sys.stderr.write(
            f"Too little is known of {', '.join(short)}: each wants {LEAST} timings. Measure more: `python -m "
            "hpdlf.experiments.measure_lowerings` with another --seed.\n"
        )
        return 1
    if {1} >= {t.threads for t in timings} or 1 not in {t.threads for t in timings}:
        sys.stderr.write("Timings of one thread are wanted, and of several: measure with another --threads as well.\n")
        return 1
    # Of linear layers on one core, at the rate that one in twenty exceeds.
    rates = [
        t.shape.flops / t.seconds for t in timings if t.threads == 1 and t.way == "xla" and t.group.startswith("linear")
    ]
    rate = float(f"{np.quantile(rates, 0.95):.3g}")
    report = report_of(timings, networks, LoweringTimes(thetas, rate))
    thetas = fit_thetas([*timings, *(t for rows in networks.values() for t in rows)])
    said = {"format": FORMAT, "version": VERSION, "flops_per_s": rate, "report": report, "thetas": thetas}
    options.out.write_text(json.dumps(said, indent=1, sort_keys=True) + "\n")
    sys.stdout.write(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
