"""Operators on values that are known before the run, in NumPy: what shapes are made of.

Each would otherwise be compiled by itself while a graph is traced, some milliseconds for a few numbers, and exporters
write dozens of them for one Reshape. Only what is exact in both is done here: integers, booleans, and moving data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import numpy as np

from ...models.onnxpp.graph import Operator

__all__ = ["in_numpy"]


def _quotient(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Towards zero, as ONNX divides integers."""
    return np.asarray((np.abs(a) // np.abs(b)) * (np.sign(a) * np.sign(b))).astype(np.result_type(a, b))


_INTEGERS: dict[str, Callable[..., Any]] = {
    "Add": np.add,
    "And": np.logical_and,
    "Div": _quotient,
    "Equal": np.equal,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "Max": lambda *values: reduce(np.maximum, values),
    "Min": lambda *values: reduce(np.minimum, values),
    "Mul": np.multiply,
    "Neg": np.negative,
    "Not": np.logical_not,
    "Or": np.logical_or,
    "Sub": np.subtract,
    "Sum": lambda *values: reduce(np.add, values),
    "Xor": np.logical_xor,
}


def in_numpy(node: Operator, operands: Sequence[Any]) -> tuple[np.ndarray, ...] | None:
    """The results of an operator whose operands are all known; None where it is left to its lowering."""
    values = [v for v in operands if v is not None]
    if node.domain or not values or len(values) < len(operands):
        return None
    if node.op_type == "Concat":
        return (np.concatenate(values, axis=int(node.attributes.get("axis", 1))),)
    if node.op_type == "Where":
        return (np.where(*values),)
    if node.op_type == "ConstantOfShape":
        value = node.attributes.get("value")
        filled = np.zeros(1, np.float32) if value is None else np.asarray(value).reshape(1)
        return (np.broadcast_to(filled[0], tuple(int(d) for d in values[0])),)
    if node.op_type == "Expand" and len(values) == 2:
        shape = np.broadcast_shapes(values[0].shape, tuple(int(d) for d in values[1]))
        return (np.broadcast_to(values[0], shape),)
    if node.op_type == "ScatterND" and not node.attributes:
        data, indices, updates = values
        written = data.copy()
        written[tuple(np.moveaxis(indices, -1, 0))] = updates
        return (written,)
    # Attributes say how old operator sets broadcast.
    exact = node.op_type in _INTEGERS and not node.attributes and all(v.dtype.kind in "iub" for v in values)
    if not exact or (node.op_type == "Div" and not np.all(values[1])):
        return None
    with np.errstate(over="ignore"):
        return (np.asarray(_INTEGERS[node.op_type](*values)),)
