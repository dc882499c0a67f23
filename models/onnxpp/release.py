"""How a batch that an exporter froze becomes symbolic: which operands to change, found while shapes are walked.

An exporter that traces with two samples writes 2 into the targets of reshapes, into initial states, into constants that
it concatenates. The walk knows which dimension of every operand is the batch, so it can say what each of these has to be:

* a Reshape whose operand carries the batch gets -1 where the batch goes, the rest written out in full (several places
  may fit; :func:`batch_place` has the order in which they are taken);
* an Expand gets 1 there, which keeps what is there; the sizes of a Resize leave it out;
* an initial state of zeros is left out, as the standard then takes zeros;
* what has one row where another operand has the batch (a class token, say) is expanded to it.

Where that does not lead to shapes that fit, the batch stays a number (see :mod:`.importing`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import ModelProto, helper, numpy_helper

from .known import Known, line

if TYPE_CHECKING:
    from .scope import Node
    from .walk import Walk

__all__ = ["apply_edits", "batch_place", "follow_batch", "release_operands"]

Edit = dict[str, Any]
RECURRENT = ("LSTM", "GRU", "RNN")


def release_operands(walk: Walk, node: Node, index: int) -> list[Edit]:
    """What to change of node number `index` of the main graph; the walk's own node is changed at once."""
    if node.domain:
        return []
    edits: list[Edit] = []
    if node.op_type == "Reshape":
        edits = _reshape(walk, node)
    elif node.op_type == "Expand":
        edits = _expand(walk, node)
    elif node.op_type == "Resize":
        edits = _resize(walk, node)
    elif node.op_type == "Concat":
        edits = _rows(walk, node, range(len(node.inputs)), node.attributes.get("axis", 1))
    elif node.op_type == "GridSample":
        edits = _rows(walk, node, (1,), None)
    elif node.op_type in RECURRENT and not node.attributes.get("layout"):
        edits = _states(walk, node)
    for edit in edits:
        edit["node"] = index
    return edits


def _lines(walk: Walk, name: str) -> list[tuple[int, int]] | None:
    """A tensor's dimensions as (fixed, per sample); None where one is no line, or depends on data."""
    every = [scope.known.get(name) for scope in walk.scopes]
    present = [known for known in every if known is not None]
    if len(present) < len(every) or any(k.loose or k.kind or len(k.dims) != len(present[0].dims) for k in present):
        return None
    found = [line(walk.sizes, extents, loose=False) for extents in zip(*(k.dims for k in present), strict=True)]
    return None if any(law is None for law in found) else [law for law in found if law is not None]


def _batch_axis(dims: Sequence[tuple[int, int]]) -> int | None:
    """The one axis that is a multiple of the batch."""
    axes = [axis for axis, (_, per_sample) in enumerate(dims) if per_sample]
    return axes[0] if len(axes) == 1 and not dims[axes[0]][0] else None


def _constant(walk: Walk, node: Node, slot: int) -> np.ndarray | None:
    """What an operand holds where that is the same for every batch."""
    if slot >= len(node.inputs) or not node.inputs[slot]:
        return None
    every = [scope.known.get(node.inputs[slot]) for scope in walk.scopes]
    values = [known.exact for known in every if known is not None]
    if len(values) < len(every) or any(v is None or not np.array_equal(v, values[0]) for v in values):  # type: ignore[arg-type]
        return None
    return values[0]


def _replace(walk: Walk, node: Node, slot: int, value: np.ndarray) -> Edit:
    """An edit that puts a new constant into an operand, done in the walk at once."""
    name = f"{node.inputs[slot]}_{walk_batch()}_{node.name}"
    known = Known.of_value(value)
    for scope in walk.scopes:
        scope.known[name] = known
    old, node.inputs[slot] = node.inputs[slot], name
    node.proto.input[slot] = name
    return {"slot": slot, "name": name, "value": value.tolist(), "old": old}


def walk_batch() -> str:
    """The word in the names of constants that were changed."""
    from .scope import BATCH

    return BATCH


