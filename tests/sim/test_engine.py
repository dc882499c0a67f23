"""The engine against what one can work out on paper."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpdlf.errors import PlanError
from hpdlf.hwprofiles import load_cluster
from hpdlf.models.cost import CostModel
from hpdlf.models.onnxpp import Graph
from hpdlf.models.plan import Strategy, partition
from hpdlf.models.program import (
    Buffer,
    Content,
    Instruction,
    Kind,
    Mesh,
    Peer,
    Phase,
    Program,
    Role,
    Scope,
    Task,
    dependencies,
)
from hpdlf.models.program.lower import lower
from hpdlf.models.trace import Event
from hpdlf.models.zoo.catalogue import import_network
from hpdlf.sim.cutting import Cutter
from hpdlf.sim.engine import play, replay
from hpdlf.sim.folding import fold, unfolded

MakeChain = Callable[..., Graph]


def lowered(graph: Graph, **fields: Any) -> Program:
    strategy = Strategy(**fields)
    bucket_bytes = strategy.bucket_bytes if strategy.data > 1 and strategy.solver == "synchronous" else None
    cut = partition(
        graph,
        operator_s=[1.0] * (len(graph.operators) - 1) + [0.0],
        stages=strategy.pipeline,
        bucket_bytes=bucket_bytes,
        samples=strategy.microbatch_samples,
        seconds_per_byte=0.0,
    )
    return lower(graph, cut, strategy)


def priced(
    program: Program, phases: Mapping[Phase, float], others: Mapping[str, float] | None = None
) -> dict[int, dict[str, float]]:
    """Every part of a compute instruction takes its phase's time; other instructions what `others` say by id, or nothing."""
    return {
        rank: {
            i.id: sum(phases.get(p.phase, 0.0) for p in i.parts) if i.parts else (others or {}).get(i.id, 0.0)
            for i in program.role_of(rank).instructions
        }
        for rank in range(program.mesh.size)
    }


def times(events: tuple[Event, ...], *, step: int = 0) -> dict[str, tuple[float, float]]:
    """{task without role and step: (start, end)}"""
    return {f"{e.rank}:{Task(e.instruction, e.microbatch)}": (e.start_s, e.end_s) for e in events if e.step == step}


def steps_end(events: tuple[Event, ...]) -> list[float]:
    return [max(e.end_s for e in events if e.step == step) for step in sorted({e.step for e in events})]


def two_ranks_and_a_link() -> Program:
    """Rank 0 computes and sends twice, rank 1 receives and computes; no buffer is used twice."""
    peer = {0: Peer("pipeline", 1), 1: Peer("pipeline", -1)}
    buffer = Buffer(name="b", content=Content.ACTIVATIONS, scope=Scope.MICROBATCH, nbytes=100)

    def instruction(id: str, kind: Kind, **more: Any) -> Instruction:
        return Instruction(id=id, kind=kind, stream=kind.value, phase=Phase.FORWARD, **more)

    make = instruction("make", Kind.COMPUTE, writes=("b",))
    send = instruction("send.b", Kind.SEND, reads=("b",), frees=("b",), peer=peer[0], message="b")
    receive = instruction("receive.b", Kind.RECEIVE, writes=("b",), peer=peer[1], message="b")
    use = instruction("use", Kind.COMPUTE, reads=("b",), frees=("b",))
    roles = tuple(
        Role.in_order(
            name=f"stage{stage}",
            coordinates={"pipeline": stage},
            buffers=(buffer,),
            instructions=work,
            order=tuple(Task(i.id, m) for m in (0, 1) for i in work),
        )
        for stage, work in enumerate([(make, send), (receive, use)])
    )
    mesh = Mesh(axes={"pipeline": 2, "data": 1})
    return Program(
        name="two", mesh=mesh, microbatches=2, microbatch_samples=1, loss_weight=1.0, roles=roles, segments={}
    )


def test_two_tasks_and_a_link() -> None:
    program = two_ranks_and_a_link()
    events = replay(program, {0: {"make": 2.0, "send.b": 3.0}, 1: {"receive.b": 0.0, "use": 1.0}}, steps=1)
    assert times(events) == {
        "0:make[0]": (0.0, 2.0),
        "0:make[1]": (2.0, 4.0),
        "0:send.b[0]": (2.0, 5.0),
        "0:send.b[1]": (5.0, 8.0),  # the link is busy
        "1:receive.b[0]": (0.0, 5.0),  # waits from the beginning
        "1:use[0]": (5.0, 6.0),
        "1:receive.b[1]": (5.0, 8.0),
        "1:use[1]": (8.0, 9.0),
    }
    assert {e.payload_bytes for e in events if e.kind in ("send", "receive")} == {100}


