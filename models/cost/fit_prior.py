"""Deriving the factors that ship with the package from public measurements.

``python -m hpdlf.models.cost.fit_prior DATA_DIR [-o FILE]`` reads NeuSight, DeepBench, SimuMax and Getzner et al. as
DATA_DIR holds them and writes ``prior.json``; the same data give the same bytes.

For every data set, device and family the ratio of the measured time, less the launch floor of that data set, to the
roofline is taken over all operators that last at least five floors. Operators count by their roofline time, as they
do in the time of a network. The factor of a family is the median over devices of their medians; its spread joins the
scatter of operators within a device (median over devices of the robust standard deviation of the logarithm) with the
scatter of devices. Components that nothing measures get the factor and source written in :data:`ASSUMED`.

Left out on purpose: Justus et al. (2018), whose convolutions take five to ten times the roofline on the GPUs on which
DeepBench and NeuSight take 1.3 to 1.7 (the calls of TensorFlow 1 are in them).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ...errors import DataError
from .factors import FORMAT, PRIOR_FILE, VERSION

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["derive", "main"]


class Peak(NamedTuple):
    """FLOP/s at full and at 16-bit precision, bytes/s, and the kind of device."""

    flops_per_s: float
    half_flops_per_s: float | None
    bandwidth_bytes_per_s: float
    kind: str = "gpu"


# Vendors' boost peaks and memory bandwidths; those of the NeuSight devices as that project's configurations give them.
PEAKS = {
    "P4": Peak(5.699e12, None, 192e9),
    "P100-PCIE-16GB": Peak(9.519e12, 19.05e12, 732e9),
    "T4": Peak(8.141e12, 65.13e12, 320e9),
    "V100-PCIE-32GB": Peak(14.029e12, 112e12, 900e9),
    "A100-PCIE-40GB": Peak(19.492e12, 312e12, 1555e9),
    "A100-PCIE-80GB": Peak(19.492e12, 312e12, 1935e9),
    "MI100": Peak(46.1e12, 184.6e12, 1230e9),
    "B200-SXM": Peak(80e12, 2250e12, 8000e9),
    "P100": Peak(10.6e12, 21.2e12, 732e9),
    "V100": Peak(15.7e12, 125e12, 900e9),
    "1080Ti": Peak(11.34e12, None, 484e9),
    "M40": Peak(6.84e12, None, 288e9),
    "TitanX": Peak(6.69e12, None, 336e9),
    "TitanX_Pascal": Peak(10.97e12, None, 480e9),
    "MI25": Peak(12.3e12, 24.6e12, 484e9),
    "KNL7250": Peak(6.09e12, None, 400e9, "cpu"),
    # One core: matrix products take the same share of one core's peak whatever their shape, and the packages draw what
    # one busy core makes them draw. 32 FLOP a cycle (one AVX-512 unit) at 2.9 GHz; a core streams about 12 GB/s.
    "Gold 5120": Peak(32 * 2.9e9, None, 12e9, "cpu"),
}
# What no data set here isolates: (factor, spread, source).
ASSUMED: dict[str, dict[str, tuple[float, float, str]]] = {
    "gpu": {
        "pooling": (1.5, 0.5, "element-wise operators, wider"),
        "gather": (2.0, 0.6, "scattered reads use part of every memory transaction"),
        "reduction": (1.3, 0.4, "normalisation, wider"),
        "movement": (1.5, 0.5, "a transpose writes in strides"),
        "normalisation.backward": (
            1.25,
            0.4,
            "element-wise: both passes over operand and gradient are counted as traffic",
        ),
        "loss": (1.5, 0.6, "softmax, wider"),
        "update": (1.3, 0.4, "element-wise over many small tensors"),
        "kernels": (0.4, 0.6, "a kernel in a stream of kernels costs 2 to 4 us, less than a launch by itself"),
        "dispatch": (1.0, 0.5, "the profile's launch overhead"),
        "other": (1.5, 0.8, "nothing known"),
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
        by_device.setdefault((PEAKS[s.device].kind, s.component), []).append(((s.source, s.device), found))
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


def _table(data: Path, name: str) -> pd.DataFrame | None:
    import pandas as pd

    path = data / name
    return pd.read_csv(path) if path.exists() else None


def _sample(
    source: str, device: Any, component: Any, seconds: Any, flops: Any, words: Any, *, item: int = 4, half: bool = False
) -> Iterator[Sample]:
    """One sample if the device's peak is known; `words` of `item` bytes cross the memory interface."""
    peak = PEAKS.get(device)
    top = None if peak is None else peak.half_flops_per_s if half else peak.flops_per_s
    if peak is None or top is None:
        return
    times = np.asarray(seconds, dtype=float)
    roof = np.maximum(np.asarray(flops, float) / top, np.asarray(words, float) * item / peak.bandwidth_bytes_per_s)
    good = np.isfinite(times) & (times > 0) & np.isfinite(roof) & (roof > 0)
    if np.count_nonzero(good):
        yield Sample(source, device, component, times[good], roof[good])


