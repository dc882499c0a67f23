"""Which way each direction of what has several is computed: the fastest that was measured on this machine, else the one that
is expected to be.

Measurements are observations of the kind "lowering" in the user's database, one for each shape, direction and way. They
count where machine, threads, element type, and versions of what compiles and computes are the same. No other part of the
cost model reads them: a way is timed alone, which is no operator's time in a network.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from ...errors import ModelError
from ..onnxpp.graph import Graph, item_bytes
from ..onnxpp.hints import Direction, Hint
from ..onnxpp.problems import did_you_mean
from .database import ObservationDatabase
from .lowering_times import ONE_CORE, Processor, slowness
from .lowerings import Shape, among_others, expected_seconds, expected_way, family_of, shape_named, ways
from .lowerings_convolution import CONVOLUTIONS
from .lowerings_family import older_kernels
from .lowerings_graph import computations, directions
from .observations import Observation, lowering_key, lowering_of

__all__ = [
    "MeasuredWays",
    "check_lowering",
    "choose",
    "choose_all",
    "installed",
    "is_measured",
    "measured_processor",
    "measured_ways",
    "observed",
]

MeasuredWays = Mapping[tuple[str, str], Mapping[str, Observation]]
"""By (key of the shape, direction), then by way."""

# What the time of a way depends on besides the machine: ways are ours, and XLA compiles them.
DECIDE = ("hpdlf", "jaxlib")
# Less is noise: the expected way stays unless another takes at most this share of its time.
WORTH = 0.97
# Of the samples (or rows, or products) that a shape was measured with: beyond, the same way need not be the best.
FAR = 4.0


@cache
def installed() -> Mapping[str, str]:
    """The versions that measurements depend on, of what is installed here; what is not is left out."""
    found = {}
    for package in DECIDE:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def observed(
    shape: Shape,
    direction: Direction,
    way: str,
    *,
    seconds: float,
    low_s: float,
    high_s: float,
    repeats: int,
    cpu: str,
    machine: str,
    host: str,
    threads: int,
    dtype: str,
    run: str,
    time: str,
) -> Observation:
    """A timed way as an observation: the median of `repeats` calls on `threads` threads of a machine; `cpu` names its
    processor, `machine` is its fingerprint.
    """
    return Observation(
        subject=cpu or machine,
        subject_kind="cpu",
        kind="lowering",
        key=lowering_key(shape.key, direction, way),
        components={},
        seconds=seconds,
        low_s=low_s,
        high_s=high_s,
        repeats=repeats,
        run=run,
        machine=machine,
        host=host,
        versions=dict(installed()),
        conditions={"threads": threads, "dtype": dtype, "kernels": _kernels(shape.key, threads)},
        time=time,
    )


def measured_ways(
    database: ObservationDatabase,
    *,
    machine: str,
    threads: int,
    dtype: str = "float32",
    versions: Mapping[str, str] | None = None,
) -> MeasuredWays:
    """What `database` holds of ways on this machine (its fingerprint) with so many threads; of what was measured twice,
    the newest.

    versions   of what computes, those installed unless given; others' measurements do not count

    Raises:
        DataError: the database is locked, damaged or from a newer version.
    """
    wanted = dict(installed() if versions is None else versions)
    found: dict[tuple[str, str], dict[str, Observation]] = {}
    if set(wanted) != set(DECIDE):
        return found  # nobody can tell whether they are the same
    for o in database.lowerings(machine):  # the oldest first
        same = {name: o.versions.get(name) for name in DECIDE} == wanted
        shape, direction, way = lowering_of(o.key)
        # Timings that do not say whose kernels they had are from when all were the newer generator's.
        conditions = (o.conditions.get("threads"), o.conditions.get("dtype"), o.conditions.get("kernels", "newer"))
        if same and conditions == (threads, dtype, _kernels(shape, threads)):
            found.setdefault((shape, direction), {})[way] = o
    return found


def _kernels(shape: str, threads: int) -> str:
    """Which of XLA's generators makes the kernels of a shape (its key)."""
    return "older" if older_kernels(shape.startswith(f"{CONVOLUTIONS.name} "), threads) else "newer"


def is_measured(shape: Shape, direction: Direction, measured: MeasuredWays) -> bool:
    """Whether there is nothing left to measure: every way was timed, or there is but one."""
    able = ways(shape, direction)
    return len(able) < 2 or set(able) <= set(measured.get((shape.key, direction), {}))


def measured_processor(on: Processor, measured: MeasuredWays, *, dtype: str = "float32") -> Processor:
    """`on`, its arithmetic as fast as the ways say that were measured there with its threads and for elements of `dtype`; as it
    is where few were.
    """
    if on.kind != "cpu" or item_bytes(dtype) < 4:
        return on
    found = slowness(_rows(measured), threads=on.threads, item_bytes=item_bytes(dtype))
    return on if found is None else replace(on, slower=found)


