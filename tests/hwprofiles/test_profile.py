"""Clusters: which link joins two devices, other sizes, and a hash that only the contents change."""

import dataclasses
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpdlf.errors import PlanError, ProfileError
from hpdlf.hwprofiles import Link, Quantity, cluster_from_toml, load_cluster


def test_devices_are_numbered_node_by_node():
    cluster = load_cluster("dgx-a100")
    assert cluster.n_devices == 512
    assert cluster.link_between(0, 7) is cluster.node.link
    assert cluster.link_between(7, 8) is cluster.link
    assert [cluster.node_of(d) for d in (0, 7, 8, 511)] == [0, 0, 1, 63]


@given(st.integers(0, 127), st.integers(0, 127))
def test_a_link_joins_both_ways_and_stays_within_a_node_if_it_can(a, b):
    cluster = load_cluster("xeon-64")
    if a == b:
        with pytest.raises(ValueError, match="itself"):
            cluster.link_between(a, b)
    else:
        assert cluster.link_between(a, b) is cluster.link_between(b, a)
        assert (cluster.link_between(a, b) is cluster.node.link) == (a // 2 == b // 2)


def test_a_device_that_does_not_exist_is_refused():
    with pytest.raises(PlanError, match="devices 0 to 127"):
        load_cluster("xeon-64").link_between(0, 128)


def test_another_number_of_nodes_changes_the_size_the_name_and_the_hash_only():
    small = load_cluster("dgx-a100").with_nodes(16)
    assert (small.name, small.n_nodes, small.n_devices) == ("dgx-a100:16", 16, 128)
    assert small.sha256 != load_cluster("dgx-a100").sha256
    assert small == load_cluster("dgx-a100:16")
    assert dataclasses.replace(small, name="dgx-a100", n_nodes=64) == load_cluster("dgx-a100")
    assert small.with_nodes(4).name == "dgx-a100:4"
    assert small.with_nodes(16) is small


def test_another_number_of_devices_in_a_node():
    four = load_cluster("generic-x86:1x4")
    assert (four.n_nodes, four.devices_per_node, four.n_devices) == (1, 4, 4)
    assert four.node.devices.tier == "modelled"
    with pytest.raises(ProfileError, match="1 to 1024 devices"):
        load_cluster("generic-x86:1x0")


def test_a_single_node_without_a_network_cannot_become_two():
    with pytest.raises(ProfileError, match="no link between nodes"):
        load_cluster("generic-x86").with_nodes(2)


@pytest.mark.parametrize("nodes", [0, 10**9])
def test_an_impossible_number_of_nodes_is_refused(nodes):
    with pytest.raises(ProfileError, match="1 to 1,000,000 nodes"):
        load_cluster("xeon-64").with_nodes(nodes)


def test_the_hash_is_that_of_the_contents():
    cluster = load_cluster("xeon-64")
    assert cluster.sha256 == load_cluster("xeon-64").sha256
    assert len(cluster.sha256) == 64
    assert pickle.loads(pickle.dumps(cluster)) == cluster
    pue = dataclasses.replace(cluster.pue, source="elsewhere")
    assert dataclasses.replace(cluster, pue=pue).sha256 != cluster.sha256


def test_prices_in_the_units_of_their_names():
    cluster = load_cluster("dgx-a100")
    assert cluster.price_usd_per_node_hour.value == pytest.approx(32.77)
    assert cluster.price_usd_per_node_s.value == pytest.approx(32.77 / 3600)
    assert cluster.energy_price_usd_per_kwh.value == pytest.approx(0.0806)
    assert cluster.carbon_kg_per_kwh.value == pytest.approx(0.3695)
    assert cluster.carbon_kg_per_j.unit == "kgCO2/J"


def test_what_is_unknown_is_none():
    cluster = load_cluster("generic-x86")
    assert cluster.price_usd_per_node_hour is None
    assert cluster.energy_price_usd_per_kwh is None
    assert cluster.carbon_kg_per_kwh is None
    assert cluster.link is None


def test_what_programs_see_of_a_link():
    def ratio(value):
        return Quantity(value=value, unit="1", source="s", tier="modelled")

    bandwidth = Quantity(value=200e9, unit="B/s", source="s", tier="datasheet")
    latency = Quantity(value=1e-6, unit="s", source="s", tier="datasheet")
    link = Link(
        name="l", latency_s=latency, bandwidth_bytes_per_s=bandwidth, efficiency=ratio(0.5), adapters=ratio(8.0)
    )
    assert link.effective_bandwidth_bytes_per_s == 100e9
    assert link.message_bandwidth_bytes_per_s == 12.5e9
    assert link.collective_bandwidth_bytes_per_s == 100e9
    assert dataclasses.replace(link, collective_efficiency=ratio(0.25)).collective_bandwidth_bytes_per_s == 50e9


def test_devices_of_several_cores():
    one, four = load_cluster("generic-x86:1x2"), load_cluster("generic-x86:1x2x4")
    assert four.name == "generic-x86:1x2x4"
    assert (four.devices_per_node, four.device.name) == (2, "generic-x86-core-x4")
    assert four.device.compute_units.value == 4
    peak, core = (c.device.peak_flops_per_s["float32"] for c in (four, one))
    assert (peak.value, peak.high) == (4 * core.value, 4 * core.high)
    assert peak.low == core.low  # nobody knows yet whether more cores help
    assert peak.tier == "modelled"
    assert four.device.memory_bytes.value == 4 * one.device.memory_bytes.value
    assert load_cluster("generic-x86:1x2x1") == one
    back = cluster_from_toml(four.to_toml(), origin="test")
    assert (back.sha256, back.device.compute_units.value) == (four.sha256, 4)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("dgx-a100:1x8x2", "no single core.*'dgx-a100:1x8'"),
        ("xeon-64:1x1x2", "no single core"),
        ("generic-x86:1x1x0", "1 to 1024 cores, not 0"),
    ],
)
def test_devices_that_are_no_cores_are_not_joined(name, told):
    with pytest.raises(ProfileError, match=told):
        load_cluster(name)
