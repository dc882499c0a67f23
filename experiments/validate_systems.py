"""How well measured systems are predicted: ``python -m hpdlf.experiments.validate_systems CASES.csv [--json] [--jobs N]``.

CASES.csv holds one measured value of a training system a row (:mod:`.published.system_cases`). Every row is simulated: its network
from the zoo, its cluster from the profiles, its strategy by the rules of ``published/system_text.py`` (what words mean) and
``system_strategy.py`` (what a row does not say). A row that cannot be simulated is refused with one sentence and counts as an error
of 100 %.

Printed are, per group of rows and over all: rows, refused ones, median and 90th percentile of the absolute relative error, the bias
(median relative error), the share of measurements inside the 90 % interval and the median width of that interval over the
prediction; then the same per source, whose medians are averaged; the rank correlation inside each source and model; and the error of
peak memory where it was published. Rows count by their weight. ``--json`` writes groups and rows to the standard output instead.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..errors import HpdlfError
from ..exec.affinity import allowed_cpus
from .published.system_cases import Case, read_cases
from .system_scores import Row, score

__all__ = ["main", "validate"]


def validate(cases: Sequence[Case], *, jobs: int = 1) -> list[Row]:
    """One scored row a case, in their order. Rows that share a network go to the same process, so that what is built once serves all."""
    if jobs <= 1:
        return [_row(case) for case in cases]
    from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
    from multiprocessing import get_context

    groups: dict[tuple[Any, ...], list[int]] = {}
    for index, case in enumerate(cases):
        groups.setdefault((case.model, case.layers, case.hidden, case.hardware, case.framework), []).append(index)
    rows: dict[int, Row] = {}
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        started = [(indices, pool.submit(_rows, [cases[i] for i in indices])) for indices in groups.values()]
        for indices, future in started:
            try:
                found = future.result()
            except BrokenExecutor:  # a process was killed, for want of memory say: its rows are refused, not all
                found = [Row(case=cases[i], refused="the process that simulated this row was killed.") for i in indices]
            rows |= dict(zip(indices, found, strict=True))
    return [rows[index] for index in range(len(cases))]


def _rows(cases: Sequence[Case]) -> list[Row]:
    return [_row(case) for case in cases]


def _row(case: Case) -> Row:
    """A case with its prediction, or why there is none: whatever goes wrong in one row must not end the others."""
    from .published.system_prediction import predict

    try:
        found = predict(case)
        value = found.value
        if not 0.0 < value.value < float("inf"):
            return Row(case=case, refused=f"the simulation came to {value.value:g}.")
        return Row(
            case=case,
            predicted=value.value,
            low=value.low,
            high=value.high,
            peak_bytes=found.peak_bytes,
            how=f"{found.setting.cluster.name}: {found.setting.strategy}",
        )
    except HpdlfError as error:
        return Row(case=case, refused=_sentence(str(error)))
    except Exception as error:
        return Row(case=case, refused=_sentence(f"{type(error).__name__}: {error}"))


def _sentence(text: str) -> str:
    return " ".join(text.split())[:400]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(description="how well measured systems are predicted")
    parser.add_argument("cases", type=Path, help="a table laid out like system_cases_dev.csv")
    parser.add_argument("--json", action="store_true", help="write groups and rows as JSON instead of tables")
    parser.add_argument(
        "--jobs", type=int, default=0, help="processes (default: as many as there are cores, at most 8)"
    )
    parser.add_argument("--only", metavar="TEXT", help="only rows whose id or source begins so")
    parser.add_argument("--rows", action="store_true", help="print every row, too")
    options = parser.parse_args(arguments)
    try:
        cases = read_cases(options.cases)
    except HpdlfError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    if options.only:
        cases = [
            case for case in cases if case.case_id.startswith(options.only) or case.source.startswith(options.only)
        ]
    rows = validate(cases, jobs=options.jobs or _cores())
    report = score(rows)
    if options.json:
        json.dump({"rows": [row.to_dict() for row in rows], **report}, sys.stdout, indent=1, allow_nan=False)
        sys.stdout.write("\n")
        return 0
    if options.rows:
        _print([row.to_dict() | {"how": row.how} for row in rows])
    for name in ("groups", "sources", "ranks"):
        sys.stdout.write(f"\n{name}\n")
        _print(report[name])
    sys.stdout.write("\n" + "\n".join(f"{name}: {_text(value)}" for name, value in report["overall"].items()) + "\n")
    return 0


def _cores() -> int:
    return min(8, len(allowed_cpus()))


def _print(rows: Iterable[dict[str, Any]]) -> None:
    table = list(rows)
    if not table:
        sys.stdout.write("none\n")
        return
    cells = [list(table[0])] + [[_text(value) for value in row.values()] for row in table]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    for row in cells:
        sys.stdout.write("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n")


def _text(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
