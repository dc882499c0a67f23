"""Drift: found where it is, named, sized, dated; not found where there is none."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest

from hpdlf.models.cost import Observation
from hpdlf.models.cost.drift import CORRECTED, Drift, family_of, find_drifts, slower_nodes, up_to_date

Make = Callable[..., Observation]
CONV, MATMUL = {"conv": 1.0, "dispatch": 1e-6}, {"matmul.backward.half": 1.0, "kernels": 3.0}


def runs(
    make: Make,
    factors: Sequence[Mapping[str, float]],
    *,
    workloads: int = 6,
    noise: float = 0.01,
    hosts: Sequence[str] = ("node1",),
    **more: Sequence[object],
) -> list[Observation]:
    """A run a day; factors[day][family] is what its times are multiplied by."""
    generator = np.random.default_rng(1)
    rows = []
    for day, factor in enumerate(factors):
        fields = {name: values[day] for name, values in more.items()}
        for host in hosts:
            for i in range(workloads):
                for family, components in (("conv", CONV), ("matmul", MATMUL)):
                    seconds = (1 + i) * factor.get(family, 1.0) * factor.get(host, 1.0)
                    seconds *= math.exp(noise * generator.standard_normal())
                    rows.append(
                        make(
                            seconds,
                            low_s=seconds * 0.99,
                            high_s=seconds * 1.01,
                            key=f"{family}{i}",
                            components=components,
                            run=f"run{day}",
                            time=f"2026-01-{day + 1:02d}T00:00:00Z",
                            machine="m",
                            host=host,
                            **fields,
                        )
                    )
    return rows


def test_families(make_observation: Make) -> None:
    assert family_of(make_observation(components=CONV)) == "conv"
    assert family_of(make_observation(components=MATMUL)) == "matmul"
    assert family_of(make_observation(components={"conv": 1.0, "matmul": 1.0, "softmax": 1.0})) == "mixed"
    link = {"inner:all_reduce.latency": 1.0, "all_reduce.bandwidth": 2.0}
    assert family_of(make_observation(components=link, subject_kind="link")) == "all_reduce"


def test_a_new_driver_that_slows_one_family(make_observation: Make) -> None:
    versions = [{"driver": "550"}] * 3 + [{"driver": "560"}] * 3
    rows = runs(make_observation, [{}] * 3 + [{"conv": 1.12}] * 3, versions=versions)
    (found,) = find_drifts(rows)
    assert (found.family, found.host, found.since) == ("conv", "node1", "2026-01-04T00:00:00Z")
    assert found.ratio == pytest.approx(1.12, rel=0.01)
    assert found.low < 1.12 < found.high
    assert (found.workloads, found.runs, found.changed) == (6, 3, {"driver": ("550", "560")})
    assert found.confirmed
    assert str(found) == (
        f"conv on toy takes {100 * (found.ratio - 1):.0f} % longer ({100 * (found.low - 1):.0f} to "
        f"{100 * (found.high - 1):.0f} %) on node1 since 2026-01-04T00:00:00Z: 6 workloads in 3 runs. At that time driver "
        "550 became 560."
    )


def test_the_error_in_closed_form(make_observation: Make) -> None:
    """Without scatter: the floors of both noises remain."""
    rows = runs(make_observation, [{}, {}, {"conv": 1.5}], workloads=4, noise=0.0)
    (found,) = find_drifts(rows)
    error = math.hypot(1.2533 * 0.02 / math.sqrt(4), 0.02 * math.sqrt(1 / 2 + 1))
    assert found.ratio == pytest.approx(1.5)
    assert found.high == pytest.approx(1.5 * math.exp(1.645 * error), rel=1e-3)


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.03])
def test_noise_is_no_drift(make_observation: Make, noise: float) -> None:
    assert find_drifts(runs(make_observation, [{}] * 8, noise=noise)) == ()


def test_noise_of_the_repeats_is_taken_into_account(make_observation: Make) -> None:
    """A quarter slower, but single steps of either run differ as much."""
    calm = runs(make_observation, [{}, {"conv": 1.25}])
    restless = [make_observation(**{**vars(o), "low_s": o.seconds / 1.3, "high_s": o.seconds * 1.3}) for o in calm]
    assert len(find_drifts(calm)) == 1
    assert find_drifts(restless) == ()


def test_other_work_is_not_compared(make_observation: Make) -> None:
    rows = runs(make_observation, [{}] * 2)
    other = [make_observation(**{**vars(o), "key": f"other {o.key}", "seconds": 2 * o.seconds, "high_s": 3 * o.seconds,
                                 "run": "later", "time": "2026-02-01"}) for o in rows]  # fmt: skip
    assert find_drifts(rows + other) == ()


def test_back_and_forth_gives_two(make_observation: Make) -> None:
    rows = runs(make_observation, [{}] * 3 + [{"matmul": 1.3}] * 3 + [{}] * 3)
    first, second = find_drifts(rows)
    assert (first.since[8:10], second.since[8:10]) == ("04", "07")
    assert first.ratio == pytest.approx(1.3, rel=0.02)
    assert second.ratio == pytest.approx(1 / 1.3, rel=0.02)


def test_one_run_alone_says_that_it_is_not_sure(make_observation: Make) -> None:
    (found,) = find_drifts(runs(make_observation, [{}, {}, {"conv": 1.4}]))
    assert not found.confirmed
    assert "measure again" in str(found)


def test_a_slower_node(make_observation: Make) -> None:
    rows = runs(make_observation, [{"node3": 1.2}] * 2, hosts=("node1", "node2", "node3", "node4"))
    found = slower_nodes(rows)
    assert [(d.host, d.family) for d in found] == [("node3", "conv"), ("node3", "matmul")]
    assert all(d.ratio == pytest.approx(1.2, rel=0.02) and d.confirmed for d in found)
    assert "than on other nodes of the same hardware" in str(found[0])
    assert find_drifts(rows) == ()
    assert slower_nodes(runs(make_observation, [{}] * 2, hosts=("node1", "node2"))) == ()


def test_what_was_measured_before_is_brought_up_to_date(make_observation: Make) -> None:
    rows = runs(make_observation, [{}] * 2 + [{"conv": 1.2}] * 2, noise=0.0)
    rows.append(
        make_observation(
            7.0, key="only then", components=CONV, time="2026-01-01", run="run0", machine="m", host="node1"
        )
    )
    drifts = find_drifts(rows)
    current = up_to_date(rows, drifts)
    old = [o for o in current if CORRECTED in o.conditions]
    assert [(o.key, pytest.approx(7.0 * 1.2), o.conditions[CORRECTED]) for o in old] == [
        ("only then", old[0].seconds, drifts[0].ratio)
    ]
    # What was measured since stands for itself, what did not change stays.
    assert {o.run for o in current if o.key == "conv3"} == {"run2", "run3"}
    assert {o.run for o in current if o.key == "matmul3"} == {"run0", "run1", "run2", "run3"}
    assert up_to_date(rows, ()) == rows


def test_what_is_not_confirmed_changes_nothing(make_observation: Make) -> None:
    rows = runs(make_observation, [{}, {}, {"conv": 1.4}])
    drifts: tuple[Drift, ...] = find_drifts(rows)
    assert drifts
    assert up_to_date(rows, drifts) == rows


def test_order_does_not_matter(make_observation: Make) -> None:
    rows = runs(make_observation, [{}] * 3 + [{"conv": 1.12}] * 3)
    assert find_drifts(rows[::-1]) == find_drifts(rows)


def test_a_change_of_many_times_is_not_told_in_percent() -> None:
    found = Drift(
        subject="toy", family="all_reduce", machine="vm", host="", against="before", ratio=400.0, low=100.0, high=1600.0,
        workloads=1, runs=1, since="2026-01-01",
    )  # fmt: skip
    assert "takes 400 times as long (100 to 1.6e+03 times)" in str(found)
