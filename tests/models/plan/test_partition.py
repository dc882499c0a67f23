from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, groupby, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpdlf.errors import PlanError
from hpdlf.models.onnxpp import Graph
from hpdlf.models.plan import Partition, crossing_tensors, partition

MakeChain = Callable[..., Graph]


def ends_of(graph: Graph, cut: Partition) -> list[int]:
    """The position at which each stage ends."""
    stages = [cut.stages[o.name] for o in graph.operators]
    assert stages == sorted(stages)
    return [i + 1 for i in range(len(stages)) if i + 1 == len(stages) or stages[i] != stages[i + 1]]


def longest(seconds: list[float], wire_s: list[float], ends: tuple[int, ...]) -> float:
    return max(sum(seconds[a:b]) + wire_s[a] + wire_s[b] for a, b in pairwise((0, *ends)))


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_no_other_cut_has_a_shorter_longest_stage(make_chain: MakeChain, data: st.DataObject) -> None:
    layers = data.draw(st.integers(2, 8))
    graph = make_chain(layers)
    count = len(graph.operators)
    seconds = data.draw(st.lists(st.floats(0.01, 10), min_size=count, max_size=count))
    stages = data.draw(st.integers(1, min(4, count)))
    per_byte = data.draw(st.sampled_from([0.0, 1e-3, 0.1]))
    cut = partition(graph, operator_s=seconds, stages=stages, bucket_bytes=None, samples=3, seconds_per_byte=per_byte)
    # An activation of 3 samples x 4 floats crosses every cut; before the loss stands the last layer's.
    wire_s = [0.0, *[per_byte * 3 * 4 * 4] * (count - 1), 0.0]
    every = [longest(seconds, wire_s, (*inner, count)) for inner in combinations(range(1, count), stages - 1)]
    found = ends_of(graph, cut)
    assert len(found) == stages
    assert longest(seconds, wire_s, tuple(found)) == pytest.approx(min(every), rel=1e-12)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_no_cut_separates_the_users_of_a_tied_parameter(make_chain: MakeChain, data: st.DataObject) -> None:
    layers = data.draw(st.integers(2, 9))
    tied = {}
    for user in data.draw(st.lists(st.integers(1, layers - 1), max_size=3, unique=True)):
        tied[user] = data.draw(st.integers(0, user - 1))
    graph = make_chain(layers, tied=tied)
    stages = data.draw(st.integers(1, 3))
    try:
        cut = partition(
            graph,
            operator_s=[1.0] * len(graph.operators),
            stages=min(stages, len(graph.operators)),
            bucket_bytes=data.draw(st.integers(1, 300)),
            samples=1,
            seconds_per_byte=1e-9,
        )
    except PlanError as error:
        assert "without separating the users of a tied parameter" in str(error)  # noqa: PT017 - both ends are right
        return
    for parameter in graph.parameters:
        users = [o.name for o in graph.operators if parameter in o.inputs]
        assert len({cut.segments[name] for name in users}) == 1
        assert len({cut.stages[name] for name in users}) == 1


@given(layers=st.integers(1, 12), bucket_bytes=st.integers(1, 1000))
@settings(max_examples=60, deadline=None)
def test_buckets_are_runs_that_are_full(make_chain: MakeChain, layers: int, bucket_bytes: int) -> None:
    graph = make_chain(layers)
    cut = partition(
        graph,
        operator_s=[1.0] * len(graph.operators),
        stages=1,
        bucket_bytes=bucket_bytes,
        samples=1,
        seconds_per_byte=0.0,
    )
    runs = [list(group) for _, group in groupby(graph.operators, key=lambda o: cut.segments[o.name])]
    assert len(runs) == len(set(cut.segments.values()))
    weight_bytes = 4 * 4 * 4
    sizes = [weight_bytes * sum(o.family == "matmul" for o in run) for run in runs]
    assert sum(sizes) == weight_bytes * layers
    assert all(size >= bucket_bytes for size in sizes[1:])  # what is left over is the first layers', reduced last
    assert all(size - weight_bytes < bucket_bytes for size in sizes)
    assert all(size > 0 for size in sizes)


def test_what_crosses_a_cut(make_chain: MakeChain) -> None:
    graph = make_chain(3)
    # Before the loss the predictions cross; they are the model's output, so they are still there at the end.
    assert crossing_tensors(graph) == [(), ("h1",), ("h2",), ("h3",), ("h3",)]


def test_too_many_stages_are_refused(make_chain: MakeChain) -> None:
    graph = make_chain(2)
    with pytest.raises(PlanError, match="chain has 2 operators that compute, too few for 3 pipeline stages"):
        partition(graph, operator_s=[1.0, 1.0, 0.0], stages=3, bucket_bytes=None, samples=1, seconds_per_byte=0.0)


def test_everything_tied_cannot_be_cut(make_chain: MakeChain) -> None:
    graph = make_chain(3, tied={1: 0, 2: 0})
    with pytest.raises(PlanError, match="cannot be cut into 3 pipeline stages without separating"):
        partition(graph, operator_s=[1.0] * 4, stages=3, bucket_bytes=None, samples=1, seconds_per_byte=0.0)
