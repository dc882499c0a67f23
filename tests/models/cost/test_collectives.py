from math import log2

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpdlf.errors import PlanError
from hpdlf.hwprofiles import Cluster, load_cluster
from hpdlf.models.cost import CostModel, collective_workload
from hpdlf.models.cost.collectives import KINDS, collective_legs, flat

KIND = st.sampled_from(KINDS)


def link_time(kind: str, nbytes: float, ranks: int, *, alpha: float = 1e-6, bandwidth: float = 1e9) -> float:
    messages, moved = flat(kind, nbytes, ranks, latency_s=alpha, bandwidth_bytes_per_s=bandwidth)
    return messages * alpha + moved / bandwidth


def test_a_large_all_reduce_moves_twice_the_buffer_less_the_own_part() -> None:
    messages, moved = flat("all_reduce", 1e9, 6, latency_s=1e-6, bandwidth_bytes_per_s=1e9)
    assert (messages, moved) == (10, pytest.approx(2 * 1e9 * 5 / 6))


def test_a_small_all_reduce_takes_the_logarithm_of_steps() -> None:
    assert flat("all_reduce", 8, 64, latency_s=1e-6, bandwidth_bytes_per_s=1e9) == (6, 8 * log2(64))


@pytest.mark.parametrize("kind", KINDS)
def test_one_rank_moves_nothing_and_two_ranks_something(kind: str) -> None:
    assert flat(kind, 100, 1, latency_s=1e-6, bandwidth_bytes_per_s=1e9) == (0, 0)
    assert link_time(kind, 100, 2) > 0


@given(KIND, st.integers(2, 300), st.integers(1, 10**9))
def test_no_collective_beats_its_lower_bounds(kind: str, ranks: int, nbytes: int) -> None:
    """News needs lg p steps, and every rank has to receive what it lacks (Thakur et al., section 4)."""
    messages, moved = flat(kind, nbytes, ranks, latency_s=1e-6, bandwidth_bytes_per_s=1e9)
    assert messages >= log2(ranks) - 1e-9 or kind == "all_to_all"
    assert moved >= nbytes * (ranks - 1) / ranks * (1 - 1e-12)


@given(KIND, st.integers(2, 64), st.integers(1, 10**8))
def test_more_bytes_and_a_slower_link_take_longer(kind: str, ranks: int, nbytes: int) -> None:
    assert link_time(kind, nbytes * 2, ranks) > link_time(kind, nbytes, ranks)
    assert link_time(kind, nbytes, ranks, bandwidth=5e8) > link_time(kind, nbytes, ranks)
    assert link_time(kind, nbytes, ranks, alpha=2e-6) > link_time(kind, nbytes, ranks)


def test_an_unknown_kind_names_the_near_one() -> None:
    with pytest.raises(PlanError, match="did you mean 'all_reduce'"):
        flat("allreduce", 1, 2, latency_s=1.0, bandwidth_bytes_per_s=1.0)
    with pytest.raises(PlanError, match="known are"):
        collective_legs("xyz", 1, (0,), load_cluster("dgx-a100:1"))


@pytest.fixture(scope="module")
def dgx() -> Cluster:
    return load_cluster("dgx-a100:4")


def seconds(kind: str, nbytes: int, ranks: range, cluster: Cluster) -> float:
    return CostModel.default().collective(kind, nbytes, ranks=ranks, cluster=cluster).seconds


@pytest.mark.parametrize("kind", KINDS)
def test_leaving_the_node_costs_more(kind: str, dgx: Cluster) -> None:
    assert seconds(kind, 10**8, range(32), dgx) > seconds(kind, 10**8, range(8), dgx)


def test_a_hierarchical_all_reduce_is_much_faster_than_between_nodes_alone_would_be(dgx: Cluster) -> None:
    """Eight ranks of a node share eight adapters; 32 ranks reduce not much slower than 4 with one adapter each."""
    all_ranks = seconds("all_reduce", 10**9, range(32), dgx)
    one_a_node = seconds("all_reduce", 10**9, range(0, 32, 8), dgx)
    assert all_ranks < one_a_node


def test_the_subject_is_the_link_that_spans_the_ranks(dgx: Cluster) -> None:
    within = collective_workload("all_reduce", 10**6, ranks=range(8), cluster=dgx)
    across = collective_workload("all_reduce", 10**6, ranks=range(16), cluster=dgx)
    assert within is not None
    assert across is not None
    assert dgx.node.link is not None
    assert dgx.link is not None
    assert (within.subject, across.subject) == (dgx.node.link.name, dgx.link.name)
    assert within.key != across.key


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
