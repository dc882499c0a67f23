"""Lowering: from a graph, its partition and a strategy to programs, one role per place of the pipeline.

The synchronous step runs a schedule of forward and backward passes; after its last backward pass a bucket's gradients are reduced over
the replicas while earlier segments still compute; then the optimiser updates (:mod:`.reduction` says what of it the replicas share).
The local step leaves the replicas alone and averages their parameters now and then (local SGD, Stich 2019). The asynchronous step gets
the shared parameters, computes gradients, and adds its update to them when it is done: nobody waits for anybody (Hogwild, Niu et al.
2011, over one-sided memory). A new solver is one more ``_step`` function here.
"""

from __future__ import annotations

from collections import Counter
from functools import partial

from ...errors import PlanError
from ..cost.memo import memo_of
from ..onnxpp.gradients import trained_in_vain
from ..onnxpp.graph import Graph
from ..plan.partition import Partition
from ..plan.strategy import Strategy
from .chain import SCALAR_BYTES, Chain
from .draft import Draft, assemble
from .instruction import Content, Instruction, Kind, Phase, Program, Scope
from .passes import Hooks, backward_pass, forward_pass, parameters, state, weight_pass
from .reduction import gather_before, reduce_after, share_update, trained_buckets, update
from .schedules import SCHEDULES, Slot

__all__ = ["lower", "lower_evaluation"]


def lower(
    graph: Graph,
    partition: Partition,
    strategy: Strategy,
    *,
    optimizer: str | None = "adam",
    checkpoint_every: int | None = None,
    experts: frozenset[str] = frozenset(),
    fused: bool = False,
) -> Program:
    """The program of one training step.

    graph              as one rank sees it, where the strategy shares operators (:func:`hpdlf.models.plan.localise`)
    optimizer          its name decides how many copies of the parameters its state holds; None: gradients alone
    checkpoint_every   steps between checkpoints; None: the program has none
    experts            parameters that are dealt out over expert ranks
    fused              what element-wise operators hand each other is not kept, as one kernel computes it again

    Raises:
        PlanError: the graph has no loss or nothing to train, or the partition does not fit it.
    """
    if graph.loss is None:
        raise PlanError(f"{graph.name} has no loss: `hpdlf import MODEL --loss softmax_xent` (or mse) appends one.")
    if not graph.parameters:
        raise PlanError(f"{graph.name} has nothing to train: `hpdlf import MODEL --train REGEX` names its parameters.")
    memo = memo_of(graph)
    if "trained_in_vain" not in memo:
        memo["trained_in_vain"] = trained_in_vain(graph)
    if why := memo["trained_in_vain"]:
        raise PlanError(f"{graph.name} cannot be trained: {why}.")
    chain = Chain.build(graph, partition, strategy, experts=experts, fused=fused)
    write = {"synchronous": _synchronous_step, "asynchronous": _asynchronous_step, "local": _local_step}[
        strategy.solver
    ]
    drafts = []
    for place in range(strategy.pipeline):
        draft = Draft(place=place)
        write(draft, chain, optimizer)
        draft.run("report", None, partial(_report_loss, draft, chain))
        if checkpoint_every:
            draft.run("checkpoint", None, partial(_checkpoint, draft, chain, checkpoint_every))
        drafts.append(draft)
    return assemble("train", chain, drafts)


def lower_evaluation(
    graph: Graph, partition: Partition, strategy: Strategy, *, experts: frozenset[str] = frozenset()
) -> Program:
    """The forward pass alone over the same ranks: the last stage scores its predictions, everybody learns the sums."""
    chain = Chain.build(graph, partition, strategy, experts=experts)
    hooks = Hooks(before=gather_before)
    drafts = []
    for place in range(strategy.pipeline):
        draft = Draft(place=place)
        stages = chain.stages_of(place)
        last = stages[-1] == strategy.stages - 1
        for group in range(0, strategy.microbatches, strategy.pipeline):
            for chunk, stage in enumerate(stages):
                for m in range(group, min(group + strategy.pipeline, strategy.microbatches)):
                    scores = last and stage == strategy.stages - 1
                    draft.run(
                        _named("forward", chain, chunk), m, partial(_score, draft, chain, stage, hooks, last=scores)
                    )
        if not last:
            draft.buffer("score", Content.WORKSPACE, Scope.STEP, 2 * SCALAR_BYTES)
        draft.run("report", None, partial(_share_and_report, draft, chain, "score", contributes=last))
        drafts.append(draft)
    return assemble("evaluate", chain, drafts)


