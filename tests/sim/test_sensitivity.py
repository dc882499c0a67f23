"""What another network changes in a simulated step: the direction that theory says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from hpdlf.errors import ProfileError
from hpdlf.hwprofiles import Cluster, Link, Quantity, cluster_from_toml, load_cluster, load_link
from hpdlf.models.onnxpp import Graph
from hpdlf.models.plan import Strategy
from hpdlf.sim import simulate

MakeChain = Callable[..., Graph]


def quantity(value: float, unit: str = "1") -> Quantity:
    return Quantity(value=value, unit=unit, source="a test", tier="modelled")


def slower(link: Link | None, times: float) -> Link:
    assert link is not None
    return replace(link, bandwidth_bytes_per_s=quantity(link.bandwidth_bytes_per_s.value / times, "B/s"))


@pytest.fixture
def graph(make_chain: MakeChain) -> Graph:
    """Six layers of 4,096: 400 MB of parameters, and little to compute for few samples."""
    return make_chain(6, 4096)


def step_s(graph: Graph, cluster: Cluster, **fields: int) -> float:
    return simulate(graph, cluster, Strategy(**fields)).figures.step_s.value


def test_a_slower_network_between_nodes_slows_who_uses_it(graph: Graph) -> None:
    pod = load_cluster("dgx-a100:4")
    slow = replace(pod, link=slower(pod.link, 4.0))
    times = [step_s(graph, c, data=32, batch=32) for c in (pod, slow)]
    assert times[1] > 1.5 * times[0]
    inside = [step_s(graph, c, data=8, batch=8) for c in (pod, slow)]
    assert inside[0] == inside[1]


def test_a_slower_link_within_the_node_slows_it(graph: Graph) -> None:
    pod = load_cluster("dgx-a100:1")
    slow = replace(pod, node=replace(pod.node, link=slower(pod.node.link, 4.0)))
    assert step_s(graph, slow, data=8, batch=8) > 1.2 * step_s(graph, pod, data=8, batch=8)


def test_more_devices_take_longer_for_a_step_and_less_for_a_sample(graph: Graph) -> None:
    pod = load_cluster("dgx-a100:8")
    steps = [step_s(graph, pod, data=n, batch=64 * n) for n in (8, 16, 64)]
    assert steps == sorted(steps)
    samples = [step / (64 * n) for step, n in zip(steps, (8, 16, 64), strict=True)]
    assert samples == sorted(samples, reverse=True)


def test_oversubscribed_switches_slow_replicas_that_are_far_apart(graph: Graph) -> None:
    """Two stages of eight nodes each: the replicas of a stage lie on neighbouring nodes, one ring through them. With a rank
    on each node every ring leaves every switch."""
    pod = load_cluster("dgx-1-v100:16x1")
    thin = replace(pod, oversubscription={"2": quantity(8.0)})
    fields = {"data": 8, "pipeline": 2, "batch": 32, "microbatches": 2}
    assert step_s(graph, thin, **fields) > 1.2 * step_s(graph, pod, **fields)


def test_nodes_that_one_link_joins_are_faster_than_nodes_on_a_network(graph: Graph) -> None:
    rack = load_cluster("gb200-nvl72:1")
    tray = replace(rack.node, devices=quantity(4.0))
    network = replace(
        load_link("infiniband-ndr-1"), bandwidth_bytes_per_s=quantity(200e9, "B/s"), adapters=quantity(4.0)
    )
    trays = replace(rack, node=tray, n_nodes=18, link=network)
    joined = replace(trays, domain_nodes=quantity(18.0))
    fields = {"data": 16, "batch": 16}
    assert step_s(graph, joined, **fields) == pytest.approx(step_s(graph, rack, **fields), rel=1e-6)
    assert step_s(graph, trays, **fields) > 1.2 * step_s(graph, joined, **fields)


def test_a_negative_bandwidth_is_refused_in_one_message() -> None:
    text = load_cluster("dgx-a100:2").to_toml()
    bad = text.replace("bandwidth = { value = 200", "bandwidth = { value = -200")
    assert bad != text
    with pytest.raises(ProfileError, match=r"link\.bandwidth: -200 GB/s is not positive"):
        cluster_from_toml(bad, origin="here")
