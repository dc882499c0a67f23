r"""How long operations take on a processor of which something was measured: operators, or segments of many compiled
together.

``seconds = base * exp(f(features))`` for an operation, with the base from :mod:`.cpu_terms` and f a Gaussian process over
features that mean something: sizes on logarithmic scales, the kind of operation, how it is lowered. f is the sum of
independent parts with spreads of their own: a constant of the core, one of each family, one of each kind, and a part
that varies smoothly with the sizes (a Matérn kernel, nu = 3/2; Rasmussen, Williams, "Gaussian processes for machine
learning", 2006, section 4.2). So one measurement moves everything by a factor, few tell families apart, and many show
how the factor depends on the sizes.

What is measured is a sum, :math:`t_i = \sum_j b_{ij} e^{f_j}` over the operations of a segment and its call. In
logarithms and linearised around the last estimate, with :math:`s_{ij}` operation j's share of the segment,

.. math:: \log t_i + \sum_j s_{ij} f_j - \log \hat t_i = \sum_j s_{ij} f_j + \varepsilon_i

is an observation of f, so that a few Gauss-Newton steps (damped, as the posterior tells) lead to the most probable f.
Outliers count less: a residual beyond three standard deviations has its variance raised (Student's t, by iterated
weights). The spread of an estimate is that of f given all that was measured, and of how much segments differ from the
sum of their parts.

>>> from .operation import Operation
>>> product = Operation(family="matmul", op="linear", dims=(1, 256, 256, 256), flops=2 * 256**3,
...     read_bytes=2 * 4 * 256**2, write_bytes=4 * 256**2)
>>> times = LocalTimes.fit([Measured(operations=(product,), seconds=1e-3, noise=0.02, weight=1.0)])
>>> bool(0.8e-3 < times.estimate((product,))["matmul"].seconds < 1.1e-3)
True
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .cpu_terms import CpuTerms, lowering_of
from .operation import Operation

__all__ = ["CALL", "LocalTimes", "Measured", "Part", "Quality"]

Array = NDArray[np.float64]

# The component of what a call costs, and its base.
CALL = "dispatch"
CALL_S = 1.2e-5

# Standard deviations of the parts of f, as logarithms: of the core, a family, a kind of operation, what varies with the
# sizes, and what features do not tell.
CORE, FAMILY, KIND, SIZES, OWN = 0.7, 0.15, 0.2, 0.3, 0.06
# Over so many doublings of a size f forgets.
LENGTH = 4.0
# Another phase of the same kind shares so much of the part that varies with the sizes; another kind of the family.
OTHER_PHASE, OTHER_KIND = 0.6, 0.2
# Operations with less than this share of everything that they were measured in are no points of their own.
LEAST_SHARE = 0.02
# Segments differ by this much from the sum of their parts.
SEGMENT = 0.04
LEAST_NOISE = 0.025
OUTLIER = 3.0
ROUNDS = 25


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What was measured: operations compiled together in one call, the relative spread of repeats, the weight."""

    operations: tuple[Operation, ...]
    seconds: float
    noise: float
    weight: float = 1.0


class Part(NamedTuple):
    """Seconds of one component of a workload and the standard deviation of their logarithm."""

    seconds: float
    spread: float


class Quality(NamedTuple):
    """Median relative errors: by what ships, after the fit, and of each measurement by all others."""

    before: float
    after: float
    left_out: float | None


class _Points(NamedTuple):
    """Points of f: numbers of family, kind and phase, and the features."""

    family: NDArray[np.int64]
    kind: NDArray[np.int64]
    phase: NDArray[np.int64]
    features: Array

    def of(self, places: Any) -> _Points:
        """Some of the points."""
        return _Points(self.family[places], self.kind[places], self.phase[places], self.features[places])


