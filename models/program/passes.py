"""The forward and the backward pass of one microbatch through one stage.

Buffers are named after segments: ``act.K`` what segment K hands on, ``cot.K`` the gradients of those among them that want one,
``res.K`` what K keeps for its backward pass, ``params.B`` and ``grad.B`` the parameters of a bucket of segments and their gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import groupby

from .chain import SCALAR_BYTES, Bucket, Chain
from .draft import Draft
from .instruction import Content, Earlier, Instruction, Kind, Part, Phase, Scope, Segment
from .mesh import Peer

__all__ = ["Hooks", "backward_pass", "constants", "forward_pass", "gradients", "parameters", "state", "weight_pass"]

Hook = Callable[[Draft, Chain, Bucket, Phase], None]


class Hooks:
    """What a solver adds around the segments of a bucket; each is called with the bucket and the phase.

    before     ahead of the first segment of the bucket that computes
    finished   behind the last segment whose backward pass adds to the bucket's gradients
    """

    def __init__(self, *, before: Hook | None = None, finished: Hook | None = None) -> None:
        self.before, self.finished = before, finished


# Buffers that more than one module names


def parameters(draft: Draft, chain: Chain, bucket: Bucket) -> str:
    """The buffer of a bucket's parameters: full sharding gathers them for every use."""
    gathered = chain.zero_of(bucket) == 3
    size = chain.nbytes((*bucket.parameters, *bucket.constants), samples=1)
    scope = Scope.MICROBATCH if gathered else Scope.RUN
    return draft.buffer(f"params.{bucket.name}", Content.PARAMETERS, scope, size, bucket.parameters)


def constants(draft: Draft, chain: Chain, segment: Segment) -> str:
    """The buffer of what a segment reads and nobody changes."""
    kept = chain.kept_constants(segment)
    return draft.buffer(
        f"constants.{segment.name}", Content.PARAMETERS, Scope.RUN, chain.nbytes(kept, samples=1), segment.constants
    )


def state(draft: Draft, chain: Chain, segment: Segment) -> str:
    """The buffer of what a segment's forward pass replaces (running statistics)."""
    return draft.buffer(
        f"state.{segment.name}", Content.STATE, Scope.RUN, chain.nbytes(segment.state, samples=1), segment.state
    )


def gradients(draft: Draft, chain: Chain, bucket: Bucket) -> str:
    """The buffer that a bucket's gradients add up in: over the step, or for one microbatch where they are shared at once."""
    scope = Scope.MICROBATCH if chain.zero_of(bucket) >= 2 else Scope.STEP
    size = (
        chain.gradient_bytes(bucket.parameters) if scope is Scope.STEP else chain.nbytes(bucket.parameters, samples=1)
    )
    return draft.buffer(f"grad.{bucket.name}", Content.GRADIENTS, scope, size, bucket.parameters)


def _activations(draft: Draft, chain: Chain, segment: Segment) -> str:
    tensors = chain.between(segment).tensors
    return draft.buffer(
        f"act.{segment.number}",
        Content.ACTIVATIONS,
        Scope.MICROBATCH,
        chain.nbytes(tensors),
        tensors,
    )


def _cotangents(draft: Draft, chain: Chain, segment: Segment) -> str:
    tensors = chain.between(segment).gradients
    return draft.buffer(f"cot.{segment.number}", Content.GRADIENTS, Scope.MICROBATCH, chain.nbytes(tensors), tensors)


def _handed(draft: Draft, chain: Chain, segment: Segment) -> list[str]:
    """The buffers that the next segment reads, in this stage or the next."""
    between = chain.between(segment)
    plain = [_activations(draft, chain, segment)] if between.tensors else []
    return [*plain, *_exchanged(draft, chain, between.made, Content.ACTIVATIONS)]


def _handed_back(draft: Draft, chain: Chain, segment: Segment) -> list[str]:
    """The buffers of gradients that the next segment writes for `segment`."""
    between = chain.between(segment)
    plain = [_cotangents(draft, chain, segment)] if between.gradients else []
    return [*plain, *_exchanged(draft, chain, between.back_given, Content.GRADIENTS)]


def _residuals(draft: Draft, chain: Chain, segment: Segment) -> str:
    """What is kept for the backward pass; of a core that is computed again, its operands."""
    size = chain.residual_bytes(segment)
    if _drops_core(chain, segment):
        size = min(size, chain.nbytes(segment.inputs))
    return draft.buffer(f"res.{segment.name}", Content.RESIDUALS, Scope.MICROBATCH, size)


def _drops_core(chain: Chain, segment: Segment) -> bool:
    return chain.strategy.recompute == "selective" and segment.core


