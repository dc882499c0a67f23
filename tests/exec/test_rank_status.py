"""A rank's report while it runs and after it ended."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from hpdlf.errors import DataError
from hpdlf.exec.rank_status import RankStatus, process_started, read_reports


def test_a_report_through_a_life(tmp_path: Path) -> None:
    status = RankStatus(tmp_path, 3, "stage1", attempt=2, beat_s=0.02)
    first = read_reports(tmp_path)[3]
    assert (first.role, first.pid, first.attempt, first.state, first.step) == (
        "stage1",
        os.getpid(),
        2,
        "starting",
        None,
    )
    assert first.started == process_started(os.getpid())
    status.running(0)
    assert read_reports(tmp_path)[3].state == "running"
    status.running(5)
    deadline = time.monotonic() + 10
    while read_reports(tmp_path)[3].step != 5:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    status.finished()
    assert read_reports(tmp_path)[3].state == "finished"
    assert read_reports(tmp_path, attempt=1) == {}


def test_errors_survive_with_their_class(tmp_path: Path) -> None:
    with pytest.raises(DataError), RankStatus(tmp_path, 0, attempt=0):
        raise DataError("x is too short")
    with pytest.raises(ZeroDivisionError), RankStatus(tmp_path, 1, attempt=0):
        raise ZeroDivisionError("by zero")
    mendable, unforeseen = (read_reports(tmp_path)[rank] for rank in (0, 1))
    assert (mendable.state, mendable.user_error) == ("failed", True)
    error = mendable.as_error()
    assert isinstance(error, DataError)
    assert str(error) == "x is too short"
    assert (unforeseen.error, unforeseen.user_error) == ("ZeroDivisionError: by zero", False)


def test_half_a_report_is_none(tmp_path: Path) -> None:
    (tmp_path / "ranks").mkdir()
    (tmp_path / "ranks" / "0.json").write_text('{"rank": 0, "ro')
    (tmp_path / "ranks" / "1.json").write_text('{"rank": 1, "unknown": 0}')
    assert read_reports(tmp_path) == {}


def test_processes_are_told_apart() -> None:
    assert process_started(os.getpid()) == process_started(os.getpid()) is not None
    child = subprocess.Popen(["true"])
    deadline = time.monotonic() + 10
    while process_started(child.pid) is not None:  # it has ended, though nobody has waited for it
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.wait()
