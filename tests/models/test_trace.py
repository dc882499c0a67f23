from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpdlf.errors import DataError
from hpdlf.models.trace import COLUMNS, Event, Trace, event_line, header_line, read_trace, write_trace

names = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=8)
seconds = st.floats(0, 1e6, allow_nan=False)
events = st.builds(
    Event,
    role=names,
    rank=st.integers(0, 9999),
    step=st.integers(0, 9999),
    microbatch=st.none() | st.integers(0, 99),
    instruction=names,
    attempt=st.integers(0, 3),
    stream=names,
    kind=names,
    phase=names,
    start_s=seconds,
    end_s=seconds,
    payload_bytes=st.integers(0, 2**60),
)


def an_event(**changes: object) -> Event:
    event = Event(
        role="stage0",
        rank=0,
        step=0,
        microbatch=None,
        instruction="update",
        attempt=0,
        stream="compute",
        kind="compute",
        phase="update",
        start_s=1.0,
        end_s=2.0,
        payload_bytes=0,
    )
    return event._replace(**changes)


@given(st.lists(events, max_size=5))
def test_a_trace_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, found: list[Event]) -> None:
    path = tmp_path_factory.mktemp("trace") / "t.jsonl"
    found.sort(key=lambda e: (e.start_s, e.rank, e.stream, e.end_s))
    trace = Trace(source="simulated", events=tuple(found), about={"cluster": "x", "n": 3})
    write_trace(trace, path)
    assert read_trace(path) == trace
    assert [p.name for p in path.parent.iterdir()] == ["t.jsonl"]


def test_a_task_is_named_by_where_it_ran() -> None:
    assert an_event().task_id == "stage0/0/0/-/update"
    assert an_event(microbatch=3, attempt=2).task_id == "stage0/0/0/3/update#2"


def test_the_files_of_all_ranks_are_one_trace(tmp_path: Path) -> None:
    for rank, start_s in ((0, 2.0), (1, 1.0)):
        content = header_line("measured", {"rank": rank, f"only{rank}": True}) + event_line(
            an_event(rank=rank, start_s=start_s)
        )
        (tmp_path / f"{rank}.jsonl").write_text(content)
    trace = read_trace(tmp_path / "0.jsonl", tmp_path / "1.jsonl")
    assert [e.rank for e in trace.events] == [1, 0]
    assert trace.about == {"rank": 0, "only0": True, "only1": True}
    assert trace.task_ids == ("stage0/0/0/-/update", "stage0/1/0/-/update")


@pytest.fixture
def cut(tmp_path: Path) -> Path:
    """A trace of two events, cut in its third line."""
    path = tmp_path / "cut.jsonl"
    write_trace(Trace(source="measured", events=(an_event(), an_event(step=1))), path)
    path.write_text(path.read_text()[:-10])
    return path


def test_a_file_that_was_cut_short_is_refused_with_its_line(cut: Path) -> None:
    with pytest.raises(DataError, match=r"cut.jsonl, line 3: the trace was cut short. Remove it, or run `hpdlf train"):
        read_trace(cut)


def test_where_the_writers_may_have_been_killed_whole_lines_count(cut: Path) -> None:
    assert [e.step for e in read_trace(cut, cut_short=True).events] == [0]
    cut.write_text(header_line("measured", {})[:5])
    assert read_trace(cut, cut_short=True).events == ()


@pytest.mark.parametrize("line", ["nonsense\n", "[1, 2]\n", "{}\n", json.dumps([*range(len(COLUMNS) + 1)]) + "\n"])
def test_a_line_that_is_no_event_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(header_line("measured", {}) + event_line(an_event()) + line + event_line(an_event()))
    with pytest.raises(DataError, match="line 3"):
        read_trace(path)


@pytest.mark.parametrize("content", ["", "\n", "hello\n", "[1]\n", '{"format": "other"}\n'])
def test_what_is_no_trace_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match="no hpdlf trace"):
        read_trace(path)


def test_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps(json.loads(header_line("measured", {})) | {"version": 2}) + "\n")
    with pytest.raises(DataError, match="trace format 2, this hpdlf reads up to 1: `pip install --upgrade hpdlf`"):
        read_trace(path)


def test_a_trace_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_trace(tmp_path / "t.jsonl")
    with pytest.raises(DataError, match="No trace files"):
        read_trace()


def test_as_a_table() -> None:
    frame = Trace(source="simulated", events=(an_event(), an_event(microbatch=1, end_s=5.0))).to_frame()
    assert list(frame.columns) == [*COLUMNS, "duration_s"]
    assert list(frame.duration_s) == [1.0, 4.0]
    assert list(frame.microbatch.isna()) == [True, False]
