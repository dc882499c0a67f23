"""Messages and one-sided accesses: closed forms, and how the intervals follow the profile."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpdlf.errors import PlanError
from hpdlf.hwprofiles import Link, Quantity, load_cluster, load_link
from hpdlf.models.cost import CostModel, collective_workload, one_sided_workload, transfer_workload
from hpdlf.models.cost.links import spread_of, spreads_of


def quantity(value: float, low: float | None = None, high: float | None = None, tier: str = "measured") -> Quantity:
    return Quantity(value=value, unit="1", source="test", tier=tier, low=low, high=high)


LINK = Link(
    name="test",
    latency_s=quantity(2e-6),
    bandwidth_bytes_per_s=quantity(40e9),
    efficiency=quantity(0.5),
    adapters=quantity(4),
)
BUILDING = replace(LINK, half_bandwidth_bytes=quantity(1e5))


def message_s(nbytes: int, link: Link) -> float:
    return transfer_workload(nbytes, link).roofline_s


def test_a_message_takes_latency_and_one_adapter() -> None:
    assert message_s(0, LINK) == 2e-6
    assert message_s(10**9, LINK) == pytest.approx(2e-6 + 1e9 / 5e9)


def test_short_messages_see_half_of_the_bandwidth_and_long_ones_lose_it_once() -> None:
    assert message_s(100, BUILDING) - 2e-6 == pytest.approx(2 * 100 / 5e9, rel=1e-2)
    assert message_s(10**9, BUILDING) - message_s(10**9, LINK) == pytest.approx(1e5 / 5e9, rel=1e-2)


@given(st.integers(0, 10**9), st.integers(1, 10**8))
def test_messages_take_longer_the_longer_they_are(nbytes: int, more: int) -> None:
    assert message_s(nbytes, BUILDING) < message_s(nbytes + more, BUILDING)


@pytest.mark.parametrize("name", ["nvlink3", "pcie4", "infiniband-hdr-1", "ethernet-10g", "ici-v4", "upi-2-socket"])
def test_every_class_of_link_has_a_latency_and_a_bandwidth_that_large_messages_reach(name: str) -> None:
    link = load_link(name)
    assert 1e-7 < message_s(8, link) < 1e-4
    assert message_s(10**10, link) == pytest.approx(10**10 / link.message_bandwidth_bytes_per_s, rel=0.01)


def test_one_sided_accesses_go_to_every_other_owner() -> None:
    cluster = load_cluster("xeon-64:4x1")
    workload = one_sided_workload("put", 4_000_000, range(4), cluster)
    assert workload is not None
    assert cluster.link is not None
    assert workload.components["put.latency"] == pytest.approx(3 * cluster.link.latency_s.value)
    each = transfer_workload(1_000_000, cluster.link).components["transfer.bandwidth"]
    assert workload.components["put.bandwidth"] == pytest.approx(3 * each)
    assert one_sided_workload("put", 8, [1], cluster) is None
    with pytest.raises(PlanError, match="known are put, get, notify"):
        one_sided_workload("push", 8, range(2), cluster)


def test_the_spread_of_a_value_is_its_range_or_that_of_its_tier() -> None:
    assert spread_of(quantity(1.0, 0.9, 1.1)) == pytest.approx(0.061, rel=0.01)
    tiers = [spread_of(quantity(1.0, tier=tier)) for tier in ("measured", "datasheet", "modelled", "recalled")]
    assert tiers == sorted(tiers)


def test_what_was_measured_has_the_narrower_interval() -> None:
    sure = replace(LINK, collective_efficiency=quantity(0.5, 0.45, 0.55))
    unsure = replace(LINK, collective_efficiency=quantity(0.5, 0.25, 0.9))
    name = "all_reduce.bandwidth"
    assert spreads_of(sure, [name])[name] < spreads_of(unsure, [name])[name]
    # Another collective, or a group that was not measured, is known less well.
    assert spreads_of(sure, [name])[name] < spreads_of(sure, ["all_to_all.bandwidth"])["all_to_all.bandwidth"]
    grouped = replace(sure, group_share={"2": quantity(0.5), "8": quantity(1.0)})
    assert spreads_of(grouped, [name], 8)[name] < spreads_of(grouped, [name], 6)[name]


def test_intervals_follow_the_profile() -> None:
    measured, assumed = load_cluster("dgx-a100:1"), load_cluster("dgx-b200:1")
    widths = []
    for cluster in (measured, assumed):
        workload = collective_workload("all_reduce", 10**9, ranks=range(8), cluster=cluster)
        assert workload is not None
        widths.append(CostModel.default().price(workload).relative_width)
    assert widths[0] is not None
    assert widths[1] is not None
    assert widths[0] < 0.25 < widths[1]
