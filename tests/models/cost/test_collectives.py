"""Closed forms and properties of collectives: algorithms of MPI, of NCCL, and over nodes."""

from __future__ import annotations

from dataclasses import replace
from math import log2

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpdlf.errors import PlanError
from hpdlf.hwprofiles import Cluster, Link, Quantity, load_cluster, load_link
from hpdlf.models.cost import CostModel, collective_workload
from hpdlf.models.cost.algorithms import KINDS, fastest
from hpdlf.models.cost.collectives import Leg, collective_legs, slowdown

KIND = st.sampled_from(KINDS)
ALPHA, BANDWIDTH = 1e-6, 1e9


def quantity(value: float) -> Quantity:
    return Quantity(value=value, unit="1", source="test", tier="modelled")


def link(name: str, latency_s: float, bandwidth: float, fabric: str = "") -> Link:
    return Link(
        name=name,
        fabric=fabric,
        latency_s=quantity(latency_s),
        bandwidth_bytes_per_s=quantity(bandwidth),
        efficiency=quantity(1.0),
    )


def network(nodes: int, per_node: int, inner: Link, outer: Link | None = None, *, like: str = "xeon-64") -> Cluster:
    model = load_cluster(like)
    node = replace(model.node, devices=quantity(float(per_node)), link=inner)
    return replace(model, name="test", node=node, n_nodes=nodes, link=outer)


def seconds_of(legs: tuple[Leg, ...]) -> float:
    return sum(leg.latency_s + leg.transmission_s for leg in legs)


def flat_s(kind: str, nbytes: float, ranks: int, *, alpha: float = ALPHA, bandwidth: float = BANDWIDTH) -> float:
    found = fastest(kind, nbytes, ranks, latency_s=alpha, bandwidth_bytes_per_s=bandwidth)
    return found.messages * alpha + found.nbytes / bandwidth


# MPI on equal links (Thakur, Rabenseifner, Gropp 2005, section 4)


def test_a_large_all_reduce_moves_twice_the_buffer_less_the_own_part() -> None:
    found = fastest("all_reduce", 1e9, 6, latency_s=ALPHA, bandwidth_bytes_per_s=BANDWIDTH)
    assert found == ("ring", 10, pytest.approx(2 * 1e9 * 5 / 6))


def test_a_small_all_reduce_takes_the_logarithm_of_steps() -> None:
    found = fastest("all_reduce", 8, 64, latency_s=ALPHA, bandwidth_bytes_per_s=BANDWIDTH)
    assert found == ("recursive doubling", 6, 8 * log2(64))


@pytest.mark.parametrize("kind", KINDS)
def test_one_rank_moves_nothing_and_two_ranks_something(kind: str) -> None:
    assert fastest(kind, 100, 1, latency_s=ALPHA, bandwidth_bytes_per_s=BANDWIDTH)[1:] == (0, 0)
    assert flat_s(kind, 100, 2) > 0


@given(KIND, st.integers(2, 300), st.integers(1, 10**9))
def test_no_collective_beats_its_lower_bounds(kind: str, ranks: int, nbytes: int) -> None:
    """News needs lg p steps, and every rank has to receive what it lacks (Thakur et al., section 4)."""
    found = fastest(kind, nbytes, ranks, latency_s=ALPHA, bandwidth_bytes_per_s=BANDWIDTH)
    assert found.messages >= log2(ranks) - 1e-9 or kind == "all_to_all"
    assert found.nbytes >= nbytes * (ranks - 1) / ranks * (1 - 1e-12)


@given(KIND, st.integers(2, 64), st.integers(1, 10**8))
def test_more_bytes_and_a_slower_link_take_longer(kind: str, ranks: int, nbytes: int) -> None:
    assert flat_s(kind, nbytes * 2, ranks) > flat_s(kind, nbytes, ranks)
    assert flat_s(kind, nbytes, ranks, bandwidth=5e8) > flat_s(kind, nbytes, ranks)
    assert flat_s(kind, nbytes, ranks, alpha=2e-6) > flat_s(kind, nbytes, ranks)


