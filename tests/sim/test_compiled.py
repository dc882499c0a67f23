"""How roles are walked through: which streams together, what is one line, and when computing may meet collectives."""

from __future__ import annotations

from typing import Any

import pytest

from hpdlf.models.program import Buffer, Content, Group, Instruction, Kind, Pass, Peer, Phase, Role, Scope
from hpdlf.sim.compiled import COLLECTIVE, LIVE_COLLECTIVE, LIVE_COMPUTE, RECEIVE, SEND, TIMED, Script
from hpdlf.sim.walks import walks_of

TENSOR, DATA = Group(("tensor",)), Group(("data",))
BACK, ON = Peer("pipeline", -1), Peer("pipeline", 1)


def does(id: str, kind: Kind = Kind.COMPUTE, stream: str = "compute", **more: Any) -> Instruction:
    return Instruction(id=id, kind=kind, stream=stream, phase=more.pop("phase", Phase.FORWARD), **more)


def role_of(passes: dict[str, list[Instruction]], schedule: list[Pass], **scopes: Scope) -> Role:
    """Buffers are MICROBATCH ones unless it is said."""
    instructions = {i.id: i for members in passes.values() for i in members}
    names = dict.fromkeys(b for i in instructions.values() for b in (*i.reads, *i.writes, *i.accumulates, *i.frees))
    return Role(
        name="role",
        coordinates={},
        buffers=tuple(
            Buffer(name=b, content=Content.WORKSPACE, scope=scopes.get(b, Scope.MICROBATCH), nbytes=1) for b in names
        ),
        instructions=tuple(instructions.values()),
        passes={name: tuple(i.id for i in members) for name, members in passes.items()},
        schedule=tuple(schedule),
    )


def middle_stage() -> list[Instruction]:
    """A forward pass under tensor parallelism, between two other stages."""
    return [
        does("receive", Kind.RECEIVE, "in", peer=BACK, message="a", writes=("x",)),
        does("norm", writes=("n",)),  # needs nothing of the message
        does("first", reads=("x", "n"), writes=("y",), frees=("x", "n")),
        does("sum", Kind.ALL_REDUCE, "tensor", group=TENSOR, message="y", reads=("y",), writes=("y",)),
        does("second", reads=("y",), writes=("z",), frees=("y",)),
        does("send", Kind.SEND, "out", peer=ON, message="z", reads=("z",), frees=("z",)),
    ]


def lines(script: Script, step: int = 0) -> list[list[tuple[str, int]]]:
    """Of each walk, the first pass that it takes part in: members of each line, and what they ask for."""
    return [[("+".join(i.id for i in line.members), line.op) for line in w.lines[0]] for w in script.walks(step)]


def test_what_nobody_sees_inside_is_one_line() -> None:
    role = role_of({"forward": middle_stage()}, [Pass("forward", 0), Pass("forward", 1)])
    together = walks_of(role)
    assert together.serial == {"compute", "tensor"}
    assert together.streams == (("compute", "tensor", "in", "out"),)
    alone = Script(role=role, alone=frozenset({TENSOR}), competes=True)
    # The receive stands before the first task that waits for it.
    assert lines(alone) == [[("norm", TIMED), ("receive", RECEIVE), ("first+sum+second", TIMED), ("send", SEND)]]
    several = Script(role=role, alone=frozenset(), competes=True)
    assert lines(several) == [
        [
            ("norm", TIMED),
            ("receive", RECEIVE),
            ("first", TIMED),
            ("sum", COLLECTIVE),
            ("second", TIMED),
            ("send", SEND),
        ]
    ]


def test_a_stream_that_would_be_late_is_a_walk_of_its_own() -> None:
    """What is sent here was made before the receive: it must not wait for it."""
    members = [
        does("make", writes=("y",)),
        does("receive", Kind.RECEIVE, "in", peer=BACK, message="a", writes=("x",)),
        does("use", reads=("x",), frees=("x",)),
        does("send", Kind.SEND, "out", peer=ON, message="y", reads=("y",), frees=("y",)),
    ]
    assert walks_of(role_of({"all": members}, [Pass("all", 0)])).streams == (("compute", "in"), ("out",))
    unread = [does("make"), does("receive", Kind.RECEIVE, "in", peer=BACK, message="a", writes=("x",))]
    assert walks_of(role_of({"all": unread}, [Pass("all", 0)])).streams == (("compute",), ("in",))


