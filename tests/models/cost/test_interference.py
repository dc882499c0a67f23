"""What collectives take from computing: orders of size that are known, and directions."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpdlf.hwprofiles import Quantity, load_cluster
from hpdlf.models.cost.algorithms import KINDS
from hpdlf.models.cost.interference import interference

NAMES = ("dgx-a100:4", "dgx-h100:4", "dgx-1-v100:4", "mi300x-8:2", "gcp-tpu-v4-64", "xeon-64")
CLUSTERS = {name: load_cluster(name) for name in NAMES}


@settings(deadline=None)
@given(st.sampled_from(KINDS), st.sampled_from(NAMES), st.integers(1, 32), st.integers(0, 10**10))
def test_it_is_a_share(kind: str, name: str, ranks: int, nbytes: int) -> None:
    assert 0.0 <= interference(kind, nbytes, tuple(range(min(ranks, CLUSTERS[name].n_devices))), CLUSTERS[name]) < 1.0


def test_a_fifth_over_nvlink() -> None:
    """Lee et al. 2025: 18.9 % on average over A100 and H100, 40 % at most."""
    for name in ("dgx-a100:4", "dgx-h100:4"):
        for ranks in (range(4), range(8)):
            assert 0.15 < interference("all_gather", 2e8, tuple(ranks), CLUSTERS[name]) < 0.3


def test_little_where_a_network_is_slow_or_shared() -> None:
    dgx, cube = CLUSTERS["dgx-a100:4"], CLUSTERS["dgx-1-v100:4"]
    assert interference("all_reduce", 1e9, tuple(range(0, 32, 8)), dgx) < 0.04
    assert interference("all_reduce", 1e9, tuple(range(32)), cube) < 0.1
    assert interference("all_reduce", 1e3, tuple(range(8)), dgx) < 0.01


def test_a_switch_that_adds_up_needs_fewer_units_than_a_ring_of_its_speed() -> None:
    hopper = CLUSTERS["dgx-h100:4"]
    assert interference("all_reduce", 1e9, tuple(range(8)), hopper) < interference(
        "all_gather", 1e9, tuple(range(8)), hopper
    )


def test_engines_of_their_own_leave_the_cores_alone() -> None:
    slice_ = CLUSTERS["gcp-tpu-v4-64"]
    whole = tuple(range(64))
    busy = interference("all_reduce", 1e9, whole, slice_)
    assert 0.05 < busy < 0.2
    wide = Quantity(value=1e15, unit="B/s", source="a test", tier="modelled")
    device = replace(slice_.device, memory_bandwidth_bytes_per_s=wide)
    free = replace(slice_, node=replace(slice_.node, device=device))
    assert interference("all_reduce", 1e9, whole, free) < 0.001


def test_cores_that_move_the_data_themselves_say_so() -> None:
    xeon = CLUSTERS["xeon-64"]
    exposed = 1.0 - xeon.device.communication_overlap.value
    assert interference("all_reduce", 1e6, (0, 1), xeon) == pytest.approx(exposed)
    assert interference("all_reduce", 1e6, (0,), xeon) == 0.0
