"""What if every device is capped: time, power and energy of work under a power limit or at a clock."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hpdlf.errors import ProfileError
from hpdlf.hwprofiles import load_cluster, load_device
from hpdlf.models.cost import CostModel, Estimate
from hpdlf.models.onnxpp import Graph

MakeChain = Callable[..., Graph]


def _step(graph: Graph, limit_w: float | None = None, clock_hz: float | None = None) -> Estimate:
    device = load_device("A100-SXM-80").limited(limit_w=limit_w, clock_hz=clock_hz)
    parts = [(tuple(o.name for o in graph.operators), "forward")]
    return CostModel.default().compute(graph, parts, batch=4096, device=device)


def test_a_lower_limit_takes_longer_draws_less_and_saves_energy(make_chain: MakeChain) -> None:
    graph = make_chain(4, width=4096)
    found = [_step(graph, limit_w) for limit_w in (None, 350, 300, 250, 200)]
    seconds = [e.seconds for e in found]
    watts = [(e.joules or 0.0) / e.seconds for e in found]
    assert seconds == sorted(seconds)
    assert watts == sorted(watts, reverse=True)
    assert all(power <= limit * 1.01 for power, limit in zip(watts[1:], (350, 300, 250, 200), strict=True))
    assert (found[2].joules or 0.0) < (found[0].joules or 0.0)
    assert all(e.low_s <= e.seconds <= e.high_s for e in found)


def test_a_clock_slows_arithmetic_in_proportion_at_most(make_chain: MakeChain) -> None:
    graph = make_chain(4, width=4096)
    full, half = _step(graph), _step(graph, clock_hz=0.705e9)
    assert 1.3 < half.seconds / full.seconds <= 2.01


def test_what_the_profile_does_not_allow_is_refused(make_chain: MakeChain) -> None:
    with pytest.raises(ProfileError, match="cannot be limited to 20 W: its profile allows 100 to 500 W"):
        _step(make_chain(1), limit_w=20)
    with pytest.raises(ProfileError, match="cannot run at 3000 MHz: its boost clock is 1410 MHz"):
        _step(make_chain(1), clock_hz=3e9)


def test_a_limited_cluster_says_so_and_costs_the_same_rent() -> None:
    cluster = load_cluster("dgx-a100:2")
    capped = cluster.limited(limit_w=250, clock_hz=1.2e9)
    assert capped.name == "dgx-a100:2 at 250 W and 1200 MHz"
    assert capped.price_usd_per_node_s == cluster.price_usd_per_node_s
    assert capped.device.limit_w == cluster.device.limit_w  # what is set is not what the device is made for
    assert cluster.limited() is cluster
