"""How well times between and beyond measured sizes are predicted, on published series of one operator at many sizes.

``python -m hpdlf.experiments.validate_interpolation DATA [--json FILE]`` takes every operator of ``neusight/*.csv`` that was
timed at four or more sizes (rows of a matrix, all other dimensions fixed) on one device, treats some of its times as
the user's own measurements and predicts a size that was left out:

* ``between``    from one smaller and one larger size, any of the series
* ``among all``  from all other sizes of the series
* ``beyond``     from one size alone, smaller or larger

with two models behind: the roofline, and the shipped regression over all devices without the device's own. Beside them
stand the model alone, and what knows of no model: the straight line between the two sizes, and the line between their
logarithms. The left-out size never counts as measured; which ones are drawn is fixed by a seed.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import DataError, HpdlfError
from ..hwprofiles import Device, load_device
from ..models.cost import Observation, Workload
from ..models.cost.factors import NINETY
from ..models.cost.interpolation import Anchors
from ..models.cost.operation import Operation
from ..models.cost.operator_times import OperatorTimes
from ..models.cost.roofline import roof_of
from .published import neusight
from .published.measured import Measured
from .scoring import summarise

__all__ = ["main", "series", "validate"]

LEAST_SIZES = 4
SERIES_OF_A_KIND, TRIALS, SEED = 60, 3, 0
# Standard deviation of the logarithm of time over roofline where nothing else is known.
ROOFLINE_SPREAD = 0.43


class Series(NamedTuple):
    """One operator on one device at several sizes, ascending."""

    device: Device
    kind: str
    sizes: tuple[int, ...]
    operations: tuple[Operation, ...]
    seconds: tuple[float, ...]


class _Row(NamedTuple):
    seconds: float
    low_s: float
    high_s: float
    measured_s: float


def series(rows: Iterable[Measured]) -> list[Series]:
    """The series in a table: operations that differ in their rows alone."""
    found: dict[tuple[object, ...], dict[int, Measured]] = {}
    for row in rows:
        if len(row.operations) != 1:
            continue
        o = row.operations[0]
        place = 1 if o.family == "matmul" else 0
        key = row.device, o.family, o.op, o.dims[:place], o.dims[place + 1 :]
        found.setdefault(key, {}).setdefault(o.dims[place], row)
    return [
        Series(
            _device(str(key[0])),
            f"{key[1]} {key[2]}",
            tuple(sorted(sizes)),
            tuple(sizes[n].operations[0] for n in sorted(sizes)),
            tuple(sizes[n].seconds for n in sorted(sizes)),
        )
        for key, sizes in sorted(found.items(), key=lambda item: str(item[0]))
        if len(sizes) >= LEAST_SIZES
    ]


@cache
def _device(name: str) -> Device:
    return load_device(name)


def validate(folder: Path) -> list[dict[str, Any]]:
    """One row for each model and way of predicting; see the module's text.

    Raises:
        DataError: the folder has no such tables.
    """
    everything = series([*neusight.products(folder), *neusight.vectors(folder)])
    if not everything:
        raise DataError(f"{folder}: holds no neusight/*.csv with an operator at {LEAST_SIZES} sizes or more.")
    general = replace(OperatorTimes.default(), particular={}, offsets={})
    found = []
    for model in ("roofline", "regression"):
        generator = np.random.default_rng(SEED)
        ways: dict[str, list[_Row]] = {}
        for one in _drawn(everything, generator):
            modelled = _roofline(one) if model == "roofline" else _regression(one, general)
            for _ in range(TRIALS):
                _predict(one, modelled, generator, ways)
        for way, rows in ways.items():
            columns = [list(column) for column in zip(*rows, strict=True)]
            scores = summarise(file="neusight", device="all", op=way, measured=columns[3], predicted=columns[0],
                               low=columns[1], high=columns[2], refused={})  # fmt: skip
            found.append({"model": model, "way": way, **scores})
    return found


def _drawn(everything: Sequence[Series], generator: np.random.Generator) -> list[Series]:
    """As many series of each kind of operator."""
    taken: dict[str, int] = {}
    chosen = []
    for i in generator.permutation(len(everything)):
        one = everything[i]
        taken[one.kind] = taken.get(one.kind, 0) + 1
        if taken[one.kind] <= SERIES_OF_A_KIND:
            chosen.append(one)
    return chosen


def _roofline(one: Series) -> list[tuple[float, float, float]]:
    roof = roof_of(one.device, "float32")
    wide = math.exp(NINETY * ROOFLINE_SPREAD)
    bare = [max(roof.times(o.family, o.flops, o.traffic_bytes)) + roof.launch_s for o in one.operations]
    return [(s, s / wide, s * wide) for s in bare]


def _regression(one: Series, general: OperatorTimes) -> list[tuple[float, float, float]]:
    times = general.times(one.operations, one.device, context="pytorch")
    return [(float(s), float(a), float(b)) for s, a, b in zip(times.seconds, times.low_s, times.high_s, strict=True)]


def _predict(
    one: Series,
    modelled: Sequence[tuple[float, float, float]],
    generator: np.random.Generator,
    ways: dict[str, list[_Row]],
) -> None:
    """Leave one size out, not the first or last, and predict it in every way."""
    n = len(one.sizes)
    left_out = int(generator.integers(1, n - 1))
    below, above = int(generator.integers(0, left_out)), int(generator.integers(left_out + 1, n))
    works = [_work(size, operation) for size, operation in zip(one.sizes, one.operations, strict=True)]
    by_model = {work.key: seconds for work, (seconds, _, _) in zip(works, modelled, strict=True)}
    took = one.seconds[left_out]

    def put(way: str, seconds: float, low_s: float, high_s: float) -> None:
        ways.setdefault(way, []).append(_Row(seconds, low_s, high_s, took))

    others = [i for i in range(n) if i != left_out]
    for way, known in (("between", [below, above]), ("among all", others), ("beyond", [below]), ("beyond", [above])):
        seen = [Observation.of(works[i], [one.seconds[i]], run="published") for i in known]
        found = Anchors(seen).estimate(works[left_out], modelled[left_out], lambda o: by_model[o.key])
        assert found is not None
        put(way, found.seconds, found.low_s, found.high_s)
    put("the model alone", *modelled[left_out])
    a, b, share = one.seconds[below], one.seconds[above], _share(one.sizes, below, left_out, above, math.log)
    straight = a + _share(one.sizes, below, left_out, above, float) * (b - a)
    put("a straight line", straight, straight, straight)
    bent = a * (b / a) ** share
    put("a line of logarithms", bent, bent, bent)


# Tables have names of their own for operators; here shapes and times count.
_NAMES = {"matmul": "linear", "elementwise": "relu", "softmax": "softmax", "normalisation": "layernormalization"}


def _work(size: int, operation: Operation) -> Workload:
    """An operation as what a user may have measured."""
    return Workload(
        subject="device",
        subject_kind="gpu",
        kind="operator",
        key=str(size),
        components={"other": 1.0},
        operations=(replace(operation, op=_NAMES[operation.family]),),
    )


def _share(sizes: Sequence[int], below: int, at: int, above: int, scale: Any) -> float:
    """How far along `at` lies between the two sizes."""
    low, here, high = (scale(sizes[i]) for i in (below, at, above))
    return float((here - low) / (high - low))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(description="how well times between and beyond measured sizes are predicted")
    parser.add_argument("data", type=Path, help="folder with neusight/")
    parser.add_argument("--json", type=Path, help="write the rows there")
    options = parser.parse_args(arguments)
    try:
        rows = validate(options.data)
    except HpdlfError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    for row in rows:
        sys.stdout.write(
            f"{row['model']:10} {row['way']:20} {row['n']:5}  median {row['median_ape']:6.1%}  "
            f"p90 {row['p90_ape']:6.1%}  inside {row['coverage90']:4.0%}  width {row['relative_width']:.2f}\n"
        )
    if options.json:
        options.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
