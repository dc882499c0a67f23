"""Programs of parallel strategies: bytes kept and sent, against the counts of the papers that the strategies are from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from hpdlf.errors import PlanError
from hpdlf.models.onnxpp import Graph
from hpdlf.models.program import Buffer, Content, Group, Kind, Phase, Program, Role, Scope, Task, check, peak_memory
from hpdlf.models.zoo import import_network

Lower = Callable[..., Program]
LAYERS, WIDTH, TOKENS = 4, 512, 64


@pytest.fixture(scope="module")
def gpt() -> Graph:
    """A decoder whose embedding and head are one table."""
    return import_network("gpt", layers=LAYERS, hidden=WIDTH, heads=8, seq_len=TOKENS, vocab=4096).graph


def held(role: Role, content: Content, *scopes: Scope) -> int:
    return sum(b.nbytes for b in role.buffers if b.content is content and b.scope in (scopes or (Scope.RUN,)))


def sent(role: Role, kinds: Iterable[Kind] = tuple(Kind), group: str = "") -> int:
    """Bytes of all collectives and messages of a step, each counted whole."""
    times = Counter(task.instruction for task in role.order)
    return sum(
        times[i.id] * role.payload_bytes(i)
        for i in role.instructions
        if i.kind in kinds and i.stream != "control" and (not group or (i.group and group in i.group.axes))
    )


def tasks(role: Role, kind: Kind, axis: str) -> int:
    """Tasks of a step that are such a collective over that axis."""
    of = {
        i.id for i in role.instructions if i.kind is kind and i.group and axis in i.group.axes and i.stream != "control"
    }
    return sum(task.instruction in of for task in role.order)


# --- data and sharded data ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_sharding_divides_what_it_should(gpt: Graph, lower_network: Lower, zero: int) -> None:
    """Rajbhandari et al. 2020, figure 1: of 16 bytes a parameter in mixed Adam, 12 (optimiser and float32 copy), then those of
    gradients, then those of parameters are divided by the replicas.
    """
    d, count = 4, gpt.parameter_count
    (role,) = lower_network(gpt, batch=8, data=d, zero=zero, precision="bfloat16", mixed=True).roles
    constants = sum(b.nbytes for b in role.buffers if b.name.startswith("constants."))
    assert held(role, Content.OPTIMIZER) == pytest.approx(12 * count / (d if zero else 1), abs=100)
    assert held(role, Content.PARAMETERS) - constants == pytest.approx(2 * count / (d if zero == 3 else 1), abs=100)
    gradients = sum(b.nbytes for b in role.buffers if b.name.startswith(("grad.", "slice.")) and b.scope is Scope.STEP)
    assert gradients == {0: 4 * count, 1: 4 * count + count, 2: count, 3: count}[zero]


def test_a_training_that_is_not_mixed_has_no_copies(gpt: Graph, lower_network: Lower) -> None:
    """float32 throughout: 4 + 4 + 8 bytes a parameter."""
    (role,) = lower_network(gpt, batch=8, data=4).roles
    assert held(role, Content.OPTIMIZER) == pytest.approx(8 * gpt.parameter_count, abs=100)
    assert held(role, Content.GRADIENTS, Scope.STEP) == 4 * gpt.parameter_count


@pytest.mark.parametrize(("zero", "times"), [(0, 2), (1, 2), (2, 2), (3, 3)])
def test_bytes_on_the_wire(gpt: Graph, lower_network: Lower, zero: int, times: int) -> None:
    """Rajbhandari et al. 2020, section 7: an all-reduce moves every gradient twice, as do a reduce-scatter and an all-gather; full
    sharding gathers once more, so half as much again.
    """
    count = gpt.parameter_count
    (role,) = lower_network(gpt, batch=8, data=4, zero=zero).roles
    moved = 2 * sent(role, [Kind.ALL_REDUCE]) + sent(role, [Kind.ALL_GATHER, Kind.REDUCE_SCATTER])
    assert moved == times * 4 * count


@pytest.mark.parametrize(("zero", "scatters", "gathers"), [(1, 1, 1), (2, 3, 1), (3, 3, 6)])
def test_accumulation_and_sharding(gpt: Graph, lower_network: Lower, zero: int, scatters: int, gathers: int) -> None:
    """Over 3 microbatches: ZeRO-1 scatters gradients once a step, ZeRO-2 and 3 after every microbatch; 3 gathers twice in each."""
    count = 4 * gpt.parameter_count
    (role,) = lower_network(gpt, batch=12, data=4, microbatches=3, zero=zero).roles
    assert sent(role, [Kind.REDUCE_SCATTER]) == scatters * count
    assert sent(role, [Kind.ALL_GATHER]) == gathers * count


def test_full_sharding_holds_two_gathered_blocks_at_most(gpt: Graph, lower_network: Lower) -> None:
    """What is computed with and what is gathered for the next: besides its share, a rank never holds more parameters than these,
    and the table, which the head needs last forward and first backward.
    """
    program = lower_network(gpt, batch=8, data=8, zero=3)
    (role,) = program.roles
    table, block = role.buffer["params.0"].nbytes, role.buffer["params.1"].nbytes
    most = peak_memory(program, role).by_content[Content.PARAMETERS]
    assert most - held(role, Content.PARAMETERS) <= table + 2 * block
    ahead = {i.id: i.after for i in role.instructions if i.id.startswith("gather.forward.")}
    assert ahead["gather.forward.3"] == ("forward.1",)


# --- tensor, sequence, context --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("microbatches", [1, 4])
def test_tensor_ranks_sum_activations(gpt_stack: Callable[..., Graph], lower_network: Lower, microbatches: int) -> None:
    """Shoeybi et al. 2019: 4 sums a layer and microbatch, 2 forward and 2 backward, of batch * tokens * width elements."""
    graph = gpt_stack(layers=LAYERS, width=WIDTH, tokens=TOKENS)
    (role,) = lower_network(graph, batch=8, tensor=4, microbatches=microbatches).roles
    each = 8 // microbatches * TOKENS * WIDTH * 4
    sums = tasks(role, Kind.ALL_REDUCE, "tensor")
    # Nobody wants the gradient of the embedded input: the first layer's last sum backward is left out.
    assert sums == microbatches * (4 * LAYERS)
    assert sent(role, group="tensor") == sums * each


def test_sequence_parallel_moves_as_much_and_keeps_less(gpt: Graph, lower_network: Lower) -> None:
    """Korthikanti et al. 2022: an all-reduce is a reduce-scatter and an all-gather, so the bytes are the same, and what lies
    between two products is kept in parts.
    """
    plain, split = (lower_network(gpt, batch=8, tensor=4, sequence_parallel=s) for s in (False, True))
    moved = [
        2 * sent(p.roles[0], [Kind.ALL_REDUCE], "tensor")
        + sent(p.roles[0], [Kind.ALL_GATHER, Kind.REDUCE_SCATTER], "tensor")
        for p in (plain, split)
    ]
    assert moved[0] == moved[1]
    peaks = [peak_memory(p, p.roles[0]) for p in (plain, split)]
    assert peaks[1].by_content[Content.RESIDUALS] < 0.6 * peaks[0].by_content[Content.RESIDUALS]


def test_tensor_ranks_share_weights_and_what_they_keep(gpt: Graph, lower_network: Lower) -> None:
    alone, shared = (lower_network(gpt, batch=8, tensor=t).roles[0] for t in (1, 4))
    matrices = sum(gpt.tensors[p].nbytes(1) for p in gpt.parameters if len(gpt.tensors[p].shape) == 2)
    assert held(alone, Content.PARAMETERS) - held(shared, Content.PARAMETERS) > 0.7 * matrices
    assert held(shared, Content.OPTIMIZER) == pytest.approx(2 * held(shared, Content.PARAMETERS), rel=1e-3)


def test_context_ranks_are_replicas_of_the_weights(gpt: Graph, lower_network: Lower) -> None:
    """They see other tokens, so gradients are summed over them as over replicas; each keeps its part of every activation."""
    (role,) = lower_network(gpt, batch=8, data=2, context=4).roles
    count = 4 * gpt.parameter_count
    assert held(role, Content.PARAMETERS) >= count
    reduced = [i for i in role.instructions if i.kind is Kind.ALL_REDUCE and i.stream == "reduce"]
    assert sum(role.payload_bytes(i) for i in reduced) == count
    assert {i.group for i in reduced} == {Group(axes=("data", "context"))}
    keys_and_values = 2 * LAYERS * 4 * TOKENS * WIDTH * 4  # of the 4 samples of a replica
    assert sent(role, [Kind.ALL_GATHER], "context") == keys_and_values


# --- experts -----------------------------------------------------------------------------------------------------------------


def test_experts_are_summed_over_those_who_hold_the_same(lower_network: Lower) -> None:
    """A rank of 4 has a quarter of the experts' weights, and sums their gradients with the replicas that have the same ones; all
    else it sums with everybody.
    """
    graph = import_network("mixtral", layers=2, hidden=64, heads=4, kv_heads=2, ffn=128, seq_len=16, vocab=64).graph
    inside = sum(t.nbytes(1) for p in graph.parameters if len((t := graph.tensors[p]).shape) == 3)
    (role,) = lower_network(graph, batch=16, data=8, expert=4).roles
    reduced = {i.group: 0 for i in role.instructions if i.stream == "reduce"}
    for i in role.instructions:
        if i.stream == "reduce":
            reduced[i.group] += role.payload_bytes(i)
    everybody, alike = Group(axes=("data", "expert")), Group(axes=("data",))
    assert reduced == {everybody: 4 * graph.parameter_count - inside, alike: inside // 4}


# --- recomputation -----------------------------------------------------------------------------------------------------------------


def test_full_recomputation_keeps_one_activation_a_block(gpt: Graph, lower_network: Lower) -> None:
    """Chen et al. 2016: besides the borders of blocks, only one block's residuals live at a time."""
    kept, again = (lower_network(gpt, batch=8, recompute=r) for r in ("none", "full"))
    border = 8 * TOKENS * WIDTH * 4
    before, after = (peak_memory(p, p.roles[0]).by_content for p in (kept, again))
    assert after[Content.ACTIVATIONS] == LAYERS * border
    assert after[Content.RESIDUALS] < before[Content.RESIDUALS] / LAYERS + border
    recomputed = [p.segment for i in again.roles[0].instructions for p in i.parts if p.phase is Phase.RECOMPUTE]
    inside = [s.name for s in again.segments.values() if s.block is not None]
    assert sorted(recomputed) == sorted(inside)


