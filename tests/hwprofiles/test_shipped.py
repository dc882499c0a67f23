"""What must hold over all profiles that ship: orders of peaks, clocks and units that explain them, prices, parts."""

from functools import cache

import pytest

from hpdlf.hwprofiles import TIERS, Cluster, Device, Node, load_cluster, load_device, load_profile, load_region
from hpdlf.hwprofiles.cluster import Region
from hpdlf.hwprofiles.fields import FIELDS, FOLDERS
from hpdlf.hwprofiles.loader import SHIPPED

FILES = {kind: sorted((SHIPPED / folder).glob("*.toml")) for kind, folder in FOLDERS.items()}


@pytest.fixture(autouse=True)
def no_own_profiles(tmp_path, monkeypatch):
    monkeypatch.setenv("HPDLF_PROFILES", str(tmp_path))


@cache
def everything():
    return {path: load_profile(path) for paths in FILES.values() for path in paths}


def of(kind):
    return [value for value in everything().values() if isinstance(value, kind)]


def test_every_file_reads_and_carries_its_own_name():
    for path, value in everything().items():
        assert value.name == path.stem
        assert value.description
    assert len(of(Device)) >= 80
    assert len(of(Cluster)) >= 50
    assert len(of(Region)) >= 11


def test_every_value_has_a_source_that_says_more_than_a_word():
    for path, value in everything().items():
        for field in FIELDS[next(kind for kind, folder in FOLDERS.items() if folder == path.parent.name)]:
            held = getattr(value, field.attribute)
            for one in held.values() if isinstance(held, dict) else [held] if held is not None else []:
                assert one.tier in TIERS
                assert len(one.source) >= 6, (path.name, field.key)
                assert one.date or not field.dated


def test_every_node_and_link_is_used_by_something_that_ships():
    used = {cluster.node.name for cluster in of(Cluster)}
    assert {node.name for node in of(Node)} <= used


def test_accelerators_say_what_the_cost_model_needs():
    for device in of(Device):
        if device.kind == "gpu":
            assert device.compute_units, device.name
            assert device.l2_cache_bytes, device.name
            assert device.clock_hz, device.name
            assert device.limit_w, device.name
            assert device.idle_w, device.name
        if device.name != "generic-x86-core":
            assert device.vendor, device.name
            assert device.architecture, device.name
            assert device.vendor == device.vendor.lower()
            assert device.architecture == device.architecture.lower()


def test_units_times_clock_explain_the_peak():
    """A GPU's float32 lanes do two FLOPs a cycle: NVIDIA has 64, 128 or 192 lanes in a unit, AMD 64 or 128."""
    for device in of(Device):
        if device.kind == "gpu":
            peak = device.vector_flops_per_s.get("float32") or device.peak_flops_per_s["float32"]
            per_cycle = peak.value / (device.compute_units.value * device.clock_hz.value)
            nearest = min((128, 256, 384), key=lambda lanes: abs(per_cycle / lanes - 1))
            assert per_cycle == pytest.approx(nearest, rel=0.035), (device.name, per_cycle)


def test_matrix_units_are_multiples_of_the_vector_peak():
    """Tensor and matrix cores were built as 2, 4, 8, 16 or 32 times the vector rate; a sparse peak would show up as twice
    another device's of the same architecture and form.
    """
    for device in of(Device):
        half = device.peak_flops_per_s.get("bfloat16") or device.peak_flops_per_s.get("float16")
        if device.kind != "gpu" or half is None:
            continue
        ratio = half.value / (device.vector_flops_per_s.get("float32") or device.peak_flops_per_s["float32"]).value
        assert 1.9 < ratio < 33, (device.name, ratio)
    same = {"H100-SXM", "H200-SXM", "GH200-96", "GH200-144"}
    assert {load_device(name).peak_flops_per_s["bfloat16"].value for name in same} == {989.4e12}


def test_dies_are_half_of_their_module():
    die, module = load_device("MI250X-GCD"), load_device("MI250X-module")
    for precision in ("float32", "float16"):
        assert module.peak_flops_per_s[precision].value == pytest.approx(
            2 * die.peak_flops_per_s[precision].value, rel=0.01
        )
    assert module.compute_units.value == 2 * die.compute_units.value
    assert module.memory_bytes.value == 2 * die.memory_bytes.value


@pytest.mark.parametrize(
    "names",
    [
        ("P100-SXM2", "V100-SXM2", "A100-SXM-40", "A100-SXM-80", "H100-SXM", "H200-SXM", "B200-SXM"),
        ("MI25", "MI50", "MI100", "MI210", "MI300X", "MI325X", "MI355X"),
        ("TPU-v2", "TPU-v3", "TPU-v4", "TPU-v5p"),
        ("Xeon-E5-2650-v4", "Xeon-Gold-6148", "Xeon-Gold-6248", "Xeon-Platinum-8380", "Xeon-Platinum-8480"),
    ],
)
def test_generations_grow_in_bandwidth(names):
    bandwidths = [load_device(name).memory_bandwidth_bytes_per_s.value for name in names]
    assert bandwidths == sorted(bandwidths)


def test_orders_of_magnitude():
    for device in of(Device):
        seconds_to_read_memory = device.memory_bytes.value / device.memory_bandwidth_bytes_per_s.value
        assert 0.01 < seconds_to_read_memory < 5, device.name
        if device.limit_w and device.compute_units and device.kind != "accelerator":
            assert 0.5 < device.limit_w.value / device.compute_units.value < 20, device.name


def test_prices_are_plausible_per_device():
    for cluster in of(Cluster):
        devices = cluster.devices_per_node
        for price in (
            cluster.price_usd_per_node_hour,
            cluster.spot_usd_per_node_s and cluster.spot_usd_per_node_s.per(3600, ""),
        ):
            if price is not None:
                assert 0.2 < price.value / devices < 20, cluster.name
        if cluster.purchase_usd_per_node is not None:
            assert 2_000 < cluster.purchase_usd_per_node.value / devices < 80_000, cluster.name
            assert cluster.lifetime_s is not None
        assert cluster.pue is not None or cluster.name == "generic-x86"


def test_regions_order_as_everybody_knows():
    names = ("norway", "sweden", "france", "eu", "us", "world", "china", "poland", "india")
    carbon = [load_region(name).carbon_kg_per_j.value for name in names]
    assert carbon == sorted(carbon)
    for region in of(Region):
        assert region.carbon_kg_per_j.date >= "2022"


def test_the_promised_systems_are_there():
    names = {path.stem for path in FILES["cluster"]}
    assert {"dgx-1-p100", "dgx-1-v100", "dgx-2", "dgx-a100", "dgx-h100", "dgx-h200", "dgx-b200", "gb200-nvl72"} <= names
    assert {"aws-p3.16xlarge", "aws-p4d.24xlarge", "aws-p5.48xlarge", "azure-nd96isr-mi300x-v5"} <= names
    assert {
        "gcp-a3-highgpu-8g",
        "gcp-tpu-v4-64",
        "frontier-mi250x",
        "mi300x-8",
        "xeon-8480-64",
        "xeon-8480-128",
    } <= names
    assert load_cluster("gb200-nvl72").devices_per_node == 72
    assert load_cluster("xeon-8480-128").n_devices == 256
