"""What happened, or would happen: one event per task, the same shape whether simulated or measured.

A task's id is ``role/rank/step/microbatch/instruction`` (``-`` for no microbatch), followed by ``#attempt`` where a task was run
again. Files are JSON lines: a header with format and version, then one array per event in the order of :data:`COLUMNS`, so that a
rank can append while it runs and a reader can tell a file that was cut short.

>>> event = Event(role="stage0", rank=0, step=0, microbatch=1, instruction="forward.0", attempt=0, stream="compute",
...               kind="compute", phase="forward", start_s=0.0, end_s=0.5, payload_bytes=0)
>>> event.task_id
'stage0/0/0/1/forward.0'
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import DataError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["COLUMNS", "Event", "Trace", "event_line", "header_line", "read_trace", "write_trace"]

FORMAT = "hpdlf.trace"
VERSION = 1
_MEND = "Remove it, or run `hpdlf train PLAN --out RUN --resume` to measure again."


class Event(NamedTuple):
    """One task on one rank. Times are seconds since the run's common zero; `payload_bytes` left or reached the rank."""

    role: str
    rank: int
    step: int
    microbatch: int | None
    instruction: str
    attempt: int
    stream: str
    kind: str
    phase: str
    start_s: float
    end_s: float
    payload_bytes: int

    @property
    def task_id(self) -> str:
        """role/rank/step/microbatch/instruction[#attempt]"""
        microbatch = "-" if self.microbatch is None else self.microbatch
        attempt = f"#{self.attempt}" if self.attempt else ""
        return f"{self.role}/{self.rank}/{self.step}/{microbatch}/{self.instruction}{attempt}"


COLUMNS = Event._fields


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Events ordered by start, rank and stream, and what they are about.

    `source` is "simulated" or "measured". `about` holds plan hash, cluster, machine, versions: whatever is known, as plain values.
    """

    source: str
    events: tuple[Event, ...]
    about: Mapping[str, Any] = field(default_factory=dict)

    def to_frame(self) -> pd.DataFrame:
        """One row per event, columns as :data:`COLUMNS` and `duration_s`."""
        import pandas as pd

        frame = pd.DataFrame(self.events, columns=list(COLUMNS))
        frame["microbatch"] = frame["microbatch"].astype("Int64")
        frame["duration_s"] = frame["end_s"] - frame["start_s"]
        return frame

    @property
    def task_ids(self) -> tuple[str, ...]:
        """Ids of all events, sorted."""
        return tuple(sorted(e.task_id for e in self.events))


def header_line(source: str, about: Mapping[str, Any]) -> str:
    """The first line of a trace file."""
    return json.dumps({"format": FORMAT, "version": VERSION, "source": source, "about": dict(about), "columns": COLUMNS}) + "\n"


def event_line(event: Event) -> str:
    """The line of one event."""
    return json.dumps(event, separators=(",", ":")) + "\n"


def write_trace(trace: Trace, path: Path) -> None:
    """Write a trace whole, in place of what was there."""
    part = path.with_name(path.name + ".part")
    with part.open("w") as file:
        file.write(header_line(trace.source, trace.about))
        file.writelines(map(event_line, trace.events))
    part.replace(path)


def read_trace(*paths: Path, cut_short: bool = False) -> Trace:
    """Read the files of one run's ranks as one trace.

    cut_short   the writers may have been killed: a last line that is not whole is left out, and so is a file without
                a whole line

    Raises:
        DataError: a file cannot be read, is no trace, is of a newer version, or was cut short and must not be.
    """
    events: list[Event] = []
    about: dict[str, Any] = {}
    source = "measured"
    if not paths:
        raise DataError("No trace files: the run wrote none. Was it stopped before its first step?")
    for path in paths:
        lines = _whole_lines(path) if cut_short else _lines(path)
        if cut_short and not lines:
            continue
        header, rows = _parse(path, lines)
        source = header["source"]
        about = dict(header["about"]) | about
        events += rows
    events.sort(key=lambda e: (e.start_s, e.rank, e.stream, e.end_s))
    return Trace(source=source, events=tuple(events), about=about)


def _lines(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.readlines()
    except OSError as error:
        raise DataError(f"{path}: the trace cannot be read: {error.strerror}. {_MEND}") from None


def _whole_lines(path: Path) -> list[str]:
    lines = _lines(path)
    return lines[:-1] if lines and not lines[-1].endswith("\n") else lines


def _parse(path: Path, lines: list[str]) -> tuple[dict[str, Any], Iterable[Event]]:
    try:
        header = json.loads(lines[0])
        if header["format"] != FORMAT:
            raise KeyError("format")
    except (IndexError, json.JSONDecodeError, KeyError, TypeError):
        raise DataError(f"{path} is no hpdlf trace: its first line does not say so. {_MEND}") from None
    if header["version"] > VERSION:
        raise DataError(f"{path} has trace format {header['version']}, this hpdlf reads up to {VERSION}: `pip install --upgrade hpdlf`.")
    events = []
    for number, line in enumerate(lines[1:], start=2):
        try:
            if not line.endswith("\n"):
                raise ValueError
            events.append(Event(*json.loads(line)))
        except (ValueError, TypeError):
            raise DataError(f"{path}, line {number}: the trace was cut short. {_MEND}") from None
    return header, events
