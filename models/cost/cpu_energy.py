"""Time and energy of the layers of a network on one core of a CPU, as PyTorch with oneDNN runs them.

``seconds = base * exp(forest(features))`` and ``joules = watts * seconds``. The base is a sum of physical terms:
arithmetic at a core's peak (channels padded to the vector width, as the library does), and passes over operands, results
and weights at the socket's bandwidth (reordering into blocked layouts, first touches of fresh pages). What each term is
worth per kind of layer was fitted; the forest corrects the sum by shape, sizes relative to the core's caches, and which
term prevails. Watts are linear in the utilisation of the core's arithmetic and of the memory.

Fitted on the measurements of Getzner et al. (ICLR workshop 2023; two Xeon Gold 5120, PyTorch) by
``python -m hpdlf.experiments.fit_power``. Another processor is scaled by its peak, bandwidth and limit, and said to be
less certain.

>>> from hpdlf.hwprofiles import load_device
>>> layer = Operation(family="matmul", op="linear", dims=(1, 64, 4096, 4096), flops=2 * 64 * 4096**2,
...     read_bytes=4 * (64 * 4096 + 4096**2), write_bytes=4 * 64 * 4096)
>>> found = CpuEnergyModel.shipped().estimate([layer], load_device("Xeon-Gold-5120"))[0]
>>> 0.02 < found.seconds.value < 0.04, 70 < found.joules.value / found.seconds.value < 80
(True, True)
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError
from ...hwprofiles import Device
from .operation import Operation
from .power import Energy
from .trees import Forest

__all__ = ["FORMAT", "VERSION", "CpuEnergyModel", "KindModel", "LayerEstimate", "base_terms", "kind_of", "shape_features"]

FORMAT, VERSION = "hpdlf cpu energy", 1
PATH = Path(__file__).with_name("cpu_energy.json")
_VECTOR = 16  # float32 values of a 512-bit register; oneDNN blocks channels by it
_KINDS = {
    "linear": "linear", "conv": "conv", "maxpool": "maxpool", "adaptive_avgpool": "adaptive_avgpool",
    "relu": "elementwise", "sigmoid": "elementwise", "tanh": "elementwise", "softmax": "softmax",
    "relu_inplace": "inplace", "dropout": "view",
}  # fmt: skip
# How many times wider (in logarithms) the interval is on a processor that was not measured.
_UNSEEN_WIDTH, _UNSEEN_LOG = 2.0, 0.35


class LayerEstimate(NamedTuple):
    """Seconds and joules of one layer, each with its 90 % interval."""

    seconds: Energy
    joules: Energy


def kind_of(operation: Operation) -> str | None:
    """The kind of layer whose parameters apply; None for one that was never measured."""
    return _KINDS.get(operation.op)


def base_terms(operation: Operation, cpu: Device) -> tuple[float, float, float, float]:
    """Seconds of one core: arithmetic at its peak; operands, results and weights once at the socket's bandwidth."""
    core = _core(cpu)
    flops, weights, read = operation.flops, 0.0, operation.read_bytes
    if operation.family == "conv":
        n, c, k, r, s, p, q, _, groups = operation.dims
        padded = (c if c <= 3 else _up(c / groups) * groups) * _up(k)
        flops, weights = 2.0 * n * p * q * r * s * padded / groups, 4.0 * c * k * r * s / groups
    elif operation.family == "matmul":
        batch, _, n, k = operation.dims
        weights = 4.0 * batch * n * k
    read = max(read - weights, 0.0)
    return (
        flops / core.flops_per_s,
        read / core.bytes_per_s,
        operation.write_bytes / core.bytes_per_s,
        weights / core.bytes_per_s,
    )


def shape_features(operation: Operation, cpu: Device) -> list[float]:
    """What the forest sees beside the shares of the terms; the same length for all layers of a kind."""
    core, log = _core(cpu), math.log
    read, write = max(operation.read_bytes, 1.0), max(operation.write_bytes, 1.0)
    sizes = [log(read / core.l3_bytes), log(write / core.l3_bytes)]
    if operation.family == "conv":
        n, c, k, r, _, _, q, stride, _ = operation.dims
        return [
            *sizes, log(n), log(q), log(c), log(k), log(r), stride, r / stride, float(c <= 3), log(_up(c) / c),
            log(_up(k) / k), (q % 28) / 28.0, log(4.0 * c * k * r * r / core.l2_bytes),
        ]  # fmt: skip
    if operation.family == "matmul":
        _, m, n, k = operation.dims
        intensity = 1.0 / (1.0 / m + 1.0 / n + 1.0 / k)
        return [*sizes, log(m), log(n), log(k), log(intensity), log(4.0 * n * k / core.l3_bytes),
                m % _VECTOR, n % _VECTOR, k % _VECTOR]  # fmt: skip
    rows, columns = operation.dims
    if operation.op == "maxpool":
        outputs, size = write / 4.0, math.sqrt(columns)
        out = math.sqrt(outputs / rows)
        window = math.sqrt(operation.flops / outputs)
        return [*sizes, log(rows), log(size), log(out), window, round(size / out, 1), window * out / size]
    names = ("relu", "sigmoid", "tanh")
    return [*sizes, log(rows), log(columns), *(float(operation.op == name) for name in names)]


