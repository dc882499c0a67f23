"""Which ranks behave alike, and that one of them ends when all of them do."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpdlf.hwprofiles import load_cluster
from hpdlf.models.cost import CostModel
from hpdlf.models.onnxpp import Graph
from hpdlf.models.program import (
    Buffer,
    Content,
    Group,
    Instruction,
    Kind,
    Mesh,
    Pass,
    Peer,
    Phase,
    Program,
    Role,
    Scope,
    Task,
)
from hpdlf.sim import Pricing
from hpdlf.sim.engine import play
from hpdlf.sim.folding import Folding, fold, unfolded

TENSOR, DATA = Group(("tensor",)), Group(("data",))
EVERYBODY = Group(("pipeline", "data", "tensor"))
NBYTES = 1 << 24
EMPTY = Graph(
    name="none", opset=20, operators=(), tensors={}, inputs=(), targets=(), outputs=(), loss=None, parameters=(), state={},
    constants=(),
)  # fmt: skip


def program_of(pipeline: int, data: int, tensor: int, *, microbatches: int = 1, ring: bool = False) -> Program:
    """Every stage receives, computes twice with an all-reduce over `tensor` between, sends; then gradients are reduced over
    `data` while it computes on, and everybody meets. With a `ring`, tensor ranks hand something round instead."""
    roles = []
    for stage in range(pipeline):
        work: list[Instruction] = []

        def does(id: str, kind: Kind, stream: str = "compute", work: list[Instruction] = work, **more: Any) -> None:
            phase = Phase.BACKWARD if more.pop("once", False) else Phase.FORWARD
            work.append(Instruction(id=id, kind=kind, stream=stream, phase=phase, **more))

        if stage:
            does("receive", Kind.RECEIVE, "in", peer=Peer("pipeline", -1), message="act", writes=("x",))
        does("first", Kind.COMPUTE, reads=("x",) if stage else (), frees=("x",) if stage else (), writes=("y",))
        if ring:
            does("give", Kind.SEND, "give", peer=Peer("tensor", 1, wraps=True), message="ring", reads=("y",))
            does("take", Kind.RECEIVE, "take", peer=Peer("tensor", -1, wraps=True), message="ring", writes=("z",))
        else:
            does("sum", Kind.ALL_REDUCE, "tensor", group=TENSOR, message="y", reads=("y",), writes=("z",))
        does("second", Kind.COMPUTE, reads=("z",), writes=("out",), frees=("y", "z"))
        if stage < pipeline - 1:
            does("send", Kind.SEND, "out", peer=Peer("pipeline", 1), message="act", reads=("out",), frees=("out",))
        each = tuple(i.id for i in work)
        does("reduce", Kind.ALL_REDUCE, "reduce", group=DATA, message="g", writes=("g",), once=True)
        does("beside", Kind.COMPUTE, once=True)
        does(
            "everybody",
            Kind.ALL_REDUCE,
            "control",
            group=EVERYBODY,
            message="e",
            reads=("g",),
            writes=("e",),
            once=True,
        )
        does("update", Kind.COMPUTE, reads=("e",), frees=("e", "g"), once=True)
        last = tuple(i.id for i in work[len(each) :])
        scopes = {"x": Scope.MICROBATCH, "y": Scope.MICROBATCH, "z": Scope.MICROBATCH, "out": Scope.MICROBATCH}
        scopes |= {"g": Scope.STEP, "e": Scope.STEP}
        roles.append(
            Role(
                name=f"stage{stage}",
                coordinates={"pipeline": stage},
                buffers=tuple(
                    Buffer(name=n, content=Content.WORKSPACE, scope=s, nbytes=NBYTES) for n, s in scopes.items()
                ),
                instructions=tuple(work),
                passes={"each": each, "last": last},
                schedule=(*(Pass("each", m) for m in range(microbatches)), Pass("last")),
            )
        )
    return Program(
        name="test",
        mesh=Mesh(axes={"pipeline": pipeline, "data": data, "tensor": tensor}),
        microbatches=microbatches,
        microbatch_samples=1,
        loss_weight=1.0,
        roles=tuple(roles),
        segments={},
    )


def slow(size: int, rank: int) -> list[float]:
    return [2.0 if r == rank else 1.0 for r in range(size)]


def test_ranks_of_a_stage_are_alike() -> None:
    program = program_of(3, 4, 2)
    assert fold(program).multiplicity == {0: 8, 8: 8, 16: 8}
    assert fold(program, load_cluster("dgx-a100:3")).multiplicity == {0: 8, 8: 8, 16: 8}


def test_a_slow_rank_is_told_apart_by_those_who_deal_with_it() -> None:
    """In its stage: itself, its tensor neighbours, the same place of other replicas, the rest; their lines in the other stages."""
    program = program_of(4, 16, 4)
    found = fold(program, speed=slow(256, 5))  # stage 0, replica 1, tensor 1
    in_stage = {5: 1, 4: 3, 1: 15, 0: 45}
    expected = {rank + 64 * stage: count for stage in range(4) for rank, count in in_stage.items()}
    assert found.multiplicity == expected


def test_what_a_node_holds_tells_ranks_apart() -> None:
    """Three stages of three replicas fill a node of 8 and one place of another: the last rank's messages and group go between
    nodes, as in the stages before it those of its line."""
    found = fold(program_of(3, 3, 1), load_cluster("dgx-a100:2"))
    assert found.multiplicity == {0: 2, 2: 1, 3: 2, 5: 1, 6: 2, 8: 1}
    assert fold(program_of(3, 3, 1), load_cluster("dgx-a100:2x16")).multiplicity == {0: 3, 3: 3, 6: 3}


PLACES = [
    ("dgx-a100:3", (3, 4, 2)),
    ("dgx-a100:5x6", (2, 3, 5)),
    ("dgx-1-v100:4", (2, 4, 4)),
    ("dgx-1-v100:4", (4, 2, 2)),
    ("aws-p2.8xlarge:3", (2, 6, 2)),
    ("gcp-tpu-v4-64", (2, 8, 4)),
    ("gcp-tpu-v5e-256", (4, 4, 8)),
    ("gb200-nvl72:20", (2, 9, 4)),
    ("xeon-64", (4, 4, 2)),
]


@pytest.mark.parametrize(("cluster", "mesh"), PLACES)
def test_whoever_is_folded_pays_the_same(cluster: str, mesh: tuple[int, int, int]) -> None:
    program, where = program_of(*mesh), load_cluster(cluster)
    pricing = Pricing(program=program, graph=EMPTY, cluster=where, model=CostModel.default())
    folding = fold(program, where)
    for rank in range(program.mesh.size):
        stands_in = folding.representatives[int(folding.class_of[rank])]
        for i in program.role_of(rank).instructions:
            if i.kind is not Kind.COMPUTE:
                assert pricing.estimate(rank, i) == pricing.estimate(stands_in, i), (rank, stands_in, i.id)
    if cluster in ("gcp-tpu-v4-64", "gcp-tpu-v5e-256", "dgx-a100:3", "gb200-nvl72:20", "xeon-64"):
        assert len(folding.representatives) == mesh[0]


@pytest.mark.parametrize("ring", [False, True])
def test_a_hundred_thousand_ranks_are_folded_at_once(ring: bool) -> None:
    program = program_of(25, 500, 8, ring=ring)
    cluster = load_cluster("dgx-a100:12500")
    # Around a ring everybody has a place of their own beside the slow rank, in its replica and in the others.
    for speed, classes in ((None, 25), (slow(100_000, 5), 25 * (16 if ring else 4))):
        start = time.perf_counter()
        found = fold(program, cluster, speed)
        assert time.perf_counter() - start < 2.0  # a tenth of that where nothing else runs
        assert sum(found.multiplicity.values()) == 100_000
        assert len(found.representatives) == classes


def test_one_slow_rank_of_4096_costs_little() -> None:
    program = program_of(8, 64, 8)
    assert len(fold(program).representatives) == 8
    assert len(fold(program, speed=slow(4096, 777)).representatives) == 32


def test_who_is_met_is_told_in_classes() -> None:
    found = fold(program_of(2, 4, 2), speed=slow(16, 3))
    classes = found.class_of.reshape(2, 4, 2)
    assert found.met(3, TENSOR) == tuple(sorted({int(classes[0, 1, 0]), int(classes[0, 1, 1])}))
    assert len(found.met(3, DATA)) == 2
    assert found.met(0, EVERYBODY) == tuple(range(len(found.representatives)))
    assert found.peer(3, Peer("pipeline", 1)) == int(classes[1, 1, 1])


def test_without_folding_everybody_is_by_itself() -> None:
    mesh = Mesh(axes={"data": 3})
    assert unfolded(mesh).multiplicity == {0: 1, 1: 1, 2: 1}
    some = unfolded(mesh, [2, 0])
    assert (some.representatives, some.class_of.tolist()) == ((0, 2), [0, -1, 1])
    assert some.met(0, DATA) == (0, 1)


def ends(program: Program, folding: Folding, prices: Mapping[str, float], speed: list[float], **options: Any) -> Any:
    seconds = {}
    for rank in folding.representatives:
        role = program.role_of(rank)
        seconds[rank] = {
            i.id: prices[i.id] * (speed[rank] if i.kind is Kind.COMPUTE else 1.0) for i in role.instructions
        }
    played = play(program, seconds, folding=folding, steps=3, **options)
    return {(e.rank, e.step, Task(e.instruction, e.microbatch)): e.end_s for e in played.events}


@settings(max_examples=60, deadline=None)
@given(
    pipeline=st.integers(1, 4),
    data=st.integers(1, 4),
    tensor=st.integers(1, 4),
    microbatches=st.integers(1, 4),
    ring=st.booleans(),
    slowed=st.lists(st.integers(0, 63), max_size=3),
    overlap=st.sampled_from([1.0, 0.5]),
    seed=st.integers(0, 2**32 - 1),
)
def test_one_rank_of_a_class_does_what_all_of_it_do(
    pipeline: int, data: int, tensor: int, microbatches: int, ring: bool, slowed: list[int], overlap: float, seed: int
) -> None:
    program = program_of(pipeline, data, tensor, microbatches=microbatches, ring=ring)
    speed = [1.0] * program.mesh.size
    for rank in slowed:
        speed[rank % program.mesh.size] = 1.5
    random = np.random.default_rng(seed)
    ids = sorted({i.id for role in program.roles for i in role.instructions})
    prices = dict(zip(ids, random.exponential(size=len(ids)).tolist(), strict=True))
    options = {"communication_overlap": overlap, "collective_share": 0.8 if overlap < 1.0 else 1.0}
    folding, everybody = fold(program, speed=speed), unfolded(program.mesh)
    folded = ends(program, folding, prices, speed, **options)
    all_ends = ends(program, everybody, prices, speed, **options)
    for (rank, step, task), end_s in all_ends.items():
        stands_in = folding.representatives[int(folding.class_of[rank])]
        assert abs(folded[stands_in, step, task] - end_s) < 1e-9
