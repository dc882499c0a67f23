"""Features in closed form, and that they mean the same on devices of another size."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from hpdlf.models.cost.features import CONTEXTS, features, group_of
from hpdlf.models.cost.operation import Operation
from hpdlf.models.cost.traits import Traits

DEVICE = Traits(
    matrix_flops_per_s=1e13, vector_flops_per_s=1e13, peak_flops_per_s=1e13, bandwidth_bytes_per_s=1e12, units=80.0,
    l2_bytes=6e6, launch_s=5e-6, generation=7.0,
)  # fmt: skip


def product(m: int, n: int, k: int) -> Operation:
    return Operation(
        family="matmul", op="linear", dims=(1, m, n, k), flops=2.0 * m * n * k, read_bytes=4.0 * (m * k + k * n),
        write_bytes=4.0 * m * n,
    )  # fmt: skip


def conv(c: int, k: int, side: int, *, r: int = 3, n: int = 8, precision: str = "float32") -> Operation:
    result, data, weights = n * k * side**2, n * c * side**2, k * c * r * r
    return Operation(
        family="conv", op="conv", dims=(n, c, k, r, r, side, side, 1, 1), flops=2.0 * result * c * r * r,
        read_bytes=4.0 * (data + weights), write_bytes=4.0 * result, precision=precision,
    )  # fmt: skip


def of(operation: Operation, device: Traits = DEVICE):  # type: ignore[no-untyped-def]
    return features(group_of(operation.family), [operation], [device], [device.launch_s], [CONTEXTS.index("pytorch")])


def test_the_roof_is_the_longer_of_arithmetic_and_traffic() -> None:
    assert of(product(4096, 4096, 4096)).roof_s[0] == pytest.approx(2 * 4096**3 / 1e13)
    thin = product(4096, 1, 4096)
    assert of(thin).roof_s[0] == pytest.approx(thin.traffic_bytes / 1e12)


def test_winograd_spares_what_its_tiles_cover_of_the_picture() -> None:
    """Even pictures of many channels: 4 x 4 tiles need 36 multiplications for 144, their tensors go through memory."""
    many = conv(512, 512, 28)
    positions = 8 * 7 * 7
    arithmetic_s = 2 * 36 * positions * 512 * 512 / 1e13
    through_s = (many.traffic_bytes + 2 * 36 * 4 * (positions * 1024 + 512 * 512)) / 1e12
    assert of(many).roof_s[0] == pytest.approx(arithmetic_s + through_s)
    # One by one, or in half precision on matrix units, there is nothing to spare.
    pointwise, half = conv(512, 512, 28, r=1), conv(512, 512, 28, precision="float16")
    for plain in (pointwise, half):
        assert of(plain).roof_s[0] == pytest.approx(max(plain.flops / 1e13, plain.traffic_bytes / 1e12))


def test_small_pictures_waste_of_a_tile() -> None:
    """A picture of 5 x 5 costs what one of 8 x 8 does in tiles of 4 x 4, and of 6 x 6 in tiles of 2 x 2."""
    per_result = [of(conv(256, 256, side)).roof_s[0] / side**2 for side in (5, 8)]
    assert per_result[0] > 1.3 * per_result[1]


def test_a_device_twice_as_large_sees_the_same_features_of_a_product_twice_as_large() -> None:
    """Twice the units, rates, cache and rows: waves, ridge, working set and roofline over launch stay."""
    double = dataclasses.replace(
        DEVICE, matrix_flops_per_s=2e13, bandwidth_bytes_per_s=2e12, units=160.0, l2_bytes=12e6
    )
    one, two = of(product(1280, 1024, 64)).rows[0], of(product(2560, 1024, 64), double).rows[0]
    same = np.isclose(one, two)
    assert same.sum() > 0.7 * len(one)
    # What differs is the shape itself, and the weights, which did not grow.
    assert np.abs(one - two).max() <= 1.0 + 1e-9


def test_rows_of_another_group_have_other_features() -> None:
    relu = Operation(family="elementwise", op="relu", dims=(64, 64), flops=4096.0, read_bytes=16384.0, write_bytes=16384.0)
    assert len({of(o).rows.shape[1] for o in (product(8, 8, 8), conv(8, 8, 8), relu)}) == 3
