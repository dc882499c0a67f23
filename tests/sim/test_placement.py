"""Where ranks lie decides what they share: placements change a step in the direction that theory says."""

from __future__ import annotations

import pytest

from hpdlf.hwprofiles import load_cluster
from hpdlf.models.onnxpp import Graph
from hpdlf.models.plan import Strategy
from hpdlf.models.zoo import import_network
from hpdlf.sim import simulate


@pytest.fixture(scope="module")
def graph() -> Graph:
    return import_network("gpt", layers=4, hidden=1024, heads=16, seq_len=512, vocab=1024).graph


STRATEGY = Strategy(batch=64, tensor=8, data=2, microbatches=4, precision="bfloat16", mixed=True)


def step_s(graph: Graph, placement: tuple[int, ...]) -> float:
    return simulate(graph, load_cluster("dgx-a100:2").placed(placement), STRATEGY).figures.step_s.value


def test_tensor_ranks_that_lie_on_two_nodes_are_slower(graph: Graph) -> None:
    in_order, every_other = tuple(range(16)), tuple((rank % 2) * 8 + rank // 2 for rank in range(16))
    assert step_s(graph, every_other) > 1.1 * step_s(graph, in_order)


def test_whole_nodes_may_change_places(graph: Graph) -> None:
    swapped = (*range(8, 16), *range(8))
    assert step_s(graph, swapped) == pytest.approx(step_s(graph, tuple(range(16))), rel=1e-12)
