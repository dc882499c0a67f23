"""What an observation may say, and what it refuses."""

from collections.abc import Callable

import pytest

from hpdlf.errors import DataError
from hpdlf.models.cost import Observation, Workload
from hpdlf.models.cost.operation import Operation

Make = Callable[..., Observation]
PRODUCT = Operation(family="matmul", op="linear", dims=(1, 8, 4, 2), flops=128.0, read_bytes=192.0, write_bytes=128.0)


def changed(**more: object) -> Operation:
    from dataclasses import replace

    return replace(PRODUCT, **more)


def test_it_says_what_was_done_and_the_middle_of_its_repeats() -> None:
    work = Workload(
        subject="toy", subject_kind="cpu", kind="operator", key="k", components={"matmul": 1.0}, operations=(PRODUCT,)
    )
    found = Observation.of(work, [3.0, 1.0, 2.0], run="one", plan="abc", host="node7", conditions={"threads": 1})
    assert (found.low_s, found.seconds, found.high_s, found.repeats) == (1.0, 2.0, 3.0, 3)
    assert found.operations == (PRODUCT,)
    assert (found.plan, found.host, dict(found.conditions)) == ("abc", "node7", {"threads": 1})
    with pytest.raises(DataError, match="no repeats"):
        Observation.of(work, [], run="one")


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
        {"components": {"convv": 1.0}},
        {"repeats": 0},
        {"kind": "operatr"},
        {"subject_kind": "tpu!"},
        {"run": ""},
    ],
)
def test_impossible_observations_are_refused(make_observation: Make, wrong: dict[str, object]) -> None:
    with pytest.raises(DataError, match="observation"):
        make_observation(**wrong)


@pytest.mark.parametrize(
    ("operation", "says"),
    [
        (changed(family="matmull"), "no such family \\(did you mean 'matmul'"),
        (changed(op="linaer"), "no such operator \\(did you mean 'linear'"),
        (changed(family="elementwise", op="reluu", dims=(2, 2)), "no such operator"),
        (changed(phase="sideways"), "phase 'sideways'"),
        (changed(dims=(1, 8, 4)), r"dimensions \[1, 8, 4\]"),
        (changed(dims=(1, 8, 4, 0)), "dimensions"),
        (changed(flops=float("nan")), "work of nan FLOP"),
        (changed(read_bytes=-1.0), "-1.0 and"),
    ],
)
def test_unknown_operators_are_refused(make_observation: Make, operation: Operation, says: str) -> None:
    with pytest.raises(DataError, match=says):
        make_observation(operations=(operation,))


def test_all_problems_come_together(make_observation: Make) -> None:
    with pytest.raises(DataError, match=r"-1.0 s.*0 repeats.*no such operator.*Measure it again"):
        make_observation(-1.0, repeats=0, operations=(changed(op="linaer"),))