def _exchanged(draft: Draft, chain: Chain, buffers: Mapping[str, str], content: Content) -> list[str]:
    return [draft.buffer(name, content, Scope.MICROBATCH, chain.nbytes((t,))) for name, t in buffers.items()]


# The passes


def forward_pass(draft: Draft, chain: Chain, stage: int, *, training: bool, hooks: Hooks | None = None) -> None:
    """Load data, receive, run the stage's segments forward, send."""
    segments = chain.of_stage(stage)
    first, last = segments[0], segments[-1]
    readers = [s for s in segments if s.data]
    if readers:
        tensors = tuple(dict.fromkeys(t for s in readers for t in s.data))
        place = f".{stage}" if draft.place != stage else ""
        data = draft.buffer(f"data{place}", Content.INPUTS, Scope.MICROBATCH, chain.nbytes(tensors), tensors)
        # The next step's data load while this step computes, no further.
        ahead = (Earlier(f"forward.{readers[0].name}", 2),)
        draft.do(
            Instruction(
                id=f"load{place}", kind=Kind.LOAD, stream="load", phase=Phase.HOST, writes=(data,), after_earlier=ahead
            )
        )
    if (previous := chain.before(first)) is not None:
        for buffer in _handed(draft, chain, previous):
            _message(draft, chain, Kind.RECEIVE, buffer, -1, Phase.FORWARD)
    scored = not training and chain.after(last) is None  # then the score reads the labels last
    begun: set[str] = set()
    for segment in segments:
        _begin(draft, chain, segment, Phase.FORWARD, hooks, begun)
        _forward(
            draft,
            chain,
            segment,
            phase=Phase.FORWARD,
            training=training,
            keeps=training and segment.backward and not chain.recomputed(segment),
            frees_data=segment in readers[-1:]
            and not scored
            and not (training and any(map(chain.recomputed, readers))),
        )
        _exchange(draft, chain, segment, Phase.FORWARD)
    if chain.after(last):
        for buffer in _handed(draft, chain, last):
            _message(draft, chain, Kind.SEND, buffer, +1, Phase.FORWARD)


def backward_pass(draft: Draft, chain: Chain, stage: int, *, hooks: Hooks | None = None, weights: bool = True) -> None:
    """Receive gradients, run the stage's segments backward, send gradients. `weights`: those of parameters as well; else they
    are left to :func:`weight_pass`.
    """
    segments = chain.of_stage(stage)
    last, first = segments[-1], segments[0]
    if chain.returns_gradient(last):
        for buffer in _handed_back(draft, chain, last):
            _message(draft, chain, Kind.RECEIVE, buffer, +1, Phase.BACKWARD)
    begun: set[str] = set()
    # Blocks are computed again from the last to the first: data are kept for the first that reads them.
    again = [s for s in segments if s.data and chain.recomputed(s)]
    read_again = [s for s in again if s.block == again[0].block][-1:]
    phase = Phase.BACKWARD if weights else Phase.BACKWARD_INPUT
    for _, block in groupby(reversed(segments), key=lambda s: s.block if chain.recomputed(s) else None):
        members = list(block)
        if chain.recomputed(members[0]):
            for segment in reversed(members):
                _begin(draft, chain, segment, Phase.RECOMPUTE, hooks, begun)
                _forward(
                    draft,
                    chain,
                    segment,
                    phase=Phase.RECOMPUTE,
                    training=True,
                    keeps=True,
                    frees_data=segment in read_again,
                    ends=segment is members[0],
                )
                if segment is not members[0]:
                    _exchange(draft, chain, segment, Phase.RECOMPUTE)
        for segment in members:
            if not segment.backward:
                continue
            _exchange_back(draft, chain, segment)
            _begin(draft, chain, segment, Phase.BACKWARD, hooks, begun)
            _backward(draft, chain, segment, phase)
            if weights:
                _finish(draft, chain, segment, hooks)
    if (previous := chain.before(first)) is not None and first.backward and first.differentiable:
        for buffer in _handed_back(draft, chain, previous):
            _message(draft, chain, Kind.SEND, buffer, -1, Phase.BACKWARD)


def weight_pass(draft: Draft, chain: Chain, stage: int, *, hooks: Hooks | None = None) -> None:
    """The gradients of the stage's parameters, behind a backward pass that left them out."""
    for segment in reversed(chain.of_stage(stage)):
        if segment.backward:
            _weights(draft, chain, segment)
            _finish(draft, chain, segment, hooks)