def test_work_that_stays_on_the_rank_is_taken_along() -> None:
    members = [
        does("load", Kind.LOAD, "load", writes=("x",)),
        does("use", reads=("x",), writes=("y",), frees=("x",)),
        does("report", Kind.REPORT, "host", reads=("y",), frees=("y",)),
    ]
    assert walks_of(role_of({"all": members}, [Pass("all", 0)])).streams == (("compute", "load", "host"),)


def test_a_collective_that_something_computes_beside_is_not_in_the_row() -> None:
    members = [
        does("first", writes=("y",)),
        does("sum", Kind.ALL_REDUCE, "tensor", group=TENSOR, message="y", reads=("y",), writes=("y",)),
        does("beside"),
        does("second", reads=("y",), frees=("y",)),
    ]
    assert walks_of(role_of({"all": members}, [Pass("all", 0)])).serial == {"compute"}


def reduced(update: bool = True) -> Role:
    """Three microbatches forward and backward; the last backward pass reduces two sums of gradients beside itself."""
    forward = [does("forward", reads=("p",), writes=("r",))]
    backward = [
        does("b2", reads=("r",), accumulates=("g2",)),
        does("b1", reads=("r",), accumulates=("g1",), frees=("r",)),
    ]
    reduces = [
        does(
            f"reduce{k}",
            Kind.ALL_REDUCE,
            "reduce",
            group=DATA,
            message=f"g{k}",
            reads=(f"g{k}",),
            writes=(f"g{k}",),
            once=True,
        )
        for k in (2, 1)
    ]
    last = [backward[0], reduces[0], backward[1], reduces[1]]
    passes = {"forward": forward, "backward": backward, "last": last}
    passes["update"] = [
        does("update", reads=("g1", "g2"), writes=("p",), frees=("g1", "g2"), once=True, phase=Phase.UPDATE)
        if update
        else does("update", writes=("p",), once=True, phase=Phase.UPDATE)
    ]
    schedule = [Pass("forward", 0), Pass("forward", 1), Pass("backward", 0), Pass("last", 1), Pass("update")]
    return role_of(passes, schedule, p=Scope.RUN, g1=Scope.STEP, g2=Scope.STEP)


def test_computing_is_live_from_the_first_collective_until_it_is_waited_for() -> None:
    script = Script(role=reduced(), alone=frozenset({DATA}), competes=True)
    assert script.live == {3, 4}
    main, reduce = script.walks(0)
    assert [[line.op for line in of_pass] for of_pass in main.lines] == [
        [TIMED],
        [TIMED],
        [TIMED],
        [LIVE_COMPUTE, LIVE_COMPUTE],
        [LIVE_COMPUTE],
    ]
    assert len(main.lines[2][0].members) == 2  # both parts of a backward pass that nobody looks into
    assert [line.op for line in reduce.lines[0]] == [LIVE_COLLECTIVE, LIVE_COLLECTIVE]
    assert not Script(role=reduced(), alone=frozenset({DATA}), competes=False).live


def test_computing_is_live_all_along_where_nobody_waits_for_a_collective() -> None:
    role = reduced(update=False)
    assert Script(role=role, alone=frozenset({DATA}), competes=True).live == set(range(5))


def test_what_is_gathered_for_the_next_step_is_live_until_then() -> None:
    """Parameters gathered after the update are waited for by the next step's forward pass."""
    members = [
        does("forward", reads=("p",), writes=("r",)),
        does("backward", reads=("r",), accumulates=("g",), frees=("r",)),
    ]
    last = [
        does("update", reads=("g",), writes=("part",), frees=("g",), once=True),
        does(
            "gather",
            Kind.ALL_GATHER,
            "gather",
            group=DATA,
            message="p",
            reads=("part",),
            writes=("p",),
            frees=("part",),
            once=True,
        ),
    ]
    role = role_of(
        {"each": members, "last": last},
        [Pass("each", 0), Pass("each", 1), Pass("last")],
        p=Scope.RUN,
        g=Scope.STEP,
        part=Scope.STEP,
    )
    assert Script(role=role, alone=frozenset(), competes=True).live == {0, 2}


@pytest.mark.parametrize(("step", "members"), [(0, ["a"]), (1, ["a"]), (2, ["a", "b"])])
def test_rare_tasks_are_left_out_of_steps_in_which_they_do_not_run(step: int, members: list[str]) -> None:
    role = role_of({"all": [does("a", reads=("x",)), does("b", writes=("x",), every=3)]}, [Pass("all")], x=Scope.RUN)
    (walk,) = Script(role=role, alone=frozenset(), competes=False).walks(step)
    assert [i.id for line in walk.lines[0] for i in line.members] == members
