"""Initializers that an exporter merged because they were equal, taken apart again; what is shared on purpose stays so.

In a network that was never trained every scale is all ones and every bias all zeros, and exporters keep one tensor of
each (torch: as one initializer, or as Identity nodes of one). Trained further, these are different parameters. The rule:

* A matrix, a kernel or a table (two extents above one) that has several readers is shared on purpose: an embedding that
  is also the last layer's matrix, a layer applied several times, a head over several levels of a pyramid. It stays one.
* A vector that the file shows to hold different numbers stays one too: merging by value cannot have made it.
* Any other vector is taken apart by layer: its uses as a weight or as state get a tensor each, but for uses that belong
  to one and the same layer applied again. That is so where the operators have the same matrix (a bias beside its
  kernel), or, for a scale or an added bias, the same path from the same nearest operator that has one. (Levels that
  share a kernel but not the normalisation behind it look the same: such are told apart by what they hold once trained.)

So a scale and a variance that both start at one come apart, as do the biases of 61 products; the bias of a head over
five levels stays one. An initializer of which the file says whether it is trained (:data:`.weights.TRAINED`) is what it
is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from .slots import REARRANGEMENTS, STATE_SLOTS, WEIGHT_SLOTS
from .weights import TRAINED, dtype_name, is_external

__all__ = ["untie"]

# Where a vector that is no single number counts as a weight, besides the slots: added, multiplied, or a learned token.
ELEMENTWISE = ("Add", "Mul", "Sum", "Expand")
# Which part of a tensor these take is decided by their constant operands.
SELECTIONS = ("Gather", "Slice")
FAR = 1 << 40


@dataclass(frozen=True, kw_only=True)
class _Use:
    """An initializer as operand `slot` of the node at `index`, seen through the rearrangements at the places `path`.

    `layer` tells applications of different layers apart; None where the use is neither that of a weight nor of state.
    """

    index: int
    slot: int
    operand: str
    path: tuple[int, ...]
    layer: tuple[Any, ...] | None


def untie(model: ModelProto) -> None:
    """Give every layer that reads a merged vector its own copy of it, in place (see the module's rule)."""
    graph = model.graph
    merged = {t.name: t for t in graph.initializer if _could_be_merged(t)}
    if not merged:
        return
    kept = {v.name for v in graph.output}
    uses = {root: found for root, found in _Reader(model, merged).uses().items() if root in merged and len(found) > 1}
    editing = _Editing(model)
    for root, found in uses.items():
        layers: dict[tuple[Any, ...], list[_Use]] = {}
        for use in found:
            if use.layer is not None:
                layers.setdefault(use.layer, []).append(use)
        # The original stays with the first layer, unless somebody reads it who must not see it trained.
        own = list(layers.values())
        alone = any(use.layer is None for use in found) or root in kept
        for group in own if alone else own[1:]:
            editing.give(group, merged[root])
    editing.finish()


def _extents(dims: Iterable[int]) -> int:
    return sum(d > 1 for d in dims)


def _could_be_merged(tensor: TensorProto) -> bool:
    """A floating-point vector, of one number throughout as far as the file shows."""
    if "float" not in dtype_name(tensor.data_type) or _extents(tensor.dims) > 1 or 0 in tensor.dims:
        return False
    if any(p.key == TRAINED for p in tensor.metadata_props):
        return False
    if is_external(tensor) or not (tensor.raw_data or tensor.float_data or tensor.double_data or tensor.int32_data):
        return True
    values = np.asarray(numpy_helper.to_array(tensor)).reshape(-1)
    return bool((values == values[0]).all())


class _Reader:
    """Who reads which initializer, and as part of which layer."""

    def __init__(self, model: ModelProto, merged: Collection[str]) -> None:
        from .parameters import constant_tensors  # that module builds on this one's neighbours

        self.graph, self.merged = model.graph, merged
        self.constant = constant_tensors(model)
        self.sizes = {t.name: t.dims for t in self.graph.initializer if "float" in dtype_name(t.data_type)}
        # Constant tensors that are an initializer rearranged: (the initializer, the places of the nodes in between)
        self.origin: dict[str, tuple[str, tuple[int, ...]]] = {name: (name, ()) for name in self.sizes}
        self.numbers: dict[Any, int] = {}  # equal descriptions get equal numbers
        # Data: how far the nearest operator with a matrix is, and a number that describes the way from it
        self.distance: dict[str, int] = {v.name: FAR for v in self.graph.input}
        self.way: dict[str, int] = {v.name: self._number(("input", v.name)) for v in self.graph.input}

    def _number(self, description: Any) -> int:
        return self.numbers.setdefault(description, len(self.numbers))

    def uses(self) -> dict[str, list[_Use]]:
        """By initializer, in the order of the nodes."""
        found: dict[str, list[_Use]] = {}
        for index, node in enumerate(self.graph.node):
            if all(name in self.constant for name in node.output if name) and any(node.output):
                self._rearranged(index, node, found)
                continue
            layer = self._layer(node)
            for slot, name in enumerate(node.input):
                if name in self.origin:
                    root, path = self.origin[name]
                    place = -1 if node.op_type in ELEMENTWISE else slot  # it does not matter which is added to which
                    belongs = (place, *layer) if self._is_weight(node, slot, root) else None
                    found.setdefault(root, []).append(
                        _Use(index=index, slot=slot, operand=name, path=path, layer=belongs)
                    )
        return found

    def _rearranged(self, index: int, node: NodeProto, found: dict[str, list[_Use]]) -> None:
        for slot, name in enumerate(node.input):
            if name not in self.origin:
                continue
            root, path = self.origin[name]
            if slot == 0 and node.op_type in REARRANGEMENTS and not node.domain:
                self.origin[node.output[0]] = (root, (*path, index))
            else:
                found.setdefault(root, []).append(_Use(index=index, slot=slot, operand=name, path=path, layer=None))

    def _is_weight(self, node: NodeProto, slot: int, root: str) -> bool:
        if node.domain not in ("", "ai.onnx"):
            return False
        if slot in WEIGHT_SLOTS.get(node.op_type, ()) or slot in STATE_SLOTS.get(node.op_type, ()):
            return True
        return node.op_type in ELEMENTWISE and prod(self.sizes[root]) > 1

    def _layer(self, node: NodeProto) -> tuple[Any, ...]:
        """What tells the node's layer from others; notes for the node's results how they came about."""
        # Normalisations have no matrix: their layer is that of what they normalise.
        slots = () if node.op_type.endswith("Normalization") else WEIGHT_SLOTS.get(node.op_type, ())
        matrices = tuple(
            self.origin[name][0] if name in self.origin else name
            for slot, name in enumerate(node.input)
            if slot in slots and name in self.constant and self._tells(name)
        )
        data = [name for name in node.input if name in self.distance]
        layer: tuple[Any, ...]
        if matrices:
            layer, distance = (node.op_type, matrices), 0
        elif not data:
            layer, distance = (node.op_type, node.name, tuple(node.output)), FAR
        else:
            nearest = min(self.distance[name] for name in data)
            ways = tuple(sorted({self.way[name] for name in data if self.distance[name] == nearest}))
            part = [n for n in node.input if n in self.constant] if node.op_type in SELECTIONS else []
            layer, distance = (node.op_type, tuple(part), ways), min(nearest + 1, FAR)
        for place, name in enumerate(node.output):
            if name:
                self.distance[name], self.way[name] = distance, self._number((place, layer))
        return layer

    def _tells(self, name: str) -> bool:
        """Whether an operand is enough to know its layer by: no vector that could be anybody's."""
        return name not in self.origin or self.origin[name][0] not in self.merged


class _Editing:
    """Changes to a graph's initializers and nodes, made all at once by :meth:`finish`."""

    def __init__(self, model: ModelProto) -> None:
        self.graph = model.graph
        self.nodes: list[NodeProto] = list(model.graph.node)
        self.taken = {v.name for v in self.graph.input} | {t.name for t in self.graph.initializer}
        self.taken |= {name for node in self.nodes for name in (*node.output, node.name)}
        self.counts: dict[str, int] = {}
        self.readers: dict[str, int] = {}
        for name in (*(n for node in self.nodes for n in node.input), *(v.name for v in self.graph.output)):
            self.readers[name] = self.readers.get(name, 0) + 1
        self.before: dict[int, list[NodeProto]] = {}
        self.dropped: set[int] = set()

    def _fresh(self, wanted: str) -> str:
        """A name like `wanted` that nobody has; thousands may want the same."""
        name = wanted
        while name in self.taken:
            self.counts[wanted] = self.counts.get(wanted, 0) + 1
            name = f"{wanted}_{self.counts[wanted]}"
        self.taken.add(name)
        return name

    def give(self, group: list[_Use], original: TensorProto) -> None:
        """A copy of `original` to one layer: under an Identity's name where the exporter left one, else a new name."""
        copy = self.graph.initializer.add()
        copy.CopyFrom(original)
        first = group[0]
        if self._is_identity_of(group):
            copy.name = first.operand
            self.dropped.add(first.path[0])
            return
        copy.name = self._fresh(original.name)
        made: dict[str, str] = {}
        for use in group:
            if use.operand not in made:
                made[use.operand] = self._rearranged(copy.name, use)
            self.nodes[use.index].input[use.slot] = made[use.operand]

    def _is_identity_of(self, group: list[_Use]) -> bool:
        first = group[0]
        return (
            len(first.path) == 1
            and self.nodes[first.path[0]].op_type == "Identity"
            and all(use.operand == first.operand for use in group)
            and self.readers[first.operand] == len(group)
        )

    def _rearranged(self, name: str, use: _Use) -> str:
        """The copy brought into the form in which the use reads it."""
        for place in use.path:
            node = NodeProto()
            node.CopyFrom(self.nodes[place])
            node.name = self._fresh(node.name or node.op_type)
            node.input[0] = name
            name = node.output[0] = self._fresh(node.output[0])
            self.before.setdefault(use.index, []).append(node)
        return name

    def finish(self) -> None:
        if not self.dropped and not self.before:
            return
        kept: list[NodeProto] = []
        for index, node in enumerate(self.nodes):
            kept.extend(self.before.get(index, ()))
            if index not in self.dropped:
                kept.append(node)
        del self.graph.node[:]
        self.graph.node.extend(kept)
