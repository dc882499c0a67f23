"""Refining on a machine twice as slow learns the factor of two."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hpdlf.errors import DataError, RunError
from hpdlf.experiments.recorded import read_run
from hpdlf.experiments.refine import refine
from hpdlf.models.cost import ObservationDatabase
from hpdlf.models.plan import Strategy

STRATEGIES = [
    Strategy(batch=32),
    Strategy(batch=32, data=2, bucket_bytes=20_000),
    Strategy(batch=32, data=2, pipeline=2, microbatches=2),
    Strategy(batch=32, data=2, solver="asynchronous"),
]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_the_prediction_after_is_right(make_run: Callable[..., Path], tmp_path: Path, strategy: Strategy) -> None:
    folder = make_run(strategy)
    found = refine(folder, tmp_path / "db.duckdb")
    assert found.error_before == pytest.approx(-0.5, abs=0.03)
    assert found.error_after == pytest.approx(0.0, abs=0.03)
    assert found.after.task_error is not None
    assert found.after.task_error < 0.02
    assert found.lines()[0].startswith("step time: predicted ")
    assert {"error_before", "error_after", "measured_s"} <= set(found.to_frame().columns)
    assert read_run(folder).refined is not None


def test_refining_twice_changes_nothing(make_run: Callable[..., Path], tmp_path: Path) -> None:
    folder, database = make_run(Strategy(batch=32)), tmp_path / "db.duckdb"
    first = refine(folder, database)
    before = ObservationDatabase(database).all()
    second = refine(folder, database)
    assert ObservationDatabase(database).all() == before
    assert second.predicted_after == first.predicted_after


def test_it_draws(make_run: Callable[..., Path], tmp_path: Path) -> None:
    found = refine(make_run(Strategy(batch=32, data=2)), tmp_path / "db.duckdb")
    found.plot().savefig(tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 10_000


def test_a_cut_last_line_is_passed_over(make_run: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_run(Strategy(batch=32, data=2))
    trace = folder / "trace.rank1.attempt0.jsonl"
    trace.write_bytes(trace.read_bytes()[:-7])
    assert refine(folder, tmp_path / "db.duckdb").error_after == pytest.approx(0.0, abs=0.03)


def test_a_run_without_a_trace_says_so(make_run: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_run(Strategy(batch=32))
    (folder / "trace.rank0.attempt0.jsonl").unlink()
    with pytest.raises(DataError, match="holds no trace"):
        refine(folder, tmp_path / "db.duckdb")
    with pytest.raises(RunError, match="holds no run"):
        refine(tmp_path, tmp_path / "db.duckdb")