def test_selective_recomputation_drops_the_scores(gpt_stack: Callable[..., Graph], lower_network: Lower) -> None:
    """Korthikanti et al. 2022, section 5: what grows with the square of the sequence (heads * tokens^2) is not kept."""
    graph = gpt_stack(layers=2, width=WIDTH, tokens=TOKENS)
    kept, dropped = (lower_network(graph, batch=8, recompute=r) for r in ("none", "selective"))
    scores = 8 * 8 * TOKENS * TOKENS * 4  # batch * heads * tokens^2, in float32
    residuals = [sum(b.nbytes for b in p.roles[0].buffers if b.content is Content.RESIDUALS) for p in (kept, dropped)]
    assert residuals[0] - residuals[1] >= 2 * scores
    again = [p for i in dropped.roles[0].instructions for p in i.parts if p.phase is Phase.RECOMPUTE]
    assert len(again) == 2


def test_recomputation_repeats_the_collectives_of_a_block(gpt: Graph, lower_network: Lower) -> None:
    """Full recomputation under tensor parallelism sums again, but for the last sum of a block, whose result was its border."""
    plain, again = (lower_network(gpt, batch=8, tensor=4, recompute=r).roles[0] for r in ("none", "full"))
    extra = tasks(again, Kind.ALL_REDUCE, "tensor") - tasks(plain, Kind.ALL_REDUCE, "tensor")
    assert LAYERS <= extra <= 2 * LAYERS


