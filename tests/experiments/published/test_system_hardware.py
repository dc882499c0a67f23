"""Clusters of rows."""

import pytest

from hpdlf.errors import HpdlfError, PlanError
from hpdlf.experiments.published.system_hardware import cluster_of, ranks_of


def test_a_named_machine_with_the_network_that_the_row_gives(case):
    cluster = cluster_of(
        case(
            hardware="V100-SXM2-16GB (8/node cube mesh, 1x 100Gb/s EDR IB)",
            n_devices=32,
            devices_per_node=8,
            nic_gbytes_per_s_per_node=12.5,
        )
    )
    assert (cluster.device.name, cluster.n_nodes, cluster.devices_per_node) == ("V100-SXM2", 4, 8)
    assert cluster.node.link.name == "nvlink2"
    assert (cluster.link.name, cluster.link.bandwidth_bytes_per_s.value) == ("infiniband-edr-1", 12.5e9)
    assert cluster.link.adapters.value == 1


def test_bandwidth_and_fabric_of_the_row_come_first(case):
    roce = cluster_of(
        case(hardware="A100-SXM4-40GB", n_devices=64, devices_per_node=8, nic_gbytes_per_s_per_node=150.0, note="RoCE")
    )
    assert roce.link.fabric == "ethernet"
    assert roce.link.bandwidth_bytes_per_s.value == 150e9
    told = cluster_of(case(hardware="A100-SXM4-80GB", n_devices=16, devices_per_node=8))
    assert told.link.name == "infiniband-hdr-8"


def test_a_machine_that_no_profile_has_is_put_together(case):
    cluster = cluster_of(case(hardware="NVIDIA A30", n_devices=6, devices_per_node=2))
    assert (cluster.device.name, cluster.n_nodes, cluster.devices_per_node) == ("A30", 3, 2)
    assert cluster.node.link.fabric == "pcie"
    assert cluster.link is not None


def test_racks_that_nvlink_joins(case):
    whole = cluster_of(case(hardware="GB200", n_devices=72, devices_per_node=4, nic_gbytes_per_s_per_node=200.0))
    assert (whole.n_nodes, whole.devices_per_node) == (1, 72)
    many = cluster_of(case(hardware="GB200", n_devices=512, devices_per_node=4, nic_gbytes_per_s_per_node=200.0))
    assert (many.n_nodes, many.devices_per_node) == (8, 64)
    assert many.link.bandwidth_bytes_per_s.value == pytest.approx(16 * 200e9)
    assert many.link.adapters.value == 64


def test_slices_of_tpus_have_their_hosts(case):
    cluster = cluster_of(case(hardware="TPU v4", n_devices=256, devices_per_node=256))
    assert (cluster.n_nodes, cluster.devices_per_node) == (64, 4)


def test_cpus_are_counted_in_nodes_and_simulated_in_sockets(case):
    row = case(hardware="Intel(R) Xeon(R) Platinum 8380H CPU @ 2.90GHz x8 per node", n_devices=2)
    assert (ranks_of(row), cluster_of(row).n_nodes, cluster_of(row).devices_per_node) == (16, 2, 8)
    assert ranks_of(case(hardware="V100", n_devices=2)) == 2


def test_variables_on_the_cpu_cross_pcie(case):
    row = case(hardware="P100-SXM2-16GB (DGX-1, NVLink1)", n_devices=8, devices_per_node=8)
    assert cluster_of(row).node.link.fabric == "nvlink"
    served = case(
        hardware="P100-SXM2-16GB (DGX-1, NVLink1)", n_devices=8, devices_per_node=8,
        schedule="synchronous data parallel, parameter_server, variables on CPU",
    )  # fmt: skip
    assert cluster_of(served).node.link.fabric == "pcie"


def test_power_limits(case):
    assert cluster_of(case(hardware="V100-SXM3-32GB (450W)", devices_per_node=16)).device.set_limit_w == 450.0
    assert cluster_of(case(hardware="NVIDIA V100-SXM2-16GB (300W)", devices_per_node=8)).device.set_limit_w is None


def test_impossible_sizes_are_refused(case):
    with pytest.raises(PlanError, match="are no cluster"):
        cluster_of(case(n_devices=0))
    with pytest.raises(HpdlfError):
        cluster_of(case(n_devices=10**9))
