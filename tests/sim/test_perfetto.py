"""Trace events: tracks, arrows, times, and the same bytes for the same trace."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from hpdlf.hwprofiles import load_cluster
from hpdlf.models.onnxpp import Graph
from hpdlf.models.plan import Strategy
from hpdlf.models.trace import Trace
from hpdlf.sim import simulate
from hpdlf.sim.perfetto import to_perfetto, write_perfetto


def _trace(graph: Graph) -> Trace:
    strategy = Strategy(batch=64, data=2, pipeline=2, microbatches=4)
    return simulate(graph, load_cluster("generic-x86:1x4"), strategy, fold=False).trace


def test_ranks_streams_and_links_have_tracks(digits: Graph) -> None:
    events = to_perfetto(_trace(digits))["traceEvents"]
    processes = [e["args"]["name"] for e in events if e["name"] == "process_name"]
    assert processes == ["rank 0 (stage0)", "rank 1 (stage0)", "rank 2 (stage1)", "rank 3 (stage1)", "links"]
    threads = {e["args"]["name"] for e in events if e["name"] == "thread_name" and e["pid"] == 4}
    assert {"rank 0 → rank 2", "rank 2 → rank 0", "rank 1 → rank 3"} <= threads
    assert "all_reduce among ranks 0, 1 (reduce)" in threads


def test_every_task_is_there_with_its_arguments(digits: Graph) -> None:
    trace = _trace(digits)
    slices = [e for e in to_perfetto(trace)["traceEvents"] if e["ph"] == "X" and e["pid"] < 4]
    assert sorted(s["args"]["task"] for s in slices) == list(trace.task_ids)
    by_task = {s["args"]["task"]: s for s in slices}
    for event in trace.events:
        found = by_task[event.task_id]
        assert abs(found["ts"] - event.start_s * 1e6) < 1e-3
        assert abs(found["dur"] - (event.end_s - event.start_s) * 1e6) < 2e-3
        assert found["args"]["bytes"] == event.payload_bytes
        assert found["args"]["phase"] == event.phase


def test_an_arrow_for_every_message_forward_in_time(digits: Graph) -> None:
    trace = _trace(digits)
    events = to_perfetto(trace)["traceEvents"]
    begins = {e["id"]: e for e in events if e["ph"] == "s"}
    ends = {e["id"]: e for e in events if e["ph"] == "f"}
    assert len(begins) == sum(e.kind == "send" for e in trace.events)
    assert begins.keys() == ends.keys()
    assert all(begins[i]["ts"] <= ends[i]["ts"] + 2e-3 for i in begins)


def test_nothing_overlaps_on_a_track(digits: Graph) -> None:
    tracks = defaultdict(list)
    for e in to_perfetto(_trace(digits))["traceEvents"]:
        if e["ph"] == "X":
            tracks[e["pid"], e["tid"]].append((e["ts"], e["ts"] + e["dur"]))
    for spans in tracks.values():
        spans.sort()
        assert all(a[1] <= b[0] + 3e-3 for a, b in pairwise(spans))


def test_attempts_follow_each_other(digits: Graph) -> None:
    trace = _trace(digits)
    again = tuple(e._replace(attempt=1) for e in trace.events)
    events = to_perfetto(replace(trace, events=trace.events + again))["traceEvents"]
    ends = [e["ts"] + e["dur"] for e in events if e["ph"] == "X" and e["args"]["attempt"] == 0]
    starts = [e["ts"] for e in events if e["ph"] == "X" and e["args"]["attempt"] == 1]
    assert max(ends) <= min(starts) + 2e-3


def test_the_same_bytes_every_time(digits: Graph, tmp_path: Path) -> None:
    write_perfetto(_trace(digits), tmp_path / "a.json")
    write_perfetto(_trace(digits), tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    json.loads((tmp_path / "a.json").read_text())
