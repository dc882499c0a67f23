"""Which tensors are trained: constants that stand where a layer has its weights.

Exporters keep weights as initializers, in Constant nodes, or as results of small subgraphs over constants
(ConstantOfShape, Transpose, Unsqueeze, Identity). All of these are *constant tensors*; those that an operator on data
reads are the *frontier*, and a parameter is a floating-point tensor of the frontier that is used as a weight (which
ones are is the matter of :mod:`.learned`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from onnx import AttributeProto, ModelProto, NodeProto

from .graph import Tensor
from .learned import Weights
from .problems import Problems, did_you_mean
from .shapes import RANDOM
from .slots import REARRANGEMENTS, STATE_SLOTS
from .weights import TRAINED

__all__ = [
    "captured",
    "constant_tensors",
    "frontier",
    "select",
]


# Operators between a weight and what it is made of, at most.
DEEPEST = 40
# Take or repeat parts of their first operand: several of the results' numbers may be one of its.
COPIES = ("Expand", "Gather", "GatherElements", "GatherND", "Tile")


def constant_tensors(model: ModelProto, parameters: Iterable[str] = ()) -> set[str]:
    """Initializers and everything computed from them alone.

    What is computed from one of `parameters` changes as that is trained, so it is not constant.
    """
    constant = {t.name for t in model.graph.initializer}
    trained = set(parameters)
    for node in model.graph.node:
        operands = [*(name for name in node.input if name), *(name for name, _, _ in captured(node))]
        if node.op_type not in RANDOM and constant.issuperset(operands) and trained.isdisjoint(operands):
            constant.update(filter(None, node.output))
    return constant


def frontier(model: ModelProto, constant: set[str]) -> dict[str, list[tuple[NodeProto, int]]]:
    """Constant tensors that operators on data read, each with its uses (node, operand number), in the graph's order; a
    graph inside an operator uses what it reads of the graph around it."""
    uses: dict[str, list[tuple[NodeProto, int]]] = {}
    for node in model.graph.node:
        if all(name in constant for name in node.output if name) and node.op_type not in RANDOM:
            continue
        for slot, name in enumerate(node.input):
            if name in constant:
                uses.setdefault(name, []).append((node, slot))
        for name, inner, slot in captured(node):
            if name in constant:
                uses.setdefault(name, []).append((inner, slot))
    return uses


def captured(node: NodeProto) -> list[tuple[str, NodeProto, int]]:
    """What the graphs inside a node (If, Loop, Scan) read of the graph around it: (tensor, reader, operand number).

    A tensor that such a graph only passes on has the node itself as its reader.
    """
    found: list[tuple[str, NodeProto, int]] = []
    for attribute in node.attribute:
        graphs = [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs
        for graph in graphs:
            own = {v.name for v in graph.input} | {t.name for t in graph.initializer}
            own |= {name for inner in graph.node for name in inner.output}
            read = [(n, inner, slot) for inner in graph.node for slot, n in enumerate(inner.input) if n]
            read += [one for inner in graph.node for one in captured(inner)]
            read += [(v.name, node, -1) for v in graph.output]
            found += [one for one in read if one[0] not in own]
    return found


def select(
    model: ModelProto,
    tensors: Mapping[str, Tensor],
    *,
    train: str | None,
    freeze: str | None,
    problems: Problems,
) -> list[str]:
    """The parameters: the defaults, unless the file says otherwise (:data:`.weights.TRAINED`), or with `train` every
    floating-point tensor of the frontier whose name it matches anywhere (``re.search``); less those that `freeze`
    matches. An expression that matches nothing is a problem."""
    constant = constant_tensors(model)
    uses = frontier(model, constant)
    weights = Weights(model, constant, uses, tensors)
    chosen = _as_told(model, weights.found())
    state = {name for name, where in uses.items() for node, slot in where if slot in STATE_SLOTS.get(node.op_type, ())}
    if train is not None:
        every = [name for name in uses if tensors[name].is_float and name not in state]
        chosen = _matching("--train", train, every, problems)
    if freeze is not None:
        frozen = set(_matching("--freeze", freeze, chosen, problems))
        chosen = [name for name in chosen if name not in frozen]
    return _tied(model, chosen, tensors, weights)


def _as_told(model: ModelProto, chosen: list[str]) -> list[str]:
    """`chosen` without what is computed from initializers of which the file speaks, and those that it says are trained."""
    told = {t.name: p.value for t in model.graph.initializer for p in t.metadata_props if p.key == TRAINED}
    if not told:
        return chosen
    settled, constant = set(told), constant_tensors(model)
    for node in model.graph.node:
        if not settled.isdisjoint(node.input) and constant.issuperset(filter(None, node.output)):
            settled.update(filter(None, node.output))
    return [*(n for n in chosen if n not in settled), *(n for n, value in told.items() if value == "true")]


def _tied(model: ModelProto, chosen: list[str], tensors: Mapping[str, Tensor], weights: Weights) -> list[str]:
    """Parameters, with those that are shared replaced by the initializer that they are made of.

    A language model's embedding and its transposed copy in the last layer are one parameter; so is a table of which
    rows are looked up (positions, relative ones) or which is repeated: the table, not what was taken from it. What
    exporters merged because it happened to be equal is apart already (:mod:`.untie`).
    """
    origins = _Origins(model, tensors, weights)
    made_of = {name: origins.of(name) for name in chosen}
    count = Counter(root for roots in made_of.values() for root, _ in roots)
    tied: dict[str, None] = {}
    for name, roots in made_of.items():
        whole = all(count[root] == 1 and not copied for root, copied in roots)
        tied.update(dict.fromkeys([name] if whole else [root for root, _ in roots]))
    # What is computed from a parameter follows it, and is none itself.
    constant = constant_tensors(model, tied)
    return [name for name in tied if name in constant]


class _Origins:
    """The initializers that a weight is made of by rearranging, copying and adding up."""

    def __init__(self, model: ModelProto, tensors: Mapping[str, Tensor], weights: Weights) -> None:
        self.initializers = {t.name for t in model.graph.initializer}
        self.producer = {name: node for node in model.graph.node for name in node.output if name}
        self.tensors, self.weights = tensors, weights

    def of(self, name: str) -> list[tuple[str, bool]]:
        """(initializer, whether parts of it were copied); the weight itself where it is computed in another way, or
        where there is nothing but single numbers and masks."""
        found = self._found(name, False, DEEPEST)
        return [(name, False)] if found is None or not found else found

    def _found(self, name: str, copied: bool, depth: int) -> list[tuple[str, bool]] | None:
        if not depth:
            return None
        if name in self.initializers:
            tensor = self.tensors[name]
            if not tensor.is_float:
                return None
            return [] if tensor.elements(1) == 1 or self.weights.is_mask(name) else [(name, copied)]
        node = self.producer.get(name)
        if node is None or node.domain not in ("", "ai.onnx"):
            return None
        if node.op_type in (*REARRANGEMENTS, *COPIES):
            return self._found(node.input[0], copied or node.op_type in COPIES, depth - 1)
        if node.op_type != "Add":
            return [] if not self.weights.holds_numbers(name) else None
        parts = [self._found(operand, copied, depth - 1) for operand in node.input]
        return None if any(part is None for part in parts) else [root for part in parts for root in part or []]


def _matching(option: str, expression: str, names: list[str], problems: Problems) -> list[str]:
    try:
        pattern = re.compile(expression)
    except re.error as error:
        problems.add(f"{option} {expression!r} is no regular expression: {error}")
        return []
    found = [name for name in names if pattern.search(name)]
    if not found:
        near = did_you_mean(expression, names) or f"; there are {', '.join(names[:8])}" + (
            " …" if len(names) > 8 else ""
        )
        problems.add(f"{option} {expression!r} matches no tensor that could be trained{near}")
    return found
