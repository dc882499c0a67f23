"""What a strategy would take, estimated in milliseconds: enough to tell which are worth a simulation.

The estimate prices the whole network for one microbatch (once for all strategies that split it alike), deals it out over the stages
that the strategy will have, takes the longest for all, and adds

* the bubble of the schedule, (p-1) microbatches of a stage's time, less where stages interleave or weights' gradients wait;
* the collectives inside the network, which everybody waits for;
* what of the gradients' reduction does not fit behind the last backward pass, or, in full sharding, what of the gathering does not fit
  behind computing;
* messages between stages and the update.

It knows no order of tasks and no interference. The simulation's time lies within :data:`FACTOR` of it, up or down, for 95 of 100
strategies of the plans that the tests try; whoever prunes by it keeps everything that could be the best by that.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import PlanError
from ..models.onnxpp import Graph
from ..models.plan import Strategy
from .cutting import Cutter

__all__ = ["FACTOR", "Screen", "screen"]

FACTOR = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Screen:
    """The estimate of one step: seconds, and of what they consist."""

    step_s: float
    compute_s: float
    bubble_s: float
    collectives_s: float
    reduction_s: float
    update_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class _Whole:
    """The network as one rank sees it, on one microbatch: seconds forward and backward, seconds of its collectives."""

    forward_s: float
    backward_s: float
    collectives_s: float
    parameters: int


def screen(cutter: Cutter, strategy: Strategy, *, optimizer: str = "adam") -> Screen:
    """Estimate a step of `strategy`.

    Raises:
        PlanError: the cluster is too small, or the network has nothing to split along an axis.
    """
    cluster, model = cutter.cluster, cutter.model
    if strategy.ranks > cluster.n_devices:
        raise PlanError(f"{strategy} needs {strategy.ranks} devices, {cluster.name} has {cluster.n_devices}.")
    whole = _whole(cutter, strategy)
    p, m = strategy.pipeline, strategy.microbatches
    again_s = whole.forward_s if strategy.recompute == "full" else 0.0
    microbatch_s = (whole.forward_s + whole.backward_s + again_s) / p * _longest(cutter, strategy)
    inside_s = whole.collectives_s * (1.5 if strategy.recompute == "full" else 1.0) / p
    compute_s = m * microbatch_s
    idle = {"zero_bubble": 1.0 / 3.0}.get(strategy.schedule, 1.0 / strategy.interleave)
    bubble_s = (p - 1) * (microbatch_s + inside_s) * idle + _messages_s(cutter, strategy)
    reduction_s = _reduction_s(cutter, strategy, whole, microbatch_s)
    shards = strategy.data * strategy.context if strategy.zero else 1
    update = model.update(
        max(whole.parameters // p // shards, 1),
        optimizer=optimizer,
        device=cluster.device,
        precision=strategy.precision,
    )
    collectives_s = m * inside_s
    return Screen(
        step_s=compute_s + bubble_s + collectives_s + reduction_s + update.seconds,
        compute_s=compute_s,
        bubble_s=bubble_s,
        collectives_s=collectives_s,
        reduction_s=reduction_s,
        update_s=update.seconds,
    )


def _whole(cutter: Cutter, strategy: Strategy) -> _Whole:
    samples, precision = strategy.microbatch_samples, strategy.precision
    key = (strategy.tensor, strategy.context, strategy.expert, strategy.sequence_parallel, samples, precision)
    if key not in cutter.screened:
        graph = cutter.local(strategy).graph
        names = tuple(o.name for o in graph.operators if o.family != "collective")
        device = cutter.cluster.device
        forward_s, backward_s = (
            cutter.model.compute(graph, [(names, phase)], batch=samples, device=device, precision=precision).seconds
            for phase in ("forward", "backward")
        )
        cutter.screened[key] = _Whole(
            forward_s=forward_s,
            backward_s=backward_s,
            collectives_s=_collectives_s(cutter, graph, strategy),
            parameters=graph.parameter_count,
        )
    found = cutter.screened[key]
    assert isinstance(found, _Whole)
    return found


def _longest(cutter: Cutter, strategy: Strategy) -> float:
    """How much longer the longest place of the pipeline takes than the mean, by operators' own times."""
    if strategy.pipeline == 1:
        return 1.0
    operator_s = cutter.operator_times(strategy)
    stages = cutter.cut(strategy).stages
    places = [0.0] * strategy.pipeline
    for operator, seconds in zip(cutter.local(strategy).graph.operators, operator_s, strict=True):
        places[stages[operator.name] % strategy.pipeline] += seconds
    return max(places) * strategy.pipeline / max(sum(places), 1e-30)


def _collectives_s(cutter: Cutter, graph: Graph, strategy: Strategy) -> float:
    """All collectives inside the network, forward and backward."""
    total_s = 0.0
    step = {"tensor": 1, "context": strategy.tensor, "expert": strategy.tensor * strategy.context}
    for operator in graph.operators:
        if operator.family != "collective":
            continue
        axis = operator.attributes["axis"]
        size = {"tensor": strategy.tensor, "context": strategy.context, "expert": strategy.expert}[axis]
        ranks = range(0, size * step[axis], step[axis])
        nbytes = max(
            graph.tensors[t].nbytes(strategy.microbatch_samples, strategy.precision)
            for t in (operator.inputs[0], operator.outputs[0])
        )
        for kind in (operator.attributes["forward"], operator.attributes["backward"]):
            if kind:
                total_s += cutter.model.collective(kind, nbytes, ranks=ranks, cluster=cutter.cluster).seconds
    return total_s


def _reduction_s(cutter: Cutter, strategy: Strategy, whole: _Whole, microbatch_s: float) -> float:
    """What is seen of the reduction of gradients, and of gathering parameters."""
    replicas = strategy.data * strategy.context
    if replicas == 1 or strategy.solver == "asynchronous":
        return 0.0
    width = (
        4
        if strategy.mixed and strategy.zero < 2
        else {"float32": 4, "tf32": 4, "float64": 8}.get(strategy.precision, 2)
    )
    nbytes = max(whole.parameters // strategy.pipeline * width, 1)
    ranks = range(0, replicas * strategy.tensor, strategy.tensor)
    reduced_s = cutter.model.collective("all_reduce", nbytes, ranks=ranks, cluster=cutter.cluster).seconds
    if strategy.solver == "local":
        return reduced_s / strategy.synchronise_every
    if strategy.zero == 3:
        # Gathered twice and scattered once a microbatch, behind computing.
        return strategy.microbatches * max(1.5 * reduced_s - microbatch_s, 0.0)
    if strategy.zero == 2:
        reduced_s *= (strategy.microbatches + 1) / 2
    # All but the first bucket's reduction may hide behind the backward pass.
    hidden_s = whole.backward_s / strategy.pipeline
    last = min(strategy.bucket_bytes / nbytes, 1.0)
    return max(reduced_s - hidden_s, reduced_s * last)


def _messages_s(cutter: Cutter, strategy: Strategy) -> float:
    """A message a stage on the way through the pipeline and back; the others travel while computing goes on."""
    if strategy.pipeline == 1:
        return 0.0
    graph = cutter.local(strategy).graph
    middle = graph.operators[len(graph.operators) // 2]
    nbytes = graph.tensors[middle.outputs[0]].nbytes(strategy.microbatch_samples, strategy.precision)
    link = cutter.cluster.link or cutter.cluster.node.link
    if link is None:
        return 0.0
    return 2 * (strategy.pipeline - 1) * cutter.model.transfer(nbytes, link).seconds
