"""Fitting what ships as ``models/cost/cpu_terms.json``: what one core spends the time of operations on.

``python -m hpdlf.experiments.fit_cpu_terms MEASURED ...`` reads what ``python -m hpdlf.exec.microbenchmarks_compute
operators`` printed (JSON lines; the same case in several files counts as one, with its quickest median) and finds the
thetas by :func:`.nonnegative.fit_logarithms`, weakly held to what arithmetic and traffic alone would take. The same input gives
the same file.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any

import numpy as np

from ..exec.microbenchmarks_chains import Case
from ..hwprofiles import load_device
from ..models.cost.cpu_terms import CPU_TERMS_FILE, FORMAT, VERSION, CpuTerms, generic, terms
from ..models.cost.operation import Operation
from .calibration import workload_of_case
from .nonnegative import fit_logarithms

__all__ = ["Row", "fit_thetas", "main", "read_rows"]

CALL_S = 1.2e-5
SCATTER = 0.05
# Prior mean and spread of a theta: arithmetic at the reference core's rate is likely, all else may be nothing.
PRIORS = {"f": (1.0, 0.5), "bytes": (0.3, 3.0), "elements": (0.3, 3.0)}
LOOPS = ("conv depthwise", "conv grouped", "conv transposed")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A timed case: its operations, seconds, and the relative spread of its repeats."""

    case: Case
    operations: tuple[Operation, ...]
    seconds: float
    noise: float


def read_rows(paths: Iterable[Path]) -> list[Row]:
    """The cases in files of JSON lines, each once."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for path in paths:
        for line in path.read_text().splitlines():
            message = json.loads(line) if line.startswith("{") else {}
            if message.get("kind") == "case":
                found.setdefault(Case(**message["case"]).text, []).append(message)
    core = load_device("generic-x86-core")
    rows = []
    for messages in found.values():
        case = Case(**messages[0]["case"])
        best = min(messages, key=lambda m: m["seconds"])
        apart = log(max(m["seconds"] for m in messages) / best["seconds"])
        noise = (best["high_s"] - best["low_s"]) / (2 * 1.645 * best["seconds"])
        rows.append(
            Row(
                case=case,
                operations=workload_of_case(case, core).operations,
                seconds=best["seconds"],
                noise=max(noise, 0.3 * min(apart, 0.5)),
            )
        )
    return rows


def fit_thetas(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Thetas by group and term, and for every family and phase the mean of its kinds (see ``generic``)."""
    sums: list[dict[tuple[str, str], float]] = []
    for row in rows:
        parts: dict[tuple[str, str], float] = {}
        for operation in row.operations:
            group, found = terms(operation)
            for name, seconds in found.items():
                parts[group, name] = parts.get((group, name), 0.0) + seconds
        sums.append(parts)
    names = sorted({key for parts in sums for key in parts})
    place = {key: i for i, key in enumerate(names)}
    design = np.zeros((len(rows), len(names)))
    for i, parts in enumerate(sums):
        for key, seconds in parts.items():
            design[i, place[key]] = seconds
    wanted = np.maximum(np.array([row.seconds for row in rows]) - CALL_S, 2e-6)
    trust = 1.0 / np.sqrt(SCATTER**2 + np.array([row.noise for row in rows]) ** 2)
    means, spreads = (np.array(v) for v in zip(*(_prior(*key) for key in names), strict=True))
    theta = fit_logarithms(design, wanted, trust=trust, means=means, spreads=spreads)
    found_thetas: dict[str, dict[str, float]] = {}
    for (group, name), value in zip(names, theta, strict=True):
        found_thetas.setdefault(group, {})[name] = float(f"{value:.4g}")
    return found_thetas | _generic(found_thetas)


def _prior(group: str, name: str) -> tuple[float, float]:
    if group.startswith(LOOPS):
        return (1.0, 3.0) if name == "dense" else (0.3, 30.0)
    if name == "f" and not group.startswith(("conv ", "matmul ", "attention ", "rnn ")):
        return 0.0, 10.0
    return PRIORS.get(name, (0.0, 3.0))


def _generic(thetas: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    families: dict[str, list[Mapping[str, float]]] = {}
    for group, found in thetas.items():
        families.setdefault(generic(group), []).append(found)
    return {
        name: {
            term: float(f"{np.mean([m.get(term, 0.0) for m in members]):.4g}")
            for term in sorted({t for m in members for t in m})
        }
        for name, members in sorted(families.items())
    }


def errors(rows: Sequence[Row], thetas: Mapping[str, Mapping[str, float]]) -> np.ndarray:
    """Logarithms of predicted over measured."""
    known = CpuTerms(thetas)
    predicted = [sum(known.seconds(o) or 0.0 for o in row.operations) + CALL_S for row in rows]
    return np.log(np.array(predicted) / np.array([row.seconds for row in rows]))


def left_out(rows: Sequence[Row], folds: int = 5) -> np.ndarray:
    """The same with each row predicted by thetas fitted on the others; regions of sizes stay together."""
    kinds = sorted({_region(row) for row in rows})
    found = np.zeros(len(rows))
    for fold in range(folds):
        out = [i for i, row in enumerate(rows) if kinds.index(_region(row)) % folds == fold]
        rest = [row for i, row in enumerate(rows) if i not in set(out)]
        found[out] = errors([rows[i] for i in out], fit_thetas(rest))
    return found


def _region(row: Row) -> str:
    """Cases of one kind whose largest size is the same."""
    sizes = [v for v in row.case.sizes.values() if isinstance(v, int)]
    return f"{row.case.kind} {max(sizes)} {row.case.sizes.get('r', '')}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m hpdlf.experiments.fit_cpu_terms", description=__doc__)
    parser.add_argument("measured", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=CPU_TERMS_FILE)
    options = parser.parse_args(arguments)
    rows = read_rows(options.measured)
    thetas = fit_thetas(rows)
    inside, outside = errors(rows, thetas), left_out(rows)
    report: dict[str, Any] = {"cases": len(rows), "median_error": float(f"{np.median(np.abs(inside)):.3g}")}
    kinds = sorted({row.case.kind for row in rows})
    report["left_out"] = {
        kind: {
            "n": int(mask.sum()),
            "median": float(f"{np.median(np.abs(outside[mask])):.3g}"),
            "bias": float(f"{np.median(outside[mask]):.3g}"),
        }
        for kind in kinds
        if (mask := np.array([row.case.kind == kind for row in rows])).any()
    }
    text = json.dumps(
        {"format": FORMAT, "version": VERSION, "report": report, "thetas": thetas}, indent=1, sort_keys=True
    )
    options.out.write_text(text + "\n")
    sys.stdout.write(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
