"""Learning what ways take: planted thetas are found again, shapes that were left out are predicted, choices are scored."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from hpdlf.experiments import fit_lowerings, measure_lowerings
from hpdlf.experiments.fit_lowerings import Timing, choices, fit_thetas, left_out, predicted, read_timings
from hpdlf.experiments.measure_lowerings import LEAST_FLOPS, MOST_FLOPS, drawn_shapes, questions
from hpdlf.experiments.nonnegative import fit_logarithms
from hpdlf.models.cost import ObservationDatabase
from hpdlf.models.cost.lowering_choice import observed
from hpdlf.models.cost.lowering_times import LoweringTimes, Processor
from hpdlf.models.cost.lowerings import Convolution, Linear, ProductBatch, family_of, ways

TRUTH = LoweringTimes.default()
RATES = {"xla": 1.0, "turned": 2.0, "swapped": 0.5, "swapturned": 3.0}


def made_up(count: int, noise: float = 0.0) -> list[Timing]:
    """Linear layers that take what the shipped thetas say, on one and two threads."""
    draw = np.random.default_rng(0)
    shapes = [shape for shape in islice(drawn_shapes(0), 6 * count) if isinstance(shape, Linear)][:count]
    return [
        Timing(
            shape=shape,
            direction="weight",
            way=way,
            threads=threads,
            seconds=TRUTH.seconds(shape, "weight", way, Processor(threads=threads))
            * float(np.exp(noise * draw.standard_normal())),
            noise=0.02,
        )
        for shape in shapes
        for way in ways(shape, "weight")
        for threads in (1, 2)
    ]


def test_non_negative_shares_are_found() -> None:
    draw = np.random.default_rng(1)
    design = draw.uniform(0.1, 1.0, (80, 3)) * 10.0 ** draw.uniform(-4, -1, (80, 1))
    truth = np.array([2.0, 0.0, 0.3])
    seconds = design @ truth
    seconds[3] *= 20.0  # somebody else used the machine
    trust, means, spreads = np.full(80, 20.0), np.full(3, 0.5), np.full(3, 5.0)
    found = fit_logarithms(design, seconds, trust=trust, means=means, spreads=spreads)
    np.testing.assert_allclose(found, truth, atol=0.15)


def test_planted_thetas_predict_shapes_that_were_left_out() -> None:
    timings = made_up(60, noise=0.05)
    rows = left_out(timings)
    assert len(rows) == len(timings)
    errors = fit_lowerings.errors(rows)
    assert set(errors) == {f"linear weight {way}" for way in RATES}
    assert all(e["median"] < 0.1 for e in errors.values()), errors
    assert all(min(thetas.values()) > 0 for thetas in fit_thetas(timings).values())


def test_few_timings_teach_nothing() -> None:
    few = made_up(2)
    assert fit_thetas(few) == {}
    assert predicted(LoweringTimes({}, 1.0), few) == []


def test_regret_is_the_time_of_what_is_taken_over_the_least() -> None:
    shape = Linear(rows=64, wide=64, result=64)
    said = {"xla": (2e-3, 1.0), "turned": (1e-3, 3.0), "swapped": (4e-3, 2.0)}
    rows = [
        (Timing(shape=shape, direction="weight", way=way, threads=1, seconds=s, noise=0.0), predicted_s)
        for way, (s, predicted_s) in said.items()
    ]
    (choice,) = choices(rows)
    assert (choice.taken, choice.best_s) == ("xla", 1e-3)
    found = fit_lowerings.regrets(rows)
    assert found["all"] == found["linear weight"]
    assert found["all"] == {"n": 1, "of_time": 2.0, "of_a_choice": 2.0, "of_time_by_xla": 2.0}
    assert choices([(t, s) for t, s in rows if t.way == "xla"]) == []  # there is nothing to choose


def test_the_same_seed_draws_the_same_shapes_of_every_kind() -> None:
    shapes = list(islice(drawn_shapes(5), 300))
    assert shapes == list(islice(drawn_shapes(5), 300))
    assert shapes != list(islice(drawn_shapes(6), 300))
    assert {type(s) for s in shapes} == {Convolution, Linear, ProductBatch}
    assert all(LEAST_FLOPS <= s.flops <= MOST_FLOPS for s in shapes)
    convolutions = [s for s in shapes if isinstance(s, Convolution)]
    assert {len(c.kernel) for c in convolutions} == {1, 2, 3}
    assert {c.groups > 1 for c in convolutions} == {max(c.strides) > 1 for c in convolutions} == {False, True}
    for asked in questions(iter(shapes[:40])):
        assert asked.first in ways(asked.shape, asked.direction)


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """A database with what :func:`made_up` says, and rows that do not count."""
    path = tmp_path / "measured.duckdb"
    common = {"repeats": 9, "cpu": "c", "machine": "m", "host": "h", "time": "2026-11-26T05:00:00+00:00"}

    def row(t: Timing, **more: object):  # type: ignore[no-untyped-def]
        said = common | {"dtype": "float32", "run": "r", "threads": t.threads, "seconds": t.seconds} | more
        said |= {"low_s": said["seconds"], "high_s": said["seconds"]}
        return observed(t.shape, t.direction, t.way, **said)  # type: ignore[arg-type]

    timings = made_up(40)
    ObservationDatabase(path).add(
        [*map(row, timings), row(timings[0], repeats=1, threads=3), row(timings[0], dtype="float64", threads=4)]
    )
    return path


def test_the_command_writes_what_the_model_reads(
    measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "times.json"
    # What was measured here says nothing of convolutions, so that it cannot take the shipped file's place.
    assert fit_lowerings.main([str(measured), "--out", str(out)]) == 1
    assert "Too little is known of conv forward im2col, " in capsys.readouterr().err
    monkeypatch.setattr(fit_lowerings, "known_groups", set)
    assert fit_lowerings.main([str(measured), "--networks", str(measured), "--out", str(out)]) == 0
    report = json.loads(capsys.readouterr().out)
    timings = read_timings([measured])
    assert {t.threads for t in timings} == {1, 2}
    assert report["timings"] == len(timings)
    assert 1.0 <= report["networks"]["measured"]["all"]["of_time"] < 1.1
    said = json.loads(out.read_text())
    assert said["report"] == report
    times = LoweringTimes(said["thetas"], said["flops_per_s"])
    for timing, seconds in predicted(times, timings):
        assert seconds == pytest.approx(timing.seconds, rel=0.5)
    first = out.read_bytes()
    assert fit_lowerings.main([str(measured), "--networks", str(measured), "--out", str(out)]) == 0
    assert out.read_bytes() == first


def test_a_way_that_was_hardly_timed_is_named(
    tmp_path: Path, measured: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fit_lowerings, "LEAST", 1000)
    monkeypatch.setattr(fit_lowerings, "known_groups", set)
    out = tmp_path / "times.json"
    assert fit_lowerings.main([str(measured), "--out", str(out)]) == 1
    assert "Too little is known of linear weight swapped, linear weight swapturned" in capsys.readouterr().err
    assert not out.exists()


def test_timings_of_several_machines_or_of_one_thread_are_refused(
    measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fit_lowerings, "known_groups", set)
    rows = ObservationDatabase(measured).all_lowerings()
    other, single, out = tmp_path / "other.duckdb", tmp_path / "single.duckdb", tmp_path / "times.json"
    ObservationDatabase(other).add([replace(rows[0], machine="another")])
    ObservationDatabase(single).add([row for row in rows if row.conditions["threads"] == 1])
    assert fit_lowerings.main([str(measured), str(other), "--out", str(out)]) != 0
    assert "of 2 machines (another, m): fit those of one" in capsys.readouterr().err
    assert fit_lowerings.main([str(single), "--out", str(out)]) == 1
    assert "of one thread are wanted, and of several" in capsys.readouterr().err
    assert not out.exists()


def test_the_newest_timing_counts_and_what_is_no_way_does_not(measured: Path, tmp_path: Path) -> None:
    row = ObservationDatabase(measured).all_lowerings()[0]
    path, later = tmp_path / "later.duckdb", row.seconds * 3
    new = replace(row, seconds=later, low_s=later, high_s=later, time="2026-11-27T05:00:00+00:00")
    strange = replace(row, key=row.key.rpartition(" ")[0] + " winograd4", run="strange")
    unknown = replace(row, key="pool 3x3 | forward | xla", run="unknown")
    ObservationDatabase(path).add([new, strange, unknown])
    for paths in ([measured, path], [path, measured]):
        found = read_timings(paths)
        assert len(found) == len(read_timings([measured]))
        assert [t.seconds for t in found if t.seconds == later] == [later]


def test_drawn_shapes_are_timed_into_the_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = [Linear(rows=5, wide=4, result=3), ProductBatch(batch=2, rows=3, inner=4, columns=5)]
    monkeypatch.setattr(measure_lowerings, "drawn_shapes", lambda seed, kinds: iter(tiny))
    path = tmp_path / "drawn.duckdb"
    assert measure_lowerings.main(["--database", str(path), "--threads", "1", "--seconds", "60"]) == 0
    found = {(t.shape, t.direction, t.way) for t in read_timings([path])}
    assert found == {
        (shape, direction, way)
        for shape in tiny
        for direction in family_of(shape).directions
        for way in ways(shape, direction)
    }
