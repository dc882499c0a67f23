"""The inside of attention where it is spelt out: from the product of queries and keys to that with the values.

What lies inside grows with the square of the sequence and is cheap to compute, which is why selective recomputation drops it
(Korthikanti et al. 2022, arXiv 2205.05198, section 5). Fused attention keeps nothing inside in the first place.
"""

from __future__ import annotations

from ..onnxpp.graph import Graph, Operator

__all__ = ["core_operators", "core_spans"]

_INSIDE = frozenset({"elementwise", "softmax", "view"}) | {"movement"}


def core_spans(graph: Graph) -> tuple[tuple[int, int], ...]:
    """(first, last) positions of every core, ascending. A core with anything else between its operators is none."""
    position = {o.name: i for i, o in enumerate(graph.operators)}
    readers: dict[str, list[Operator]] = {}
    for operator in graph.operators:
        for name in operator.inputs:
            readers.setdefault(name, []).append(operator)
    spans = []
    for operator in graph.operators:
        if operator.family != "softmax":
            continue
        first = _back(graph, operator)
        last = _forth(graph, readers, operator)
        if first is None or last is None:
            continue
        a, b = position[first.name], position[last.name]
        between = graph.operators[a + 1 : b]
        if a < b and all(o.family in _INSIDE for o in between):
            spans.append((a, b))
    return tuple(spans)


def core_operators(graph: Graph) -> frozenset[str]:
    """The names of all operators inside cores."""
    return frozenset(o.name for first, last in core_spans(graph) for o in graph.operators[first : last + 1])


def _is_of_data(graph: Graph, operator: Operator) -> bool:
    return operator.op_type == "MatMul" and not any(t in graph.fixed for t in operator.inputs)


def _back(graph: Graph, operator: Operator) -> Operator | None:
    """The product of data whose result `operator` normalises."""
    while True:
        data = [graph.producer[t] for t in operator.inputs if t in graph.producer]
        if not data:
            return None
        operator = data[0]
        if _is_of_data(graph, operator):
            return operator
        if operator.family not in ("elementwise", "view"):
            return None


def _forth(graph: Graph, readers: dict[str, list[Operator]], operator: Operator) -> Operator | None:
    """The product of data that reads what `operator` normalised."""
    while True:
        following = readers.get(operator.outputs[0], [])
        if len(following) != 1:
            return None
        operator = following[0]
        if _is_of_data(graph, operator):
            return operator
        if operator.family not in ("elementwise", "view") and operator.op_type != "Cast":
            return None
