"""How well the shipped cost model predicts published measurements of operators, networks, energy and power.

``python -m hpdlf.experiments.validate_operators DIR [--json]`` reads the tables that DIR holds, named as the readers of
:mod:`hpdlf.experiments.published` say, and predicts each row with the model that ships with the package; nothing is
fitted. What cannot be predicted is refused with its reason and counts as an error of 1.

A row of the report is a file, device and operator; a network is the sum over the operators of a case of
``neusight/model_layers.csv``, each as often as the table counts it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import DataError, ProfileError
from ..hwprofiles import Device, load_device
from ..models.cost.operation import Operation
from ..models.cost.operator_times import OperatorTimes
from ..models.cost.traits import traits_of
from .published import neusight
from .published.measured import Measured
from .published.operators import READERS
from .scoring import summarise

__all__ = ["main", "networks", "validate"]


class _Predicted(NamedTuple):
    """Seconds and their interval, or why there are none."""

    seconds: float
    low_s: float
    high_s: float
    refused: str = ""


def validate(folder: Path) -> dict[str, Any]:
    """The report of everything that `folder` holds: {"rows": [...], "networks": [...]}.

    Raises:
        DataError: the folder holds none of the tables, or one cannot be read.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: is no folder. Give one laid out as neusight/gemm.csv, zeus_nsdi23/... and so on.")
    model = OperatorTimes.default()
    rows: list[dict[str, Any]] = []
    for reader in READERS:
        measured = [m for m in reader(folder) if m.seconds > 0]
        rows += _score(measured, model)
    layers = list(neusight.layer_rows(folder))
    rows += _score(list(chain.from_iterable(_of_layer(row) for row in layers)), model)
    from .validate_energy import rows as energy_rows

    rows += energy_rows(folder)
    if not rows:
        raise DataError(
            f"{folder}: holds none of the tables that are known (neusight/gemm.csv, deepbench/gemm.csv, ...)."
        )
    return {"rows": rows, "networks": networks(layers, model)}


def _of_layer(row: neusight.LayerRow) -> Iterator[Measured]:
    for phase, operations, seconds in (
        ("forward", row.forward, row.forward_s),
        ("backward", row.backward, row.backward_s),
    ):
        if seconds > 0:
            yield Measured(
                "neusight/model_layers.csv",
                row.device,
                phase,
                neusight.IN_NETWORK,
                operations,
                seconds,
                row.where,
                row.case,
            )


def _score(measured: Sequence[Measured], model: OperatorTimes) -> list[dict[str, Any]]:
    predicted = _predict([(m.device, m.context, m.operations) for m in measured], model)
    groups: dict[tuple[str, str, str], list[int]] = {}
    for i, m in enumerate(measured):
        groups.setdefault((m.file, m.device, m.op), []).append(i)
    found = []
    for (file, device, op), places in sorted(groups.items()):
        said = [i for i in places if not predicted[i].refused]
        found.append(
            summarise(
                file=file,
                device=device,
                op=op,
                measured=[measured[i].seconds for i in said],
                predicted=[predicted[i].seconds for i in said],
                low=[predicted[i].low_s for i in said],
                high=[predicted[i].high_s for i in said],
                refused=Counter(predicted[i].refused for i in places if predicted[i].refused),
            )
        )
    return found


Asked = tuple[str, str, tuple[Operation, ...]]