def _rows(measured: MeasuredWays) -> Iterator[tuple[Shape, Direction, str, float]]:
    for (key, side), timed in measured.items():
        try:
            shape = shape_named(key)
        except ValueError:  # of another version
            continue
        direction: Direction = side  # type: ignore[assignment]
        able = ways(shape, direction)
        yield from ((shape, direction, way, o.seconds) for way, o in timed.items() if way in able and o.repeats > 1)


def choose(
    shape: Shape,
    direction: Direction,
    measured: MeasuredWays,
    on: Processor = ONE_CORE,
    *,
    dtype: str = "float32",
) -> Hint:
    """The way to compute a direction of `shape` on a processor, and where the choice comes from.

    `dtype` is that of its elements, and of those that were `measured`, which was on this processor.

    The expected way stays unless another was measured to be faster by more than noise. Where the shape was measured with
    another number of samples (or rows, or products) alone, at most :data:`FAR` times as many or few, the way is the one that
    is best there, and modelled.
    """
    usual = expected_way(shape, direction, on, item_bytes=item_bytes(dtype))
    best = _best(shape, direction, measured.get((shape.key, direction), {}), usual)
    if best is None:
        near = _nearest(shape, direction, measured)
        best = _best(shape, direction, measured[near, direction], usual) if near else None
        detail: dict[str, str | int | float] = {"shape": shape.key}
        if best is not None:
            detail["as"] = near
        expected_s = expected_seconds(shape, direction, best or usual, on, item_bytes=item_bytes(dtype))
        if expected_s is not None:
            detail["expected_s"] = float(f"{expected_s:.3g}")
        return Hint(way=best or usual, detail=detail)
    o = measured[shape.key, direction][best]
    threads = o.conditions["threads"]
    return Hint(
        way=best,
        seconds=o.seconds,
        source="measured",
        detail={"shape": shape.key, "machine": o.machine, "threads": threads, "time": o.time, **o.versions},
    )


def _best(shape: Shape, direction: Direction, timed: Mapping[str, Observation], usual: str) -> str | None:
    """The way to take by these times; None where they do not tell."""
    seconds = {
        way: timed[way].seconds * among_others(shape, direction, way) for way in ways(shape, direction) if way in timed
    }
    if usual not in seconds or len(seconds) < 2:
        return None
    best = min(seconds, key=lambda way: seconds[way])
    return best if seconds[best] <= WORTH * seconds[usual] else usual


def _nearest(shape: Shape, direction: Direction, measured: MeasuredWays) -> str:
    """The key under which the same shape was measured with the nearest count; "" where it was with none near."""
    name = f"{family_of(shape).name} "
    rest = shape.key.removeprefix(f"{name}{shape.count}x")
    near = []
    for key, side in measured:
        count, _, other = key.removeprefix(name).partition("x")
        if side == direction and other == rest and count.isdecimal() and int(count):
            near.append((abs(math.log(int(count) / shape.count)), key))
    distance, key = min(near, default=(math.inf, ""))
    return key if distance <= math.log(FAR) else ""


def choose_all(
    graph: Graph, *, samples: int, measured: MeasuredWays, on: Processor = ONE_CORE, dtype: str = "float32"
) -> Mapping[str, Mapping[Direction, Hint]]:
    """The choice for every direction that a step of `samples` samples computes and that has several ways, by the operator's
    name.
    """
    shapes = computations(graph, samples=samples)
    chosen: dict[tuple[Shape, Direction], Hint] = {}
    found: dict[str, Mapping[Direction, Hint]] = {}
    for name, wanted in directions(graph, shapes).items():
        shape = shapes[name]
        several = [direction for direction in wanted if len(ways(shape, direction)) > 1]
        for direction in several:
            if (shape, direction) not in chosen:
                chosen[shape, direction] = choose(shape, direction, measured, on, dtype=dtype)
        if several:
            found[name] = {direction: chosen[shape, direction] for direction in several}
    return found


def check_lowering(graph: Graph, *, samples: int) -> None:
    """That every operator of `graph` can be computed as its `lowering` says, for `samples` samples at once.

    Raises:
        ModelError: one cannot: another version wrote the file, or somebody changed it.
    """
    shapes = computations(graph, samples=samples)
    for operator in graph.operators:
        for direction, way in operator.lowering.items():
            shape = shapes.get(operator.name)
            able = ways(shape, direction) if shape is not None else ()  # type: ignore[arg-type]
            if way not in able:
                what = f"cannot compute {shape.key}" if shape is not None else f"is none of a {operator.op_type}"
                listed = did_you_mean(way, able) or (f"; there are {', '.join(able)}" if able else "")
                raise ModelError(
                    f"operator {operator.name!r} of {graph.name!r}: its {direction} lowering {way!r} {what}{listed}. "
                    "Plan the model again with `hpdlf plan`."
                )
