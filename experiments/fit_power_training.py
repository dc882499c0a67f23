"""Fits the power of GPUs in training (:mod:`hpdlf.models.cost.power_training`) and the curves of power limits
(:mod:`hpdlf.models.cost.power`); part of ``python -m hpdlf.experiments.fit_power``.

First the physics that all devices share: one least-squares fit of a few parameters of the silicon and three per network.
Then one polynomial per pair of network and device on what is left. Then the clock under a limit, on times. Whole GPUs,
whole networks, whole limits and whole batch sizes left out give the intervals and the report.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..hwprofiles import Device, load_device
from ..models.cost.power import full_vector_w, memory_technology
from ..models.cost.power_parameters import PowerParameters, limited, stretched
from ..models.cost.power_training import NOISE, Correction, NetworkLoad, basis, busy_share, capability, scaled
from .published.zeus import TrainingPower, training_runs

__all__ = ["fit_training_power", "plain_loads"]

# Recalled, not fitted. Readings of nvidia-smi on cards with GDDR6 whose clocks are up (T4, A10, A40, RTX A6000, L40S)
# lie between a fifth and a third of their limit; the memory of HBM cards is told from GDDR by its bandwidth.
GDDR_ACTIVE_SHARE = 0.24
HBM_FROM = {"pascal": 6e11, "volta": 6e11, "turing": 1e13, "ampere": 9.3e11, "ada": 1e13, "hopper": 1e12,
            "blackwell": 3e12, "": 1.4e12}  # fmt: skip
# Energy of an operation relative to 16 nm and 12 nm silicon, by the foundries' claims per step of process.
SILICON = {"kepler": 2.5, "maxwell": 1.6, "pascal": 1.0, "volta": 1.0, "turing": 1.0, "ampere": 0.6, "ada": 0.35,
           "hopper": 0.4, "blackwell": 0.35, "cdna": 0.6, "cdna2": 0.5, "cdna3": 0.4, "": 0.6}  # fmt: skip
_PICOJOULES = 18.0  # prior of an operation's energy on that silicon: a P100's 170 W at 9.5 TFLOP/s
_MARGIN = 0.05  # errors beyond this (logarithms) count less than their square


class _Table:
    """The rows as arrays; `pair` numbers the pairs of network and device."""

    def __init__(self, rows: Sequence[TrainingPower]) -> None:
        self.rows = list(rows)
        self.networks = sorted({r.network for r in rows})
        self.network = np.array([self.networks.index(r.network) for r in rows])
        self.device = np.array([r.device for r in rows])
        self.batch = np.array([float(r.batch) for r in rows])
        self.limit = np.array([r.limit_w for r in rows])
        self.watts = np.array([r.watts for r in rows])
        self.profiles = profiles = {r.device: device_of(r.profile) for r in rows}
        self.top = np.array([_limit(profiles[d]) for d in self.device])
        self.gddr = np.array([memory_technology(profiles[d], _blank()) == "gddr" for d in self.device])
        self.full = np.array([full_vector_w(profiles[d], _blank()) for d in self.device])
        self.capability = np.array([capability(profiles[d]) for d in self.device])
        # Time relative to the same configuration at its highest limit.
        best: dict[tuple[object, ...], TrainingPower] = {}
        for r in rows:
            key = (r.device, r.network, r.optimizer, r.batch)
            if key not in best or r.limit_w > best[key].limit_w:
                best[key] = r
        reference = [best[r.device, r.network, r.optimizer, r.batch] for r in rows]
        self.slowdown = np.array([r.epoch_s / b.epoch_s for r, b in zip(rows, reference, strict=True)])
        self.reference = np.array([b.limit_w for b in reference])


@cache
def device_of(profile: str) -> Device:
    return load_device(profile)


def _limit(device: Device) -> float:
    assert device.limit_w is not None, "the devices of the table have limits"
    return device.limit_w.value


@cache
def _blank() -> PowerParameters:
    """Parameters before any fit: one picojoule an operation."""
    return PowerParameters(
        active_share={"hbm": 0.14, "gddr": GDDR_ACTIVE_SHARE}, hbm_from_bytes_per_s=HBM_FROM, joules_per_flop=1e-12,
        silicon=SILICON, compute_share=1.0, compute_power=0.5, memory_share=0.5, memory_power=0.5, network_share=0.2,
        softness=2.0, steady_softness=4.0, static_share=1.0, clock_exponent=2.5, clock_floor=0.6, interval={},
    )  # fmt: skip


class _Physics:
    """The shared parameters as one vector: energy, softness, HBM's active share, and three per network."""

    def __init__(self, vector: NDArray[Any], networks: int) -> None:
        self.vector = vector
        self.picojoules, self.softness, self.hbm = float(np.exp(vector[0])), float(np.exp(vector[1])), float(vector[2])
        self.intensity = np.exp(vector[3 : 3 + networks])
        self.log_half = vector[3 + networks : 3 + 2 * networks]
        self.steepness = np.exp(vector[3 + 2 * networks :])

    def demand(self, t: _Table, at: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """(demand, active, busy) of the rows `at`."""
        network = t.network[at]
        active = np.where(t.gddr[at], GDDR_ACTIVE_SHARE, self.hbm) * t.top[at]
        half = np.exp(self.log_half[network]) * t.capability[at]
        busy = busy_share(t.batch[at], half, self.steepness[network])
        return active + self.picojoules * t.full[at] * self.intensity[network] * busy, active, busy

    def watts(self, t: _Table, at: NDArray[Any]) -> NDArray[Any]:
        demand, active, _ = self.demand(t, at)
        return limited(demand, active, t.limit[at], self.softness)


def _fit_physics(t: _Table, at: NDArray[Any], start: NDArray[Any] | None = None) -> _Physics:
    """The physics of the rows `at`; `start` saves time and does not change where it ends."""
    from scipy.optimize import least_squares

    n = len(t.networks)
    prior = np.concatenate([[np.log(_PICOJOULES), np.log(2.5), 0.15], np.zeros(n), np.full(n, 2.0), np.zeros(n)])
    weight = np.concatenate([[0.3, 0.3, 10.0], np.full(n, 0.5), np.full(n, 0.1), np.full(n, 0.5)])
    log_watts = np.log(t.watts[at])

    def residuals(vector: NDArray[Any]) -> NDArray[Any]:
        found = np.log(_Physics(vector, n).watts(t, at)) - log_watts
        return np.concatenate([found, (vector - prior) * weight])

    low = np.concatenate([[1.0, 0.0, 0.05], np.full(n, -6.0), np.full(n, -6.0), np.full(n, -2.0)])
    high = np.concatenate([[4.5, 3.0, 0.3], np.full(n, 2.0), np.full(n, 12.0), np.full(n, 2.5)])
    first = prior if start is None else start
    solution = least_squares(residuals, first, bounds=(low, high), loss="soft_l1", f_scale=_MARGIN, x_scale=1.0)
    return _Physics(solution.x, n)


def _corrections(t: _Table, at: NDArray[Any], physics: _Physics) -> dict[tuple[int, str], Correction]:
    """A ridge regression per pair of network and device on the logarithm of measured over physical power."""
    left = np.log(t.watts[at] / physics.watts(t, at))
    found = {}
    for network, device in sorted({(int(t.network[i]), str(t.device[i])) for i in at}):
        here = (t.network[at] == network) & (t.device[at] == device)
        rows = at[here]
        if len(rows) < 4:
            continue
        empty = Correction(
            batch=(float(t.batch[rows].min()), float(t.batch[rows].max())),
            limit_w=(float(t.limit[rows].min()), float(t.limit[rows].max())),
            coefficients=(),
        )
        columns, degree = basis(
            scaled(t.batch[rows], empty.batch), scaled(t.limit[rows], empty.limit_w)
        )
        ridge = np.diag(0.01 * degree**2 + 1e-9)
        solution = np.linalg.solve(columns.T @ columns + ridge, columns.T @ left[here])
        found[network, device] = dataclasses.replace(empty, coefficients=tuple(float(f"{c:.5g}") for c in solution))
    return found


def _predict(
    t: _Table, at: NDArray[Any], physics: _Physics, corrections: Mapping[tuple[int, str], Correction]
) -> NDArray[Any]:
    watts = physics.watts(t, at)
    for place, i in enumerate(at):
        correction = corrections.get((int(t.network[i]), str(t.device[i])))
        if correction is not None:
            watts[place] *= float(np.exp(correction.log_factor(t.batch[i], t.limit[i])[0]))
    return np.minimum(watts, 1.02 * t.limit[at])


# Parts left out


def _left_out(t: _Table, groups: Sequence[object], fit: Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]) -> NDArray[Any]:
    """Predictions of every row by a fit that saw no row of its group."""
    found = np.zeros(len(t.watts))
    names = list(groups)
    for group in sorted(set(names), key=str):
        out = np.array([g == group for g in names])
        found[out] = fit(np.flatnonzero(~out), np.flatnonzero(out))
    return found


