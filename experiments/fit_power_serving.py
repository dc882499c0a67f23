"""Fits the power of GPUs that serve models (:mod:`hpdlf.models.cost.power_serving`) and how power depends on utilisation
(:mod:`hpdlf.models.cost.power`); part of ``python -m hpdlf.experiments.fit_power``.

Every model left out in turn gives the interval on known devices, every device left out in turn that on others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..hwprofiles import Device
from ..models.cost.power_parameters import limited
from ..models.cost.power_serving import FORMAT, SHARES, VERSION, ServingLoad, feature_table
from ..models.cost.trees import Forest
from .fit_cpu_energy import forest_to_plain, grow
from .fit_power_training import device_of
from .published.measured import read_table
from .published.ml_energy import ServedPower, served

__all__ = ["fit_serving_power", "fit_utilisation"]

_DEPTH = 4
STEADY_SOFTNESS = 4.0
_COVERAGE = (0.05, 0.95)


def fit_serving_power(folder: Path) -> dict[str, Any]:
    """The parameter file as plain values."""
    rows = [r for r in served(folder) if r.load is not None]
    kinds, report = {}, {}
    for kind in ("language", "diffusion"):
        chosen = [r for r in rows if r.load is not None and r.load.kind == kind]
        loads = [r.load for r in chosen if r.load is not None]
        devices = [device_of(r.profile) for r in chosen]
        x, y = feature_table(loads, devices), np.log(_shares(chosen, loads, devices))
        by_model = _left_out(x, y, [r.model for r in chosen])
        by_maker = _left_out(x, y, [r.model.split("/")[0] for r in chosen])
        by_device = _left_out(x, y, [r.device for r in chosen])
        forest = Forest.of(_grow(x, y), _DEPTH)
        kinds[kind] = {
            "interval": {
                "model": _by_share(y, by_model),
                "device": _by_share(y, by_device),
            },
            "forest": forest_to_plain(forest),
        }
        report[kind] = {
            "unseen model": _errors(by_model - y),
            "unseen maker": _errors(by_maker - y),
            "unseen GPU": _errors(by_device - y),
        }
    return {
        "format": FORMAT,
        "version": VERSION,
        "source": "ML.ENERGY benchmark v3 (ml-energy/leaderboard)",
        "devices": sorted({device_of(r.profile).name for r in rows}),
        "report": report,
        "kinds": kinds,
    }


def _shares(rows: Sequence[ServedPower], loads: Sequence[ServingLoad], devices: Sequence[Device]) -> NDArray[Any]:
    limits = [d.limit_w.value for d in devices if d.limit_w is not None]
    return np.array([r.watts / (load.devices * top) for r, load, top in zip(rows, loads, limits, strict=True)])


def _grow(x: NDArray[Any], y: NDArray[Any]) -> Any:
    return grow(x, y, trees=150, depth=_DEPTH, leaves=6, rate=0.06)


def _left_out(x: NDArray[Any], y: NDArray[Any], groups: Sequence[str]) -> NDArray[Any]:
    names, found = np.array(groups), np.zeros(len(y))
    for group in sorted(set(groups)):
        out = names == group
        found[out] = _grow(x[~out], y[~out]).predict(x[out])
    return found


def fit_utilisation(folder: Path, active_share: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the parameters of :mod:`.power` that say how power depends on utilisation, report).

    Here the measured throughput is used: with it, utilisation is work over peak.
    """
    from scipy.optimize import least_squares

    compute, memory, share, device = _utilisations(folder)

    def shares(v: NDArray[Any], at: NDArray[Any]) -> NDArray[Any]:
        demand = active_share + v[0] * compute[at] ** v[1] + v[2] * memory[at] ** v[3]
        return limited(demand, active_share, 1.0, STEADY_SOFTNESS)

    def solve(at: NDArray[Any]) -> NDArray[Any]:
        def residuals(v: NDArray[Any]) -> NDArray[Any]:
            return np.log(shares(v, at) / share[at])

        # Matrix products at the full clock ask for no more than 1.6 times the limit: at it, the best ones run at 80 % of
        # the boost clock's peak (stas00/ml-engineering, best products found).
        bounds = ([0.0, 0.3, 0.0, 0.3], [1.6, 1.0, 1.6, 1.0])
        solved: NDArray[Any] = least_squares(residuals, [1.0, 0.5, 0.7, 0.5], bounds=bounds, loss="soft_l1", f_scale=0.1).x
        return solved

    every = np.arange(len(share))
    v = solve(every)
    ratios = np.zeros(len(share))
    for name in sorted(set(device)):
        unseen = np.flatnonzero(device == name)
        ratios[unseen] = share[unseen] / shares(solve(np.flatnonzero(device != name)), unseen)
    low, high = (_digits(q) for q in np.quantile(ratios, _COVERAGE))
    parameters = {
        "compute_share": _digits(v[0]),
        "compute_power": _digits(v[1]),
        "memory_share": _digits(v[2]),
        "memory_power": _digits(v[3]),
        # Recalled: between the passes of a step, while they communicate, GPUs draw half to three quarters of their limit,
        # clocks up included (Patel et al., "Characterizing power management opportunities for LLMs in the cloud", ASPLOS 2024).
        "network_share": 0.5,
        "steady_softness": STEADY_SOFTNESS,
    }
    report = {
        "power from utilisation, unseen GPU": _errors(-np.log(ratios)),
        "power from utilisation, in sample": _errors(np.log(shares(v, every) / share)),
    }
    return parameters | {"interval": {"utilisation": [low, high]}}, report


