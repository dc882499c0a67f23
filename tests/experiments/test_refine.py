"""Refining on a machine twice as slow learns the factor of two; what is damaged or locked is refused and stays."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest

from hpdlf.errors import DataError, HpdlfError, RunError
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


def dated(folder: Path, day: int, **versions: str) -> Path:
    """The run as if it had been on another day."""
    about = json.loads((folder / "run.json").read_text())
    about |= {name: f"2026-01-{day:02d}T0{hour}:00:00+00:00" for name, hour in (("started", 3), ("ended", 4))}
    (folder / "run.json").write_text(json.dumps(about | {"versions": {"jax": "1", **versions}}))
    return folder


def test_a_machine_that_became_slower_is_told(make_run: Callable[..., Path], tmp_path: Path) -> None:
    database = tmp_path / "db.duckdb"
    for day in (1, 2):
        assert refine(dated(make_run(Strategy(batch=32)), day), database).drifts == ()
    slower = dated(make_run(Strategy(batch=32), slow=2.8), 3, jaxlib="2")
    found = refine(slower, database)
    (drift,) = [d for d in found.drifts if d.family == "conv"]
    assert drift.ratio == pytest.approx(1.4, rel=0.02)
    assert drift.since == "2026-01-03T04:00:00+00:00"
    assert not drift.confirmed
    assert any(line.startswith("Drift: conv on generic-x86-core takes 40 % longer") for line in found.findings())
    again = refine(dated(make_run(Strategy(batch=32), slow=2.8), 4), database)
    assert [d.confirmed for d in again.drifts if d.family == "conv"] == [True]
    # From then on the machine is as slow as it is now.
    assert again.error_after == pytest.approx(0.0, abs=0.03)


def test_findings_say_how_well_it_is_explained(make_run: Callable[..., Path], tmp_path: Path) -> None:
    found = refine(make_run(Strategy(batch=32, data=2)), tmp_path / "db.duckdb")
    about = [line.partition(":")[0] for line in found.findings()]
    assert "generic-x86-core" in about
    assert all("median error over" in line for line in found.findings())


def test_a_slower_node_of_the_run_is_told(make_run: Callable[..., Path], tmp_path: Path) -> None:
    """Ranks 2 and 3 ran on a node that takes half as long again."""
    folder = make_run(Strategy(batch=32, data=4))
    for rank in range(4):
        path = folder / f"trace.rank{rank}.attempt0.jsonl"
        header, *lines = path.read_text().splitlines()
        about = json.loads(header)
        about["about"]["machine"] = {"name": f"node{rank // 2}", "fingerprint": "same"}
        if rank >= 2:
            rows = [json.loads(line) for line in lines]
            compute = [row for row in rows if row[7] == "compute"]
            for row in compute:
                row[10] = row[9] + 1.5 * (row[10] - row[9])
            lines = [json.dumps(row) for row in rows]
        path.write_text("\n".join([json.dumps(about), *lines]) + "\n")
    found = refine(folder, tmp_path / "db.duckdb")
    slow = {(d.host, d.against) for d in found.drifts if d.subject == "generic-x86-core"}
    assert slow == {("node1", "nodes")}
    assert {o.host for o in ObservationDatabase(tmp_path / "db.duckdb").all()} == {"node0", "node1"}


def test_without_a_rank_nobody_knows_who_waited(make_run: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_run(Strategy(batch=32, data=2))
    trace = folder / "trace.rank1.attempt0.jsonl"
    whole = trace.read_bytes()
    for content in (whole[: whole.index(b"\n") + 1], whole[:20]):
        trace.write_bytes(content)
        with pytest.raises(DataError, match=r"trace\.rank1\.attempt0\.jsonl: holds no whole step.*--resume"):
            refine(folder, tmp_path / "db.duckdb")
        assert trace.read_bytes() == content
    assert not (tmp_path / "db.duckdb").exists()


@pytest.mark.parametrize("name", ["run.json", "plan.json", "model.onnx", "trace.rank0.attempt0.jsonl"])
def test_half_written_files_are_named_and_left_alone(make_run: Callable[..., Path], tmp_path: Path, name: str) -> None:
    folder, database = make_run(Strategy(batch=32)), tmp_path / "db.duckdb"
    refine(folder, database)
    before = ObservationDatabase(database).all()
    content = (folder / name).read_bytes()
    half = content[: len(content) // 2] + (b"\n[]\n" if name.startswith("trace") else b"")
    (folder / name).write_bytes(half)
    with pytest.raises(HpdlfError) as told:
        refine(folder, database)
    assert name in str(told.value)
    assert (folder / name).read_bytes() == half
    assert ObservationDatabase(database).all() == before


def _hold(path: str, ready: object, done: object) -> None:
    import duckdb

    with duckdb.connect(path):
        ready.set()  # type: ignore[attr-defined]
        done.wait(20)  # type: ignore[attr-defined]


def test_a_locked_database_loses_nothing(make_run: Callable[..., Path], tmp_path: Path) -> None:
    folder, database = make_run(Strategy(batch=32)), tmp_path / "db.duckdb"
    refine(folder, database)
    before = ObservationDatabase(database).all()
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(str(database), ready, done))
    holder.start()
    try:
        assert ready.wait(20)
        with pytest.raises(DataError, match=r"db\.duckdb: another process.*Wait for it to end"):
            refine(folder, database)
    finally:
        done.set()
        holder.join()
    assert ObservationDatabase(database).all() == before
    assert refine(folder, database).observations == len(before)
