"""Breakdowns, critical paths and comparisons: parts that add up, and causes that theory knows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hpdlf.errors import PlanError
from hpdlf.hwprofiles import load_cluster
from hpdlf.models.onnxpp import Graph
from hpdlf.models.plan import Strategy
from hpdlf.sim import Simulation, simulate
from hpdlf.sim.activity import activities, steady_window
from hpdlf.sim.breakdown import breakdown
from hpdlf.sim.comparison import compare
from hpdlf.sim.critical_path import critical_path

MakeChain = Callable[..., Graph]


def chain(make_chain: MakeChain, strategy: Strategy, name: str = "dgx-a100:8", **options: object) -> Simulation:
    return simulate(make_chain(8, 1024), load_cluster(name), strategy, **options)  # type: ignore[arg-type]


@settings(max_examples=25, deadline=None)
@given(
    data=st.integers(1, 12),
    pipeline=st.integers(1, 4),
    microbatches=st.integers(1, 4),
    schedule=st.sampled_from(["1f1b", "gpipe"]),
    zero=st.sampled_from([0, 1, 3]),
    name=st.sampled_from(["dgx-a100:8", "xeon-64"]),
    slow=st.booleans(),
)
def test_every_part_of_a_step_has_one_cause(
    make_chain: MakeChain, data: int, pipeline: int, microbatches: int, schedule: str, zero: int, name: str, slow: bool
) -> None:
    assume(data * pipeline <= 64)
    strategy = Strategy(
        batch=2 * data * microbatches, data=data, pipeline=pipeline, microbatches=microbatches, zero=zero,
        schedule=schedule, bucket_bytes=1000,  # type: ignore[arg-type]
    )  # fmt: skip
    found = chain(make_chain, strategy, name, slowdown={strategy.ranks - 1: 1.5} if slow else None)
    step_s = found.figures.step_s.value
    parts, path = breakdown(found), critical_path(found)
    assert parts.step_s == pytest.approx(step_s, rel=1e-9)
    assert sum(parts.by_cause.values()) == pytest.approx(step_s, rel=1e-9)
    for of_role in parts.by_role.values():
        assert sum(of_role.values()) == pytest.approx(step_s, rel=1e-9)
    assert path.step_s == pytest.approx(step_s, rel=1e-9)
    for link, after in zip(path.links, path.links[1:], strict=False):
        assert link.end_s == pytest.approx(after.start_s, abs=1e-12)
    frame = parts.to_frame()
    assert frame[frame["role"] == "all"]["share"].sum() == pytest.approx(1.0)
    assert parts.by_group["computing"] <= step_s * (1 + 1e-9)


def test_activities_are_those_of_the_figures(make_chain: MakeChain) -> None:
    found = chain(make_chain, Strategy(batch=64, data=4, pipeline=4, microbatches=4))
    groups = breakdown(found).by_group
    step_s, figures = found.figures.step_s.value, found.figures
    assert groups["computing"] / step_s == pytest.approx(figures.utilisation, rel=1e-6)
    window = steady_window(found)
    for activity in activities(found, window).values():
        assert activity.edges_s[0] == window.start_s
        assert activity.edges_s[-1] == window.end_s
        assert np.all(np.diff(activity.edges_s) > 0)


def test_one_device_only_computes(make_chain: MakeChain) -> None:
    found = chain(make_chain, Strategy(batch=16))
    assert {cause.group for cause in breakdown(found).by_cause} <= {"computing", "host"}
    assert {link.cause.group for link in critical_path(found).links} <= {"computing", "host"}


def test_a_pipeline_waits_for_messages_by_its_bubble(make_chain: MakeChain) -> None:
    found = chain(make_chain, Strategy(batch=1024, pipeline=4, microbatches=8, schedule="gpipe"))
    waiting = sum(s for cause, s in breakdown(found).by_cause.items() if cause.group == "waiting")
    assert waiting / found.figures.step_s.value == pytest.approx(3 / (8 + 3), rel=0.3)


def test_a_straggler_is_on_the_critical_path(make_chain: MakeChain) -> None:
    found = chain(make_chain, Strategy(batch=64, data=4), slowdown={2: 3.0})
    path = critical_path(found)
    assert {link.event.rank for link in path.links if link.event and link.cause.group == "computing"} == {2}
    assert list(path.to_frame().columns) == ["start_s", "end_s", "seconds", "group", "cause", "task"]
    assert path.by_role == {"stage0": pytest.approx(found.figures.step_s.value)}


def test_the_difference_of_two_is_told_by_cause(make_chain: MakeChain) -> None:
    near = chain(make_chain, Strategy(batch=64, data=8))
    far = chain(make_chain, Strategy(batch=64, data=8), "xeon-64")
    found = compare(near, far)
    assert found.per == "step"
    assert found.difference_s == pytest.approx(far.figures.step_s.value - near.figures.step_s.value)
    assert sum(found.by_cause.values()) == pytest.approx(found.difference_s)
    assert "longer a step" in found.reason
    assert found.to_frame()["difference_s"].sum() == pytest.approx(found.difference_s)
    assert compare(near, near).difference_s == 0.0
    assert "as long" in compare(near, near).reason


def test_other_batches_are_compared_per_sample(make_chain: MakeChain) -> None:
    small, large = (chain(make_chain, Strategy(batch=batch, data=8)) for batch in (64, 1024))
    found = compare(small, large)
    assert found.per == "sample"
    assert found.b_s == pytest.approx(1 / large.figures.samples_per_s.value)
    assert "shorter a sample" in found.reason
    with pytest.raises(PlanError, match="per step or per sample"):
        compare(small, large, per="epoch")  # type: ignore[arg-type]


def test_pictures_are_drawn_without_a_display(make_chain: MakeChain) -> None:
    one, other = (chain(make_chain, Strategy(batch=64, data=d, pipeline=8 // d, microbatches=4)) for d in (8, 2))
    for figure in (one.breakdown().plot(), compare(one, other).plot(), other.power_trace().plot()):
        assert figure.axes
    assert "step" in one.breakdown().to_text()
