r"""Has the machine changed? The same work measured before and after, and on one node and its equals.

Within a device on a node, observations of a family of operators are compared at every boundary between runs. For each
workload measured on both sides, d is the logarithm of its median after over before. The shift is the median of all d, and
its standard error joins what scatters between workloads and what a whole run has in common (another program was
running):

.. math:: \mathrm{se}^2 = \Big(1.25 \frac{\max(1.48\,\mathrm{MAD}(d), \sigma)}{\sqrt{n}}\Big)^2
          + \sigma_r^2 \Big(\frac{1}{n_{before}} + \frac{1}{n_{after}}\Big)

with n workloads and as many runs before and after (medians and MAD stand a few outliers: Huber, "Robust statistics",
1981, chapter 5). The boundary with the largest shift over se counts where that is above :data:`CERTAIN` and the shift above
:data:`LEAST_SHIFT`; then the time on either side is searched again (binary segmentation), and each change is sized
between its neighbours. Nodes of equal hardware are held against each other by the same test.

A drift is confirmed by a second run, or by a version that changed with it. :func:`up_to_date` brings what was measured
before a confirmed drift to what it would take now.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from statistics import median

from .factors import NINETY
from .observations import Observation
from .recency import changed_versions, seconds_of

__all__ = ["CORRECTED", "Drift", "family_of", "find_drifts", "slower_nodes", "up_to_date"]

LEAST_SHIFT = math.log(1.05)
CERTAIN = 4.0
# Standard deviations of logarithms: of one workload measured twice, and of all workloads of a run together.
WORK_SPREAD = 0.02
RUN_SPREAD = 0.02
# The least share of a workload's time by which a family stands for it.
STANDS_OUT = 0.4
CORRECTED = "corrected"
"""The condition of an observation that was brought up to date: by how much its time was multiplied."""


@dataclass(frozen=True, kw_only=True)
class Drift:
    """`family` on `subject` takes `ratio` times what it took (nine in ten: `low` to `high`).

    against   "before": the same node earlier, `since` tells when it changed; "nodes": others with the same hardware
    workloads, runs   that say so; `changed`: versions that changed at that time, {package: (before, after)}
    """

    subject: str
    family: str
    machine: str
    host: str
    against: str
    ratio: float
    low: float
    high: float
    workloads: int
    runs: int
    since: str = ""
    changed: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def confirmed(self) -> bool:
        """Whether more than one run, or a cause, stands behind it."""
        return self.runs > 1 or bool(self.changed) or self.against == "nodes"

    def __str__(self) -> str:
        slower = "longer" if self.ratio > 1 else "less time"
        percent, low, high = (abs(100 * (r - 1)) for r in (self.ratio, self.low, self.high))
        place = f" on {self.host or self.machine}" if self.host or self.machine else ""
        size = f"{percent:.0f} % {slower} ({min(low, high):.0f} to {max(low, high):.0f} %)"
        if self.ratio >= _IN_TIMES:
            size = f"{self.ratio:.3g} times as long ({self.low:.3g} to {self.high:.3g} times)"
        count = f"{self.workloads} workload{'s' * (self.workloads > 1)} in {self.runs} run{'s' * (self.runs > 1)}"
        if self.against == "nodes":
            return f"{self.family} on {self.subject} takes {size}{place} than on other nodes of the same hardware: {count}."
        why = "; ".join(f"{name} {a} became {b}" for name, (a, b) in self.changed.items())
        cause = f" At that time {why}." if why else ""
        unsure = "" if self.confirmed else " One run alone may have shared the machine: measure again to be sure."
        return f"{self.family} on {self.subject} takes {size}{place} since {self.since}: {count}.{cause}{unsure}"


def family_of(observation: Observation) -> str:
    """What most of the time at the roofline goes to, without phase and precision: "conv", "all_reduce"; "mixed" where
    nothing stands out.
    """
    totals: dict[str, float] = {}
    for component, seconds in observation.components.items():
        name = component.rpartition(":")[2].partition(".")[0]
        if name not in ("kernels", "dispatch") or len(observation.components) == 1:
            totals[name] = totals.get(name, 0.0) + seconds
    if not any(totals.values()):
        return "dispatch"
    largest = max(sorted(totals), key=totals.__getitem__)
    return largest if totals[largest] >= STANDS_OUT * sum(totals.values()) else "mixed"


_IN_TIMES = 3.0
"""From here on nobody thinks in percent."""

_Place = tuple[str, str, str]
_Moment = tuple[float, str]


def find_drifts(observations: Iterable[Observation]) -> tuple[Drift, ...]:
    """What changed over time, by device, node and family; the earlier change first."""
    places: dict[tuple[_Place, str], list[Observation]] = {}
    for o in observations:
        if math.isfinite(seconds_of(o.time)):
            places.setdefault(((o.subject, o.machine, o.host), family_of(o)), []).append(o)
    found = []
    for (_, family), rows in sorted(places.items()):
        rows.sort(key=lambda o: (_moment(o), o.key, o.seconds))
        found += _changes(family, rows)
    return tuple(found)


def _changes(family: str, rows: list[Observation]) -> list[Drift]:
    """Between every two regimes in turn, those that the boundaries of :func:`_boundaries` make."""
    edges = [(-math.inf, ""), *_boundaries(rows), (math.inf, "")]
    regimes = [[o for o in rows if start <= _moment(o) < end] for start, end in pairwise(edges)]
    found = []
    for before, after in pairwise(regimes):
        shift = _shift(before, after)
        if shift is not None and shift.certain:
            changed = changed_versions(before[-1].versions, after[0].versions)
            found.append(_drift(family, after, shift, "before", since=after[0].time, changed=changed))
    return found


def _boundaries(rows: list[Observation]) -> list[_Moment]:
    """Where times change, by binary segmentation: the most certain boundary, then those on either side of it."""
    best: tuple[float, _Moment] | None = None
    for moment in sorted({_moment(o) for o in rows})[1:]:
        shift = _shift([o for o in rows if _moment(o) < moment], [o for o in rows if _moment(o) >= moment])
        if shift is not None and shift.certain and (best is None or shift.certainty > best[0]):
            best = shift.certainty, moment
    if best is None:
        return []
    moment = best[1]
    before, after = [o for o in rows if _moment(o) < moment], [o for o in rows if _moment(o) >= moment]
    return [*_boundaries(before), moment, *_boundaries(after)]


def _moment(observation: Observation) -> _Moment:
    return seconds_of(observation.time), observation.run


def slower_nodes(observations: Iterable[Observation]) -> tuple[Drift, ...]:
    """Nodes on which a family takes longer than on others of the same hardware."""
    equals: dict[tuple[str, str, str], dict[str, list[Observation]]] = {}
    for o in observations:
        if o.host:
            equals.setdefault((o.subject, o.machine, family_of(o)), {}).setdefault(o.host, []).append(o)
    found = []
    for (_, _, family), hosts in sorted(equals.items()):
        for host, own in sorted(hosts.items()):
            others = [o for other, rows in hosts.items() if other != host for o in rows]
            shift = _shift(others, own)
            if shift is not None and shift.certain and shift.value > 0:
                found.append(_drift(family, own, shift, "nodes"))
    return tuple(found)


def up_to_date(observations: Iterable[Observation], drifts: Sequence[Drift]) -> list[Observation]:
    """`observations` as they would be today: what was measured before a confirmed drift is multiplied by it and says so
    (:data:`CORRECTED`), and left out where the same work was measured since.
    """
    rows = list(observations)
    changes: dict[tuple[_Place, str], list[Drift]] = {}
    for d in drifts:
        if d.against == "before" and d.confirmed:
            changes.setdefault(((d.subject, d.machine, d.host), d.family), []).append(d)
    if not changes:
        return rows
    kept: list[tuple[Observation, float]] = []
    corrected: list[tuple[Observation, float]] = []
    for o in rows:
        later = [
            d
            for d in changes.get(((o.subject, o.machine, o.host), family_of(o)), ())
            if seconds_of(o.time) < seconds_of(d.since)
        ]
        (corrected if later else kept).append((o, math.prod(d.ratio for d in later)))
    measured = {(o.subject, o.kind, o.key) for o, _ in kept}
    return [o for o, _ in kept] + [
        replace(
            o,
            seconds=o.seconds * ratio,
            low_s=o.low_s * ratio,
            high_s=o.high_s * ratio,
            conditions={**o.conditions, CORRECTED: ratio},
        )
        for o, ratio in corrected
        if (o.subject, o.kind, o.key) not in measured
    ]


@dataclass(frozen=True)
class _Shift:
    """A logarithm of a ratio of times, and its standard error."""

    value: float
    error: float
    workloads: int

    @property
    def certainty(self) -> float:
        return abs(self.value) / self.error

    @property
    def certain(self) -> bool:
        return abs(self.value) >= LEAST_SHIFT and self.certainty >= CERTAIN


def _shift(before: Sequence[Observation], after: Sequence[Observation]) -> _Shift | None:
    """Logarithm of after over before, over the workloads that both measured; None where there are none."""
    sides = [_by_key(before), _by_key(after)]
    shared = sorted(sides[0].keys() & sides[1].keys())
    if not shared:
        return None
    differences = [
        median(math.log(o.seconds) for o in sides[1][key]) - median(math.log(o.seconds) for o in sides[0][key])
        for key in shared
    ]
    value = median(differences)
    noise = median(math.hypot(*(min(_noise(o) for o in side[key]) for side in sides)) for key in shared)
    scatter = max(1.4826 * median(abs(d - value) for d in differences), WORK_SPREAD, noise)
    runs = [len({o.run for key in shared for o in side[key]}) for side in sides]
    error = math.hypot(1.2533 * scatter / math.sqrt(len(shared)), RUN_SPREAD * math.sqrt(1 / runs[0] + 1 / runs[1]))
    return _Shift(value, error, len(shared))


def _by_key(rows: Iterable[Observation]) -> dict[tuple[str, str], list[Observation]]:
    found: dict[tuple[str, str], list[Observation]] = {}
    for o in rows:
        found.setdefault((o.kind, o.key), []).append(o)
    return found


def _noise(observation: Observation) -> float:
    """Standard deviation of the logarithm of one repeat: what went on beside it may have gone on for the whole run."""
    below, above = observation.seconds / observation.low_s, observation.high_s / observation.seconds
    return math.log(math.sqrt(below * above)) / NINETY


def _drift(
    family: str,
    rows: Sequence[Observation],
    shift: _Shift,
    against: str,
    *,
    since: str = "",
    changed: Mapping[str, tuple[str, str]] | None = None,
) -> Drift:
    return Drift(
        subject=rows[0].subject,
        family=family,
        machine=rows[0].machine,
        host=rows[0].host,
        against=against,
        ratio=math.exp(shift.value),
        low=math.exp(shift.value - NINETY * shift.error),
        high=math.exp(shift.value + NINETY * shift.error),
        workloads=shift.workloads,
        runs=len({o.run for o in rows}),
        since=since,
        changed=changed or {},
    )
