"""Put the branch that an If takes in its place, where the condition is known before the model runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, helper

from .normalise import constants_to_initializers, name_nodes, unique_name

__all__ = ["has_bodies", "inline_branches"]


def has_bodies(graph: GraphProto) -> bool:
    """Whether an operator of the graph holds a graph."""
    return any(a.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for node in graph.node for a in node.attribute)


def inline_branches(model: ModelProto, branches: Mapping[str, str]) -> None:
    """Replace each If of `branches` (by node name) by the nodes of its "then_branch" or "else_branch", in place.

    What a branch calls its own gets a new name where the graph around it has something else of that name.
    """
    graph = model.graph
    taken = {v.name for v in graph.input} | {t.name for t in graph.initializer}
    taken |= {name for node in graph.node for name in node.output}
    names = {node.name for node in graph.node}
    ordered: list[NodeProto] = []
    for node in graph.node:
        branch = branches.get(node.name)
        if branch is None:
            ordered.append(node)
            continue
        body = next(a.g for a in node.attribute if a.name == branch)
        ordered.extend(_unfolded(graph, node, body, taken, names))
    copies = [NodeProto.FromString(node.SerializeToString()) for node in ordered]
    del graph.node[:]
    graph.node.extend(copies)
    constants_to_initializers(model)
    name_nodes(model)


def _unfolded(
    graph: GraphProto, node: NodeProto, body: GraphProto, taken: set[str], names: set[str]
) -> Iterable[NodeProto]:
    own = {name for inner in body.node for name in inner.output if name} | {t.name for t in body.initializer}
    renamed: dict[str, str] = {}
    extra: list[NodeProto] = []
    for value, result in zip(body.output, node.output, strict=True):
        computed = any(value.name in inner.output for inner in body.node)
        if not result:
            continue
        if computed and value.name not in renamed:
            renamed[value.name] = result
        else:  # a tensor of the graph around it, a constant, or one result twice
            extra.append(helper.make_node("Identity", [value.name], [result]))
    for name in sorted(own - set(renamed)):
        if name in taken:
            renamed[name] = unique_name(name, taken)
        taken.add(name)
    for tensor in body.initializer:
        copy = graph.initializer.add()
        copy.CopyFrom(tensor)
        copy.name = renamed.get(tensor.name, tensor.name)
    nodes = [NodeProto.FromString(inner.SerializeToString()) for inner in (*body.node, *extra)]
    for inner in nodes:
        _rename(inner, renamed)
        if inner.name:
            inner.name = unique_name(inner.name, names)
    return nodes


def _rename(node: NodeProto, renamed: Mapping[str, str]) -> None:
    """Call values by their new names, also where graphs inside the node read them."""
    for names in (node.input, node.output):
        for i, name in enumerate(names):
            if name in renamed:
                names[i] = renamed[name]
    for attribute in node.attribute:
        for body in [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs:
            own = {v.name for v in body.input} | {t.name for t in body.initializer}
            own |= {name for inner in body.node for name in inner.output}
            outer = {old: new for old, new in renamed.items() if old not in own}
            for inner in body.node:
                _rename(inner, outer)
            for value in body.output:
                value.name = outer.get(value.name, value.name)