def _score(draft: Draft, chain: Chain, stage: int, hooks: Hooks, *, last: bool) -> None:
    """A forward pass, and on the last stage what its predictions are worth."""
    forward_pass(draft, chain, stage, training=False, hooks=hooks)
    if not last:
        return
    draft.buffer("score", Content.WORKSPACE, Scope.STEP, 2 * SCALAR_BYTES)
    data = "data" if draft.place == stage else f"data.{stage}"
    reads = ("predictions", *((data,) if data in draft.buffers else ()))
    score = Instruction(
        id="score", kind=Kind.REPORT, stream="host", phase=Phase.HOST, reads=reads, accumulates=("score",), frees=reads
    )
    draft.do(score)


def _named(name: str, chain: Chain, chunk: int) -> str:
    return name if chain.strategy.interleave == 1 else f"{name}.{chunk}"


def _run_schedule(draft: Draft, chain: Chain, hooks: Hooks, last: Hooks) -> None:
    """The passes of the strategy's schedule; `last` instead of `hooks` around the last backward pass of each chunk."""
    strategy = chain.strategy
    stages = chain.stages_of(draft.place)
    write = SCHEDULES[strategy.schedule]
    slots = list(write(strategy.pipeline, draft.place, strategy.microbatches, strategy.interleave))
    completes = "W" if any(s.kind == "W" for s in slots) else "B"
    left = Counter(s.chunk for s in slots if s.kind == completes)
    for slot in slots:
        stage = stages[slot.chunk]
        ends = False
        if slot.kind == completes:
            left[slot.chunk] -= 1
            ends = left[slot.chunk] == 0 and last is not hooks
        _run_slot(draft, chain, slot, stage, last if ends else hooks, "last " if ends else "", weights=completes == "B")


def _run_slot(draft: Draft, chain: Chain, slot: Slot, stage: int, hooks: Hooks, prefix: str, *, weights: bool) -> None:
    def named(name: str) -> str:
        return _named(prefix + name, chain, slot.chunk)

    match slot.kind:
        case "F":
            write = partial(forward_pass, draft, chain, stage, training=True, hooks=hooks)
            draft.run(named("forward"), slot.microbatch, write)
        case "B":
            back = partial(backward_pass, draft, chain, stage, hooks=hooks, weights=weights)
            draft.run(named("backward"), slot.microbatch, back)
        case "W":
            draft.run(named("weights"), slot.microbatch, partial(weight_pass, draft, chain, stage, hooks=hooks))


def _synchronous_step(draft: Draft, chain: Chain, optimizer: str | None) -> None:
    strategy = chain.strategy
    always = Hooks(before=gather_before, finished=reduce_after if strategy.zero >= 2 else None)
    shared = strategy.data * strategy.context > 1
    last = Hooks(before=gather_before, finished=reduce_after) if shared and strategy.zero < 2 else always
    _run_schedule(draft, chain, always, last)
    if optimizer is None:
        draft.run("drop", None, partial(_drop_gradients, draft, chain))
    else:
        draft.run("update", None, partial(share_update, draft, chain, optimizer))