@pytest.mark.parametrize(
    ("kind", "ranks", "short", "long"),
    [
        ("all_reduce", 64, "recursive doubling", "halving and doubling"),
        ("all_gather", 12, "Bruck", "ring"),
        ("reduce_scatter", 16, "recursive halving", "pairwise"),
        ("broadcast", 16, "binomial tree", "scatter and all-gather"),
        ("all_to_all", 16, "Bruck", "pairwise"),
    ],
)
def test_the_algorithm_changes_once_with_size_and_within_the_range_in_which_libraries_change_it(
    kind: str, ranks: int, short: str, long: str
) -> None:
    """Between 128 B and 1 MB lie all thresholds of MPICH and Open MPI for these."""
    names = [
        fastest(kind, float(2**e), ranks, latency_s=1.5e-6, bandwidth_bytes_per_s=10e9).algorithm for e in range(31)
    ]
    assert set(names) == {short, long}
    change = names.index(long)
    assert names[change:] == [long] * (31 - change)
    assert 128 <= 2**change <= 2**20


def test_an_unknown_kind_names_the_near_one() -> None:
    with pytest.raises(PlanError, match="did you mean 'all_reduce'"):
        collective_legs("allreduce", 1, (0,), load_cluster("dgx-a100:1"))
    with pytest.raises(PlanError, match="known are"):
        collective_legs("xyz", 1, (0,), load_cluster("dgx-a100:1"))


# Over the links of a cluster


def test_a_ring_over_equal_links_of_cpus_is_the_closed_form() -> None:
    plain = network(1, 6, link("plain", ALPHA, BANDWIDTH))
    (leg,) = collective_legs("all_reduce", 6e8, tuple(range(6)), plain)
    assert leg[1:4] == (pytest.approx(10 * ALPHA), pytest.approx(2 * 6e8 * 5 / 6 / BANDWIDTH), "ring")


def test_an_all_reduce_in_shared_memory_moves_the_buffer_once_however_many_take_part() -> None:
    shared = network(1, 8, link("shared", ALPHA, BANDWIDTH, "shared-memory"))
    for ranks in (2, 5, 8):
        (leg,) = collective_legs("all_reduce", 1e8, tuple(range(ranks)), shared)
        assert leg[1:4] == (4 * ALPHA, 0.1, "shared memory")


def test_a_ring_of_nccl_pays_its_start_its_steps_and_the_link_once_over() -> None:
    """NCCL's constants for Simple over NVLink: 8.4 us, and 3.4 us per step of 2 (p-1)."""
    gpus = network(1, 4, link("nvlink", 5e-6, 100e9, "nvlink"), like="dgx-a100")
    (leg,) = collective_legs("all_reduce", 1e9, tuple(range(4)), gpus)
    assert leg.algorithm == "ring, Simple"
    assert leg[1:3] == (pytest.approx(8.4e-6 + 6 * 3.4e-6), pytest.approx(2 * 1e9 * 3 / 4 / 100e9))


def test_nccl_takes_quicker_protocols_for_less_and_trees_for_many_nodes() -> None:
    dgx = load_cluster("dgx-a100:16")
    inside = [collective_legs("all_reduce", float(2**e), tuple(range(8)), dgx)[0].algorithm for e in range(8, 32)]
    assert [name for i, name in enumerate(inside) if i == 0 or inside[i - 1] != name] == [
        "ring, LL",
        "ring, LL128",
        "ring, Simple",
    ]
    small, large = (collective_legs("all_reduce", n, tuple(range(128)), dgx)[-1].algorithm for n in (1e3, 4e9))
    assert (small, large) == ("tree, LL", "ring, Simple")


def test_a_switch_that_adds_up_beats_the_ring_for_large_buffers_alone() -> None:
    hopper = load_cluster("dgx-h100:1")
    names = [collective_legs("all_reduce", n, tuple(range(8)), hopper)[0].algorithm for n in (1e4, 1e9)]
    assert names == ["ring, LL", "NVLS"]


CLUSTERS = {
    name: load_cluster(name)
    for name in (
        "dgx-a100:4",
        "dgx-h100:4",
        "dgx-1-v100:3",
        "mi300x-8:1",
        "xeon-64:9",
        "xeon-64:16x1",
        "generic-x86:1x6",
    )
}


