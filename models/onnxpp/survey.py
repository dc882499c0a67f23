"""Everything that a model holds, however deep: graphs inside operators, functions, and tensors wherever they stand.

Checks must not stop at the main graph: what an If's branch or a function's body holds is allocated and run as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto

__all__ = ["HeldTensor", "InnerGraph", "Survey", "bodies_of", "function_key", "node_label", "survey"]


class InnerGraph(NamedTuple):
    """A graph, where it stands ("" for the main one), how many graphs are around it, and the function it is in."""

    graph: GraphProto
    where: str
    depth: int
    function: FunctionProto | None


class HeldTensor(NamedTuple):
    """A tensor, what it is ("initializer 'w'"), and where it stands.

    kind  "weight" (an initializer of the main graph), "inner" (of a graph inside an operator), "attribute", or "sparse"
    """

    tensor: TensorProto
    what: str
    kind: str


class Survey(NamedTuple):
    """What a model holds. A sparse tensor stands in `sparse`, its values and indices in `tensors` too."""

    graphs: list[InnerGraph]
    tensors: list[HeldTensor]
    sparse: list[tuple[SparseTensorProto, str]]


def node_label(node: NodeProto) -> str:
    """How messages name a node."""
    return f"node {node.name!r} ({node.op_type})" if node.name else f"a node {node.op_type!r}"


def function_key(function: FunctionProto) -> tuple[str, str, str]:
    """What calls a function: domain, name and overload."""
    return function.domain, function.name, function.overload


def bodies_of(node: NodeProto) -> Iterator[tuple[str, GraphProto]]:
    """The graphs inside an operator, with the names of their attributes."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.name, attribute.g
        for graph in attribute.graphs:
            yield attribute.name, graph


def survey(model: ModelProto) -> Survey:
    """Walks the whole model once, without recursion."""
    found = Survey([], [], [])
    waiting: list[tuple[Sequence[NodeProto] | Iterable[NodeProto], str, int, FunctionProto | None]] = []
    _graph(found, waiting, InnerGraph(model.graph, "", 0, None))
    for function in model.functions:
        waiting.append((function.node, f"function {function.name!r}", 0, function))
        for attribute in function.attribute_proto:
            if attribute.HasField("t"):
                what = f"default {attribute.name!r} of function {function.name!r}"
                found.tensors.append(HeldTensor(attribute.t, what, "attribute"))
    while waiting:
        nodes, where, depth, function_around = waiting.pop()
        for node in nodes:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    found.tensors.append(HeldTensor(attribute.t, _what(attribute.name, node, where), "attribute"))
                if attribute.HasField("g"):
                    inside = f"{attribute.name} of {node_label(node)}" + _within(where)
                    _graph(found, waiting, InnerGraph(attribute.g, inside, depth + 1, function_around))
                if attribute.HasField("sparse_tensor"):
                    _sparse(found, attribute.sparse_tensor, _what(attribute.name, node, where))
                if attribute.tensors or attribute.graphs or attribute.sparse_tensors:
                    what = _what(attribute.name, node, where)
                    found.tensors.extend([HeldTensor(tensor, what, "attribute") for tensor in attribute.tensors])
                    for sparse in attribute.sparse_tensors:
                        _sparse(found, sparse, what)
                    for graph in attribute.graphs:
                        _graph(found, waiting, InnerGraph(graph, what, depth + 1, function_around))
    return found


def _what(attribute: str, node: NodeProto, where: str) -> str:
    return f"attribute {attribute!r} of {node_label(node)}" + _within(where)


def _within(where: str) -> str:
    """The end of a place that is inside another."""
    return f" in {where}" if where else ""


def _graph(
    found: Survey, waiting: list[tuple[Iterable[NodeProto], str, int, FunctionProto | None]], inner: InnerGraph
) -> None:
    found.graphs.append(inner)
    waiting.append((inner.graph.node, inner.where, inner.depth, inner.function))
    inside = f" in {inner.where}" if inner.where else ""
    kind = "inner" if inner.where else "weight"
    for tensor in inner.graph.initializer:
        found.tensors.append(HeldTensor(tensor, f"initializer {tensor.name!r}{inside}", kind))
    for sparse in inner.graph.sparse_initializer:
        _sparse(found, sparse, f"sparse initializer {sparse.values.name!r}{inside}")


def _sparse(found: Survey, sparse: SparseTensorProto, what: str) -> None:
    found.sparse.append((sparse, what))
    found.tensors.append(HeldTensor(sparse.values, f"values of {what}", "sparse"))
    found.tensors.append(HeldTensor(sparse.indices, f"indices of {what}", "sparse"))
