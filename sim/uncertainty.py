"""How sure a step's time is: errors of the cost model drawn together, and what they do to the timeline.

The errors of two products on one device are not two coin tosses: the factor between roofline and truth that the cost model believes
in stands in both. So each family of operators per device, and latency and bandwidth per link, has one *latent* error, a factor whose
logarithm is normal, and so has each fitted number of a framework. A price is a sum of *cells*, each the seconds that one family takes
under one such number, and a draw multiplies each cell by its factors. The part of a family's spread that its workloads do not share
(:data:`SHARED`) is drawn for each price by itself; over a step it averages out.

Small programs are replayed once a draw (latin hypercube, seeded). For large ones the effect is taken to first order: a step's time
is homogeneous of degree one in its tasks' times, so its derivatives with respect to the logarithms of all cells add up to the step
(Euler), and they are the parts of the step that the cells fill: computing, and communication as far as it is exposed.

>>> parts = [Part(family="A100: matmul", software="products", seconds=3.0, spread=0.1)]
>>> found = makeup({"product": parts}, software={"products": 0.1})
>>> low, high = found.bounds({"product": 1.0})
>>> low < 1.0 < high, found.latents
(True, ('A100: matmul', 'products'))
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..models.cost import Estimate, Workload
from ..models.cost.factors import NINETY
from ..models.cost.model import Share
from ..models.cost.roofline import MATRIX_FAMILIES

if TYPE_CHECKING:
    from .pricing import Pricing

__all__ = ["DRAWS", "SHARED", "Makeup", "Part", "bounds_of", "makeup", "parts_of", "priced"]

Floats = NDArray[np.float64]

DRAWS = 16
SHARED = 0.5
"""The share of a family's variance that all its workloads have in common; the rest is each workload's own. (Modelled: regressions
on operators that are left out by device err about as much in the mean of a device as around it.)"""


class Part(NamedTuple):
    """Seconds of a price that one family takes, under one of the framework's numbers; `spread` of the logarithm of its factor."""

    family: str
    software: str
    seconds: float
    spread: float


def parts_of(workload: Workload, estimate: Estimate, shares: Sequence[Share]) -> tuple[Part, ...]:
    """What the price of a workload consists of; `shares` as the cost model explains it.

    What was measured, or interpolated between measurements, has the spread of its estimate and one family for all.
    """
    kind = "communication" if workload.payload_bytes and workload.subject_kind == "link" else ""
    if estimate.provenance in ("measured", "interpolated") or not sum(s.seconds for s in shares):
        low, high = max(estimate.low_s, 1e-30), max(estimate.high_s, 1e-30)
        spread = math.log(high / low) / 2 / NINETY if estimate.seconds else 0.0
        return (Part(f"{workload.subject}: {estimate.provenance}", kind or "products", estimate.seconds, spread),)
    scale = estimate.seconds / sum(s.seconds for s in shares)
    found = []
    for share in shares:
        subject, _, component = share.component.rpartition(":")
        family, *rest = component.split(".")
        if kind:
            family = rest[-1] if rest else family
        part = "products" if family in MATRIX_FAMILIES else "rows"
        spread = math.log(share.high_s / share.low_s) / 2 / NINETY if share.low_s > 0.0 else 0.0
        found.append(Part(f"{subject or workload.subject}: {family}", kind or part, share.seconds * scale, spread))
    return tuple(found)


