"""Which way is taken: by measurements that count, else by what is expected; and no other use of these measurements."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hpdlf.errors import DataError
from hpdlf.models.cost import CostModel, Observation, ObservationDatabase
from hpdlf.models.cost.lowering_choice import (
    choose,
    choose_all,
    installed,
    is_measured,
    measured_processor,
    measured_ways,
    observed,
)
from hpdlf.models.cost.lowerings import (
    Convolution,
    Linear,
    Processor,
    ProductBatch,
    Shape,
    expected_seconds,
    expected_way,
    ways,
)
from hpdlf.models.cost.lowerings_convolution import CONVOLUTIONS
from hpdlf.models.onnxpp.hints import Hint

DIRECTIONS = tuple(CONVOLUTIONS.directions)
CONV = Convolution(
    samples=8,
    channels=64,
    filters=64,
    groups=1,
    size=(28, 28),
    kernel=(3, 3),
    strides=(1, 1),
    dilations=(1, 1),
    pads=((1, 1), (1, 1)),
    output=(28, 28),
)
GENERAL = Convolution(**{**vars(CONV), "groups": 32})


def timed(way: str, seconds: float, **more: object) -> Observation:
    said: dict = {
        "seconds": seconds,
        "low_s": seconds,
        "high_s": seconds,
        "repeats": 3,
        "cpu": "a processor",
        "machine": "abc",
        "host": "node7",
        "threads": 2,
        "dtype": "float32",
        "run": f"tune {way}",
        "time": "2026-11-26T05:00:00+00:00",
    }
    shape, direction = more.pop("shape", CONV), more.pop("direction", "forward")
    return observed(shape, direction, way, **(said | more))  # type: ignore[arg-type]


@pytest.fixture
def database(tmp_path: Path) -> ObservationDatabase:
    return ObservationDatabase(tmp_path / "observations.duckdb")


USUAL = expected_way(CONV, "forward")
OTHER = next(w for w in ways(CONV, "forward") if w != USUAL)
SLOWEST = max(ways(CONV, "forward"), key=lambda way: expected_seconds(CONV, "forward", way, Processor()) or 0.0)


def test_without_measurements_the_expected_way_is_modelled() -> None:
    for direction in DIRECTIONS:
        on = Processor(threads=2, slower=1.5)
        hint = choose(CONV, direction, {}, on)
        assert (hint.way, hint.seconds, hint.source) == (expected_way(CONV, direction, on), None, "modelled")
        expected_s = expected_seconds(CONV, direction, hint.way, on)
        assert hint.detail == {"shape": CONV.key, "expected_s": pytest.approx(expected_s, rel=0.01)}
    assert not is_measured(CONV, "forward", {})
    gpu = Processor(kind="gpu")
    assert expected_way(CONV, "forward", gpu) == "xla"
    assert choose(CONV, "weight", {}, gpu) == Hint(way="xla", detail={"shape": CONV.key})


def test_what_was_measured_says_how_fast_the_machine_is(database: ObservationDatabase) -> None:
    truth, on = Processor(threads=2, slower=3.0), Processor(threads=2)
    shapes = [replace(CONV, samples=n, channels=c, filters=c) for n in (4, 8) for c in (64, 128, 256)]
    rows = [
        timed(way, expected_seconds(s, "forward", way, truth) or 0.0, shape=s)
        for s in shapes
        for way in ways(s, "forward")
    ]
    database.add(rows)
    measured = measured_ways(database, machine="abc", threads=2)
    assert measured_processor(on, measured).slower == pytest.approx(3.0, rel=0.05)
    few = dict(list(measured.items())[:1])
    assert measured_processor(on, few) is on
    assert measured_processor(Processor(kind="gpu"), measured) == Processor(kind="gpu")
    # Rows that this version cannot read are passed over.
    database.add(
        [timed("of another version", 1.0, run="other"), replace(rows[0], key="pool 3x3 | forward | xla", run="odd")]
    )
    measured = measured_ways(database, machine="abc", threads=2)
    assert measured_processor(on, measured).slower == pytest.approx(3.0, rel=0.05)


def test_a_single_way_needs_no_measurement() -> None:
    assert ways(GENERAL, "weight") == ("split",)
    assert is_measured(GENERAL, "weight", {})
    assert not is_measured(GENERAL, "forward", {})


def test_the_fastest_measured_way_is_taken_with_its_provenance(database: ObservationDatabase) -> None:
    database.add([timed(USUAL, 2.0), timed(OTHER, 1.0)])
    measured = measured_ways(database, machine="abc", threads=2)
    hint = choose(CONV, "forward", measured)
    assert (hint.way, hint.seconds, hint.source) == (OTHER, 1.0, "measured")
    detail = {"shape": CONV.key, "machine": "abc", "threads": 2, "time": "2026-11-26T05:00:00+00:00"}
    assert hint.detail == detail | installed()
    assert set(installed()) == {"hpdlf", "jaxlib"}
    # Another direction was not measured.
    assert choose(CONV, "weight", measured).source == "modelled"


@pytest.mark.parametrize(("samples", "near"), [(4, True), (32, True), (33, False), (2, True), (1, False)])
def test_another_number_of_samples_is_told_by_its_neighbour(
    samples: int, near: bool, database: ObservationDatabase
) -> None:
    database.add([timed(way, 1.0 if way == SLOWEST else 2.0) for way in ways(CONV, "forward")])  # with 8 samples
    measured = measured_ways(database, machine="abc", threads=2)
    conv = replace(CONV, samples=samples)
    way = SLOWEST if near else expected_way(conv, "forward")
    assert expected_way(conv, "forward") != SLOWEST
    hint = choose(conv, "forward", measured)
    assert (hint.way, hint.seconds, hint.source) == (way, None, "modelled")
    told = {name: value for name, value in hint.detail.items() if name != "expected_s"}
    assert told == {"shape": conv.key} | ({"as": CONV.key} if near else {})
    assert choose(conv, "weight", measured).way == expected_way(conv, "weight")
    assert choose(replace(conv, size=(29, 28)), "forward", measured).detail.get("as") is None


@pytest.mark.parametrize(
    ("shape", "direction", "near", "other"),
    [
        (Linear(rows=1024, wide=768, result=768), "weight", {"rows": 512}, {"wide": 769}),
        (ProductBatch(batch=96, rows=128, inner=64, columns=128), "right", {"batch": 24}, {"columns": 127}),
    ],
    ids=["linear", "products"],
)
def test_every_family_tells_its_neighbours(
    shape: Shape, direction: str, near: dict[str, int], other: dict[str, int], database: ObservationDatabase
) -> None:
    usual = expected_way(shape, direction)  # type: ignore[arg-type]
    best = next(w for w in ways(shape, direction) if w != usual)  # type: ignore[arg-type]
    more = {"shape": shape, "direction": direction}
    database.add([timed(usual, 2.0, **more), timed(best, 1.0, **more)])
    measured = measured_ways(database, machine="abc", threads=2)
    assert choose(shape, direction, measured).source == "measured"  # type: ignore[arg-type]
    hint = choose(replace(shape, **near), direction, measured)  # type: ignore[type-var, arg-type]
    assert (hint.way, hint.source, hint.detail["as"]) == (best, "modelled", shape.key)
    assert choose(replace(shape, **other), direction, measured).detail.get("as") is None  # type: ignore[type-var, arg-type]
    # A convolution's numbers are nobody's neighbours, and the other way round.
    assert choose(CONV, "weight", measured).detail.get("as") is None


def test_noise_does_not_change_the_way(database: ObservationDatabase) -> None:
    database.add([timed(USUAL, 1.0), timed(OTHER, 0.98)])
    hint = choose(CONV, "forward", measured_ways(database, machine="abc", threads=2))
    assert (hint.way, hint.seconds, hint.source) == (USUAL, 1.0, "measured")


def test_ways_that_slow_down_others_have_to_be_faster_by_more(database: ObservationDatabase) -> None:
    """XLA's own gradient of weights: what it gains alone it loses in a network."""
    rest = [way for way in ways(CONV, "weight") if way != "xla"]
    best = expected_way(CONV, "weight")
    assert best in rest
    for seconds, taken in ((0.9, best), (0.7, "xla")):
        rows = [timed(way, 1.0 if way == best else 2.0, direction="weight") for way in rest]
        database.add([*rows, timed("xla", seconds, direction="weight")])
        hint = choose(CONV, "weight", measured_ways(database, machine="abc", threads=2))
        assert (hint.way, hint.source) == (taken, "measured")
        assert hint.seconds == (seconds if taken == "xla" else 1.0)  # what was measured, no more


