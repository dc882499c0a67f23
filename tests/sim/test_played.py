"""What a replay leaves behind."""

from __future__ import annotations

from typing import Any

import pytest

from hpdlf.models.program import Group, Instruction, Kind, Mesh, Pass, Phase, Program, Role
from hpdlf.sim.engine import play
from hpdlf.sim.folding import fold, unfolded

DATA = Group(("data",))


def program_of(members: list[Instruction], *, data: int, microbatches: int) -> Program:
    role = Role(
        name="all",
        coordinates={},
        buffers=(),
        instructions=tuple(members),
        passes={"pass": tuple(i.id for i in members)},
        schedule=tuple(Pass("pass", m) for m in range(microbatches)),
    )
    return Program(
        name="test",
        mesh=Mesh(axes={"data": data}),
        microbatches=microbatches,
        microbatch_samples=1,
        loss_weight=1.0,
        roles=(role,),
        segments={},
    )


def does(id: str, kind: Kind = Kind.COMPUTE, **more: Any) -> Instruction:
    return Instruction(id=id, kind=kind, stream="compute", phase=Phase.FORWARD, **more)


def blocking() -> Program:
    members = [does("a"), does("sum", Kind.ALL_REDUCE, group=DATA, message="m"), does("b")]
    return program_of(members, data=2, microbatches=2)


def test_lines_are_written_out_as_tasks() -> None:
    program = blocking()
    folding = fold(program)
    played = play(program, {0: {"a": 1.0, "sum": 2.0, "b": 3.0}}, folding=folding, steps=2)
    assert [len(record.ends) for record in played.records] == [4]  # a line a pass
    found = [(e.step, e.microbatch, e.instruction, e.start_s, e.end_s) for e in played.events]
    assert found[:6] == [
        (0, 0, "a", 0.0, 1.0),
        (0, 0, "sum", 1.0, 3.0),
        (0, 0, "b", 3.0, 6.0),
        (0, 1, "a", 6.0, 7.0),
        (0, 1, "sum", 7.0, 9.0),
        (0, 1, "b", 9.0, 12.0),
    ]
    assert played.step_ends_s == (12.0, 24.0)
    assert played.end_s == 24.0
    assert played.multiplicity == {0: 2}


@pytest.mark.parametrize("start_s", [0.0, 12.0, 13.0])
def test_busy_seconds_are_those_of_computing_and_of_both(start_s: float) -> None:
    """Within a line computing is spread evenly: a line of 6 s computes for 4."""
    program = blocking()
    played = play(program, {0: {"a": 1.0, "sum": 2.0, "b": 3.0}}, folding=fold(program), steps=2)
    left_s = 24.0 - start_s
    assert played.busy_s(start_s) == {0: (pytest.approx(left_s * 4 / 6), pytest.approx(left_s))}


def test_who_waits_in_a_collective_is_idle_until_all_have_come() -> None:
    program = blocking()
    prices = {"a": 1.0, "sum": 2.0, "b": 3.0}
    played = play(program, {0: prices, 1: prices | {"a": 5.0}}, folding=unfolded(program.mesh), steps=1)
    # Rank 0 waits 4 s in each of two meetings.
    assert played.end_s == 20.0
    assert played.busy_s(0.0) == {0: (8.0, 12.0), 1: (16.0, 20.0)}


def test_a_replay_of_nothing_ends_at_once() -> None:
    program = program_of([], data=2, microbatches=1)
    played = play(program, {0: {}}, folding=fold(program), steps=2)
    assert (played.end_s, played.step_ends_s, played.events, played.busy_s(0.0)) == (0.0, (0.0, 0.0), (), {})