def test_a_step_may_begin_before_the_one_before_has_ended_everywhere() -> None:
    events = replay(
        two_ranks_and_a_link(), {0: {"make": 2.0, "send.b": 3.0}, 1: {"receive.b": 0.0, "use": 1.0}}, steps=2
    )
    assert times(events, step=1)["0:make[0]"] == (4.0, 6.0)  # its own buffers: nobody to wait for
    assert times(events, step=1)["1:use[1]"] == (14.0, 15.0)  # the link is what limits: 4 messages of 3 s after 2 s


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize(("stages", "microbatches"), [(1, 3), (2, 1), (2, 4), (3, 5), (4, 4), (4, 16)])
def test_the_bubble_of_a_pipeline(make_chain: MakeChain, schedule: str, stages: int, microbatches: int) -> None:
    """(p-1)/(m+p-1) of the step with uniform stages and communication for nothing: Huang et al. 2019, section 2.3; 1F1B with a
    flush has the same (Narayanan et al. 2019, 2021).
    """
    program = lowered(
        make_chain(stages), batch=microbatches, pipeline=stages, microbatches=microbatches, schedule=schedule
    )
    forward_s, backward_s = 1.0, 2.0
    events = replay(program, priced(program, {Phase.FORWARD: forward_s, Phase.BACKWARD: backward_s}), steps=3)
    step_s = (microbatches + stages - 1) * (forward_s + backward_s)
    assert steps_end(events) == [step_s, 2 * step_s, 3 * step_s]
    for rank in range(stages):
        busy_s = sum(e.end_s - e.start_s for e in events if e.rank == rank and e.kind == "compute")
        assert 1 - busy_s / (3 * step_s) == pytest.approx((stages - 1) / (microbatches + stages - 1))


def overlapping(make_chain: MakeChain) -> tuple[Program, dict[int, dict[str, float]]]:
    """Two layers in buckets of their own on two replicas: forward 1 s, backward 2 s a layer, all-reduces 1.5 and 0.5 s."""
    program = lowered(make_chain(2), batch=4, data=2, bucket_bytes=1)
    phases = {Phase.FORWARD: 1.0, Phase.BACKWARD: 2.0, Phase.UPDATE: 1.0}
    return program, priced(program, phases, {"reduce.1": 1.5, "reduce.0": 0.5})


def test_an_all_reduce_hides_behind_the_rest_of_backward(make_chain: MakeChain) -> None:
    program, seconds = overlapping(make_chain)
    found = times(replay(program, seconds, steps=1))
    for rank in (0, 1):
        assert found[f"{rank}:forward.0+forward.1+backward.1[0]"] == (0.0, 4.0)
        assert found[f"{rank}:reduce.1"] == (4.0, 5.5)
        assert found[f"{rank}:backward.0[0]"] == (4.0, 6.0)
        assert found[f"{rank}:reduce.0"] == (6.0, 6.5)
        assert found[f"{rank}:update"] == (6.5, 7.5)


@pytest.mark.parametrize(("overlap", "backward_end_s"), [(1.0, 6.0), (0.5, 6.75), (0.25, 7.125), (0.0, 7.5)])
def test_what_a_device_cannot_hide_holds_up_its_computing(
    make_chain: MakeChain, overlap: float, backward_end_s: float
) -> None:
    """While the 1.5 s of the all-reduce run, computing advances at the hidden share of its speed; with none it stands still."""
    program, seconds = overlapping(make_chain)
    found = times(replay(program, seconds, steps=1, communication_overlap=overlap))
    assert found["0:backward.0[0]"] == pytest.approx((4.0, backward_end_s))
    assert found["0:update"] == pytest.approx((backward_end_s + 0.5, backward_end_s + 1.5))
    total_s = 1 + 1 + 2 + 2 + 1 + 1.5 + 0.5
    if not overlap:
        assert found["0:update"][1] == pytest.approx(total_s)