@dataclass(frozen=True, kw_only=True, eq=False)
class KindModel:
    """What was fitted for one kind of layer.

    terms     what each of :func:`base_terms` is worth; the forest gets their shares of the sum, then the shape
    constant_s  what a call takes beside
    watts     of both packages of the machine measured: constant, per unit of arithmetic and of memory utilisation
    low, high  the interval of joules relative to the prediction: quantiles of what was measured over what was predicted
              for networks and configurations left out; `networks` where the shape is one that networks have
    """

    terms: tuple[float, float, float, float]
    constant_s: float
    watts: tuple[float, float, float]
    forest: Forest
    interval: Mapping[str, tuple[float, float]]


@dataclass(frozen=True, kw_only=True, eq=False)
class CpuEnergyModel:
    """The kinds, the device that they were fitted on with its number of packages, and the report of left-out accuracy.

    common  the error that all layers of a network share, as a share of their sum
    """

    device: str
    packages: int
    limit_w: float
    common: float
    kinds: Mapping[str, KindModel]
    report: Mapping[str, Any]

    @classmethod
    def shipped(cls) -> CpuEnergyModel:
        """The model of the package.

        Raises:
            DataError: its file is damaged or from a newer version.
        """
        return _shipped()

    def estimate(self, operations: Sequence[Operation], cpu: Device) -> list[LayerEstimate | None]:
        """Seconds and joules (of all packages, idle power included) per layer; None for a kind never measured."""
        found: list[LayerEstimate | None] = [None] * len(operations)
        groups: dict[str, list[int]] = defaultdict(list)
        for i, operation in enumerate(operations):
            if (kind := kind_of(operation)) is not None and kind in self.kinds:
                groups[kind].append(i)
        known = cpu.name == self.device
        scale = 1.0 if known or cpu.limit_w is None else cpu.limit_w.value / self.limit_w
        for kind, places in groups.items():
            model = self.kinds[kind]
            chosen = [operations[i] for i in places]
            seconds = predict_seconds(model, chosen, cpu)
            watts = predict_watts(model, chosen, seconds, cpu) * scale
            for i, operation, s, w in zip(places, chosen, seconds.tolist(), watts.tolist(), strict=True):
                low, high = self.interval(kind, operation)
                if not known:
                    low, high = low**_UNSEEN_WIDTH * math.exp(-_UNSEEN_LOG), high**_UNSEEN_WIDTH * math.exp(_UNSEEN_LOG)
                found[i] = LayerEstimate(Energy(s, s * low, s * high), Energy(s * w, s * w * low, s * w * high))
        return found

    def total(self, parts: Sequence[Energy]) -> Energy:
        """The sum over the layers of a network: their errors add up like independent ones, beside what they share."""
        if len(parts) == 1:
            return parts[0]
        return summed(parts, self.common)

    def interval(self, kind: str, operation: Operation) -> tuple[float, float]:
        """The 90 % interval relative to a prediction on the measured processor."""
        intervals = self.kinds[kind].interval
        return intervals[regime(operation)] if regime(operation) in intervals else intervals["any"]


def summed(parts: Sequence[Energy], common: float) -> Energy:
    """The sum of independent parts, and `common` of it on both sides."""
    value = sum(p.value for p in parts)
    below = math.sqrt(sum((p.value - p.low) ** 2 for p in parts)) + common * value
    above = math.sqrt(sum((p.high - p.value) ** 2 for p in parts)) + common * value
    return Energy(value, value - below, value + above)


def regime(operation: Operation) -> str:
    """"network" where channels are what networks choose (multiples of the vector width, or an image's three), for
    convolutions "3x3" where also the kernel is the usual one, else "any".

    Odd numbers of channels take other code paths, and are predicted less well.
    """
    if operation.family == "conv":
        _, c, k, r, s, _, _, stride, _ = operation.dims
        if not ((c <= 3 or c % _VECTOR == 0) and k % _VECTOR == 0):
            return "any"
        return "3x3" if r == s == 3 and stride == 1 else "network"
    if operation.family == "matmul":
        _, _, n, k = operation.dims
        return "network" if n % 8 == 0 and k % 8 == 0 else "any"
    return "network" if operation.op == "maxpool" and operation.dims[0] % _VECTOR == 0 else "any"


