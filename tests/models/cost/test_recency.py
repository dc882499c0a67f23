"""What is recent counts more, and how much."""

from collections.abc import Callable

import pytest

from hpdlf.models.cost import Observation
from hpdlf.models.cost.recency import OTHER_VERSIONS, changed_versions, merge, seconds_of, weighted_median, weights

Make = Callable[..., Observation]


def test_a_half_life_halves_the_weight(make_observation: Make) -> None:
    rows = [make_observation(time=f"2026-0{month}-01T00:00:00Z") for month in (1, 3)]
    rows += [make_observation(time="2026-01-30T00:00:00+00:00"), make_observation(time="2026-03-01T02:00:00+02:00")]
    found = weights(rows)
    assert found[1] == found[3] == 1.0
    assert found[2] == pytest.approx(0.5)
    assert found[0] == pytest.approx(0.5 ** (59 / 30))


def test_every_machine_has_its_own_newest(make_observation: Make) -> None:
    rows = [
        make_observation(time="2025-01-01T00:00:00Z", machine="old"),
        make_observation(time="2026-01-01T00:00:00Z", machine="new"),
    ]
    assert weights(rows) == [1.0, 1.0]


def test_other_versions_of_what_computes_count_less(make_observation: Make) -> None:
    now, before = {"jaxlib": "0.7", "hpdlf": "2"}, {"jaxlib": "0.6", "hpdlf": "1"}
    assert changed_versions(before, now) == {"jaxlib": ("0.6", "0.7")}
    assert changed_versions({"driver": "1"}, now) == {}
    rows = [make_observation(versions=before, time="2026-01-01"), make_observation(versions=now, time="2026-01-31")]
    assert weights(rows) == [0.5 * OTHER_VERSIONS, 1.0]


def test_what_has_no_time_is_old_but_counts(make_observation: Make) -> None:
    assert seconds_of("yesterday") == float("-inf")
    rows = [make_observation(time="yesterday"), make_observation(time="2026-01-01T00:00:00Z")]
    assert weights(rows) == [pytest.approx(0.5**10), 1.0]
    assert weights([make_observation(time=""), make_observation(time="")]) == [1.0, 1.0]


def test_the_weighted_median() -> None:
    assert weighted_median([4.0, 1.0, 3.0, 2.0], [1.0] * 4) == 2.5
    assert weighted_median([1.0, 2.0, 10.0], [1.0, 1.0, 5.0]) == 10.0
    assert weighted_median([7.0], [0.1]) == 7.0


def test_merged_work_follows_the_newest(make_observation: Make) -> None:
    rows = [
        make_observation(1.0, run="a", time="2025-01-01", components={"conv": 1.0}),
        make_observation(1.1, run="b", time="2025-01-02"),
        make_observation(2.0, run="c", time="2026-01-01", components={"conv": 9.0}, plan="p"),
    ]
    (found,) = merge(rows)
    assert (found.seconds, found.components, found.plan, found.repeats) == (2.0, {"conv": 9.0}, "p", 15)
    assert merge(rows[::-1]) == [found]
    (equal,) = merge([make_observation(t, run=str(t)) for t in (3.0, 1.0, 2.0)])
    assert equal.seconds == 2.0
