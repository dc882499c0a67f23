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

from onnx import ModelProto, NodeProto

from .graph import Tensor
from .learned import Weights
from .problems import Problems, did_you_mean
from .shapes import RANDOM
from .slots import REARRANGEMENTS, STATE_SLOTS
from .weights import TRAINED

__all__ = [
    "constant_tensors",
    "frontier",
    "select",
]


def constant_tensors(model: ModelProto, parameters: Iterable[str] = ()) -> set[str]:
    """Initializers and everything computed from them alone.

    What is computed from one of `parameters` changes as that is trained, so it is not constant.
    """
    constant = {t.name for t in model.graph.initializer}
    trained = set(parameters)
    for node in model.graph.node:
        operands = [name for name in node.input if name]
        if node.op_type not in RANDOM and constant.issuperset(operands) and trained.isdisjoint(operands):
            constant.update(filter(None, node.output))
    return constant


def frontier(model: ModelProto, constant: set[str]) -> dict[str, list[tuple[NodeProto, int]]]:
    """Constant tensors that operators on data read, each with its uses (node, operand number), in the graph's order."""
    uses: dict[str, list[tuple[NodeProto, int]]] = {}
    for node in model.graph.node:
        if all(name in constant for name in node.output if name) and node.op_type not in RANDOM:
            continue
        for slot, name in enumerate(node.input):
            if name in constant:
                uses.setdefault(name, []).append((node, slot))
    return uses


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
    chosen = _as_told(model, Weights(model, constant, uses, tensors).found())
    state = {name for name, where in uses.items() for node, slot in where if slot in STATE_SLOTS.get(node.op_type, ())}
    if train is not None:
        every = [name for name in uses if tensors[name].is_float and name not in state]
        chosen = _matching("--train", train, every, problems)
    if freeze is not None:
        frozen = set(_matching("--freeze", freeze, chosen, problems))
        chosen = [name for name in chosen if name not in frozen]
    return _tied(model, chosen, tensors)


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


def _tied(model: ModelProto, chosen: list[str], tensors: Mapping[str, Tensor]) -> list[str]:
    """Parameters, with those that are rearrangements of one shared initializer replaced by it.

    A language model's embedding and its transposed copy in the last layer are one parameter. What exporters merged
    because it happened to be equal is apart already (:mod:`.untie`).
    """
    initializers = {t.name for t in model.graph.initializer}
    producer = {name: node for node in model.graph.node for name in node.output if name}
    roots: dict[str, str] = {}
    for name in chosen:
        root = name
        while root in producer and producer[root].op_type in REARRANGEMENTS:
            root = producer[root].input[0]
        shared = root in initializers and tensors[root].is_float
        roots[name] = root if shared else name
    count = Counter(roots.values())
    tied = list(dict.fromkeys(roots[name] if count[roots[name]] > 1 else name for name in chosen))
    # What is computed from a parameter follows it, and is none itself.
    constant = constant_tensors(model, tied)
    return [name for name in tied if name in constant]


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