# --- pipelines ----------------------------------------------------------------------------------------------------------------------


def in_flight(program: Program, place: int = 0) -> float:
    """The most microbatches whose residuals a rank holds, counted in residuals of all its stages."""
    role = program.roles[place]
    of_all = sum(b.nbytes for b in role.buffers if b.name.startswith("res."))
    return peak_memory(program, role).by_content[Content.RESIDUALS] / of_all


@pytest.mark.parametrize("interleave", [2, 4])
def test_interleaving_holds_more(make_chain: Callable[..., Graph], lower_network: Lower, interleave: int) -> None:
    """p * (1 + (p - 1) / (p v)) microbatches in flight on the first rank (Korthikanti et al. 2022, section 4.2.3)."""
    p = 4
    program = lower_network(make_chain(16), batch=32, pipeline=p, microbatches=16, interleave=interleave)
    assert in_flight(program) == pytest.approx(p * (1 + (p - 1) / (p * interleave)))


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_zero_bubble_pipeline_holds_what_1f1b_holds(
    make_chain: Callable[..., Graph], lower_network: Lower, place: int
) -> None:
    """At most p microbatches on any rank (Qi et al. 2023, ZB-H1); 1F1B has p on the first."""
    program = lower_network(make_chain(8), batch=32, pipeline=4, microbatches=16, schedule="zero_bubble")
    assert in_flight(program, place) <= 4


