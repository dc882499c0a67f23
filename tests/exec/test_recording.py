"""Traces and metrics as ranks write them, from many threads and onto disks that are full."""

import json
import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hpdlf.errors import RunError
from hpdlf.exec.recording import HELD_EVENTS, TRACED_EVERY, TRACED_FIRST, Recorder
from hpdlf.models.trace import Event, read_trace


def event(step: int, instruction: str = "work") -> Event:
    return Event(
        role="stage0", rank=0, step=step, microbatch=None, instruction=instruction, attempt=0, stream="compute",
        kind="compute", phase="forward", start_s=float(step), end_s=step + 0.5, payload_bytes=0,
    )  # fmt: skip


def test_events_of_many_threads_all_arrive(tmp_path: Path) -> None:
    threads, each = 4, HELD_EVENTS // 2
    with Recorder(tmp_path / "trace", None, about={"rank": 0}, first_step=0) as recorder:

        def write(number: int) -> None:
            for _ in range(each):
                recorder.event(event(0, f"i{number}"))

        running = [threading.Thread(target=write, args=(n,)) for n in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
    trace = read_trace(tmp_path / "trace")
    assert trace.about == {"rank": 0}
    assert len(trace.events) == threads * each


def test_long_runs_are_traced_in_samples(tmp_path: Path) -> None:
    with Recorder(tmp_path / "trace", None, about={}, first_step=30) as recorder:
        for step in range(30, 400):
            recorder.event(event(step))
    traced = [e.step for e in read_trace(tmp_path / "trace").events]
    assert traced[:TRACED_FIRST] == list(range(30, 30 + TRACED_FIRST))
    assert traced[TRACED_FIRST:] == [s for s in range(30 + TRACED_FIRST, 400) if s % TRACED_EVERY == 0]


def test_metrics_are_appended_and_a_broken_last_line_goes(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics"
    metrics.write_text('{"step": 0}\n{"step": 1, "lo')
    with Recorder(tmp_path / "trace", metrics, about={}, first_step=0) as recorder:
        recorder.metric({"step": 1, "loss": 0.5})
        assert [json.loads(line) for line in metrics.read_text().splitlines()] == [{"step": 0}, {"step": 1, "loss": 0.5}]


def test_a_rank_without_metrics(tmp_path: Path) -> None:
    with Recorder(tmp_path / "trace", None, about={}, first_step=0) as recorder:
        recorder.metric({"step": 1})
    assert [p.name for p in tmp_path.iterdir()] == ["trace"]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"absent/trace cannot be written: No such file"):
        Recorder(tmp_path / "absent" / "trace", None, about={}, first_step=0)


def test_a_full_disk_is_told_and_does_not_hide_what_went_wrong_before(tmp_path: Path) -> None:
    script = f"""
import resource
from pathlib import Path
from hpdlf.errors import RunError
from hpdlf.exec.recording import Recorder
from hpdlf.models.trace import Event
event = Event(*{tuple(event(0))!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    with Recorder(Path({str(tmp_path / "trace")!r}), None, about={{}}, first_step=0) as recorder:
        for _ in range(100):
            recorder.event(event)
        {{}}
except (RunError, KeyError) as error:
    print(type(error).__name__, error)
"""
    for body, told in (("pass", "RunError"), ("raise KeyError('first')", "KeyError 'first'")):
        done = subprocess.run(
            [sys.executable, "-c", script.replace("        {}\n", f"        {body}\n")], capture_output=True, text=True
        )
        assert done.stdout.startswith(told), done.stderr
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 2000
