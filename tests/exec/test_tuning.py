"""Timing ways: questions travel whole, every way is timed, slow ones for a short time only, in a process like a rank's."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from hpdlf.errors import RunError
from hpdlf.exec import compiling, tuning
from hpdlf.exec.tuning import Answer, Question, answer, call_of, cores_for, time_ways
from hpdlf.models.cost.lowerings import (
    Convolution,
    Direction,
    Linear,
    ProductBatch,
    Shape,
    expected_way,
    family_of,
    ways,
)

CONV = Convolution(
    samples=2,
    channels=4,
    filters=6,
    groups=1,
    size=(9, 9),
    kernel=(3, 3),
    strides=(1, 1),
    dilations=(1, 1),
    pads=((1, 1), (1, 1)),
    output=(9, 9),
)


# Numbers that differ, so that operands which are mistaken for one another do not fit.
LINEAR = Linear(rows=6, wide=5, result=4)
SHAPES = [CONV, LINEAR, replace(LINEAR, transposed=True), ProductBatch(batch=2, rows=3, inner=4, columns=5)]


def question(direction: Direction, shape: Shape = CONV) -> Question:
    return Question(shape=shape, direction=direction, first=expected_way(shape, direction))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.key)
def test_a_question_survives_json(shape: Shape) -> None:
    for direction in family_of(shape).directions:
        asked = question(direction, shape)
        assert Question.read(json.loads(json.dumps(asked.as_dict()))) == asked


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.key)
def test_every_way_gives_what_the_direction_means(shape: Shape) -> None:
    wanted = {
        "conv": {"forward": (2, 9, 9, 6), "input": (2, 9, 9, 4), "weight": (6, 4, 3, 3)},
        "linear": {
            "forward": (6, 4),
            "input": (6, 5),
            "weight": (4, 5) if shape.key.endswith("transposed") else (5, 4),
        },
        "products": {"forward": (2, 3, 5), "left": (2, 3, 4), "right": (2, 4, 5)},
    }[family_of(shape).name]
    for direction in family_of(shape).directions:
        several = ("xla",) if shape == CONV else ways(shape, direction)
        results = {way: np.asarray(call_of(question(direction, shape), way)()) for way in several}
        for way, result in results.items():
            assert result.shape == wanted[direction], (direction, way)
            np.testing.assert_allclose(result, results["xla"], rtol=1e-4, atol=1e-5, err_msg=way)


@pytest.mark.parametrize("direction", family_of(CONV).directions)
def test_pictures_come_and_go_with_channels_last(direction: Direction) -> None:
    """That every way computes the same is tested beside the ways."""
    results = {way: np.asarray(call_of(question(direction), way)()) for way in ("xla", "im2col")}
    shape = {"forward": (2, 9, 9, 6), "input": (2, 9, 9, 4), "weight": (6, 4, 3, 3)}[direction]
    for way, result in results.items():
        assert result.shape == shape
        np.testing.assert_allclose(result, results["xla"], atol=1e-4 * np.abs(results["xla"]).max(), err_msg=way)


@pytest.mark.parametrize("shape", [CONV, LINEAR], ids=lambda s: s.key)
def test_ways_are_compiled_as_in_a_network(shape: Shape, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def options_for(convolutional: bool) -> dict[str, bool]:
        asked.append(convolutional)
        return {"xla_cpu_use_fusion_emitters": True}

    monkeypatch.setattr(compiling, "options_for", options_for)
    call_of(question("weight", shape), "xla")()
    assert asked == [shape is CONV]


def pretended(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float]) -> dict[str, int]:
    """Ways that take what `seconds` says; counts their calls."""
    calls = dict.fromkeys(seconds, 0)

    def call_of(asked: Question, way: str) -> Callable[[], None]:
        def call() -> None:
            calls[way] += 1
            if seconds[way] < 0:
                raise MemoryError("too large")
            time.sleep(seconds[way])

        return call

    monkeypatch.setattr(tuning, "call_of", call_of)
    monkeypatch.setattr(tuning, "ways", lambda conv, direction: tuple(seconds))
    return calls


def test_slow_ways_are_timed_for_a_short_time_only(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = pretended(monkeypatch, {"xla": 0.012, "taps": 0.2, "im2col": 0.004, "matmul": 0.004})
    found = answer(Question(shape=CONV, direction="forward", first="im2col"))
    assert set(found.ways) == set(calls)
    assert calls["taps"] == 1  # hopeless
    assert calls["xla"] == 3  # slow: two calls after the first
    assert calls["im2col"] > 10
    assert found.ways["taps"]["seconds"] > found.ways["xla"]["seconds"] > found.ways["im2col"]["seconds"] > 0.004
    assert all(t["low_s"] <= t["seconds"] <= t["high_s"] and t["repeats"] >= 1 for t in found.ways.values())


def test_a_slow_first_call_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It touches memory for the first time: a short call takes a hundred times as long then."""
    calls = pretended(monkeypatch, {"xla": 0.0005, "im2col": 0.0003})
    plain = tuning.call_of

    def cold(asked: Question, way: str) -> Callable[[], None]:
        call = plain(asked, way)

        def first_is_slow() -> None:
            if not calls[way]:
                time.sleep(0.04)
            call()

        return first_is_slow

    monkeypatch.setattr(tuning, "call_of", cold)
    found = answer(Question(shape=CONV, direction="forward", first="xla"))
    assert found.ways["im2col"]["seconds"] < found.ways["xla"]["seconds"] < 0.01
    assert min(calls.values()) > 10


def test_a_way_that_cannot_be_run_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    pretended(monkeypatch, {"xla": 0.001, "im2col": -1.0})
    found = answer(Question(shape=CONV, direction="forward", first="im2col"))
    assert set(found.ways) == {"xla"}
    assert found.failed == {"im2col": "MemoryError: too large"}


def test_threads_that_are_not_there_are_refused() -> None:
    assert len(cores_for(1)) == 1
    assert cores_for(None) == sorted(os.sched_getaffinity(0))
    with pytest.raises(RunError, match="100000 threads cannot be measured: this process may use"):
        list(time_ways([question("forward")], seconds=1.0, threads=100_000))


def test_questions_are_answered_in_a_process_of_their_own() -> None:
    conv = replace(CONV, strides=(2, 2), output=(5, 5))  # few ways, which compile quickly
    asked = [Question(shape=conv, direction=d, first="xla") for d in ("forward", "weight")]  # type: ignore[arg-type]
    said = list(time_ways(asked, seconds=60.0, threads=1))
    assert [type(s) for s in said] == [Question, Answer, Question, Answer]
    for found, question in zip(said[1::2], asked, strict=True):
        assert isinstance(found, Answer)
        assert found.question == question
        assert set(found.ways) == set(ways(conv, question.direction))
        assert found.failed == {}


def test_without_time_nothing_is_begun() -> None:
    assert list(time_ways([question("forward")], seconds=0.0, threads=1)) == []
