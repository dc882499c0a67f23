"""Programs of chains: what a schedule keeps in memory, what fusing leaves, what cannot be lowered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpdlf.errors import PlanError
from hpdlf.models.onnxpp import Graph
from hpdlf.models.plan import Partition, Strategy, partition
from hpdlf.models.program import Content, Group, Kind, Part, Phase, Program, Scope, check, dependencies, peak_memory
from hpdlf.models.program.lower import lower, lower_evaluation

LowerChain = Callable[..., Program]
MakeChain = Callable[..., Graph]


@pytest.mark.parametrize("microbatches", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("stages", [2, 3, 4])
def test_residuals_in_flight(lower_chain: LowerChain, stages: int, microbatches: int) -> None:
    """1F1B holds min(p - stage, m) microbatches (Narayanan et al. 2019), GPipe all m. The last stage of 1F1B goes backward at once:
    its residuals never leave the compiled function.
    """
    for schedule, most in (
        ("1f1b", lambda stage: min(stages - stage, microbatches)),
        ("gpipe", lambda _: microbatches),
    ):
        program = lower_chain(
            stages, batch=2 * microbatches, pipeline=stages, microbatches=microbatches, schedule=schedule
        )
        for stage, role in enumerate(program.roles[:-1]):
            residuals = role.buffer[f"res.{stage}"]
            assert residuals.nbytes > 0
            found = peak_memory(program, role).by_content[Content.RESIDUALS]
            assert found == most(stage) * residuals.nbytes, (schedule, stage)


def test_one_rank_runs_one_compiled_step(lower_chain: LowerChain) -> None:
    (role,) = lower_chain(3, batch=8).roles
    assert [str(t) for t in role.order] == ["load[0]", "forward.0+backward.0+update[0]", "report.loss"]


def test_the_three_programs_read_naturally(lower_chain: LowerChain) -> None:
    (overlapping,) = lower_chain(2, batch=8, data=2, bucket_bytes=1).roles
    assert [str(t) for t in overlapping.order] == [
        "load[0]",
        "forward.0+forward.1+backward.1[0]",
        "reduce.1",
        "backward.0[0]",
        "reduce.0",
        "update",
        "share.loss",
        "report.loss",
    ]
    first, last = lower_chain(2, batch=8, pipeline=2, microbatches=2).roles
    assert [str(t) for t in first.order if first.instruction[t.instruction].stream == "compute"] == [
        "forward.0[0]",
        "forward.0[1]",
        "backward.0[0]",
        "backward.0[1]",
        "update",
    ]
    assert "forward.1+backward.1" in last.instruction
    (alone,) = lower_chain(2, batch=8, data=2, solver="asynchronous").roles
    assert [str(t) for t in alone.order] == [
        "get.parameters",
        "load[0]",
        "forward.0+backward.0+update[0]",
        "put.update",
        "notify.version",
        "report.loss",
    ]


strategies = st.builds(
    lambda per, data, pipeline, microbatches, schedule: Strategy(
        batch=per * data * microbatches,
        data=data,
        pipeline=pipeline,
        microbatches=microbatches,
        schedule=schedule,
        bucket_bytes=1,
    ),
    per=st.integers(1, 3),
    data=st.integers(1, 3),
    pipeline=st.integers(1, 4),
    microbatches=st.integers(1, 5),
    schedule=st.sampled_from(["1f1b", "gpipe"]),
)


def cut_evenly(graph: Graph, strategy: Strategy) -> Partition:
    layers = len(graph.operators) - 1
    bucket_bytes = strategy.bucket_bytes if strategy.data > 1 else None
    return partition(
        graph,
        operator_s=[1.0] * layers + [0.0],
        stages=strategy.pipeline,
        bucket_bytes=bucket_bytes,
        samples=strategy.microbatch_samples,
        seconds_per_byte=0.0,
    )


@settings(max_examples=30, deadline=None)
@given(strategies)
def test_fusing_changes_who_runs_together_and_nothing_else(make_chain: MakeChain, strategy: Strategy) -> None:
    graph = make_chain(5)
    cut = cut_evenly(graph, strategy)
    fused = lower(graph, cut, strategy, checkpoint_every=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hpdlf.models.program.draft.fuse", lambda role: role)
        apart = lower(graph, cut, strategy, checkpoint_every=2)

    def work(program: Program) -> list[Counter[tuple[Part, int | None]]]:
        """Per role, the parts that are run and for which microbatch (an update: for the step)."""
        return [
            Counter(
                (part, None if part.phase is Phase.UPDATE else task.microbatch)
                for task in role.order
                for part in role.instruction[task.instruction].parts
            )
            for role in program.roles
        ]

    def moved(program: Program) -> list[list[tuple[str, int | None, int]]]:
        return [
            [
                (t.instruction, t.microbatch, role.payload_bytes(i))
                for t in role.order
                if (i := role.instruction[t.instruction]).kind.communicates
            ]
            for role in program.roles
        ]

    assert check(fused) == []
    assert work(fused) == work(apart)
    assert moved(fused) == moved(apart)
    for role, unfused in zip(fused.roles, apart.roles, strict=True):
        assert sum(1 for i in role.instructions if i.kind is Kind.COMPUTE) <= sum(
            1 for i in unfused.instructions if i.kind is Kind.COMPUTE
        )
        inside = {b for b in role.buffers if " of " in b.name}  # what never leaves a fused instruction
        kept = {b.name: b.nbytes for b in role.buffers if b not in inside}
        assert kept == {b.name: b.nbytes for b in unfused.buffers if b.name in kept}
        assert all(b.scope is not Scope.RUN for b in unfused.buffers if b.name not in kept)
        assert peak_memory(fused, role).peak_bytes >= peak_memory(apart, unfused).peak_bytes


@settings(max_examples=25, deadline=None)
@given(strategies)
def test_an_order_is_a_valid_sequential_execution(make_chain: MakeChain, strategy: Strategy) -> None:
    graph = make_chain(5)
    cut = cut_evenly(graph, strategy)
    for program in (lower(graph, cut, strategy, checkpoint_every=3), lower_evaluation(graph, cut, strategy)):
        assert check(program) == []
        for role in program.roles:
            for position, needs in enumerate(dependencies(role)):
                assert all(n.position < position for n in needs if n.steps_back == 0)
        assert program.loss_weight == pytest.approx(1.0 / (strategy.microbatches * strategy.data))


def test_replicas_share_nothing_but_gradients_and_numbers(lower_chain: LowerChain) -> None:
    program = lower_chain(4, batch=64, data=4, pipeline=2, microbatches=2, checkpoint_every=5)
    collectives = {i.id: i for role in program.roles for i in role.instructions if i.kind.is_collective}
    assert set(collectives) == {"reduce.0", "reduce.1", "share.loss", "share.written"}
    assert collectives["reduce.0"].group == Group(axes=("data",))
    assert all(
        role.payload_bytes(collectives[f"reduce.{stage}"]) == 2 * 4 * 4 * 4 for stage, role in enumerate(program.roles)
    )


def test_the_first_stage_needs_no_gradient_of_its_data(lower_chain: LowerChain) -> None:
    first, last = lower_chain(2, batch=4, pipeline=2, microbatches=2).roles
    assert "cot.0" in last.buffer
    assert not any(b.name == "cot.-1" for b in first.buffers)
    assert {b.name for b in first.buffers if b.scope is Scope.RUN} == {"params.0", "optimizer"}


def test_what_cannot_be_lowered_is_said(make_chain: MakeChain) -> None:
    graph = make_chain(2)
    one = cut_evenly(graph, Strategy(batch=2))
    with pytest.raises(PlanError, match="has no loss: `hpdlf import MODEL --loss"):
        lower(replace(graph, loss=None), one, Strategy(batch=2))
    with pytest.raises(PlanError, match="has nothing to train"):
        lower(replace(graph, parameters=()), one, Strategy(batch=2))
    with pytest.raises(PlanError, match="partitioned into 1 stages, the strategy has 2"):
        lower(graph, one, Strategy(batch=2, pipeline=2))
    back_and_forth = replace(one, segments={"product0": "0.0", "product1": "0.1", "loss": "0.0"})
    with pytest.raises(PlanError, match="not a run of neighbours"):
        lower(graph, back_and_forth, Strategy(batch=2))
    tied = make_chain(2, tied={1: 0})
    with pytest.raises(PlanError, match="Parameter w0 of chain is used in two segments"):
        lower(tied, replace(one, segments={"product0": "0.0", "product1": "0.1", "loss": "0.1"}), Strategy(batch=2))