@settings(deadline=None, max_examples=200)
@given(KIND, st.sampled_from(sorted(CLUSTERS)), st.integers(2, 32), st.integers(0, 10**9), st.integers(1, 10**8))
def test_time_grows_with_size_and_is_never_nothing(kind: str, name: str, p: int, nbytes: int, more: int) -> None:
    cluster = CLUSTERS[name]
    ranks = tuple(range(min(p, cluster.n_devices)))
    first, second = (seconds_of(collective_legs(kind, n, ranks, cluster)) for n in (nbytes, nbytes + more))
    assert 0 < first <= second * (1 + 1e-12)


@settings(deadline=None)
@given(KIND, st.sampled_from(("dgx-a100:4", "xeon-64:16x1")), st.integers(1, 3))
def test_latency_grows_with_the_number_of_ranks(kind: str, name: str, power: int) -> None:
    """Powers of two: between them MPI's algorithms for others than powers of two may be slower than the next power."""
    cluster = CLUSTERS[name]
    few, many = (seconds_of(collective_legs(kind, 8, tuple(range(2**e)), cluster)) for e in (power, power + 1))
    assert few <= many


@settings(deadline=None)
@given(
    st.sampled_from(("all_reduce", "all_gather", "reduce_scatter")),
    st.sampled_from((("xeon-64", ""), ("dgx-a100", "nvlink"))),
    st.integers(2, 5),
    st.integers(2, 8),
    st.integers(1, 10**9),
    st.floats(1.0, 30.0),
)
def test_nodes_with_a_faster_link_inside_are_never_slower_than_a_ring_of_slow_links(
    kind: str, like: tuple[str, str], nodes: int, per_node: int, nbytes: int, faster: float
) -> None:
    outer = link("outer", 10e-6, 10e9, "infiniband" if like[1] else "")
    inner = link("inner", 10e-6 / faster, 10e9 * faster, like[1])
    cluster, p = network(nodes, per_node, inner, outer, like=like[0]), nodes * per_node
    rounds = 2 if kind == "all_reduce" else 1
    step_s = 20e-6 if like[1] else 10e-6  # NCCL's own step over a network: 14 us, times 1.4 in large rings
    ring_s = rounds * ((p - 1) * step_s + nbytes * (p - 1) / p / 10e9) + 15e-6
    assert seconds_of(collective_legs(kind, nbytes, tuple(range(p)), cluster)) <= ring_s


@given(st.floats(1, 1e9), st.floats(1, 1e8), st.floats(1e2, 1e8))
def test_bandwidth_builds_up_smoothly(nbytes: float, more: float, half: float) -> None:
    slow = replace(link("slow", ALPHA, BANDWIDTH), half_bandwidth_bytes=quantity(half))
    assert 1.0 < slowdown(slow, nbytes + more) <= slowdown(slow, nbytes) <= 2.0
    assert nbytes * slowdown(slow, nbytes) < (nbytes + more) * slowdown(slow, nbytes + more)


@pytest.fixture(scope="module")
def dgx() -> Cluster:
    return load_cluster("dgx-a100:4")


def estimate_s(kind: str, nbytes: int, ranks: range, cluster: Cluster) -> float:
    return CostModel.default().collective(kind, nbytes, ranks=ranks, cluster=cluster).seconds


@pytest.mark.parametrize("kind", KINDS)
def test_leaving_the_node_costs_more(kind: str, dgx: Cluster) -> None:
    assert estimate_s(kind, 10**8, range(32), dgx) > estimate_s(kind, 10**8, range(8), dgx)


def test_groups_share_the_adapters_of_their_nodes(dgx: Cluster) -> None:
    """Eight ranks of a node share eight adapters; one of them has one, and takes eight times as long."""
    whole = collective_legs("all_gather", 1e10, tuple(range(32)), dgx)[-1].transmission_s
    alone = collective_legs("all_gather", 1e10, tuple(range(0, 32, 8)), dgx)[-1].transmission_s
    assert alone / whole == pytest.approx(8 * (3 / 4) / (31 / 32))


