"""Fitting the operator times that ship with the package to published measurements.

``python -m hpdlf.experiments.fit_operator_times DATA_DIR [-o FILE]`` reads NeuSight, DeepBench, Justus et al. and
SimuMax as DATA_DIR holds them and writes ``models/cost/operator_times.npz``; the same data give the same bytes. It takes
a few minutes on two cores.

For each group of operations (:mod:`hpdlf.models.cost.features`) a regression over all devices is grown, each device
and software weighing alike, and one for each device and software with :data:`MANY` measurements or more; a device with
fewer gets an offset on the first. Intervals and the report inside the file come from measurements left out:
for devices that are known, whole cells of shapes (:func:`cells`); for devices that are not, whole chips in turn.
"""

from __future__ import annotations

import argparse
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, ProfileError
from ..hwprofiles import Device, load_device
from ..models.cost.features import CONTEXTS, GROUPS, features, group_of
from ..models.cost.operation import Operation
from ..models.cost.operator_times import (
    OPERATOR_TIMES_FILE,
    STRATA,
    Band,
    OperatorTimes,
    kind_of,
    relatives_of,
    save,
    stratum_of,
)
from ..models.cost.traits import traits_of
from ..models.cost.trees import Forest
from .published import neusight
from .published.measured import Measured
from .published.operators import READERS
from .scoring import summarise

__all__ = ["collect", "fit", "main"]

Array = NDArray[np.float64]

# A regression of a device's own needs this many measurements; below, an offset.
MANY = 1000
# The regression over all devices sees at most this many measurements of one device and software.
MOST_OF_ONE = 2500
# An offset counts the general regression as this many measurements.
OFFSET_WEIGHT = 20.0
# One cell of shapes in this many is left out of a device's own regression to see how well it does.
FOLDS = 5
# Devices that are one chip: when one is left out, so are the others.
CHIPS = {"V100-PCIE-32": "V100", "V100-SXM2": "V100", "P100-PCIE-16": "P100", "P100-SXM2": "P100"}
# Rows of the report over all operators of a file and device, and over those that are no mere calls.
ALL, ALL_LONG = "all", "all above 0.05 ms"
LONG_S = 5e-5
GENERAL: Mapping[str, Any] = {"max_iter": 130, "max_leaf_nodes": 31, "learning_rate": 0.1, "min_samples_leaf": 30}
PARTICULAR: Mapping[str, Any] = {"max_iter": 260, "max_leaf_nodes": 63, "learning_rate": 0.1, "min_samples_leaf": 8}
GENERAL_DEPTH, PARTICULAR_DEPTH = 7, 8


@dataclass(frozen=True, kw_only=True, eq=False)
class Lot:
    """Measurements of one group of operations, as arrays (n,) beside the features (n, features)."""

    group: str
    rows: Array
    roof_s: Array
    launch_s: Array
    seconds: Array
    file: NDArray[np.str_]
    published: NDArray[np.str_]
    op: NDArray[np.str_]
    context: NDArray[np.str_]
    device: NDArray[np.str_]
    cell: NDArray[np.int64]
    stratum: NDArray[np.int64]
    relatives: NDArray[np.str_]

    @property
    def base_s(self) -> Array:
        """What the regression's value is relative to."""
        return np.maximum(self.roof_s, self.launch_s)

    @property
    def target(self) -> Array:
        """The regression's target."""
        return np.log(self.seconds / self.base_s)

    @property
    def chip(self) -> NDArray[np.str_]:
        """The chip of each measurement's device."""
        return np.array([CHIPS.get(d, d) for d in self.device])

    def only(self, chosen: NDArray[np.bool_]) -> Lot:
        """Those that are `chosen`."""
        names = ("rows", "roof_s", "launch_s", "seconds", "file", "published", "op", "context", "device", "cell",
                 "stratum", "relatives")  # fmt: skip
        return replace(self, **{name: getattr(self, name)[chosen] for name in names})


