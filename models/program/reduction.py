"""What replicas do with gradients, and what each of them updates.

| `zero` | gradients | each updates | then |
|---|---|---|---|
| 0 | all-reduced | everything | |
| 1 | reduce-scattered after the last microbatch | its part | all parts are gathered |
| 2 | reduce-scattered after every microbatch | its part | all parts are gathered |
| 3 | the same | its part, all that it keeps | parameters are gathered before every use, one bucket ahead |

(Rajbhandari et al. 2020, arXiv 1910.02054; Zhao et al. 2023, arXiv 2304.11277.) A gathering that follows the update is waited for by
the next step's use of these parameters alone. Where a training is mixed, the norm of all gradients is formed before the update, as loss
scaling and clipping need it: the step ends for all ranks at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from ..plan.recipe import state_copies
from .chain import SCALAR_BYTES, Bucket, Chain
from .draft import Draft
from .instruction import Content, Instruction, Kind, Part, Phase, Scope
from .passes import gradients, parameters

__all__ = ["gather_before", "reduce_after", "share_update", "trained_buckets", "update"]


def _slice(draft: Draft, chain: Chain, bucket: Bucket) -> str:
    """A rank's part of a bucket's summed gradients."""
    size = -(-chain.gradient_bytes(bucket.parameters) // chain.copies(bucket))
    return draft.buffer(f"slice.{bucket.name}", Content.GRADIENTS, Scope.STEP, size)


def _shard(draft: Draft, chain: Chain, bucket: Bucket) -> str:
    """A rank's part of a bucket's parameters."""
    size = -(-chain.nbytes((*bucket.parameters, *bucket.constants), samples=1) // chain.copies(bucket))
    return draft.buffer(f"shard.{bucket.name}", Content.PARAMETERS, Scope.RUN, size)


def gather_before(draft: Draft, chain: Chain, bucket: Bucket, phase: Phase) -> None:
    """Full sharding: a bucket's parameters are gathered before a pass first uses them, at most one bucket ahead of its use."""
    if chain.zero_of(bucket) < 3:
        return
    if phase is Phase.BACKWARD and any(s.backward and chain.recomputed(s) for s in bucket.segments):
        return  # they were gathered to compute the block again
    whole = parameters(draft, chain, bucket)
    again = phase is not Phase.FORWARD
    draft.do(
        Instruction(
            id=f"gather.{'backward' if again else 'forward'}.{bucket.name}",
            kind=Kind.ALL_GATHER,
            stream="gather",
            phase=phase,
            group=chain.replicas(experts=bucket.experts),
            message=f"{'again.' if again else ''}{whole}",
            reads=(_shard(draft, chain, bucket),),
            writes=(whole,),
            after=_two_ago(chain, bucket, phase),
        )
    )


def _two_ago(chain: Chain, bucket: Bucket, phase: Phase) -> tuple[str, ...]:
    """The end of the bucket before the one before, in the direction of the pass: so far ahead may parameters be gathered."""
    forward = phase is Phase.FORWARD
    users = [s for s in chain.users[bucket.name] if forward or s.backward]
    first = users[0] if forward else users[-1]
    order = [
        b for b in chain.buckets[first.stage] if not b.experts and (forward or any(s.backward for s in b.segments))
    ]
    if not forward:
        order.reverse()
    place = next((i for i, b in enumerate(order) if first in b.segments), 0) - 2
    if place < 0:
        return ()
    members = order[place].segments
    if forward:
        return (f"forward.{members[-1].name}",)
    back = Phase.BACKWARD_INPUT if chain.strategy.schedule == "zero_bubble" else Phase.BACKWARD
    return (f"{back.value}.{next(s for s in members if s.backward).name}",)


def reduce_after(draft: Draft, chain: Chain, bucket: Bucket, phase: Phase) -> None:
    """A bucket's gradients are complete (for this microbatch): sum them over the replicas."""
    if chain.copies(bucket) == 1:
        return
    summed = gradients(draft, chain, bucket)
    zero = chain.zero_of(bucket)
    scatters = zero >= 1
    draft.do(
        Instruction(
            id=f"{'scatter' if scatters else 'reduce'}.{bucket.name}",
            kind=Kind.REDUCE_SCATTER if scatters else Kind.ALL_REDUCE,
            stream="reduce",
            phase=phase,
            group=chain.replicas(experts=bucket.experts),
            message=summed,
            reads=(summed,),
            writes=(_slice(draft, chain, bucket),) if zero == 1 else () if scatters else (summed,),
            accumulates=(_slice(draft, chain, bucket),) if zero >= 2 else (),
            frees=(summed,) if scatters else (),
            once=zero < 2,
        )
    )


