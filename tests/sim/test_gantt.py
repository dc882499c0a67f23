"""Lanes and bars of a chart, and that it draws without a display."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpdlf.hwprofiles import load_cluster
from hpdlf.models.onnxpp import Graph
from hpdlf.models.plan import Strategy
from hpdlf.models.trace import Trace
from hpdlf.sim import Simulation, simulate
from hpdlf.sim.gantt import gantt
from hpdlf.sim.lanes import Chart, lay_out


def _run(graph: Graph, strategy: Strategy, *, fold: bool = True) -> Simulation:
    return simulate(graph, load_cluster("dgx-a100:4"), strategy, fold=fold)


def _texts(chart: Chart, rank: int) -> list[str]:
    return [b.label for lane in chart.lanes if lane.rank == rank and lane.main for b in lane.bars if b.label]


def test_a_pipeline_shows_every_stage_and_microbatch(digits: Graph) -> None:
    found = _run(digits, Strategy(batch=64, pipeline=4, microbatches=8))
    chart = lay_out(found.trace)
    assert [lane.rank for lane in chart.lanes if lane.main] == [0, 1, 2, 3]
    for rank in range(4):
        assert set(_texts(chart, rank)) == {str(m) for m in range(8)}
    assert chart.span_s == pytest.approx(found.figures.step_s.value, rel=0.05)
    bars = [b for lane in chart.lanes for b in lane.bars]
    assert all(0 <= b.start_s <= b.end_s <= chart.span_s * (1 + 1e-9) for b in bars)


def test_many_ranks_are_stood_for_by_one_of_each_role(digits: Graph) -> None:
    unfolded = lay_out(_run(digits, Strategy(batch=128, data=8, pipeline=2, microbatches=2), fold=False).trace)
    assert [(lane.rank, lane.stands_for) for lane in unfolded.lanes if lane.main] == [(0, 8), (8, 8)]
    assert unfolded.note == "2 of 16 ranks are shown, the first of each role."
    folded = _run(digits, Strategy(batch=128, data=8))
    chart = lay_out(folded.trace, multiplicity=folded.multiplicity)
    assert chart.note == "1 of 8 ranks is shown; the others behave alike."


def test_what_is_compiled_as_one_has_all_its_colours(digits: Graph) -> None:
    chart = lay_out(_run(digits, Strategy(batch=64)).trace)
    assert {b.phases for lane in chart.lanes for b in lane.bars if lane.main} == {("forward", "backward", "update")}
    assert "colours above each other: compiled as one" in chart.remarks


@pytest.mark.parametrize(
    "strategy",
    [
        Strategy(batch=64),
        Strategy(batch=64, pipeline=4, microbatches=8),
        Strategy(batch=64, data=2, solver="asynchronous"),
    ],
    ids=str,
)
def test_it_draws(digits: Graph, tmp_path: Path, strategy: Strategy) -> None:
    figure = gantt(_run(digits, strategy).trace, title="a title", steps=[0, 1])
    figure.savefig(tmp_path / "g.png")
    assert (tmp_path / "g.png").stat().st_size > 5_000
    assert "a title" in {t.get_text() for t in figure.texts}


def test_an_empty_trace_draws_too() -> None:
    assert lay_out(Trace(source="measured", events=())).lanes == ()
    gantt(Trace(source="measured", events=()))
