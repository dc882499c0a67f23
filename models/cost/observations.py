"""What was measured, in a DuckDB database of the user's: one row per workload and run.

The file is opened only while it is used. DuckDB lets one process write; ranks write trace files, the refining
process reads them.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, get_args

from ...errors import DataError
from .workload import SubjectKind, WorkKind, Workload

if TYPE_CHECKING:
    import duckdb

__all__ = ["DATABASE_VERSION", "Observation", "ObservationDatabase", "default_database"]

DATABASE_VERSION = 1
# The table's columns, in order, which are the fields of an observation.
_TYPES = {
    "run": "VARCHAR",
    "subject": "VARCHAR",
    "subject_kind": "VARCHAR",
    "kind": "VARCHAR",
    "key": "VARCHAR",
    "components": "VARCHAR",
    "n_launches": "BIGINT",
    "payload_bytes": "BIGINT",
    "seconds": "DOUBLE",
    "low_s": "DOUBLE",
    "high_s": "DOUBLE",
    "repeats": "BIGINT",
    "machine": "VARCHAR",
    "versions": "VARCHAR",
    "time": "VARCHAR",
}
_COLUMNS = ", ".join(_TYPES)


@dataclass(frozen=True, kw_only=True)
class Observation:
    """A measured workload: the median `seconds` of `repeats`, nine in ten of which lay between `low_s` and `high_s`.

    subject, subject_kind, kind, key, components, n_launches, payload_bytes   as in :class:`~.workload.Workload`
    run       names the run or measurement that it comes from
    machine   the host; versions   of what computed it ({"jax": "0.6.0"}); time   ISO 8601, UTC
    """

    subject: str
    subject_kind: SubjectKind
    kind: WorkKind
    key: str
    components: Mapping[str, float]
    n_launches: int = 0
    payload_bytes: int = 0
    seconds: float
    low_s: float
    high_s: float
    repeats: int = 1
    run: str
    machine: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    time: str = ""

    def __post_init__(self) -> None:
        problems = []
        times = (self.low_s, self.seconds, self.high_s)
        if not all(math.isfinite(t) and t > 0 for t in times) or list(times) != sorted(times):
            problems.append(f"a time of {self.seconds} s between {self.low_s} and {self.high_s} s")
        if any(not math.isfinite(v) or v < 0 for v in self.components.values()) or not any(self.components.values()):
            problems.append(f"components {dict(self.components)}")
        if self.repeats < 1:
            problems.append(f"{self.repeats} repeats")
        if self.kind not in get_args(WorkKind):
            problems.append(f"kind '{self.kind}'")
        if self.subject_kind not in get_args(SubjectKind):
            problems.append(f"kind of subject '{self.subject_kind}'")
        if not self.subject or not self.run or not self.key:
            problems.append("no name of what was measured, of its key or of the run")
        if problems:
            raise DataError(
                f"observation '{self.key}' of '{self.subject}' in run '{self.run}' has {', '.join(problems)}: "
                "times are positive and finite, low <= median <= high. Measure it again."
            )

    @classmethod
    def of(
        cls,
        workload: Workload,
        samples_s: Sequence[float],
        *,
        run: str,
        machine: str = "",
        versions: Mapping[str, str] | None = None,
        time: str = "",
    ) -> Observation:
        """What `samples_s` (one or more repeats, warm-up left out) say about `workload`.

        Raises:
            DataError: no samples, or times that cannot be.
        """
        if not samples_s:
            raise DataError(
                f"observation '{workload.key}' of '{workload.subject}' in run '{run}': no repeats were measured."
            )
        ordered = sorted(samples_s)
        # With few repeats the extremes stand for the 5th and 95th percentile.
        edge = int(0.05 * (len(ordered) - 1))
        return cls(
            subject=workload.subject,
            subject_kind=workload.subject_kind,
            kind=workload.kind,
            key=workload.key,
            components=dict(workload.components),
            n_launches=workload.n_launches,
            payload_bytes=workload.payload_bytes,
            seconds=median(ordered),
            low_s=ordered[edge],
            high_s=ordered[-1 - edge],
            repeats=len(ordered),
            run=run,
            machine=machine,
            versions=dict(versions or {}),
            time=time,
        )


def default_database() -> Path:
    """$HPDLF_DATABASE, or hpdlf/observations.duckdb in the user's data folder (~/.local/share)."""
    chosen = os.environ.get("HPDLF_DATABASE")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path("~/.local/share").expanduser()) / "hpdlf" / "observations.duckdb"


