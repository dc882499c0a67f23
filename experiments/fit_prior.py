"""Deriving the factors over the roofline that ship with the package: for processors from published measurements, for
what nobody isolated from assumptions that say so. Accelerators have regressions instead (:mod:`.fit_operator_times`).

``python -m hpdlf.experiments.fit_prior DATA_DIR [-o FILE]`` reads DeepBench and Getzner et al. as DATA_DIR holds them and
writes ``models/cost/prior.json``; the same data give the same bytes.

For every data set, device and family the ratio of the measured time, less the launch floor of that data set, to the
roofline is taken over all operators that last at least five floors. Operators count by their roofline time, as they
do in the time of a network. The factor of a family is the median over devices of their medians; its spread joins the
scatter of operators within a device (median over devices of the robust standard deviation of the logarithm) with the
scatter of devices. Components that nothing measures get the factor and source written in :data:`ASSUMED`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import DataError
from ..models.cost.factors import FORMAT, PRIOR_FILE, VERSION
from ..models.cost.operation import Operation
from .published import deepbench, getzner

__all__ = ["derive", "main"]


class Peak(NamedTuple):
    """FLOP/s at float32 and bytes/s."""

    flops_per_s: float
    bandwidth_bytes_per_s: float


PEAKS = {
    "KNL7250": Peak(6.09e12, 400e9),
    # One core: matrix products take the same share of one core's peak whatever their shape, and the packages draw what
    # one busy core makes them draw. 32 FLOP a cycle (one AVX-512 unit) at 2.9 GHz; a core streams about 12 GB/s.
    "Gold 5120": Peak(32 * 2.9e9, 12e9),
}
# Networks pool over two or three; the data go up to eleven, where nothing of memory traffic is left.
WIDEST_POOL = 9
# What no data set here isolates: (factor, spread, source).
ASSUMED: dict[str, dict[str, tuple[float, float, str]]] = {
    "gpu": {
        "update": (1.3, 0.4, "element-wise over many small tensors"),
        "dispatch": (1.0, 0.5, "the profile's launch overhead"),
        "other": (1.0, 0.5, "the regression"),
    },
    "cpu": {
        "normalisation": (3.0, 0.6, "element-wise, wider"),
        "normalisation.backward": (
            2.5,
            0.6,
            "element-wise: both passes over operand and gradient are counted as traffic",
        ),
        "gather": (2.0, 0.7, "scattered reads use part of every cache line"),
        "reduction": (1.5, 0.6, "element-wise, wider"),
        "movement": (2.0, 0.7, "a transpose writes in strides"),
        "rnn": (3.0, 0.7, "small matrix products in sequence"),
        "loss": (2.0, 0.7, "softmax, wider"),
        "update": (1.5, 0.5, "element-wise over many tensors"),
        "kernels": (0.1, 0.8, "an operator inside a compiled call costs about a microsecond"),
        "dispatch": (1.5, 0.7, "a call with some dozens of arrays costs several times an empty one"),
        "other": (2.0, 0.9, "nothing known"),
    },
    "link": {
        "latency": (1.0, 0.7, "the profile's latency"),
        "bandwidth": (1.0, 0.25, "the profile's efficiency"),
        "other": (1.0, 0.5, "the profile"),
    },
    "host": {
        "latency": (1.0, 1.0, "no profile describes storage"),
        "bandwidth": (1.0, 1.0, "no profile describes storage"),
        "other": (1.0, 1.0, "no profile describes storage"),
    },
}
Place = tuple[str, str]
FLOORS = 5.0  # an operator counts when it takes this many launch floors
LEAST_ROWS = 20


class Sample(NamedTuple):
    """Measured seconds and the roofline's two times of one component on one device in one data set."""

    source: str
    device: str
    component: str
    seconds: np.ndarray
    roofline_s: np.ndarray


class Ratios(NamedTuple):
    """Logarithms of time over roofline, ascending, and the work that each counts with."""

    logarithms: np.ndarray
    weights: np.ndarray

    def quantile(self, share: float) -> float:
        """The ratio below which `share` of the work is done."""
        passed = (np.cumsum(self.weights) - 0.5 * self.weights) / np.sum(self.weights)
        return float(np.interp(share, passed, self.logarithms))

    @property
    def deviation(self) -> float:
        """Half the width of the central 80 %, which is 1.2816 standard deviations of a normal distribution."""
        return (self.quantile(0.9) - self.quantile(0.1)) / (2 * 1.2816)


