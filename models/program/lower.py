"""Lowering: from a graph, its partition and a strategy to programs, one role per pipeline stage.

The synchronous step runs a schedule of forward and backward passes; after its last backward pass a segment's gradients are
all-reduced over the replicas while earlier segments still compute; then the optimiser updates. The asynchronous step gets the
shared parameters, computes gradients, and adds its update to them when it is done: nobody waits for anybody (Hogwild, Niu et al.
2011, over one-sided memory). A new solver is one more ``_step`` function here.
"""

from __future__ import annotations

from functools import partial

from ...errors import PlanError
from ..onnxpp.graph import Graph
from ..plan.partition import Partition
from ..plan.recipe import state_copies
from ..plan.strategy import Strategy
from .draft import DATA, EVERYONE, SCALAR_BYTES, Chain, Draft, assemble
from .instruction import Content, Instruction, Kind, Part, Phase, Program, Scope, Segment
from .passes import backward_pass, forward_pass, gradients, parameters, state
from .schedules import SCHEDULES

__all__ = ["lower", "lower_evaluation"]


def lower(
    graph: Graph,
    partition: Partition,
    strategy: Strategy,
    *,
    optimizer: str = "adam",
    checkpoint_every: int | None = None,
) -> Program:
    """The program of one training step.

    optimizer          its name decides how many copies of the parameters its state holds
    checkpoint_every   steps between checkpoints; None: the program has none

    Raises:
        PlanError: the graph has no loss or nothing to train, or the partition does not fit it.
    """
    if graph.loss is None:
        raise PlanError(f"{graph.name} has no loss: `hpdlf import MODEL --loss softmax_xent` (or mse) appends one.")
    if not graph.parameters:
        raise PlanError(f"{graph.name} has nothing to train: `hpdlf import MODEL --train REGEX` names its parameters.")
    chain = Chain.build(graph, partition, strategy)
    write = {"synchronous": _synchronous_step, "asynchronous": _asynchronous_step}[strategy.solver]
    drafts = []
    for stage in range(strategy.pipeline):
        draft = Draft(stage=stage)
        write(draft, chain, optimizer)
        draft.run("report", None, partial(_report_loss, draft, chain))
        if checkpoint_every:
            draft.run("checkpoint", None, partial(_checkpoint, draft, chain, checkpoint_every))
        drafts.append(draft)
    return assemble("train", chain, drafts)


def lower_evaluation(graph: Graph, partition: Partition, strategy: Strategy) -> Program:
    """The forward pass alone over the same ranks: the last stage scores its predictions, everybody learns the sums."""
    chain = Chain.build(graph, partition, strategy)
    drafts = []
    for stage in range(strategy.pipeline):
        draft = Draft(stage=stage)
        last = stage == strategy.pipeline - 1
        for m in range(strategy.microbatches):
            draft.run("forward", m, partial(_score, draft, chain, last=last))
        if not last:
            draft.buffer("score", Content.WORKSPACE, Scope.STEP, 2 * SCALAR_BYTES)
        draft.run("report", None, partial(_share_and_report, draft, chain, "score", contributes=last))
        drafts.append(draft)
    return assemble("evaluate", chain, drafts)


def _score(draft: Draft, chain: Chain, *, last: bool) -> None:
    """A forward pass, and on the last stage what its predictions are worth."""
    forward_pass(draft, chain, training=False)
    if not last:
        return
    draft.buffer("score", Content.WORKSPACE, Scope.STEP, 2 * SCALAR_BYTES)
    reads = ("predictions", *(("data",) if "data" in draft.buffers else ()))
    score = Instruction(
        id="score", kind=Kind.REPORT, stream="host", phase=Phase.HOST, reads=reads, accumulates=("score",), frees=reads
    )
    draft.do(score)


def _synchronous_step(draft: Draft, chain: Chain, optimizer: str) -> None:
    strategy = chain.strategy
    schedule = list(SCHEDULES[strategy.schedule](strategy.pipeline, draft.stage, strategy.microbatches))
    last_backward = max(i for i, (pass_, _) in enumerate(schedule) if pass_ == "B")
    for i, (pass_, m) in enumerate(schedule):
        if pass_ == "F":
            draft.run("forward", m, partial(forward_pass, draft, chain, training=True))
        elif i == last_backward and strategy.data > 1:
            draft.run("last backward", m, partial(backward_pass, draft, chain, finished=_all_reduce))
        else:
            draft.run("backward", m, partial(backward_pass, draft, chain))
    trained = [s for s in chain.of_stage(draft.stage) if s.backward and s.parameters]
    if trained:
        held = [parameters(draft, chain, s) for s in trained]
        summed = [gradients(draft, chain, s) for s in trained]
        update = partial(_update, draft, chain, trained, optimizer, reads=[*held, *summed], writes=held, frees=summed)
        draft.run("update", None, update)


