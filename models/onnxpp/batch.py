"""Which dimension is the batch, what the other symbolic ones are bound to, and how a fixed batch becomes symbolic.

The batch is axis 0 of the inputs where that is symbolic; another input's dimension of the same name is the batch too.
Where no input has a symbolic axis 0, the file was exported for one fixed batch: axis 0 of every input that has the
first input's size there becomes the batch, and shape operands that froze it are released.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import ModelProto, helper, numpy_helper

from .normalise import unique_name
from .problems import Problems, did_you_mean
from .walk import BATCH

__all__ = ["BATCH", "bind_dims", "release_targets"]

TARGET_SLOTS = {"Reshape": 1, "Expand": 1, "Resize": 3}


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
    for name, size in bind.items():
        if name not in names:
            problems.add(f"--bind {name}={size}: no input has such a symbolic dimension{did_you_mean(name, names)}")
        elif size < 1:
            problems.add(f"--bind {name}={size}: a dimension is at least 1")
    for value in model.graph.input:
        if not value.type.tensor_type.HasField("shape"):
            problems.add(f"input {value.name!r} has no shape, not even a rank; export with shapes")
    fixed: int | None = None
    batches: set[str] = set()
    if batch_dim is not None:
        if batch_dim not in names and batch_dim not in places:
            problems.add(
                f"--batch-dim {batch_dim}: no input has such a dimension{did_you_mean(batch_dim, names | places)}"
            )
        batches = {batch_dim}
    else:
        batches = {row[0][0] for row in labels.values() if row and row[0][0] and row[0][0] not in bind}
    if not batches & names:
        fixed = _fixed_batch(labels, batch_dim)
    unbound: list[str] = []
    for value in model.graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            name, extent = labels[value.name][axis]
            is_batch = name in batches if name else batch_dim == f"{value.name}:{axis}"
            if batch_dim is None and fixed is not None and axis == 0 and extent == fixed:
                is_batch = True
            if is_batch:
                dim.dim_param = BATCH
            elif name and name in bind:
                dim.dim_value = bind[name]
            elif name:
                unbound.append(name)
    for name in dict.fromkeys(unbound):
        problems.add(f"dimension {name!r} is not bound; give it a size: --bind {name}=128, say")
    return fixed


def _fixed_batch(labels: Mapping[str, Sequence[tuple[str, int | None]]], batch_dim: str | None) -> int | None:
    if batch_dim is not None and ":" in batch_dim:
        tensor, _, axis = batch_dim.rpartition(":")
        row = labels.get(tensor, ())
        return row[int(axis)][1] if axis.isdigit() and int(axis) < len(row) else None
    return next((row[0][1] for row in labels.values() if row), None)


def release_targets(
    model: ModelProto, shapes: Mapping[str, tuple[int, ...]], batch: int, dependent: set[str]
) -> list[str]:
    """Rewrite the shape operands that froze the `batch` the file was exported for; returns the changed nodes' names.

    `shapes` are the tensors' shapes at that batch, `dependent` the tensors that depend on data. A Reshape whose
    target leads with a multiple of the batch leads with -1 afterwards, the rest written out in full; an Expand leads
    with 1, which keeps what is there; the sizes of a Resize name every axis but the first.
    """
    graph = model.graph
    weights = {t.name: t for t in graph.initializer}
    taken = set(weights) | {name for node in graph.node for name in node.output} | {v.name for v in graph.input}
    changed: list[str] = []
    for node in graph.node:
        slot = TARGET_SLOTS.get(node.op_type)
        if slot is None or node.domain or len(node.input) <= slot:
            continue
        operand, result = node.input[slot], shapes.get(node.output[0])
        if node.input[0] not in dependent or operand not in weights or not result or result[0] % batch:
            continue
        before = shapes[node.input[0]]
        target = numpy_helper.to_array(weights[operand])
        if node.op_type == "Reshape":
            if target.ndim != 1 or not target.size or target[0] in (0, -1):
                continue
            target = np.asarray([-1, *result[1:]])
        elif result[0] != batch or before[0] != batch or len(before) != len(result) or target.size != len(result):
            continue
        elif node.op_type == "Expand":
            target = np.asarray([1, *result[1:]])
        else:
            if any(a.name == "axes" for a in node.attribute):
                continue
            target = target[1:]
            node.attribute.append(helper.make_attribute("axes", list(range(1, len(result)))))
        name = unique_name(f"{operand}_{BATCH}", taken)
        graph.initializer.append(numpy_helper.from_array(np.asarray(target, np.int64), name))
        node.input[slot] = name
        changed.append(node.name)
    return changed