@dataclass(frozen=True)
class ObservationDatabase:
    """The observations in the file `path`, which is made by the first :meth:`add`; a file that is not there holds none.

    Every method raises DataError where the file is locked by another process, damaged, or from a newer version.
    """

    path: Path = field(default_factory=default_database)

    def add(self, observations: Iterable[Observation]) -> int:
        """Add observations, in place of what the database holds of the same runs; all of them or none. Returns their
        number.
        """
        rows = [_row(o) for o in observations]
        if not rows:
            return 0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"{self.path}: the folder cannot be made: {error.strerror}. Choose another by $HPDLF_DATABASE."
            ) from None
        with self._opened(read_only=False) as connection:
            connection.execute("BEGIN")
            connection.execute("CREATE TABLE IF NOT EXISTS hpdlf_format (version BIGINT NOT NULL)")
            if not connection.execute("SELECT version FROM hpdlf_format").fetchall():
                connection.execute("INSERT INTO hpdlf_format VALUES (?)", [DATABASE_VERSION])
            declared = ", ".join(f"{name} {kind} NOT NULL" for name, kind in _TYPES.items())
            connection.execute(f"CREATE TABLE IF NOT EXISTS observation ({declared})")
            connection.executemany(
                "DELETE FROM observation WHERE run = ?", [[run] for run in dict.fromkeys(r[0] for r in rows)]
            )
            marks = ", ".join("?" * len(rows[0]))
            connection.executemany(f"INSERT INTO observation ({_COLUMNS}) VALUES ({marks})", rows)
            connection.execute("COMMIT")
        return len(rows)

    def all(self) -> tuple[Observation, ...]:
        """Every observation, in the order of time, run and key."""
        return self._select("", [])

    def all_for(self, subject: str) -> tuple[Observation, ...]:
        """The observations of one device, link or host."""
        return self._select("WHERE subject = ?", [subject])

    def runs(self) -> tuple[str, ...]:
        """The runs that the observations come from, the oldest first."""
        return tuple(dict.fromkeys(o.run for o in self.all()))

    def _select(self, where: str, values: list[str]) -> tuple[Observation, ...]:
        if not self.path.exists():
            return ()
        with self._opened(read_only=True) as connection:
            order = "ORDER BY time, run, subject, key, seconds"
            rows = connection.execute(f"SELECT {_COLUMNS} FROM observation {where} {order}", values).fetchall()
        return tuple(self._observation(row) for row in rows)

    def _observation(self, row: tuple[Any, ...]) -> Observation:
        values = dict(zip(_TYPES, row, strict=True))
        try:
            values["components"] = json.loads(values["components"])
            values["versions"] = json.loads(values["versions"])
        except ValueError as error:
            raise DataError(f"{self.path}: run '{values['run']}' holds a damaged row ({error}). {_MEND}") from None
        return Observation(**values)

    @contextmanager
    def _opened(self, *, read_only: bool) -> Iterator[duckdb.DuckDBPyConnection]:
        import duckdb

        existed = self.path.exists()
        connection = None
        try:
            connection = duckdb.connect(str(self.path), read_only=read_only)
            if existed:
                self._check_version(connection)
            yield connection
        except duckdb.Error as error:
            raise DataError(self._explain(str(error))) from None
        finally:
            if connection is not None:
                connection.close()

    def _check_version(self, connection: duckdb.DuckDBPyConnection) -> None:
        tables = {name for (name,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
        if not tables:
            return
        if "hpdlf_format" not in tables:
            raise DataError(
                f"{self.path}: is a database, but not one of hpdlf's. Choose another file by $HPDLF_DATABASE."
            )
        row = connection.execute("SELECT max(version) FROM hpdlf_format").fetchone()
        if row is not None and row[0] is not None and row[0] > DATABASE_VERSION:
            raise DataError(
                f"{self.path}: was written by a newer hpdlf (format {row[0]}, this one reads up to "
                f"{DATABASE_VERSION}). Update hpdlf, or choose another file by $HPDLF_DATABASE."
            )

    def _explain(self, message: str) -> str:
        first = message.splitlines()[0] if message else "unknown error"
        if "lock" in message.lower():
            return (
                f"{self.path}: another process has the database of observations open, and only one may write. "
                f"Wait for it to end, or choose another file by $HPDLF_DATABASE. ({first})"
            )
        if "newer version" in message or "version number" in message:
            mend = "Update it: `pip install -U duckdb`."
            return f"{self.path}: was written by another version of DuckDB ({first}). {mend}"
        return f"{self.path}: the database of observations cannot be used ({first}). {_MEND}"


_MEND = "Move it away and refine from your runs again, or choose another file by $HPDLF_DATABASE."


def _row(observation: Observation) -> list[Any]:
    values = {f.name: getattr(observation, f.name) for f in fields(observation)}
    for name in ("components", "versions"):
        values[name] = json.dumps(dict(sorted(values[name].items())))
    return [values[name] for name in _TYPES]