@dataclass(frozen=True, kw_only=True)
class Makeup:
    """Prices as sums of cells.

    keys       of the prices
    cells      pairs of family and number of the framework
    latents    the independent errors, in the order of the columns of `loadings`
    loadings   [cell, latent] standard deviations of the logarithm of a cell's factor
    seconds    [key, cell]
    own        [key] standard deviation of the logarithm of what a price shares with no other
    """

    keys: tuple[Hashable, ...]
    cells: tuple[tuple[str, str], ...]
    latents: tuple[str, ...]
    loadings: Floats
    seconds: Floats
    own: Floats

    def draws(self, n: int = DRAWS, seed: int = 0) -> list[dict[Hashable, float]]:
        """`n` times the seconds of all prices; over all draws, each latent error goes once through each n-th of its range."""
        generator = np.random.Generator(np.random.Philox(seed))
        normal = NormalDist()
        middles = np.array([normal.inv_cdf((i + 0.5) / n) for i in range(n)])
        errors = (
            np.stack([generator.permutation(middles) for _ in self.latents], axis=1)
            if self.latents
            else np.zeros((n, 0))
        )
        own = generator.standard_normal((n, len(self.keys))) * self.own
        drawn = (np.exp(errors @ self.loadings.T) @ self.seconds.T) * np.exp(own)
        return [dict(zip(self.keys, row.tolist(), strict=True)) for row in drawn]

    def spread(self, weights: Mapping[Hashable, float]) -> float:
        """Standard deviation of the logarithm of a time of which each price is the part `weights` (1 in all), to first order."""
        weight = np.array([weights.get(key, 0.0) for key in self.keys])
        whole = self.seconds.sum(axis=1)
        within = np.divide(self.seconds, whole[:, None], out=np.zeros_like(self.seconds), where=whole[:, None] > 0.0)
        shared = (weight @ within) @ self.loadings
        return float(np.sqrt((shared**2).sum() + ((weight * self.own) ** 2).sum()))

    def bounds(self, weights: Mapping[Hashable, float]) -> tuple[float, float]:
        """The factors on a time between which it lies in nine cases of ten, to first order."""
        width = NINETY * self.spread(weights)
        return math.exp(-width), math.exp(width)


def makeup(prices: Mapping[Hashable, Sequence[Part]], *, software: Mapping[str, float]) -> Makeup:
    """Prices by key, and the spread of each of the framework's numbers."""
    cells: dict[tuple[str, str], int] = {}
    latents: dict[str, int] = {}
    for parts in prices.values():
        for part in parts:
            cells.setdefault((part.family, part.software), len(cells))
            latents.setdefault(part.family, len(latents))
    for name in software:
        latents.setdefault(name, len(latents))
    seconds, variance = np.zeros((len(prices), len(cells))), np.zeros((len(prices), len(cells)))
    for row, parts in enumerate(prices.values()):
        for part in parts:
            at = cells[part.family, part.software]
            seconds[row, at] += part.seconds
            variance[row, at] += part.seconds * part.spread**2
    whole = np.maximum(seconds.sum(axis=0), 1e-300)
    loadings = np.zeros((len(cells), len(latents)))
    for (family, name), at in cells.items():
        loadings[at, latents[family]] = math.sqrt(SHARED * variance[:, at].sum() / whole[at])
        if name in software:
            loadings[at, latents[name]] = software[name]
    total = np.maximum(seconds.sum(axis=1), 1e-300)
    own = np.sqrt((1.0 - SHARED) * (seconds * variance).sum(axis=1)) / total
    return Makeup(
        keys=tuple(prices), cells=tuple(cells), latents=tuple(latents), loadings=loadings, seconds=seconds, own=own
    )


def priced(pricing: Pricing, ranks: Iterable[int]) -> tuple[Makeup, Mapping[int, Mapping[str, Hashable]]]:
    """What the prices of `ranks` consist of, and by rank and instruction the key of its price; what is free has none."""
    prices: dict[Hashable, Sequence[Part]] = {}
    keys: dict[int, dict[str, Hashable]] = {}
    for rank in ranks:
        estimates = pricing.estimates(rank)
        keys[rank] = {}
        for instruction in pricing.program.role_of(rank).instructions:
            estimate = estimates[instruction.id]
            if not estimate.seconds:
                continue
            key = id(estimate)  # prices that are the same are the same object, which `pricing` keeps alive
            if key not in prices:
                workload = pricing.workload(rank, instruction)
                assert workload is not None, "what takes time has a workload"
                device = None if workload.kind == "host" else pricing.cluster.device
                prices[key] = parts_of(workload, estimate, pricing.model.explain(workload, device))
            keys[rank][instruction.id] = key
    software = pricing.software
    names = ("products", "rows", "communication") if software is not None else ()
    return makeup(prices, software={name: getattr(software, name).spread for name in names}), keys


def bounds_of(value: float, drawn: Sequence[float]) -> tuple[float, float]:
    """Where a value lies in nine cases of ten, from its draws: by mean and deviation of their logarithms, which a few draws tell
    better than their outermost ones.
    """
    if value <= 0.0 or min(drawn, default=0.0) <= 0.0:
        return value, value
    logs = np.log(np.asarray(drawn) / value)
    middle, width = float(logs.mean()), NINETY * float(logs.std(ddof=1)) if len(logs) > 1 else 0.0
    return value * min(math.exp(middle - width), 1.0), value * max(math.exp(middle + width), 1.0)
