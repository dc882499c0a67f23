"""Following a run: what its ranks trace while it trains corrects the predicted step."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hpdlf.experiments.following import WAITING, Follower
from hpdlf.experiments.watching import Watch
from hpdlf.models.plan import Strategy, load_plan

MakeRun = Callable[..., Path]
STRATEGIES = [
    Strategy(batch=32),
    Strategy(batch=32, data=2, bucket_bytes=20_000),
    Strategy(batch=32, data=2, pipeline=2, microbatches=2),
]


@pytest.fixture(autouse=True)
def no_database(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HPDLF_DATABASE", str(tmp_path / "none.duckdb"))


def predicted_s(folder: Path) -> float:
    return float(load_plan(folder / "plan.json").prediction["figures"]["step_s"]["value"])


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_tasks_alone_correct_the_step(make_run: MakeRun, strategy: Strategy) -> None:
    """Every task takes twice as long; nobody tells how long steps take."""
    folder = make_run(strategy)
    follower = Follower(folder, predicted_s(folder))
    assert follower.step_s[0] == pytest.approx(predicted_s(folder), rel=0.02)
    follower.take()
    computing = {family: s for family, s in follower._step_parts.items() if family != WAITING}
    assert follower.scales.corrected(computing)[0] == pytest.approx(2.0 * sum(computing.values()), rel=0.06)
    assert follower.scales.scales[WAITING] == 1.0
    value, low, high = follower.step_s
    assert 1.4 * predicted_s(folder) < value < 2.1 * predicted_s(folder)
    assert low < value < high


def test_steps_alone_correct_the_step(make_run: MakeRun) -> None:
    folder = make_run(Strategy(batch=32, data=2, pipeline=2, microbatches=2))
    step_s = predicted_s(folder)
    for path in folder.glob("trace.rank*"):
        path.unlink()
    follower = Follower(folder, step_s)
    for _ in range(30):
        follower.take(3.0 * step_s)
    assert follower.step_s[0] == pytest.approx(3.0 * step_s, rel=0.02)


def test_lines_are_read_once_and_when_they_are_whole(make_run: MakeRun) -> None:
    folder = make_run(Strategy(batch=32))
    trace = folder / "trace.rank0.attempt0.jsonl"
    content = trace.read_bytes()
    half = len(content) // 2
    whole, pieces = Follower(folder, 1.0), Follower(folder, 1.0)
    whole.take()
    for end in (0, half, half + 1, len(content)):
        trace.write_bytes(content[:end])
        pieces.take()
    assert pieces.scales.scales["conv"] == pytest.approx(whole.scales.scales["conv"], rel=0.05)
    before = pieces.scales.scales
    pieces.take()
    assert pieces.scales.scales == before


def test_the_time_left_corrects_itself(make_run: MakeRun) -> None:
    folder = make_run(Strategy(batch=32))
    step_s = predicted_s(folder)
    watch = Watch(steps=1000, step_s=step_s, batch=32)
    (folder / "metrics.jsonl").unlink()
    watch.follow(folder / "metrics.jsonl")
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(40):
            speed = 32 / (2.0 * step_s) if step else None
            file.write(json.dumps({"step": step, "loss": 1.0, "samples_per_s": speed, "attempt": 0}) + "\n")
    watch.stop()
    assert watch._follower is not None
    assert watch._follower.step_s[0] == pytest.approx(2.0 * step_s, rel=0.03)
    assert "left (predicted" in watch._told(40)


def test_a_run_that_cannot_be_followed_is_watched_all_the_same(tmp_path: Path) -> None:
    watch = Watch(steps=100, step_s=1.0, batch=32)
    watch.follow(tmp_path / "metrics.jsonl")
    for step in range(3):
        watch._saw({"step": step, "loss": 1.0, "samples_per_s": 64.0, "attempt": 0})
    watch.stop()
    assert watch._follower is None
    assert "50.0 s left (predicted 100 s)" in watch._told(0)