def _neusight(data: Path) -> Iterator[Sample]:
    gemm = _table(data, "neusight/gemm.csv")
    if gemm is not None:
        for device, t in gemm.groupby("device"):
            # A linear layer's weight is shared by the batch; a batched product has one for every sample.
            weights = np.where(t.op == "bmm", t.B, 1)
            words = t.B * t.M * t.K + weights * t.K * t.N + t.B * t.M * t.N
            yield from _sample("NeuSight", device, "matmul", t.latency_ms / 1e3, 2.0 * t.B * t.M * t.N * t.K, words)
    conv = _table(data, "neusight/conv2d.csv")
    if conv is not None:
        for device, t in conv.groupby("device"):
            pixels = t.B * t.input_hw.astype(float) ** 2
            flops = 18.0 * pixels * t.in_channels * t.out_channels
            words = pixels * (t.in_channels + t.out_channels) + 9 * t.in_channels * t.out_channels
            yield from _sample("NeuSight", device, "conv", t.latency_ms / 1e3, flops, words)
    vector = _table(data, "neusight/vector.csv")
    if vector is not None:
        vector["component"] = vector.op.map({"softmax": "softmax", "ln": "normalisation"}).fillna("elementwise")
        for (where, component), t in vector.groupby(["device", "component"]):
            words = np.where(t.op.isin(["add", "mul", "pow", "div"]), 3, 2) * t.B * t.H
            yield from _sample("NeuSight", where, component, t.latency_ms / 1e3, 0.0 * words, words)


def _deepbench(data: Path) -> Iterator[Sample]:
    gemm = _table(data, "deepbench/gemm.csv")
    if gemm is not None:
        gemm = gemm[gemm["mode"] == "train"]
        for (device, numbers), t in gemm.groupby(["device", "precision"]):
            words = 1.0 * t.M * t.K + 1.0 * t.K * t.N + 1.0 * t.M * t.N
            flops = 2.0 * t.M * t.N * t.K
            if numbers in ("fp32", "fp16_mixed"):
                half = numbers != "fp32"
                name = "matmul.half" if half else "matmul"
                yield from _sample(
                    "DeepBench", device, name, t.time_ms / 1e3, flops, words, item=2 if half else 4, half=half
                )
    conv = _table(data, "deepbench/conv2d.csv")
    if conv is not None:
        conv = conv[conv["mode"] == "train"]
        for (device, numbers), t in conv.groupby(["device", "precision"]):
            if numbers not in ("fp32", "fp16_mixed"):
                continue
            half = bool(numbers != "fp32")
            high = (t.H + 2 * t.pad_h - t.R_filter_h) // t.stride_h + 1
            wide = (t.W + 2 * t.pad_w - t.S_filter_w) // t.stride_w + 1
            taps = t.C * t.R_filter_h * t.S_filter_w
            flops = 2.0 * t.N * t.K * high * wide * taps
            words = t.N * (1.0 * t.C * t.H * t.W + t.K * high * wide) + t.K * taps
            for column, name in (
                ("fwd_ms", "conv"),
                ("bwd_input_ms", "conv.backward"),
                ("bwd_weight_ms", "conv.backward"),
            ):
                name += ".half" if half else ""
                yield from _sample(
                    "DeepBench", device, name, t[column] / 1e3, flops, words, item=2 if half else 4, half=half
                )
    rnn = _table(data, "deepbench/rnn.csv")
    if rnn is not None:
        gates = {"lstm": 4, "gru": 3, "vanilla": 1}
        rnn = rnn[(rnn["mode"] == "train") & rnn.cell.isin(list(gates)) & (rnn.precision == "fp32")]
        for device, t in rnn.groupby("device"):
            weights = 2.0 * t.cell.map(gates) * t.hidden**2  # for the input and for the recurrent state
            flops = 2.0 * weights * t.batch * t.timesteps
            words = weights + 2.0 * t.batch * t.timesteps * t.hidden
            yield from _sample("DeepBench", device, "rnn", t.fwd_ms / 1e3, flops, words)


