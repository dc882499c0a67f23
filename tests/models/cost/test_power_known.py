"""Power of networks in training, of models that are served, and of layers on a processor."""

from __future__ import annotations

import dataclasses

import pytest

from hpdlf.errors import PlanError, ProfileError
from hpdlf.hwprofiles import load_device
from hpdlf.models.cost.cpu_energy import CpuEnergyModel, summed
from hpdlf.models.cost.operation import Operation
from hpdlf.models.cost.power import Energy
from hpdlf.models.cost.power_serving import ServingLoad, serving_power
from hpdlf.models.cost.power_training import network_loads, training_power

A40, V100, H100 = (load_device(name) for name in ("A40", "V100-PCIE-32", "H100-SXM"))
XEON = load_device("Xeon-Gold-5120")


def language(**changes: object) -> ServingLoad:
    load = ServingLoad(
        kind="language", parameters=70e9, active_parameters=70e9, weight_bytes=2, batch=64, devices=4, tokens=800,
        tensor_parallel=4,
    )  # fmt: skip
    return dataclasses.replace(load, **changes)  # type: ignore[arg-type]


def layer(batch: int) -> Operation:
    return Operation(
        family="matmul", op="linear", dims=(1, batch, 4096, 4096), flops=2.0 * batch * 4096**2,
        read_bytes=4.0 * (batch * 4096 + 4096**2), write_bytes=4.0 * batch * 4096,
    )  # fmt: skip


def test_what_is_known_of_a_pair_decides_the_interval() -> None:
    pair = training_power("bert_base_uncased/squad", V100, batch=32)
    other = training_power("bert_base_uncased/squad", A40, batch=32)
    unknown = training_power("nobody/knows", A40, batch=32)
    widths = [(e.watts.high - e.watts.low) / e.watts.value for e in (pair, other, unknown)]
    assert [e.known for e in (pair, other, unknown)] == ["network on this device", "network", "nothing"]
    assert widths == sorted(widths)
    assert widths[0] < 0.12


@pytest.mark.parametrize("network", sorted(network_loads()))
def test_limits_bind_hungry_networks_and_leave_idle_ones_alone(network: str) -> None:
    free, capped = (training_power(network, A40, batch=64, limit_w=w) for w in (None, 120.0))
    assert capped.watts.value <= 122.4
    assert capped.watts.value <= free.watts.value + 1e-9
    assert capped.slowdown.value >= 1.0
    assert free.slowdown.value == pytest.approx(1.0)
    if network.startswith("ncf"):
        assert capped.slowdown.value < 1.02
        assert capped.watts.value == pytest.approx(free.watts.value, rel=0.02)


def test_small_batches_leave_a_gpu_waiting() -> None:
    watts = [training_power("shufflenetv2/cifar100", A40, batch=b).watts.value for b in (8, 64, 512, 4096)]
    assert watts == sorted(watts)
    assert watts[0] < 0.5 * watts[-1]


def test_without_a_limit_in_the_profile_training_power_is_refused() -> None:
    with pytest.raises(ProfileError, match="limit_power"):
        training_power("ncf/movielens-1m", dataclasses.replace(A40, limit_w=None), batch=8)


def test_serving_draws_below_the_limits_and_more_with_a_larger_batch() -> None:
    small, large = (serving_power(language(batch=b), H100) for b in (8, 512))
    assert 4 * 100 < small.value < large.value <= 4 * 700
    h200 = serving_power(language(), load_device("H200-SXM"))
    mi300x = serving_power(language(devices=1, tensor_parallel=1), load_device("MI300X"))
    assert 0.4 < h200.value / 2800 <= 1.0
    assert 0.4 < mi300x.value / 750 <= 1.0
    assert h200.low < h200.value < h200.high


@pytest.mark.parametrize("changes", [{"batch": 0}, {"active_parameters": 80e9}])
def test_impossible_loads_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(PlanError, match="served model"):
        serving_power(language(**changes), H100)


def test_layers_take_time_with_their_batch_and_a_core_draws_like_a_core() -> None:
    model = CpuEnergyModel.shipped()
    small, large = model.estimate([layer(64), layer(256)], XEON)
    assert small is not None
    assert large is not None
    assert 3 < large.joules.value / small.joules.value < 4.5
    assert 70 < small.joules.value / small.seconds.value < 82
    assert small.joules.low < small.joules.value < small.joules.high


def test_another_processor_is_scaled_and_less_certain() -> None:
    model, other = CpuEnergyModel.shipped(), load_device("Xeon-Gold-6148")
    here, there = model.estimate([layer(64)], XEON)[0], model.estimate([layer(64)], other)[0]
    assert here is not None
    assert there is not None
    assert there.joules.high / there.joules.value > here.joules.high / here.joules.value


def test_a_layer_that_was_never_measured_is_none() -> None:
    odd = dataclasses.replace(layer(8), family="elementwise", op="erf", dims=(8, 8))
    assert CpuEnergyModel.shipped().estimate([odd], XEON) == [None]


def test_errors_of_layers_add_up_like_independent_ones() -> None:
    total = summed([Energy(10.0, 9.0, 11.0)] * 4, common=0.0)
    assert total == Energy(40.0, 38.0, 42.0)