@pytest.mark.parametrize("interleave", [1, 2])
def test_stages_hand_on_one_activation(make_chain: Callable[..., Graph], lower_network: Lower, interleave: int) -> None:
    """Every cut is crossed forward and backward by batch * width elements of each microbatch."""
    p, m, width = 4, 8, 4
    program = lower_network(make_chain(8, width), batch=32, pipeline=p, microbatches=m, interleave=interleave)
    cuts = p * interleave - 1
    assert sum(sent(role, [Kind.SEND]) for role in program.roles) == 2 * cuts * 32 * width * 4


def test_a_table_used_at_both_ends_is_on_both(gpt: Graph, lower_network: Lower) -> None:
    """The first and the last stage have a copy each of the tied embedding."""
    program = lower_network(gpt, batch=8, pipeline=2, microbatches=4)
    table = gpt.tensors["embedding.weight"].nbytes(1)
    total = sum(held(role, Content.PARAMETERS) for role in program.roles)
    constants = sum(b.nbytes for role in program.roles for b in role.buffers if b.name.startswith("constants."))
    assert total - constants == 4 * gpt.parameter_count + table


# --- solvers ------------------------------------------------------------------------------------------------------------------------


def test_local_replicas_average_every_few_steps(gpt: Graph, lower_network: Lower) -> None:
    (role,) = lower_network(gpt, batch=8, data=4, solver="local", synchronise_every=8).roles
    averages = [i for i in role.instructions if i.kind is Kind.ALL_REDUCE]
    assert sum(role.payload_bytes(i) for i in averages) == 4 * gpt.parameter_count
    assert {i.every for i in averages} == {8}
    assert [step for step in range(24) if averages[0].runs_in(step)] == [7, 15, 23]


# --- what cannot be -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pipeline": 8, "microbatches": 8}, "too few for 8 pipeline stages"),
        ({"pipeline": 4, "microbatches": 4, "interleave": 2}, "too few for 8 pipeline stages"),
        ({"expert": 2, "data": 2}, "no experts"),
    ],
)
def test_too_little_to_cut(gpt: Graph, lower_network: Lower, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        lower_network(gpt, batch=16, **fields)


def test_everything_at_once_is_a_program(gpt: Graph, lower_network: Lower) -> None:
    program = lower_network(
        gpt,
        batch=32,
        data=2,
        pipeline=2,
        tensor=2,
        context=2,
        sequence_parallel=True,
        microbatches=4,
        interleave=2,
        zero=1,
        recompute="full",
        precision="bfloat16",
        mixed=True,
    )
    assert check(program) == []
    assert program.mesh.size == 16
    assert dict(program.mesh.axes) == {"pipeline": 2, "data": 2, "context": 2, "tensor": 2}
    first = program.roles[0]
    assert isinstance(peak_memory(program, first).task, Task)
    assert all(isinstance(b, Buffer) and b.nbytes >= 0 for b in first.buffers)