def test_a_long_transfer_beside_short_tasks_costs_few_events(make_chain: MakeChain) -> None:
    program, seconds = overlapping(make_chain)
    slow = {rank: prices | {"reduce.1": 1e6, "backward.0": 1e-6} for rank, prices in seconds.items()}
    found = times(replay(program, slow, steps=1, communication_overlap=0.0))
    assert found["0:backward.0[0]"] == pytest.approx((4.0, 1e6 + 4.0 + 1e-6), rel=1e-12)
    found = times(replay(program, slow, steps=1, communication_overlap=0.01))
    assert found["0:backward.0[0]"][1] == pytest.approx(4.0 + 1e-4)


def test_a_collective_begins_when_the_last_has_come(make_chain: MakeChain) -> None:
    program, seconds = overlapping(make_chain)
    late = {0: seconds[0], 1: {k: 3 * s if k.startswith("forward") else s for k, s in seconds[1].items()}}
    found = times(replay(program, late, steps=1))
    assert found["0:reduce.1"] == (4.0, 13.5)
    assert found["1:reduce.1"] == (12.0, 13.5)
    assert found["0:backward.0[0]"] == (4.0, 6.0)


def test_asynchronous_ranks_wait_for_nobody(make_chain: MakeChain) -> None:
    program = lowered(make_chain(2), batch=8, data=4, solver="asynchronous")
    phases = {Phase.FORWARD: 1.0, Phase.BACKWARD: 2.0, Phase.UPDATE: 0.5}
    seconds = priced(program, phases, {"get.parameters": 0.25, "put.update": 0.25, "notify.version": 0.0})
    even = replay(program, seconds, steps=5)
    slow = {r: {k: (3 * s if r == 2 else s) for k, s in prices.items()} for r, prices in seconds.items()}
    straggling = replay(program, slow, steps=5)
    others = [e for e in even if e.rank != 2]
    assert [e for e in straggling if e.rank != 2] == others
    step_s = 0.25 + 2 * (1.0 + 2.0) / 2 + 0.5 + 0.25
    assert max(e.end_s for e in others) == pytest.approx(5 * step_s)
    assert max(e.end_s for e in straggling if e.rank == 2) == pytest.approx(5 * 3 * step_s)


