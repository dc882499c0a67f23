"""What a rank writes down while it runs: its trace, and on rank 0 the metrics that a progress bar and a report read."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from ..errors import RunError
from ..models.trace import Event, event_line, header_line

__all__ = ["Recorder"]

TRACED_FIRST, TRACED_EVERY = 200, 50
"""Every task of so many steps is traced, then of every so-manieth step."""

HELD_EVENTS, FLUSH_S = 4096, 1.0
"""Events go to the file when there are so many, or so much later: others follow the run by it."""


class Recorder:
    """One rank's trace file and, if it has one, the run's metrics file; a context manager that closes them.

    first_step   the first step of this attempt, from which :data:`TRACED_FIRST` counts

    Events come from many threads and go to the file in pieces. Metrics are in the file when :meth:`metric` returns.

    Raises:
        RunError: a file cannot be written, from any of the methods.
    """

    def __init__(self, trace: Path, metrics: Path | None, *, about: Mapping[str, Any], first_step: int) -> None:
        self._first_step = first_step
        self._lock = threading.Lock()
        self._events: list[Event] = []
        self._flushed_s = time.monotonic()
        self._trace = _open(trace, "w")
        if metrics:
            _drop_broken_line(metrics)
        self._metrics = _open(metrics, "a") if metrics else None
        self._write(self._trace, header_line("measured", about))

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.flush()
        except RunError:
            if error is None:
                raise
        finally:
            for file in (self._trace, self._metrics):
                if file:
                    file.close()

    def event(self, event: Event) -> None:
        """Keep a task's event, if its step is one of those that are traced."""
        if event.step - self._first_step >= TRACED_FIRST and event.step % TRACED_EVERY:
            return
        with self._lock:
            self._events.append(event)
            full = len(self._events) >= HELD_EVENTS or time.monotonic() - self._flushed_s >= FLUSH_S
        if full:
            self.flush()

    def metric(self, entry: Mapping[str, Any]) -> None:
        """Append a line to the metrics; nothing where this rank has none."""
        if self._metrics:
            self._write(self._metrics, json.dumps(dict(entry)) + "\n")

    def flush(self) -> None:
        """Put all events into the file."""
        with self._lock:
            events, self._events, self._flushed_s = self._events, [], time.monotonic()
            self._write(self._trace, "".join(map(event_line, events)))

    def _write(self, file: IO[bytes], text: str) -> None:
        rest = memoryview(text.encode())
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError as error:
            raise _failure(Path(file.name), error) from None


def _open(path: Path, mode: str) -> IO[bytes]:
    try:
        return path.open(f"{mode}b", buffering=0)  # nothing is left to fail when it is closed
    except OSError as error:
        raise _failure(path, error) from None


def _drop_broken_line(path: Path) -> None:
    """A disk that was full may have left the last line unfinished; what is appended must not become part of it."""
    content = path.read_bytes() if path.is_file() else b""
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


def _failure(path: Path, error: OSError) -> RunError:
    return RunError(
        f"{path} cannot be written: {error.strerror}. Make room or choose another `--out`, then go on with "
        "`hpdlf train PLAN --out RUN --resume`."
    )
