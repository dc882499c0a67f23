"""From a GraphProto to a :class:`Body`: graphs inside operators, functions, and whole files that are run as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from onnx import AttributeProto, GraphProto, NodeProto, SparseTensorProto, TensorProto, helper, numpy_helper

from .count import family
from .differentiated import with_graphs_of_gradients
from .graph import Body, Dim, Operator, Tensor
from .shapes import TRIPS, parse_dim, read_tensor

__all__ = ["attributes_of", "body_of", "operator_of"]

LOOPS = ("Loop", "Scan", "SequenceMap")
Values = Callable[[TensorProto], np.ndarray]


def attributes_of(node: NodeProto, opsets: Mapping[str, int], values: Values = numpy_helper.to_array) -> dict[str, Any]:
    """A node's attributes as Python values: numbers, strings, tuples of them, NumPy arrays for tensors, bodies."""
    return {attribute.name: _plain(attribute, opsets, values) for attribute in node.attribute}


def _plain(attribute: AttributeProto, opsets: Mapping[str, int], values: Values) -> Any:
    value = helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, TensorProto):
        return values(value)
    if isinstance(value, SparseTensorProto):
        return _dense(value, values)
    if isinstance(value, GraphProto):
        return body_of(value, opsets, values)
    if attribute.type in (AttributeProto.FLOATS, AttributeProto.INTS):
        return tuple(value)
    if attribute.type == AttributeProto.STRINGS:
        return tuple(item.decode(errors="replace") for item in value)
    if attribute.type == AttributeProto.GRAPHS:
        return tuple(body_of(item, opsets, values) for item in value)
    if attribute.type == AttributeProto.TENSORS:
        return tuple(values(item) for item in value)
    return value


def _dense(sparse: SparseTensorProto, values: Values) -> np.ndarray:
    """A sparse tensor written out: its indices are flat, or one row of coordinates for each value."""
    held, places = values(sparse.values), values(sparse.indices)
    dense: np.ndarray = np.zeros(tuple(sparse.dims), held.dtype)
    if places.ndim == 1:
        dense.reshape(-1)[places] = held
    else:
        dense[tuple(places.T)] = held
    return dense


def operator_of(
    node: NodeProto, opsets: Mapping[str, int], name: str, values: Values = numpy_helper.to_array
) -> Operator:
    """One node as an operator called `name`."""
    attributes = attributes_of(node, opsets, values)
    captured: dict[str, None] = {}
    for value in attributes.values():
        for body in value if isinstance(value, tuple) else (value,):
            if isinstance(body, Body):
                captured.update(dict.fromkeys(body.reads))
    return Operator(
        name=name,
        op_type=node.op_type,
        domain="" if node.domain == "ai.onnx" else node.domain,
        family=family(node.op_type),
        inputs=(*node.input, *captured),
        outputs=tuple(node.output),
        attributes=attributes,
        captured=tuple(captured),
        trips=_trips(node) if captured or node.op_type in LOOPS else None,
    )


def _trips(node: NodeProto) -> Dim | None:
    """How often an import found that the node's body runs."""
    return next((parse_dim(p.value) for p in node.metadata_props if p.key == TRIPS), None)


def body_of(graph: GraphProto, opsets: Mapping[str, int], values: Values = numpy_helper.to_array) -> Body:
    """A graph with everything that it holds; `values` reads a tensor (external ones need to know their folder)."""
    constants = {t.name: values(t) for t in graph.initializer}
    constants.update({t.values.name: _dense(t, values) for t in graph.sparse_initializer})
    operators = tuple(
        operator_of(node, opsets, node.name or f"{node.op_type}_{index}", values)
        for index, node in enumerate(graph.node)
    )
    operators = with_graphs_of_gradients(operators, constants, opsets)
    tensors: dict[str, Tensor] = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        with suppress(ValueError):
            tensors[value.name] = read_tensor(value)
    inputs = tuple(value.name for value in graph.input if value.name not in constants)
    outputs = tuple(value.name for value in graph.output)
    return Body(
        name=graph.name,
        opsets=opsets,
        operators=operators,
        inputs=inputs,
        outputs=outputs,
        constants=constants,
        reads=_reads(operators, {*constants, *inputs}, outputs),
        tensors=tensors,
    )


def _reads(operators: Iterable[Operator], own: set[str], outputs: Iterable[str]) -> tuple[str, ...]:
    """The tensors that come from the graph around, in the order of their first use."""
    outer: dict[str, None] = {}
    for operator in operators:
        outer.update(dict.fromkeys(name for name in operator.inputs if name and name not in own))
        own = own | set(operator.outputs)
    outer.update(dict.fromkeys(name for name in outputs if name not in own))
    return tuple(outer)