def test_two_gpus_of_a_cube_mesh_share_one_link_of_six() -> None:
    cube = load_cluster("dgx-1-v100:1")
    two, eight = (
        collective_legs("all_gather", 1e10, tuple(range(p)), cube)[0].transmission_s * p / (p - 1) for p in (2, 8)
    )
    assert two / eight == pytest.approx(6, rel=0.05)


def test_the_subject_is_the_link_that_spans_the_ranks(dgx: Cluster) -> None:
    within = collective_workload("all_reduce", 10**6, ranks=range(8), cluster=dgx)
    across = collective_workload("all_reduce", 10**6, ranks=range(16), cluster=dgx)
    assert within is not None
    assert across is not None
    assert dgx.node.link is not None
    assert dgx.link is not None
    assert (within.subject, across.subject) == (dgx.node.link.name, dgx.link.name)
    assert within.key != across.key
    assert set(within.components) == {"all_reduce.latency", "all_reduce.bandwidth"}
    assert set(across.components) > {f"{dgx.node.link.name}:all_reduce.latency", "all_reduce.bandwidth"}


def test_a_rank_twice_or_outside_is_refused(dgx: Cluster) -> None:
    with pytest.raises(PlanError, match="twice"):
        collective_workload("all_reduce", 1, ranks=(0, 0), cluster=dgx)
    with pytest.raises(PlanError, match="devices 0 to 31"):
        collective_workload("all_reduce", 1, ranks=(0, 32), cluster=dgx)


def test_ranks_of_one_machine_talk_through_shared_memory() -> None:
    local = load_cluster("generic-x86:1x4")
    estimate = CostModel.default().collective("all_reduce", 10**6, ranks=range(4), cluster=local)
    assert estimate.bound == "network"
    assert 1e-5 < estimate.seconds < 1e-1
    assert CostModel.default().collective("all_reduce", 10**6, ranks=[2], cluster=local).seconds == 0.0


# What another topology changes


def leaves(cluster: Cluster, nodes: int, ratio: float) -> Cluster:
    return replace(cluster, oversubscription={str(nodes): quantity(ratio)})


LARGE = 1e9


def test_oversubscription_is_paid_by_who_leaves_the_switch(dgx: Cluster) -> None:
    pod = load_cluster("dgx-a100:16")
    thin = leaves(pod, 4, 4.0)
    below, strided = tuple(range(0, 32, 8)), tuple(range(0, 128, 32))
    for kind in KINDS:
        assert collective_legs(kind, LARGE, below, thin) == collective_legs(kind, LARGE, below, pod)
        here, there = (collective_legs(kind, LARGE, strided, c)[-1].transmission_s for c in (pod, thin))
        assert there == pytest.approx(4 * here)
    # A ring over whole switches leaves each once; an all-to-all goes everywhere: 12 of 15 others are elsewhere.
    ring, everywhere = (
        collective_legs(kind, LARGE, tuple(range(128)), thin)[-1].transmission_s
        / collective_legs(kind, LARGE, tuple(range(128)), pod)[-1].transmission_s
        for kind in ("all_gather", "all_to_all")
    )
    assert ring == pytest.approx(1.0)
    assert everywhere == pytest.approx(4 * 12 / 15)


