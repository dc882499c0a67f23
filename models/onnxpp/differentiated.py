"""Gradient nodes (ai.onnx.preview.training) name the tensors between which they differentiate: here they get that part
of the graph as a body of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from .graph import Body, Operator

__all__ = ["with_graphs_of_gradients"]


def with_graphs_of_gradients(
    operators: Sequence[Operator], constants: Mapping[str, np.ndarray], opsets: Mapping[str, int]
) -> tuple[Operator, ...]:
    """The operators of a graph; a Gradient among them has the attribute `graph`: from its `xs` and `zs` to its `y`.

    What lies in between is computed again, from the values that the node is given. Its part of the graph has the
    tensors `xs` and `zs` as inputs; whatever else it reads is captured.
    """
    done: list[Operator] = []
    for operator in operators:
        if operator.op_type == "Gradient" and operator.domain == "ai.onnx.preview.training":
            operator = _with_graph(operator, done, constants, opsets)
        done.append(operator)
    return tuple(done)


def _with_graph(
    node: Operator, before: Sequence[Operator], constants: Mapping[str, np.ndarray], opsets: Mapping[str, int]
) -> Operator:
    inputs = (*node.attributes.get("xs", ()), *node.attributes.get("zs", ()))
    y = node.attributes.get("y", "")
    wanted = {y}
    between: list[Operator] = []
    for operator in reversed(before):
        if any(name in wanted and name not in inputs for name in operator.outputs if name):
            between.append(operator)
            wanted.update(name for name in operator.inputs if name)
    made = {*inputs, *(name for operator in between for name in operator.outputs)}
    if y not in made:
        return node
    read = dict.fromkeys(
        name for operator in reversed(between) for name in operator.inputs if name and name not in made
    )
    body = Body(
        name=f"{node.name}.{y}",
        opsets=opsets,
        operators=tuple(reversed(between)),
        inputs=inputs,
        outputs=(y,),
        constants={name: constants[name] for name in read if name in constants},
        reads=tuple(name for name in read if name not in constants),
    )
    return replace(
        node,
        attributes={**node.attributes, "graph": body},
        inputs=(*node.inputs, *body.reads),
        captured=body.reads,
    )