def collect(folder: Path) -> tuple[list[Measured], dict[str, Device]]:
    """Every measurement of a single operation on a device with a profile, and the profiles by published name."""
    devices: dict[str, Device] = {}
    unknown: set[str] = set()
    found = []
    for measured in _read(folder):
        name = measured.device
        if name not in devices and name not in unknown:
            try:
                devices[name] = load_device(name)
            except ProfileError:
                unknown.add(name)
        if name in devices and len(measured.operations) == 1 and measured.seconds > 0:
            found.append(measured)
    return found, devices


def _read(folder: Path) -> Iterator[Measured]:
    for reader in READERS:
        yield from reader(folder)
    for row in neusight.layer_rows(folder):
        for phase, operations, seconds in (
            ("forward", row.forward, row.forward_s),
            ("backward", row.backward, row.backward_s),
        ):
            if seconds > 0:
                yield Measured(
                    "neusight/model_layers.csv", row.device, f"{phase} {row.op}", neusight.IN_NETWORK, operations,
                    seconds, row.where, row.case,
                )  # fmt: skip


def cells(operation: Operation) -> int:
    """The cell of an operation's shape: shapes whose dimensions round to the same powers of two lie in one."""
    text = f"{operation.op} {operation.phase} {operation.precision} " + " ".join(
        str(round(float(np.log2(max(d, 1))))) for d in operation.dims
    )
    return zlib.crc32(text.encode())


def launches(measured: Sequence[Measured], devices: Mapping[str, Device]) -> dict[tuple[str, str, str], float]:
    """What a call costs by (context, kind, device): the first percentile of times, where some operations are so
    short that it shows; the median over devices for any ("").
    """
    times: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for m in measured:
        device = devices[m.device]
        (operation,) = m.operations
        try:
            trait = traits_of(device, operation.precision)
        except ProfileError:
            continue
        roof_s = max(operation.flops / trait.matrix_flops_per_s, operation.traffic_bytes / trait.bandwidth_bytes_per_s)
        key = (m.context, kind_of(operation), device.name)
        times.setdefault(key, []).append((m.seconds / operation.count, roof_s))
    found: dict[tuple[str, str, str], float] = {}
    for key, pairs in sorted(times.items()):
        took, roof = (np.array(column) for column in zip(*pairs, strict=True))
        least = float(np.quantile(took, 0.01))
        shortest = took <= np.quantile(took, 0.03)
        if len(pairs) >= 50 and np.median(roof[shortest]) < 0.5 * least:
            found[key] = least
    for context, kind in sorted({key[:2] for key in times}):
        own = [value for key, value in found.items() if key[:2] == (context, kind) and key[2]]
        if own:
            found[context, kind, ""] = float(np.median(own))
    for context in sorted({key[0] for key in times}):
        own = [value for key, value in found.items() if key[0] == context and not key[2]]
        if own:
            found[context, "", ""] = float(np.median(own))
    return found


def lots(measured: Sequence[Measured], devices: Mapping[str, Device], model: OperatorTimes) -> list[Lot]:
    """Measurements by group, with their features; those in precisions that a device has no peak for are left out."""
    found = []
    for group in GROUPS:
        chosen = []
        traits = []
        for m in measured:
            if group_of(m.operations[0].family) != group:
                continue
            try:
                traits.append(traits_of(devices[m.device], m.operations[0].precision))
            except ProfileError:
                continue
            chosen.append(m)
        if not chosen:
            continue
        operations = [m.operations[0] for m in chosen]
        launch = np.array(
            [model.launch(m.context, kind_of(o), devices[m.device]) for m, o in zip(chosen, operations, strict=True)]
        )
        at = features(group, operations, traits, launch, [CONTEXTS.index(m.context) for m in chosen])
        found.append(
            Lot(
                group=group,
                rows=at.rows,
                roof_s=at.roof_s,
                launch_s=launch,
                seconds=np.array([m.seconds / o.count for m, o in zip(chosen, operations, strict=True)]),
                file=np.array([m.file for m in chosen]),
                published=np.array([m.device for m in chosen]),
                op=np.array([m.op for m in chosen]),
                context=np.array([m.context for m in chosen]),
                device=np.array([devices[m.device].name for m in chosen]),
                cell=np.array([cells(o) for o in operations]),
                stratum=stratum_of(operations, at.roof_s, launch),
                relatives=np.array([relatives_of(devices[m.device]) for m in chosen]),
            )
        )
    return found


