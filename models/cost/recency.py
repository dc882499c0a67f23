r"""How much a measurement still says: the newest of a machine count in full, older ones less.

The weight of an observation is :math:`2^{-a/H}` with its age a against the newest of the same device on the same
machine and the half-life H of :data:`HALF_LIFE_S`, times :data:`OTHER_VERSIONS` where something that computes had
another version then. Ages are differences between observations, never from today, so that a database says the same
tomorrow.

>>> from datetime import datetime
>>> seconds_of("2026-01-31T00:00:00Z") - seconds_of("2026-01-01T00:00:00+00:00") == HALF_LIFE_S
True
>>> weighted_median([3.0, 1.0, 2.0], [1.0, 1.0, 1.0]), weighted_median([1.0, 9.0], [0.25, 1.0])
(2.0, 9.0)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from .observations import Observation

__all__ = ["HALF_LIFE_S", "OTHER_VERSIONS", "changed_versions", "merge", "seconds_of", "weighted_median", "weights"]

HALF_LIFE_S = 30 * 86_400.0
OTHER_VERSIONS = 0.25
# These are recorded with a run, but no task's time depends on them.
_NO_MATTER = frozenset({"hpdlf", "onnx", "duckdb", "simpy", "safetensors", "python"})


def seconds_of(time: str) -> float:
    """ISO 8601 as seconds since 1970 (UTC where it says nothing else); minus infinity for what is no time."""
    try:
        moment = datetime.fromisoformat(time)
    except ValueError:
        return -math.inf
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def changed_versions(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """What computes and has another version, {package: (before, after)}; what either side does not name says nothing."""
    shared = sorted(set(before) & set(after) - _NO_MATTER)
    return {name: (before[name], after[name]) for name in shared if before[name] != after[name]}


def weights(observations: Sequence[Observation]) -> list[float]:
    """The weight of each of `observations` among them, above 0 and at most 1."""
    newest: dict[tuple[str, str], Observation] = {}
    for o in observations:
        place = o.subject, o.machine
        if place not in newest or seconds_of(o.time) > seconds_of(newest[place].time):
            newest[place] = o
    found = []
    for o in observations:
        latest = newest[o.subject, o.machine]
        age_s = seconds_of(latest.time) - seconds_of(o.time) if o.time != latest.time else 0.0
        # Ten half-lives: old, but better than nothing.
        weight = 0.5 ** min(age_s / HALF_LIFE_S, 10.0) if not math.isnan(age_s) else 1.0
        found.append(weight * (OTHER_VERSIONS if changed_versions(o.versions, latest.versions) else 1.0))
    return found


def weighted_median(values: Sequence[float], weights: Sequence[float]) -> float:
    """The value below and above which half of the weight lies; the mean of two where it lies between them."""
    ordered = sorted(zip(values, weights, strict=True))
    half, passed = sum(weights) / 2, 0.0
    for i, (value, weight) in enumerate(ordered):
        passed += weight
        if math.isclose(passed, half) and i + 1 < len(ordered):
            return (value + ordered[i + 1][0]) / 2
        if passed > half:
            return value
    return ordered[-1][0]


def merge(observations: Iterable[Observation], *, crowds_apart: bool = False) -> list[Observation]:
    """Observations of the same work as one, sorted: the weighted median of their times and of their bounds, the rest
    from the newest. `crowds_apart`: one for each number of ranks that shared a node.
    """
    rows = list(observations)
    groups: dict[tuple[str, str, str, str, float], list[tuple[Observation, float]]] = {}
    for o, weight in zip(rows, weights(rows), strict=True):
        crowd = (o.ranks_on_node or 0.0) if crowds_apart else 0.0
        groups.setdefault((o.subject, o.subject_kind, o.kind, o.key, crowd), []).append((o, weight))
    merged = []
    for _, group in sorted(groups.items()):
        group.sort(key=lambda pair: (pair[0].time, pair[0].run, pair[0].host, pair[0].seconds))
        counts = [weight for _, weight in group]
        merged.append(
            replace(
                group[-1][0],  # components follow the profile, which may have been measured anew
                seconds=weighted_median([o.seconds for o, _ in group], counts),
                low_s=weighted_median([o.low_s for o, _ in group], counts),
                high_s=weighted_median([o.high_s for o, _ in group], counts),
                repeats=sum(o.repeats for o, _ in group),
            )
        )
    return merged