def _utilisations(folder: Path) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """(compute, memory utilisation, share of the limit, device) of language models, and of the image models whose
    arithmetic is known well enough: dense transformers over 4,096 patches.
    """
    table = read_table(folder, "ml_energy_v3/inference_energy.csv", ("output_throughput_tokens_per_sec", "batch_latency_s"))
    found: list[tuple[float, float, float, str]] = []
    assert table is not None, "the caller has read the table"
    rows = [r for r in table.to_dict("records") if r["avg_power_watts"] > 0]
    for row, record in zip(rows, served(folder), strict=True):
        load, device = record.load, device_of(record.profile)
        if load is None or device.limit_w is None:
            continue
        peak, bandwidth = device.peak_flops_per_s["bfloat16"].value, device.memory_bandwidth_bytes_per_s.value
        if load.kind == "language":
            seconds = load.batch / row["output_throughput_tokens_per_sec"]
            share = load.active_parameters / load.parameters
            touched = load.parameters * (1.0 if share >= 1 else 1 - (1 - share) ** (load.batch / load.data_parallel))
            memory = touched * load.weight_bytes * load.data_parallel / load.devices / bandwidth / seconds
            flops = 2.0 * load.active_parameters * load.batch
            peak *= 2.0 if load.weight_bytes == 1.0 else 1.0
        elif any(name in record.model for name in ("FLUX", "stable-diffusion")):
            seconds, steps = row["batch_latency_s"], row["inference_steps"]
            flops = 2.0 * load.parameters * load.tokens * load.batch * steps
            memory = load.parameters * load.weight_bytes * steps / bandwidth / seconds
        else:
            continue
        watts = record.watts / load.devices / device.limit_w.value
        found.append((min(flops / load.devices / peak / seconds, 1.0), min(memory, 1.0), watts, record.device))
    compute, memory_, share_, names = zip(*found, strict=True)
    return np.array(compute), np.array(memory_), np.array(share_), np.array(names)


def _by_share(measured: NDArray[Any], predicted: NDArray[Any]) -> list[list[float]]:
    """Quantiles of measured over predicted, by the predicted share of the limit."""
    place = np.searchsorted(SHARES, np.exp(predicted))
    ratios = [(measured - predicted)[place == i] for i in range(len(SHARES) + 1)]
    return [[_digits(np.exp(q)) for q in np.quantile(r, _COVERAGE)] for r in ratios]


def _errors(log_ratio: NDArray[Any]) -> Mapping[str, Any]:
    errors = np.abs(np.expm1(log_ratio))
    return {
        "n": len(errors),
        "median_ape": float(f"{np.median(errors):.4g}"),
        "p90_ape": float(f"{np.quantile(errors, 0.9):.4g}"),
        "bias": float(f"{np.median(np.expm1(log_ratio)):.4g}"),
    }


def _digits(value: Any) -> float:
    return float(f"{float(value):.6g}")