def grow(lot: Lot, settings: Mapping[str, Any], depth: int, weight: Array | None = None) -> Forest:
    """Trees on a lot's features and target."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    trees = HistGradientBoostingRegressor(
        max_depth=depth, l2_regularization=1.0, early_stopping=False, random_state=0, **settings
    )
    trees.fit(lot.rows, lot.target, sample_weight=weight)
    return Forest.of(trees, depth)


def general(lot: Lot) -> Forest:
    """The regression over all devices: at most :data:`MOST_OF_ONE` measurements of each device and software, which
    weigh alike (by the square root of their number, where there are few).
    """
    keys = np.char.add(np.char.add(lot.context, "|"), lot.device)
    rng = np.random.default_rng(0)
    chosen = np.zeros(len(keys), bool)
    weight = np.zeros(len(keys))
    for key in np.unique(keys):
        places = np.flatnonzero(keys == key)
        if len(places) > MOST_OF_ONE:
            places = np.sort(rng.choice(places, MOST_OF_ONE, replace=False))
        chosen[places] = True
        weight[places] = np.sqrt(min(len(places), MANY)) / len(places)
    return grow(lot.only(chosen), GENERAL, GENERAL_DEPTH, weight[chosen] / weight[chosen].mean())


def fit(folder: Path, *, say: Any = lambda line: None) -> OperatorTimes:
    """Fit everything.

    Raises:
        DataError: the folder has none of the tables, or one cannot be read.
    """
    measured, devices = collect(folder)
    if not measured:
        raise DataError(f"{folder}: holds none of the published tables (neusight/gemm.csv, deepbench/gemm.csv, ...).")
    start = OperatorTimes(general={}, launch_s=launches(measured, devices))
    model = start
    report: list[dict[str, Any]] = []
    for lot in lots(measured, devices, start):
        say(f"{lot.group}: {len(lot.seconds)} measurements")
        model, rows = _fit_group(lot, model, say)
        report += rows
    return replace(model, report=tuple(report))


def _fit_group(lot: Lot, model: OperatorTimes, say: Any) -> tuple[OperatorTimes, list[dict[str, Any]]]:
    group = lot.group
    offsets, particular, bands = dict(model.offsets), dict(model.particular), dict(model.bands)
    report: list[dict[str, Any]] = []
    # Devices that nobody measured: each chip in turn is left out of the regression over all.
    errors = np.zeros(len(lot.seconds))
    for chip in np.unique(lot.chip):
        here = lot.chip == chip
        forest = general(lot.only(~here))
        errors[here] = lot.target[here] - forest.predict(lot.rows[here])
        say(f"  {chip} left out: median error {np.median(np.abs(np.expm1(-errors[here]))):.3f}")
    for relatives in np.unique(lot.relatives):
        alike = (lot.relatives == relatives) | (relatives == "")
        bands |= _bands(lot.only(alike), errors[alike], device=str(relatives))
    report += _report(lot, errors, "device left out", replace(model, bands=bands))
    whole = general(lot)
    # Devices that are known: a fifth of the cells of shapes is left out.
    kept = lot.cell % FOLDS != 0
    known = np.full(len(lot.seconds), np.nan)
    for context in np.unique(lot.context):
        for device in np.unique(lot.device[lot.context == context]):
            here = (lot.context == context) & (lot.device == device)
            key = (group, str(context), str(device))
            test = here & ~kept
            if here.sum() >= MANY:
                forest = grow(lot.only(here & kept), PARTICULAR, PARTICULAR_DEPTH)
                known[test] = lot.target[test] - forest.predict(lot.rows[test])
                particular[key] = grow(lot.only(here), PARTICULAR, PARTICULAR_DEPTH)
            else:
                rest = lot.target[here] - whole.predict(lot.rows[here])
                offsets[key] = float(np.median(rest) * here.sum() / (here.sum() + OFFSET_WEIGHT))
                known[here] = rest - offsets[key]
            seen = here & ~np.isnan(known)
            if seen.any():
                bands |= _bands(lot.only(seen), known[seen], device=str(device), context=str(context))
                say(
                    f"  {context} {device}: median error {np.median(np.abs(np.expm1(-known[seen]))):.3f} of {seen.sum()}"
                )
    seen = ~np.isnan(known)
    report += _report(lot.only(seen), known[seen], "shapes left out", replace(model, bands=bands))
    return replace(
        model,
        general={**model.general, group: whole},
        particular=particular,
        offsets=offsets,
        bands=bands,
    ), report


# With fewer measurements than this a quantile says nothing of its own.
_FEW = 30


def _bands(
    lot: Lot, errors: Array, *, device: str, context: str | None = None
) -> dict[tuple[str, str, str, int], Band]:
    """The fifth and 95th percentile of the logarithm of measured over predicted, per software and stratum."""
    found = {}
    for where in [context] if context else ["", *np.unique(lot.context)]:
        here = np.ones(len(errors), bool) if not where else lot.context == where
        for stratum in STRATA:
            rest = errors[here & (lot.stratum == stratum)]
            if len(rest) >= _FEW:
                low, high = np.quantile(rest, [0.05, 0.95])
                found[lot.group, str(where), device, stratum] = Band(min(float(low), 0.0), max(float(high), 0.0))
    return found


def _report(lot: Lot, errors: Array, what: str, model: OperatorTimes) -> list[dict[str, Any]]:
    """Scores of each file, device and operator, with the intervals that the model would give."""
    found = []
    predicted = lot.seconds * np.exp(-errors)
    known = what == "shapes left out"
    names = lot.device if known else lot.relatives
    bands = [model.band(lot.group, *key) for key in zip(lot.context, names, lot.stratum.tolist(), strict=True)]
    low, high = (predicted * np.exp([getattr(band, side) for band in bands]) for side in ("low", "high"))
    keys = {*zip(lot.file.tolist(), lot.published.tolist(), lot.op.tolist(), strict=True)}
    keys |= {(file, device, op) for file, device, _ in keys for op in (ALL, ALL_LONG)}
    for file, device, op in sorted(keys):
        here = (lot.file == file) & (lot.published == device)
        if op == ALL_LONG:
            here &= lot.seconds > LONG_S
        elif op != ALL:
            here &= lot.op == op
        if not here.any():
            continue
        row = summarise(
            file=file, device=device, op=op, measured=lot.seconds[here], predicted=predicted[here], low=low[here],
            high=high[here], refused={},
        )  # fmt: skip
        found.append({"left_out": what, **{k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}})
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the file. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m hpdlf.experiments.fit_operator_times", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("data", type=Path, metavar="DATA_DIR", help="folder with neusight/, deepbench/ and so on")
    parser.add_argument(
        "-o", "--output", type=Path, default=OPERATOR_TIMES_FILE, help="file to write (default: the shipped)"
    )
    chosen = parser.parse_args(arguments)
    try:
        model = fit(chosen.data, say=lambda line: print(line, flush=True))
    except DataError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    save(model, chosen.output)
    print(f"Wrote {chosen.output}: {chosen.output.stat().st_size / 1e6:.2f} MB.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