def _message(draft: Draft, chain: Chain, kind: Kind, buffer: str, offset: int, phase: Phase) -> None:
    sends = kind is Kind.SEND
    draft.do(
        Instruction(
            id=f"{kind}.{buffer}",
            kind=kind,
            stream=f"{kind}.{'next' if offset > 0 else 'previous'}",
            phase=phase,
            peer=Peer("pipeline", offset, wraps=chain.strategy.interleave > 1),
            message=buffer,
            reads=(buffer,) if sends else (),
            writes=() if sends else (buffer,),
            frees=(buffer,) if sends else (),
        )
    )


def _begin(draft: Draft, chain: Chain, segment: Segment, phase: Phase, hooks: Hooks | None, begun: set[str]) -> None:
    """What comes before the first segment of a bucket in a pass."""
    if hooks is None or hooks.before is None:
        return
    for bucket in chain.used_by(segment):
        if bucket.name not in begun:
            begun.add(bucket.name)
            hooks.before(draft, chain, bucket, phase)


def _finish(draft: Draft, chain: Chain, segment: Segment, hooks: Hooks | None) -> None:
    if hooks is None or hooks.finished is None:
        return
    for bucket in chain.bucket_of.get(segment.number, ()):
        earliest = next((s for s in bucket.segments if s.backward), None)
        if bucket.parameters and segment is earliest:
            hooks.finished(draft, chain, bucket, Phase.BACKWARD)


def _weights_of(draft: Draft, chain: Chain, segment: Segment) -> list[str]:
    """The buffers of all parameters that a segment uses."""
    buckets = [chain.owner[segment.stage, p] for p in (*segment.parameters, *segment.borrowed)]
    if chain.strategy.zero == 3 and segment.constants:
        buckets += [b for b in chain.bucket_of.get(segment.number, ()) if b.constants]
    return list(dict.fromkeys(parameters(draft, chain, b) for b in buckets))


def _gradients_of(draft: Draft, chain: Chain, segment: Segment) -> list[str]:
    buckets = [chain.owner[segment.stage, p] for p in (*segment.parameters, *segment.borrowed)]
    return list(dict.fromkeys(gradients(draft, chain, b) for b in buckets))


def _released(draft: Draft, chain: Chain, segment: Segment, phase: Phase) -> list[str]:
    """Gathered parameters that nobody needs any more in this pass once `segment` has run."""
    done = []
    for bucket in chain.used_by(segment):
        if chain.zero_of(bucket) < 3:
            continue
        users = chain.users[bucket.name]
        order = users if phase is Phase.FORWARD else tuple(s for s in reversed(users) if s.backward)
        if order and segment is order[-1]:
            done.append(parameters(draft, chain, bucket))
    return done


def _forward(
    draft: Draft,
    chain: Chain,
    segment: Segment,
    *,
    phase: Phase,
    training: bool,
    keeps: bool,
    frees_data: bool = False,
    ends: bool = False,
) -> None:
    """One segment forward, or again. `keeps`: what its backward pass needs; `ends`: nobody reads its result this time."""
    again = phase is Phase.RECOMPUTE
    reads, writes, accumulates, frees = _weights_of(draft, chain, segment), [], [], []
    if segment.constants:
        reads.append(constants(draft, chain, segment))
    if segment.state:
        reads.append(state(draft, chain, segment))
        if training and not again:
            writes.append(state(draft, chain, segment))
    if (previous := chain.before(segment)) is not None:
        handed = _handed(draft, chain, previous)
        reads += handed
        if again or not (training and _needed_again(chain, segment, previous)):
            frees += handed
    if segment.data:
        name = "data" if draft.place == segment.stage else f"data.{segment.stage}"
        reads.append(name)
        if frees_data:
            frees.append(name)
    if chain.after(segment) and not ends:
        between = chain.between(segment)
        writes += [_activations(draft, chain, segment)] if between.tensors else []
        writes += _exchanged(draft, chain, between.given, Content.ACTIVATIONS)
    elif not training:
        size = chain.nbytes(segment.outputs)
        writes.append(draft.buffer("predictions", Content.ACTIVATIONS, Scope.MICROBATCH, size, segment.outputs))
    if keeps:
        writes.append(_residuals(draft, chain, segment))
    if training and segment.has_loss and not again:
        accumulates.append(draft.buffer("loss", Content.WORKSPACE, Scope.STEP, SCALAR_BYTES))
    frees += _released(draft, chain, segment, Phase.FORWARD) if not again else []
    draft.compute(
        f"{'recompute' if again else 'forward'}.{segment.name}",
        (Part(segment.name, phase),),
        workspace_bytes=chain.workspace_bytes(segment, Phase.FORWARD),
        reads=reads,
        writes=writes,
        accumulates=accumulates,
        frees=frees,
    )