def derive(data: Path) -> dict[str, Any]:
    """The content of the prior file from the data sets that are there.

    Raises:
        DataError: none is.
    """
    samples = [s for reader in READERS for s in reader(data)]
    if not samples:
        raise DataError(f"{data}: holds none of the data sets that the prior comes from (neusight/gemm.csv and so on).")
    floors: dict[Place, float] = {}
    for s in samples:
        place = (s.source, s.device)
        floors[place] = min(floors.get(place, np.inf), float(np.quantile(s.seconds, 0.01)))
    by_device: dict[Place, list[tuple[Place, Ratios]]] = {}
    for s in samples:
        floor = floors[s.source, s.device]
        long = s.seconds >= FLOORS * floor
        if np.count_nonzero(long) < LEAST_ROWS:
            continue
        ratios = np.log((s.seconds[long] - floor) / s.roofline_s[long])
        order = np.argsort(ratios, kind="stable")
        found = Ratios(ratios[order], s.roofline_s[long][order])
        by_device.setdefault(("cpu", s.component), []).append(((s.source, s.device), found))
    kinds: dict[str, dict[str, Any]] = {
        kind: {name: {"value": v, "spread": s, "source": f"assumed: {why}"} for name, (v, s, why) in rows.items()}
        for kind, rows in ASSUMED.items()
    }
    for (kind, component), devices in sorted(by_device.items()):
        kinds[kind][component] = _summary(devices)
    return {
        "format": FORMAT,
        "version": VERSION,
        "about": "time over roofline by kind and component; spread: standard deviation of its logarithm",
        "kinds": {kind: dict(sorted(rows.items())) for kind, rows in sorted(kinds.items())},
    }


def _summary(devices: list[tuple[Place, Ratios]]) -> dict[str, Any]:
    medians = np.array([r.quantile(0.5) for _, r in devices])
    within = float(np.median([r.deviation for _, r in devices]))
    between = float(np.std(medians, ddof=1)) if len(medians) > 2 else 0.2
    value = float(np.exp(np.median(medians)))
    errors = np.concatenate([np.abs(value / np.exp(r.logarithms) - 1.0) for _, r in devices])
    return {
        "value": round(value, 3),
        "spread": round(max(float(np.hypot(within, between)), 0.05), 3),
        "source": f"fitted: {', '.join(sorted({source for (source, _), _ in devices}))}",
        "devices": len({device for (_, device), _ in devices}),
        "operators": sum(len(r.weights) for _, r in devices),
        "median_ape": round(float(np.median(errors)), 3),
    }


def _sample(source: str, device: str, rows: dict[str, list[tuple[float, Operation]]]) -> Iterator[Sample]:
    peak = PEAKS[device]
    for component, pairs in sorted(rows.items()):
        seconds = np.array([s for s, _ in pairs])
        flops = np.array([o.flops for _, o in pairs])
        nbytes = np.array([o.traffic_bytes for _, o in pairs])
        compute_s = flops / peak.flops_per_s if component.startswith(("matmul", "conv")) else 0.0 * flops
        yield Sample(source, device, component, seconds, np.maximum(compute_s, nbytes / peak.bandwidth_bytes_per_s))


def _deepbench(data: Path) -> Iterator[Sample]:
    rows: dict[str, list[tuple[float, Operation]]] = {}
    for measured in (*deepbench.products(data), *deepbench.convolutions(data)):
        if measured.device == "KNL7250":
            (operation,) = measured.operations
            # The layout of a plain product is no backward pass.
            component = "matmul" if operation.family == "matmul" else operation.component
            rows.setdefault(component, []).append((measured.seconds, operation))
    yield from _sample("DeepBench", "KNL7250", rows)


def _getzner(data: Path) -> Iterator[Sample]:
    rows: dict[str, list[tuple[float, Operation]]] = {}
    for layer in getzner.layers(data):
        if len(layer.operations) != 1 or layer.network:
            continue
        operation = layer.operations[0]
        window = operation.flops * operation.item_bytes / max(operation.write_bytes, 1.0)
        if operation.family != "pooling" or window <= WIDEST_POOL:
            rows.setdefault(operation.component, []).append((layer.seconds, operation))
    yield from _sample("Getzner", "Gold 5120", rows)


READERS = (_deepbench, _getzner)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the prior file. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m hpdlf.experiments.fit_prior", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("data", type=Path, metavar="DATA_DIR", help="folder with neusight/, deepbench/ and so on")
    parser.add_argument(
        "-o", "--output", type=Path, default=PRIOR_FILE, help="file to write (default: the shipped one)"
    )
    chosen = parser.parse_args(arguments)
    try:
        content = derive(chosen.data)
    except DataError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    part = chosen.output.with_name(chosen.output.name + ".part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    part.replace(chosen.output)
    for kind, rows in content["kinds"].items():
        for name, row in rows.items():
            print(f"{kind:5} {name:24} {row['value']:7.3f} ± {row['spread']:.2f}  {row['source']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
