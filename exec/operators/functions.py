"""Operators that the standard defines by other operators: their function bodies, as lowerings."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, FunctionProto, NodeProto, TensorProto, TypeProto, helper, numpy_helper

from ...models.onnxpp.bodies import operator_of
from ...models.onnxpp.graph import Body, Operator
from .registry import Context, Lowering, OnlyOnHostError

__all__ = ["by_function_body"]


def by_function_body(node: Operator, opset: int) -> Lowering | None:
    """A lowering that interprets the standard's function body of `node`; None where the standard has none."""
    schema = _schema(node.op_type, opset, node.domain)
    if schema is None or not (schema.has_function or schema.has_context_dependent_function):
        return None

    def function(node: Operator, *values: Any, context: Context) -> tuple[Any, ...]:
        from .interpret import run_body

        if any(isinstance(v, list | tuple) or (v is not None and v.dtype == object) for v in values):
            raise OnlyOnHostError(f"{node.op_type} node {node.name!r} has operands that are no tensors of numbers.")
        body = _body(schema, node, values, opset)
        given = [*values, *(None,) * (len(body.inputs) - len(values))]
        return run_body(body, given, {}, context)

    return Lowering(
        op_type=node.op_type,
        domain=node.domain,
        since=schema.since_version,
        function=function,
        wants=frozenset({"context"}),
        folds=True,
    )


@cache
def _schema(op_type: str, opset: int, domain: str) -> Any:
    return onnx.defs.get_schema(op_type, opset, domain) if onnx.defs.has(op_type, opset, domain) else None


def _body(schema: Any, node: Operator, values: tuple[Any, ...], opset: int) -> Body:
    """The function of one node: attributes filled in, as its operands' types ask for."""
    proto = _node(node)
    function = FunctionProto()
    if schema.has_function:
        versions = [v for v in schema.function_opset_versions if v <= opset] or schema.function_opset_versions
        text = schema.get_function_with_opset_version(max(versions))
    else:
        versions = [v for v in schema.context_dependent_function_opset_versions if v <= opset]
        version = max(versions or schema.context_dependent_function_opset_versions)
        types = [_type(value).SerializeToString() for value in values]
        text = schema.get_context_dependent_function_with_opset_version(version, proto.SerializeToString(), types)
    function.ParseFromString(text)
    attributes = {name: a.default_value for name, a in schema.attributes.items() if a.default_value.name}
    attributes.update({a.name: a for a in function.attribute_proto})
    attributes.update({a.name: a for a in proto.attribute})
    # A function of another domain may leave open which operator set it is written in: then it is the newest.
    opsets = {"": onnx.defs.onnx_opset_version() if node.domain else opset}
    opsets.update({o.domain: o.version for o in function.opset_import})
    operators = []
    for index, inner in enumerate(function.node):
        filled = _filled(inner, attributes)
        # The name tells the random streams of operators apart.
        operators.append(operator_of(filled, opsets, f"{node.name}/{inner.name or index}"))
    made = {*function.input, *(name for inner in operators for name in inner.outputs)}
    return Body(
        name=node.name,
        opsets=opsets,
        operators=tuple(operators),
        inputs=tuple(function.input),
        # Some bodies compute only those outputs that the node asks for.
        outputs=tuple(name if name in made else "" for name in function.output),
    )


def _filled(node: NodeProto, attributes: Mapping[str, AttributeProto]) -> NodeProto:
    """A node of a function with the caller's attributes in the places that refer to them."""
    copy = NodeProto()
    copy.CopyFrom(node)
    del copy.attribute[:]
    for attribute in node.attribute:
        if attribute.ref_attr_name:
            if attribute.ref_attr_name in attributes:
                given = copy.attribute.add()
                given.CopyFrom(attributes[attribute.ref_attr_name])
                given.name = attribute.name
        else:
            given = copy.attribute.add()
            given.CopyFrom(attribute)
            for graph in [given.g] if given.HasField("g") else given.graphs:
                inner = [_filled(n, attributes) for n in graph.node]
                del graph.node[:]
                graph.node.extend(inner)
    return copy


def _node(node: Operator) -> NodeProto:
    count = len(node.inputs) - len(node.captured)
    proto = helper.make_node(
        node.op_type, list(node.inputs[:count]), list(node.outputs), name=node.name, domain=node.domain
    )
    for name, value in node.attributes.items():
        if isinstance(value, Body):
            raise OnlyOnHostError(f"{node.op_type} node {node.name!r} holds a graph and has no function body.")
        given = numpy_helper.from_array(value) if isinstance(value, np.ndarray) else value
        proto.attribute.append(_attribute(node, name, given))
    return proto


def _attribute(node: Operator, name: str, value: Any) -> AttributeProto:
    if isinstance(value, tuple):
        value = list(value)
    if value == []:
        return helper.make_attribute(name, value, attr_type=AttributeProto.INTS)
    return helper.make_attribute(name, value)


def _type(value: Any) -> TypeProto:
    if value is None:
        return TypeProto()
    code = helper.np_dtype_to_tensor_dtype(np.dtype(value.dtype))
    return helper.make_tensor_type_proto(code or TensorProto.FLOAT, value.shape)