def _predict(asked: Sequence[Asked], model: OperatorTimes) -> list[_Predicted]:
    """Predictions in the order asked: (device, software, operations one after the other)."""
    found: list[_Predicted | None] = [None] * len(asked)
    devices: dict[str, Device | str] = {}
    batches: dict[tuple[str, str], list[int]] = {}
    for i, (name, context, operations) in enumerate(asked):
        if name not in devices:
            try:
                devices[name] = load_device(name)
            except ProfileError as error:
                devices[name] = f"no profile: {error}"
        device = devices[name]
        if isinstance(device, str):
            found[i] = _Predicted(0, 0, 0, device)
            continue
        try:
            for precision in {o.precision for o in operations}:
                traits_of(device, precision)
        except ProfileError as error:
            found[i] = _Predicted(0, 0, 0, str(error))
            continue
        batches.setdefault((name, context), []).append(i)
    for (name, context), places in batches.items():
        device = devices[name]
        assert isinstance(device, Device)
        flat = [o for i in places for o in asked[i][2]]
        times = model.times(flat, device, context=context)
        least = model.launch(context, "elementwise", device)
        at = 0
        for i in places:
            size = len(asked[i][2])
            parts = slice(at, at + size)
            at += size
            if size:
                seconds, low_s, high_s = (float(np.sum(column[parts])) for column in times[:3])
                found[i] = _Predicted(seconds, low_s, high_s)
            else:
                # Nothing to compute, but a call all the same.
                found[i] = _Predicted(least, 0.2 * least, 1.5 * least)
    return [f for f in found if f is not None]


def networks(layers: Iterable[neusight.LayerRow], model: OperatorTimes) -> list[dict[str, Any]]:
    """A row a network: the sums over its operators, measured and predicted; `refused` in place of a prediction."""
    cases: dict[tuple[str, str], list[neusight.LayerRow]] = {}
    for row in layers:
        cases.setdefault((row.device, row.case), []).append(row)
    found = []
    for (device, case), rows in sorted(cases.items()):
        phase = "training" if any(r.backward_s > 0 for r in rows) else "inference"
        measured_s = predicted_s = 0.0
        refused = ""
        for time, pick in _PHASES[phase]:
            chosen = [(r, pick(r)) for r in rows if time(r) > 0]
            for (row, _), answer in zip(
                chosen,
                _predict([(device, neusight.IN_NETWORK, operations) for _, operations in chosen], model),
                strict=True,
            ):
                measured_s += row.times * time(row)
                predicted_s += row.times * answer.seconds
                refused = refused or answer.refused
        found.append(
            {
                "device": device,
                "case": case,
                "phase": phase,
                "measured_s": measured_s,
                "predicted_s": None if refused else predicted_s,
                **({"refused": refused} if refused else {}),
            }
        )
    return found


_Time = Callable[[neusight.LayerRow], float]
_Pick = Callable[[neusight.LayerRow], tuple[Operation, ...]]
_FORWARD: tuple[_Time, _Pick] = (lambda r: r.forward_s, lambda r: r.forward)
_BACKWARD: tuple[_Time, _Pick] = (lambda r: r.backward_s, lambda r: r.backward)
_PHASES = {"inference": (_FORWARD,), "training": (_FORWARD, _BACKWARD)}


def _table(report: dict[str, Any]) -> str:
    def share(value: float | None) -> str:
        return "–" if value is None else f"{100 * value:.1f}%"

    lines = [
        f"{'file':34} {'device':16} {'operator':26} {'n':>7} {'median':>7} {'p90':>7} {'bias':>7} {'cover':>6} {'width':>6}"
    ]
    for row in report["rows"]:
        width = "–" if row["relative_width"] is None else f"{row['relative_width']:.2f}"
        lines.append(
            f"{row['file']:34} {row['device']:16} {row['op'][:26]:26} {row['n']:7} {share(row['median_ape']):>7} "
            f"{share(row['p90_ape']):>7} {share(row['bias']):>7} {share(row['coverage90']):>6} {width:>6}"
        )
        for reason, count in row["refused"].items():
            lines.append(f"    {count} refused: {reason}")
    for network in report["networks"]:
        said = network["predicted_s"]
        beside = "refused" if said is None else f"{said * 1e3:9.2f} ms {share(said / network['measured_s'] - 1):>7}"
        lines.append(
            f"{network['device']:16} {network['case']:28} {network['phase']:9} {network['measured_s'] * 1e3:9.2f} ms  {beside}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m hpdlf.experiments.validate_operators", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("data", type=Path, metavar="DIR", help="folder with neusight/, deepbench/ and so on")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    chosen = parser.parse_args(arguments)
    try:
        report = validate(chosen.data)
    except DataError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(json.dumps(report, indent=1) if chosen.json else _table(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
