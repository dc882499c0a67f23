"""What a graph is made of: operators that onnx knows, operands that somebody makes, and an order without a cycle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from heapq import heapify, heappop, heappush

import onnx
from onnx import AttributeProto, ModelProto, NodeProto

from .problems import Problems, did_you_mean

__all__ = ["check_operators", "check_opsets", "check_wiring"]

# Operators whose body is a graph of its own; a later module may unroll them.
CONTROL_FLOW = ("If", "Loop", "Scan", "SequenceMap")
DOMAIN_OF = {"ai.onnx": "", "": ""}


def check_opsets(model: ModelProto, problems: Problems) -> None:
    known = {schema.domain for schema in onnx.defs.get_all_schemas()} | {f.domain for f in model.functions}
    used = {DOMAIN_OF.get(node.domain, node.domain) for node in model.graph.node}
    if "" not in {DOMAIN_OF.get(o.domain, o.domain) for o in model.opset_import}:
        problems.add("no operator set of the standard domain is imported; export the model again")
    for opset in model.opset_import:
        domain = DOMAIN_OF.get(opset.domain, opset.domain)
        if domain == "" and not 1 <= opset.version <= onnx.defs.onnx_opset_version():
            newest = onnx.defs.onnx_opset_version()
            problems.add(f"operator set {opset.version} is not among 1 to {newest}, which the installed onnx knows")
        elif domain not in known and domain in used:
            names = sorted({n.op_type for n in model.graph.node if n.domain == opset.domain})
            problems.add(
                f"domain {opset.domain!r} is unknown to onnx (operators {', '.join(names[:5])}): "
                "export with standard operators only"
            )


def check_operators(model: ModelProto, problems: Problems) -> None:
    versions = {DOMAIN_OF.get(o.domain, o.domain): o.version for o in model.opset_import}
    functions = {(f.domain, f.name) for f in model.functions}
    known = {schema.domain for schema in onnx.defs.get_all_schemas()}
    counts: Counter[tuple[str, str]] = Counter()
    first: dict[tuple[str, str], str] = {}
    for index, node in enumerate(model.graph.node):
        if (node.domain, node.op_type) in functions:
            continue
        key = (DOMAIN_OF.get(node.domain, node.domain), node.op_type)
        counts[key] += 1
        first.setdefault(key, node.name or f"number {index}")
    for (domain, op_type), count in counts.items():
        where = f"node {first[domain, op_type]!r}" + (f" and {count - 1} more" if count > 1 else "")
        if domain in known or domain not in versions:
            version = versions.get(domain, 1)
            if not onnx.defs.has(op_type, max_inclusive_version=max(version, 1), domain=domain):
                names = {s.name for s in onnx.defs.get_all_schemas() if s.domain == domain}
                place = f"operator set {version}" + (f" of domain {domain!r}" if domain else "")
                problems.add(f"{where}: operator {op_type!r} is unknown in {place}{did_you_mean(op_type, names)}")
                continue
        if op_type in CONTROL_FLOW or _has_graph(model, domain, op_type):
            problems.add(
                f"{where}: control flow ({op_type}) is not supported; export with loops unrolled, branches resolved"
            )


def _has_graph(model: ModelProto, domain: str, op_type: str) -> bool:
    kinds = (AttributeProto.GRAPH, AttributeProto.GRAPHS)
    return any(
        a.type in kinds
        for node in model.graph.node
        if node.op_type == op_type and DOMAIN_OF.get(node.domain, node.domain) == domain
        for a in node.attribute
    )


def check_wiring(model: ModelProto, problems: Problems) -> None:
    """Each tensor made once, each operand by somebody, and no cycle. Nodes merely out of order are sorted in place."""
    graph = model.graph
    given = {v.name for v in graph.input} | {t.name for t in graph.initializer}
    for name, count in Counter(t.name for t in graph.initializer).items():
        if count > 1:
            problems.add(f"initializer {name!r} occurs {count} times; export the model again")
    for value in graph.input:
        if not value.type.HasField("tensor_type"):
            kind = value.type.WhichOneof("value") or "of no type"
            problems.add(f"input {value.name!r} is no tensor ({kind}); only tensors can be fed")
    producer: dict[str, int] = {}
    for index, node in enumerate(graph.node):
        for name in filter(None, node.output):
            if name in producer or name in given:
                problems.add(f"tensor {name!r} is computed by node {node.name or index!r} and defined elsewhere too")
            producer[name] = index
    known = [*given, *producer]
    for index, node in enumerate(graph.node):
        for slot, name in enumerate(node.input):
            if name and name not in producer and name not in given:
                problems.add(
                    f"node {node.name or index!r} ({node.op_type}): operand {slot}, {name!r}, is no input, no "
                    f"initializer and computed by no node: its weights are missing{did_you_mean(name, known)}"
                )
    for value in graph.output:
        if value.name not in producer and value.name not in given:
            problems.add(f"output {value.name!r} is computed by no node{did_you_mean(value.name, known)}")
    order = _order(graph.node, producer, problems)
    if order is not None and order != list(range(len(order))):
        nodes = [NodeProto.FromString(graph.node[i].SerializeToString()) for i in order]
        del graph.node[:]
        graph.node.extend(nodes)


def _order(nodes: Iterable[NodeProto], producer: dict[str, int], problems: Problems) -> list[int] | None:
    """Kahn's order, by index where there is a choice; None (and a problem that shows one cycle) if there is none."""
    nodes = list(nodes)
    needs = [{producer[name] for name in node.input if name in producer} for node in nodes]
    readers: dict[int, list[int]] = {}
    for index, sources in enumerate(needs):
        for source in sources:
            readers.setdefault(source, []).append(index)
    waiting = [len(sources) for sources in needs]
    ready = [i for i, count in enumerate(waiting) if not count]
    heapify(ready)
    order: list[int] = []
    while ready:
        index = heappop(ready)
        order.append(index)
        for reader in readers.get(index, ()):
            waiting[reader] -= 1
            if not waiting[reader]:
                heappush(ready, reader)
    if len(order) == len(nodes):
        return order
    left = set(range(len(nodes))) - set(order)
    walk, at = [], min(left)
    while at not in walk:
        walk.append(at)
        at = min(needs[at] & left)
    cycle = [*walk[walk.index(at) :], at][::-1]
    shown = " → ".join(repr(nodes[i].name or f"{nodes[i].op_type} number {i}") for i in cycle[:8])
    problems.add(f"the graph has a cycle: {shown}{' → …' if len(cycle) > 8 else ''}; export the model again")
    return None
