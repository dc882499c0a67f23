"""Shapes that onnx does not infer: results that depend on data, with the most that the standard allows.

A rule gets a node and what is known of its operands and says what is known of its results.

=======================  ==============================================================================================
NonZero                  rank × at most every element
Compress, Unique         at most every element (along the axis)
NonMaxSuppression        at most boxes kept per class × classes × batch
TopK                     at most the axis, where K depends on data
Slice                    at most the axis, where the ends depend on data
=======================  ==============================================================================================
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto

from .known import FOLDABLE_ELEMENTS, Known

if TYPE_CHECKING:
    from .scope import Node, Scope
    from .walk import Rule, Walk

__all__ = ["RULES"]

Operands = list["Known | None"]


def _present(operands: Operands, slot: int) -> Known | None:
    return operands[slot] if slot < len(operands) else None


def _first(operands: Operands) -> Known:
    known = _present(operands, 0)
    assert known is not None, "the wiring was checked"
    return known


def _shape(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
    data = _first(operands)
    rank = len(data.dims)
    part = slice(node.attributes.get("start"), node.attributes.get("end"))
    dims = np.asarray(data.dims, np.int64)[part]
    low = np.asarray([0 if i in data.loose else d for i, d in enumerate(data.dims)], np.int64)[part]
    assert len(dims) <= rank
    return [Known.of_value(dims, low)]


def _size(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
    data = _first(operands)
    return [
        Known.of_value(np.asarray(data.elements, np.int64), np.asarray(0 if data.loose else data.elements, np.int64))
    ]


def _non_zero(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
    data = _first(operands)
    if data.exact is not None:
        return [Known.of_value(np.asarray(np.nonzero(np.atleast_1d(data.exact)), np.int64))]
    return [Known(TensorProto.INT64, (max(len(data.dims), 1), data.elements), loose=(1,))]


def _compress(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
    data, condition = _first(operands), operands[1]
    axis = node.attributes.get("axis")
    dims = list(data.dims) if axis is not None else [data.elements]
    at = axis % len(dims) if axis is not None else 0
    if condition is not None and condition.exact is not None:
        dims[at] = int(np.count_nonzero(condition.exact[: dims[at]]))
        return [Known(data.dtype, dims, loose=data.loose if axis is not None else (0,) * bool(data.loose))]
    if condition is not None and condition.dims:
        dims[at] = min(dims[at], condition.dims[0])
    return [Known(data.dtype, dims, loose=(*(data.loose if axis is not None else ()), at))]


def _unique(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
    data = _first(operands)
    axis = node.attributes.get("axis")
    dims = list(data.dims) if axis is not None else [data.elements]
    at = axis % len(dims) if axis is not None else 0
    count = dims[at]
    indices = Known(TensorProto.INT64, (count,), loose=(0,))
    inverse = Known(
        TensorProto.INT64, (count,), loose=(0,) if at in data.loose or (data.loose and axis is None) else ()
    )
    values = Known(data.dtype, dims, loose=(*(data.loose if axis is not None else ()), at))
    every: Operands = [values, indices, inverse, indices]
    return every[: len(node.outputs)]


def _non_max_suppression(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
    boxes, scores, most = _first(operands), operands[1], _present(operands, 2)
    assert scores is not None
    batch, classes, count = scores.dims
    kept = count if most is None or most.high is None else min(count, max(int(most.high.reshape(-1)[0]), 0))
    if most is None:
        kept = 0  # the standard: without a maximum nothing is kept
    assert boxes.dims
    return [Known(TensorProto.INT64, (batch * classes * kept, 3), loose=(0,))]


def _top_k(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
    data, k = _first(operands), _present(operands, 1)
    if k is None or (k.exact is not None and not data.loose):
        return walk.usual(node, operands)
    axis = node.attributes.get("axis", -1) % len(data.dims)
    dims = list(data.dims)
    if k.high is not None:
        dims[axis] = min(dims[axis], int(k.high.reshape(-1)[0]))
    open_end = k.exact is None or (axis in data.loose and dims[axis] > 1)
    loose = {*(i for i in data.loose if i != axis), *((axis,) if open_end else ())}
    if k.exact is not None:
        loose.discard(axis)  # fewer than K along the axis is an error when the model runs
    return [Known(data.dtype, dims, loose=tuple(loose)), Known(TensorProto.INT64, dims, loose=tuple(loose))]


def _slice(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
    data, starts, ends = _first(operands), _present(operands, 1), _present(operands, 2)
    plain = all(o is None or o.exact is not None for o in operands[1:]) and not data.loose
    if plain or starts is None or ends is None:
        return walk.usual(node, operands)
    axes, steps = _present(operands, 3), _present(operands, 4)
    places = list(range(starts.elements)) if axes is None else _whole(axes.exact)
    if places is None:
        return [Known(data.dtype, data.dims, loose=range(len(data.dims)))]
    dims, loose = list(data.dims), set(data.loose)
    for i, axis in enumerate(axis % len(dims) for axis in places):
        step = 1 if steps is None else _item(steps.exact, i)
        dims[axis], open_end = _cut(dims[axis], axis in loose, _range_of(starts, i), _range_of(ends, i), step)
        if open_end:
            loose.add(axis)
        else:
            loose.discard(axis)
    if not loose and data.high is not None:
        return walk.usual(node, operands)  # what its elements are is known, perhaps between bounds
    return [Known(data.dtype, dims, loose=tuple(loose))]


def _cut(
    extent: int, loose: bool, start: tuple[int, int] | None, end: tuple[int, int] | None, step: int | None
) -> tuple[int, bool]:
    """How much of an axis a slice leaves at most, and whether it may be less; start and end between two bounds."""
    if start is None or end is None or step is None:
        return extent, True
    if start[0] == start[1] and end[0] == end[1]:
        return len(
            range(*slice(start[0], None if step < 0 and end[0] < -extent else end[0], step).indices(extent))
        ), loose
    if step < 0 or start[0] < 0 or end[0] < 0:
        return extent, True
    whole = start[0] == start[1] and end[0] >= extent and not loose
    return len(range(*slice(start[0], end[1], step).indices(extent))), not whole


def _whole(value: np.ndarray | None) -> list[int] | None:
    return None if value is None else [int(v) for v in value.reshape(-1)]


def _item(value: np.ndarray | None, i: int) -> int | None:
    return None if value is None else int(value.reshape(-1)[i])


def _range_of(operand: Known, i: int) -> tuple[int, int] | None:
    if operand.high is None:
        return None
    high = int(operand.high.reshape(-1)[i])
    return (high if operand.low is None else int(operand.low.reshape(-1)[i])), high


def _like_first(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
    data = _first(operands)
    return [Known(data.dtype, data.dims, loose=data.loose)]


def _constant(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
    [(name, value)] = node.attributes.items()
    if name == "value":
        return [
            _small(
                Known.of_value(value) if value.dtype != object else Known(TensorProto.STRING, value.shape, high=value)
            )
        ]
    if name.startswith("value_string"):
        return [Known(TensorProto.STRING, () if isinstance(value, str) else (len(value),))]
    if name.startswith("value_"):
        kind = np.float32 if name.startswith("value_float") else np.int64
        return [_small(Known.of_value(np.asarray(value, kind)))]
    return walk.usual(node, operands)


def _small(known: Known) -> Known:
    return known if known.elements <= FOLDABLE_ELEMENTS else known.without_value()


def _string_normalizer(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
    data = _first(operands)
    if not node.attributes.get("stopwords"):
        return [Known(data.dtype, data.dims, loose=data.loose)]
    return [Known(data.dtype, data.dims, loose=(len(data.dims) - 1,))]


def _range(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
    start, limit, delta = operands
    assert start is not None
    assert limit is not None
    assert delta is not None
    if start.high is None or limit.high is None or delta.exact is None:
        raise _unknown(
            f"the length of {node.outputs[0]!r} depends on data, and nothing bounds it; export with static shapes"
        )
    step = delta.exact.reshape(-1)[0].astype(np.float64)
    if not step:
        raise _unknown("a range with a step of 0 has no end; export the model again")

    def count(first: np.ndarray, last: np.ndarray) -> int:
        return max(int(np.ceil((last.reshape(-1)[0].astype(np.float64) - first.reshape(-1)[0]) / step)), 0)

    starts, limits = ([h if k.low is None else k.low, h] for k, h in ((start, start.high), (limit, limit.high)))
    counts = [count(a, b) for a in starts for b in limits]
    most = max(counts)
    loose = (0,) if len(set(counts)) > 1 else ()
    made = Known(start.dtype, (most,), loose=loose)
    if loose or most > FOLDABLE_ELEMENTS or start.exact is None:
        return [made]
    first = start.exact.reshape(())
    values = first + np.arange(most).astype(first.dtype) * delta.exact.reshape(())
    return [Known(start.dtype, (most,), high=values.astype(first.dtype))]


def _one_hot_tensor(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
    data, depth, values = operands[:3]
    assert data is not None
    assert depth is not None
    assert values is not None
    if depth.high is None or depth.low is not None:
        return walk.usual(node, operands)
    at = node.attributes.get("axis", -1) % (len(data.dims) + 1)
    dims = (*data.dims[:at], int(depth.high.reshape(-1)[0]), *data.dims[at:])
    return [Known(values.dtype, dims, loose=[i + (i >= at) for i in data.loose])]


def _max_unpool(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
    target = _present(operands, 2)
    if target is None or target.exact is None:
        return walk.usual(node, operands)
    return [Known(_first(operands).dtype, [int(d) for d in target.exact])]


def _stft(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
    """Half the spectrum unless asked for all of it: onnx's own inference takes the attribute's absence for the whole."""
    signal, step = _first(operands), _present(operands, 1)
    window, length = _present(operands, 2), _present(operands, 3)
    if step is None or step.exact is None or (length is not None and length.exact is None) or len(signal.dims) < 2:
        return walk.usual(node, operands)
    if length is not None and length.exact is not None:
        frame = int(length.exact.reshape(-1)[0])
    elif window is not None:
        frame = window.dims[0]
    else:
        return walk.usual(node, operands)
    frames = max((signal.dims[1] - frame) // max(int(step.exact.reshape(-1)[0]), 1) + 1, 0)
    bins = frame // 2 + 1 if node.attributes.get("onesided", 1) else frame
    return [Known(signal.dtype, (signal.dims[0], frames, bins, 2), loose=[axis for axis in signal.loose if axis < 2])]


def _image_decoder(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
    raise _unknown("how large a decoded image is stands in the image; decode it before the model")


def _unknown(why: str) -> Exception:
    from .scope import UnknownShapeError

    return UnknownShapeError(why)


def _string_split(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
    raise _unknown(
        "into how many parts a text falls depends on the text, and nothing bounds it; split it before the model"
    )


RULES: dict[tuple[str, str], Rule] = {
    ("", "Shape"): _shape,
    ("", "MeanVarianceNormalization"): _like_first,
    ("", "GroupNormalization"): _like_first,
    ("", "Size"): _size,
    ("", "NonZero"): _non_zero,
    ("", "Compress"): _compress,
    ("", "Unique"): _unique,
    ("", "NonMaxSuppression"): _non_max_suppression,
    ("", "TopK"): _top_k,
    ("", "Slice"): _slice,
    ("", "Constant"): _constant,
    ("", "ImageDecoder"): _image_decoder,
    ("", "MaxUnpool"): _max_unpool,
    ("", "OneHot"): _one_hot_tensor,
    ("", "Range"): _range,
    ("", "STFT"): _stft,
    ("", "StringNormalizer"): _string_normalizer,
    ("", "StringSplit"): _string_split,
}
