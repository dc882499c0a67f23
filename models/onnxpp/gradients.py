"""How far gradients reach: from the loss back to the parameters, or to the operators that let none through."""

from __future__ import annotations

from .graph import Dim, Graph

__all__ = ["FLAT", "constant_loss", "trained_in_vain", "without_gradient"]

# Piecewise constant: floats go in and come out, but the derivative is zero wherever there is one.
FLAT = frozenset({"Ceil", "Floor", "Hardmax", "Round", "Sign"})


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
