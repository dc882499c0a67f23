"""Transfers that meet on a link: a step with contention is never shorter, and as long where nothing meets."""

from __future__ import annotations

from typing import Any

import pytest

from hpdlf.hwprofiles import load_cluster
from hpdlf.models.onnxpp import Graph
from hpdlf.models.plan import Strategy
from hpdlf.models.zoo import import_network
from hpdlf.sim import simulate


@pytest.fixture(scope="module")
def graph() -> Graph:
    return import_network("gpt", layers=8, hidden=1024, heads=16, seq_len=512, vocab=1024).graph


def steps(graph: Graph, cluster: str, **fields: Any) -> tuple[float, float]:
    strategy = Strategy(batch=64, microbatches=4, precision="float16", mixed=True, cut="layers", **fields)
    alone, shared = (
        simulate(graph, load_cluster(cluster), strategy, contention=contention).figures.step_s.value
        for contention in (False, True)
    )
    return alone, shared


@pytest.mark.parametrize(
    ("cluster", "fields"),
    [
        ("dgx-a100:2", {"data": 2, "pipeline": 8, "bucket_bytes": 2**20}),
        ("dgx-1-v100:4", {"data": 8, "pipeline": 4, "bucket_bytes": 2**20}),
        ("dgx-a100:2", {"data": 2, "pipeline": 2, "tensor": 4}),
    ],
)
def test_messages_and_reductions_that_meet_take_longer(graph: Graph, cluster: str, fields: dict[str, Any]) -> None:
    alone, shared = steps(graph, cluster, **fields)
    assert alone < shared < 1.2 * alone


def test_where_nothing_meets_nothing_changes(graph: Graph) -> None:
    alone, shared = steps(graph, "dgx-a100:1", tensor=8)
    assert shared == pytest.approx(alone, rel=1e-9)
