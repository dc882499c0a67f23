"""Collectives on a torus against their bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpdlf.hwprofiles import load_cluster
from hpdlf.hwprofiles.topology import Extent
from hpdlf.models.cost.collectives import collective_legs
from hpdlf.models.cost.torus import steps_on_torus

RING, LINE = Extent(8, True, 1.0), Extent(8, False, 1.0)
KIND = st.sampled_from(("all_reduce", "all_gather", "reduce_scatter", "broadcast", "all_to_all"))
EXTENT = st.builds(Extent, st.integers(2, 16), st.booleans(), st.sampled_from((1.0, 0.5, 0.25)))


def test_a_whole_torus_gathers_at_the_bandwidth_of_all_cables() -> None:
    found = steps_on_torus("all_gather", 512.0, (RING, RING, RING), dims=3)
    assert found == ("torus", 12.0, pytest.approx(511.0))


def test_one_dimension_has_its_part_of_the_cables_and_a_line_half_of_that() -> None:
    ring, line = (steps_on_torus("reduce_scatter", 800.0, (one,), dims=2).nbytes for one in (RING, LINE))
    assert ring == pytest.approx(800 * 7 / 8 * 2)
    assert line == pytest.approx(2 * ring)


def test_an_all_reduce_is_a_scatter_and_a_gather() -> None:
    both, one = (steps_on_torus(kind, 800.0, (RING, LINE), dims=2) for kind in ("all_reduce", "all_gather"))
    assert (both.messages, both.nbytes) == (2 * one.messages, 2 * one.nbytes)


def test_an_all_to_all_is_bound_by_the_middle() -> None:
    """In a ring of k a byte goes k/4 hops on average and there are two cables a device; through the middle of a line half of
    the devices send half of theirs."""
    assert steps_on_torus("all_to_all", 800.0, (RING,), dims=1).nbytes == pytest.approx(800 * 8 / 4)
    assert steps_on_torus("all_to_all", 800.0, (LINE,), dims=1).nbytes == pytest.approx(2 * 800 * 8 / 4)
    assert steps_on_torus("all_to_all", 800.0, (Extent(2, False, 1.0),), dims=1).nbytes == pytest.approx(800)


@given(KIND, st.lists(EXTENT, min_size=1, max_size=3), st.floats(1.0, 1e9))
def test_rings_beat_lines_and_nothing_beats_the_bytes_that_must_arrive(
    kind: str, along: list[Extent], n: float
) -> None:
    found = steps_on_torus(kind, n, along, dims=3)
    closed = steps_on_torus(kind, n, [one._replace(ring=True) for one in along], dims=3)
    assert closed.nbytes <= found.nbytes
    assert closed.messages <= found.messages
    p = 1
    for one in along:
        p *= one.members
    assert found.nbytes >= n * (p - 1) / p * (1 - 1e-9)


def test_slices_of_tpu_over_the_network_of_the_data_centre() -> None:
    one, two = load_cluster("gcp-tpu-v6e-256:64"), load_cluster("gcp-tpu-v6e-256:128")
    (alone,) = collective_legs("all_reduce", 1e9, tuple(range(256)), one)
    legs = collective_legs("all_reduce", 1e9, tuple(range(512)), two)
    assert [leg.link.name for leg in legs] == ["ici-v6e", "tpu-v6e-network", "ici-v6e"]
    inside = [leg for leg in legs if leg.link.name == "ici-v6e"]
    assert sum(leg.transmission_s for leg in inside) == pytest.approx(alone.transmission_s)
    # Each of 64 hosts sends its part of the two halves: 1e9 / 64 bytes in all over 0.8 x 50 GB/s.
    assert legs[1].transmission_s == pytest.approx(1e9 / 64 / 40e9, rel=0.01)


def test_more_dimensions_are_faster_than_one() -> None:
    slice_ = load_cluster("gcp-tpu-v4-64")
    row, plane, cube = (
        collective_legs("all_gather", 1e9, tuple(range(n)), slice_)[0].transmission_s * n / (n - 1) for n in (4, 16, 64)
    )
    assert row == pytest.approx(3 * cube)
    assert plane == pytest.approx(1.5 * cube)