def _simumax(data: Path) -> Iterator[Sample]:
    table = _table(data, "simumax/op_efficiency.csv")
    if table is None:
        return
    table = table[(table.op == "matmul") & table.efficiency.gt(0)]
    # The layout tells the pass: TN forward, NN gradient of the operand, NT gradient of the weight.
    table = table.assign(component=np.where(table.layout == "TN", "matmul.half", "matmul.backward.half"))
    for (device, component), t in table.groupby(["device", "component"]):
        flops = 2.0 * t.b * t.m * t.k * t.n
        words = t.b * (t.m * t.k + t.k * t.n + t.m * t.n)
        yield from _sample("SimuMax", device, component, t.derived_time_ms / 1e3, flops, words, item=2, half=True)


def _getzner(data: Path) -> Iterator[Sample]:
    table = _table(data, "getzner2023_cpu_energy/layers.csv")
    if table is None:
        return
    device = "Gold 5120"
    # Outside this range the energy counter slipped; those runs were disturbed.
    table = table[table.avg_cpu_power_W.between(60, 82)]
    component = {
        "Conv2d": "conv",
        "Linear": "matmul",
        "MaxPool2d": "pooling",
        "ReLU": "elementwise",
        "Sigmoid": "elementwise",
        "Tanh": "elementwise",
        "Softmax": "softmax",
    }
    for name, rows in table.assign(component=table.module.map(component)).groupby("component"):
        t = rows
        batch = t.batch.astype(float)
        if name == "conv":
            out = (t.image_size + 2 * t.padding - t.kernel_size) // t.stride + 1
            flops = 2.0 * batch * out**2 * t.out_channels * t.in_channels * t.kernel_size**2
            words = batch * (t.image_size**2 * t.in_channels + out**2 * t.out_channels)
            words += t.kernel_size**2 * t.in_channels * t.out_channels
        elif name == "matmul":
            flops = 2.0 * batch * t.input_size * t.output_size
            words = batch * (t.input_size + t.output_size) + t.input_size * t.output_size
        elif name == "pooling":
            # Networks pool over two or three; the data go up to eleven, where nothing of memory traffic is left.
            few = t.kernel_size <= 3
            t, batch = t[few], batch[few]
            out = (t.image_size + 2 * t.padding - t.kernel_size) // t.stride + 1
            flops = 1.0 * batch * out**2 * t.in_channels * t.kernel_size**2
            words = batch * t.in_channels * (t.image_size**2 + out**2)
        else:
            flops, words = 0.0 * batch, 2.0 * batch * t.input_size
        yield from _sample("Getzner", device, str(name), t.time_per_fwd_s, flops, words)


READERS = (_neusight, _deepbench, _simumax, _getzner)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the prior file. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m hpdlf.models.cost.fit_prior", description=(__doc__ or "").split("\n")[0]
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
