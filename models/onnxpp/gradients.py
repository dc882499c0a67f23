"""How far gradients reach: from the loss back to the parameters, or to the operators that let none through."""

from __future__ import annotations

from .graph import Graph

__all__ = ["FLAT", "trained_in_vain", "without_gradient"]

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


def trained_in_vain(graph: Graph) -> str | None:
    """Why no parameter of `graph` can be trained, as a sentence; None if some can, or there are none."""
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