def test_trays_that_nvlink_joins_are_as_fast_as_the_rack() -> None:
    rack = load_cluster("gb200-nvl72:2")
    tray = replace(rack.node, devices=quantity(4.0))
    assert rack.link is not None
    part = replace(
        rack.link,
        bandwidth_bytes_per_s=quantity(rack.link.bandwidth_bytes_per_s.value / 18),
        adapters=quantity(4.0),
    )
    trays = replace(rack, node=tray, n_nodes=36, link=part, domain_nodes=quantity(18.0))
    for kind in KINDS:
        for ranks in (range(8), range(72), range(144), range(0, 144, 72), range(0, 144, 4)):
            alike = (seconds_of(collective_legs(kind, LARGE, tuple(ranks), c)) for c in (rack, trays))
            assert next(alike) == pytest.approx(next(alike))
    apart = replace(trays, domain_nodes=None)
    two = tuple(range(8))
    assert seconds_of(collective_legs("all_gather", LARGE, two, apart)) > 3 * seconds_of(
        collective_legs("all_gather", LARGE, two, trays)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_slower_link_makes_large_buffers_slower_in_proportion(kind: str, dgx: Cluster) -> None:
    assert dgx.link is not None
    slow = replace(
        dgx, link=replace(dgx.link, bandwidth_bytes_per_s=quantity(dgx.link.bandwidth_bytes_per_s.value / 4))
    )
    ranks = tuple(range(0, 32, 8))
    fast, slower = (collective_legs(kind, 1e10, ranks, c)[-1].transmission_s for c in (dgx, slow))
    assert slower == pytest.approx(4 * fast)


@pytest.mark.parametrize("kind", KINDS)
def test_more_devices_take_longer_for_the_same_buffer(kind: str) -> None:
    """Over one kind of link the bytes of a rank grow with (p-1)/p and the steps with p; a group that has more of a node also
    has more of its adapters, so whole nodes are compared."""
    pod = load_cluster("dgx-a100:64")
    times = [seconds_of(collective_legs(kind, 1e8, tuple(range(8 * n)), pod)) for n in (4, 8, 16, 32, 64)]
    assert times == sorted(times)


def test_strided_groups_of_a_cube_mesh_have_the_cables_between_them() -> None:
    """GPUs 0, 2, 4, 6 of a DGX-1 have two rings, 0 to 3 four."""
    cube = load_cluster("dgx-1-v100:1")
    near, strided = (
        collective_legs("all_gather", 1e10, ranks, cube)[0].transmission_s for ranks in ((0, 1, 2, 3), (0, 2, 4, 6))
    )
    assert strided / near == pytest.approx(0.63 * 6 / 2)


def test_fewer_that_are_active_have_more_of_a_shared_adapter() -> None:
    """Eight GPUs share one adapter; two of them have it to themselves while the others compute. Where each has its own
    adapter it makes no difference."""
    shared = replace(load_cluster("dgx-1-v100:4"), link=load_link("infiniband-edr-1"))
    own = load_cluster("dgx-a100:4")
    ranks = tuple(range(0, 32, 8))
    for cluster, times in ((shared, 8), (own, 1)):
        all_s, alone_s = (
            collective_legs("all_gather", 1e10, ranks, cluster, active=active)[-1].transmission_s
            for active in (None, 1)
        )
        assert all_s == pytest.approx(times * alone_s)


def test_a_device_drives_its_own_adapters() -> None:
    """64 of the 72 GPUs of a rack have 64 of its adapters."""
    rack = load_cluster("gb200-nvl72:2x64")
    full = load_cluster("gb200-nvl72:2")
    part, whole = (
        collective_legs("broadcast", 1e11, tuple(range(c.n_devices)), c, algorithm="ring, Simple")[-1]
        for c in (rack, full)
    )
    assert part.link.name == whole.link.name == "infiniband-ndr-72"
    sent = [max(leg.transmission_s, leg.hidden_s) for leg in (part, whole)]
    assert sent[0] / sent[1] == pytest.approx(72 / 64)


def test_a_price_is_kept() -> None:
    pod = load_cluster("dgx-a100:4")
    assert collective_legs("all_reduce", 1e6, tuple(range(32)), pod) is collective_legs(
        "all_reduce", 1e6, tuple(range(32)), pod
    )


def test_two_nodes_are_faster_than_their_network_since_hopper_alone() -> None:
    """Nodes whose switches add up are each the root of one of two trees: a byte leaves a node once."""
    for name, at_least, at_most in (("dgx-a100:2", 0.9, 1.0), ("dgx-h100:2", 1.1, 1.5)):
        cluster, n, p = load_cluster(name), 8e9, 16
        assert cluster.link is not None
        bus = 2 * n * (p - 1) / p / seconds_of(collective_legs("all_reduce", n, tuple(range(p)), cluster))
        assert at_least < bus / cluster.link.collective_bandwidth_bytes_per_s < at_most
