"""Power by utilisation, limit and clock: what physics demands whatever the parameters, and a few magnitudes."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpdlf.errors import PlanError, ProfileError
from hpdlf.hwprofiles import load_cluster, load_device
from hpdlf.models.cost.operation import Operation
from hpdlf.models.cost.power import active_w, busy_energy, idle_energy, load_of, power_at, slowdown_at
from hpdlf.models.cost.power_node import node_power
from hpdlf.models.cost.power_parameters import limited, power_parameters
from hpdlf.models.cost.workload import Workload

H100 = load_device("H100-SXM")
V100 = load_device("V100-PCIE-32")
SHARES = st.floats(0.0, 1.0)


def product(**changes: object) -> Workload:
    operation = Operation(
        family="matmul", op="linear", dims=(1, 8, 8, 8), flops=1e12, read_bytes=1e6, write_bytes=1e6, precision="bfloat16"
    )
    workload = Workload(
        subject="H100-SXM", subject_kind="gpu", kind="operator", key="k", components={"matmul.half": 1.0},
        operations=(operation,), compute_s=0.5, memory_s=0.2,
    )  # fmt: skip
    return dataclasses.replace(workload, **changes)  # type: ignore[arg-type]


@given(SHARES, SHARES, st.floats(200, 700))
def test_power_lies_between_active_power_and_limit_and_grows_with_the_load(c: float, m: float, limit: float) -> None:
    power = power_at(H100, compute=c, memory=m, precision="bfloat16", limit_w=limit)
    more = power_at(H100, compute=min(c + 0.1, 1.0), memory=m, precision="bfloat16", limit_w=limit)
    active = active_w(H100)
    assert power is not None
    assert more is not None
    assert active is not None
    assert 0.9 * active <= power.value <= limit
    assert power.low <= power.value <= power.high <= 1.021 * limit
    assert more.value >= power.value - 1e-9


@given(SHARES, SHARES, st.floats(200, 690))
def test_a_tighter_limit_never_speeds_up_and_never_draws_more(c: float, m: float, limit: float) -> None:
    slow, slower = (slowdown_at(H100, compute=c, memory=m, limit_w=w, precision="bfloat16") for w in (limit + 10, limit))
    more, less = (power_at(H100, compute=c, memory=m, limit_w=w, precision="bfloat16") for w in (limit + 10, limit))
    assert slow is not None
    assert slower is not None
    assert more is not None
    assert less is not None
    assert 1.0 <= slow.value <= slower.value + 1e-9
    assert slower.low <= slower.value <= slower.high
    assert less.value <= more.value + 1e-9


def test_memory_bound_work_hardly_slows_and_bound_by_arithmetic_follows_the_clock() -> None:
    half = H100.clock_hz.value / 2  # type: ignore[union-attr]
    memory = slowdown_at(H100, compute=0.02, memory=0.3, clock_hz=half)
    arithmetic = slowdown_at(H100, compute=0.3, memory=0.02, clock_hz=half)
    assert memory is not None
    assert arithmetic is not None
    assert memory.value < 1.35
    assert 1.6 < arithmetic.value <= 2.0


def test_a_lower_clock_draws_less_than_in_proportion_saves() -> None:
    full, lower = (power_at(H100, compute=0.3, memory=0.1, clock_hz=hz, precision="bfloat16") for hz in (None, 1.3e9))
    assert full is not None
    assert lower is not None
    assert lower.value < full.value * 0.85


def test_the_mean_bends_to_the_limit_and_a_steady_load_does_not_feel_it() -> None:
    softness = power_parameters().softness
    assert float(limited(1e5, 10.0, 100.0, softness)) == pytest.approx(100.0, rel=1e-3)
    assert float(limited(50.0, 50.0, 100.0, softness)) == pytest.approx(50.0, rel=1e-6)
    assert 60 < float(limited(100.0, 10.0, 100.0, softness)) < 90


def test_an_old_gpu_never_reaches_its_limit_in_float32_and_a_newer_one_does() -> None:
    p100 = power_at(load_device("P100-PCIE-16"), compute=0.6)
    rtx = power_at(load_device("Quadro-RTX-6000"), compute=0.6)
    assert p100 is not None
    assert rtx is not None
    assert p100.value / 250 < rtx.value / 260


@pytest.mark.parametrize("limit_w", [10.0, 1e4])
def test_limits_that_a_device_does_not_allow_are_refused(limit_w: float) -> None:
    with pytest.raises(ProfileError, match="cannot be limited to"):
        power_at(H100, compute=0.5, limit_w=limit_w)


def test_clocks_that_a_device_does_not_have_are_refused() -> None:
    with pytest.raises(ProfileError, match="boost clock"):
        slowdown_at(H100, compute=0.5, clock_hz=3e9)


def test_what_a_profile_does_not_say_is_unavailable() -> None:
    blind = dataclasses.replace(H100, limit_w=None)
    assert power_at(blind, compute=0.5) is None
    assert slowdown_at(blind, compute=0.5) is None
    assert busy_energy(product(), 1.0, blind) is None
    assert idle_energy(dataclasses.replace(H100, idle_w=None), 1.0) is None


def test_energy_is_power_times_time_and_a_cap_trades_one_for_the_other() -> None:
    free = busy_energy(product(), 1.0, H100)
    capped = busy_energy(product(), 1.0, H100.limited(limit_w=300))
    assert free is not None
    assert capped is not None
    assert 300 < free.value < 700
    assert 250 < capped.value < free.value
    assert load_of(product(), 1.0).precision == "bfloat16"


def test_a_gpu_that_communicates_draws_more_than_one_with_nothing_to_do() -> None:
    sending = product(kind="collective", operations=(), compute_s=0.0, memory_s=0.0, payload_bytes=1000)
    found, active = busy_energy(sending, 2.0, H100), active_w(H100)
    assert found is not None
    assert active is not None
    assert 2 * active < found.value < 2 * 0.75 * 700


def test_processors_go_from_idle_to_limit() -> None:
    xeon = load_device("Xeon-Gold-6148")
    idle, full = (power_at(xeon, compute=c) for c in (0.0, 1.0))
    assert idle is not None
    assert full is not None
    assert xeon.idle_w is not None
    assert xeon.limit_w is not None
    assert xeon.idle_w.value < idle.value < full.value == xeon.limit_w.value


def test_a_node_is_its_devices_and_a_host_that_follows_the_load() -> None:
    node = load_cluster("dgx-h100").node
    busy, waiting = (node_power(node, device_w=600.0, load=load) for load in (1.0, 0.0))
    assert busy is not None
    assert waiting is not None
    assert 8 * 600 < waiting.value < busy.value
    estimated = node_power(dataclasses.replace(node, host_active_w=None), device_w=620.0)
    assert estimated is not None
    # Nodes of 8 H100 in MLPerf training: 6.6 to 7.2 kW.
    assert estimated.low < 6600
    assert estimated.high > 7200
    with pytest.raises(PlanError):
        node_power(node, device_w=600.0, load=1.5)
