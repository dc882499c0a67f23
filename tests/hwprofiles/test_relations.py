"""Two values that do not fit together are refused, with file, field, both values and what was probably meant."""

import pytest

from hpdlf.errors import ProfileError
from hpdlf.hwprofiles import load_cluster, load_device, load_profile
from hpdlf.hwprofiles.defaults import DEFAULTS


def value(number, unit, **more):
    parts = [f"value = {number}", *([f'unit = "{unit}"'] if unit else []), 'source = "s"', 'tier = "datasheet"']
    return "{ " + ", ".join(parts + [f"{key} = {one}" for key, one in more.items()]) + " }"


# A made-up accelerator; only the first five lines after its name are required.
DEVICE = {
    "format": "1",
    "profile": '"device"',
    "name": '"toy"',
    "kind": '"gpu"',
    "peak_flops.float32": value(20, "TFLOP/s"),
    "memory": value(40, "GB"),
    "memory_bandwidth": value(1500, "GB/s"),
    "peak_flops.float64": value(10, "TFLOP/s"),
    "peak_flops.tf32": value(150, "TFLOP/s"),
    "peak_flops.bfloat16": value(300, "TFLOP/s"),
    "peak_flops.float8": value(600, "TFLOP/s"),
    "achieved_flops.bfloat16": value(270, "TFLOP/s"),
    "vector_flops.float32": value(20, "TFLOP/s"),
    "idle_power": value(50, "W"),
    "limit_power": value(400, "W"),
    "least_limit_power": value(100, "W"),
    "greatest_limit_power": value(500, "W"),
    "compute_units": value(108, ""),
    "clock": value(1410, "MHz"),
    "base_clock": value(1095, "MHz"),
    "l1_cache": value(192, "KiB"),
    "l2_cache": value(40, "MiB"),
    "price": value(10000, "USD", date='"2024-01-01"'),
}
REQUIRED = list(DEVICE)[:7]


def write(path, table):
    path.write_text("\n".join(f"{key} = {one}" for key, one in table.items()) + "\n")
    return path


@pytest.fixture(autouse=True)
def no_own_profiles(tmp_path, monkeypatch):
    monkeypatch.setenv("HPDLF_PROFILES", str(tmp_path / "none"))


def test_a_device_works_from_its_datasheet_alone(tmp_path):
    device = load_device(write(tmp_path / "toy.toml", {key: DEVICE[key] for key in REQUIRED}))
    assert device.launch_overhead_s == DEFAULTS["gpu"]["launch_overhead_s"]
    assert device.communication_overlap.tier == "modelled"
    assert "assumed" in device.communication_overlap.source
    assert (device.vendor, device.architecture, device.aliases, device.compute_units) == ("", "", (), None)


def test_a_device_with_everything_reads(tmp_path):
    device = load_device(write(tmp_path / "toy.toml", DEVICE))
    assert device.l1_cache_bytes.value == 192 * 1024
    assert device.price_usd.value == 10000
    assert device.greatest_limit_w.value == 500


def test_an_accelerator_need_not_have_a_peak_in_float32(tmp_path):
    table = DEVICE | {"kind": '"accelerator"'}
    for key in ("peak_flops.float32", "vector_flops.float32", "peak_flops.float64", "peak_flops.tf32"):
        table.pop(key)
    assert set(load_device(write(tmp_path / "toy.toml", table)).peak_flops_per_s) == {"bfloat16", "float8"}


def test_measured_peaks_have_no_order(tmp_path):
    measured = value(15, "TFLOP/s").replace('"datasheet"', '"measured"')
    table = {key: DEVICE[key] for key in REQUIRED} | {"peak_flops.bfloat16": measured}
    assert load_device(write(tmp_path / "toy.toml", table)).peak_flops_per_s["bfloat16"].value == 15e12


