"""The database keeps what it is given, and nothing is lost where something is wrong."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest

from hpdlf.errors import DataError
from hpdlf.models.cost import Observation, ObservationDatabase, default_database
from hpdlf.models.cost.database import DATABASE_VERSION
from hpdlf.models.cost.operation import Operation

Make = Callable[..., Observation]


@pytest.fixture
def database(tmp_path: Path) -> ObservationDatabase:
    return ObservationDatabase(tmp_path / "deep" / "observations.duckdb")


def test_a_file_that_is_not_there_holds_nothing(database: ObservationDatabase) -> None:
    assert database.all() == ()
    assert not database.path.exists()


def test_what_goes_in_comes_out(database: ObservationDatabase, make_observation: Make) -> None:
    operations = (
        Operation(
            family="conv",
            op="conv",
            dims=(8, 3, 16, 3, 3, 32, 32, 1, 1),
            flops=7.1e6,
            read_bytes=1.0,
            write_bytes=2.5,
            phase="backward_weight",
            precision="bfloat16",
            item_bytes=2,
        ),
        Operation(
            family="elementwise",
            op="relu",
            dims=(8, 64),
            flops=512.0,
            read_bytes=0.0,
            write_bytes=9.0,
            own_kernel=False,
            count=7,
        ),
    )
    about = {
        "plan": "f" * 64,
        "host": "node7",
        "machine": "abc",
        "conditions": {"threads": 1, "governor": "performance"},
    }
    rows = [
        make_observation(key="a", operations=operations, **about),
        make_observation(2.0, key="b", subject="other"),
    ]
    assert database.add(rows) == 2
    assert sorted(database.all(), key=lambda o: o.key) == rows
    assert database.all_for("other") == (rows[1],)


def test_the_same_run_again_replaces_it_and_leaves_others(
    database: ObservationDatabase, make_observation: Make
) -> None:
    database.add([make_observation(1.0, run="one", key="a"), make_observation(1.0, run="one", key="b")])
    database.add([make_observation(1.0, run="two")])
    database.add([make_observation(3.0, run="one", key="a")])
    assert sorted((o.run, o.key, o.seconds) for o in database.all()) == [("one", "a", 3.0), ("two", "k", 1.0)]
    assert database.runs() == ("one", "two")


def test_a_file_that_is_no_database_is_refused_and_left_alone(
    database: ObservationDatabase, make_observation: Make
) -> None:
    database.path.parent.mkdir()
    database.path.write_bytes(b"no database at all" * 1000)
    before = database.path.read_bytes()
    for use in (database.all, lambda: database.add([make_observation()])):
        with pytest.raises(DataError, match=r"observations\.duckdb.*HPDLF_DATABASE"):
            use()
    assert database.path.read_bytes() == before


def test_a_database_cut_short_is_refused_and_left_alone(database: ObservationDatabase, make_observation: Make) -> None:
    database.add([make_observation(key=str(i)) for i in range(50)])
    short = database.path.read_bytes()[: database.path.stat().st_size // 3]
    database.path.write_bytes(short)
    for use in (database.all, lambda: database.add([make_observation()])):
        with pytest.raises(DataError, match=r"HPDLF_DATABASE"):
            use()
    assert database.path.read_bytes() == short


def test_a_row_that_says_the_impossible_names_the_file(database: ObservationDatabase, make_observation: Make) -> None:
    import duckdb

    for column, value, says in [
        ("seconds", "-1", "-1.0 s"),
        ("operations", "'[[1,2]]'", "damaged"),
        ("components", "'{'", "damaged"),
    ]:
        database.add([make_observation()])
        with duckdb.connect(str(database.path)) as connection:
            connection.execute(f"UPDATE observation SET {column} = {value}")
        with pytest.raises(DataError, match=rf"observations\.duckdb.*{says}.*HPDLF_DATABASE"):
            database.all()


FIRST_FORMAT = """
CREATE TABLE hpdlf_format (version BIGINT NOT NULL);
INSERT INTO hpdlf_format VALUES (1);
CREATE TABLE observation (run VARCHAR NOT NULL, subject VARCHAR NOT NULL, subject_kind VARCHAR NOT NULL,
    kind VARCHAR NOT NULL, key VARCHAR NOT NULL, components VARCHAR NOT NULL, n_launches BIGINT NOT NULL,
    payload_bytes BIGINT NOT NULL, seconds DOUBLE NOT NULL, low_s DOUBLE NOT NULL, high_s DOUBLE NOT NULL,
    repeats BIGINT NOT NULL, machine VARCHAR NOT NULL, versions VARCHAR NOT NULL, time VARCHAR NOT NULL);