class LocalTimes:
    """What measurements of one device taught; see the module's text."""

    def __init__(self, terms: CpuTerms) -> None:
        self._terms = terms
        self._names: dict[str, int] = {}
        self._bases: dict[Operation, float | None] = {}
        self._features: dict[Operation, tuple[int, int, int, Array]] = {}
        self._points = _empty()
        self._shares = np.zeros((0, 0))
        self._weights = np.zeros(0)
        self._factor: Any = np.zeros((0, 0))
        self.quality = Quality(0.0, 0.0, None)

    # Learning

    @classmethod
    def fit(cls, measured: Sequence[Measured], terms: CpuTerms | None = None) -> LocalTimes:
        """The process given `measured`, the same for any order. Measurements with operations of unknown kinds are passed
        over.
        """
        model = cls(terms or CpuTerms.default())
        rows = [m for m in measured if model.knows(m.operations)]
        if rows:
            model._learn(sorted(rows, key=lambda m: (m.seconds, len(m.operations), str(m.operations))))
        return model

    @property
    def learned(self) -> bool:
        """Whether anything was learned."""
        return len(self._weights) > 0

    def knows(self, operations: Sequence[Operation]) -> bool:
        """Whether all `operations` are of kinds that have a base."""
        return bool(operations) and all(self._base(o) is not None for o in operations)

    def _learn(self, rows: Sequence[Measured]) -> None:
        place: dict[Operation | None, int] = {}
        parts: list[dict[int, float]] = []
        for row in rows:
            sums: dict[int, float] = {place.setdefault(None, len(place)): CALL_S}
            for operation in row.operations:
                at = place.setdefault(operation, len(place))
                sums[at] = sums.get(at, 0.0) + (self._base(operation) or 0.0)
            parts.append(sums)
        bases = np.zeros((len(rows), len(place)))
        for i, sums in enumerate(parts):
            bases[i, list(sums)] = list(sums.values())
        log_t = np.log([row.seconds for row in rows])
        own = np.array(
            [max(row.noise, LEAST_NOISE) ** 2 + (SEGMENT**2 if len(row.operations) > 1 else 0.0) for row in rows]
        ) / np.array([row.weight for row in rows])
        everything = self._points_of(list(place))
        kept = (bases / bases.sum(axis=1, keepdims=True)).max(axis=0) >= LEAST_SHARE
        kept[0] = True
        self._points = everything.of(kept)
        prior = _kernel(self._points, self._points, same=True)
        across = _kernel(everything, self._points)
        across[kept] = prior
        self._solve(bases, log_t, own, prior, across, kept)

    def _solve(
        self, bases: Array, log_t: Array, own: Array, prior: Array, across: Array, kept: NDArray[np.bool_]
    ) -> None:
        beta = np.zeros(len(prior))
        variance = own.copy()

        def state(beta: Array) -> tuple[Array, Array, float]:
            each = bases * np.exp(np.clip(across @ beta, -8.0, 8.0))
            total = each.sum(axis=1)
            off = log_t - np.log(total)
            return each / total[:, None], off, float(np.sum(off**2 / variance) + beta @ prior @ beta)

        shares, off, cost = state(beta)
        before = float(np.median(np.abs(np.expm1(-off))))
        for _ in range(ROUNDS):
            variance = own * np.maximum(1.0, np.abs(off) / (OUTLIER * np.sqrt(own)))
            cost = float(np.sum(off**2 / variance) + beta @ prior @ beta)
            seen = shares[:, kept]
            system = seen @ prior @ seen.T + np.diag(variance)
            target = off + shares @ (across @ beta)
            wanted = seen.T @ np.linalg.solve(system, target)
            step, taken = 1.0, False
            while step > 0.02:
                trial = beta + step * (wanted - beta)
                found = state(trial)
                if found[2] < cost:
                    taken = cost - found[2] > 1e-4 * max(cost, 1.0)
                    beta, (shares, off, cost) = trial, found
                    break
                step /= 2
            if not taken:
                break
        seen = shares[:, kept]
        system = seen @ prior @ seen.T + np.diag(variance)
        self._shares, self._weights = seen, beta
        self._factor = np.linalg.cholesky(system)
        left_out = None
        if len(off) > 1:
            inverse = np.linalg.inv(system)
            target = off + shares @ (across @ beta)
            left_out = float(np.median(np.abs(np.expm1(-(inverse @ target) / np.diag(inverse)))))
        self.quality = Quality(before, float(np.median(np.abs(np.expm1(-off)))), left_out)

    # Predicting

    def estimate(self, operations: Sequence[Operation]) -> Mapping[str, Part]:
        """Seconds of `operations` in one call, by component, the call's own among them; empty if :meth:`knows` them not
        all.
        """
        if not self.learned or not self.knows(operations):
            return {}
        counts: dict[Operation | None, int] = {None: 1}
        for operation in operations:
            counts[operation] = counts.get(operation, 0) + 1
        distinct = list(counts)
        points = self._points_of(distinct)
        across = _kernel(points, self._points)
        bases = np.array([CALL_S if o is None else (self._base(o) or 0.0) for o in distinct])
        seconds = bases * np.exp(np.clip(across @ self._weights, -8.0, 8.0)) * np.array(list(counts.values()))
        components: dict[str, list[int]] = {}
        for i, o in enumerate(distinct):
            components.setdefault(CALL if o is None else o.component, []).append(i)
        # What is known of f at these points, and how it covaries: for the spread of sums.
        told = np.linalg.solve(self._factor, (across @ self._shares.T).T)
        found = {}
        for name, places in components.items():
            total = float(seconds[places].sum())
            shares = seconds[places] / max(total, 1e-30)
            among = _kernel(points.of(places), None, same=True)
            variance = shares @ among @ shares - float(np.sum((told[:, places] @ shares) ** 2))
            found[name] = Part(total, math.sqrt(max(variance, 0.0) + SEGMENT**2))
        return found

    # Operations as points

    def _base(self, operation: Operation) -> float | None:
        if operation not in self._bases:
            self._bases[operation] = self._terms.seconds(operation)
        return self._bases[operation]

    def _points_of(self, operations: Sequence[Operation | None]) -> _Points:
        rows = [self._point(o) if o is not None else (self._number(CALL),) * 3 + (_NOWHERE,) for o in operations]
        if not rows:
            return _empty()
        family, kind, phase, features = zip(*rows, strict=True)
        return _Points(np.array(family), np.array(kind), np.array(phase), np.array(features))

    def _point(self, operation: Operation) -> tuple[int, int, int, Array]:
        if operation not in self._features:
            kind, features = _described(operation)
            family = f"{operation.family} {operation.precision}"
            numbers = (self._number(n) for n in (family, f"{family} {kind}", operation.phase))
            a, b, c = numbers
            self._features[operation] = a, b, c, features
        return self._features[operation]

    def _number(self, name: str) -> int:
        return self._names.setdefault(name, len(self._names))


