"""Fits the energy of CPU layers (:mod:`hpdlf.models.cost.cpu_energy`); part of ``python -m hpdlf.experiments.fit_power``.

Intervals and the report come from data left out: each network in turn with all of its rows, and fifths of the random
configurations.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..hwprofiles import Device, load_device
from ..models.cost.cpu_energy import (
    FORMAT,
    VERSION,
    KindModel,
    base_terms,
    kind_of,
    predict_seconds,
    predict_watts,
    regime,
    rows_of,
    summed,
    utilisations,
)
from ..models.cost.operation import Operation
from ..models.cost.power import Energy
from ..models.cost.trees import Forest
from .published.getzner import DEVICES, LayerEnergy, layers

__all__ = ["fit_cpu_energy", "forest_to_plain", "grow", "left_out"]

# Trees, their depth and leaves, and the learning rate per kind of layer; the kinds with less to learn get less.
_TREES: Mapping[str, tuple[int, int, int, float]] = {
    "conv": (300, 5, 8, 0.06),
    "maxpool": (200, 4, 8, 0.06),
    "linear": (200, 4, 8, 0.06),
    "elementwise": (100, 4, 8, 0.08),
    "inplace": (60, 3, 6, 0.1),
    "softmax": (80, 3, 6, 0.1),
    "adaptive_avgpool": (20, 2, 4, 0.2),
    "view": (1, 1, 2, 0.1),
}
_FOLDS = 5
COVERAGE = (0.05, 0.95)


class _Row(NamedTuple):
    """Repetitions of one layer in one run of the source: medians, and every measurement of joules."""

    operation: Operation
    network: str
    file: str
    seconds: float
    joules: float
    all_joules: tuple[float, ...]


def grow(x: NDArray[Any], y: NDArray[Any], *, trees: int, depth: int, leaves: int, rate: float) -> Any:
    """Boosted trees of scikit-learn on absolute errors' robust kin: squared errors of logarithms, small leaves."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    model = HistGradientBoostingRegressor(
        max_iter=trees, learning_rate=rate, max_depth=depth, max_leaf_nodes=leaves, min_samples_leaf=5,
        early_stopping=False, random_state=0,
    )  # fmt: skip
    return model.fit(x, y)


def forest_to_plain(forest: Forest) -> dict[str, Any]:
    """The arrays of a forest as lists with five digits, for a JSON file."""
    plain: dict[str, Any] = {}
    for name, array in forest.arrays().items():
        if array.dtype.kind == "f":
            plain[name] = _rounded(np.asarray(array, dtype=float))
        else:
            plain[name] = array.tolist()
    return plain


def _rounded(array: NDArray[Any]) -> Any:
    if array.ndim == 0:
        return float(f"{float(array):.9g}")
    if array.ndim > 1:
        return [_rounded(part) for part in array]
    # Thresholds keep their digits: a row must not change sides.
    return [float(f"{v:.9g}") for v in array.tolist()]


def fit_cpu_energy(folder: Path) -> dict[str, Any]:
    """The parameter file as plain values.

    Raises:
        DataError: the table cannot be read.
    """
    measured = list(layers(folder))
    cpu = load_device(DEVICES["Gold 5120"])
    assert cpu.limit_w is not None, "the profile of the measured processor has its limit"
    by_kind = _rows(measured)
    kinds, report = {}, {}
    unseen: dict[tuple[Operation, str, str], Energy] = {}
    for kind, rows in sorted(by_kind.items()):
        predicted = left_out(kind, rows, cpu)
        model = _fit_kind(kind, rows, cpu)
        intervals = _intervals(rows, predicted)
        for row, joules in zip(rows, predicted.tolist(), strict=True):
            low, high = intervals.get(regime(row.operation), intervals["any"])
            unseen[row.operation, row.network, row.file] = Energy(joules, joules * low, joules * high)
        kinds[kind] = {
            "terms": [float(f"{v:.6g}") for v in model.terms],
            "constant_s": float(f"{model.constant_s:.6g}"),
            "watts": [float(f"{v:.6g}") for v in model.watts],
            "forest": forest_to_plain(model.forest),
            "interval": intervals,
        }
        report[kind] = _report(rows, predicted)
    common, report["whole networks"] = _networks(measured, unseen)
    report["layers of a network"] = _layers_of_networks(by_kind, unseen)
    return {
        "format": FORMAT,
        "version": VERSION,
        "source": "Getzner et al., ICLR workshop 2023 (JohannesGetzner/dl-energy-estimator)",
        "device": cpu.name,
        "packages": 2,
        "limit_w": cpu.limit_w.value,
        "common": common,
        "report": report,
        "kinds": kinds,
    }


def _rows(measured: Sequence[LayerEnergy]) -> dict[str, list[_Row]]:
    grouped: dict[tuple[Operation, str, str], list[LayerEnergy]] = defaultdict(list)
    for m in measured:
        if len(m.operations) == 1 and m.place != 0:
            grouped[m.operations[0], m.network, m.run.partition(" #")[0]].append(m)
    found: dict[str, list[_Row]] = defaultdict(list)
    for (operation, network, file), group in grouped.items():
        kind = kind_of(operation)
        if kind is not None:
            seconds = float(np.median([m.seconds for m in group]))
            joules = tuple(m.joules for m in group)
            found[kind].append(_Row(operation, network, file, seconds, float(np.median(joules)), joules))
    return found