@pytest.mark.parametrize(
    "rows", [[timed(USUAL, 2.0)], [timed(OTHER, 1.0)], [timed(USUAL, 2.0), timed("of another version", 1.0)]]
)
def test_a_measurement_without_its_rival_decides_nothing(
    rows: list[Observation], database: ObservationDatabase
) -> None:
    database.add(rows)
    measured = measured_ways(database, machine="abc", threads=2)
    assert choose(CONV, "forward", measured).source == "modelled"
    assert not is_measured(CONV, "forward", measured)


def test_the_newest_measurement_counts(database: ObservationDatabase) -> None:
    database.add([timed(USUAL, 1.0), timed(OTHER, 2.0)])
    later = {"time": "2026-11-27T05:00:00+00:00", "run": "tune again"}
    database.add([timed(USUAL, 3.0, **later), timed(OTHER, 2.5, **later)])
    assert choose(CONV, "forward", measured_ways(database, machine="abc", threads=2)).seconds == 2.5


def test_other_machines_threads_types_and_versions_do_not_count(database: ObservationDatabase) -> None:
    database.add([timed(way, 1.0 + i) for i, way in enumerate(ways(CONV, "forward"))])
    counted = measured_ways(database, machine="abc", threads=2)
    assert set(counted[CONV.key, "forward"]) == set(ways(CONV, "forward"))
    assert is_measured(CONV, "forward", counted)
    assert measured_ways(database, machine="other", threads=2) == {}
    assert measured_ways(database, machine="abc", threads=1) == {}
    assert measured_ways(database, machine="abc", threads=2, dtype="float64") == {}
    assert measured_ways(database, machine="abc", threads=2, versions=installed() | {"jaxlib": "0.0.1"}) == {}
    assert measured_ways(database, machine="abc", threads=2, versions={"hpdlf": installed()["hpdlf"]}) == {}