def share_update(draft: Draft, chain: Chain, optimizer: str) -> None:
    """Update what this rank is responsible for, and hand it to the others where they need it."""
    trained = trained_buckets(draft, chain)
    if chain.strategy.mixed:
        _norm(draft, chain)
    if trained:
        update(draft, chain, optimizer)
    if chain.strategy.zero not in (1, 2):
        return
    for bucket in trained:
        if not chain.zero_of(bucket):
            continue
        whole, part = parameters(draft, chain, bucket), f"part.{bucket.name}"
        draft.do(
            Instruction(
                id=f"gather.{bucket.name}",
                kind=Kind.ALL_GATHER,
                stream="gather",
                phase=Phase.UPDATE,
                group=chain.replicas(experts=bucket.experts),
                message=whole,
                reads=(part,),
                writes=(whole,),
                frees=(part,),
                once=True,
            )
        )


def update(draft: Draft, chain: Chain, optimizer: str, *, writes: Sequence[str] = ()) -> None:
    """The optimiser's update of all that a rank is responsible for, in one go.

    writes   what it changes instead of the parameters
    """
    reads: list[str] = []
    changed: list[str] = []
    frees: list[str] = []
    kept = elements = 0
    for bucket in trained_buckets(draft, chain):
        zero = chain.zero_of(bucket)
        parts = chain.copies(bucket) if zero else 1
        summed = _slice(draft, chain, bucket) if zero else gradients(draft, chain, bucket)
        held = _shard(draft, chain, bucket) if zero == 3 else parameters(draft, chain, bucket)
        reads += [held, summed]
        frees.append(summed)
        if zero in (1, 2):
            size = -(-chain.nbytes(bucket.parameters, samples=1) // parts)
            changed.append(draft.buffer(f"part.{bucket.name}", Content.WORKSPACE, Scope.STEP, size))
        else:
            changed.append(held)
        kept += -(-chain.state_bytes(bucket.parameters, state_copies(optimizer)) // parts)
        elements += -(-sum(chain.graph.tensors[p].elements(1) for p in bucket.parameters) // parts)
    draft.updated = elements
    # Every optimiser counts its steps.
    moments = draft.buffer("optimizer", Content.OPTIMIZER, Scope.RUN, kept + SCALAR_BYTES)
    scaled = ["norm"] if "norm" in draft.buffers else []
    draft.compute(
        "update",
        (Part("", Phase.UPDATE),),
        workspace_bytes=0,
        reads=[*reads, *scaled, moments],
        writes=[*(writes or changed), moments],
        frees=[*frees, *scaled],
        once=True,
    )


def _norm(draft: Draft, chain: Chain) -> None:
    """The norm of all gradients, of which every rank has summed its part. It waits for all of them, and everybody for it; who
    trains nothing joins, and forgets it.
    """
    norm = draft.buffer("norm", Content.WORKSPACE, Scope.STEP, SCALAR_BYTES)
    summed = [
        _slice(draft, chain, b) if chain.zero_of(b) else gradients(draft, chain, b)
        for b in trained_buckets(draft, chain)
    ]
    step = partial(Instruction, phase=Phase.UPDATE, once=True, frees=() if summed else (norm,))
    if chain.strategy.ranks == 1:
        draft.do(step(id="norm", kind=Kind.REPORT, stream="compute", reads=tuple(summed), writes=(norm,)))
        return
    draft.do(
        step(
            id="share.norm",
            kind=Kind.ALL_REDUCE,
            stream="control",
            group=chain.everyone,
            message=norm,
            reads=tuple(summed),
            writes=(norm,),
        )
    )


def trained_buckets(draft: Draft, chain: Chain) -> list[Bucket]:
    """The buckets of a rank that have gradients."""
    return [
        b
        for stage in chain.stages_of(draft.place)
        for b in chain.buckets[stage]
        if b.parameters and any(s.backward for s in b.segments)
    ]
