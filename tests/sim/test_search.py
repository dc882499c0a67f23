from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpdlf.errors import PlanError
from hpdlf.hwprofiles import load_cluster
from hpdlf.models.onnxpp import Graph
from hpdlf.models.plan import Strategy
from hpdlf.sim import build, search, simulate, simulate_program, strategies
from hpdlf.sim.search import BEST

MakeChain = Callable[..., Graph]


@given(batch=st.integers(1, 512), devices=st.integers(1, 100), ranks=st.none() | st.integers(1, 100))
def test_strategies_are_different_and_fit_the_devices(batch: int, devices: int, ranks: int | None) -> None:
    found = list(strategies(batch, devices, ranks=ranks))
    assert len(found) == len(set(found))
    assert all(s.batch == batch and s.ranks <= devices for s in found)
    if ranks:
        assert all(s.ranks == ranks for s in found)


def test_so_many_ranks_are_cut_in_every_way() -> None:
    meshes = {(s.data, s.pipeline) for s in strategies(960, 64, ranks=12)}
    assert meshes == {(1, 12), (2, 6), (3, 4), (4, 3), (6, 2), (12, 1)}


def test_the_asynchronous_solver_has_replicas_alone() -> None:
    found = list(strategies(64, 8, solver="asynchronous"))
    assert {s.data for s in found} == {2, 4, 8}
    assert {s.pipeline for s in found} == {1}


def test_the_ranking_is_by_the_objective_and_agrees_with_single_simulations(digits: Graph) -> None:
    cluster = load_cluster("dgx-a100:1")
    for objective, figure in (("time", "step_s"), ("energy", "energy_j"), ("cost", "cost_usd")):
        found = search(digits, cluster, batch=32, objective=objective)  # type: ignore[arg-type]
        values = [c.objective(found.objective) for c in found.ranked]
        assert values == sorted(values)  # type: ignore[type-var]
        for candidate in (found.best, found.ranked[-1]):
            alone = simulate(digits, cluster, candidate.strategy)
            assert candidate.simulation == alone
            assert getattr(alone.figures, figure).value == candidate.objective(found.objective)


def test_progress_rises_to_the_total(digits: Graph) -> None:
    told: list[tuple[int, int]] = []
    found = search(
        digits, load_cluster("dgx-a100:1"), batch=64, progress=lambda done, total: told.append((done, total))
    )
    assert {total for _, total in told} == {told[-1][0]}
    assert all(a < b for (a, _), (b, _) in pairwise(told))
    assert told[-1][0] == len(found.ranked) + len(found.refused) + len(found.set_aside) + BEST


def test_only_given_strategies(digits: Graph) -> None:
    given = [Strategy(batch=64, data=n) for n in (1, 2, 8)]
    found = search(digits, load_cluster("dgx-a100:1"), batch=64, among=given)
    assert {c.strategy for c in found.ranked} == set(given)


def test_what_does_not_fit_is_refused_with_the_reason(make_chain: MakeChain) -> None:
    graph = make_chain(8, 32768)  # 4 GB of weights a layer: 16 GB with gradients and Adam's state
    found = search(graph, load_cluster("dgx-a100:1"), batch=16)
    assert any(c.strategy.pipeline == 8 for c in found.ranked)
    assert found.refused
    for candidate in found.refused:
        assert candidate.simulation is None
        assert candidate.objective("time") is None
        assert "the device has 4" in candidate.refused or "too few for" in candidate.refused
    whole = next(c for c in found.refused if c.strategy.pipeline == 1)
    assert "stage0 needs" in whole.refused
    assert "optimizer state 68.72" in whole.refused


def test_the_reason_says_how_the_winner_spends_its_time(digits: Graph) -> None:
    found = search(digits, load_cluster("xeon-64:2"), batch=64)
    fitting = len(found.ranked) + len(found.set_aside)
    f = found.best.figures
    assert f is not None
    assert found.reason.startswith(f"{found.best.strategy} is the fastest of {fitting} combinations that fit")
    assert f"compute {f.utilisation:.0%} of the time" in found.reason
    assert f"The next, {found.ranked[1].strategy}, is" in found.reason


def test_as_a_table(digits: Graph) -> None:
    found = search(digits, load_cluster("dgx-a100:1"), batch=64, exhaustive=True)
    frame = found.to_frame()
    assert len(frame) == len(found.ranked) + len(found.refused) + len(found.set_aside)
    best = frame.iloc[0]
    assert best.strategy == str(found.best.strategy)
    assert best.step_s_low < best.step_s < best.step_s_high
    assert len(found.ranked) > BEST
    assert frame.step_s.notna().sum() == len(found.ranked)
    assert frame.step_s_low.notna().sum() == BEST  # nobody asked for the bounds of the others


def test_what_cannot_be_searched_is_said(digits: Graph, make_chain: MakeChain) -> None:
    cluster = load_cluster("dgx-a100:1")
    with pytest.raises(PlanError, match=r"9 ranks were asked for, cluster dgx-a100:1 has 8 devices"):
        search(digits, cluster, batch=64, ranks=9)
    with pytest.raises(PlanError, match=r"batch 7 does not divide over 8 ranks"):
        search(digits, cluster, batch=7, ranks=8)
    with pytest.raises(PlanError, match=r"does not fit on dgx-a100:1 in any combination tried:\n  data 1 x"):
        search(make_chain(2, 65536), cluster, batch=8)
    silent = replace(cluster, node=replace(cluster.node, device=replace(cluster.device, idle_w=None)))
    with pytest.raises(PlanError, match=r"The energy of digits_cnn on dgx-a100:1 is unavailable"):
        search(digits, silent, batch=64, objective="energy")


@pytest.fixture(scope="module")
def resnet50() -> Graph:
    """The ResNet-50 that ships inside the onnx package."""
    import onnx.backend.test

    from hpdlf.models.onnxpp import import_model

    path = Path(os.path.dirname(onnx.backend.test.__file__)) / "data" / "light" / "light_resnet50.onnx"
    if not path.is_file():
        pytest.skip("this onnx package has no light_resnet50.onnx")
    return import_model(path, loss="softmax_xent").graph


@pytest.mark.parametrize("fields", [{"data": 128, "pipeline": 4, "microbatches": 8}, {"data": 512}], ids=str)
def test_a_what_if_on_512_devices_takes_a_moment(resnet50: Graph, fields: dict[str, int]) -> None:
    """The aim is 0.3 s on a quiet core; the test leaves room for a busy one."""
    cluster, strategy = load_cluster("dgx-a100:64"), Strategy(batch=64 * 512, **fields)
    start_s = time.process_time()
    _, program = build(resnet50, cluster, strategy)
    found = simulate_program(program, resnet50, cluster)
    assert time.process_time() - start_s < 5.0
    assert len(found.multiplicity) == strategy.pipeline


@pytest.mark.slow
@pytest.mark.parametrize(("name", "batch"), [("dgx-a100:8", 2048), ("xeon-64", 1024)])
def test_a_search_takes_seconds(resnet50: Graph, name: str, batch: int) -> None:
    """The aim is 15 and 20 s on a quiet core; the test leaves room for a busy one."""
    start_s = time.process_time()
    found = search(resnet50, load_cluster(name), batch=batch)
    assert time.process_time() - start_s < 40.0
    assert len(found.ranked) + len(found.refused) + len(found.set_aside) > 100
