"""Shapes as affine functions of the batch: one walk over the graph, at three batch sizes at once.

onnx's shape inference knows symbols, but loses them in most shape arithmetic. At a concrete batch size it loses nothing:
operators are taken in order, each gets its operands' types and what is known of their values, and onnx's own inference
of that one operator says what it makes. Arithmetic on shapes is done here (:mod:`.arithmetic`); what onnx has no inference
for, or what depends on data, has a rule (:mod:`.rules`, :mod:`.control_flow`). Two sizes give each dimension's line in the
batch, the third checks it. The sizes are primes that no layer is likely to have, so a coincidence cannot pass for a law.

Layers repeat, and equal operators on equal operands make equal results, so most of the walk is looking up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, helper, numpy_helper

from .arithmetic import bounds, evaluate
from .known import FOLDABLE_ELEMENTS, Known, agreed, known_of_type, line, open_axes
from .scope import BATCH, RANDOM, SHAPE_OPERANDS, Found, Node, Scope, Shapes, UnknownShapeError

__all__ = ["Rule", "Walk"]

Rule = Callable[["Walk", Node, list["Known | None"], Scope], list["Known | None"]]


class Walk:
    """Walks a light model with its dimensions bound, the batch named; see the module.

    sizes    batch sizes to walk at: three, or one where the batch is fixed
    release  the batch that the file was exported for and that is to become symbolic, if any
    """

    def __init__(self, model: ModelProto, sizes: Sequence[int], release: int | None = None) -> None:
        from .control_flow import CONTROL_FLOW_RULES
        from .ml_rules import ML_RULES
        from .rules import RULES
        from .sequence_rules import SEQUENCE_RULES

        self.model, self.sizes, self.release = model, tuple(sizes), release
        self.versions = {"" if o.domain == "ai.onnx" else o.domain: o.version for o in model.opset_import}
        self.opsets = list(model.opset_import)
        self.rules: Mapping[tuple[str, str], Rule] = {**RULES, **ML_RULES, **CONTROL_FLOW_RULES, **SEQUENCE_RULES}
        self.schemas: dict[tuple[str, str], onnx.defs.OpSchema | None] = {}
        self.memo: dict[tuple[object, ...], list[Known | None]] = {}
        self.decoded: dict[str, tuple[list[Node], dict[str, Known]]] = {}
        self.branches: list[dict[str, str]] = [{} for _ in sizes]
        self.trips: list[dict[str, int]] = [{} for _ in sizes]
        self.inner: list[dict[str, dict[str, Known]]] = [{} for _ in sizes]
        self.edits: list[dict[str, Any]] = []
        self.outer: dict[str, int] = {}
        self.problems: list[str] = []
        self.scopes = [Scope(None, "", i) for i in range(len(sizes))]

    # --- the main graph -------------------------------------------------------------------------------------------

    def run(self) -> Shapes:
        """All shapes, or the first problem."""
        from .release import follow_batch, release_operands

        nodes: list[Node] = []
        if self._given():
            nodes = [Node(proto, self.versions) for proto in self.model.graph.node]
        for index, node in enumerate(nodes):
            if self.release is not None:
                self.edits.extend(release_operands(self, node, index))
            if not self._step(node):
                break
            if self.release is not None:
                follow_batch(self, node)
        tensors: dict[str, Found] = {}
        bodies: dict[str, dict[str, Found]] = {}
        if not self.problems:
            producer = {name: node for node in nodes for name in node.outputs}
            tensors = self._lines([scope.known for scope in self.scopes], producer)
            for path in self.inner[0]:
                if all(path in inner for inner in self.inner):
                    bodies[path] = self._lines([inner[path] for inner in self.inner], {}, inside=path)
        trips = {}
        for path in self.trips[0]:
            counts = [t[path] for t in self.trips if path in t]
            if len(counts) == len(self.sizes) and (law := line(self.sizes, counts, loose=True)):
                trips[path] = law
        branches = {k: v for k, v in self.branches[0].items() if all(b.get(k) == v for b in self.branches)}
        return Shapes(tensors, bodies, branches, trips, self.edits, self.problems)

    def _given(self) -> bool:
        graph = self.model.graph
        weights = {t.name: self._initializer(t) for t in graph.initializer}
        for scope in self.scopes:
            scope.known.update(weights)
        for value in graph.input:
            if value.name in weights:
                continue
            for scope, size in zip(self.scopes, self.sizes, strict=True):
                proto = value.type
                if any(d.dim_param == BATCH for d in proto.tensor_type.shape.dim):
                    proto = onnx.TypeProto()
                    proto.CopyFrom(value.type)
                    for dim in proto.tensor_type.shape.dim:
                        if dim.dim_param == BATCH:
                            dim.dim_value = size
                known = known_of_type(proto)
                if known is None:
                    self.problems.append(f"input {value.name!r} has no type with a complete shape; export with shapes")
                    return False
                scope.known[value.name] = known
        return True

    def _initializer(self, tensor: onnx.TensorProto) -> Known:
        dims = tuple(tensor.dims)
        if np.prod(dims, dtype=float) > FOLDABLE_ELEMENTS:
            return Known(tensor.data_type, dims)
        return Known(tensor.data_type, dims, high=numpy_helper.to_array(tensor))

    def _step(self, node: Node) -> bool:
        """One node at every size; False (and a problem) where it cannot be."""
        first: tuple[list[Known | None], list[Known | None]] | None = None
        for scope, size in zip(self.scopes, self.sizes, strict=True):
            try:
                operands = [scope.known.get(name) if name else None for name in node.inputs]
                if (
                    first is not None
                    and all(a is b for a, b in zip(operands, first[0], strict=True))
                    and not node.bodies
                ):
                    results = first[1]  # what depends on constants alone is the same at every size
                else:
                    results = self.results(node, operands, scope)
                    if first is None and node.op_type not in RANDOM:
                        first = operands, results
            except UnknownShapeError as error:
                at = f" (batch of {size})" if len(self.sizes) > 1 else ""
                self.problems.append(f"{node}{at}: {error}")
                return False
            for name, known in zip(node.outputs, results, strict=False):
                if name and known is not None:
                    scope.known[name] = known
        return True

    def _lines(
        self, runs: Sequence[Mapping[str, Known]], producer: Mapping[str, Node], inside: str = ""
    ) -> dict[str, Found]:
        """Every tensor's dimensions as lines in the batch; problems for up to three that have none."""
        found: dict[str, Found] = {}
        crooked: dict[str, str] = {}
        laws: dict[tuple[tuple[int, ...], bool], tuple[int, int] | None] = {}
        for name, first in runs[0].items():
            every = [run.get(name) for run in runs]
            if all(one is first for one in every):
                found[name] = Found(first.type_name, tuple((d, 0) for d in first.dims), first.loose)
                continue
            if any(one is None or len(one.dims) != len(first.dims) for one in every):
                crooked[name] = "its rank changes with the batch"
                continue
            present = [one for one in every if one is not None]
            loose = tuple(sorted({axis for one in present for axis in one.loose}))
            dims: list[tuple[int, int]] = []
            for axis, extents in enumerate(zip(*(one.dims for one in present), strict=True)):
                key = (extents, axis in loose)
                if key not in laws:
                    laws[key] = line(self.sizes, extents, loose=axis in loose)
                law = laws[key]
                if law is None:
                    sizes = ", ".join(map(str, self.sizes))
                    crooked[name] = f"a dimension is {', '.join(map(str, extents))} for batches of {sizes}"
                    break
                dims.append(law)
            else:
                found[name] = Found(first.type_name, tuple(dims), loose)
        for name, why in [] if inside else list(crooked.items())[:3]:
            where = f"{producer[name]}: " if name in producer else ""
            self.problems.append(
                f"{where}tensor {name!r} is not proportional to the batch: {why}; rebuild that part without the batch"
            )
        return found

    # --- graphs inside operators ----------------------------------------------------------------------------------

    def body(self, graph: GraphProto, inputs: Sequence[Known], outer: Scope, path: str) -> list[Known]:
        """The results of a graph inside an operator, given its inputs; raises :class:`UnknownShapeError`."""
        scope = Scope(outer, path, outer.size)
        if path not in self.decoded:
            weights = {t.name: self._initializer(t) for t in graph.initializer}
            names = [proto.name or f"{proto.op_type}_{i}" for i, proto in enumerate(graph.node)]
            repeated = {name for name, count in Counter(names).items() if count > 1}
            self.decoded[path] = (
                [
                    Node(proto, self.versions, f"{name}#{i}" if name in repeated else name)
                    for i, (proto, name) in enumerate(zip(graph.node, names, strict=True))
                ],
                weights,
            )
        nodes, weights = self.decoded[path]
        scope.known.update(weights)
        scope.known.update({value.name: known for value, known in zip(graph.input, inputs, strict=False)})
        for node in nodes:
            operands = [scope.get(name) if name else None for name in node.inputs]
            try:
                results = self.results(node, operands, scope)
            except UnknownShapeError as error:
                raise UnknownShapeError(f"in its {path.rpartition('/')[2]}, {node}: {error}") from None
            for name, known in zip(node.outputs, results, strict=False):
                if name and known is not None:
                    scope.known[name] = known
        self.inner[scope.size][path] = scope.known
        outputs = []
        for value in graph.output:
            result = scope.get(value.name)
            if result is None:
                raise UnknownShapeError(f"its {path.rpartition('/')[2]} does not compute its output {value.name!r}")
            outputs.append(result)
        return outputs

    # --- one node -------------------------------------------------------------------------------------------------

    def results(self, node: Node, operands: list[Known | None], scope: Scope) -> list[Known | None]:
        """What a node makes; raises :class:`UnknownShapeError`."""
        for name, operand in zip(node.inputs, operands, strict=True):
            if name and operand is None:
                raise UnknownShapeError(f"nothing is known of its operand {name!r}")
        rule = self.rules.get((node.domain, node.op_type))
        try:
            results = self.usual(node, operands) if rule is None else rule(self, node, operands, scope)
        except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
            # Rules take it that a node is as the standard wants it, which damaged files do not care about.
            raise UnknownShapeError(
                f"its attributes and operands do not fit together ({type(error).__name__}: {_one_line(error)}); export the "
                "model again"
            ) from None
        for slot, name in enumerate(node.outputs):
            if name and (slot >= len(results) or results[slot] is None):
                raise UnknownShapeError(f"it has no output {slot} that could be {name!r}; export the model again")
        return results

    def usual(self, node: Node, operands: list[Known | None]) -> list[Known | None]:
        """What onnx's inference says of a node, looked up where the same was asked before; raises :class:`UnknownShapeError`."""
        slots = SHAPE_OPERANDS.get(node.op_type, ())
        valued = all(o is None or o.high is not None for o in operands)
        signature = tuple(
            [
                None if o is None else o.signature() if valued or i in slots else o.shape_only()
                for i, o in enumerate(operands)
            ]
        )
        key = (node.key, signature)
        if key not in self.memo:
            self.memo[key] = self._fresh(node, operands, slots, valued)
        return self.memo[key]

    def _fresh(
        self, node: Node, operands: list[Known | None], slots: tuple[int, ...], valued: bool
    ) -> list[Known | None]:
        told = [o if valued or i in slots or o is None else o.without_value() for i, o in enumerate(operands)]
        types = self.types(node, told)
        results: list[Known | None] = []
        for name in node.outputs:
            known = known_of_type(types[name]) if name in types else None
            if name and known is None:
                raise UnknownShapeError(self._why(node, name, operands, slots))
            results.append(known if name else None)
        if any(o is not None and (o.loose or (o.low is not None and i in slots)) for i, o in enumerate(operands)):
            exact = self.types(node, told, open_loose=True)
            results = [
                r
                if r is None
                else Known(r.dtype, r.dims, loose=open_axes(exact[name], len(r.dims)) if name in exact else ())
                for name, r in zip(node.outputs, results, strict=True)
            ]
        if valued and operands and node.op_type not in RANDOM:
            results = self._values(node, operands, results)
        return results

    def _why(self, node: Node, name: str, operands: list[Known | None], slots: tuple[int, ...]) -> str:
        for slot in slots:
            if slot < len(operands) and operands[slot] is not None and operands[slot].high is None:  # type: ignore[union-attr]
                return (
                    f"the shape of {name!r} depends on the values of {node.inputs[slot]!r}, which are known only when "
                    "the model runs, and nothing bounds them; export with static shapes"
                )
        return (
            f"the shape of {name!r} cannot be inferred from its operands' shapes; export with static shapes and "
            "standard operators"
        )

    def types(
        self, node: Node, operands: Sequence[Known | None], *, open_loose: bool = False
    ) -> dict[str, onnx.TypeProto]:
        """onnx's inference of one node; with `open_loose` loose dimensions and values have no size."""
        schema = self.schema(node)
        given: dict[str, onnx.TypeProto] = {}
        data: dict[str, onnx.TensorProto] = {}
        for name, operand in zip(node.inputs, operands, strict=True):
            if operand is None:
                continue
            given[name] = operand.type_proto(open_loose=open_loose)
            if operand.high is not None and not (open_loose and operand.exact is None):
                tensor = operand.tensor_proto(name)
                if tensor is not None:
                    data[name] = tensor
        try:
            return onnx.shape_inference.infer_node_outputs(
                schema, node.proto, given, data, opset_imports=self.opsets, ir_version=self.model.ir_version
            )
        except Exception as error:  # InferenceError, and RuntimeError from below
            if open_loose:
                return {}
            if (others := agreed(operands)) is not None:
                return self.types(node, others)
            raise UnknownShapeError(f"shapes do not fit: {_one_line(error)}") from None

    def schema(self, node: Node) -> onnx.defs.OpSchema:
        """What onnx knows of a node's operator; raises :class:`UnknownShapeError`."""
        key = (node.domain, node.op_type)
        if key not in self.schemas:
            try:
                self.schemas[key] = onnx.defs.get_schema(node.op_type, node.version, node.domain)
            except Exception:  # onnx.defs.SchemaError
                self.schemas[key] = None
        schema = self.schemas[key]
        if schema is None:
            raise UnknownShapeError(
                f"onnx does not know this operator in version {node.version} of {node.domain or 'its standard domain'}; "
                "export with standard operators"
            )
        return schema

    def _values(self, node: Node, operands: list[Known | None], results: list[Known | None]) -> list[Known | None]:
        """The results with what they hold, where that can be computed and is little."""
        made = [r for r in results if r is not None]
        if sum(r.elements for r in made) > FOLDABLE_ELEMENTS or any(not isinstance(r.dtype, int) for r in made):
            return results
        dims = [() if r is None else r.dims for r in results]
        types = [np.dtype(bool) if r is None else helper.tensor_dtype_to_np_dtype(int(r.dtype)) for r in results]
        highs = [None if o is None else o.high for o in operands]
        if all(o is None or o.exact is not None for o in operands):
            values = evaluate(node.proto, node.attributes, highs, dims, types, self.model)
            pairs = None if values is None else [(v, v) for v in values]
        else:
            lows = [None if o is None else o.high if o.low is None else o.low for o in operands]
            pairs = bounds(node.proto, node.attributes, lows, highs, dims, types, self.model)
        if pairs is None:
            return results
        filled: list[Known | None] = []
        for result, (low, high) in zip(results, pairs, strict=False):
            if result is None or high.shape != result.dims:
                filled.append(result)
            elif result.loose and high.size:
                # How many there are depends on data, so an element's place says nothing: all lie between the same two.
                ends = np.full(high.shape, low.min()), np.full(high.shape, high.max())
                filled.append(Known(result.dtype, result.dims, loose=result.loose, high=ends[1], low=ends[0]))
            else:
                known = None if low is high or np.array_equal(low, high) else low
                filled.append(Known(result.dtype, result.dims, loose=result.loose, high=high, low=known))
        return filled


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()).removeprefix("[ShapeInferenceError] ").removeprefix("[TypeInferenceError] ")
    return text if len(text) < 300 else text[:300] + " …"