def _fit_kind(kind: str, rows: Sequence[_Row], cpu: Device) -> KindModel:
    from scipy.optimize import nnls

    operations = [r.operation for r in rows]
    seconds = np.array([r.seconds for r in rows])
    trees, depth, leaves, rate = _TREES[kind]
    if kind == "view":
        terms, constant = [0.0] * 4, float(np.median(seconds))
    else:
        # Relative errors, so that a layer of a millisecond counts like one of a minute.
        raw = np.array([base_terms(o, cpu) for o in operations])
        found, _ = nnls(raw / seconds[:, None], np.ones(len(seconds)))
        terms, constant = [float(f"{v:.6g}") for v in found], 0.0
    base, features = rows_of(terms, operations, cpu)
    target = np.log(seconds / base) if kind != "view" else np.zeros(len(seconds))
    forest = Forest.of(grow(features, target, trees=trees, depth=depth, leaves=leaves, rate=rate), depth)
    watts = np.array([r.joules for r in rows]) / seconds
    used = utilisations(operations, seconds, cpu)
    # The ridge keeps slopes out of what hardly varies.
    ridge = np.hstack([np.zeros((2, 1)), np.eye(2) * np.sqrt(0.0005 * len(watts)) / np.median(watts)])
    line, *_ = np.linalg.lstsq(
        np.vstack([used / watts[:, None], ridge]), np.concatenate([np.ones(len(watts)), np.zeros(2)]), rcond=None
    )
    return KindModel(
        terms=(terms[0], terms[1], terms[2], terms[3]), constant_s=constant,
        watts=(float(line[0]), float(line[1]), float(line[2])), forest=forest, interval={},
    )  # fmt: skip


def left_out(kind: str, rows: Sequence[_Row], cpu: Device) -> NDArray[Any]:
    """Predicted joules of every row by a model that saw neither its network nor, for random configurations, its fifth."""
    found = np.zeros(len(rows))
    for part in _parts(rows):
        seen = [r for r, out in zip(rows, part, strict=True) if not out]
        unseen = [r.operation for r, out in zip(rows, part, strict=True) if out]
        if not seen or not unseen:
            continue
        model = _fit_kind(kind, seen, cpu)
        seconds = predict_seconds(model, unseen, cpu)
        found[part] = seconds * predict_watts(model, unseen, seconds, cpu)
    return found


def _parts(rows: Sequence[_Row]) -> Iterator[NDArray[np.bool_]]:
    networks = np.array([r.network for r in rows])
    for network in sorted(set(networks) - {""}):
        yield networks == network
    fifth = np.arange(len(rows)) % _FOLDS
    for fold in range(_FOLDS):
        yield (networks == "") & (fifth == fold)


def _intervals(rows: Sequence[_Row], predicted: NDArray[Any]) -> dict[str, list[float]]:
    ratios: dict[str, list[float]] = defaultdict(list)
    for row, p in zip(rows, predicted.tolist(), strict=True):
        if p > 0:
            ratios[regime(row.operation) if row.network else "any"] += [j / p for j in row.all_joules]
    intervals = {name: [float(f"{q:.5g}") for q in np.quantile(v, COVERAGE)] for name, v in sorted(ratios.items())}
    intervals.setdefault("any", next(iter(intervals.values())))
    return intervals


def _networks(
    measured: Sequence[LayerEnergy], unseen: Mapping[tuple[Operation, str, str], Energy]
) -> tuple[float, dict[str, Any]]:
    """(what layers have in common, report): networks as one, by layers that were predicted without their network."""
    found: dict[str, list[tuple[float, list[Energy]]]] = defaultdict(list)
    files = {(m.network, m.batch): m.run.partition(" #")[0] for m in measured if m.place}
    for m in measured:
        if m.place == 0 and (m.network, m.batch) in files:
            file = files[m.network, m.batch]
            parts = [unseen.get((o, m.network, file)) for o in m.operations]
            if parts and all(p is not None for p in parts):
                found[m.network].append((m.joules, [p for p in parts if p is not None]))
    report = {}
    for network, cases in sorted(found.items()):
        errors = np.array([abs(sum(p.value for p in parts) / joules - 1) for joules, parts in cases])
        report[network] = {
            "n": len(errors),
            "median_ape": float(f"{np.median(errors):.4g}"),
            "p90_ape": float(f"{np.quantile(errors, 0.9):.4g}"),
        }
    cases = [case for several in found.values() for case in several]
    for common in np.arange(0.0, 0.2, 0.0025):
        totals = [summed(parts, float(common)) for _, parts in cases]
        if np.mean([t.low <= joules <= t.high for t, (joules, _) in zip(totals, cases, strict=True)]) >= 0.9:
            break
    return float(f"{common:.4g}"), report


def _layers_of_networks(
    by_kind: Mapping[str, Sequence[_Row]], unseen: Mapping[tuple[Operation, str, str], Energy]
) -> dict[str, Any]:
    """The error of all layers of each network, whatever their kind."""
    rows = [row for several in by_kind.values() for row in several if row.network]
    predicted = np.array([unseen[row.operation, row.network, row.file].value for row in rows])
    return _report(rows, predicted)


def _report(rows: Sequence[_Row], predicted: NDArray[Any]) -> dict[str, Any]:
    """Median and 90th percentile of the error of joules, per part left out."""
    found: dict[str, Any] = {}
    names = np.array([r.network or "random configurations" for r in rows])
    errors = np.abs(predicted / np.array([r.joules for r in rows]) - 1.0)
    for name in sorted(set(names)):
        e = errors[names == name]
        found[str(name)] = {
            "n": len(e),
            "median_ape": float(f"{np.median(e):.4g}"),
            "p90_ape": float(f"{np.quantile(e, 0.9):.4g}"),
        }
    return found