def rows_of(terms: Sequence[float], operations: Sequence[Operation], cpu: Device) -> tuple[NDArray[Any], NDArray[Any]]:
    """(base seconds [n], features [n, f]) of layers of one kind: shares of the weighted terms, then the shape."""
    weighted = np.array([base_terms(o, cpu) for o in operations]) * np.asarray(terms)
    base = np.maximum(weighted.sum(axis=1), 1e-12)
    shares = np.log(weighted[:, :3] / base[:, None] + 1e-4)
    return base, np.hstack([shares, np.array([shape_features(o, cpu) for o in operations])])


def predict_seconds(model: KindModel, operations: Sequence[Operation], cpu: Device) -> NDArray[Any]:
    """Seconds of layers of one kind."""
    base, features = rows_of(model.terms, operations, cpu)
    return base * np.exp(model.forest.predict(features)) + model.constant_s


def utilisations(operations: Sequence[Operation], seconds: NDArray[Any], cpu: Device) -> NDArray[Any]:
    """(1, arithmetic of a core, memory of the socket) [n, 3]: what power is linear in."""
    core = _core(cpu)
    work = np.array([(o.flops / core.flops_per_s, o.traffic_bytes / core.bytes_per_s) for o in operations])
    return np.hstack([np.ones((len(seconds), 1)), np.minimum(work / seconds[:, None], 2.0)])


def predict_watts(model: KindModel, operations: Sequence[Operation], seconds: NDArray[Any], cpu: Device) -> NDArray[Any]:
    """Mean power of both packages of the machine measured while one core works."""
    return utilisations(operations, seconds, cpu) @ np.asarray(model.watts)


class _Core(NamedTuple):
    flops_per_s: float
    bytes_per_s: float
    l2_bytes: float
    l3_bytes: float


@cache
def _core_of(peak: float, cores: float, bandwidth: float, l2: float, l3: float) -> _Core:
    return _Core(peak / cores, bandwidth, l2 / cores, l3)


def _core(cpu: Device) -> _Core:
    """One core of a socket; caches that a profile leaves out count as usual ones (1 MiB and 1.4 MiB a core)."""
    cores = cpu.compute_units.value if cpu.compute_units else 1.0
    l2 = cpu.l2_cache_bytes.value if cpu.l2_cache_bytes else cores * 2**20
    l3 = cpu.l3_cache_bytes.value if cpu.l3_cache_bytes else cores * 1.4 * 2**20
    peak, bandwidth = cpu.peak_flops_per_s["float32"].value, cpu.memory_bandwidth_bytes_per_s.value
    return _core_of(peak, cores, bandwidth, l2, l3)


def _up(channels: float) -> float:
    return math.ceil(channels / _VECTOR) * _VECTOR


@cache
def _shipped() -> CpuEnergyModel:
    try:
        return from_plain(json.loads(PATH.read_text(encoding="utf-8")))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{PATH}: cannot be used as parameters of the energy of CPU layers ({error}). "
            "Reinstall hpdlf, or rebuild the file with: python -m hpdlf.experiments.fit_power DATA_DIR"
        ) from None


def from_plain(plain: Mapping[str, Any]) -> CpuEnergyModel:
    """The model of a parsed file.

    Raises:
        KeyError, TypeError, ValueError: it is of another format or version, or a part is missing.
    """
    if plain["format"] != FORMAT or plain["version"] != VERSION:
        raise ValueError(f"format {plain['format']!r} version {plain['version']!r} instead of {FORMAT!r} {VERSION}")
    kinds = {
        name: KindModel(
            terms=tuple(k["terms"]),
            constant_s=k["constant_s"],
            watts=tuple(k["watts"]),
            forest=forest_from_plain(k["forest"]),
            interval={regime_: (low, high) for regime_, (low, high) in k["interval"].items()},
        )
        for name, k in plain["kinds"].items()
    }
    return CpuEnergyModel(
        device=plain["device"], packages=plain["packages"], limit_w=plain["limit_w"], common=plain["common"], kinds=kinds,
        report=plain["report"],
    )  # fmt: skip


def forest_from_plain(plain: Mapping[str, Any]) -> Forest:
    """A forest from the lists of a JSON file."""
    return Forest.from_arrays({name: np.array(values) for name, values in plain.items()})