def _local_step(draft: Draft, chain: Chain, optimizer: str | None) -> None:
    strategy = chain.strategy
    _run_schedule(draft, chain, Hooks(), Hooks())

    def average() -> None:
        update(draft, chain, optimizer or "sgd")
        for bucket in trained_buckets(draft, chain):
            held = parameters(draft, chain, bucket)
            draft.do(
                Instruction(
                    id=f"average.{bucket.name}",
                    kind=Kind.ALL_REDUCE,
                    stream="reduce",
                    phase=Phase.UPDATE,
                    group=chain.replicas(experts=bucket.experts),
                    message=held,
                    reads=(held,),
                    writes=(held,),
                    every=strategy.synchronise_every,
                    once=True,
                )
            )

    draft.run("update", None, average)


def _drop_gradients(draft: Draft, chain: Chain) -> None:
    """Nobody wants the gradients: they end with the step."""
    held = tuple(name for name in draft.buffers if name.startswith(("grad.", "slice.")))
    held = tuple(name for name in held if draft.buffers[name].scope is Scope.STEP)
    draft.do(
        Instruction(id="drop", kind=Kind.REPORT, stream="host", phase=Phase.HOST, reads=held, frees=held, once=True)
    )


def _asynchronous_step(draft: Draft, chain: Chain, optimizer: str | None) -> None:
    strategy = chain.strategy
    trained = trained_buckets(draft, chain)
    names = tuple(p for b in trained for p in b.parameters)
    size = chain.nbytes(names, samples=1)
    replicas = chain.replicas()
    shared = draft.buffer("shared", Content.PARAMETERS, Scope.RUN, size, names, shared=replicas)
    delta = draft.buffer("delta", Content.GRADIENTS, Scope.STEP, size, names)
    held = [parameters(draft, chain, b) for b in trained]
    one_sided = partial(Instruction, stream="one_sided", phase=Phase.UPDATE, group=replicas)
    get = one_sided(id="get.parameters", kind=Kind.GET, message="shared", reads=(shared,), writes=tuple(held))
    draft.run("get", None, partial(draft.do, get))
    for m in range(strategy.microbatches):
        draft.run("forward", m, partial(forward_pass, draft, chain, draft.place, training=True))
        draft.run("backward", m, partial(backward_pass, draft, chain, draft.place))
    put = one_sided(
        id="put.update", kind=Kind.PUT, message="shared", reads=(delta,), accumulates=(shared,), frees=(delta,)
    )

    def publish() -> None:
        update(draft, chain, optimizer or "sgd", writes=[delta])
        # The put changes what the next get reads: it is the only thing that orders a rank's own steps.
        draft.do(put)
        draft.do(one_sided(id="notify.version", kind=Kind.NOTIFY, message="version", after=("put.update",)))

    draft.run("publish", None, publish)


def _report_loss(draft: Draft, chain: Chain) -> None:
    contributes = any(s.has_loss for stage in chain.stages_of(draft.place) for s in chain.of_stage(stage))
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
                group=chain.everyone,
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
    """Write this rank's part, agree that all parts are written, commit: a checkpoint exists only when it is whole."""
    stages = chain.stages_of(draft.place)
    kinds = ("params.", "shard.")
    held = [n for n, b in draft.buffers.items() if n.startswith(kinds) and b.scope is Scope.RUN]
    held += [state(draft, chain, s) for stage in stages for s in chain.of_stage(stage) if s.state]
    held += [name for name in ("optimizer", "shared") if name in draft.buffers]
    written = draft.buffer("written", Content.WORKSPACE, Scope.STEP, SCALAR_BYTES)
    step = partial(Instruction, phase=Phase.HOST, every=every)
    draft.do(step(id="checkpoint", kind=Kind.CHECKPOINT, stream="host", reads=tuple(held), writes=(written,)))
    if chain.strategy.ranks > 1:
        draft.do(
            step(
                id="share.written",
                kind=Kind.ALL_REDUCE,
                stream="control",
                group=chain.everyone,
                message=written,
                reads=(written,),
                writes=(written,),
            )
        )
    draft.do(step(id="commit", kind=Kind.REPORT, stream="host", reads=(written,), frees=(written,)))