def test_convolutions_on_one_core_are_compiled_otherwise(database: ObservationDatabase) -> None:
    """So timings by the newer generator of kernels, as earlier versions took them there, do not count."""
    rows = [timed(way, 1.0 + i, threads=1) for i, way in enumerate(ways(CONV, "forward"))]
    assert {row.conditions["kernels"] for row in rows} == {"older"}
    newer = [replace(row, run=f"newer {row.key}", conditions={"threads": 1, "dtype": "float32"}) for row in rows]
    database.add(newer)
    assert measured_ways(database, machine="abc", threads=1) == {}
    database.add(rows)
    assert is_measured(CONV, "forward", measured_ways(database, machine="abc", threads=1))
    # On two the newer makes them, as it always did.
    database.add([replace(row, conditions={"threads": 2, "dtype": "float32"}, run=f"two {row.key}") for row in rows])
    assert is_measured(CONV, "forward", measured_ways(database, machine="abc", threads=2))
    linear = Linear(rows=8, wide=8, result=8)
    assert timed("xla", 1.0, shape=linear, direction="weight", threads=1).conditions["kernels"] == "newer"


def test_nothing_else_takes_a_way_for_an_operator(
    database: ObservationDatabase, make_observation: Callable[..., Observation]
) -> None:
    work = make_observation(subject="local-core", subject_kind="cpu")
    way = timed(USUAL, 123.0, cpu="local-core")
    database.add([work, way])
    assert database.all() == database.all_for("local-core") == (work,)
    assert database.lowerings("abc") == (way,)
    assert database.runs() == (work.run,)
    assert CostModel.load(database.path) == CostModel.fitted([work]) == CostModel.fitted([work, way])
    assert CostModel.fitted([way]) == CostModel.default()


def test_machines_of_a_device_are_told_by_its_measurements(
    database: ObservationDatabase, make_observation: Callable[..., Observation]
) -> None:
    database.add(
        [
            make_observation(run="a", machine="m1", time="2026-01-01"),
            make_observation(run="b", machine="m2", time="2026-01-02"),
            make_observation(run="c", machine="m1", time="2026-01-03"),
            make_observation(run="d", machine=""),
            make_observation(run="e", machine="m3", subject="other"),
        ]
    )
    assert database.machines("toy") == ("m1", "m2")


@pytest.mark.parametrize("key", ["conv", "conv | forward", "conv | sideways | xla", "a | forward | xla | more"])
def test_a_key_that_names_no_way_is_refused(key: str, make_observation: Callable[..., Observation]) -> None:
    with pytest.raises(DataError, match="names no shape, direction"):
        make_observation(kind="lowering", key=key, components={})


def test_only_a_lowering_may_have_no_components(make_observation: Callable[..., Observation]) -> None:
    with pytest.raises(DataError, match="components"):
        make_observation(components={})
    assert make_observation(kind="lowering", key="conv | forward | xla", components={}).components == {}


def test_everything_with_several_ways_gets_a_hint_for_what_training_computes(small_network) -> None:  # type: ignore[no-untyped-def]
    graph = small_network
    found = choose_all(graph, samples=4, measured={})
    convolutions = [o.name for o in graph.operators if o.op_type == "Conv"]
    assert [name for name in found if graph.operator[name].op_type == "Conv"] == convolutions
    assert set(found[convolutions[0]]) == {"forward", "weight"}
    assert all(set(found[name]) == set(DIRECTIONS) for name in convolutions[1:])
    assert all(str(found[n][d].detail["shape"]).startswith("conv 4x") for n in convolutions for d in found[n])
    (layer,) = (o.name for o in graph.operators if o.op_type in ("Gemm", "MatMul"))
    assert set(found[layer]) == {"forward", "weight"}  # of the input's gradient there is XLA's own way alone
    assert all(str(hint.detail["shape"]).startswith("linear 4x") for hint in found[layer].values())
