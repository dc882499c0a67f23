"""Closed forms for step times and errors; violations found where they were put."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hpdlf.errors import DataError
from hpdlf.experiments.compare import compare, step_times, violations
from hpdlf.experiments.recorded import read_run
from hpdlf.models.plan import Strategy
from hpdlf.models.trace import Event, Trace

STRATEGIES = [
    Strategy(batch=32),
    Strategy(batch=32, data=2, bucket_bytes=20_000),
    Strategy(batch=32, pipeline=2, microbatches=4),
    Strategy(batch=32, data=2, pipeline=2, microbatches=2),
    Strategy(batch=32, data=2, solver="asynchronous"),
]


def _event(step: int, start_s: float, end_s: float, *, kind: str = "compute", attempt: int = 0, rank: int = 0) -> Event:
    return Event("stage0", rank, step, None, f"{kind}.x", attempt, kind, kind, "forward", start_s, end_s, 0)


def test_step_times_leave_out_first_steps_checkpoints_and_pauses() -> None:
    ends = [10.0, 11.0, 12.0, 13.0, 14.0, 17.0, 18.0]
    events = [_event(i, end - 1.0, end) for i, end in enumerate(ends)]
    events.append(_event(2, 12.0, 12.5, kind="checkpoint"))
    times = step_times(Trace(source="measured", events=tuple(events)))
    assert times.median_s == pytest.approx(1.0)
    assert times.left_out == {"first of its attempt": 1, "checkpoint": 1, "after a pause": 1}
    assert times.count == 4


def test_what_compiles_late_does_not_count() -> None:
    ends = [10.0, 18.0, 19.0, 20.0, 21.0, 22.0, 26.0]
    starts = [0.0, *ends]
    events = [_event(i, starts[i], end) for i, end in enumerate(ends)]
    times = step_times(Trace(source="measured", events=tuple(events)))
    assert times.left_out == {"first of its attempt": 1, "still warming up": 1}
    assert times.high_s is not None
    assert times.high_s > 2.0  # a slow step later is noise, and stays


def test_steps_whose_predecessor_was_not_traced_do_not_count() -> None:
    events = [_event(i, i * 1.0, i + 1.0) for i in (0, 1, 2, 50, 51)]
    times = step_times(Trace(source="measured", events=tuple(events)))
    assert times.median_s == pytest.approx(1.0)
    assert times.left_out == {"first of its attempt": 1, "not traced from its begin": 1}


def test_noise_is_half_the_range_of_percentiles_over_the_median() -> None:
    at, events = 0.0, []
    for i, seconds in enumerate([5.0, 0.9, 0.95, 1.0, 1.05, 1.1]):
        events.append(_event(i, at, at + seconds))
        at += seconds
    assert step_times(Trace(source="measured", events=tuple(events))).noise == pytest.approx(0.08)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_a_machine_twice_as_slow_shows_as_half_the_time(make_run: Callable[..., Path], strategy: Strategy) -> None:
    run = read_run(make_run(strategy))
    assert run.predicted is not None
    assert run.measured is not None
    found = compare(run.predicted, run.measured)
    assert found.error == pytest.approx(-0.5, abs=0.02)
    assert [r.error for r in found.rows if r.error is not None] == pytest.approx(
        [-0.5] * sum(r.error is not None for r in found.rows), abs=0.03
    )
    assert len(found.to_frame()) == len(found.rows)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_programs_are_honoured_by_both_traces(make_run: Callable[..., Path], strategy: Strategy) -> None:
    run = read_run(make_run(strategy))
    assert run.predicted is not None
    assert run.measured is not None
    assert violations(run.program, run.measured) == []
    assert violations(run.program, run.predicted) == []


def test_violations_name_what_went_wrong(make_run: Callable[..., Path]) -> None:
    run = read_run(make_run(Strategy(batch=32, data=2, pipeline=2, microbatches=2)))
    assert run.measured is not None

    def broken(change: Callable[[Event], Event | None]) -> str:
        assert run.measured is not None
        events = [c for e in run.measured.events if (c := change(e)) is not None]
        return "\n".join(violations(run.program, replace(run.measured, events=tuple(events))))

    first = min(e.start_s for e in run.measured.events)
    update = next(e for e in run.measured.events if e.instruction == "update" and e.step == 5)
    assert f"{update.task_id}: started" in broken(lambda e: e._replace(start_s=first) if e == update else e)
    receive = next(e for e in run.measured.events if e.kind == "receive" and e.step == 5)
    early = receive._replace(start_s=first, end_s=first)
    assert f"{receive.task_id}: ended before" in broken(lambda e: early if e == receive else e)
    meeting = next(e for e in run.measured.events if e.instruction == "share.loss" and e.step == 5)
    left = meeting._replace(start_s=first, end_s=first)
    assert f"{meeting.task_id}: left before" in broken(lambda e: left if e == meeting else e)
    forward = next(e for e in run.measured.events if e.instruction == "forward.0" and e.step == 5)
    assert "which it depends on, did not" in broken(lambda e: None if e == forward else e)


def test_late_beginnings_belong_to_the_task(make_run: Callable[..., Path]) -> None:
    """Every compute task takes up its work later than it could: the time counts, the task's end stands."""
    run = read_run(make_run(Strategy(batch=32, pipeline=2, microbatches=4)))
    assert run.measured is not None
    assert run.predicted is not None
    late = tuple(
        e._replace(start_s=e.start_s + 0.4 * (e.end_s - e.start_s)) if e.kind == "compute" else e
        for e in run.measured.events
    )
    whole = compare(run.predicted, run.measured, run.program)
    found = compare(run.predicted, replace(run.measured, events=late), run.program)
    took = {r.instruction: r.measured_s for r in found.rows if r.kind == "compute"}
    assert took == pytest.approx({r.instruction: r.measured_s for r in whole.rows if r.kind == "compute"})


def test_traces_of_different_programs_are_refused(make_run: Callable[..., Path]) -> None:
    run = read_run(make_run(Strategy(batch=32)))
    assert run.predicted is not None
    with pytest.raises(DataError, match="no task in common"):
        compare(run.predicted, Trace(source="measured", events=(_event(0, 0.0, 1.0),)))
