"""Simulations: figures, folding, directions, and the same bytes for the same input."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from hpdlf.errors import PlanError
from hpdlf.hwprofiles import Cluster, load_cluster
from hpdlf.models.cost import CostModel, node_price
from hpdlf.models.onnxpp import Graph
from hpdlf.models.plan import Strategy
from hpdlf.models.trace import write_trace
from hpdlf.sim import Pricing, Simulation, build, simulate, simulate_program

MakeChain = Callable[..., Graph]

strategies = st.builds(
    lambda per, data, pipeline, microbatches, schedule, solver: Strategy(
        batch=per * data * microbatches,
        data=data,
        pipeline=1 if solver == "asynchronous" else pipeline,
        microbatches=microbatches,
        schedule=schedule,
        solver=solver,
        bucket_bytes=1000,
    ),
    per=st.integers(1, 4),
    data=st.integers(1, 21),
    pipeline=st.integers(1, 5),
    microbatches=st.integers(1, 4),
    schedule=st.sampled_from(["1f1b", "gpipe"]),
    solver=st.sampled_from(["synchronous", "synchronous", "asynchronous"]),
)


@settings(max_examples=20, deadline=None)
@example(strategy=Strategy(batch=6, data=3, pipeline=3, microbatches=2), name="dgx-a100:8", slow=0)  # straddles nodes
@example(strategy=Strategy(batch=17, data=17, solver="asynchronous"), name="dgx-a100:8", slow=0)
@given(strategy=strategies, name=st.sampled_from(["dgx-a100:8", "xeon-64"]), slow=st.sampled_from([0, 0, 1]))
def test_folded_ranks_end_when_unfolded_ones_do(
    make_chain: MakeChain, strategy: Strategy, name: str, slow: int
) -> None:
    assume(strategy.ranks <= 64)
    graph, cluster = make_chain(5, 64), load_cluster(name)
    slowdown = {strategy.ranks // 2: 1.5} if slow else None
    folded = simulate(graph, cluster, strategy, slowdown=slowdown)
    unfolded = simulate(graph, cluster, strategy, slowdown=slowdown, fold=False)
    assert sum(folded.multiplicity.values()) == len(unfolded.multiplicity) == strategy.ranks
    ends = {e.task_id: e.end_s for e in unfolded.trace.events}
    assert all(abs(ends[e.task_id] - e.end_s) < 1e-9 for e in folded.trace.events)
    ours, theirs = folded.figures, unfolded.figures
    for name in ("step_s", "samples_per_s", "energy_j", "cost_usd"):
        a, b = getattr(ours, name), getattr(theirs, name)
        assert (a is None) == (b is None)
        if a is not None:
            assert [a.value, a.low, a.high] == pytest.approx([b.value, b.low, b.high], rel=1e-9)
    for name in ("utilisation", "exposed_communication", "bubble"):
        assert getattr(ours, name) == pytest.approx(getattr(theirs, name), abs=1e-9)


def test_equal_replicas_fold_into_one(digits: Graph) -> None:
    found = simulate(digits, load_cluster("dgx-a100:8"), Strategy(batch=512, data=16, pipeline=4, microbatches=4))
    assert found.multiplicity == {0: 16, 16: 16, 32: 16, 48: 16}


def test_a_replica_that_straddles_nodes_is_unfolded(make_chain: MakeChain) -> None:
    found = simulate(
        make_chain(3, 64), load_cluster("dgx-a100:2"), Strategy(batch=6, data=3, pipeline=3, microbatches=2)
    )
    # Rank 8 stands on the second node, so its replica's message takes longer.
    assert found.multiplicity == {0: 2, 3: 2, 6: 2, 2: 1, 5: 1, 8: 1}


def test_a_straggler_unfolds_its_replica_and_slows_everybody(digits: Graph) -> None:
    cluster, strategy = load_cluster("dgx-a100:8"), Strategy(batch=2048, data=16, pipeline=2, microbatches=2)
    even = simulate(digits, cluster, strategy)
    straggling = simulate(digits, cluster, strategy, slowdown={5: 2.0})
    assert straggling.multiplicity == {0: 15, 5: 1, 16: 15, 21: 1}
    assert straggling.figures.step_s.value > 1.2 * even.figures.step_s.value
    assert straggling.figures.bubble > even.figures.bubble  # the others wait


def test_jitter_slows_the_step_and_is_drawn_from_the_seed(digits: Graph) -> None:
    cluster, strategy = load_cluster("xeon-64"), Strategy(batch=512, data=8)

    def step_s(**options: Any) -> float:
        return simulate(digits, cluster, strategy, **options).figures.step_s.value

    assert step_s(jitter=0.2, seed=1) > step_s()  # the slowest of eight
    assert step_s(jitter=0.2, seed=1) == step_s(jitter=0.2, seed=1)
    assert step_s(jitter=0.2, seed=1) != step_s(jitter=0.2, seed=2)


@pytest.mark.parametrize("options", [{"slowdown": {8: 2.0}}, {"slowdown": {0: 0.0}}, {"jitter": -0.1}])
def test_impossible_disturbances_are_refused(digits: Graph, options: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match=r"Slow ranks|A jitter"):
        simulate(digits, load_cluster("dgx-a100:1"), Strategy(batch=64, data=8), **options)


SCRIPT = """
import pathlib
import sys

