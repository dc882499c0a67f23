"""A trace as Chrome trace events, which ui.perfetto.dev and chrome://tracing open.

Every rank is a process with a thread per stream, on which tasks stand as they were entered and left, waiting included.
The process *links* has a thread for every pair of ranks that send (``rank 0 → rank 1``) and for every group that meets
(``all_reduce among ranks 0, 1``): there a transfer begins when the last partner has entered. Arrows lead from a send to
its receive. The format: "Trace Event Format",
https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..models.trace import Event, Trace
from .timeline import Meeting, Transfer, meetings, transfers

__all__ = ["to_perfetto", "write_perfetto"]

Slice = dict[str, Any]

# Chrome's own colour names; the viewer may choose others.
_COLOURS = {"forward": "thread_state_running", "backward": "thread_state_iowait", "update": "good", "host": "grey"}
_LEAST_US = 0.001


def to_perfetto(trace: Trace) -> dict[str, Any]:
    """The trace as one JSON object; the same trace gives the same. Times are microseconds, rounded to a nanosecond.

    Attempts whose clocks start anew are laid one after the other.
    """
    shifted = _one_after_another(trace)
    streams = _threads(shifted.events)
    pairs, groups = transfers(shifted), meetings(shifted)
    links = max((e.rank for e in shifted.events), default=-1) + 1
    out: list[Slice] = []
    for (rank, stream), thread in streams.items():
        role = next(e.role for e in shifted.events if e.rank == rank)
        if thread == 1:
            out += _named("process", rank, 0, f"rank {rank} ({role})", order=rank)
        out += _named("thread", rank, thread, stream, order=thread)
    out += [_slice(e, e.rank, streams[e.rank, e.stream]) for e in shifted.events]
    out += _link_tracks(pairs, groups, links)
    for number, pair in enumerate(pairs):
        out += _arrow(pair, number, streams)
    return {
        "displayTimeUnit": "ms",
        "otherData": {"source": trace.source, **{k: str(v) for k, v in sorted(trace.about.items())}},
        "traceEvents": out,
    }


def write_perfetto(trace: Trace, path: Path) -> None:
    """Write the trace for ui.perfetto.dev, whole, in place of what was there.

    Raises:
        DataError: the file cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(json.dumps(to_perfetto(trace), separators=(",", ":"), sort_keys=True) + "\n")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise DataError(f"{path}: the trace cannot be written: {error.strerror}. Choose another place.") from None


def _one_after_another(trace: Trace) -> Trace:
    """Attempts in one row: each attempt's clock may start at its own zero."""
    by_attempt: dict[int, list[Event]] = {}
    for event in trace.events:
        by_attempt.setdefault(event.attempt, []).append(event)
    until_s: float | None = None
    laid: list[Event] = []
    for _, events in sorted(by_attempt.items()):
        first_s = min(e.start_s for e in events)
        shift_s = max(0.0, until_s - first_s) if until_s is not None else 0.0
        laid += [e._replace(start_s=e.start_s + shift_s, end_s=e.end_s + shift_s) for e in events]
        until_s = max(e.end_s for e in laid)
    return Trace(source=trace.source, events=tuple(laid), about=trace.about)


def _threads(events: Iterable[Event]) -> dict[tuple[int, str], int]:
    """Thread numbers from 1 for every (rank, stream), computing first."""
    found = sorted({(e.rank, e.stream != "compute", e.stream) for e in events})
    numbers: dict[tuple[int, str], int] = {}
    for rank, _, stream in found:
        numbers[rank, stream] = 1 + sum(1 for r, _ in numbers if r == rank)
    return numbers


def _us(seconds: float) -> float:
    return round(seconds * 1e6, 3)


def _named(what: str, process: int, thread: int, name: str, *, order: int) -> list[Slice]:
    common = {"ph": "M", "pid": process, "tid": thread}
    return [
        {**common, "name": f"{what}_name", "args": {"name": name}},
        {**common, "name": f"{what}_sort_index", "args": {"sort_index": order}},
    ]


def _arguments(event: Event) -> dict[str, Any]:
    return {
        "task": event.task_id,
        "step": event.step,
        "microbatch": "-" if event.microbatch is None else event.microbatch,
        "phase": event.phase,
        "bytes": event.payload_bytes,
        "attempt": event.attempt,
    }


def _slice(event: Event, process: int, thread: int) -> Slice:
    found: Slice = {
        "ph": "X",
        "name": event.instruction if event.microbatch is None else f"{event.instruction} [{event.microbatch}]",
        "cat": f"{event.kind},{event.phase}",
        "pid": process,
        "tid": thread,
        "ts": _us(event.start_s),
        "dur": round(_us(event.end_s) - _us(event.start_s), 3),
        "args": _arguments(event),
    }
    if event.phase in _COLOURS:
        found["cname"] = _COLOURS[event.phase]
    return found


def _link_tracks(pairs: Sequence[Transfer], groups: Sequence[Meeting], process: int) -> list[Slice]:
    """A thread for every link: transfers between the same two, or meetings of the same group on the same stream."""
    tracks: dict[tuple[object, ...], list[tuple[float, float, Event]]] = {}
    names: dict[tuple[object, ...], str] = {}
    for pair in pairs:
        key: tuple[object, ...] = (0, pair.send.rank, pair.receive.rank, pair.send.stream)
        names[key] = f"rank {pair.send.rank} → rank {pair.receive.rank}"
        tracks.setdefault(key, []).append((pair.start_s, pair.end_s, pair.send))
    for group in groups:
        ranks = [e.rank for e in group.members]
        first = group.members[0]
        if len(ranks) < 2 and not first.payload_bytes:
            continue
        key = (1, *ranks, first.stream)
        listed = ", ".join(map(str, ranks[:6])) + (f" and {len(ranks) - 6} more" if len(ranks) > 6 else "")
        names[key] = f"{first.kind} among rank{'s' if len(ranks) > 1 else ''} {listed} ({first.stream})"
        tracks.setdefault(key, []).append((group.start_s, group.end_s, first))
    if not tracks:
        return []
    out = _named("process", process, 0, "links", order=process)
    for thread, key in enumerate(sorted(tracks, key=str), start=1):
        out += _named("thread", process, thread, names[key], order=thread)
        until_s = float("-inf")
        for start_s, end_s, event in sorted(tracks[key], key=lambda t: (t[0], t[1])):
            # A viewer nests what overlaps; on a link one transfer follows another.
            begin_s = min(max(start_s, until_s), max(end_s, until_s))
            until_s = max(end_s, begin_s)
            out.append(_slice(event._replace(start_s=begin_s, end_s=until_s), process, thread))
    return out


def _arrow(pair: Transfer, number: int, streams: dict[tuple[int, str], int]) -> list[Slice]:
    send, receive = pair
    arrives_us = max(_us(receive.end_s) - _LEAST_US, _us(receive.start_s))
    common = {"name": send.instruction.partition(".")[2], "cat": "message", "id": number}
    return [
        {**common, "ph": "s", "pid": send.rank, "tid": streams[send.rank, send.stream], "ts": _us(send.start_s)},
        {
            **common,
            "ph": "f",
            "bp": "e",
            "pid": receive.rank,
            "tid": streams[receive.rank, receive.stream],
            "ts": round(arrives_us, 3),
        },
    ]