INSERT INTO observation VALUES
    ('old', 'toy', 'gpu', 'segment', 'a', '{"conv": 0.5, "dispatch": 1e-05}', 1, 0, 1.0, 0.9, 1.1, 5, 'host',
     '{"jax": "0.6"}', '2024-12-01T00:00:00Z'),
    ('old', 'toy', 'gpu', 'segment', 'b', '{"conv": 0.5}', 1, 0, 2.0, 1.9, 2.1, 5, 'host', '{}', '2024-12-01T00:00:00Z');
"""


def test_a_database_of_the_first_format_is_read_and_brought_up_to_date(
    database: ObservationDatabase, make_observation: Make
) -> None:
    import duckdb

    database.path.parent.mkdir()
    with duckdb.connect(str(database.path)) as connection:
        connection.execute(FIRST_FORMAT)
    bytes_before = database.path.read_bytes()
    before = database.all()
    assert [(o.key, o.seconds, o.operations, o.plan, o.machine) for o in before] == [
        ("a", 1.0, (), "", "host"),
        ("b", 2.0, (), "", "host"),
    ]
    assert database.path.read_bytes() == bytes_before
    new = make_observation(3.0, run="new", time="2025-01-01T00:00:00Z", plan="abc")
    database.add([new])
    assert database.all() == (*before, new)
    with duckdb.connect(str(database.path), read_only=True) as connection:
        assert connection.execute("SELECT version FROM hpdlf_format").fetchall() == [(DATABASE_VERSION,)]


def test_a_newer_version_and_a_foreign_database_are_refused(
    database: ObservationDatabase, make_observation: Make
) -> None:
    import duckdb

    database.add([make_observation()])
    with duckdb.connect(str(database.path)) as connection:
        connection.execute("UPDATE hpdlf_format SET version = ?", [DATABASE_VERSION + 1])
    with pytest.raises(DataError, match="newer hpdlf"):
        database.all()
    with pytest.raises(DataError, match="newer hpdlf"):
        database.add([make_observation()])
    foreign = ObservationDatabase(database.path.with_name("foreign.duckdb"))
    with duckdb.connect(str(foreign.path)) as connection:
        connection.execute("CREATE TABLE mine (a INTEGER)")
    with pytest.raises(DataError, match="not one of hpdlf's"):
        foreign.add([make_observation()])


def _hold(path: str, ready: object, done: object) -> None:
    import duckdb

    with duckdb.connect(path):
        ready.set()  # type: ignore[attr-defined]
        done.wait(20)  # type: ignore[attr-defined]


def test_a_locked_database_says_who_to_wait_for(database: ObservationDatabase, make_observation: Make) -> None:
    database.add([make_observation()])
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(str(database.path), ready, done))
    holder.start()
    try:
        assert ready.wait(20)
        with pytest.raises(DataError, match="another process"):
            database.add([make_observation()])
    finally:
        done.set()
        holder.join()
    assert len(database.all()) == 1


def _die_while_writing(path: str, ready: object) -> None:
    import time

    import duckdb

    connection = duckdb.connect(path)
    connection.execute("BEGIN")
    connection.execute("DELETE FROM observation")
    ready.set()  # type: ignore[attr-defined]
    time.sleep(60)


def test_a_writer_that_is_killed_leaves_everything_as_it_was(
    database: ObservationDatabase, make_observation: Make
) -> None:
    database.add([make_observation(key="a"), make_observation(key="b")])
    before = database.all()
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    writer = context.Process(target=_die_while_writing, args=(str(database.path), ready))
    writer.start()
    assert ready.wait(20)
    writer.kill()
    writer.join()
    assert database.all() == before


def test_the_default_place_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HPDLF_DATABASE", str(tmp_path / "mine.duckdb"))
    assert default_database() == tmp_path / "mine.duckdb"
    monkeypatch.delenv("HPDLF_DATABASE")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_database() == tmp_path / "hpdlf" / "observations.duckdb"
