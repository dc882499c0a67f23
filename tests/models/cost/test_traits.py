"""What devices sustain."""

import pytest

from hpdlf.hwprofiles import load_device
from hpdlf.models.cost.traits import MATRIX_SHARE, matrix_share, sustained_share, traits_of


def test_a_measured_best_product_is_what_a_device_sustains():
    assert traits_of(load_device("H100-SXM"), "bfloat16").matrix_flops_per_s == 794.5e12


@pytest.mark.parametrize("name", ["H200-SXM", "GB200", "MI355X", "A100-SXM-40"])
def test_without_one_the_share_is_that_of_relatives(name):
    device = load_device(name)
    assert traits_of(device, "bfloat16").matrix_flops_per_s == pytest.approx(
        device.peak_flops_per_s["bfloat16"].value * MATRIX_SHARE[device.architecture][0]
    )


def test_a_small_power_limit_binds_more():
    small, large = load_device("H100-PCIE-80"), load_device("H200-SXM")
    assert matrix_share(small, "bfloat16") < matrix_share(large, "bfloat16")


def test_full_precision_goes_by_the_power_limit_alone():
    device = load_device("A100-PCIE-40")
    assert matrix_share(device, "float32") == sustained_share(device)
