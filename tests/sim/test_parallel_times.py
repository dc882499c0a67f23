"""Parallel programs replayed at unit prices: bubbles, overlap, and no deadlock whatever the strategy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpdlf.errors import PlanError
from hpdlf.models.onnxpp import Graph
from hpdlf.models.plan import Strategy
from hpdlf.models.program import Instruction, Kind, Phase, Program, check, peak_memory
from hpdlf.models.trace import Event
from hpdlf.models.zoo import import_network
from hpdlf.sim.engine import replay

Lower = Callable[..., Program]
# Seconds of one layer: backward takes twice as long as forward, half of it for the inputs.
SECONDS = {
    Phase.FORWARD: 1.0,
    Phase.RECOMPUTE: 1.0,
    Phase.BACKWARD: 2.0,
    Phase.BACKWARD_INPUT: 1.0,
    Phase.BACKWARD_WEIGHT: 1.0,
}


def played(
    program: Program, *, steps: int = 1, talking: Callable[[Instruction], float] = lambda _: 0.0
) -> tuple[Event, ...]:
    """Every product takes its phase's time, communication what `talking` says."""

    def layers(segment: str) -> int:
        return sum(name.startswith("product") for name in program.segments[segment].operators)

    def seconds(i: Instruction) -> float:
        if i.kind.communicates:
            return talking(i)
        return sum(layers(p.segment) * SECONDS[p.phase] for p in i.parts if p.segment)

    prices = {r: {i.id: seconds(i) for i in program.role_of(r).instructions} for r in range(program.mesh.size)}
    return replay(program, prices, steps=steps)


def end(events: tuple[Event, ...]) -> float:
    return max(e.end_s for e in events)


# --- bubbles -----------------------------------------------------------------------------------------------------------

P, LAYERS_EACH = 4, 4
FORWARD, BACKWARD = 1.0 * LAYERS_EACH, 2.0 * LAYERS_EACH


@pytest.fixture(scope="module")
def chain(make_chain: Callable[..., Graph]) -> Graph:
    return make_chain(P * LAYERS_EACH)


@pytest.mark.parametrize("microbatches", [4, 8, 16])
@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_the_bubble_of_a_pipeline(chain: Graph, lower_network: Lower, schedule: str, microbatches: int) -> None:
    """m + p - 1 microbatches long (Huang et al. 2019): the bubble is (p - 1) / (m + p - 1) of it."""
    program = lower_network(chain, batch=microbatches, pipeline=P, microbatches=microbatches, schedule=schedule)
    assert end(played(program)) == (microbatches + P - 1) * (FORWARD + BACKWARD)


@pytest.mark.parametrize("microbatches", [4, 8, 16])
@pytest.mark.parametrize("interleave", [2, 4])
def test_interleaving_divides_the_bubble(
    chain: Graph, lower_network: Lower, interleave: int, microbatches: int
) -> None:
    """(p - 1) / v microbatches (Narayanan et al. 2021, section 2.2)."""
    program = lower_network(chain, batch=16, pipeline=P, microbatches=microbatches, interleave=interleave)
    assert end(played(program)) == (microbatches + (P - 1) / interleave) * (FORWARD + BACKWARD)


@pytest.mark.parametrize("microbatches", [4, 8, 16])
def test_gradients_of_weights_fill_the_bubble(chain: Graph, lower_network: Lower, microbatches: int) -> None:
    """(p - 1) (T_F + T_B - T_W), a third of 1F1B's where all three take equally long (Qi et al. 2023, table 2: ZB-H1)."""
    program = lower_network(chain, batch=16, pipeline=P, microbatches=microbatches, schedule="zero_bubble")
    assert end(played(program)) == microbatches * (FORWARD + BACKWARD) + (P - 1) * (FORWARD + BACKWARD) / 3


def test_recomputation_takes_a_forward_pass_more(chain: Graph, lower_network: Lower) -> None:
    """A third more arithmetic (Chen et al. 2016)."""
    plain, again = (lower_network(chain, batch=4, recompute=r) for r in ("none", "full"))
    assert end(played(again)) == end(played(plain)) * 4 / 3


# --- overlap -----------------------------------------------------------------------------------------------------------


def test_sums_of_gradients_hide_behind_the_backward_pass(chain: Graph, lower_network: Lower) -> None:
    """A bucket a layer, each sum as long as a layer's backward pass: all but the last are hidden."""
    program = lower_network(chain, batch=8, data=2, bucket_bytes=1, recompute="none")
    quiet = end(played(program))
    loud = end(played(program, talking=lambda i: 2.0 if i.stream == "reduce" else 0.0))
    assert loud == quiet + 2.0


