"""What the walk over a graph knows of one value at one batch size: its type, its dimensions, and perhaps what it holds.

Dimensions that depend on data are written as the most that they can be, and their axes are `loose`. A value is known
exactly (`high` alone) or between two bounds (`low` and `high`): the length of a list of boxes, say.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
from onnx import TensorProto, TypeProto, helper, numpy_helper

from .weights import dtype_name

__all__ = ["FOLDABLE_ELEMENTS", "Known", "agreed", "known_of_type", "line", "open_axes"]

FOLDABLE_ELEMENTS = 4096


class Known:
    """A value: `kind` is "" for a tensor, else "sequence", "optional" or "optional sequence".

    The first of a sequence's `dims` is its length, the others are those of its elements. `dtype` is the element type's
    number, or text where it is none ("map(int64,float32)").
    """

    __slots__ = ("_signature", "dims", "dtype", "high", "kind", "loose", "low")

    def __init__(
        self,
        dtype: int | str,
        dims: Sequence[int],
        *,
        loose: Sequence[int] = (),
        high: np.ndarray | None = None,
        low: np.ndarray | None = None,
        kind: str = "",
    ) -> None:
        self.dtype, self.dims, self.kind = dtype, tuple(dims), kind
        self.loose = tuple(sorted({axis % len(self.dims) for axis in loose})) if loose else ()
        self.high, self.low = high, low
        self._signature: tuple[object, ...] | None = None

    @classmethod
    def of_value(cls, value: np.ndarray, low: np.ndarray | None = None, *, loose: Sequence[int] = ()) -> Known:
        """A tensor that holds `value`, or anything between `low` and `value`."""
        if low is not None and np.array_equal(low, value):
            low = None
        return cls(int(helper.np_dtype_to_tensor_dtype(value.dtype)), value.shape, loose=loose, high=value, low=low)

    @property
    def exact(self) -> np.ndarray | None:
        """What the tensor holds, where nothing about it is open."""
        return self.high if self.low is None and not self.loose else None

    @property
    def elements(self) -> int:
        """The number of elements, of a sequence's elements together."""
        return prod(self.dims)

    def shape_only(self) -> tuple[object, ...]:
        """What a result's shape depends on, where values do not matter."""
        return (self.dtype, self.dims, self.loose, self.kind)

    def signature(self) -> tuple[object, ...]:
        """Everything, to be compared and hashed."""
        if self._signature is None:
            held = tuple(None if v is None else (v.dtype.str, v.tobytes()) for v in (self.high, self.low))
            if self.high is not None and self.high.dtype == object:
                held = (tuple(map(str, self.high.reshape(-1).tolist())), None)  # type: ignore[assignment]
            self._signature = (self.dtype, self.dims, self.loose, self.kind, held)
        return self._signature

    def without_value(self) -> Known:
        """The same, but what it holds is not known."""
        return Known(self.dtype, self.dims, loose=self.loose, kind=self.kind)

    def type_proto(self, *, open_loose: bool = False) -> TypeProto:
        """The type as ONNX writes it; with `open_loose` loose dimensions have no size."""
        dims: list[int | None] = [None if open_loose and i in self.loose else d for i, d in enumerate(self.dims)]
        if not isinstance(self.dtype, int):
            return TypeProto()
        if not self.kind:
            return helper.make_tensor_type_proto(self.dtype, dims)
        tensor = helper.make_tensor_type_proto(self.dtype, dims[1:] if "sequence" in self.kind else dims)
        whole = helper.make_sequence_type_proto(tensor) if "sequence" in self.kind else tensor
        return helper.make_optional_type_proto(whole) if "optional" in self.kind else whole

    def tensor_proto(self, name: str) -> TensorProto | None:
        """What it holds (its upper bound), where that is known."""
        return None if self.high is None else numpy_helper.from_array(self.high.copy(order="C"), name)

    @property
    def type_name(self) -> str:
        """As :class:`.graph.Tensor` names it: "float32", "sequence(float32)"."""
        name = dtype_name(self.dtype) if isinstance(self.dtype, int) else self.dtype
        for outer in reversed(self.kind.split()):
            name = f"{outer}({name})"
        return name


def known_of_type(type_proto: TypeProto) -> Known | None:
    """The tensor that a complete type says; None where a dimension or the type is open."""
    tensor = type_proto.tensor_type
    if not type_proto.HasField("tensor_type") or not tensor.HasField("shape") or not tensor.elem_type:
        return None
    dims = []
    for dim in tensor.shape.dim:
        if not dim.HasField("dim_value"):
            return None
        dims.append(dim.dim_value)
    return Known(tensor.elem_type, dims)


def open_axes(type_proto: TypeProto, rank: int) -> tuple[int, ...]:
    """The axes of a tensor type that have no size; all of `rank` where it has no shape, or another rank."""
    tensor = type_proto.tensor_type
    if not tensor.HasField("shape") or len(tensor.shape.dim) != rank:
        return tuple(range(rank))
    return tuple(i for i, dim in enumerate(tensor.shape.dim) if not dim.HasField("dim_value"))


def line(sizes: Sequence[int], extents: Sequence[int], *, loose: bool) -> tuple[int, int] | None:
    """(fixed, per sample) of a dimension that has these `extents` for batches of these `sizes`; None if no line does.

    A loose dimension gets a line that lies on or above all of them: as steep as the chord of the first two, and as high at
    the first as they are at the second. Where the extents grow less and less with the batch, as the least of several lines
    does, it bounds every other batch too.

    >>> line((11, 23, 37), (34, 70, 112), loose=False), line((11, 23, 37), (121, 529, 1369), loose=False)
    ((1, 3), None)
    >>> line((11, 23, 37), (220, 300, 300), loose=True)
    (223, 7)
    """
    if len(set(extents)) == 1:
        return extents[0], 0
    slope, rest = divmod(extents[1] - extents[0], sizes[1] - sizes[0])
    fits = (
        not rest
        and slope >= 0
        and all(extents[0] + slope * (size - sizes[0]) == extent for size, extent in zip(sizes, extents, strict=True))
    )
    if fits:
        return extents[0] - slope * sizes[0], slope
    if not loose:
        return None
    slope += bool(rest)
    # Between the first two sizes the extents may lie above their chord, but not above the second.
    fixed = max(extents[1] - slope * sizes[0], 0)
    above = slope >= 0 and all(fixed + slope * size >= extent for size, extent in zip(sizes, extents, strict=True))
    return (fixed, slope) if above else None


def agreed(operands: Sequence[Known | None]) -> list[Known | None] | None:
    """Operands that must have equal dimensions, with the least of their bounds where these differ; None if that is not it.

    Two lists of boxes that are equally long have different bounds where one was bounded better.
    """
    present = [o for o in operands if o is not None]
    if not any(o.loose for o in present) or len(present) < 2 or any(o.kind for o in present):
        return None
    rank = max(len(o.dims) for o in present)
    least: dict[int, int] = {}
    for operand in present:
        for axis, extent in enumerate(operand.dims, rank - len(operand.dims)):
            if extent != 1:
                least[axis] = min(extent, least.get(axis, extent))
    changed = False
    equal: list[Known | None] = []
    for one in operands:
        if one is None:
            equal.append(None)
            continue
        shift = rank - len(one.dims)
        dims = [least.get(i + shift, d) if i in one.loose else d for i, d in enumerate(one.dims)]
        changed |= dims != list(one.dims)
        equal.append(Known(one.dtype, dims, loose=one.loose))
    return equal if changed else None