def _reshape(walk: Walk, node: Node) -> list[Edit]:
    dims, target = _lines(walk, node.inputs[0]), _constant(walk, node, 1)
    batch = walk.release
    if dims is None or target is None or batch is None or target.ndim != 1:
        return []
    axis = _batch_axis(dims)
    if axis is None:
        return []
    before = [fixed + per_sample * batch for fixed, per_sample in dims]
    full = _resolved(before, [int(t) for t in target], bool(node.attributes.get("allowzero")))
    if full is None:
        return []
    found = batch_place(before, full, axis, batch, walk.outer.get(node.inputs[0], 1))
    if found is None:
        return []
    place, outer = found
    walk.outer[node.outputs[0]] = outer
    wanted = [-1 if i == place else extent for i, extent in enumerate(full)]
    plain = [_resolved([f + p * n for f, p in dims], [int(t) for t in target], False) for n in walk.sizes]
    right = [[full[place] // batch * n if i == place else d for i, d in enumerate(full)] for n in walk.sizes]
    if plain == right or 0 in wanted:
        return []
    return [_replace(walk, node, 1, np.asarray(wanted, np.int64))]


def _resolved(before: Sequence[int], target: Sequence[int], allow_zero: bool) -> list[int] | None:
    """A Reshape's target without 0 and -1; None where it does not fit."""
    full = [before[i] if t == 0 and not allow_zero and i < len(before) else t for i, t in enumerate(target)]
    if full.count(-1) == 1:
        rest = prod(t for t in full if t != -1)
        if not rest or prod(before) % rest:
            return None
        full[full.index(-1)] = prod(before) // rest
    return full if prod(full) == prod(before) and min(full, default=0) >= 0 else None


def batch_place(
    before: Sequence[int], target: Sequence[int], axis: int, batch: int, outer: int = 1
) -> tuple[int, int] | None:
    """Where in a Reshape's `target` the batch goes that is in the dimension `axis` of its operand `before`.

    `outer` counts what stands before the batch inside that dimension: [197, batch] as one dimension has 197. The answer
    is the target's dimension, and what stands before the batch in there. A dimension that is the batch alone is taken
    first, then one that the batch leads, but not the last one (features), then one that the batch ends. None if there is
    none: the batch would be cut.

    >>> batch_place([2, 197, 768], [2, 197, 12, 64], 0, 2), batch_place([197, 1, 768], [197, 12, 64], 1, 1)
    ((0, 1), (1, 1))
    >>> batch_place([197, 1, 12, 64], [197, 768], 1, 1), batch_place([197, 768], [197, 1, 768], 0, 1, outer=197)
    ((0, 197), (1, 1))
    >>> batch_place([64, 49, 96], [1, 8, 8, 7, 7, 96], 0, 1), batch_place([1, 1, 32], [1, 1, 4, 8], 1, 1)
    ((0, 1), (1, 1))
    """
    lead = prod(before[:axis]) * outer
    starts = [p for p, extent in enumerate(target) if prod(target[:p]) == lead and extent and not extent % batch]
    alone = [p for p in starts if target[p] == batch]
    if outer == 1 and axis in starts and list(target[:axis]) == list(before[:axis]):
        same = target[axis] == before[axis] or axis < len(target) - 1 or axis in alone
        if same:
            return axis, 1
    if alone:
        return alone[0], 1
    if starts and (starts[0] < len(target) - 1 or not starts[0]):
        return starts[0], 1
    for p, extent in enumerate(target):
        inside = extent // batch if not extent % batch else 0
        if p < len(target) - 1 and inside > 1 and prod(target[:p]) * inside == lead:
            return p, inside
    return (starts[0], 1) if starts else None


def follow_batch(walk: Walk, node: Node) -> None:
    """Note for a node's results what stands before the batch in their dimension, as in the operand that has as much."""
    if not walk.outer or node.op_type == "Reshape":
        return
    for name in node.inputs:
        outer = walk.outer.get(name, 1)
        dims = _lines(walk, name) if outer > 1 else None
        axis = None if dims is None else _batch_axis(dims)
        if dims is None or axis is None:
            continue
        for result in filter(None, node.outputs):
            made = _lines(walk, result)
            at = None if made is None else _batch_axis(made)
            if made is not None and at is not None and made[at] == dims[axis]:
                walk.outer[result] = outer


def _expand(walk: Walk, node: Node) -> list[Edit]:
    dims, target = _lines(walk, node.inputs[0]), _constant(walk, node, 1)
    if dims is None or target is None or target.ndim != 1:
        return []
    axis = _batch_axis(dims)
    if axis is None:
        return []
    at = axis + len(target) - len(dims)
    if at < 0 or int(target[at]) != dims[axis][1] * (walk.release or 0):
        return []
    wanted = target.astype(np.int64).copy()
    wanted[at] = 1
    return [_replace(walk, node, 1, wanted)]


def _resize(walk: Walk, node: Node) -> list[Edit]:
    dims, sizes = _lines(walk, node.inputs[0]), _constant(walk, node, 3)
    if dims is None or sizes is None or node.version < 18 or "axes" in node.attributes or sizes.size != len(dims):
        return []
    axis = _batch_axis(dims)
    if axis is None or int(sizes[axis]) != dims[axis][1] * (walk.release or 0):
        return []
    axes = [i for i in range(len(dims)) if i != axis]
    node.proto.attribute.append(helper.make_attribute("axes", axes))
    node.__dict__.pop("attributes", None)
    node.key = (*node.key, tuple(axes))
    return [{**_replace(walk, node, 3, sizes[axes].astype(np.int64)), "axes": axes}]


def _states(walk: Walk, node: Node) -> list[Edit]:
    """Initial states of a recurrent network, and lengths: [directions, batch, units] and [batch]."""
    edits: list[Edit] = []
    for slot in (5, 6):
        value = _constant(walk, node, slot)
        if value is not None and not value.any():
            node.inputs[slot] = node.proto.input[slot] = ""
            node.key = (*node.key, ("zeros", slot))
            edits.append({"slot": slot, "name": ""})
    slots = [slot for slot in (5, 6) if slot < len(node.inputs) and node.inputs[slot]]
    return [*edits, *_rows(walk, node, slots, None, like=(0, 1), at=1)]


def _rows(
    walk: Walk,
    node: Node,
    slots: Iterable[int],
    along: int | None,
    *,
    like: tuple[int, int] | None = None,
    at: int | None = None,
) -> list[Edit]:
    """Expand operands that have one row (of a batch of one) where another operand has the batch.

    along  the axis that may differ, if any
    like   (operand, axis) that has the batch; at  the axis where the others should have it
    """
    if walk.release != 1:
        return []
    shapes = {slot: _lines(walk, name) for slot, name in enumerate(node.inputs) if name}
    if like is None:
        carriers = [(slot, _batch_axis(d)) for slot, d in shapes.items() if d is not None]
        found = next(((slot, axis) for slot, axis in carriers if axis is not None), None)
        if found is None:
            return []
        like = found
    source = shapes.get(like[0])
    if source is None or not source[like[1]][1]:
        return []
    axis = like[1] if at is None else at
    if along is not None and along % len(source) == axis:
        return []
    edits: list[Edit] = []
    for slot in slots:
        dims = shapes.get(slot)
        if dims is None or slot == like[0] or axis >= len(dims) or dims[axis] != (1, 0):
            continue
        name = f"{node.inputs[slot]}_{walk_batch()}_{node.name}"
        for scope in walk.scopes:
            one, carrier = scope.known[node.inputs[slot]], scope.known[node.inputs[like[0]]]
            extent = carrier.dims[like[1]]
            scope.known[name] = Known(one.dtype, (*one.dims[:axis], extent, *one.dims[axis + 1 :]))
        edits.append(
            {"slot": slot, "name": name, "expand": axis, "rank": len(dims), "like": node.inputs[like[0]], "of": like[1]}
        )
        node.inputs[slot] = node.proto.input[slot] = name
    return edits


def apply_edits(model: ModelProto, edits: Iterable[Mapping[str, Any]]) -> None:
    """Change `model` as :func:`release_operands` said, in place."""
    graph = model.graph
    nodes = list(graph.node)
    before: dict[int, list[Any]] = {}
    present = {t.name for t in graph.initializer}
    made: set[str] = set()
    for edit in edits:
        node = nodes[edit["node"]]
        slot, name = edit["slot"], edit["name"]
        original = node.input[slot]
        node.input[slot] = name
        if "value" in edit and name not in present:
            graph.initializer.append(numpy_helper.from_array(np.asarray(edit["value"], np.int64), name))
            present.add(name)
        if "axes" in edit:
            node.attribute.append(helper.make_attribute("axes", edit["axes"]))
        if "expand" in edit and name not in made:
            made.add(name)
            before.setdefault(edit["node"], []).extend(_expanding(original, name, edit))
            one = f"{walk_batch()}_one"
            if one not in present:
                graph.initializer.append(numpy_helper.from_array(np.asarray([1], np.int64), one))
                present.add(one)
    if before:
        ordered = [n for i, node in enumerate(nodes) for n in (*before.get(i, ()), node)]
        copies = [type(n).FromString(n.SerializeToString()) for n in ordered]
        del graph.node[:]
        graph.node.extend(copies)


def _expanding(original: str, name: str, edit: Mapping[str, Any]) -> list[Any]:
    """Nodes that expand `original` along an axis to the size that another tensor has."""
    axis, of = edit["expand"], edit["of"]
    one = f"{walk_batch()}_one"
    parts = [one] * axis + [f"{name}_extent"] + [one] * (edit["rank"] - axis - 1)
    return [
        helper.make_node("Shape", [edit["like"]], [f"{name}_extent"], name=f"{name}.Shape", start=of, end=of + 1),
        helper.make_node("Concat", parts, [f"{name}_shape"], name=f"{name}.Concat", axis=0),
        helper.make_node("Expand", [original, f"{name}_shape"], [name], name=f"{name}.Expand"),
    ]
