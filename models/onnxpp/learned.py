"""Which constants are weights: what a network learned, told from what its exporter or its author wrote into it.

A constant tensor that an operator on data reads is a weight where it stands in an operand of :data:`.slots.WEIGHT_SLOTS`,
or is added to data, multiplied with it along one axis, or repeated for every sample (a bias, a scale, a learned token).
What looks like one and is none is told by what surrounds it:

* preprocessing: applied to the graph's inputs before any weight is;
* positions: angles that end in a sine or a cosine, tables of such, and what only meets numbers counted from shapes or
  from integer inputs;
* postprocessing: anchors and strides, behind the last operator with weights; the places of bins (0, 1, 2 …);
* masks: added, of exactly two different numbers;
* formulas: computed from integers and single numbers, as causal masks and sines of positions are;
* what integers were scaled to (DequantizeLinear): it is stored in few bits, and training would not keep it there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, numpy_helper

from .graph import Dim, Tensor
from .slots import REARRANGEMENTS, STATE_SLOTS, WEIGHT_SLOTS
from .weights import is_external

__all__ = ["Uses", "Weights"]

Uses = Mapping[str, list[tuple[NodeProto, int]]]

MOVES = (*REARRANGEMENTS, "Concat", "Expand", "Slice", "Split", "Pad", "Tile")
PREPARING = (*MOVES, "Add", "Sub", "Mul", "Div", "Clip", "Resize")
QUANTISED = ("QuantizeLinear", "DequantizeLinear")
MASK_ELEMENTS = 1 << 20
COUNTED_ELEMENTS = 1 << 12


def _with_inner(graph: GraphProto) -> Iterator[NodeProto]:
    """The nodes of a graph and of the graphs inside them."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs:
                yield from _with_inner(inner)


