"""Shapes as affine functions of the batch, as the rest of the house has them, and as an ONNX++ file writes them.

:mod:`.walk` finds them. A file states a dimension that depends on the batch as a ``dim_param`` ("16*batch"). One that
depends on data has no size there, and the most that it can be stands in the value's own metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, TypeProto, ValueInfoProto, helper

from . import sandbox
from .arithmetic import evaluate_nodes
from .graph import Dim, Tensor
from .problems import Problems
from .scope import BATCH, RANDOM, Found, Shapes
from .weights import dtype_name

__all__ = ["RANDOM", "SIZES", "TRIPS", "Inferred", "evaluate_nodes", "infer", "parse_dim", "read_tensor", "value_info"]

SIZES = (11, 23, 37)
AT_MOST = "hpdlf.at_most"
EXACT = "!"
TRIPS = "hpdlf.trips"


class Inferred(NamedTuple):
    """What inference says of a model (see :class:`.walk.Shapes`); empty where there was a problem."""

    tensors: dict[str, Tensor]
    bodies: dict[str, dict[str, Tensor]]
    branches: dict[str, str]
    trips: dict[str, Dim]
    edits: list[dict[str, Any]]


def infer(light: ModelProto, problems: Problems, *, fixed: int | None = None, release: int | None = None) -> Inferred:
    """Types and shapes of a light model with its dimensions bound; problems say what could not be inferred.

    fixed    the batch, where it is to stay a number
    release  the batch that the file was exported for and that is to become symbolic
    """
    found = _walk(light, (fixed,) if fixed is not None else SIZES, release, problems.place)
    for problem in found.problems:
        problems.add(problem)
    if found.problems:
        return Inferred({}, {}, {}, {}, [])
    return Inferred(
        _tensors(found.tensors),
        {path: _tensors(inner) for path, inner in found.bodies.items()},
        found.branches,
        {path: Dim(*law) for path, law in found.trips.items()},
        found.edits,
    )


def _walk(light: ModelProto, sizes: tuple[int, ...], release: int | None, place: object) -> Shapes:
    """The walk, in the process for files from anywhere."""
    reply = sandbox.run_limited(
        "walk",
        light.SerializeToString(),
        place=place,
        nodes=_count(light.graph),
        sizes=list(sizes),
        release=release,
    )
    tensors, bodies, *others = json.loads(reply)
    return Shapes(_found(tensors), {path: _found(inner) for path, inner in bodies.items()}, *others)


def _found(told: Mapping[str, Any]) -> dict[str, Found]:
    return {name: Found(dtype, dims, tuple(loose)) for name, (dtype, dims, loose) in told.items()}


def _count(graph: GraphProto) -> int:
    """Nodes, those of graphs inside operators included."""
    inner = sum(_count(a.g) for node in graph.node for a in node.attribute if a.type == AttributeProto.GRAPH)
    return len(graph.node) + inner


def _tensors(found: Mapping[str, Found]) -> dict[str, Tensor]:
    return {
        name: Tensor(name=name, dtype=one.dtype, shape=tuple([Dim(*d) for d in one.dims]), at_most=one.loose)
        for name, one in found.items()
    }


def parse_dim(text: str) -> Dim:
    """The dimension that :class:`Dim` writes as `text`; ValueError if it is not one.

    >>> parse_dim("16*batch"), parse_dim("1+batch"), parse_dim("12")
    (Dim(fixed=0, per_sample=16), Dim(fixed=1, per_sample=1), Dim(fixed=12, per_sample=0))
    """
    fixed, per_sample = 0, 0
    head, star, tail = text.rpartition("+")
    if tail.endswith(BATCH):
        factor = tail.removesuffix(BATCH).removesuffix("*")
        per_sample = int(factor) if factor else 1
        fixed = int(head) if star else 0
        if not per_sample:
            raise ValueError(f"{text!r} is no dimension")
    else:
        fixed = int(text)
    dim = Dim(fixed, per_sample)
    if str(dim) != text:
        raise ValueError(f"{text!r} is no dimension")
    return dim


def value_info(tensor: Tensor) -> ValueInfoProto:
    """A value's type and shape as ONNX writes them; a dimension that depends on the batch is a ``dim_param``."""
    dims = [
        None if axis in tensor.at_most else str(d) if d.per_sample else d.fixed for axis, d in enumerate(tensor.shape)
    ]
    kind, open_bracket, rest = tensor.dtype.partition("(")
    if not open_bracket:
        value = helper.make_tensor_value_info(tensor.name, _element_type(tensor.dtype), dims)
    else:
        inner = rest.removesuffix(")")
        value = helper.make_value_info(tensor.name, _type_proto(kind, inner, dims))
    # A sequence's type has no length, and a map's no shape at all. What is exact nevertheless is marked so.
    untold = {0} if kind == "sequence" else set()
    if "map(" in tensor.dtype:
        untold = set(range(len(dims)))
    most = {
        str(axis): str(tensor.shape[axis]) + ("" if axis in tensor.at_most else EXACT)
        for axis in sorted(untold.union(tensor.at_most))
    }
    if most:
        value.metadata_props.add(key=AT_MOST, value=json.dumps(most))
    return value


