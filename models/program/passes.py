"""What every training program is made of: one microbatch's forward pass and backward pass on one stage.

Names: ``act.K`` are the tensors that cross the cut behind segment K, ``cot.K`` the gradients of those among them that want one,
``res.K`` what segment K keeps for its backward pass, ``grad.K`` the gradients of its parameters.
"""

from __future__ import annotations

from collections.abc import Callable

from .draft import SCALAR_BYTES, Chain, Draft
from .instruction import Content, Earlier, Instruction, Kind, Part, Phase, Scope, Segment
from .mesh import Peer

__all__ = ["backward_pass", "forward_pass", "gradients", "parameters", "state"]


def parameters(draft: Draft, chain: Chain, segment: Segment) -> str:
    """The buffer of a segment's parameters."""
    size = chain.nbytes(segment.parameters, samples=1)
    return draft.buffer(f"params.{segment.name}", Content.PARAMETERS, Scope.RUN, size, segment.parameters)


def state(draft: Draft, chain: Chain, segment: Segment) -> str:
    """The buffer of what a segment's forward pass replaces (running statistics)."""
    return draft.buffer(
        f"state.{segment.name}", Content.STATE, Scope.RUN, chain.nbytes(segment.state, samples=1), segment.state
    )


def gradients(draft: Draft, chain: Chain, segment: Segment) -> str:
    """The buffer that a segment's gradients add up in."""
    size = chain.nbytes(segment.parameters, samples=1)
    return draft.buffer(f"grad.{segment.name}", Content.GRADIENTS, Scope.STEP, size, segment.parameters)


def _activations(draft: Draft, chain: Chain, number: int) -> str:
    tensors = chain.segments[number].outputs
    return draft.buffer(f"act.{number}", Content.ACTIVATIONS, Scope.MICROBATCH, chain.nbytes(tensors), tensors)


def _cotangents(draft: Draft, chain: Chain, number: int) -> str:
    tensors = chain.segments[number + 1].differentiable
    return draft.buffer(f"cot.{number}", Content.GRADIENTS, Scope.MICROBATCH, chain.nbytes(tensors), tensors)


def _receives_gradient(chain: Chain, segment: Segment) -> bool:
    successor = chain.after(segment)
    return successor is not None and successor.backward and bool(successor.differentiable)


def _message(draft: Draft, kind: Kind, buffer: str, offset: int, phase: Phase) -> None:
    sends = kind is Kind.SEND
    draft.do(
        Instruction(
            id=f"{kind}.{buffer}",
            kind=kind,
            stream=f"{kind}.{'next' if offset > 0 else 'previous'}",
            phase=phase,
            peer=Peer("pipeline", offset),
            message=buffer,
            reads=(buffer,) if sends else (),
            writes=() if sends else (buffer,),
            frees=(buffer,) if sends else (),
        )
    )


def forward_pass(draft: Draft, chain: Chain, *, training: bool) -> None:
    """Load data, receive, run the stage's segments forward, send."""
    segments = chain.of_stage(draft.stage)
    readers = [s for s in segments if s.data]
    if readers:
        tensors = tuple(dict.fromkeys(t for s in readers for t in s.data))
        draft.buffer("data", Content.INPUTS, Scope.MICROBATCH, chain.nbytes(tensors), tensors)
        ahead = (
            Earlier(f"forward.{readers[0].name}", 2),
        )  # the next step's data load while this step computes, no further
        load = Instruction(
            id="load", kind=Kind.LOAD, stream="load", phase=Phase.HOST, writes=("data",), after_earlier=ahead
        )
        draft.do(load)
    first = segments[0].number
    if first > 0:
        _message(draft, Kind.RECEIVE, _activations(draft, chain, first - 1), -1, Phase.FORWARD)
    for segment in segments:
        scored = not training and chain.after(segments[-1]) is None  # then the score reads the labels last
        frees_data = segment in readers[-1:] and not scored
        _forward(draft, chain, segment, training=training, frees_data=frees_data)
    last = segments[-1].number
    if chain.after(segments[-1]):
        _message(draft, Kind.SEND, _activations(draft, chain, last), +1, Phase.FORWARD)


def _forward(draft: Draft, chain: Chain, segment: Segment, *, training: bool, frees_data: bool) -> None:
    reads, writes, accumulates, frees = [], [], [], []
    if segment.parameters:
        reads.append(parameters(draft, chain, segment))
    if segment.constants:
        size = chain.nbytes(segment.constants, samples=1)
        reads.append(draft.buffer(f"constants.{segment.name}", Content.PARAMETERS, Scope.RUN, size, segment.constants))
    if segment.state:
        reads.append(state(draft, chain, segment))
        if training:
            writes.append(state(draft, chain, segment))
    if segment.number:
        reads.append(_activations(draft, chain, segment.number - 1))
        frees.append(_activations(draft, chain, segment.number - 1))
    if segment.data:
        reads.append("data")
    if frees_data:
        frees.append("data")
    if chain.after(segment):
        writes.append(_activations(draft, chain, segment.number))
    elif not training:
        size = chain.nbytes(segment.outputs)
        writes.append(draft.buffer("predictions", Content.ACTIVATIONS, Scope.MICROBATCH, size, segment.outputs))
    if training and segment.backward:
        writes.append(
            draft.buffer(f"res.{segment.name}", Content.RESIDUALS, Scope.MICROBATCH, chain.residual_bytes(segment))
        )
    if training and segment.has_loss:
        accumulates.append(draft.buffer("loss", Content.WORKSPACE, Scope.STEP, SCALAR_BYTES))
    draft.compute(
        f"forward.{segment.name}",
        (Part(segment.name, Phase.FORWARD),),
        workspace_bytes=chain.workspace_bytes(segment, Phase.FORWARD),
        reads=reads,
        writes=writes,
        accumulates=accumulates,
        frees=frees,
    )


def backward_pass(
    draft: Draft, chain: Chain, *, finished: Callable[[Draft, Chain, Segment], None] | None = None
) -> None:
    """Receive gradients, run the stage's segments backward, send gradients; `finished` appends what follows a segment's backward."""
    segments = chain.of_stage(draft.stage)
    last, first = segments[-1], segments[0]
    if _receives_gradient(chain, last):
        _message(draft, Kind.RECEIVE, _cotangents(draft, chain, last.number), +1, Phase.BACKWARD)
    for segment in reversed(segments):
        if segment.backward:
            _backward(draft, chain, segment)
            if finished and segment.parameters:
                finished(draft, chain, segment)
    if first.number and first.backward and first.differentiable:
        _message(draft, Kind.SEND, _cotangents(draft, chain, first.number - 1), -1, Phase.BACKWARD)


def _backward(draft: Draft, chain: Chain, segment: Segment) -> None:
    reads, writes, accumulates, frees = [f"res.{segment.name}"], [], [], [f"res.{segment.name}"]
    if _receives_gradient(chain, segment):
        reads.append(_cotangents(draft, chain, segment.number))
        frees.append(_cotangents(draft, chain, segment.number))
    if segment.differentiable:
        writes.append(_cotangents(draft, chain, segment.number - 1))
    if segment.parameters:
        accumulates.append(gradients(draft, chain, segment))
    draft.compute(
        f"backward.{segment.name}",
        (Part(segment.name, Phase.BACKWARD),),
        workspace_bytes=chain.workspace_bytes(segment, Phase.BACKWARD),
        reads=reads,
        writes=writes,
        accumulates=accumulates,
        frees=frees,
    )
