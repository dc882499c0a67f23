"""How long operations take on accelerators: regressions of the utilisation, fitted on published measurements.

``seconds = base * exp(regression(features))``, where base is the longest of arithmetic at the sustained rate, traffic
at the memory's bandwidth, and what a call costs, and the regression (boosted trees, :mod:`.trees`) sees features that
mean the same on every device (:mod:`.features`). Predicting the utilisation keeps extrapolation sane where predicting
the latency does not (Lee, Phanishayee, Mahajan, "NeuSight", ASPLOS 2025, table 1).

There is one regression per group of operations over all devices, for devices that were never measured, and one more
for each device and software of which many measurements were published. What was fitted ships as plain arrays
(``operator_times.npz``, no rows of any table), written by ``python -m hpdlf.experiments.fit_operator_times DATA_DIR``.

>>> from hpdlf.hwprofiles import load_device
>>> product = Operation(family="matmul", op="linear", dims=(1, 8192, 8192, 8192), flops=2 * 8192**3,
...     read_bytes=2 * 4 * 8192**2, write_bytes=4 * 8192**2)
>>> times = OperatorTimes.default().times([product], load_device("A100-SXM-80"))
>>> bool(0.05 < times.seconds[0] < 0.08)
True
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError
from ...hwprofiles import Device
from .features import CONTEXTS, GROUPS, WINOGRAD_SAVES, Features, features, group_of
from .operation import HALF_PRECISIONS, Operation
from .traits import GENERATION, Traits, traits_of
from .trees import Forest

__all__ = ["OPERATOR_TIMES_FILE", "Band", "OperatorTimes", "Times", "kind_of", "relatives_of", "save", "stratum_of"]

Array = NDArray[np.float64]

OPERATOR_TIMES_FILE = Path(__file__).with_name("operator_times.npz")
FORMAT = "hpdlf.operator_times"
VERSION = 1
_NO_CALL_S = 1e-7
STRATA = (0, 1, 2, 3)


class Times(NamedTuple):
    """Arrays (n,): seconds, the bounds within which nine in ten lie, and whether the very device was measured."""

    seconds: Array
    low_s: Array
    high_s: Array
    known: NDArray[np.bool_]


class Band(NamedTuple):
    """Nine in ten measured times lie between exp(low) and exp(high) of the predicted one."""

    low: float
    high: float


def kind_of(operation: Operation) -> str:
    """What calls of one kind share: their cost before any work is done.

    >>> kind_of(Operation(family="elementwise", op="relu", dims=(1, 1), flops=1, read_bytes=4, write_bytes=4))
    'elementwise'
    """
    return operation.op if operation.family == "matmul" else operation.family


def stratum_of(operations: Sequence[Operation], roof_s: Array, launch_s: Array) -> NDArray[np.int64]:
    """Errors differ among them. 0: shorter than a call; 1: up to eight calls; 2: longer; 3: kinds of which few were
    measured.
    """
    ratio = roof_s / launch_s
    rare = np.array([_is_rare(o) for o in operations], bool)
    return np.where(rare, 3, np.where(ratio < 1.0, 0, np.where(ratio < 8.0, 1, 2)))


MOST_OF_RARE = 2.0  # times the roofline of sustained bandwidth
_COMMON_ROWS = frozenset({"elementwise", "normalisation", "softmax"})


def _is_rare(operation: Operation) -> bool:
    if group_of(operation.family) != "rows":
        return False
    return operation.phase != "forward" or operation.family not in _COMMON_ROWS or operation.op in ("dropout", "where")


def relatives_of(device: Device) -> str:
    """The class of devices whose errors, each left out, stand for one that nobody measured: those with measured
    relatives of about their age and line ("recent"), else any ("").
    """
    return "recent" if device.vendor == "nvidia" and GENERATION.get(device.architecture, 0.0) >= 7.0 else ""


@dataclass(frozen=True, kw_only=True)
class OperatorTimes:
    """What was fitted.

    general    per group of operations, the regression over all devices
    particular by (group, context, device), the regression of that device alone
    offsets    by (group, context, device), what is added to the general regression for a device with few measurements
    launch_s   by (context, kind, device) what a call cost; the device "" stands for any
    bands      by (group, context, device or class of devices, stratum) the spread of measured times about predictions;
               "" stands for any
    report     accuracy on what was left out of fitting, as it was when this was fitted
    """

    general: Mapping[str, Forest]
    particular: Mapping[tuple[str, str, str], Forest] = field(default_factory=dict)
    offsets: Mapping[tuple[str, str, str], float] = field(default_factory=dict)
    launch_s: Mapping[tuple[str, str, str], float] = field(default_factory=dict)
    bands: Mapping[tuple[str, str, str, int], Band] = field(default_factory=dict)
    report: Sequence[Mapping[str, Any]] = ()

    @classmethod
    def default(cls) -> OperatorTimes:
        """What ships with the package.

        Raises:
            DataError: the file is missing, damaged or from a newer version.
        """
        return _load(OPERATOR_TIMES_FILE)

    @classmethod
    def load(cls, path: Path) -> OperatorTimes:
        """What another file holds. Raises DataError as :meth:`default`."""
        return _load(path)

    def times(
        self,
        operations: Sequence[Operation],
        device: Device,
        *,
        context: str | None = None,
    ) -> Times:
        """Seconds of each of `operations` alone on `device`, all its repetitions together.

        context   the software; None: compiled code, whose calls cost what the device's profile says

        Raises:
            ProfileError: the profile has no peak for a precision.
            ValueError: an unknown context.
        """
        n = len(operations)
        if context is not None and context not in CONTEXTS:
            raise ValueError(f"context '{context}' is not known; known are {', '.join(CONTEXTS)}")
        seconds, low, high = np.zeros(n), np.zeros(n), np.zeros(n)
        known = np.zeros(n, bool)
        software = [context or self.usual_context(o, device) for o in operations]
        lots: dict[tuple[str, str], list[int]] = {}
        for i, operation in enumerate(operations):
            lots.setdefault((group_of(operation.family), software[i]), []).append(i)
        for (group, where), places in lots.items():
            chosen = [operations[i] for i in places]
            traits = [traits_of(device, o.precision) for o in chosen]
            launch = np.array(
                [self._call_s(o, t.launch_s if context is None else self.launch(where, kind_of(o), device))
                 for o, t in zip(chosen, traits, strict=True)]
            )  # fmt: skip
            found = self._lot(group, where, chosen, traits, launch, device)
            repeats = np.array([o.count for o in chosen], float)
            for target, values in zip((seconds, low, high), found[:3], strict=True):
                target[places] = values * repeats
            known[places] = found[3]
        return Times(seconds, low, high, known)

    def usual_context(self, operation: Operation, device: Device) -> str:
        """The software whose measurements stand for compiled code: what frameworks call for half precision; else the
        device's own measurements where there are many, and what operators take inside of networks where there are not.
        """
        if operation.precision in HALF_PRECISIONS:
            return "framework"
        group = group_of(operation.family)
        known = (group, "pytorch", device.name) in self.particular
        return "pytorch" if known or group == "convolution" else "network"

    @staticmethod
    def _call_s(operation: Operation, launch_s: float) -> float:
        """What calls no kernel of its own costs no call."""
        return launch_s if operation.own_kernel else _NO_CALL_S

    def launch(self, context: str, kind: str, device: Device | None) -> float:
        """What a call of `kind` costs under `context`: on `device` if that was measured, else on any."""
        context = "pytorch" if context == "network" else context
        for key in ((context, kind, device.name if device else ""), (context, kind, ""), (context, "", "")):
            if key in self.launch_s:
                return self.launch_s[key]
        return device.launch_overhead_s.value if device else 1e-5

    def _lot(
        self,
        group: str,
        context: str,
        operations: Sequence[Operation],
        traits: Sequence[Traits],
        launch: Array,
        device: Device,
    ) -> tuple[Array, Array, Array, bool]:
        at = features(group, operations, traits, launch, [CONTEXTS.index(context)] * len(operations))
        key = (group, context, device.name)
        base = np.maximum(at.roof_s, launch)
        if key in self.particular:
            logarithm = self.particular[key].predict(at.rows)
        else:
            logarithm = self.general[group].predict(at.rows) + self.offsets.get(key, 0.0)
        known = key in self.particular or key in self.offsets
        strata = stratum_of(operations, at.roof_s, launch)
        # Of copies, look-ups and the like few were measured, and none as large as whole activations: beyond what it has seen the
        # regression says anything, the memory's bandwidth does not.
        logarithm = np.where(strata == 3, np.minimum(logarithm, math.log(MOST_OF_RARE)), logarithm)
        seconds = np.maximum(base * np.exp(logarithm), _least(at, operations, traits))
        low, high = seconds.copy(), seconds.copy()
        for stratum in STRATA:
            here = strata == stratum
            band = self.band(group, context, device.name if known else relatives_of(device), stratum)
            low[here] *= math.exp(band.low)
            high[here] *= math.exp(band.high)
        return seconds, low, high, known

    def band(self, group: str, context: str, device: str, stratum: int) -> Band:
        """The spread for a device, or for a class of devices (see :func:`relatives_of`)."""
        for key in (
            (group, context, device, stratum),
            (group, "", device, stratum),
            (group, context, "", stratum),
            (group, "", "", stratum),
        ):
            if key in self.bands:
                return self.bands[key]
        return Band(-0.7, 0.7)


def _least(at: Features, operations: Sequence[Operation], traits: Sequence[Traits]) -> Array:
    """What no device can beat: the nominal peak, less the multiplications that Winograd's algorithm saves."""
    del at
    found = np.empty(len(operations))
    for i, (operation, trait) in enumerate(zip(operations, traits, strict=True)):
        saved = WINOGRAD_SAVES if operation.family == "conv" and operation.dims[3:5] == (3, 3) else 1.0
        # Boost clocks above the nominal one, causal masks that count as whole, results that never leave the cache.
        found[i] = operation.flops / trait.peak_flops_per_s / saved / 1.15 if operation.family == "matmul" else 0.0
    return found