def _type_proto(kind: str, inner: str, dims: list[Any]) -> TypeProto:
    """The type of kind(inner): a sequence, an optional or a map."""
    outer, bracket, rest = inner.partition("(")
    if kind == "map":
        key, _, value = inner.partition(",")
        held = helper.make_tensor_type_proto(_element_type(value), [])
        return helper.make_map_type_proto(_element_type(key), held)
    if bracket:
        element = _type_proto(outer, rest.removesuffix(")"), dims)
    else:
        element = helper.make_tensor_type_proto(_element_type(inner), dims[1:] if kind == "sequence" else dims)
    return helper.make_sequence_type_proto(element) if kind == "sequence" else helper.make_optional_type_proto(element)


def _element_type(dtype: str) -> int:
    import ml_dtypes  # noqa: F401  (registers bfloat16 and the eight-bit types with NumPy)

    return int(TensorProto.STRING if dtype == "string" else helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def read_tensor(value: ValueInfoProto) -> Tensor:
    """The inverse of :func:`value_info`; ValueError if a dimension has no size or is no function of the batch."""
    said = next((p.value for p in value.metadata_props if p.key == AT_MOST), None)
    most: dict[int, str] = {}
    if said is not None:
        try:
            most = {int(axis): str(dim) for axis, dim in json.loads(said).items()}
        except (ValueError, AttributeError):
            raise ValueError(f"has damaged metadata {AT_MOST}") from None
    dtype, dims = _read_type(value.type)
    if "map(" in dtype:
        dims = [None] * len(most)
    shape = []
    for axis, dim in enumerate(dims):
        if axis in most:
            shape.append(parse_dim(most[axis].removesuffix(EXACT)))
        elif dim is None:
            raise ValueError("has a dimension without a size")
        else:
            shape.append(Dim(dim) if isinstance(dim, int) else parse_dim(dim))
    loose = tuple(sorted(axis for axis, dim in most.items() if not dim.endswith(EXACT) and axis < len(shape)))
    return Tensor(name=value.name, dtype=dtype, shape=tuple(shape), at_most=loose)


def _read_type(type_proto: TypeProto) -> tuple[str, list[int | str | None]]:
    """(dtype, dimensions) of a type; a sequence's length, which types do not say, is None."""
    which = type_proto.WhichOneof("value")
    if which == "sequence_type":
        dtype, dims = _read_type(type_proto.sequence_type.elem_type)
        return f"sequence({dtype})", [None, *dims]
    if which == "optional_type":
        dtype, dims = _read_type(type_proto.optional_type.elem_type)
        return f"optional({dtype})", dims
    if which == "map_type":
        held = type_proto.map_type
        return f"map({dtype_name(held.key_type)},{_read_type(held.value_type)[0]})", []
    kind = type_proto.tensor_type
    if not kind.HasField("shape"):
        raise ValueError("has no shape")
    dims = []
    for dim in kind.shape.dim:
        what = dim.WhichOneof("value")
        dims.append(None if what is None else dim.dim_value if what == "dim_value" else dim.dim_param)
    return dtype_name(kind.elem_type), dims
