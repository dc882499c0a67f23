"""The shipped regressions: bounds, monotone directions, devices that were never measured, damaged files."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpdlf.errors import DataError, ProfileError
from hpdlf.hwprofiles import Device, Quantity, load_device
from hpdlf.models.cost.operation import Operation
from hpdlf.models.cost.operator_times import OPERATOR_TIMES_FILE, OperatorTimes, save
from hpdlf.models.cost.traits import sustained_share

MODEL = OperatorTimes.default()


def product(m: int, n: int, k: int, *, batch: int = 1, precision: str = "float32", item: int = 4) -> Operation:
    return Operation(
        family="matmul", op="bmm" if batch > 1 else "linear", dims=(batch, m, n, k), flops=2.0 * batch * m * n * k,
        read_bytes=float(item * batch * (m * k + k * n)), write_bytes=float(item * batch * m * n), precision=precision,
        item_bytes=item,
    )  # fmt: skip


def relu(elements: int) -> Operation:
    return Operation(
        family="elementwise", op="relu", dims=(elements // 1024, 1024), flops=float(elements),
        read_bytes=4.0 * elements, write_bytes=4.0 * elements,
    )  # fmt: skip


def seconds(operation: Operation, device: Device, **options: object) -> float:
    return float(MODEL.times([operation], device, **options).seconds[0])  # type: ignore[arg-type]


@given(st.integers(1, 8192), st.integers(1, 8192), st.integers(1, 8192), st.sampled_from(["P4", "A100-SXM-80", "MI210"]))
@settings(max_examples=60, deadline=None)
def test_no_product_beats_the_peak_and_every_interval_holds_its_prediction(m: int, n: int, k: int, name: str) -> None:
    device = load_device(name)
    times = MODEL.times([product(m, n, k)], device)
    assert times.seconds[0] >= 2.0 * m * n * k / device.peak_flops_per_s["float32"].value / 1.15
    assert 0 < times.low_s[0] <= times.seconds[0] <= times.high_s[0] < np.inf


def test_large_products_and_streams_come_near_what_the_hardware_gives() -> None:
    """The H100 was never measured: within what its datasheet allows."""
    for name in ("V100-SXM2", "A100-SXM-80", "H100-SXM"):
        device = load_device(name)
        size = 8192
        rate = 2.0 * size**3 / seconds(product(size, size, size), device)
        assert 0.6 < rate / device.peak_flops_per_s["float32"].value < 1.05
        nbytes = 8.0 * (1 << 28)
        assert 0.7 < nbytes / seconds(relu(1 << 28), device) / device.memory_bandwidth_bytes_per_s.value < 1.0


def test_a_datasheet_alone_is_enough() -> None:
    def quantity(value: float) -> Quantity:
        return Quantity(value=value, unit="1", source="datasheet", tier="datasheet")

    new = Device(
        name="next", kind="gpu", peak_flops_per_s={"float32": quantity(1e14), "bfloat16": quantity(2e15)},
        memory_bytes=quantity(1e11), memory_bandwidth_bytes_per_s=quantity(8e12), launch_overhead_s=quantity(4e-6),
        communication_overlap=quantity(1.0),
    )  # fmt: skip
    times = MODEL.times([product(4096, 4096, 4096), product(4096, 4096, 4096, precision="bfloat16", item=2)], new)
    assert times.seconds[1] < times.seconds[0]
    assert not times.known.any()
    assert (times.high_s / times.low_s > 1.5).all()  # and it says how little is known


def test_steps_of_a_recurrent_layer_follow_one_another() -> None:
    device = load_device("V100-SXM2")
    one = dataclasses.replace(product(64, 4096, 2048), family="rnn", op="lstm")
    many = dataclasses.replace(one, count=50)
    assert seconds(many, device) == pytest.approx(50 * seconds(one, device))


def test_order_and_company_change_nothing() -> None:
    device = load_device("A100-PCIE-40")
    operations = [product(64 * i, 512, 512) for i in range(1, 90)] + [relu(1 << i) for i in range(12, 26)]
    together = MODEL.times(operations, device).seconds
    backwards = MODEL.times(operations[::-1], device).seconds[::-1]
    np.testing.assert_array_equal(together, backwards)
    assert seconds(operations[7], device) == together[7]


def test_a_small_power_limit_binds_what_is_sustained() -> None:
    a100, t4 = load_device("A100-SXM-80"), load_device("T4")
    assert sustained_share(a100) == pytest.approx(0.93)
    assert sustained_share(t4) == pytest.approx(56e9 * 70 / 8.141e12)


def test_a_precision_without_peak_and_an_unknown_context_are_refused() -> None:
    with pytest.raises(ProfileError, match="no peak_flops for float8"):
        MODEL.times([product(8, 8, 8, precision="float8")], dataclasses.replace(
            load_device("P4"), peak_flops_per_s={"float64": load_device("P4").peak_flops_per_s["float64"]}))  # fmt: skip
    with pytest.raises(ValueError, match="context 'caffe' is not known"):
        MODEL.times([product(8, 8, 8)], load_device("P4"), context="caffe")


def test_a_saved_model_says_the_same(tmp_path: Path) -> None:
    path = tmp_path / "copy.npz"
    save(MODEL, path)
    assert path.stat().st_size < 5e6
    again = OperatorTimes.load(path)
    operations, device = [product(777, 333, 1111), relu(1 << 20)], load_device("T4")
    for context in (None, "pytorch"):
        expected = MODEL.times(operations, device, context=context).seconds
        np.testing.assert_array_equal(again.times(operations, device, context=context).seconds, expected)


def test_a_damaged_file_is_refused_by_name(tmp_path: Path) -> None:
    cut = tmp_path / "cut.npz"
    shutil.copy(OPERATOR_TIMES_FILE, cut)
    with cut.open("r+b") as file:
        file.truncate(cut.stat().st_size // 2)
    with pytest.raises(DataError, match=r"cut.npz: is damaged .*fit_operator_times"):
        OperatorTimes.load(cut)
    with pytest.raises(DataError, match=r"absent.npz: cannot be read: No such file"):
        OperatorTimes.load(tmp_path / "absent.npz")


def test_a_file_of_a_newer_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpdlf.models.cost.operator_times.VERSION", 99)
    save(MODEL, tmp_path / "new.npz")
    monkeypatch.undo()
    with pytest.raises(DataError, match="has version 99, this hpdlf reads up to 1: update hpdlf"):
        OperatorTimes.load(tmp_path / "new.npz")
