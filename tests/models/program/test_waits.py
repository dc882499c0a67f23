"""What passes wait for, against the dependencies of the tasks written out."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpdlf.models.program import (
    Buffer,
    Content,
    Earlier,
    Instruction,
    Kind,
    Pass,
    Phase,
    Program,
    Role,
    Scope,
    dependencies,
)
from hpdlf.models.program.waits import Wait, waits

STEPS = 4
Node = tuple[int, int]  # step, position in the order
Before = dict[Node, frozenset[Node]]


def closed(role: Role, direct: Callable[[int, int], Iterator[Node]]) -> Before:
    """For every task of a few steps, all that must have ended: what `direct` says, what streams imply, and what follows."""
    instructions = [role.instruction[t.instruction] for t in role.order]
    runs = {(s, p) for s in range(STEPS) for p, i in enumerate(instructions) if i.runs_in(s)}
    last: dict[str, Node] = {}
    needs: dict[Node, set[Node]] = {}
    for node in sorted(runs):
        needs[node] = {n for n in direct(*node) if n in runs}
        stream = instructions[node[1]].stream
        if stream in last:
            needs[node].add(last[stream])
        last[stream] = node
    before: Before = {node: frozenset() for node in needs}
    while True:
        longer = {node: frozenset(direct).union(*(before[n] for n in direct)) for node, direct in needs.items()}
        if longer == before:
            return before
        before = longer


def by_tasks(role: Role) -> Before:
    needs = dependencies(role)
    return closed(role, lambda step, p: ((step - n.steps_back, n.position) for n in needs[p]))


def by_passes(role: Role) -> Before:
    found = waits(role)
    places = [(q, k) for q, (name, _) in enumerate(role.schedule) for k in range(len(role.passes[name]))]
    position = {}
    for p, (q, k) in enumerate(places):
        position[q, role.passes[role.schedule[q].name][k]] = p

    def direct(step: int, p: int) -> Iterator[Node]:
        q, k = places[p]
        for wait in found.kinds[found.of_pass[q]].waits[k]:
            back, there = divmod(q - wait.passes_back, len(role.schedule))
            yield step + back, position[there, wait.instruction]

    return closed(role, direct)


@st.composite
def roles(draw: st.DrawFn) -> Role:
    """Passes of a few instructions on a few streams over a few buffers, in any order of any microbatches."""
    scopes = draw(st.lists(st.sampled_from(list(Scope)), min_size=1, max_size=4))
    buffers = [Buffer(name=f"b{k}", content=Content.WORKSPACE, scope=scope, nbytes=1) for k, scope in enumerate(scopes)]
    names = st.lists(st.sampled_from([b.name for b in buffers]), max_size=2).map(tuple)
    ids = [f"i{k}" for k in range(draw(st.integers(2, 7)))]
    instructions = []
    for id in ids:
        stream = draw(st.sampled_from("ABC"))
        # A stream that waited for what it does later would never go on.
        stated = [i.id for i in instructions[-1:] if i.stream != stream]
        instructions.append(
            Instruction(
                id=id,
                kind=Kind.COMPUTE,
                stream=stream,
                phase=Phase.FORWARD,
                reads=draw(names),
                writes=draw(names),
                accumulates=draw(names),
                frees=draw(names),
                after=draw(st.sampled_from([(), tuple(stated)])),
                after_earlier=draw(st.sampled_from([(), (), (), tuple(Earlier(i, 2) for i in ids[-1:])])),
                every=draw(st.sampled_from([1, 1, 1, 2])),
            )
        )
    cuts = sorted(draw(st.sets(st.integers(1, len(ids) - 1), max_size=2)))
    parts = [ids[a:b] for a, b in zip([0, *cuts], [*cuts, len(ids)], strict=True)]
    passes = {f"pass{k}": tuple(part) for k, part in enumerate(parts)}
    microbatches = draw(st.integers(1, 4))
    per_step = draw(st.sets(st.sampled_from(list(passes)), max_size=1))
    each = [Pass(n, m) for n in passes if n not in per_step for m in range(microbatches)]
    schedule = draw(st.permutations([*each, *(Pass(n, None) for n in sorted(per_step))]))
    if draw(st.booleans()) and schedule[-1].microbatch is not None:
        # The last pass does something once besides, as a last backward pass reduces gradients.
        once = Instruction(
            id="once",
            kind=Kind.COMPUTE,
            stream=draw(st.sampled_from("ABC")),
            phase=Phase.FORWARD,
            reads=draw(names),
            writes=draw(names),
            once=True,
        )
        instructions.append(once)
        name, microbatch = schedule[-1]
        at = draw(st.integers(0, len(passes[name])))
        passes["last"] = (*passes[name][:at], "once", *passes[name][at:])
        schedule = [*schedule[:-1], Pass("last", microbatch)]
    return Role(
        name="role",
        coordinates={},
        buffers=tuple(buffers),
        instructions=tuple(instructions),
        passes=passes,
        schedule=tuple(schedule),
    )


def test_microbatches_out_of_order_each_wait_for_their_own() -> None:
    # b is of the microbatch; pass y of 0 finds what it waits for done already, that of 2 does not.
    def instruction(id: str, stream: str) -> Instruction:
        return Instruction(id=id, kind=Kind.COMPUTE, stream=stream, phase=Phase.FORWARD, frees=("b",))

    role = Role(
        name="role",
        coordinates={},
        buffers=(Buffer(name="b", content=Content.WORKSPACE, scope=Scope.MICROBATCH, nbytes=1),),
        instructions=(instruction("i", "A"), instruction("j", "B")),
        passes={"x": ("i",), "y": ("j",)},
        schedule=tuple(Pass(name, m) for name, m in (("x", 0), ("x", 1), ("x", 2), ("y", 1), ("y", 0), ("y", 2))),
    )
    assert by_passes(role) == by_tasks(role)
    found = waits(role)
    assert [found.kinds[k].waits for k in found.of_pass[3:]] == [((Wait("i", 2),),), ((),), ((Wait("i", 3),),)]


@settings(max_examples=200, deadline=None)
@given(role=roles())
def test_passes_wait_for_what_their_tasks_depend_on(role: Role) -> None:
    assert by_passes(role) == by_tasks(role)


@pytest.mark.parametrize(
    "fields",
    [
        {"data": 2, "microbatches": 3},
        {"pipeline": 3, "microbatches": 6},
        {"pipeline": 2, "data": 2, "microbatches": 4, "schedule": "gpipe"},
        {"data": 3, "solver": "asynchronous", "microbatches": 2},
    ],
)
def test_lowered_programs_too(lower_chain: Callable[..., Program], fields: dict[str, object]) -> None:
    for role in lower_chain(3, batch=24, checkpoint_every=2, bucket_bytes=1, **fields).roles:
        assert by_passes(role) == by_tasks(role)


def test_a_long_step_has_few_kinds_of_passes(lower_chain: Callable[..., Program]) -> None:
    short, long = (lower_chain(4, batch=m, pipeline=4, microbatches=m) for m in (16, 256))
    for a, b in zip(short.roles, long.roles, strict=True):
        assert len(waits(a).kinds) == len(waits(b).kinds)
    kinds = {kind.name: kind for kind in waits(long.roles[1]).kinds}
    order = long.roles[1].passes["forward"]
    needs = dict(zip(order, kinds["forward"].waits, strict=True))
    assert needs["receive.act.0"] == ()
    (forward,) = (i for i in order if i.startswith("forward"))
    assert needs[forward] == (Wait("receive.act.0", 0),)
    assert needs["send.act.1"] == (Wait(forward, 0),)
