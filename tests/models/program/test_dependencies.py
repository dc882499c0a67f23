"""Dependencies, checks and peaks of programs small enough to be read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from hpdlf.models.program import (
    Buffer,
    Content,
    Earlier,
    Group,
    Instruction,
    Kind,
    Mesh,
    Peer,
    Phase,
    Program,
    Role,
    Scope,
    Task,
    check,
    dependencies,
    peak_memory,
)

EVERYONE = Group(axes=("pipeline", "data"))


def buffer(name: str, scope: Scope = Scope.STEP, nbytes: int = 1, **more: object) -> Buffer:
    return Buffer(name=name, content=Content.ACTIVATIONS, scope=scope, nbytes=nbytes, **more)  # type: ignore[arg-type]


def does(id: str, kind: Kind = Kind.COMPUTE, **more: object) -> Instruction:
    return Instruction(id=id, kind=kind, stream=more.pop("stream", "compute"), phase=Phase.FORWARD, **more)  # type: ignore[arg-type]


def role_of(buffers: list[Buffer], instructions: list[Instruction], *, microbatches: int = 0, stage: int = 0) -> Role:
    each: list[int | None] = list(range(microbatches)) or [None]
    return Role.in_order(
        name=f"stage{stage}",
        coordinates={"pipeline": stage},
        buffers=tuple(buffers),
        instructions=tuple(instructions),
        order=tuple(Task(i.id, m) for m in each for i in instructions),
    )


def program_of(*roles: Role, data: int = 1) -> Program:
    return Program(
        name="test",
        mesh=Mesh(axes={"pipeline": len(roles), "data": data}),
        microbatches=1,
        microbatch_samples=1,
        loss_weight=1.0,
        roles=roles,
        segments={},
    )


def waits(role: Role) -> dict[str, set[tuple[str, int]]]:
    """{task: {(task that must have ended, steps back)}}"""
    found = zip(role.order, dependencies(role), strict=True)
    return {str(task): {(str(role.order[n.position]), n.steps_back) for n in needs} for task, needs in found}


def test_a_reader_waits_for_the_writer_and_the_next_writer_for_the_reader() -> None:
    role = role_of(
        [buffer("b", Scope.RUN)],
        [does("write", writes=("b",)), does("read", reads=("b",)), does("again", writes=("b",))],
    )
    assert waits(role) == {
        "write": {("again", 1)},  # whose step before wrote it last, after everybody had read
        "read": {("write", 0)},
        "again": {("write", 0), ("read", 0)},
    }


def test_microbatches_have_buffers_of_their_own_and_share_those_of_the_step() -> None:
    buffers = [buffer("act", Scope.MICROBATCH), buffer("grad")]
    work = [does("make", writes=("act",)), does("use", reads=("act",), frees=("act",), accumulates=("grad",))]
    assert waits(role_of(buffers, work, microbatches=2)) == {
        "make[0]": set(),
        "use[0]": {("make[0]", 0)},
        "make[1]": set(),
        "use[1]": {("make[1]", 0), ("use[0]", 0)},
    }


def test_what_reads_together_does_not_wait_for_each_other() -> None:
    role = role_of([buffer("p", Scope.RUN)], [does("one", reads=("p",)), does("two", reads=("p",))])
    assert waits(role) == {"one": set(), "two": set()}


def test_orders_stated_by_hand() -> None:
    first = does("first", after_earlier=(Earlier("second", 2),))
    role = role_of([], [first, does("second", after=("first",))], microbatches=2)
    assert waits(role) == {
        "first[0]": {("second[0]", 2)},
        "second[0]": {("first[0]", 0)},
        "first[1]": {("second[1]", 2)},
        "second[1]": {("first[1]", 0)},
    }


def test_who_runs_now_and_then_holds_up_nobody_for_good() -> None:
    buffers = [buffer("p", Scope.RUN)]
    work = [does("update", writes=("p",)), does("keep", reads=("p",), every=3), does("clean", writes=("p",), every=3)]
    assert waits(role_of(buffers, work)) == {
        "update": {("update", 1), ("keep", 1), ("clean", 1)},
        "keep": {("update", 0)},
        "clean": {("update", 0), ("keep", 0)},
    }


def test_a_right_program_has_no_problems(lower_chain: Callable[..., Program]) -> None:
    for fields in ({"data": 2}, {"pipeline": 3, "microbatches": 4}, {"data": 3, "solver": "asynchronous"}):
        assert check(lower_chain(3, batch=24, checkpoint_every=2, **fields)) == []


@pytest.mark.parametrize(
    ("buffers", "instructions", "problem"),
    [
        ([buffer("b")], [does("use", reads=("b",))], "stage0: use: reads b before anything wrote it"),
        (
            [buffer("b")],
            [does("make", writes=("b",), frees=("b",)), does("use", reads=("b",))],
            "stage0: use: reads b after it was freed",
        ),
        (
            [buffer("b")],
            [does("make", writes=("b",), frees=("b",)), does("drop", frees=("b",))],
            "stage0: drop: frees b twice",
        ),
        ([buffer("b")], [does("drop", frees=("b",))], "stage0: drop: frees b before anything wrote it"),
        ([buffer("b")], [does("make", writes=("b",))], "stage0: b is never freed"),
        ([], [does("use", reads=("b",))], "stage0: use: unknown buffer b"),
        (
            [],
            [does("send.b", Kind.SEND, peer=Peer("pipeline", 1), message="b")],
            "stage0: send.b: rank 0 has no peer at pipeline +1",
        ),
    ],
)
def test_what_is_wrong_is_named(buffers: list[Buffer], instructions: list[Instruction], problem: str) -> None:
    assert check(program_of(role_of(buffers, instructions))) == [problem]


def test_a_task_without_instruction_is_named() -> None:
    role = role_of([], []).reordered([Task("ghost")])
    assert check(program_of(role)) == ["stage0: ghost: no such instruction"]


def test_messages_must_match(lower_chain: Callable[..., Program]) -> None:
    right = lower_chain(2, batch=8, pipeline=2, microbatches=2)
    first, last = right.roles

    def with_last(**changes: object) -> list[str]:
        return check(replace(right, roles=(first, replace(last, **changes))))  # type: ignore[arg-type]

    renamed = tuple(replace(i, message="other") if i.kind is Kind.RECEIVE else i for i in last.instructions)
    assert any("stage1 has 0 instructions to receive act.0, expected one" in p for p in with_last(instructions=renamed))
    larger = tuple(replace(b, nbytes=b.nbytes + 1) if b.name == "act.0" else b for b in last.buffers)
    assert any("send.act.0: 64 bytes here, 65 in stage1" in p for p in with_last(buffers=larger))
    fewer = tuple(t for t in last.order if t != Task("receive.act.0", 1))
    short = replace(right, roles=(first, last.reordered(fewer)))
    assert any("2 tasks here, 1 to receive it in stage1" in p for p in check(short))


def test_collectives_must_match(lower_chain: Callable[..., Program]) -> None:
    right = lower_chain(2, batch=8, pipeline=2, microbatches=2)
    first, last = right.roles

    def with_last(**changes: object) -> list[str]:
        return check(replace(right, roles=(first, replace(last, **changes))))  # type: ignore[arg-type]

    renamed = tuple(replace(i, message="other") if i.id == "share.loss" else i for i in last.instructions)
    assert any("stage1 has 0 instructions to all_reduce loss" in p for p in with_last(instructions=renamed))
    rarer = tuple(replace(i, every=2) if i.id == "share.loss" else i for i in last.instructions)
    assert any("stage1 does not come to loss as often" in p for p in with_last(instructions=rarer))
    larger = tuple(replace(b, nbytes=b.nbytes + 1) if b.name == "loss" else b for b in last.buffers)
    assert any("share.loss: 8 bytes here, 9 in stage1" in p for p in with_last(buffers=larger))


def test_peak_of_what_lives_at_once() -> None:
    buffers = [
        Buffer(name="p", content=Content.PARAMETERS, scope=Scope.RUN, nbytes=100),
        Buffer(name="a", content=Content.ACTIVATIONS, scope=Scope.MICROBATCH, nbytes=10),
        Buffer(name="g", content=Content.GRADIENTS, scope=Scope.STEP, nbytes=7),
    ]
    work = [does("make", writes=("a",)), does("use", reads=("a",), frees=("a",), accumulates=("g",))]
    role = role_of(buffers, work, microbatches=2).reordered([Task(i, m) for i in ("make", "use") for m in (0, 1)])
    found = peak_memory(program_of(role), role)
    assert (found.peak_bytes, found.task) == (100 + 2 * 10 + 7, Task("use", 0))
    assert found.by_content == {Content.PARAMETERS: 100, Content.ACTIVATIONS: 20, Content.GRADIENTS: 7}


def test_a_shared_buffer_counts_with_a_ranks_part() -> None:
    role = role_of([buffer("shared", Scope.RUN, 10, shared=EVERYONE)], [])
    assert peak_memory(program_of(role, data=3), role).peak_bytes == 4  # 10 / 3, rounded up