@settings(max_examples=40, deadline=None)
@given(
    stages=st.integers(1, 4),
    data=st.integers(1, 3),
    microbatches=st.integers(1, 4),
    schedule=st.sampled_from(["1f1b", "gpipe"]),
    overlap=st.sampled_from([1.0, 0.5, 0.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_dependency_and_every_streams_order_is_honoured(
    make_chain: MakeChain, stages: int, data: int, microbatches: int, schedule: str, overlap: float, seed: int
) -> None:
    import random

    program = lowered(
        make_chain(4),
        batch=data * microbatches,
        data=data,
        pipeline=stages,
        microbatches=microbatches,
        schedule=schedule,
        bucket_bytes=1,
    )
    rng = random.Random(seed)
    seconds = {
        r: {i.id: rng.choice([0.0, rng.random()]) for i in program.role_of(r).instructions}
        for r in range(program.mesh.size)
    }
    events = replay(program, seconds, steps=3, communication_overlap=overlap)
    check_order(program, events, steps=3)


def check_order(program: Program, events: tuple[Event, ...], *, steps: int) -> None:
    """Every task ran once, after the tasks of its stream and all that it depends on; receives after their sends, collectives as one."""
    found = {(e.rank, e.step, Task(e.instruction, e.microbatch)): e for e in events}
    assert (
        len(found)
        == len(events)
        == sum(
            i.runs_in(step)
            for r in range(program.mesh.size)
            for step in range(steps)
            for i in (program.role_of(r).instruction[t.instruction] for t in program.role_of(r).order)
        )
    )
    for rank in range(program.mesh.size):
        role = program.role_of(rank)
        needs = dependencies(role)
        for step in range(steps):
            before: dict[str, Event] = {}
            for position, task in enumerate(role.order):
                if not role.instruction[task.instruction].runs_in(step):
                    continue
                event = found[rank, step, task]
                assert event.end_s >= event.start_s
                if event.stream in before:
                    assert event.start_s >= before[event.stream].end_s
                before[event.stream] = event
                for need in needs[position]:
                    needed = role.instruction[role.order[need.position].instruction]
                    if step >= need.steps_back and needed.runs_in(step - need.steps_back):
                        assert event.start_s >= found[rank, step - need.steps_back, role.order[need.position]].end_s
                instruction = role.instruction[task.instruction]
                if instruction.kind is Kind.RECEIVE:
                    assert instruction.peer is not None
                    sent = found[
                        program.mesh.peer(rank, instruction.peer),
                        step,
                        Task(f"send.{instruction.message}", task.microbatch),
                    ]
                    assert event.end_s >= sent.end_s
                if instruction.kind.is_collective:
                    assert instruction.group is not None
                    ends = {found[member, step, task].end_s for member in program.mesh.group(rank, instruction.group)}
                    assert ends == {event.end_s}


MIXES: list[dict[str, Any]] = [
    {"data": 2, "tensor": 2, "pipeline": 2, "microbatches": 4, "recompute": "full"},
    {"data": 2, "tensor": 2, "pipeline": 2, "microbatches": 4, "sequence_parallel": True, "recompute": "selective"},
    {"data": 2, "pipeline": 2, "microbatches": 4, "interleave": 2, "zero": 1},
    {"data": 2, "pipeline": 3, "microbatches": 5, "schedule": "zero_bubble", "zero": 2},
    {"data": 4, "microbatches": 3, "zero": 3},
    {"data": 2, "context": 2, "microbatches": 2},
    {"data": 3, "microbatches": 2, "solver": "local", "synchronise_every": 2},
]


@pytest.mark.parametrize("overlap", [1.0, 0.6])
@pytest.mark.parametrize("mix", MIXES, ids=lambda mix: " ".join(f"{k} {v}" for k, v in mix.items()))
def test_mixes_of_parallelism_keep_every_order(mix: dict[str, Any], overlap: float) -> None:
    import random

    graph = import_network("gpt", layers=4, hidden=256, heads=4, seq_len=32, vocab=512).graph
    strategy = Strategy(batch=mix["data"] * mix["microbatches"], bucket_bytes=1000, **mix)
    program = Cutter(graph, load_cluster("dgx-a100:4"), CostModel.default()).lower(strategy)
    rng = random.Random(1)
    seconds = {
        rank: {i.id: rng.choice([0.0, rng.random()]) for i in program.role_of(rank).instructions}
        for rank in range(program.mesh.size)
    }
    events = play(
        program,
        seconds,
        folding=unfolded(program.mesh),
        steps=4,
        communication_overlap=overlap,
        collective_share=overlap,
    ).events
    check_order(program, events, steps=4)


def test_a_deadlock_names_who_waits(make_chain: MakeChain) -> None:
    program = lowered(make_chain(2), batch=2, pipeline=2, microbatches=1)
    first, last = program.roles
    # Stage 0 goes backward before it goes forward: the gradient that it waits for depends on what it has not sent.
    backward = [t for t in first.order if "cot" in t.instruction or t.instruction.startswith("backward")]
    first = first.reordered((*backward, *(t for t in first.order if t not in backward)))
    wrong = replace(program, roles=(first, last))
    with pytest.raises(PlanError) as caught:
        replay(wrong, priced(wrong, {Phase.FORWARD: 1.0}), steps=1)
    said = str(caught.value)
    assert "deadlocks" in said
    assert "stage0 rank 0: receive.cot.0[0] of step 0" in said
    assert "stage1 rank 1: receive.act.0[0] of step 0" in said


def test_the_same_input_gives_the_same_events(make_chain: MakeChain) -> None:
    program, seconds = overlapping(make_chain)
    assert replay(program, seconds, steps=3) == replay(program, dict(reversed(seconds.items())), steps=3)


def test_an_instruction_that_is_rare_runs_when_it_is_due(make_chain: MakeChain) -> None:
    graph = make_chain(2)
    strategy = Strategy(batch=2)
    cut = partition(graph, operator_s=[1.0] * 3, stages=1, bucket_bytes=None, samples=2, seconds_per_byte=0.0)
    program = lower(graph, cut, strategy, checkpoint_every=3)
    events = replay(program, priced(program, {Phase.FORWARD: 1.0}, {"checkpoint": 10.0}), steps=7)
    assert [e.step for e in events if e.kind == "checkpoint"] == [2, 5]
    # The next update changes what is being written: it waits. The one after that does not.
    compute = [e for e in events if e.kind == "compute"]
    assert [round(b.start_s - a.end_s) for a, b in pairwise(compute)] == [0, 0, 10, 0, 0, 10]


def test_messages_that_meet_on_a_link_share_it() -> None:
    """Two pairs of ranks send over one link from 2 s on, 3 s each when alone. Both take 6 s for the first message; the second pair's
    next one is ready at 4 s and waits for its stream.
    """
    program = two_ranks_and_a_link()
    program = replace(program, mesh=Mesh(axes={"pipeline": 2, "data": 2}))
    seconds = {rank: {"make": 2.0, "send.b": 3.0} if rank < 2 else {"receive.b": 0.0, "use": 1.0} for rank in range(4)}
    folding = unfolded(program.mesh)

    def played(shares: Mapping[int, Mapping[str, Mapping[str, float]]]) -> dict[str, tuple[float, float]]:
        return times(play(program, seconds, folding=folding, steps=1, shares=shares).events)

    alone = played({0: {"send.b": {"link": 1.0}}, 1: {"send.b": {"other": 1.0}}})
    assert alone["0:send.b[0]"] == alone["1:send.b[0]"] == (2.0, 5.0)
    shared = played({0: {"send.b": {"link": 1.0}}, 1: {"send.b": {"link": 1.0}}})
    for rank in (0, 1):
        assert shared[f"{rank}:send.b[0]"] == pytest.approx((2.0, 8.0))
        assert shared[f"{rank}:send.b[1]"] == pytest.approx((8.0, 14.0))
        assert shared[f"{rank}:make[1]"] == (2.0, 4.0)  # computing goes on
        assert shared[f"{rank + 2}:use[1]"] == pytest.approx((14.0, 15.0))
    half = played({0: {"send.b": {"link": 1.0}}, 1: {"send.b": {"link": 0.5}}})
    # The second pair is never slowed and has half the link until 8 s.
    assert half["1:send.b[1]"] == pytest.approx((5.0, 8.0))
    assert half["0:send.b[0]"] == pytest.approx((2.0, 8.0))
    assert half["0:send.b[1]"] == pytest.approx((8.0, 11.0))


def test_transfers_that_use_a_link_one_after_the_other_change_nothing(make_chain: MakeChain) -> None:
    program, seconds = overlapping(make_chain)
    folding = unfolded(program.mesh)
    shares = {rank: {"reduce.1": {"link": 1.0}, "share.loss": {"link": 1.0}} for rank in (0, 1)}
    found = times(play(program, seconds, folding=folding, steps=1, shares=shares).events)
    assert found == times(play(program, seconds, folding=folding, steps=1).events)


def test_both_sides_pay_where_computing_and_an_all_reduce_meet(make_chain: MakeChain) -> None:
    """Backward for 2 s at 0.8 beside an all-reduce of 1.5 s at 0.5: of the all-reduce 0.25 s are left after 2.5 s."""
    program, seconds = overlapping(make_chain)
    played = play(program, seconds, folding=fold(program), steps=1, communication_overlap=0.8, collective_share=0.5)
    found = times(played.events)
    assert found["0:backward.0[0]"] == pytest.approx((4.0, 6.5))
    assert found["0:reduce.1"] == pytest.approx((4.0, 6.75))
    assert found["0:reduce.0"] == pytest.approx((6.75, 7.25))  # its stream was busy
    assert found["0:update"] == pytest.approx((7.25, 8.25))


def test_a_deadlock_says_what_is_waited_for(make_chain: MakeChain) -> None:
    program = lowered(make_chain(2), batch=2, pipeline=2, microbatches=1)
    first, last = program.roles
    backward = [t for t in first.order if "cot" in t.instruction or t.instruction.startswith("backward")]
    first = first.reordered((*backward, *(t for t in first.order if t not in backward)))
    wrong = replace(program, roles=(first, last))
    with pytest.raises(PlanError, match=r"receive.act.0\[0\] of step 0 waits for stage0 rank 0 to send it") as caught:
        replay(wrong, priced(wrong, {Phase.FORWARD: 1.0}), steps=1)
    assert "waits for receive.cot.0[0]" in str(caught.value)
    assert "waits for 1 of 2 simulated members, who have not come" in str(caught.value)


def test_a_long_step_is_played_without_writing_its_tasks_out(make_chain: MakeChain) -> None:
    program = lowered(make_chain(4), batch=256, pipeline=4, microbatches=256)
    prices = priced(program, {Phase.FORWARD: 1.0, Phase.BACKWARD: 2.0})
    played = play(program, prices, folding=fold(program), steps=1)
    assert played.end_s == (256 + 4 - 1) * 3.0
    assert not any("order" in vars(role) for role in program.roles)
