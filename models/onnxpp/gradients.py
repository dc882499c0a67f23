"""What the loss does to parameters: how far its gradients reach, and whether it is a mean over samples or their sum."""

from __future__ import annotations

from .graph import Dim, Graph

__all__ = ["FLAT", "constant_loss", "sums_over_samples", "trained_in_vain", "without_gradient"]

# Piecewise constant: floats go in and come out, but the derivative is zero wherever there is one.
FLAT = frozenset({"Ceil", "Floor", "Hardmax", "Round", "Sign"})
LOSSES = ("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss")
SUMS = ("ReduceL1", "ReduceSum", "ReduceSumSquare")
SCALINGS = ("Cast", "Div", "Flatten", "Identity", "Mul", "Neg", "Reshape", "Squeeze", "Unsqueeze")


def without_gradient(graph: Graph) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(parameters that the loss does not depend on smoothly, operators at which their gradients end).

    A gradient ends where numbers are rounded or turned into integers or truth values. A graph without a loss has
    neither.
    """
    if graph.loss is None:
        return (), ()
    reached, ends = {graph.loss}, []
    for operator in reversed(graph.operators):
        if reached.isdisjoint(operator.outputs):
            continue
        if operator.op_type in FLAT:
            ends.append(operator)
            continue
        for name in operator.inputs:
            if name and graph.tensors[name].is_float:
                reached.add(name)
            elif name in graph.producer:
                ends.append(graph.producer[name])
    lost = tuple(p for p in graph.parameters if p not in reached)
    if not lost:
        return (), ()
    moving = set(lost)
    for operator in graph.operators:
        if not moving.isdisjoint(operator.inputs):
            moving.update(filter(None, operator.outputs))
    stops = {o.name: None for o in ends if not moving.isdisjoint(o.inputs)}
    return lost, tuple(o.name for o in graph.operators if o.name in stops)


def sums_over_samples(graph: Graph) -> bool:
    """Whether the loss is the sum of what each sample adds, perhaps times a constant: twice the samples, twice the loss.

    Seen where a loss operator or a reduction over the batch says so; a sum that is divided by the number of samples is
    a mean.
    """
    name = graph.loss or ""
    while (operator := graph.producer.get(name)) is not None:
        kind = operator.op_type
        if kind in LOSSES:
            reduction = operator.attributes.get("reduction", "mean")
            return (reduction.decode() if isinstance(reduction, bytes) else reduction) == "sum"
        if kind in SUMS:
            return _has_batch(graph, operator.inputs[0]) and not _has_batch(graph, name)
        data = [n for n in operator.inputs if n and n not in graph.constants]
        if kind not in SCALINGS or len(data) != 1 or (kind == "Div" and data[0] != operator.inputs[0]):
            return False
        name = data[0]
    return False


def _has_batch(graph: Graph, name: str) -> bool:
    return any(d.per_sample for d in graph.tensors[name].shape)


def constant_loss(graph: Graph) -> str | None:
    """Why the loss is the same whatever the network says, as a sentence; None where it is not."""
    loss = graph.producer.get(graph.loss or "")
    if loss is None or loss.op_type != "SoftmaxCrossEntropyLoss":
        return None
    scores = graph.tensors[loss.inputs[0]]
    if len(scores.shape) < 2 or scores.shape[1] != Dim(1):
        return None
    return (
        f"{scores.name!r} has one score per sample, whose softmax is 1 whatever it is: have another loss appended, "
        "--loss mse or --loss sigmoid_xent"
    )


def trained_in_vain(graph: Graph) -> str | None:
    """Why training would change no parameter of `graph`, as a sentence; None where it would, or there are none."""
    lost, ends = without_gradient(graph)
    if not lost or len(lost) < len(graph.parameters):
        return None
    if not ends:
        return f"the loss {graph.loss!r} depends on none of the {len(lost)} parameters"
    first = graph.operator[ends[0]]
    more = f" and {len(ends) - 1} more" if len(ends) > 1 else ""
    return (
        f"no gradient of the loss reaches a parameter: all end at {first.op_type} node {first.name!r}{more}, whose result "
        "moves in steps; train the network in floating point, before it is quantised"
    )