def test_full_sharding_gathers_one_block_ahead(chain: Graph, lower_network: Lower) -> None:
    """A gathering begins no sooner than the block before the one before has been computed, and hides behind the one before."""
    program = lower_network(chain, batch=8, data=4, zero=3)
    events = played(program, talking=lambda i: 0.5 if i.kind is Kind.ALL_GATHER else 0.0)
    at = {e.instruction: e for e in events if e.rank == 0}
    for block in range(2, P * LAYERS_EACH):
        gathered, before = at[f"gather.forward.{block}"], at[f"forward.{block - 2}"]
        assert gathered.start_s == before.end_s
    computing = [e for e in events if e.rank == 0 and e.phase == "forward" and e.kind == "compute"]
    # The first gathering is waited for; later ones take half as long as a layer.
    assert computing[-1].start_s == 0.5 + (len(computing) - 1) * 1.0


# --- solvers -----------------------------------------------------------------------------------------------------------


def test_local_replicas_meet_every_h_steps(chain: Graph, lower_network: Lower) -> None:
    program = lower_network(chain, batch=8, data=4, solver="local", synchronise_every=4)
    events = played(program, steps=8, talking=lambda i: 10.0)
    meetings = {e.step for e in events if e.kind == "all_reduce"}
    assert meetings == {3, 7}
    alone = 3.0 * P * LAYERS_EACH
    sums = len({e.instruction for e in events if e.kind == "all_reduce"})
    assert end(events) == 8 * alone + 2 * 10.0 * sums


# --- any strategy --------------------------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {"layers": 4, "hidden": 512, "heads": 8, "seq_len": 32, "vocab": 512}


@pytest.fixture(scope="module")
def networks(make_chain: Callable[..., Graph]) -> dict[str, Graph]:
    return {
        "chain": make_chain(9),
        "tied": make_chain(8, tied={7: 0}),
        "gpt": import_network("gpt", **SMALL).graph,
        "resnet": import_network("resnet", depth=18, image=32).graph,
        "bert": import_network("bert", **SMALL).graph,
        "mixtral": import_network("mixtral", **{**SMALL, "layers": 2}, kv_heads=8, ffn=1024).graph,
    }


sizes = st.sampled_from([1, 1, 2, 4])
anything = st.fixed_dictionaries(
    {
        "data": sizes,
        "pipeline": sizes,
        "tensor": sizes,
        "context": st.sampled_from([1, 1, 2]),
        "expert": st.sampled_from([1, 2, 4]),
        "sequence_parallel": st.booleans(),
        "microbatches": st.sampled_from([1, 2, 4, 8]),
        "schedule": st.sampled_from(["1f1b", "gpipe", "zero_bubble"]),
        "interleave": st.sampled_from([1, 1, 2]),
        "cut": st.sampled_from(["time", "layers"]),
        "zero": st.integers(0, 3),
        "recompute": st.sampled_from(["none", "selective", "full"]),
        "solver": st.sampled_from(["synchronous"] * 4 + ["asynchronous", "local"]),
        "synchronise_every": st.sampled_from([1, 1, 4]),
        "bucket_bytes": st.sampled_from([1, 25 * 2**20]),
        "precision": st.sampled_from(["float32", "bfloat16", "float8"]),
        "mixed": st.booleans(),
    }
)


def _possible(fields: dict[str, Any]) -> bool:
    """Most combinations are refused by the strategy itself, which its own tests try."""
    apart = fields["pipeline"] * fields["tensor"] * fields["context"] > 1 or fields["zero"] > 0
    return not (
        (fields["interleave"] > 1 and (fields["pipeline"] == 1 or fields["schedule"] != "1f1b"))
        or (fields["sequence_parallel"] and fields["tensor"] == 1)
        or (fields["solver"] != "synchronous" and apart)
        or (fields["synchronise_every"] > 1 and fields["solver"] != "local")
    )


possible = anything.filter(_possible)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(network=st.sampled_from(["chain", "tied", "gpt", "resnet", "bert", "mixtral"]), fields=possible)
def test_every_strategy_runs_or_is_refused_in_words(
    networks: dict[str, Graph], lower_network: Lower, network: str, fields: dict[str, Any]
) -> None:
    """No program that is lowered leaks, misses a partner or deadlocks; what cannot be lowered has one sentence that says why."""
    said = ""
    if network != "mixtral":
        fields = {**fields, "expert": 1}
    try:
        strategy = Strategy.of(batch=64, **fields)
        program = lower_network(networks[network], **strategy.model_dump())
    except PlanError as error:
        said = str(error)
    if said:
        assert said.endswith(".")
        assert said[0].isupper() or said.startswith(networks[network].name)
        return
    assert check(program) == []
    assert program.mesh.size == strategy.ranks
    events = played(program, steps=2)
    runs = sum(
        instruction.runs_in(step)
        * sum(t.instruction == instruction.id for t in role.order)
        * len(program.ranks_of(role))
        for role in program.roles
        for instruction in role.instructions
        for step in range(2)
    )
    assert len(events) == runs
    assert all(peak_memory(program, role).peak_bytes > 0 for role in program.roles)
