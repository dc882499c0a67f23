"""A link that made the times is found again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hpdlf.errors import DataError
from hpdlf.hwprofiles import Cluster, Link, Quantity, load_device, load_link
from hpdlf.models.cost.fit_links import COLLECTIVE, MESSAGE, Timed, fit_link, laid_out, predicted_s

GPU = load_device("A100-SXM-80")


def quantity(value: float) -> Quantity:
    return Quantity(value=value, unit="1", source="test", tier="modelled")


def layout(link: Link, timed: Timed) -> Cluster:
    return laid_out(link, None, nodes=1, per_node=8, device=GPU)


def bare(name: str) -> Link:
    return replace(
        load_link(name),
        collective_efficiency=None,
        collective_overhead_s=None,
        half_bandwidth_bytes=None,
        group_share={},
    )


def test_what_an_all_reduce_tells_of_a_link() -> None:
    truth = replace(
        bare("nvlink2"),
        collective_efficiency=quantity(0.8),
        collective_overhead_s=quantity(3e-5),
        group_share={"2": quantity(0.25), "4": quantity(0.6), "8": quantity(1.0)},
    )
    timed = [Timed("all_reduce", float(2**e), ranks, 1.0) for e in range(18, 31, 2) for ranks in (2, 4, 8)]
    timed = [one._replace(seconds=predicted_s(one, layout(truth, one))) for one in timed]
    vary = [field for field in COLLECTIVE if field != "half_bandwidth_bytes"]
    found = fit_link(bare("nvlink2"), timed, layout, vary=vary, source="times")
    assert found.collective_efficiency is not None
    assert found.collective_overhead_s is not None
    assert found.collective_efficiency.value == pytest.approx(0.8, rel=0.02)
    assert found.collective_overhead_s.value == pytest.approx(3e-5, rel=0.05)
    shares = {int(ranks): share.value for ranks, share in found.group_share.items()}
    assert shares == {2: pytest.approx(0.25, rel=0.02), 4: pytest.approx(0.6, rel=0.02), 8: 1.0}
    assert (found.collective_efficiency.tier, found.collective_efficiency.source) == ("measured", "fitted on times")
    low, high = found.collective_efficiency.low, found.collective_efficiency.high
    assert low is not None
    assert high is not None
    assert low < 0.8 < high


def test_what_messages_tell_of_a_link() -> None:
    truth = replace(
        load_link("generic-shared-memory"),
        latency_s=quantity(1e-6),
        efficiency=quantity(0.6),
        half_bandwidth_bytes=quantity(4e4),
    )
    timed = [Timed("message", float(2**e), 2, 1.0) for e in range(3, 28)]
    timed = [one._replace(seconds=predicted_s(one, layout(truth, one))) for one in timed]
    found = fit_link(load_link("generic-shared-memory"), timed, layout, vary=MESSAGE, source="times")
    assert found.latency_s.value == pytest.approx(1e-6, rel=0.02)
    assert found.efficiency.value == pytest.approx(0.6, rel=0.02)
    assert found.half_bandwidth_bytes is not None
    assert found.half_bandwidth_bytes.value == pytest.approx(4e4, rel=0.1)


def test_an_outlier_hardly_moves_the_fit() -> None:
    link = load_link("generic-shared-memory")
    timed = [Timed("message", float(2**e), 2, 1.0) for e in range(3, 28)]
    timed = [one._replace(seconds=predicted_s(one, layout(link, one))) for one in timed]
    timed[-3] = timed[-3]._replace(seconds=10 * timed[-3].seconds)
    found = fit_link(link, timed, layout, vary=MESSAGE, source="times")
    assert found.efficiency.value == pytest.approx(link.efficiency.value, rel=0.1)


def test_a_loss_that_nobody_sees_is_none() -> None:
    link = replace(load_link("generic-shared-memory"), half_bandwidth_bytes=None, efficiency=quantity(0.5))
    timed = [Timed("message", float(2**e), 2, 1.0) for e in range(3, 28)]
    timed = [one._replace(seconds=predicted_s(one, layout(link, one))) for one in timed]
    found = fit_link(link, timed, layout, vary=MESSAGE, source="times")
    assert found.half_bandwidth_bytes is None


@pytest.mark.parametrize("timed", [[], [Timed("message", 8.0, 2, 0.0)], [Timed("message", -8.0, 2, 1.0)]])
def test_nothing_and_nonsense_are_refused(timed: list[Timed]) -> None:
    with pytest.raises(DataError, match="generic-shared-memory"):
        fit_link(load_link("generic-shared-memory"), timed, layout, vary=MESSAGE, source="times")