@cache
def _load(path: Path) -> OperatorTimes:
    mend = "Write it anew: `python -m hpdlf.experiments.fit_operator_times DATA_DIR`, or reinstall the package."
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        about = json.loads(bytes(arrays.pop("about")).decode())
        if about["format"] != FORMAT:
            raise DataError(f"{path}: is no file of operator times. {mend}")
        if about["version"] > VERSION:
            raise DataError(f"{path}: has version {about['version']}, this hpdlf reads up to {VERSION}: update hpdlf.")
        forests = _unpacked(about["forests"], arrays)
        return OperatorTimes(
            general={group: forests[group] for group in GROUPS if group in forests},
            particular={_three(name): forest for name, forest in forests.items() if "|" in name},
            offsets={_three(name): float(value) for name, value in about["offsets"].items()},
            launch_s={_three(name): float(value) for name, value in about["launch_s"].items()},
            bands={(*_three(name), int(name.split("|")[3])): Band(*value) for name, value in about["bands"].items()},
            report=tuple(about["report"]),
        )
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}. {mend}") from None
    except DataError:
        raise
    except Exception as error:  # a damaged archive raises what zipfile, zlib, NumPy or JSON please
        raise DataError(f"{path}: is damaged ({error}). {mend}") from None


_PACKED = ("thresholds", "counts", "feature", "rank", "leaves")


