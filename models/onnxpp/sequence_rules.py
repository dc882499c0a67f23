"""Shapes of operators on sequences and optional values.

A sequence's shape is its length and the largest of its elements' shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto

from .control_flow import path_of, unknown
from .known import Known

if TYPE_CHECKING:
    from .scope import Node, Scope
    from .walk import Rule, Walk

__all__ = ["SEQUENCE_RULES"]

Operands = list["Known | None"]


def _sequence(elements: Sequence[Known], count: int, *, loose: bool = False) -> Known:
    """A sequence of `count` values, each like one of `elements`; its dimensions are the largest of theirs."""
    first = elements[0]
    if any(len(e.dims) != len(first.dims) for e in elements):
        raise unknown("a sequence of tensors of several ranks is not supported; export without sequences")
    dims = [max(extents) for extents in zip(*(e.dims for e in elements), strict=True)]
    differ = [i + 1 for i, extents in enumerate(zip(*(e.dims for e in elements), strict=True)) if len(set(extents)) > 1]
    inner = {i + 1 for e in elements for i in e.loose}
    return Known(first.dtype, (count, *dims), loose=(*((0,) if loose else ()), *differ, *inner), kind="sequence")


def _element(sequence: Known) -> Known:
    if len(sequence.dims) < 1 or sequence.dims == (0,):
        raise unknown("the elements of an empty sequence have no shape; export without sequences")
    return Known(sequence.dtype, sequence.dims[1:], loose=[i - 1 for i in sequence.loose if i])


def _construct(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
    present = [o for o in operands if o is not None]
    return [_sequence(present, len(present))]


def _empty(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
    return [Known(int(node.attributes.get("dtype", TensorProto.FLOAT)), (0,), kind="sequence")]


def _insert(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
    whole, item = operands[0], operands[1]
    assert whole is not None
    assert item is not None
    elements = [item] if not whole.dims[0] else [_element(whole), item]
    return [_sequence(elements, whole.dims[0] + 1, loose=0 in whole.loose)]


def _erase(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
    whole = operands[0]
    assert whole is not None
    return [Known(whole.dtype, (max(whole.dims[0] - 1, 0), *whole.dims[1:]), loose=whole.loose, kind="sequence")]


def _at(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
    whole = operands[0]
    assert whole is not None
    return [_element(whole)]


def _length(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
    whole = operands[0]
    assert whole is not None
    most = np.asarray(whole.dims[0], np.int64)
    return [Known.of_value(most, np.asarray(0, np.int64) if 0 in whole.loose else None)]


def _split(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
    data, split = operands[0], operands[1] if len(operands) > 1 else None
    assert data is not None
    axis = node.attributes.get("axis", 0) % len(data.dims)
    extent, dims = data.dims[axis], list(data.dims)
    if split is None:
        count, part = extent, 1
        if not node.attributes.get("keepdims", 1):
            del dims[axis]
            loose = [i - (i > axis) + 1 for i in data.loose if i != axis]
            return [
                Known(data.dtype, (count, *dims), loose=[*loose, *([0] if axis in data.loose else [])], kind="sequence")
            ]
        equal = True
    elif split.exact is None:
        count, part, equal = (split.elements if split.dims else extent), extent, False
    elif split.dims:
        count, part = split.elements, int(split.exact.max(initial=0))
        equal = len(set(split.exact.tolist())) <= 1
    else:
        part = max(int(split.exact.reshape(-1)[0]), 1)
        count, equal = -(-extent // part), not extent % part
    dims[axis] = part
    loose = [i + 1 for i in data.loose if i != axis] + ([] if equal else [axis + 1])
    open_count = axis in data.loose or (split is not None and split.exact is None and not split.dims)
    return [Known(data.dtype, (count, *dims), loose=[*loose, *([0] if open_count else [])], kind="sequence")]


def _concat(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
    whole = operands[0]
    assert whole is not None
    item, axis = _element(whole), int(node.attributes["axis"])
    if node.attributes.get("new_axis", 0):
        at = axis % (len(item.dims) + 1)
        loose = [i + (i >= at) for i in item.loose] + ([at] if 0 in whole.loose else [])
        return [Known(item.dtype, (*item.dims[:at], whole.dims[0], *item.dims[at:]), loose=loose)]
    at = axis % len(item.dims)
    dims = list(item.dims)
    dims[at] *= whole.dims[0]
    return [Known(item.dtype, dims, loose=[*item.loose, *([at] if 0 in whole.loose else [])])]


def _map(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
    present = [o for o in operands if o is not None]
    inputs = [_element(o) if o.kind == "sequence" else o for o in present]
    results = walk.body(node.bodies["body"], inputs, scope, path_of(scope, node, "body"))
    first = present[0]
    walk.trips[scope.size][path_of(scope, node, "body").rpartition("/")[0]] = first.dims[0]
    return [_sequence([r], first.dims[0], loose=0 in first.loose) for r in results]


def _identity(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
    whole = operands[0]
    return [whole] if whole is not None and whole.kind else walk.usual(node, operands)


def _optional(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
    held = operands[0] if operands else None
    if held is None:
        raise unknown("what an empty optional would hold has no shape; export without optionals")
    return [Known(held.dtype, held.dims, loose=held.loose, kind=f"optional {held.kind}".strip())]


def _optional_element(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
    held = operands[0]
    assert held is not None
    return [Known(held.dtype, held.dims, loose=held.loose, kind=held.kind.removeprefix("optional").strip())]


def _optional_has(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
    return [Known.of_value(np.asarray(bool(operands and operands[0] is not None)))]


SEQUENCE_RULES: dict[tuple[str, str], Rule] = {
    ("", "SequenceMap"): _map,
    ("", "SequenceConstruct"): _construct,
    ("", "SequenceEmpty"): _empty,
    ("", "SequenceInsert"): _insert,
    ("", "SequenceErase"): _erase,
    ("", "SequenceAt"): _at,
    ("", "SequenceLength"): _length,
    ("", "SplitToSequence"): _split,
    ("", "ConcatFromSequence"): _concat,
    ("", "Identity"): _identity,
    ("", "Optional"): _optional,
    ("", "OptionalGetElement"): _optional_element,
    ("", "OptionalHasElement"): _optional_has,
}