from hpdlf.hwprofiles import load_cluster
from hpdlf.models.onnxpp import import_model
from hpdlf.models.plan import Strategy
from hpdlf.models.trace import write_trace
from hpdlf.sim import simulate

graph = import_model(sys.argv[1], loss="softmax_xent").graph
strategy = Strategy(batch=48, data=4, pipeline=2, microbatches=3, bucket_bytes=20_000)
found = simulate(graph, load_cluster("xeon-64"), strategy, jitter=0.1, seed=7)
write_trace(found.trace, pathlib.Path(sys.argv[2]))
"""


def test_the_same_seed_writes_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    import onnx

    from hpdlf.models.zoo import small

    onnx.save(small.digits_cnn(), tmp_path / "digits.onnx")
    digests = set()
    for hash_seed in ("1", "2"):  # the order of sets of strings differs
        out = tmp_path / f"{hash_seed}.jsonl"
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        subprocess.run(
            [sys.executable, "-c", SCRIPT, str(tmp_path / "digits.onnx"), str(out)], check=True, env=environment
        )
        digests.add(hashlib.sha256(out.read_bytes()).hexdigest())
    assert len(digests) == 1


def test_simulating_twice_writes_the_same_bytes(digits: Graph, tmp_path: Path) -> None:
    for name in "ab":
        strategy = Strategy(batch=64, data=2, pipeline=2, microbatches=4)
        write_trace(simulate(digits, load_cluster("dgx-h100:1"), strategy).trace, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def slower_network(cluster: Cluster, factor: float) -> Cluster:
    assert cluster.link is not None
    bandwidth = cluster.link.bandwidth_bytes_per_s
    link = replace(cluster.link, bandwidth_bytes_per_s=replace(bandwidth, value=bandwidth.value / factor))
    return replace(cluster, link=link)


def test_more_devices_train_faster_but_not_more_than_so_many_times(make_chain: MakeChain) -> None:
    graph, cluster = make_chain(4, 1024), load_cluster("xeon-64")
    rates = [
        simulate(graph, cluster, Strategy(batch=4096 * n, data=n)).figures.samples_per_s.value for n in (1, 2, 4, 16)
    ]
    assert rates == sorted(rates)
    assert all(rate <= n * rates[0] for rate, n in zip(rates, (1, 2, 4, 16), strict=True))


def test_a_slower_network_takes_longer_and_a_larger_batch_too(make_chain: MakeChain) -> None:
    graph, cluster = make_chain(4, 1024), load_cluster("xeon-64")
    for fields in ({"data": 16}, {"pipeline": 4, "microbatches": 4}, {"data": 16, "solver": "asynchronous"}):

        def step_s(cluster: Cluster, batch: int, fields: dict[str, Any] = fields) -> float:
            return simulate(graph, cluster, Strategy(batch=batch, **fields)).figures.step_s.value

        steps = [step_s(slower_network(cluster, factor), 256) for factor in (1, 4, 16)]
        assert steps[0] < steps[1] < steps[2]
        batches = [step_s(cluster, batch) for batch in (256, 1024, 4096)]
        assert batches[0] < batches[1] < batches[2]


def test_figures_of_a_pipeline_that_communicates_for_nothing(make_chain: MakeChain) -> None:
    """Waiting for other stages is the bubble, whether a rank waits for a message or before an all-reduce of numbers."""
    fast = slower_network(load_cluster("dgx-a100:4x1"), 1e-9)
    link = replace(fast.link, latency_s=replace(fast.link.latency_s, value=1e-15))  # type: ignore[type-var, union-attr]
    graph = make_chain(4, 16384)  # wide, so that reading the data does not limit it
    strategy = Strategy(batch=8192, pipeline=4, microbatches=8)
    found = simulate(graph, replace(fast, link=link), strategy).figures
    assert found.exposed_communication < 0.01
    assert found.utilisation + found.exposed_communication + found.bubble == pytest.approx(1.0)
    # Uniform but for the loss and the first stage, which has no gradient of its input to compute.
    assert found.bubble == pytest.approx((4 - 1) / (8 + 4 - 1), rel=0.2)


def test_shares_add_up_and_one_device_only_computes(digits: Graph) -> None:
    one = simulate(digits, load_cluster("dgx-a100:1"), Strategy(batch=256)).figures
    assert (one.exposed_communication, one.bubble) == (0.0, pytest.approx(0.0, abs=1e-9))
    many = simulate(digits, load_cluster("xeon-64"), Strategy(batch=256, data=32)).figures
    assert many.utilisation + many.exposed_communication + many.bubble == pytest.approx(1.0)
    assert many.exposed_communication > 0.1


def test_the_interval_is_within_that_of_all_errors_going_the_same_way(make_chain: MakeChain) -> None:
    graph, cluster = make_chain(2, 16384), load_cluster("dgx-a100:1")
    _, program = build(graph, cluster, Strategy(batch=256))
    found = simulate_program(program, graph, cluster).figures.step_s
    pricing = Pricing(program=program, graph=graph, cluster=cluster, model=CostModel.default())
    (step,) = (e for name, e in pricing.estimates(0).items() if "forward" in name)
    assert found.value == pytest.approx(step.seconds)
    assert step.low_s < found.low < 0.95 * found.value
    assert 1.05 * found.value < found.high < step.high_s


def a_simulation(cluster: Cluster, graph: Graph, ranks: int) -> Simulation:
    return simulate(graph, cluster, Strategy(batch=64 * ranks, data=ranks))


def test_energy_and_rent_are_those_of_the_nodes_in_use(digits: Graph) -> None:
    cluster = load_cluster("dgx-a100:4")
    device, node = cluster.device, cluster.node
    assert device.idle_w is not None
    assert node.host_active_w is not None
    assert cluster.pue is not None
    assert cluster.price_usd_per_node_s is not None
    for ranks, nodes in ((1, 1), (8, 1), (9, 2)):
        figures = a_simulation(cluster, digits, ranks).figures
        assert figures.energy_j is not None
        assert figures.cost_usd is not None
        power_w = figures.energy_j.value / figures.step_s.value / cluster.pue.value
        least_w = nodes * (node.host_active_w.value + 8 * device.idle_w.value)
        assert device.limit_w is not None
        assert least_w < power_w < least_w + ranks * device.limit_w.value
        assert figures.cost_basis == "rent"
        assert figures.cost_usd.value == pytest.approx(
            nodes * cluster.price_usd_per_node_s.value * figures.step_s.value
        )


def test_without_rent_the_energy_is_what_it_costs_and_without_power_nothing_is_known(digits: Graph) -> None:
    cluster = replace(load_cluster("dgx-a100:1"), price_usd_per_node_s=None)
    figures = a_simulation(cluster, digits, 8).figures
    assert figures.energy_j is not None
    assert figures.cost_usd is not None
    assert cluster.energy_price_usd_per_j is not None
    assert figures.cost_basis == "energy"
    assert figures.cost_usd.value == pytest.approx(figures.energy_j.value * cluster.energy_price_usd_per_j.value)
    silent = replace(cluster, node=replace(cluster.node, device=replace(cluster.device, idle_w=None)))
    unknown = a_simulation(silent, digits, 8).figures
    assert (unknown.energy_j, unknown.cost_usd, unknown.cost_basis, unknown.carbon_kg) == (None, None, None, None)


def test_own_nodes_cost_their_amortisation_and_their_energy(digits: Graph) -> None:
    cluster = load_cluster("dgx-a100:1")
    rented, own = (a_simulation(cluster.priced(kind), digits, 8).figures for kind in ("spot", "own"))
    price = node_price(cluster, "own")
    assert price is not None
    assert cluster.spot_usd_per_node_s is not None
    assert cluster.energy_price_usd_per_j is not None
    assert own.energy_j is not None
    assert own.cost_usd is not None
    assert rented.cost_usd is not None
    assert (rented.cost_basis, own.cost_basis) == ("rent", "own")
    assert rented.cost_usd.value == pytest.approx(cluster.spot_usd_per_node_s.value * rented.step_s.value)
    energy_usd = own.energy_j.value * cluster.energy_price_usd_per_j.value
    assert own.cost_usd.value == pytest.approx(price.usd_per_s * own.step_s.value + energy_usd)


def test_energy_of_a_straggler_is_that_of_waiting(digits: Graph) -> None:
    cluster, strategy = load_cluster("dgx-a100:1"), Strategy(batch=512, data=8)
    even, slow = simulate(digits, cluster, strategy), simulate(digits, cluster, strategy, slowdown={3: 2.0})
    assert even.figures.energy_j is not None
    assert slow.figures.energy_j is not None
    device, node = cluster.device, cluster.node
    assert device.idle_w is not None
    assert node.host_active_w is not None
    assert cluster.pue is not None
    assert cluster.network_w_per_node is not None
    longer_s = slow.figures.step_s.value - even.figures.step_s.value
    host_w = node.host_active_w.value + cluster.network_w_per_node.value
    waiting_w = (8 * device.idle_w.value + host_w) * cluster.pue.value
    assert slow.figures.energy_j.value - even.figures.energy_j.value == pytest.approx(longer_s * waiting_w, rel=1e-6)


def test_memory_of_every_role_is_told_by_what_it_holds(digits: Graph) -> None:
    found = simulate(digits, load_cluster("dgx-a100:1"), Strategy(batch=256, pipeline=2, microbatches=4))
    assert [m.role for m in found.memory] == ["stage0", "stage1"]
    for memory in found.memory:
        assert sum(memory.by_content.values()) == memory.peak_bytes
        assert memory.fits
    assert found.peak_bytes == max(m.peak_bytes for m in found.memory)
    parameters = sum(m.by_content["parameters"] for m in found.memory)
    assert parameters >= digits.parameter_bytes()
    assert sum(m.by_content["optimizer state"] for m in found.memory) >= 2 * digits.parameter_bytes()