_SIZES = 8
_NOWHERE = np.zeros(_SIZES)


def _described(o: Operation) -> tuple[str, Array]:
    """The kind of an operation within its family, and its features: logarithms to base 2."""
    features = np.zeros(_SIZES)
    if o.family == "conv" and len(o.dims) == 9:
        n, c, k, r, s, p, q, stride, groups = o.dims
        features[:6] = _logs(n * p * q, c / groups, k / groups, r * s, math.sqrt(p * q), c**0.3)
        features[6:] = _powers(c, k)
        return f"{lowering_of(o)}{' strided' if stride > 1 else ''}", features
    if o.family in ("matmul", "attention", "rnn"):
        features[:4] = _logs(*o.dims)
        features[6:] = _powers(o.dims[2], o.dims[3])
        return o.op, features
    rows, columns = o.dims[:2] if len(o.dims) > 1 else (1, o.dims[0] if o.dims else 1)
    features[:3] = _logs(rows, columns, (o.read_bytes + o.write_bytes) / max(rows * columns, 1) / 4 + 0.25)
    features[3] = 2.0 * o.own_kernel
    return o.op, features


def _logs(*values: float) -> list[float]:
    return [math.log2(max(v, 1e-9)) for v in values]


def _powers(*values: int) -> list[float]:
    """How often 2 divides, up to ten times: rows that far apart share few places of a cache."""
    return [0.5 * math.log2(min(v & -v, 1024)) for v in values]


def _empty() -> _Points:
    nothing = np.zeros(0, np.int64)
    return _Points(nothing, nothing, nothing, np.zeros((0, _SIZES)))


def _kernel(a: _Points, b: _Points | None, *, same: bool = False) -> Array:
    """Covariances of f between points; `same`: `a` with itself (b None or a), each point's own part included."""
    b = b or a
    family = a.family[:, None] == b.family
    kind = a.kind[:, None] == b.kind
    phase = a.phase[:, None] == b.phase
    found = np.full((len(a.family), len(b.family)), CORE**2) + FAMILY**2 * family + KIND**2 * kind
    for number in np.unique(a.family):
        i, j = np.flatnonzero(a.family == number), np.flatnonzero(b.family == number)
        if not len(j):
            continue
        x, y = a.features[i] / LENGTH, b.features[j] / LENGTH
        square = np.maximum((x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T, 0.0)
        far = np.sqrt(3.0 * square)
        block = np.ix_(i, j)
        like = np.where(kind[block], np.where(phase[block], 1.0, OTHER_PHASE), OTHER_KIND)
        found[block] += SIZES**2 * like * (1.0 + far) * np.exp(-far)
    if same:
        found[np.diag_indices_from(found)] += OWN**2
    return found
