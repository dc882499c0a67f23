"""How far a split reaches: whether everybody who reads a tensor can go on with a part of it until a product sums the parts up.

Splitting a product by columns pays if its result never has to be whole again before a product by rows: through activations, heads and
channels, not through a norm over the split dim. :mod:`.layouts` asks here before it splits.
"""

from __future__ import annotations

from ..onnxpp.graph import Dim, Graph, Operator

__all__ = ["Reach", "axis_of"]

# Splitting a smaller weight saves less than its collective costs.
LEAST_ELEMENTS = 1 << 18


class Reach:
    """Who reads what in one graph, and how far a split along one axis gets."""

    def __init__(self, graph: Graph, axis: str, size: int, sequence: bool) -> None:
        self.graph, self.axis, self.size, self.sequence = graph, axis, size, sequence
        self.fixed = set(graph.fixed)
        self.consumers: dict[str, list[Operator]] = {}
        for operator in graph.operators:
            for name in operator.inputs:
                self.consumers.setdefault(name, []).append(operator)
            if (
                operator.inputs
                and all(t in self.fixed for t in operator.inputs if t)
                and operator.family in ("view", "movement")
            ):
                self.fixed.update(operator.outputs)  # a transposed weight is a weight
        self._flows: dict[tuple[str, int], bool] = {}
        self.trained = set(graph.parameters)  # what gradients flow through
        for operator in graph.operators:
            if self.trained.intersection(operator.inputs):
                self.trained.update(t for t in operator.outputs if t and graph.tensors[t].is_float)

    def rank(self, name: str) -> int:
        """How many dims a tensor has."""
        return len(self.graph.tensors[name].shape)

    def dim(self, name: str, at: int) -> Dim:
        """One of a tensor's dims."""
        return self.graph.tensors[name].shape[at]

    def aligned_to(self, name: str, target: object, rank: int) -> int | None:
        """The dim of `name` that broadcasting puts beside dim `target` of a result of `rank` dims; None where there is none to split."""
        if not name or not isinstance(target, int):
            return None
        at = target - (rank - self.rank(name))
        if at < 0:
            return None
        dim = self.dim(name, at)
        return at if dim.per_sample or dim.fixed > 1 else None

    def through_reshape(self, before: str, after: str, dim: int) -> int | None:
        """The dim of a reshaped tensor that a split dim becomes; None where it does not lead the dims that it is joined with."""
        old, new = self.graph.tensors[before].dims(1), self.graph.tensors[after].dims(1)
        ahead = 1
        for size in old[:dim]:
            ahead *= size
        at = 1
        for i, size in enumerate(new):
            if at == ahead and size > 1 and size >= self.size and (size % self.size == 0 or size == old[dim]):
                return i
            at *= size
            if at > ahead:
                break
        return None

    def kv_divides(self, operator: Operator) -> bool:
        """Whether an attention's heads, those of keys and values too, can be dealt out."""
        key = operator.inputs[1]
        heads = operator.attributes.get("kv_num_heads") or self.dim(key, 1).fixed
        queries = operator.attributes.get("q_num_heads") or self.dim(operator.inputs[0], 1).fixed
        return int(heads) % self.size == 0 and int(queries) % self.size == 0

    def worth(self, operator: Operator, weight: str, columns: int, dim: int | None = None) -> bool:
        """Whether a product's columns should be split: the weight is large, and the split reaches a product by rows."""
        out = operator.outputs[0]
        at = self.rank(out) - 1 if dim is None else dim
        if self.graph.tensors[weight].elements(1) < LEAST_ELEMENTS or self.dim(weight, columns).fixed < self.size:
            return False
        return self._flow(out, at)

    def _flow(self, name: str, dim: int) -> bool:
        """Whether everybody who reads `name`, split along `dim`, can use it so until a product sums the split up."""
        key = (name, dim)
        if key not in self._flows:
            self._flows[key] = False  # of a cycle; there is none
            readers = self.consumers.get(name, [])
            self._flows[key] = bool(readers) and all(self._passes(r, name, dim) for r in readers)
        return self._flows[key]

    def _passes(self, reader: Operator, name: str, dim: int) -> bool:
        out = reader.outputs[0]
        others = [n for n in reader.inputs if n and n != name and n not in self.fixed]
        if reader.op_type in ("Shape", "Size"):
            return True
        if reader.family == "collective":  # of another axis, which splits another dim
            return self._flow(out, dim)
        if reader.op_type == "RotaryEmbedding":
            heads = 1 if self.rank(name) == 4 else 2
            count = int(reader.attributes.get("num_heads", self.size))
            return name == reader.inputs[0] and dim == heads and count % self.size == 0 and self._flow(out, dim)
        match reader.family:
            case "loss":
                return dim == self.rank(name) - 1 or dim == 1
            case "matmul" if reader.op_type == "Attention":
                heads = 1 if self.rank(name) == 4 else 2
                return dim == heads and self.kv_divides(reader)
            case "matmul":
                if reader.inputs[1] in self.fixed and name == reader.inputs[0]:
                    return dim == self.rank(name) - 1
                return dim < self.rank(name) - 2 and self._flow(out, dim)
            case "conv":
                groups = int(reader.attributes.get("group", 1))
                if name != reader.inputs[0] or dim != 1:
                    return False
                return groups == 1 or (groups % self.size == 0 and self._flow(out, 1))
            case "elementwise":
                at = dim + self.rank(out) - self.rank(name)
                met = [n for n in others if self.aligned_to(n, at, self.rank(out)) is not None]  # not broadcast over it
                return all(self._comes_split(n) for n in met) and self._flow(out, at)
            case "normalisation":
                by_channel = reader.op_type in ("BatchNormalization", "InstanceNormalization")
                fine = dim == 1 if by_channel else dim < (axis_of(reader, -1, self.rank(name)) or 0)
                return fine and self._flow(out, dim)
            case "softmax":
                return dim != axis_of(reader, -1, self.rank(name)) and self._flow(out, dim)
            case "pooling":
                return dim == 1 and self._flow(out, dim)
        if reader.op_type == "Transpose":
            order = list(reader.attributes.get("perm") or reversed(range(self.rank(name))))
            return self._flow(out, order.index(dim))
        if reader.op_type in ("Split", "Concat"):
            divides = all(self.dim(o, dim).at(1) % self.size == 0 for o in reader.outputs)
            return (
                divides
                and all(self._comes_split(n) for n in others)
                and all(self._flow(o, dim) for o in reader.outputs)
            )
        if reader.op_type in ("Cast", "CastLike", "Identity"):
            return self._flow(out, dim)
        if reader.op_type in ("Slice", "Gather", "Pad") and name == reader.inputs[0]:
            same = self.rank(out) == self.rank(name) and self.dim(out, dim) == self.dim(name, dim)
            return same and self._flow(out, dim)
        if reader.family == "view":
            new = self.through_reshape(name, out, dim)
            return new is not None and self._flow(out, new)
        return False

    def _comes_split(self, name: str) -> bool:
        """Whether `name` comes from a product with a weight, and can be split like one, rather than from the residual stream."""
        producer = self.graph.producer.get(name)
        while producer is not None:
            data = [n for n in producer.inputs if n and n not in self.fixed]
            if producer.family in ("matmul", "conv"):
                return True
            if not data or (
                producer.family not in ("elementwise", "view", "movement", "pooling")
                and (producer.op_type != "BatchNormalization")
            ):
                return False
            if producer.op_type in ("Add", "Sum", "Sub") and len(data) > 1:
                return all(self._comes_split(n) for n in data)
            producer = self.graph.producer.get(data[0])
        return False


def axis_of(operator: Operator, default: int | None, rank: int) -> int:
    """An operator's axis, counted from 0; -1 where neither it nor `default` says one."""
    axis = operator.attributes.get("axis", default)
    if axis is None:
        return -1
    return int(axis) + rank if int(axis) < 0 else int(axis)
