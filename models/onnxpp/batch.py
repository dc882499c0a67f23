"""Which dimension is the batch, what the other symbolic ones are bound to, and how a fixed batch becomes symbolic.

The batch is axis 0 of the inputs where that is symbolic; another input's dimension of the same name is the batch too.
Where axis 0 is bound, the one other dimension that is left open is the batch; where none is left open, axis 0 is the batch
all the same. Where no input has a symbolic dimension, the file was exported for one fixed batch: axis 0 of every input that
has the first input's size there becomes the batch, and what froze it is released (:mod:`.release`).

Exporters name a dimension that follows from others by a formula ("past_sequence_length + 1"): it is worked out.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence

from onnx import ModelProto

from .problems import Problems, did_you_mean
from .scope import BATCH

__all__ = ["BATCH", "bind_dims"]

LONGEST_FORMULA = 200


def _labels(model: ModelProto) -> dict[str, list[tuple[str, int | None]]]:
    """Per input and axis: (the dimension's name, None) or ('', its size). An unnamed unknown is called INPUT:AXIS."""
    labels: dict[str, list[tuple[str, int | None]]] = {}
    for value in model.graph.input:
        row: list[tuple[str, int | None]] = []
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.dim_value > 0:
                row.append(("", dim.dim_value))
            else:
                row.append((dim.dim_param or f"{value.name}:{axis}", None))
        labels[value.name] = row
    return labels


def bind_dims(
    model: ModelProto, *, batch_dim: str | None, bind: Mapping[str, int] | None, problems: Problems
) -> int | None:
    """Name the batch ``batch`` in every input's shape and give every other dimension its number, in place.

    `batch_dim` names the batch where axis 0 is not it, by the dimension's name or as INPUT:AXIS; `bind` gives sizes
    to the other symbolic dimensions. Returns the fixed size that the batch had, or None if it was symbolic.
    """
    bind = dict(bind or {})
    labels = _labels(model)
    names = {name for row in labels.values() for name, _ in row if name}
    places = {f"{tensor}:{axis}" for tensor, row in labels.items() for axis in range(len(row))}
    symbolic = {f"{tensor}:{axis}" for tensor, row in labels.items() for axis, (name, _) in enumerate(row) if name}
    for name, size in bind.items():
        if name not in names and name not in symbolic:
            problems.add(f"--bind {name}={size}: no input has such a symbolic dimension{did_you_mean(name, names)}")
        elif size < 1:
            problems.add(f"--bind {name}={size}: a dimension is at least 1")
    for value in model.graph.input:
        if not value.type.tensor_type.HasField("shape"):
            problems.add(f"input {value.name!r} has no shape, not even a rank; export with shapes")
    fixed: int | None = None
    if batch_dim is not None:
        if batch_dim not in names and batch_dim not in places:
            problems.add(
                f"--batch-dim {batch_dim}: no input has such a dimension{did_you_mean(batch_dim, names | places)}"
            )
        batches = {batch_dim}
    else:
        batches = _batch_names(labels, bind)
    if not batches & names:
        fixed = _fixed_batch(labels, batch_dim)
    unbound: list[str] = []
    for value in model.graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            name, extent = labels[value.name][axis]
            place = f"{value.name}:{axis}"
            is_batch = name in batches if name and place not in bind else batch_dim == place
            if batch_dim is None and fixed is not None and axis == 0 and extent == fixed:
                is_batch = True
            if is_batch:
                dim.dim_param = BATCH
            elif name and (found := bind.get(place, bind.get(name, _formula(name, bind)))) is not None:
                dim.dim_value = found
            elif name:
                unbound.append(name)
    for name in dict.fromkeys(unbound):
        problems.add(f"dimension {name!r} is not bound; give it a size: --bind {name}=128, say")
    return fixed


def _batch_names(labels: Mapping[str, Sequence[tuple[str, int | None]]], bind: Mapping[str, int]) -> set[str]:
    """The names that mean the batch; see the module."""

    def left_open(tensor: str, axis: int, name: str) -> bool:
        return bool(name) and name not in bind and f"{tensor}:{axis}" not in bind and _formula(name, bind) is None

    leading = [(tensor, row[0][0]) for tensor, row in labels.items() if row and row[0][0]]
    batches = {name for tensor, name in leading if left_open(tensor, 0, name)}
    if batches or not leading:
        return batches
    others = {
        name for tensor, row in labels.items() for axis, (name, _) in enumerate(row) if left_open(tensor, axis, name)
    }
    if len(others) == 1:
        return others
    return set() if others else {name for _, name in leading if name == leading[0][1]}


def _formula(text: str, bind: Mapping[str, int]) -> int | None:
    """What sums, differences, products and quotients of bound dimensions come to; None where `text` is no such thing.

    >>> _formula("past + 1", {"past": 7}), _formula("floor(past/2)", {"past": 7}), _formula("past", {})
    (8, None, None)
    """

    def value(node: ast.expr) -> int | None:
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        if isinstance(node, ast.Name):
            return bind.get(node.id)
        if not isinstance(node, ast.BinOp):
            return None
        left, right = value(node.left), value(node.right)
        if left is None or right is None:
            return None
        if isinstance(node.op, (ast.Div, ast.FloorDiv)):
            return left // right if right else None
        if isinstance(node.op, ast.Add):
            return left + right
        if isinstance(node.op, ast.Sub):
            return left - right
        return left * right if isinstance(node.op, ast.Mult) else None

    if len(text) > LONGEST_FORMULA:
        return None
    try:
        found = value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return found if found is not None and found > 0 else None


def _fixed_batch(labels: Mapping[str, Sequence[tuple[str, int | None]]], batch_dim: str | None) -> int | None:
    if batch_dim is not None and ":" in batch_dim:
        tensor, _, axis = batch_dim.rpartition(":")
        row = labels.get(tensor, ())
        return row[int(axis)][1] if axis.isdigit() and int(axis) < len(row) else None
    return next((row[0][1] for row in labels.values() if row), None)
