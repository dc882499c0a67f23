"""The interpreter alone: fake actions on small roles, no MPI, no JAX."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpdlf.exec.interpreter import Interpreter, Values
from hpdlf.models.program import Buffer, Content, Earlier, Instruction, Kind, Phase, Role, Scope, Task
from hpdlf.models.trace import Event


def buffer(name: str, scope: Scope = Scope.STEP) -> Buffer:
    return Buffer(name=name, content=Content.WORKSPACE, scope=scope, nbytes=8)


def instruction(id: str, stream: str = "compute", **fields: Any) -> Instruction:
    return Instruction(id=id, kind=Kind.COMPUTE, stream=stream, phase=Phase.HOST, **fields)


def role(buffers: list[Buffer], instructions: list[Instruction], order: list[Task]) -> Role:
    return Role.in_order(
        name="r", coordinates={}, buffers=tuple(buffers), instructions=tuple(instructions), order=tuple(order)
    )


def interpret(r: Role, actions: dict[str, Callable[..., Values]], **options: Any) -> tuple[Interpreter, list[Event]]:
    events: list[Event] = []
    return Interpreter(r, 0, actions, record=events.append, **options), events


def pipeline_of_streams(**more: Any) -> Role:
    """load -> work -> report, each on a stream of its own; `more` fields of load."""
    return role(
        [buffer("data"), buffer("result"), buffer("weight", Scope.RUN)],
        [
            instruction("load", "load", writes=("data",), **more),
            instruction("work", reads=("data", "weight"), writes=("result", "weight"), frees=("data",)),
            instruction("report", "host", reads=("result",), frees=("result",)),
        ],
        [Task("load"), Task("work"), Task("report")],
    )


def test_values_flow_between_streams_and_nothing_is_left() -> None:
    reported: list[int] = []
    interpreter, events = interpret(
        pipeline_of_streams(),
        {
            "load": lambda i, t, step, v: {"data": step + 1},
            "work": lambda i, t, step, v: {"result": v["data"] * v["weight"], "weight": v["weight"] + 1},
            "report": lambda i, t, step, v: reported.append(v["result"]) or {},
        },
    )
    interpreter.put("weight", 10)
    interpreter.run(0, 4)
    assert reported == [10, 22, 36, 52]
    assert interpreter.get("weight") == 14
    assert interpreter.values == {("weight", None, None): 14}
    assert sorted(e.task_id for e in events) == sorted(f"r/0/{s}/-/{i}" for s in range(4) for i in ("load", "work", "report"))
    ended = {(e.step, e.instruction): e.end_s for e in events}
    for event in events:
        if event.instruction == "work":
            assert event.start_s >= ended[event.step, "load"]
        if event.instruction == "report":
            assert event.start_s >= ended[event.step, "work"]


def test_a_later_run_goes_on_where_the_first_ended() -> None:
    steps: list[int] = []
    interpreter, _ = interpret(
        pipeline_of_streams(after_earlier=(Earlier("work", 2),)),
        {
            "load": lambda i, t, step, v: steps.append(step) or {"data": 1},
            "work": lambda i, t, step, v: {"result": 1, "weight": 0},
            "report": lambda i, t, step, v: {},
        },
    )
    interpreter.put("weight", 0)
    interpreter.run(5, 7)
    interpreter.run(7, 7)
    interpreter.run(7, 9)
    assert steps == [5, 6, 7, 8]


def test_loading_runs_ahead_as_far_as_it_may_and_no_further() -> None:
    loaded, gate = [], threading.Event()

    def work(i: Instruction, t: Task, step: int, v: Values) -> Values:
        assert gate.wait(10)
        return {"result": 1, "weight": 0}

    interpreter, _ = interpret(
        pipeline_of_streams(after_earlier=(Earlier("work", 2),)),
        {
            "load": lambda i, t, step, v: loaded.append(step) or {"data": 1},
            "work": work,
            "report": lambda i, t, step, v: {},
        },
    )
    interpreter.put("weight", 0)
    runner = threading.Thread(target=interpreter.run, args=(0, 6))
    runner.start()
    deadline = time.monotonic() + 10
    while len(loaded) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert loaded == [0, 1]
    gate.set()
    runner.join(10)
    assert loaded == list(range(6))


def test_a_stream_may_fall_far_behind() -> None:
    """Compute is done with all steps long before the slow host has looked at the first: nothing may be forgotten."""
    seen: list[int] = []
    first = threading.Event()

    def report(i: Instruction, t: Task, step: int, v: Values) -> Values:
        if step == 0:
            assert first.wait(10)
        seen.append(v["result"])
        return {}

    def work(i: Instruction, t: Task, step: int, v: Values) -> Values:
        if step == 499:
            first.set()
        return {"result": step, "weight": 0}

    interpreter, _ = interpret(
        pipeline_of_streams(), {"load": lambda i, t, step, v: {"data": 1}, "work": work, "report": report}
    )
    interpreter.put("weight", 0)
    interpreter.run(0, 500)
    assert seen == list(range(500))


def test_accumulating_buffers_are_defined_by_their_first_task() -> None:
    given_sums: list[Any] = []

    def add(i: Instruction, t: Task, step: int, v: Values) -> Values:
        given_sums.append(v.get("sum"))
        return {"sum": v.get("sum", 0) + v["x"]}

    summed: list[int] = []
    interpreter, _ = interpret(
        role(
            [buffer("x", Scope.MICROBATCH), buffer("sum")],
            [
                instruction("make", "load", writes=("x",)),
                instruction("add", reads=("x",), accumulates=("sum",), frees=("x",)),
                instruction("use", reads=("sum",), frees=("sum",)),
            ],
            [Task("make", 0), Task("make", 1), Task("add", 0), Task("add", 1), Task("use")],
        ),
        {
            "make": lambda i, t, step, v: {"x": 10 * step + t.microbatch},
            "add": add,
            "use": lambda i, t, step, v: summed.append(v["sum"]) or {},
        },
    )
    interpreter.run(1, 3)
    assert given_sums == [None, 10, None, 20]
    assert summed == [21, 41]
    assert interpreter.values == {}


def test_instructions_that_do_not_run_in_every_step_are_left_out_and_not_waited_for() -> None:
    r = role(
        [buffer("weight", Scope.RUN)],
        [
            instruction("work", reads=("weight",), writes=("weight",)),
            instruction("save", "host", reads=("weight",), every=3),
        ],
        [Task("work"), Task("save")],
    )
    saved: list[tuple[int, int]] = []

    def save(i: Instruction, t: Task, step: int, v: Values) -> Values:
        time.sleep(0.02)
        saved.append((step, v["weight"]))
        return {}

    interpreter, events = interpret(
        r, {"work": lambda i, t, step, v: {"weight": v["weight"] + 1}, "save": save}
    )
    interpreter.put("weight", 0)
    interpreter.run(0, 8)
    assert saved == [(2, 3), (5, 6)]
    ended = {(e.step, e.instruction): e for e in events}
    assert ended[3, "work"].start_s >= ended[2, "save"].end_s, "the weight is overwritten when it is saved, not before"


def test_a_failing_stream_stops_the_others_and_is_what_is_raised() -> None:
    started: list[int] = []

    def report(i: Instruction, t: Task, step: int, v: Values) -> Values:
        if step == 2:
            raise ZeroDivisionError("the first error")
        return {}

    def work(i: Instruction, t: Task, step: int, v: Values) -> Values:
        started.append(step)
        time.sleep(0.005)
        return {"result": step, "weight": 0}

    interpreter, _ = interpret(
        pipeline_of_streams(), {"load": lambda i, t, step, v: {"data": 1}, "work": work, "report": report}
    )
    interpreter.put("weight", 0)
    with pytest.raises(ZeroDivisionError, match="the first error"):
        interpreter.run(0, 1000)
    assert interpreter.stopping()
    assert len(started) < 200


def test_a_failure_on_the_calling_thread_wakes_streams_that_wait_for_it() -> None:
    def work(i: Instruction, t: Task, step: int, v: Values) -> Values:
        raise KeyboardInterrupt

    interpreter, _ = interpret(
        pipeline_of_streams(),
        {"load": lambda i, t, step, v: {"data": 1}, "work": work, "report": lambda i, t, step, v: {}},
    )
    interpreter.put("weight", 0)
    with pytest.raises(KeyboardInterrupt):
        interpreter.run(0, 3)
    deadline = time.monotonic() + 5
    while any(t.name == "hpdlf-host" for t in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(t.name == "hpdlf-host" for t in threading.enumerate())


def test_a_stream_that_never_returns_does_not_keep_the_failure_back() -> None:
    forever = threading.Event()

    def hang(i: Instruction, t: Task, step: int, v: Values) -> Values:
        forever.wait(20)
        return {}

    def work(i: Instruction, t: Task, step: int, v: Values) -> Values:
        raise ValueError("mine")

    interpreter, _ = interpret(
        role([], [instruction("hang", "reduce"), instruction("work")], [Task("hang"), Task("work")]),
        {"hang": hang, "work": work},
    )
    began = time.monotonic()
    with pytest.raises(ValueError, match="mine"):
        interpreter.run(0, 1)
    assert time.monotonic() - began < 5
    forever.set()


def test_bytes_are_taken_from_where_actions_note_them() -> None:
    moved: dict[tuple[str, int | None, int], int] = {}

    def work(i: Instruction, t: Task, step: int, v: Values) -> Values:
        moved[i.id, t.microbatch, step] = 100 + step
        return {}

    interpreter, events = interpret(role([], [instruction("work")], [Task("work")]), {"work": work}, moved=moved)
    interpreter.run(0, 2)
    assert [e.payload_bytes for e in events] == [100, 101]
    assert moved == {}


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_program_gives_what_its_sequential_order_gives(data: st.DataObject) -> None:
    """Tasks on random streams read and write random buffers: what they see does not depend on threads.

    Tasks that only read, as a checkpoint does, need not run in every step.
    """
    names = ["a", "b", "c"]
    instructions = []
    for n in range(data.draw(st.integers(1, 8))):
        writes = tuple(data.draw(st.lists(st.sampled_from(names), unique=True)))
        instructions.append(
            instruction(
                f"i{n}",
                data.draw(st.sampled_from(["compute", "s1", "s2"])),
                reads=tuple(data.draw(st.lists(st.sampled_from(names), unique=True))),
                writes=writes,
                every=1 if writes else data.draw(st.integers(1, 3)),
            )
        )
    r = role([buffer(n, Scope.RUN) for n in names], instructions, [Task(i.id) for i in instructions])

    def see(i: Instruction, step: int, v: Values) -> int:
        return hash((i.id, step, tuple(sorted((b, v[b]) for b in i.reads))))

    expected, expected_seen, seen = dict.fromkeys(names, 0), {}, {}
    for step in range(4):
        for i in instructions:
            if i.runs_in(step):
                expected_seen[i.id, step] = see(i, step, expected)
                expected |= dict.fromkeys(i.writes, expected_seen[i.id, step])

    def act(i: Instruction, t: Task, step: int, v: Values) -> Values:
        seen[i.id, step] = see(i, step, v)
        return dict.fromkeys(i.writes, seen[i.id, step])

    interpreter, _ = interpret(r, {Kind.COMPUTE.value: act})
    for name in names:
        interpreter.put(name, 0)
    interpreter.run(0, 4)
    assert seen == expected_seen
    assert {n: interpreter.get(n) for n in names} == expected
