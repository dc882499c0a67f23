"""Tensors of strings: moved about as numbers, by the same lowerings that move numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...models.onnxpp.graph import Operator
from .registry import Context, Lowering, OnlyOnHostError

__all__ = ["by_codes", "is_text"]

# Operators that only move, select or compare: any numbers will do in place of the strings.
MOVING = frozenset({
    "Compress", "Concat", "Equal", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "OneHot",
    "Pad", "Reshape", "ReverseSequence", "Scatter", "ScatterElements", "ScatterND", "Shape", "Size", "Slice", "Split",
    "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where",
})  # fmt: skip


def is_text(value: Any) -> bool:
    """Whether a value is an array of strings."""
    return isinstance(value, np.ndarray) and value.dtype.kind in "OUS"


def by_codes(function: Lowering, node: Operator, operands: Sequence[Any], context: Context) -> tuple[Any, ...]:
    """A moving operator on strings: each string becomes its number in a table, the results are looked up there.

    Raises OnlyOnHostError for an operator that computes with what it is given.
    """
    if node.op_type not in MOVING:
        raise OnlyOnHostError(f"{node.op_type} node {node.name!r} cannot compute with strings.")
    texts = [v for v in operands if is_text(v)]
    # The empty string comes first: what Pad fills in where nothing else is said has the number 0.
    every = np.concatenate([np.array([""]), *(v.reshape(-1).astype(str) for v in texts)])
    table, codes = np.unique(every, return_inverse=True)
    ends = np.cumsum([v.size for v in texts])
    parts = iter(part.reshape(v.shape) for part, v in zip(np.split(codes[1:], ends[:-1]), texts, strict=True))
    coded = [next(parts).astype(np.int32) if is_text(v) else v for v in operands]
    results = function(node, *coded, context=context)
    if node.op_type in ("Equal", "Shape", "Size"):
        return results
    return tuple(table[np.asarray(r)].astype(object) for r in results)
