"""Arithmetic on shapes: what small operands make, exactly or between two bounds, in NumPy.

Exporters write a model's shapes as graphs of their own (Shape, Gather, Mul, Concat, Reshape ...), dozens of operators for
one reshape. Operands are a few numbers, so an evaluator that is built for one node takes a hundred times as long as the node.
What is rare is left to onnx's reference evaluator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

__all__ = ["bounds", "evaluate", "evaluate_nodes"]

Array = np.ndarray
Attributes = Mapping[str, Any]
Bounds = tuple[np.ndarray, np.ndarray]

# Data is only moved: every element of the result is one of the operands'.
RESHAPING = frozenset({"Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten"})
# The result grows (or stays) where an operand grows.
RISING = frozenset(
    {
        "Add",
        "Sum",
        "Min",
        "Max",
        "Cast",
        "CastLike",
        "Floor",
        "Ceil",
        "Round",
        "Sqrt",
        "Relu",
        "Concat",
        "CumSum",
        "And",
        "Or",
    }
    | {"ReduceMax", "ReduceMin", "ReduceSum", "ReduceMean"}
)
RISING_FROM_ZERO = frozenset({"Mul", "ReduceProd"})
MOVING = RESHAPING | {"Gather", "Slice", "Transpose", "Expand", "Tile", "Split"}
# Left to the reference evaluator: time and memory are in proportion to operands and results.
RARE_NAMES = (
    "ScatterND ScatterElements Scatter GatherND GatherElements OneHot TopK ArgMax ArgMin Trilu EyeLike Pad Clip Mean CumSum "
    "Unique Compress IsNaN IsInf Sign BitShift BitwiseAnd BitwiseOr BitwiseNot BitwiseXor MatMul Reciprocal Exp Log Relu "
    "Erf Tanh Sigmoid Sin Cos"
)
RARE = frozenset(RARE_NAMES.split())


def _divide(a: Array, b: Array) -> Array:
    if np.issubdtype(a.dtype, np.integer):
        if not b.all():
            raise ValueError("division by zero")
        # ONNX divides integers as C does, towards zero.
        return (np.abs(a) // np.abs(b)) * np.sign(a) * np.sign(b)
    return a / b


def _mod(a: Array, b: Array, fmod: int) -> Array:
    if np.issubdtype(a.dtype, np.integer) and not b.all():
        raise ValueError("division by zero")
    return np.fmod(a, b) if fmod else np.mod(a, b)


BINARY: Mapping[str, Callable[[Array, Array], Array]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": _divide,
    "Pow": np.power,
    "Equal": np.equal,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "And": np.logical_and,
    "Or": np.logical_or,
    "Xor": np.logical_xor,
}
UNARY: Mapping[str, Callable[[Array], Array]] = {
    "Neg": np.negative,
    "Abs": np.abs,
    "Floor": np.floor,
    "Ceil": np.ceil,
    "Round": np.round,
    "Sqrt": np.sqrt,
    "Not": np.logical_not,
}
FOLDED: Mapping[str, Callable[..., Array]] = {"Min": np.minimum, "Max": np.maximum, "Sum": np.add}
REDUCED: Mapping[str, Callable[..., Array]] = {
    "ReduceProd": np.prod,
    "ReduceSum": np.sum,
    "ReduceMax": np.max,
    "ReduceMin": np.min,
    "ReduceMean": np.mean,
}


def _slice(attributes: Attributes, values: Sequence[Array | None]) -> Array:
    data = values[0]
    assert data is not None
    if "starts" in attributes:
        starts, ends = attributes["starts"], attributes["ends"]
        axes, steps = attributes.get("axes"), None
    else:
        starts, ends, axes, steps = ([None if v is None else v.reshape(-1).tolist() for v in values[1:]] + [None] * 4)[
            :4
        ]
    axes = axes if axes is not None else range(len(starts))
    index: list[slice] = [slice(None)] * data.ndim
    for i, axis in enumerate(axes):
        step = steps[i] if steps is not None else 1
        end = ends[i]
        if step < 0 and end < -data.shape[axis]:
            end = None
        index[axis] = slice(starts[i], end, step)
    return data[tuple(index)]


def _reduce(op_type: str, attributes: Attributes, values: Sequence[Array | None]) -> Array:
    data = values[0]
    assert data is not None
    axes = attributes.get("axes")
    if axes is None and len(values) > 1 and values[1] is not None:
        axes = values[1].reshape(-1).tolist()
    if not axes and attributes.get("noop_with_empty_axes"):
        return data
    axis = tuple(int(a) for a in axes) if axes else None
    return np.asarray(REDUCED[op_type](data, axis=axis, keepdims=bool(attributes.get("keepdims", 1))))


def _constant_of_shape(attributes: Attributes, dims: Sequence[int]) -> Array:
    value = attributes.get("value")
    return np.full(dims, np.float32(0)) if value is None else np.full(dims, np.asarray(value).reshape(-1)[0])


def _direct(
    op_type: str, attributes: Attributes, values: Sequence[Array | None], dims: Sequence[Sequence[int]]
) -> list[Array] | None:
    """The results of a common operator; None for any other. `dims` are those that inference gave the results."""
    data = values[0] if values else None
    given = [v for v in values if v is not None]
    result: Array
    if op_type in RESHAPING and data is not None:
        result = data.reshape(dims[0])
    elif op_type in BINARY and len(given) == 2:
        result = BINARY[op_type](given[0], given[1])
    elif op_type in UNARY and data is not None:
        result = UNARY[op_type](data)
    elif op_type in FOLDED:
        result = given[0]
        for other in given[1:]:
            result = FOLDED[op_type](result, other)
    elif op_type in REDUCED:
        result = _reduce(op_type, attributes, values)
    elif op_type == "Mod":
        result = _mod(given[0], given[1], attributes.get("fmod", 0))
    elif op_type == "Gather" and len(given) == 2:
        result = np.take(given[0], given[1].astype(np.int64), axis=attributes.get("axis", 0))
    elif op_type == "Slice":
        result = _slice(attributes, values)
    elif op_type == "Concat":
        result = np.concatenate(given, axis=attributes.get("axis", 1))
    elif op_type in ("Cast", "CastLike") and data is not None:
        result = data  # the caller gives it the type that inference found
    elif op_type == "Where":
        result = np.where(given[0], given[1], given[2])
    elif op_type == "Transpose" and data is not None:
        result = data.transpose(attributes.get("perm"))
    elif op_type == "Expand" and data is not None:
        result = np.broadcast_to(data, dims[0])
    elif op_type == "Tile" and len(given) == 2:
        result = np.tile(given[0], given[1].astype(np.int64).tolist())
    elif op_type == "ConstantOfShape":
        result = _constant_of_shape(attributes, dims[0])
    elif op_type == "Range":
        start, _, delta = (v.reshape(()) for v in given)
        result = start + np.arange(dims[0][0]).astype(start.dtype) * delta
    elif op_type == "Split" and data is not None:
        axis = attributes.get("axis", 0)
        return list(np.split(data, np.cumsum([d[axis] for d in dims])[:-1], axis=axis))
    elif op_type == "NonZero" and data is not None:
        result = np.asarray(np.nonzero(np.atleast_1d(data)), np.int64)
    else:
        return None
    return [np.asarray(result)]


def evaluate(
    node: NodeProto,
    attributes: Attributes,
    values: Sequence[Array | None],
    dims: Sequence[Sequence[int]],
    dtypes: Sequence[np.dtype],
    model: ModelProto,
) -> list[Array] | None:
    """What `node` makes of the `values` of its operands (None: absent); None where that is not known.

    dims, dtypes  of its results, as inference found them
    """
    if node.domain not in ("", "ai.onnx") or any(v is not None and v.dtype == object for v in values):
        return None
    if node.op_type == "Gather":
        _check_rows(node, attributes, values)
    try:
        with np.errstate(all="ignore"):
            results = _direct(node.op_type, attributes, values, dims)
            if results is None:
                if node.op_type not in RARE:
                    return None
                feeds = {name: v for name, v in zip(node.input, values, strict=True) if name and v is not None}
                results = evaluate_nodes([node], feeds, list(node.output), model)
            return [np.asarray(r).astype(t, copy=False) for r, t in zip(results, dtypes, strict=False)]
    except Exception:  # the reference evaluator raises anything
        return None  # operands that do not fit: the shape stays what inference says


def _check_rows(node: NodeProto, attributes: Attributes, values: Sequence[Array | None]) -> None:
    """Rows that a Gather takes must be there: a table that was made for one batch size has none for another."""
    table, index = values[0], values[1]
    if table is None or index is None or not index.size:
        return
    rows = table.shape[attributes.get("axis", 0)]
    low, high = int(index.min()), int(index.max())
    if low < -rows or high >= rows:
        raise ValueError(f"row {high if high >= rows else low} is taken of {node.input[0]!r}, which has {rows}")


def bounds(
    node: NodeProto,
    attributes: Attributes,
    lows: Sequence[Array | None],
    highs: Sequence[Array | None],
    dims: Sequence[Sequence[int]],
    dtypes: Sequence[np.dtype],
    model: ModelProto,
) -> list[Bounds] | None:
    """(least, most) of each result of an operator whose operands are known between two bounds; None if not known."""

    def run(values: Sequence[Array | None]) -> list[Array] | None:
        return evaluate(node, attributes, values, dims, dtypes, model)

    op_type = node.op_type
    operands = [(low, high) for low, high in zip(lows, highs, strict=True) if low is not None and high is not None]
    if any(low.dtype == object for low, _ in operands):
        return None
    positive = all((low >= 0).all() for low, _ in operands)
    open_operands = [i for i, (low, high) in enumerate(zip(lows, highs, strict=True)) if low is not high]
    moved = op_type in MOVING and open_operands == [0]
    if moved or op_type in RISING or (op_type in RISING_FROM_ZERO and positive):
        least, most = run(lows), run(highs)
    elif op_type == "Sub" or (op_type == "Div" and positive and (operands[1][0] > 0).all()):
        least, most = run([lows[0], highs[1]]), run([highs[0], lows[1]])
    elif op_type == "Neg":
        least, most = run(highs), run(lows)
    elif op_type == "Mul" or (op_type == "Div" and ((operands[1][0] > 0) | (operands[1][1] < 0)).all()):
        corners = [run([a, b]) for a in operands[0] for b in operands[1]]
        if any(corner is None for corner in corners):
            return None
        every = [corner[0] for corner in corners if corner is not None]
        return [(np.minimum.reduce(every), np.maximum.reduce(every))]
    elif op_type in COMPARED and len(operands) == 2:
        return [COMPARED[op_type](*operands[0], *operands[1])]
    elif op_type == "Not":
        least, most = run(highs), run(lows)
    elif op_type == "Where":
        return [_chosen(*operands)]
    else:
        return None
    if least is None or most is None:
        return None
    return list(zip(least, most, strict=True))


def _chosen(condition: Bounds, yes: Bounds, no: Bounds) -> Bounds:
    """What Where makes of bounds: either of both where the condition is open."""
    surely, perhaps = condition
    least = np.where(surely, yes[0], np.where(perhaps, np.minimum(yes[0], no[0]), no[0]))
    most = np.where(surely, yes[1], np.where(perhaps, np.maximum(yes[1], no[1]), no[1]))
    return least, most


# (surely, perhaps) for operands between (least, most) each.
COMPARED: Mapping[str, Callable[[Array, Array, Array, Array], Bounds]] = {
    "Equal": lambda a, b, c, d: ((a == b) & (c == d) & (a == c), (a <= d) & (c <= b)),
    "Less": lambda a, b, c, d: (b < c, a < d),
    "LessOrEqual": lambda a, b, c, d: (b <= c, a <= d),
    "Greater": lambda a, b, c, d: (a > d, b > c),
    "GreaterOrEqual": lambda a, b, c, d: (a >= d, b >= c),
}


def evaluate_nodes(
    nodes: list[NodeProto], feeds: dict[str, Array], outputs: list[str], model: ModelProto
) -> list[Array]:
    """Run nodes of `model` in onnx's reference evaluator on known operands; an absent output gives an empty array."""
    from onnx.reference import ReferenceEvaluator

    wanted = [name for name in outputs if name]
    graph = helper.make_graph(
        nodes,
        "constants",
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for n, v in feeds.items()],
        [helper.make_empty_tensor_value_info(name) for name in wanted],
    )
    part = helper.make_model(graph, opset_imports=list(model.opset_import), ir_version=model.ir_version)
    results = dict(zip(wanted, ReferenceEvaluator(part).run(None, feeds), strict=True))
    return [np.asarray(results[name]) if name else np.empty(0) for name in outputs]


def plain_attributes(node: NodeProto) -> dict[str, Any]:
    """A node's attributes as Python values; those that are graphs are left out."""
    found: dict[str, Any] = {}
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        if attribute.HasField("g") or attribute.graphs:
            continue
        if attribute.HasField("t"):
            value = numpy_helper.to_array(attribute.t)
        elif isinstance(value, bytes):
            value = value.decode(errors="replace")
        found[attribute.name] = value
    return found
