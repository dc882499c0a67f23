"""The user's observations, in a DuckDB database: one row per workload and run.

The file is opened only while it is used. DuckDB lets one process write; ranks write trace files, the refining process
reads them. A database of an earlier format is read as it is and brought up to date by the first write.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import DataError
from .observations import Observation
from .operation import Operation

if TYPE_CHECKING:
    import duckdb

__all__ = ["DATABASE_VERSION", "ObservationDatabase", "default_database"]

DATABASE_VERSION = 3
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
    "operations": "VARCHAR",
    "plan": "VARCHAR",
    "host": "VARCHAR",
    "conditions": "VARCHAR",
}
# What came with a later format, and what a row of an earlier one says there. Format 3 brought rows of the kind "lowering".
_ADDED: Mapping[int, Mapping[str, str]] = {2: {"operations": "[]", "plan": "", "host": "", "conditions": "{}"}}
# Fields of a packed operation, in order.
_FIELDS = (
    "family",
    "op",
    "dims",
    "flops",
    "read_bytes",
    "write_bytes",
    "phase",
    "precision",
    "item_bytes",
    "own_kernel",
    "count",
)
_JSON = ("components", "versions", "operations", "conditions")
_COLUMNS = ", ".join(_TYPES)
_MEND = "Move it away and refine from your runs again, or choose another file by $HPDLF_DATABASE."


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
        with self._opened(read_only=False) as (connection, version):
            connection.execute("BEGIN")
            _bring_up_to_date(connection, version)
            connection.executemany(
                "DELETE FROM observation WHERE run = ?", [[run] for run in dict.fromkeys(r[0] for r in rows)]
            )
            marks = ", ".join("?" * len(rows[0]))
            connection.executemany(f"INSERT INTO observation ({_COLUMNS}) VALUES ({marks})", rows)
            connection.execute("COMMIT")
        return len(rows)

    def all(self) -> tuple[Observation, ...]:
        """Every observation of work that programs do, in the order of time, run and key; timed lowerings are none."""
        return self._select("WHERE kind <> 'lowering'", [])

    def all_for(self, subject: str) -> tuple[Observation, ...]:
        """The observations of one device, link or host."""
        return self._select("WHERE kind <> 'lowering' AND subject = ?", [subject])

    def lowerings(self, machine: str) -> tuple[Observation, ...]:
        """The timed ways to compute operators on a machine (its fingerprint), the oldest first."""
        return self._select("WHERE kind = 'lowering' AND machine = ?", [machine])

    def all_lowerings(self) -> tuple[Observation, ...]:
        """The timed ways to compute operators on any machine, the oldest first."""
        return self._select("WHERE kind = 'lowering'", [])

    def machines(self, subject: str) -> tuple[str, ...]:
        """Fingerprints of the machines that a device was measured on, the one that was measured last first."""
        return tuple(dict.fromkeys(o.machine for o in reversed(self.all_for(subject)) if o.machine))

    def runs(self) -> tuple[str, ...]:
        """The runs that the observations come from, the oldest first."""
        return tuple(dict.fromkeys(o.run for o in self.all()))

    def _select(self, where: str, values: list[str]) -> tuple[Observation, ...]:
        if not self.path.exists():
            return ()
        with self._opened(read_only=True) as (connection, version):
            if version == 0:
                return ()
            absent = _absent(version)
            columns = ", ".join(f"'{absent[c]}' AS {c}" if c in absent else c for c in _TYPES)
            order = "ORDER BY time, run, subject, key, seconds"
            rows = connection.execute(f"SELECT {columns} FROM observation {where} {order}", values).fetchall()
        unpacked: dict[str, tuple[Operation, ...]] = {}
        return tuple(self._observation(row, unpacked) for row in rows)

    def _observation(self, row: tuple[Any, ...], unpacked: dict[str, tuple[Operation, ...]]) -> Observation:
        values = dict(zip(_TYPES, row, strict=True))
        packed = values["operations"]
        try:
            if packed not in unpacked:
                unpacked[packed] = _unpack(packed)
            values |= {name: json.loads(values[name]) for name in _JSON if name != "operations"}
            return Observation(**values | {"operations": unpacked[packed]})
        except DataError as error:
            raise DataError(f"{self.path}: {error} {_MEND}") from None
        except (ValueError, TypeError, AttributeError) as error:
            raise DataError(f"{self.path}: run '{values['run']}' holds a damaged row ({error}). {_MEND}") from None

    @contextmanager
    def _opened(self, *, read_only: bool) -> Iterator[tuple[duckdb.DuckDBPyConnection, int]]:
        """The connection and the file's version, 0 for one without tables."""
        import duckdb

        existed = self.path.exists()
        connection = None
        try:
            connection = duckdb.connect(str(self.path), read_only=read_only)
            yield connection, self._version(connection) if existed else 0
        except duckdb.Error as error:
            raise DataError(self._explain(str(error))) from None
        finally:
            if connection is not None:
                connection.close()

    def _version(self, connection: duckdb.DuckDBPyConnection) -> int:
        tables = {name for (name,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
        if not tables:
            return 0
        if "hpdlf_format" not in tables:
            raise DataError(
                f"{self.path}: is a database, but not one of hpdlf's. Choose another file by $HPDLF_DATABASE."
            )
        row = connection.execute("SELECT max(version) FROM hpdlf_format").fetchone()
        version = int(row[0]) if row is not None and row[0] is not None else 0
        if version > DATABASE_VERSION:
            raise DataError(
                f"{self.path}: was written by a newer hpdlf (format {version}, this one reads up to "
                f"{DATABASE_VERSION}). Update hpdlf, or choose another file by $HPDLF_DATABASE."
            )
        return version

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


def _absent(version: int) -> dict[str, str]:
    """Columns that a file of this version lacks, and what stands for them."""
    return {name: value for added, columns in _ADDED.items() if added > version for name, value in columns.items()}


def _bring_up_to_date(connection: duckdb.DuckDBPyConnection, version: int) -> None:
    """Make the tables, or give those of an earlier version what they lack; inside the caller's transaction."""
    if version == 0:
        declared = ", ".join(f"{name} {kind} NOT NULL" for name, kind in _TYPES.items())
        connection.execute("CREATE TABLE IF NOT EXISTS hpdlf_format (version BIGINT NOT NULL)")
        connection.execute("INSERT INTO hpdlf_format VALUES (?)", [DATABASE_VERSION])
        connection.execute(f"CREATE TABLE IF NOT EXISTS observation ({declared})")
    elif version < DATABASE_VERSION:
        for name, value in _absent(version).items():
            connection.execute(f"ALTER TABLE observation ADD COLUMN {name} {_TYPES[name]} DEFAULT '{value}'")
        connection.execute("UPDATE hpdlf_format SET version = ?", [DATABASE_VERSION])


def _row(observation: Observation) -> list[Any]:
    values = {name: getattr(observation, name) for name in _TYPES}
    values["operations"] = _pack(observation.operations)
    for name in ("components", "versions", "conditions"):
        values[name] = json.dumps(dict(sorted(values[name].items())))
    return [values[name] for name in _TYPES]


def _pack(operations: Iterable[Operation]) -> str:
    """One array per operation, its fields in the order of :data:`_FIELDS`."""
    return json.dumps([[getattr(o, name) for name in _FIELDS] for o in operations], separators=(",", ":"))


def _unpack(packed: str) -> tuple[Operation, ...]:
    found = []
    for row in json.loads(packed):
        values = dict(zip(_FIELDS, row, strict=True))
        found.append(Operation(**values | {"dims": tuple(map(int, values["dims"]))}))
    return tuple(found)