def _unpacked(about: Mapping[str, Mapping[str, Any]], arrays: Mapping[str, NDArray[Any]]) -> dict[str, Forest]:
    """The forests that :func:`save` packed into one array for each kind of number."""
    found = {}
    begin = dict.fromkeys(_PACKED, 0)

    def take(key: str, size: int) -> NDArray[Any]:
        begin[key] += size
        return arrays[key][begin[key] - size : begin[key]]

    for name, size in about.items():
        trees, nodes = int(size["trees"]), 2 ** int(size["depth"]) - 1
        counts = take("counts", int(size["features"]))
        own = {
            "depth": np.array(size["depth"]),
            "start": np.array(size["start"]),
            "counts": counts,
            "thresholds": take("thresholds", int(counts.sum())),
            "feature": take("feature", trees * nodes).reshape(trees, nodes),
            "rank": take("rank", trees * nodes).reshape(trees, nodes),
            "leaves": take("leaves", trees * (nodes + 1)).reshape(trees, nodes + 1),
        }
        found[name] = Forest.from_arrays(own)
    return found


def _three(name: str) -> tuple[str, str, str]:
    a, b, c = name.split("|")[:3]
    return a, b, c


def save(model: OperatorTimes, path: Path) -> None:
    """Write `model` whole or not at all; the same model gives the same bytes."""
    forests = {**model.general, **{"|".join(key): forest for key, forest in model.particular.items()}}
    about = {
        "format": FORMAT,
        "version": VERSION,
        "forests": {
            name: {"depth": f.depth, "start": f.start, "trees": len(f.leaves), "features": len(f.thresholds)}
            for name, f in sorted(forests.items())
        },
        "offsets": {"|".join(key): round(value, 5) for key, value in sorted(model.offsets.items())},
        "launch_s": {"|".join(key): float(f"{value:.4g}") for key, value in sorted(model.launch_s.items())},
        "bands": {
            "|".join((*key[:3], str(key[3]))): [round(band.low, 4), round(band.high, 4)]
            for key, band in sorted(model.bands.items())
        },
        "report": list(model.report),
    }
    arrays: dict[str, Any] = {"about": np.frombuffer(json.dumps(about, sort_keys=True).encode(), np.uint8)}
    # One array for each kind of number, forest after forest: an archive of many members takes long to open.
    packed = [forest.arrays() for _, forest in sorted(forests.items())]
    arrays |= {key: np.concatenate([own[key].ravel() for own in packed]) for key in _PACKED if packed}
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        np.savez_compressed(file, **arrays)
    part.replace(path)
