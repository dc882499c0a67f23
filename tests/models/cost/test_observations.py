import multiprocessing
from pathlib import Path

import pytest

from hpdlf.errors import DataError
from hpdlf.models.cost import Observation, ObservationDatabase, default_database
from hpdlf.models.cost.observations import DATABASE_VERSION


def observation(
    seconds: float = 1.0, *, run: str = "one", key: str = "k", subject: str = "toy", **more: object
) -> Observation:
    fields: dict = {
        "subject": subject,
        "subject_kind": "gpu",
        "kind": "segment",
        "key": key,
        "components": {"conv": 0.5, "dispatch": 1e-5},
        "seconds": seconds,
        "low_s": seconds * 0.9,
        "high_s": seconds * 1.1,
        "repeats": 5,
        "run": run,
        "versions": {"jax": "0.6"},
        "time": "2024-12-01T00:00:00Z",
    }
    return Observation(**(fields | more))


@pytest.fixture
def database(tmp_path: Path) -> ObservationDatabase:
    return ObservationDatabase(tmp_path / "deep" / "observations.duckdb")


def test_a_file_that_is_not_there_holds_nothing(database: ObservationDatabase) -> None:
    assert database.all() == ()
    assert not database.path.exists()


def test_what_goes_in_comes_out(database: ObservationDatabase) -> None:
    rows = [observation(key="a"), observation(2.0, key="b", subject="other")]
    assert database.add(rows) == 2
    assert set(map(str, database.all())) == set(map(str, rows))
    assert database.all_for("other") == (rows[1],)


def test_the_same_run_again_replaces_it_and_leaves_others(database: ObservationDatabase) -> None:
    database.add([observation(1.0, run="one", key="a"), observation(1.0, run="one", key="b")])
    database.add([observation(1.0, run="two")])
    database.add([observation(3.0, run="one", key="a")])
    assert sorted((o.run, o.key, o.seconds) for o in database.all()) == [("one", "a", 3.0), ("two", "k", 1.0)]
    assert database.runs() == ("one", "two")


def test_a_file_that_is_no_database_is_refused_and_left_alone(database: ObservationDatabase) -> None:
    database.path.parent.mkdir()
    database.path.write_bytes(b"no database at all" * 1000)
    before = database.path.read_bytes()
    for use in (database.all, lambda: database.add([observation()])):
        with pytest.raises(DataError, match=r"observations\.duckdb.*HPDLF_DATABASE"):
            use()
    assert database.path.read_bytes() == before


def test_a_database_cut_short_is_refused(database: ObservationDatabase) -> None:
    database.add([observation(key=str(i)) for i in range(50)])
    whole = database.path.read_bytes()
    database.path.write_bytes(whole[: len(whole) // 3])
    with pytest.raises(DataError, match=r"HPDLF_DATABASE"):
        database.all()


def test_a_newer_version_and_a_foreign_database_are_refused(database: ObservationDatabase) -> None:
    import duckdb

    database.add([observation()])
    with duckdb.connect(str(database.path)) as connection:
        connection.execute("UPDATE hpdlf_format SET version = ?", [DATABASE_VERSION + 1])
    with pytest.raises(DataError, match="newer hpdlf"):
        database.all()
    with pytest.raises(DataError, match="newer hpdlf"):
        database.add([observation()])
    foreign = ObservationDatabase(database.path.with_name("foreign.duckdb"))
    with duckdb.connect(str(foreign.path)) as connection:
        connection.execute("CREATE TABLE mine (a INTEGER)")
    with pytest.raises(DataError, match="not one of hpdlf's"):
        foreign.add([observation()])


def _hold(path: str, ready: object, done: object) -> None:
    import duckdb

    with duckdb.connect(path):
        ready.set()  # type: ignore[attr-defined]
        done.wait(20)  # type: ignore[attr-defined]


def test_a_locked_database_says_who_to_wait_for(database: ObservationDatabase) -> None:
    database.add([observation()])
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(str(database.path), ready, done))
    holder.start()
    try:
        assert ready.wait(20)
        with pytest.raises(DataError, match="another process"):
            database.add([observation()])
    finally:
        done.set()
        holder.join()
    assert len(database.all()) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"seconds": 0.0, "low_s": 0.0},
        {"seconds": float("nan")},
        {"seconds": -1.0},
        {"low_s": 2.0},
        {"high_s": 0.5},
        {"components": {}},
        {"components": {"conv": -1.0}},
        {"repeats": 0},
        {"kind": "operatr"},
        {"subject_kind": "tpu!"},
        {"run": ""},
    ],
)
def test_impossible_observations_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(DataError, match="observation"):
        observation(**wrong)  # type: ignore[arg-type]


def test_the_default_place_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HPDLF_DATABASE", str(tmp_path / "mine.duckdb"))
    assert default_database() == tmp_path / "mine.duckdb"
    monkeypatch.delenv("HPDLF_DATABASE")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_database() == tmp_path / "hpdlf" / "observations.duckdb"