def _all_reduce(draft: Draft, chain: Chain, segment: Segment) -> None:
    buffer = gradients(draft, chain, segment)
    draft.do(
        Instruction(
            id=f"reduce.{segment.name}",
            kind=Kind.ALL_REDUCE,
            stream="reduce",
            phase=Phase.BACKWARD,
            group=DATA,
            message=buffer,
            reads=(buffer,),
            writes=(buffer,),
            once=True,
        )
    )


def _update(
    draft: Draft,
    chain: Chain,
    trained: list[Segment],
    optimizer: str,
    *,
    reads: list[str],
    writes: list[str],
    frees: list[str],
) -> None:
    size = state_copies(optimizer) * sum(chain.nbytes(s.parameters, samples=1) for s in trained)
    moments = draft.buffer(
        "optimizer", Content.OPTIMIZER, Scope.RUN, size + SCALAR_BYTES
    )  # every optimiser counts its steps
    draft.compute(
        "update",
        (Part("", Phase.UPDATE),),
        workspace_bytes=0,
        once=True,
        reads=[*reads, moments],
        writes=[*writes, moments],
        frees=frees,
    )


def _asynchronous_step(draft: Draft, chain: Chain, optimizer: str) -> None:
    strategy = chain.strategy
    trained = [s for s in chain.of_stage(draft.stage) if s.backward and s.parameters]
    names = tuple(p for s in trained for p in s.parameters)
    size = chain.nbytes(names, samples=1)
    shared = draft.buffer("shared", Content.PARAMETERS, Scope.RUN, size, names, shared=DATA)
    delta = draft.buffer("delta", Content.GRADIENTS, Scope.STEP, size, names)
    held = [parameters(draft, chain, s) for s in trained]
    one_sided = partial(Instruction, stream="one_sided", phase=Phase.UPDATE, group=DATA)
    get = one_sided(id="get.parameters", kind=Kind.GET, message="shared", reads=(shared,), writes=tuple(held))
    draft.run("get", None, partial(draft.do, get))
    for m in range(strategy.microbatches):
        draft.run("forward", m, partial(forward_pass, draft, chain, training=True))
        draft.run("backward", m, partial(backward_pass, draft, chain))
    summed = [gradients(draft, chain, s) for s in trained]
    put = one_sided(
        id="put.update", kind=Kind.PUT, message="shared", reads=(delta,), accumulates=(shared,), frees=(delta,)
    )

    def publish() -> None:
        _update(draft, chain, trained, optimizer, reads=[*held, *summed], writes=[delta], frees=summed)
        # The put changes what the next get reads: it is the only thing that orders a rank's own steps.
        draft.do(put)
        draft.do(one_sided(id="notify.version", kind=Kind.NOTIFY, message="version", after=("put.update",)))

    draft.run("publish", None, publish)


def _report_loss(draft: Draft, chain: Chain) -> None:
    contributes = any(s.has_loss for s in chain.of_stage(draft.stage))
    draft.buffer("loss", Content.WORKSPACE, Scope.STEP, SCALAR_BYTES)
    _share_and_report(draft, chain, "loss", contributes=contributes)


def _share_and_report(draft: Draft, chain: Chain, buffer: str, *, contributes: bool) -> None:
    """Sum a few numbers over all ranks and hand them to the host. Asynchronous ranks report their own: nobody waits."""
    if chain.strategy.ranks > 1 and chain.strategy.solver == "synchronous":
        draft.do(
            Instruction(
                id=f"share.{buffer}",
                kind=Kind.ALL_REDUCE,
                stream="control",
                phase=Phase.HOST,
                group=EVERYONE,
                message=buffer,
                reads=(buffer,) if contributes else (),
                writes=(buffer,),
            )
        )
    draft.do(
        Instruction(
            id=f"report.{buffer}", kind=Kind.REPORT, stream="host", phase=Phase.HOST, reads=(buffer,), frees=(buffer,)
        )
    )


def _checkpoint(draft: Draft, chain: Chain, every: int) -> None:
    """Write this stage's part, agree that all parts are written, commit: a checkpoint exists only when it is whole."""
    segments = chain.of_stage(draft.stage)
    held = [parameters(draft, chain, s) for s in segments if s.parameters]
    held += [state(draft, chain, s) for s in segments if s.state]
    held += ["optimizer"] if "optimizer" in draft.buffers else []
    held += ["shared"] if "shared" in draft.buffers else []
    written = draft.buffer("written", Content.WORKSPACE, Scope.STEP, SCALAR_BYTES)
    step = partial(Instruction, phase=Phase.HOST, every=every)
    draft.do(step(id="checkpoint", kind=Kind.CHECKPOINT, stream="host", reads=tuple(held), writes=(written,)))
    if chain.strategy.ranks > 1:
        draft.do(
            step(
                id="share.written",
                kind=Kind.ALL_REDUCE,
                stream="control",
                group=EVERYONE,
                message=written,
                reads=(written,),
                writes=(written,),
            )
        )
    draft.do(step(id="commit", kind=Kind.REPORT, stream="host", reads=(written,), frees=(written,)))
