"""Gathers that only reshape: PyTorch's ``as_strided`` on a tensor whose elements already lie in order.

An exporter writes it as Reshape to one dimension, then Gather with a constant table of every element's place. Where that
table counts 0, 1, 2 ... to the end, the pair is one Reshape, and the batch, which the flat form hides, can be found again.
"""

from __future__ import annotations

from math import prod

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from .weights import is_external

__all__ = ["reshape_ordered_gathers"]


def reshape_ordered_gathers(model: ModelProto) -> None:
    """Replace such pairs in the main graph, in place: the Gather becomes a Reshape of what was flattened."""
    graph = model.graph
    tables = {t.name: t for t in graph.initializer if t.data_type == TensorProto.INT64 and not is_external(t)}
    flattened = {n.output[0]: n for n in graph.node if n.op_type == "Reshape" and not n.domain and len(n.input) == 2}
    stated = {v.name: v for v in (*graph.input, *graph.value_info)}
    taken = {t.name for t in graph.initializer}
    for node in graph.node:
        if node.op_type != "Gather" or node.domain or node.input[0] not in flattened or node.input[1] not in tables:
            continue
        if any(a.name == "axis" and a.i != 0 for a in node.attribute):
            continue
        flat, table = flattened[node.input[0]], tables[node.input[1]]
        target = tables.get(flat.input[1])
        if target is None or list(target.dims) != [1] or not table.dims:
            continue
        if numpy_helper.to_array(target)[0] not in (-1, prod(table.dims)):
            continue
        if _elements(stated, flat.input[0]) != prod(table.dims) or not _counts(table):
            continue
        name = f"{node.input[1]}_shape"
        if name not in taken:
            taken.add(name)
            graph.initializer.append(numpy_helper.from_array(np.asarray(table.dims, np.int64), name))
        _become(node, helper.make_node("Reshape", [flat.input[0], name], list(node.output), name=node.name))


def _elements(stated: dict[str, object], name: str) -> int | None:
    """How many elements the file says that a tensor has; None where it leaves that open."""
    value = stated.get(name)
    if value is None:
        return None
    dims = value.type.tensor_type.shape.dim  # type: ignore[attr-defined]
    return prod(d.dim_value for d in dims) if dims and all(d.dim_value > 0 for d in dims) else None


def _counts(table: TensorProto) -> bool:
    values = numpy_helper.to_array(table).reshape(-1)
    return bool(np.array_equal(values, np.arange(values.size)))


def _become(node: NodeProto, other: NodeProto) -> None:
    metadata = list(node.metadata_props)
    node.CopyFrom(other)
    node.metadata_props.extend(metadata)
