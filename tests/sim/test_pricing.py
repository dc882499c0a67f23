from __future__ import annotations

from collections.abc import Callable

import pytest

from hpdlf.errors import PlanError
from hpdlf.hwprofiles import load_cluster
from hpdlf.models.cost import CostModel, one_sided_workload
from hpdlf.models.cost.collectives import slowdown
from hpdlf.models.onnxpp import Graph
from hpdlf.models.plan import Strategy
from hpdlf.models.program import Kind
from hpdlf.sim import Pricing, build
from hpdlf.sim.cutting import Cutter


def pricing_of(graph: Graph, cluster_name: str, strategy: Strategy) -> Pricing:
    cluster = load_cluster(cluster_name)
    _, program = build(graph, cluster, strategy)
    return Pricing(program=program, graph=graph, cluster=cluster, model=CostModel.default())


def test_a_ring_all_reduce_between_nodes(make_chain: Callable[..., Graph]) -> None:
    """2 (p-1) messages and 2 n (p-1)/p bytes a rank: Thakur, Rabenseifner, Gropp 2005, section 4.5."""
    width, ranks = 512, 3
    pricing = pricing_of(make_chain(2, width), "xeon-64:3x1", Strategy(batch=3, data=ranks))
    (role,) = pricing.program.roles
    nbytes, link = 2 * width * width * 4, pricing.cluster.link
    assert link is not None
    workload = pricing.workload(1, role.instruction["reduce.0"])
    assert workload is not None
    assert workload.components["all_reduce.latency"] == pytest.approx(2 * (ranks - 1) * link.latency_s.value)
    sent_s = 2 * nbytes * (ranks - 1) / ranks / link.collective_bandwidth_bytes_per_s
    assert workload.components["all_reduce.bandwidth"] == pytest.approx(sent_s * slowdown(link, nbytes / ranks))
    factors = pricing.model.explain(workload)
    assert pricing.estimate(1, role.instruction["reduce.0"]).seconds == pytest.approx(sum(s.seconds for s in factors))


def test_a_message_takes_the_link_between_its_ranks(make_chain: Callable[..., Graph]) -> None:
    # Three replicas of three stages over nodes of 8: only rank 5's message to rank 8 leaves its node.
    pricing = pricing_of(make_chain(3), "dgx-a100:2", Strategy(batch=6, data=3, pipeline=3, microbatches=2))
    middle = pricing.program.roles[1]
    subjects = [w.subject for rank in (3, 4, 5) if (w := pricing.workload(rank, middle.instruction["send.act.1"]))]
    assert pricing.cluster.link is not None
    assert pricing.cluster.node.link is not None
    inside, between = pricing.cluster.node.link.name, pricing.cluster.link.name
    assert subjects == [inside, inside, between]


def test_groups_of_equal_size_that_lie_differently_have_their_own_prices(make_chain: Callable[..., Graph]) -> None:
    # Ten replicas a stage over nodes of 8: those of stage 0 lie as 8 + 2, those of stage 1 as 6 + 4.
    pricing = pricing_of(make_chain(2, 4096), "dgx-a100:3", Strategy(batch=20, data=10, pipeline=2, microbatches=2))

    def reduce_s(pricing: Pricing, rank: int) -> float:
        role = pricing.program.role_of(rank)
        return pricing.estimate(rank, role.instruction[f"reduce.{role.coordinates['pipeline']}"]).seconds

    found = [reduce_s(pricing, rank) for rank in range(20)]
    assert found[0] != found[10]
    assert found == [found[0]] * 10 + [found[10]] * 10
    fresh = Pricing(program=pricing.program, graph=pricing.graph, cluster=pricing.cluster, model=pricing.model)
    assert reduce_s(fresh, 10) == found[10]  # whatever was asked before


def test_one_sided_prices_are_those_of_every_single_rank(make_chain: Callable[..., Graph]) -> None:
    graph = make_chain(2, 64)
    pricing = pricing_of(graph, "dgx-a100:3", Strategy(batch=17, data=17, solver="asynchronous"))
    (role,) = pricing.program.roles
    for kind in (Kind.GET, Kind.PUT, Kind.NOTIFY):
        (instruction,) = (i for i in role.instructions if i.kind is kind)
        for rank in range(17):
            ordered = (rank, *(r for r in range(17) if r != rank))
            expected = one_sided_workload(kind.value, role.payload_bytes(instruction), ordered, pricing.cluster)
            assert pricing.workload(rank, instruction) == expected


def test_what_costs_nothing_by_itself(make_chain: Callable[..., Graph]) -> None:
    pricing = pricing_of(make_chain(2), "dgx-a100:1", Strategy(batch=4, pipeline=2, microbatches=2))
    last = pricing.program.roles[1]
    for name in ("receive.act.0", "report.loss"):
        assert pricing.workload(1, last.instruction[name]) is None
        assert pricing.estimate(1, last.instruction[name]).seconds == 0.0


def test_a_program_too_large_for_the_cluster_is_refused(make_chain: Callable[..., Graph]) -> None:
    with pytest.raises(PlanError, match=r"needs 9 devices, cluster dgx-a100:1 has 8 .*`--on dgx-a100:2`"):
        pricing_of(make_chain(2), "dgx-a100:1", Strategy(batch=9, data=9))


def test_strategies_that_differ_in_schedule_alone_share_a_cut(make_chain: Callable[..., Graph]) -> None:
    cutter = Cutter(make_chain(4), load_cluster("dgx-a100:1"), CostModel.default())
    one = cutter.cut(Strategy(batch=8, pipeline=2, microbatches=2))
    assert cutter.cut(Strategy(batch=8, pipeline=2, microbatches=2, schedule="gpipe")) is one
    assert cutter.cut(Strategy(batch=8, pipeline=2, microbatches=4)) is not one
