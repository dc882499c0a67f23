"""Each tensor made once, each operand by somebody, and no cycle; in graphs inside operators and in functions as well.

Nodes that are merely out of order are sorted in place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from heapq import heapify, heappop, heappush
from typing import Any

from onnx import GraphProto, ModelProto, NodeProto

from .problems import Problems, did_you_mean
from .survey import bodies_of, node_label

__all__ = ["check_wiring"]

# A file that is damaged in one place is often damaged in all of them: suggestions for each would take minutes.
SUGGESTIONS = 20


def check_wiring(model: ModelProto, problems: Problems) -> None:
    """Notes every problem of the model's graphs, and sorts nodes that are out of order."""
    _Wiring(problems).graph(model.graph, (), "")
    for function in model.functions:
        wiring = _Wiring(problems)
        where = f"function {function.name!r}, "
        outputs = [(name, "output") for name in function.output]
        wiring.part(function, function.node, set(function.input), outputs, (), where)


# The names of a graph, then those of the graph around it, and so on outwards.
Scopes = tuple[frozenset[str], ...]


class _Wiring:
    def __init__(self, problems: Problems) -> None:
        self.problems = problems
        self.suggested = 0

    def graph(self, graph: GraphProto, outer: Scopes, where: str) -> None:
        """A graph; `outer` is what it sees of the graphs around it."""
        weights = [t.name for t in graph.initializer] + [t.values.name for t in graph.sparse_initializer]
        for name, count in Counter(weights).items():
            if count > 1:
                self.problems.add(f"{where}initializer {name!r} occurs {count} times; export the model again")
        inputs = [v.name for v in graph.input]
        for name, count in Counter(inputs).items():
            if count > 1:
                self.problems.add(f"{where}input {name!r} occurs {count} times; export the model again")
        if not all(inputs) or not all(weights):
            self.problems.add(f"{where}an input or an initializer has no name; export the model again")
        outputs = [(v.name, "output") for v in graph.output]
        self.part(graph, graph.node, {*inputs, *weights}, outputs, outer, where)

    def part(
        self,
        holder: Any,
        nodes: Sequence[NodeProto],
        given: set[str],
        outputs: Sequence[tuple[str, str]],
        outer: Scopes,
        where: str,
    ) -> None:
        """The nodes of `holder` (a graph or a function), in which `given` is there from the start."""
        producer: dict[str, int] = {}
        for index, node in enumerate(nodes):
            for name in node.output:
                if not name:
                    continue
                if name in producer or name in given:
                    self.problems.add(
                        f"{where}tensor {name!r} is computed by {node_label(node)} and defined elsewhere too"
                    )
                producer[name] = index
        own = frozenset(given.union(producer))
        scopes = (own, *outer)
        needs: list[set[int]] = []
        for node in nodes:
            for slot, name in enumerate(node.input):
                if name and name not in own and not any(name in scope for scope in outer):
                    self.problems.add(
                        f"{where}node {node.name or node.op_type!r} ({node.op_type}): operand {slot}, {name!r}, is no input, "
                        f"no initializer and computed by no node: its weights are missing{self._suggestion(name, own)}"
                    )
            reads = set(node.input)
            for _, body in bodies_of(node) if node.attribute else ():
                reads |= _free(body)
            needs.append({producer[name] for name in reads if name in producer})
        for name, kind in outputs:
            if not any(name in scope for scope in scopes):
                self.problems.add(f"{where}{kind} {name!r} is computed by no node{self._suggestion(name, own)}")
        order = _order(nodes, needs, self.problems, where)
        if order is not None and order != list(range(len(order))):
            copies = [NodeProto.FromString(nodes[i].SerializeToString()) for i in order]
            del holder.node[:]
            holder.node.extend(copies)
        for node in holder.node:
            for name, body in bodies_of(node) if node.attribute else ():
                inside = f"{where}{node_label(node)}, {name}: "
                self.graph(body, scopes, inside)

    def _suggestion(self, name: str, known: frozenset[str]) -> str:
        self.suggested += 1
        return did_you_mean(name, known) if self.suggested <= SUGGESTIONS else ""


def _free(graph: GraphProto) -> set[str]:
    """What a graph reads that it neither is given nor makes."""
    own = {v.name for v in graph.input} | {t.name for t in graph.initializer}
    own |= {t.values.name for t in graph.sparse_initializer}
    read = {v.name for v in graph.output}
    for node in graph.node:
        read.update(node.input)
        own.update(node.output)
        for _, body in bodies_of(node) if node.attribute else ():
            read |= _free(body)
    return read - own - {""}


def _order(nodes: Sequence[NodeProto], needs: list[set[int]], problems: Problems, where: str) -> list[int] | None:
    """Kahn's order, by index where there is a choice; None (and a problem that shows one cycle) if there is none."""
    if all(not sources or max(sources) < index for index, sources in enumerate(needs)):
        return list(range(len(needs)))
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
    if len(order) == len(needs):
        return order
    left = set(range(len(needs))) - set(order)
    places: Mapping[int, int]
    walk: list[int] = []
    places, at = {}, min(left)
    while at not in places:
        places[at] = len(walk)
        walk.append(at)
        at = min(needs[at] & left)
    cycle = [*walk[places[at] :], at][::-1]
    shown = " → ".join(repr(nodes[i].name or f"{nodes[i].op_type} number {i}") for i in cycle[:8])
    problems.add(f"{where}the graph has a cycle: {shown}{' → …' if len(cycle) > 8 else ''}; export the model again")
    return None