def _fit_clock(t: _Table, physics: _Physics, at: NDArray[Any]) -> tuple[Callable[[NDArray[Any]], NDArray[Any]], NDArray[Any]]:
    """(slowdowns of rows, the fitted vector): exponent, floor, static share, and the clock's share per network."""
    from scipy.optimize import least_squares

    n = len(t.networks)

    def slowdown(vector: NDArray[Any], rows: NDArray[Any]) -> NDArray[Any]:
        p = clock_parameters(vector, physics)
        demand, active, busy = physics.demand(t, rows)
        share = busy / (1 + np.exp(-vector[3:][t.network[rows]]))
        now, free = (stretched(p.clock_at(demand, active, limit), share) for limit in (t.limit[rows], t.reference[rows]))
        return now / free

    prior = np.concatenate([[np.log(2.5), 0.5, np.log(0.9)], np.zeros(n)])
    weight = np.concatenate([[0.3, 0.3, 1.0], np.full(n, 0.1)])
    log_measured = np.log(t.slowdown[at])

    def residuals(vector: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate([np.log(slowdown(vector, at)) - log_measured, (vector - prior) * weight])

    low = np.concatenate([[0.3, -2.0, -1.0], np.full(n, -4.0)])
    high = np.concatenate([[1.6, 2.5, 0.1], np.full(n, 4.0)])
    solution = least_squares(residuals, prior, bounds=(low, high), loss="soft_l1", f_scale=0.03)
    return lambda rows: slowdown(solution.x, rows), solution.x


def clock_parameters(vector: NDArray[Any], physics: _Physics) -> PowerParameters:
    """The blank parameters with this clock."""
    return dataclasses.replace(
        _blank(), softness=physics.softness, clock_exponent=float(np.exp(vector[0])),
        clock_floor=float(1 / (1 + np.exp(-vector[1]))), static_share=float(np.exp(vector[2])),
    )  # fmt: skip


def fit_training_power(folder: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """(device parameters, networks, report) for the parameter file; the parameters of utilisation are not among them."""
    t = _Table(list(training_runs(folder)))
    every = np.arange(len(t.watts))
    physics = _fit_physics(t, every)
    corrections = _corrections(t, every, physics)
    slowdowns, clock = _fit_clock(t, physics, every)

    def bare(seen: NDArray[Any], unseen: NDArray[Any]) -> NDArray[Any]:
        return _fit_physics(t, seen).watts(t, unseen)

    def corrected(seen: NDArray[Any], unseen: NDArray[Any]) -> NDArray[Any]:
        refit = _fit_physics(t, seen, physics.vector)
        return _predict(t, unseen, refit, _corrections(t, seen, refit))

    def slowed(seen: NDArray[Any], unseen: NDArray[Any]) -> NDArray[Any]:
        return _fit_clock(t, physics, seen)[0](unseen)

    by_device = _left_out(t, list(t.device), bare)
    by_network = _unknown_networks(t, physics)
    pairs = list(zip(t.device.tolist(), t.limit.tolist(), strict=True))
    by_limit = _left_out(t, pairs, corrected)
    by_batch = _left_out(t, list(zip(t.device.tolist(), t.batch.tolist(), strict=True)), corrected)
    slow = _left_out(t, list(t.device), slowed)
    below = t.limit < t.reference
    report = {
        "unseen power limit": _score(t, by_limit),
        "unseen batch size": _score(t, by_batch),
        "unseen GPU": _score(t, by_device) | {g: _score(t, by_device, t.device == g) for g in sorted(set(t.device))},
        "unseen network": _score(t, by_network),
        "unseen GPU, slowdown below the highest limit": _errors(slow[below] / t.slowdown[below]),
        "slowdown below the highest limit, in sample": _errors(slowdowns(every)[below] / t.slowdown[below]),
    }
    both = np.concatenate([np.log(t.watts / by_limit), np.log(t.watts / by_batch)])
    spread = {
        name: [_digits(q) for q in np.quantile(both[np.tile(t.network == i, 2)], (0.05, 0.95))]
        for i, name in enumerate(t.networks)
    }
    p = clock_parameters(clock, physics)
    intervals = {
        "network": _demand_factors(t, t.device, bare),
        "nothing": [0.3, 2.0],
        "slowdown": _excess_factors(slow[below], t.slowdown[below]),
    }
    device = {
        "active_share": {"hbm": _digits(physics.hbm), "gddr": GDDR_ACTIVE_SHARE},
        "hbm_from_bytes_per_s": HBM_FROM,
        "joules_per_flop": _digits(physics.picojoules * 1e-12),
        "silicon": SILICON,
        "softness": _digits(physics.softness),
        "static_share": _digits(p.static_share),
        "clock_exponent": _digits(p.clock_exponent),
        "clock_floor": _digits(p.clock_floor),
        "interval": intervals,
    }
    shares = 1 / (1 + np.exp(-clock[3:]))
    loads = {
        name: NetworkLoad(
            intensity=_digits(physics.intensity[i]),
            half_batch=_digits(np.exp(physics.log_half[i])),
            steepness=_digits(physics.steepness[i]),
            clock_share=_digits(shares[i]),
            spread=(spread[name][0], spread[name][1]),
            corrections={t.profiles[d].name: c for (network, d), c in corrections.items() if network == i},
        )
        for i, name in enumerate(t.networks)
    }
    working = [v for v in loads.values() if v.intensity > 0.1]
    loads[""] = NetworkLoad(
        intensity=_digits(np.median([v.intensity for v in working])),
        half_batch=_digits(np.exp(np.median(np.log([v.half_batch for v in working])))),
        steepness=1.0,
        clock_share=_digits(np.median([v.clock_share for v in working])),
    )
    return device, plain_loads(loads), report


def plain_loads(loads: Mapping[str, NetworkLoad]) -> dict[str, Any]:
    """Loads as plain values for the file."""
    return {name: dataclasses.asdict(load) for name, load in loads.items()}


def _unknown_networks(t: _Table, physics: _Physics) -> NDArray[Any]:
    """Each network's rows predicted with the mean load of the others."""
    found = np.zeros(len(t.watts))
    for i in range(len(t.networks)):
        others = [j for j in range(len(t.networks)) if j != i and physics.intensity[j] > 0.1]
        rows = np.flatnonzero(t.network == i)
        active = np.where(t.gddr[rows], GDDR_ACTIVE_SHARE, physics.hbm) * t.top[rows]
        half = np.exp(np.median(physics.log_half[others])) * t.capability[rows]
        demand = active + physics.picojoules * t.full[rows] * np.median(physics.intensity[others]) * busy_share(
            t.batch[rows], half, 1.0
        )
        found[rows] = limited(demand, active, t.limit[rows], physics.softness)
    return found


def _demand_factors(
    t: _Table, groups: NDArray[Any], fit: Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]
) -> list[float]:
    """The factors on demand that give an interval with 90 % of the rows of devices left out; see `training_power`."""
    parts = []
    for group in sorted(set(groups)):
        unseen, seen = np.flatnonzero(groups == group), np.flatnonzero(groups != group)
        physics = _fit_physics(t, seen)
        demand, active, _ = physics.demand(t, unseen)
        parts.append((demand, active, t.limit[unseen], physics.softness, t.watts[unseen]))

    def coverage(width: float) -> float:
        inside, n = 0, 0
        for demand, active, limit, softness, watts in parts:
            low_active = active / width
            low = 0.96 * limited(np.maximum(demand / width, low_active), low_active, limit, softness)
            high = np.minimum(1.04 * limited(demand * width, active, limit, softness), 1.02 * limit)
            inside += int(np.sum((low <= watts) & (watts <= high)))
            n += len(watts)
        return inside / n

    width = next((w for w in np.arange(1.05, 2.5, 0.01) if coverage(float(w)) >= 0.9), 2.5)
    return [_digits(1 / width), _digits(width)]


def _excess_factors(predicted: NDArray[Any], measured: NDArray[Any]) -> list[float]:
    """The factors on the time above 1 that hold 90 % of the slowdowns of devices left out."""

    def coverage(f: float) -> float:
        low, high = 1 + (predicted - 1) / f - NOISE, 1 + (predicted - 1) * f + NOISE
        return float(np.mean((low <= measured) & (measured <= high)))

    factor = next((f for f in np.arange(1.1, 6.0, 0.05) if coverage(float(f)) >= 0.9), 6.0)
    return [_digits(1 / factor), _digits(factor)]


def _score(t: _Table, predicted: NDArray[Any], at: NDArray[Any] | None = None) -> dict[str, Any]:
    at = np.ones(len(t.watts), bool) if at is None else at
    return _errors(predicted[at] / t.watts[at])


def _errors(ratio: NDArray[Any]) -> dict[str, Any]:
    errors = np.abs(ratio - 1)
    return {
        "n": len(errors),
        "median_ape": float(f"{np.median(errors):.4g}"),
        "p90_ape": float(f"{np.quantile(errors, 0.9):.4g}"),
        "bias": float(f"{np.median(ratio - 1):.4g}"),
    }


def _digits(value: Any) -> float:
    return float(f"{float(value):.6g}")