def test_the_older_name_of_a_field_is_still_read(tmp_path):
    table = {key: DEVICE[key] for key in REQUIRED} | {"cores": value(108, "")}
    assert load_device(write(tmp_path / "toy.toml", table)).compute_units.value == 108


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"idle_power": value(450, "W")}, "idle_power: 450 W is not below limit_power, 400 W; are the two swapped?"),
        ({"least_limit_power": value(410, "W")}, "least_limit_power: 410 W is not below limit_power, 400 W"),
        ({"greatest_limit_power": value(390, "W")}, "greatest_limit_power: 390 W is below limit_power, 400 W"),
        ({"l2_cache": value(100, "kB")}, "l1_cache: 196.6 kB is not below l2_cache, 100 kB; l1_cache is that of one"),
        ({"l2_cache": value(40960, "MB")}, "l2_cache: 40960 MB is outside 10 kB to 2 GB; is the unit's prefix right?"),
        ({"l3_cache": value(1.2, "GB"), "memory": value(1, "GB")}, "l3_cache: 1.2 GB is not below memory, 1 GB"),
        ({"base_clock": value(1.5, "GHz")}, "base_clock: 1.5 GHz is not below clock, 1.41 GHz; clock is the boost"),
        ({"clock": value(1410, "kHz")}, "clock: 1410 kHz is outside 10 MHz to 10 GHz"),
        ({"memory_bandwidth": value(1500, "MB/s")}, "peak_flops.float32: 20 TFLOP/s is 1.33e+04 FLOPs per byte"),
        ({"peak_flops.float32": value(20, "GFLOP/s")}, "is below peak_flops.float64, 10 TFLOP/s"),
        ({"peak_flops.bfloat16": value(30, "TFLOP/s")}, "peak_flops.bfloat16: 30 TFLOP/s is below peak_flops.tf32"),
        ({"peak_flops.float16": value(0.3, "TFLOP/s")}, "leave float16 out where the device computes it in float32"),
        ({"achieved_flops.bfloat16": value(310, "TFLOP/s")}, "achieved_flops.bfloat16: 310 TFLOP/s is not below peak"),
        ({"vector_flops.float32": value(40, "TFLOP/s")}, "vector_flops.float32: 40 TFLOP/s is not below peak_flops"),
        ({"compute_units": value(1.5, "")}, "compute_units: 1.5 is no whole number"),
        ({"price": value(10000, "USD")}, "price.date: is missing: this value changes with time"),
        ({"price": value(10000, "USD/h", date='"2024-01-01"')}, "price: unit 'USD/h' is dollars per time, expected an"),
        ({"aliases": '"A100"'}, """aliases: 'A100' is no list of texts, such as ["A100"]"""),
        ({"vendor": "3"}, "vendor: 3 is no text"),
        ({"limit_power": value(400, "kW")}, "limit_power: 400 kW is outside 1 mW to 10 kW"),
        ({"launch_overheat": value(5, "us")}, "launch_overheat: is no field of a device; did you mean"),
    ],
)
def test_values_that_do_not_fit_are_refused(tmp_path, change, complaint):
    with pytest.raises(ProfileError) as caught:
        load_device(write(tmp_path / "toy.toml", DEVICE | change))
    assert str(caught.value).startswith(str(tmp_path / "toy.toml"))
    assert complaint in str(caught.value)


def test_a_device_without_any_peak_is_refused(tmp_path):
    table = {key: one for key, one in DEVICE.items() if "_flops" not in key} | {"peak_flops": "{}"}
    with pytest.raises(ProfileError, match=r"peak_flops.float32: is missing, and so is every other precision"):
        load_device(write(tmp_path / "toy.toml", table))


CLUSTER = {
    "format": "1",
    "profile": '"cluster"',
    "name": '"mine"',
    "n_nodes": "4",
    "node": '"dgx-a100"',
    "link": '"infiniband-hdr-8"',
    "price_per_node_hour": value(30, "USD/h", date='"2024-01-01"'),
    "spot_price_per_node_hour": value(15, "USD/h", date='"2024-01-01"'),
    "lifetime": value(5, "year"),
    "occupancy": value(80, "%"),
    "region": '"norway"',
}


def test_a_cluster_takes_its_regions_electricity_unless_it_says_its_own(tmp_path):
    cluster = load_cluster(write(tmp_path / "mine.toml", CLUSTER))
    assert cluster.region.name == "norway"
    assert cluster.carbon_kg_per_j == cluster.region.carbon_kg_per_j
    own = load_cluster(
        write(tmp_path / "own.toml", CLUSTER | {"carbon_intensity": value(5, "gCO2/kWh", date='"2024-01-01"')})
    )
    assert own.carbon_kg_per_kwh.value == pytest.approx(0.005)
    assert own.energy_price_usd_per_j == cluster.energy_price_usd_per_j


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            {"spot_price_per_node_hour": value(40, "USD/h", date='"2024-01-01"')},
            "spot_price_per_node_hour: 40 USD/h is not below price_per_node_hour, 30 USD/h, the price on demand",
        ),
        (
            {"price_kind": '"rent"'},
            "price_kind: 'rent' is no price_kind of a cluster; it is one of on_demand, spot, own",
        ),
        ({"region": '"norwey"'}, "region: there is no region 'norwey'; did you mean 'norway'?"),
        ({"lifetime": value(5, "years")}, "lifetime: unit 'years' is not known or ambiguous; write 'year'"),
        ({"lifetime": value(5, "h")}, "lifetime: 5 h is outside"),
        ({"occupancy": value(0, "%")}, "occupancy: 0 % is not positive"),
        ({"pue": value(0.9, "", date='"2024-01-01"')}, "pue: 0.9 is outside 1 to 5"),
        ({"carbon_intensity": value(400, "gCO2/kWh")}, "carbon_intensity.date: is missing"),
    ],
)
def test_a_cluster_whose_values_do_not_fit_is_refused(tmp_path, change, complaint):
    with pytest.raises(ProfileError) as caught:
        load_cluster(write(tmp_path / "mine.toml", CLUSTER | change))
    assert complaint in str(caught.value)


def test_a_node_that_could_not_even_idle_is_refused(tmp_path):
    table = {
        "format": "1",
        "profile": '"node"',
        "name": '"n"',
        "device": '"A100-SXM-40"',
        "link": '"nvlink3"',
        "devices": value(8, ""),
        "host_idle_power": value(300, "W"),
        "limit_power": value(600, "W"),
    }
    with pytest.raises(ProfileError, match=r"limit_power: 600 W is less than the 740 W that host and devices draw"):
        load_profile(write(tmp_path / "n.toml", table))
    with pytest.raises(ProfileError, match=r"host_idle_power: 300 W is not below host_active_power, 200 W"):
        load_profile(
            write(tmp_path / "n.toml", table | {"limit_power": value(6, "kW"), "host_active_power": value(200, "W")})
        )
