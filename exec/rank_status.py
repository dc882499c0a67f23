"""What every rank says of itself while it runs, in RUN/ranks/<rank>.json: so that somebody else can tell how it ended.

A rank opens a :class:`RankStatus` before it does anything that can fail, tells it the step, and a thread of its own
writes the file every few seconds. Whoever reads finds the process, the step, and, where the rank ended by an error,
that error.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from .. import errors
from ..errors import HpdlfError

__all__ = ["RankReport", "RankStatus", "process_started", "read_reports"]

BEAT_S = 2.0
BLOCK_BYTES = 8192
MOST_CHARACTERS = 6000


@dataclass(frozen=True, kw_only=True)
class RankReport:
    """`state` is "starting", "running", "failed" or "finished". `beat` grows as long as the process lives.

    started     the kernel's start time of the process in ticks, which tells it from another one with the same id
    error       what it failed with: the message; `error_class` its class
    user_error  whether that is an error that a user can mend, complete as it stands
    """

    rank: int
    role: str = ""
    host: str = ""
    pid: int = 0
    started: int | None = None
    attempt: int = 0
    state: str = "starting"
    step: int | None = None
    beat: int = 0
    ended_s: float | None = None
    error: str = ""
    error_class: str = ""
    user_error: bool = False

    def as_error(self) -> HpdlfError:
        """The error that the rank failed with, of its own class where the user can mend it."""
        kind = getattr(errors, self.error_class, errors.RunError) if self.user_error else errors.RunError
        return kind(self.error)

    @property
    def name(self) -> str:
        """The rank as people call it."""
        return f"rank {self.rank} ({self.role})" if self.role else f"rank {self.rank}"


def process_started(pid: int) -> int | None:
    """When the kernel started process `pid` of this host, in ticks since boot; None if it is none, or has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else int(fields[19])
    except (OSError, ValueError, IndexError):
        return None


def read_reports(run_folder: Path, *, attempt: int | None = None) -> dict[int, RankReport]:
    """The reports of all ranks (of one attempt), by rank. Files that are not complete are left out."""
    reports = {}
    for path in sorted((run_folder / "ranks").glob("*.json")):
        try:
            report = RankReport(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            continue
        if attempt is None or report.attempt == attempt:
            reports[report.rank] = report
    return reports


class RankStatus:
    """This rank's report, kept up to date until it is closed. A disk that is full does not stop the rank.

    As a context manager it marks the rank finished, or failed with the exception that left the block.
    """

    def __init__(
        self, run_folder: Path, rank: int, role: str = "", *, attempt: int | None = None, beat_s: float = BEAT_S
    ) -> None:
        self._path = run_folder / "ranks" / f"{rank}.json"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._values = asdict(
            RankReport(
                rank=rank,
                role=role,
                host=platform.node(),
                pid=os.getpid(),
                started=process_started(os.getpid()),
                attempt=int(os.environ.get("HPDLF_ATTEMPT", "0")) if attempt is None else attempt,
            )
        )
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._beat_s = beat_s
        self._write()
        self._thread = threading.Thread(target=self._beat, name="rank-status", daemon=True)
        self._thread.start()

    def plays(self, role: str) -> None:
        """What the rank does, once it is known; the file follows with the next beat."""
        self._values["role"] = role

    def running(self, step: int) -> None:
        """The rank is at `step`. Costs nothing: but for the first time, the file follows with the next beat."""
        first = self._values["state"] != "running"
        self._values["state"], self._values["step"] = "running", step
        if first:
            self._write()

    def finished(self) -> None:
        """The rank has done all that it should."""
        self._close(state="finished")

    def failed(self, error: BaseException) -> None:
        """The rank ends by `error`; call it before MPI is told to abort."""
        known = isinstance(error, HpdlfError)
        text = str(error) if known else f"{type(error).__name__}: {error}".rstrip(": ")
        if len(text) > MOST_CHARACTERS:
            text = text[:MOST_CHARACTERS] + " ..."
        self._close(state="failed", error=text, error_class=type(error).__name__, user_error=known)

    def __enter__(self) -> RankStatus:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._closed.is_set():
            return
        if error is None:
            self.finished()
        else:
            self.failed(error)

    def _close(self, **values: object) -> None:
        self._closed.set()
        self._values.update(values, ended_s=time.time())
        self._write()

    def _beat(self) -> None:
        while not self._closed.wait(self._beat_s):
            self._values["beat"] += 1
            self._write()

    def _write(self) -> None:
        part = self._path.with_suffix(".part")
        with self._lock:
            content = json.dumps(self._values).encode().ljust(BLOCK_BYTES)
            try:
                part.write_bytes(content)
                os.replace(part, self._path)
            except OSError:
                self._overwrite(content)

    def _overwrite(self, content: bytes) -> None:
        """Into the place that the file already has: on a full disk there is no other, and that must be told."""
        try:
            with self._path.open("r+b") as file:
                file.write(content)
        except OSError:
            return
