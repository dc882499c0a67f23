"""Domains, switches, tori and cables: closed forms, and what a cluster says of its routes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpdlf.errors import PlanError, ProfileError
from hpdlf.hwprofiles import Cluster, Quantity, cluster_from_toml, load_cluster, load_link
from hpdlf.hwprofiles.topology import Extent, Port, box, extents, parse_wiring, rings, stretch, uplinks


def quantity(value: float) -> Quantity:
    return Quantity(value=value, unit="1", source="a test", tier="modelled")


def with_levels(levels: dict[int, float], name: str = "dgx-a100:16") -> Cluster:
    return replace(load_cluster(name), oversubscription={str(k): quantity(v) for k, v in levels.items()})


def test_a_message_climbs_to_the_first_switch_above_both() -> None:
    assert uplinks(0, 3, (4, 8)) == ()
    assert uplinks(0, 5, (8, 4)) == (4,)
    assert uplinks(3, 8, (4, 8)) == (4, 8)


def test_rings_pay_for_oversubscription_only_where_many_cross() -> None:
    """Of four nodes under a switch with twice the bandwidth below, one sends upwards in a ring: it has room. Where each of
    them belongs to a ring of its own, they ask for twice what there is."""
    assert stretch({4: 2.0}, range(8), everybody=False) == 1.0
    assert stretch({4: 2.0}, (0, 4, 8, 12), everybody=False) == 2.0
    assert stretch({4: 6.0}, range(8), everybody=False) == 1.5
    assert stretch({4: 2.0}, (0, 1, 2, 3), everybody=True) == 1.0
    assert stretch({4: 2.0}, range(8), everybody=True) == pytest.approx(2 * 4 / 7)


@given(st.integers(1, 4096), st.integers(1, 3))
def test_a_box_holds_all_devices(devices: int, dims: int) -> None:
    sides = box(devices, dims)
    assert len(sides) == dims
    product = 1
    for side in sides:
        product *= side
    assert product == devices
    assert list(sides) == sorted(sides)


def test_slices_are_as_cubic_as_they_can_be() -> None:
    assert box(512, 3) == (8, 8, 8)
    assert box(2048, 3) == (8, 16, 16)
    assert box(128, 2) == (8, 16)
    assert box(7, 2) == (1, 7)


def test_how_groups_lie_in_a_torus() -> None:
    sides = (4, 4, 4)
    assert extents(tuple(range(64)), sides, 4) == (Extent(4, True, 1.0),) * 3
    assert extents((0, 1, 2, 3), sides, 4) == (Extent(4, True, 1.0),)
    assert extents((0, 1), sides, 4) == (Extent(2, False, 1.0),)
    # Every other device of a row: a ring over two cables a hop, which the others share.
    assert extents((0, 2), sides, 4) == (Extent(2, True, 0.5),)
    assert extents(tuple(range(16)), (16, 16), 17) == (Extent(16, False, 1.0),)
    assert extents((0, 5, 11), sides, 4) == (Extent(3, False, 1.0),)  # no box


def test_rings_of_the_cube_mesh_are_those_that_were_measured() -> None:
    """Bandwidths of NCCL on 2, 3, 4, 6, 7 and 8 V100 of a DGX-1 are 1, 2, 4, 2, 4 and 6 times that of one cable."""
    cables = load_link("nvlink2").cables
    assert [rings(cables, tuple(range(n))) for n in range(2, 9)] == [1, 2, 4, 0, 2, 4, 6]
    assert rings(cables, (0, 3)) == rings(cables, (0, 4)) == 2
    assert rings(cables, (0, 5)) == 0
    assert rings(cables, (0, 2, 4, 6)) == rings(cables, (1, 3, 5, 7)) == 2


def test_wiring_that_says_nothing_is_named() -> None:
    assert parse_wiring(("3-0", "1-2 x4")) == ((0, 3, 1), (1, 2, 4))
    for bad in ("0-0", "0:1", "0-1 x0", "a-b"):
        with pytest.raises(ValueError, match="is no cable"):
            parse_wiring((bad,))
    with pytest.raises(ValueError, match="twice"):
        parse_wiring(("0-1", "1-0"))


def test_groups_of_a_cube_mesh_see_their_own_cables() -> None:
    link = load_link("nvlink2")
    assert link.share_among((0, 1)) == link.share_of(2)
    assert link.share_among((0, 3)) == pytest.approx(2 / 6)
    assert link.share_among((4, 5, 6, 7)) == pytest.approx(4 / 6)
    assert link.share_among((0, 2, 4, 6)) == pytest.approx(2 / 6)
    assert link.share_among((0, 5)) < link.share_among((0, 1))
    assert link.share_among(tuple(range(8))) == 1.0


def test_groups_that_cross_a_bridge_share_it() -> None:
    """Eight devices on PCIe see 0.6 over the bridge between the halves; two rings of four over it see half of that each."""
    link = load_link("pcie4")
    assert link.share_among((0, 1, 2, 3)) == link.share_among((4, 5, 6, 7)) == link.share_of(4)
    assert link.share_among((0, 2, 4, 6)) == pytest.approx(link.share_of(8) / 2)
    switched = load_link("nvlink3")
    assert switched.share_among((0, 2, 4, 6)) == switched.share_of(4)


def test_the_route_of_a_message() -> None:
    pod = with_levels({4: 2.0, 8: 4.0})
    assert pod.route(0, 1) == (Port("device", 0, False), Port("device", 1, True))
    assert pod.route(0, 8) == (Port("adapters", 0, False), Port("adapters", 1, True))
    assert pod.route(0, 8 * 9) == (
        Port("adapters", 0, False),
        Port("switch", 0, False, 4),
        Port("switch", 0, False, 8),
        Port("switch", 1, True, 8),
        Port("switch", 2, True, 4),
        Port("adapters", 9, True),
    )
    with pytest.raises(PlanError, match="device 128"):
        pod.route(0, 128)


def test_trays_of_a_rack_are_one_domain() -> None:
    rack = load_cluster("gb200-nvl72:2")
    tray = replace(rack.node, name="tray", devices=quantity(4.0))
    trays = replace(rack, node=tray, n_nodes=36, domain_nodes=quantity(18.0))
    assert trays.devices_per_domain == 72
    assert (trays.node_of(5), trays.domain_of(5), trays.domain_of(72)) == (1, 0, 1)
    assert trays.node.link is not None
    assert trays.link_between(0, 71) is trays.node.link
    assert trays.link_between(0, 72) is trays.link
    single = replace(trays, n_nodes=18, link=None)
    assert single.link_between(0, 71) is single.node.link
    with pytest.raises(ProfileError, match="no link between nodes"):
        replace(trays, link=None)


def test_ranks_can_lie_elsewhere() -> None:
    pod = load_cluster("dgx-a100:2")
    crossed = pod.placed((0, 8, 1, 9))
    assert [crossed.node_of(rank) for rank in range(4)] == [0, 1, 0, 1]
    assert crossed.link_between(0, 1) is pod.link
    assert crossed.link_between(0, 2) is pod.node.link
    assert pod.placed(tuple(range(16))).placement == ()
    with pytest.raises(PlanError, match="device 16"):
        pod.placed((0, 16))
    with pytest.raises(PlanError, match="two ranks on device 3"):
        pod.placed((3, 3))
    with pytest.raises(PlanError, match="devices 0 to 3"):
        crossed.node_of(4)


def test_topologies_survive_a_file() -> None:
    pod = with_levels({4: 2.0}, "dgx-1-v100:8")
    back = cluster_from_toml(pod.to_toml(), origin="here")
    assert back.levels == {4: 2.0}
    assert back.node.link == pod.node.link
    slices = load_cluster("gcp-tpu-v6e-256:128")
    back = cluster_from_toml(slices.to_toml(), origin="here")
    assert back.devices_per_domain == slices.devices_per_domain == 256


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("n_nodes = 8", 'n_nodes = 8\noversubscription.4 = { value = 0.5, source = "here", tier = "recalled" }', "outside 1"),
        ("n_nodes = 8", 'n_nodes = 8\noversubscription.leaf = { value = 2, source = "here", tier = "recalled" }', "number of"),
        (
            "n_nodes = 8",
            'n_nodes = 8\noversubscription.4 = { value = 2, source = "here", tier = "recalled" }\n'
            'oversubscription.6 = { value = 3, source = "here", tier = "recalled" }',
            "no multiple of the 4",
        ),
        (
            "n_nodes = 8",
            'n_nodes = 8\noversubscription.4 = { value = 3, source = "here", tier = "recalled" }\n'
            'oversubscription.8 = { value = 2, source = "here", tier = "recalled" }',
            "below the 3 of the level below",
        ),
        ("n_nodes = 8", 'n_nodes = 8\ndomain_nodes = { value = 0, source = "here", tier = "recalled" }', "domain_nodes"),
        ('"0-1",', '"0-1 x",', "is no cable"),
        ('fabric = "nvlink"', 'fabric = "nvlink"\ntorus_rings_from = { value = 4, source = "here", tier = "recalled" }', "torus_dims"),
        ("bandwidth = { value = 150", "bandwidth = { value = -150", "not positive"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_message(old: str, new: str, told: str) -> None:
    text = load_cluster("dgx-1-v100:8").to_toml()
    assert old in text
    with pytest.raises(ProfileError, match=told):
        cluster_from_toml(text.replace(old, new, 1), origin="here")