def _needed_again(chain: Chain, segment: Segment, previous: Segment) -> bool:
    """Whether what comes into `segment` is kept: its block will be computed again from it."""
    if not chain.recomputed(segment):
        return False
    return previous.stage != segment.stage or previous.block != segment.block


def _exchange(draft: Draft, chain: Chain, segment: Segment, phase: Phase) -> None:
    """The collectives between a segment and the next, forward."""
    between = chain.between(segment)
    made = between.made
    for c in between.crossed:
        if not c.exchange.forward:
            continue
        reads = c.reads or _activations(draft, chain, segment)
        writes = draft.buffer(c.writes, Content.ACTIVATIONS, Scope.MICROBATCH, chain.nbytes((c.exchange.made,)))
        last_use = (
            c.reads and c.reads not in made and not any(d.reads == c.reads for d in between.crossed[c.number + 1 :])
        )
        draft.do(
            Instruction(
                id=f"{'again.' if phase is Phase.RECOMPUTE else ''}{c.exchange.forward}.{writes}",
                kind=Kind(c.exchange.forward),
                stream=c.exchange.axis,
                phase=phase,
                group=chain.along(c.exchange.axis),
                message=f"{'again.' if phase is Phase.RECOMPUTE else ''}{writes}",
                reads=(reads,),
                writes=(writes,),
                frees=(reads,) if last_use and reads != writes else (),
            )
        )


def _exchange_back(draft: Draft, chain: Chain, segment: Segment) -> None:
    """The collectives between a segment and the next, backward."""
    for c in reversed(chain.between(segment).crossed):
        if not c.back_reads:
            continue
        given, made = c.exchange.given, c.exchange.made
        reads = draft.buffer(c.back_reads, Content.GRADIENTS, Scope.MICROBATCH, chain.nbytes((made,)))
        writes = reads
        if c.back_writes != c.back_reads:
            writes = draft.buffer(c.back_writes, Content.GRADIENTS, Scope.MICROBATCH, chain.nbytes((given,)))
        draft.do(
            Instruction(
                id=f"{c.exchange.backward}.{reads}",
                kind=Kind(c.exchange.backward),
                stream=c.exchange.axis,
                phase=Phase.BACKWARD,
                group=chain.along(c.exchange.axis),
                message=reads,
                reads=(reads,),
                writes=(writes,),
                frees=(reads,) if writes != reads else (),
            )
        )


def _backward(draft: Draft, chain: Chain, segment: Segment, phase: Phase) -> None:
    kept = _residuals(draft, chain, segment)
    whole = phase is Phase.BACKWARD
    later = not whole and _has_weights(segment)  # the gradients of its parameters come later, and need both
    reads, writes, accumulates, frees = [kept, *_weights_of(draft, chain, segment)], [], [], [] if later else [kept]
    arrived = _arrived(draft, chain, segment)
    reads += arrived
    frees += [] if later else arrived
    if segment.differentiable and (previous := chain.before(segment)) is not None:
        writes += _handed_back(draft, chain, previous)
    parts = [Part(segment.name, phase)]
    if _drops_core(chain, segment):
        parts.insert(0, Part(segment.name, Phase.RECOMPUTE))
    if whole:
        accumulates += _gradients_of(draft, chain, segment)
    frees += _released(draft, chain, segment, Phase.BACKWARD)
    draft.compute(
        f"{phase.value}.{segment.name}",
        tuple(parts),
        workspace_bytes=chain.workspace_bytes(segment, Phase.BACKWARD),
        reads=reads,
        writes=writes,
        accumulates=accumulates,
        frees=frees,
    )


def _arrived(draft: Draft, chain: Chain, segment: Segment) -> list[str]:
    """The buffers of gradients that come back to a segment."""
    if not chain.returns_gradient(segment):
        return []
    between = chain.between(segment)
    plain = [_cotangents(draft, chain, segment)] if between.gradients else []
    return [*plain, *_exchanged(draft, chain, between.back_made, Content.GRADIENTS)]


def _has_weights(segment: Segment) -> bool:
    return bool(segment.parameters or segment.borrowed)


def _weights(draft: Draft, chain: Chain, segment: Segment) -> None:
    """The gradients of a segment's parameters alone, for which its residuals were kept a little longer."""
    if not _has_weights(segment):
        return
    kept = [_residuals(draft, chain, segment), *_arrived(draft, chain, segment)]
    draft.compute(
        f"backward_weight.{segment.name}",
        (Part(segment.name, Phase.BACKWARD_WEIGHT),),
        workspace_bytes=0,
        reads=kept,
        accumulates=_gradients_of(draft, chain, segment),
        frees=kept,
    )