class Weights:
    """Tells weights of one graph.

    constant  tensors that depend on no data
    uses      those among them that operators on data read, with the places (see :func:`.parameters.frontier`)
    tensors   every tensor's type and shape
    """

    def __init__(self, model: ModelProto, constant: Collection[str], uses: Uses, tensors: Mapping[str, Tensor]) -> None:
        self.uses, self.tensors = uses, tensors
        self.producer = {name: node for node in _with_inner(model.graph) for name in node.output if name}
        self.initializers = {t.name: t for t in model.graph.initializer}
        data = [node for node in model.graph.node if not all(n in constant for n in node.output if n)]
        self.readers: dict[str, list[NodeProto]] = {}
        for node in data:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.raw = {v.name for v in model.graph.input}
        self.counted = {v.name for v in model.graph.input if not tensors[v.name].is_float}
        for node in data:
            self._describe(node)
        # Data of which some operator with weights is made.
        self.used: set[str] = set()
        for node in reversed(data):
            if self._is_weighted(node) or not self.used.isdisjoint(node.output):
                self.used.update(node.input)

    def _describe(self, node: NodeProto) -> None:
        data = [name for name in node.input if name and name not in self.uses]
        results = [name for name in node.output if name in self.tensors]
        if data and node.op_type in PREPARING and self.raw.issuperset(data):
            self.raw.update(results)
        if not self._is_weighted(node):
            by_shape = node.op_type in ("Shape", "Size") or self.counted.issuperset(data)
            self.counted.update(n for n in results if by_shape or not self.tensors[n].is_float)

    def _is_weighted(self, node: NodeProto) -> bool:
        """Whether a node reads a constant where it has its weights."""
        if node.domain not in ("", "ai.onnx"):
            return False
        slots = WEIGHT_SLOTS.get(node.op_type, ())
        return any(
            slot in slots and name in self.uses and self.tensors[name].is_float for slot, name in enumerate(node.input)
        )

    def found(self) -> list[str]:
        """The weights, in the order of their first uses."""
        return [name for name, where in self.uses.items() if self.tensors[name].is_float and self._is_one(name, where)]

    def _is_one(self, name: str, where: Iterable[tuple[NodeProto, int]]) -> bool:
        if self._is_quantised(name) or self._is_count(name) or not self.holds_numbers(name):
            return False
        return any(self._is_weight(name, node, slot) for node, slot in where if node.domain in ("", "ai.onnx"))

    def _is_weight(self, name: str, node: NodeProto, slot: int) -> bool:
        kind = node.op_type
        if slot in STATE_SLOTS.get(kind, ()):
            return False
        if slot in WEIGHT_SLOTS.get(kind, ()):
            if kind == "Gather":
                return self._is_table(node)
            return kind not in ("MatMul", "Einsum") or not self._becomes_angles(node.output[0])
        extents = sum(d.fixed != 1 for d in self.tensors[name].shape)
        filled = kind == "Add" and any(self._is_filled(n) for n in node.input)
        if (kind == "Expand" and slot == 0) or filled:  # the same for every sample
            return extents > 0 and node.output[0] in self.used and self._joins_data(node)
        if kind in ("Add", "Mul") and not extents:
            single = kind == "Add" and any(self._is_single_bias(name, n) for n in node.input if n != name)
            return single or self._is_affine_pair(name, node)
        if kind not in ("Add", "Mul", "Sum") or not extents or (kind == "Mul" and extents > 1):
            return False
        data = [n for n in node.input if n not in self.uses]
        if all(n in self.raw or n in self.counted for n in data) or self.is_mask(name):
            return False
        return node.output[0] in self.used or (extents == 1 and any(self._is_affine(n, kind) for n in data))

    def _is_table(self, node: NodeProto) -> bool:
        """Rows that are looked up and learned: something is computed from them, and they are no sines of positions."""
        result = node.output[0]
        if result not in self.used and node.input[1] not in self.raw:
            return False
        ends = list(self._ends(result))
        turning = bool(ends) and all(
            end.op_type == "Mul"
            and any(n not in self.counted and n not in self.uses for n in end.input if n != through)
            for end, through in ends
        )
        return not turning and not self._becomes_angles(result)

    def _becomes_angles(self, name: str) -> bool:
        found = False
        for end, _ in self._ends(name):
            if end.op_type not in ("Sin", "Cos"):
                return False
            found = True
        return found

    def _ends(self, name: str) -> Iterator[tuple[NodeProto, str]]:
        """What reads a tensor at last, seen through what only moves numbers, with the operand by which it does."""
        waiting, seen = [name], {name}
        while waiting:
            name = waiting.pop()
            for node in self.readers.get(name, ()):
                if node.op_type not in MOVES:
                    yield node, name
                    continue
                for result in node.output:
                    if result and result not in seen:
                        seen.add(result)
                        waiting.append(result)

    def _is_filled(self, name: str) -> bool:
        """Whether one number was repeated as often as a shape of data says."""
        return name in self.producer and name in self.counted and self.producer[name].op_type == "ConstantOfShape"

    def _joins_data(self, node: NodeProto) -> bool:
        """Whether what is repeated for every sample meets features: as a token among others, or as an operand."""
        waiting, seen = [node.output[0]], set(node.output)
        while waiting:
            name = waiting.pop()
            for reader in self.readers.get(name, ()):
                if reader.op_type == "Where" or (slot := list(reader.input).index(name)) in (5, 6):
                    continue  # a mask, or the state that a recurrence begins with
                if self._is_weighted(reader) and slot == 0:
                    return True
                others = [n for n in reader.input if n != name and n not in self.uses]
                if any(self.tensors[n].is_float and n not in self.counted for n in others):
                    return True
                waiting.extend(n for n in reader.output if n and n not in seen and reader.op_type in MOVES)
                seen.update(reader.output)
        return False

    def _is_affine(self, name: str, kind: str) -> bool:
        """Whether a scale or a bias belongs to what made `name`: an operator with weights, or a normalisation spelt out."""
        node = self.producer.get(name)
        while node is not None and node.op_type in REARRANGEMENTS:
            node = self.producer.get(node.input[0])
        if node is None:
            return False
        if self._is_weighted(node):
            return True
        if node.op_type in ("Div", "Mul") and not any(n in self.uses for n in node.input):
            return True  # (x - mean) / deviation
        if kind == "Add" and node.op_type == "Mul":  # the bias behind the scale
            return any(self._is_affine(n, "Mul") for n in node.input if n not in self.uses)
        return False

    def _is_single_bias(self, name: str, product: str) -> bool:
        """Whether one number is the bias of a product that has one column, or a convolution that has one channel."""
        node = self.producer.get(product)
        if node is None or not self._is_weighted(node) or not self.tensors[name].shape:
            return False
        axis = {"MatMul": -1, "Einsum": -1, "Gemm": -1, "Conv": 1, "ConvTranspose": 1}.get(node.op_type)
        return axis is not None and self.tensors[product].shape[axis] == Dim(1)

    def _is_affine_pair(self, name: str, node: NodeProto) -> bool:
        """Whether one number scales or shifts a layer's results: of rank 1 and read here alone, with its counterpart
        right before or after it. Constants of a formula are scalars, are shared, or are followed by a Clip."""
        if node.op_type == "Add":
            scales = [self.producer[n] for n in node.input if n in self.producer and n not in self.uses]
            scale, shift = scales[0] if scales else None, node
        else:
            readers = self.readers.get(node.output[0], [])
            scale, shift = node, readers[0] if len(readers) == 1 else None
        if scale is None or shift is None or (scale.op_type, shift.op_type) != ("Mul", "Add"):
            return False
        if any(reader.op_type == "Clip" for reader in self.readers.get(shift.output[0], ())):
            return False
        numbers = [[n for n in one.input if n in self.uses] for one in (scale, shift)]
        return (
            shift.output[0] in self.used
            and all(
                len(names) == 1
                and len(self.uses[names[0]]) == 1
                and self.tensors[names[0]].is_float
                and self.tensors[names[0]].shape == (Dim(1),)
                for names in numbers
            )
            and not all(n in self.raw for n in scale.input if n not in self.uses)
        )

    def _is_quantised(self, name: str) -> bool:
        while name in self.producer:
            node = self.producer[name]
            if node.op_type in QUANTISED:
                return True
            if node.op_type not in REARRANGEMENTS:
                return False
            name = node.input[0]
        return False

    def holds_numbers(self, name: str) -> bool:
        """Whether a tensor's floats come from initializers of more than one number, or from a ConstantOfShape: not from
        a formula over integers and scalars, as masks and sines of positions do."""
        waiting, seen, plain = [name], {name}, True
        while waiting:
            name = waiting.pop()
            node = self.producer.get(name)
            if node is None:
                if self.tensors[name].elements(1) > 1 or name in self.uses:
                    return True
                continue
            if node.op_type == "ConstantOfShape":
                return plain
            plain = plain and node.op_type in REARRANGEMENTS
            for operand in node.input:
                if operand and operand not in seen and self.tensors[operand].is_float:
                    seen.add(operand)
                    waiting.append(operand)
        return False

    def _is_count(self, name: str) -> bool:
        """Whether the file shows 0, 1, 2 … in order: the places of bins, of which an expectation is taken."""
        tensor = self.initializers.get(name)
        if tensor is None or is_external(tensor) or not 4 <= self.tensors[name].elements(1) <= COUNTED_ELEMENTS:
            return False
        values = numpy_helper.to_array(tensor).reshape(-1)
        with np.errstate(invalid="ignore"):  # damaged files hold anything
            return bool((values == np.arange(values.size)).all())

    def is_mask(self, name: str) -> bool:
        """Whether the file shows a matrix of two different numbers: 0 and minus infinity, say."""
        tensor = self.initializers.get(name)
        if tensor is None or is_external(tensor) or self.tensors[name].elements(1) > MASK_ELEMENTS:
            return False
        if sum(d > 1 for d in tensor.dims) < 2:
            return False
        return len(np.unique(numpy_helper.to_array(tensor))) == 2
