"""What a file may ask for, checked before anything is allocated, inlined or inferred; and why each limit is where it is.

A file of a few bytes can declare a tensor of an exabyte, call functions that double forty times over, or nest messages
until a parser's stack is full. None of that is worth anything to anybody, so limits lie a factor above the largest models
that have been published, and far below what hurts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod

from onnx import FunctionProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, TypeProto

from .problems import Problems
from .survey import Survey, bodies_of, function_key
from .weights import MAX_RANK, PACKED_BITS, dtype_name, is_external, payload_bytes

__all__ = [
    "MAX_BODY_DEPTH",
    "MAX_BYTES",
    "MAX_ELEMENTS",
    "MAX_FILE_BYTES",
    "MAX_FUNCTION_DEPTH",
    "MAX_NAME",
    "MAX_NODES",
    "MAX_TOTAL_BYTES",
    "check_budgets",
]

# What a protobuf can hold.
MAX_FILE_BYTES = 2**31 - 1
# The largest published tensors, embeddings of recommendation models, have 2^33 elements.
MAX_ELEMENTS = 2**36
# As float64.
MAX_BYTES = 8 * MAX_ELEMENTS
# Two trillion parameters in float32: larger than any model whose size is known.
MAX_TOTAL_BYTES = 2**43
# Exports of large language models and unrolled recurrent networks have up to 100,000.
MAX_NODES = 500_000
# Exporters write three or four: a branch in a loop in a branch.
MAX_BODY_DEPTH = 16
# Exporters write one function per module of the network, so the depth is that of its classes.
MAX_FUNCTION_DEPTH = 50
# What all functions and graphs hold once each call is replaced by the function's body.
MAX_EXPANDED_BYTES = 2**31 - 1
# Longer names stand in no file that people keep; messages would carry them.
MAX_NAME = 65_536

FIELD_OF_TYPE = {
    **dict.fromkeys((TensorProto.FLOAT, TensorProto.COMPLEX64), "float_data"),
    **dict.fromkeys((TensorProto.DOUBLE, TensorProto.COMPLEX128), "double_data"),
    **dict.fromkeys((TensorProto.UINT32, TensorProto.UINT64), "uint64_data"),
    TensorProto.INT64: "int64_data",
    TensorProto.STRING: "string_data",
}
DATA_FIELDS = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")
COMPLEX = (TensorProto.COMPLEX64, TensorProto.COMPLEX128)


def check_budgets(model: ModelProto, surveyed: Survey, problems: Problems) -> int:
    """Notes what is beyond a limit, or not as long as it says; the number of nodes with all calls written out."""
    total = 0
    for tensor, what, _ in surveyed.tensors:
        if why := tensor_problem(tensor):
            problems.add(f"{what}: {why}")
        else:
            total += payload_bytes(tensor)
    if total > MAX_TOTAL_BYTES:
        problems.add(f"all tensors together declare {total} bytes, at most {MAX_TOTAL_BYTES} are supported")
    for sparse, what in surveyed.sparse:
        if why := _sparse_problem(sparse):
            problems.add(f"{what}: {why}")
    deepest = max(surveyed.graphs, key=lambda inner: inner.depth)
    if deepest.depth > MAX_BODY_DEPTH:
        problems.add(
            f"graphs inside operators nest {deepest.depth} deep, at most {MAX_BODY_DEPTH} are supported; export with branches "
            "and loops side by side"
        )
    for graph, _, _, _ in surveyed.graphs:
        for value in (*graph.input, *graph.output):
            if (unknown := _unknown_type(value.type)) is not None:
                problems.add(f"{value.name!r}: element type {unknown} is unknown; export the model again")
        for value in graph.input:
            dims = [d.dim_value for d in value.type.tensor_type.shape.dim]
            if len(dims) > MAX_RANK or any(d < -1 for d in dims):  # some exporters write -1 for any size
                problems.add(f"input {value.name!r}: shape {_shown(dims)} is impossible; export the model again")
            elif (count := prod(d for d in dims if d > 0)) > MAX_ELEMENTS:
                problems.add(
                    f"input {value.name!r}: shape {_shown(dims)} declares {count} elements, at most {MAX_ELEMENTS}"
                )
    return _Expansion(model, problems).check()


def tensor_problem(tensor: TensorProto) -> str | None:
    """Why a tensor is not what it says it is; None if it is."""
    dims = list(tensor.dims)
    try:
        dtype_name(tensor.data_type)
    except (ValueError, KeyError):
        return f"element type {tensor.data_type} is unknown; export the model again"
    if min(dims, default=0) < 0 or len(dims) > MAX_RANK:
        return f"shape {_shown(dims)} is impossible; export the model again"
    if (count := prod(dims)) > MAX_ELEMENTS:
        return f"shape {_shown(dims)} declares {count} elements, at most {MAX_ELEMENTS} are supported"
    if (nbytes := payload_bytes(tensor)) > MAX_BYTES:
        return f"shape {_shown(dims)} declares {nbytes} bytes, at most {MAX_BYTES} are supported"
    if is_external(tensor):
        if tensor.HasField("raw_data") or any(len(getattr(tensor, field)) for field in DATA_FIELDS):
            return "its values are in the file and external at once; export the model again"
        if tensor.data_type == TensorProto.STRING:
            return "texts cannot be external data; export the model again"
        return None
    why = _stored_problem(tensor, count)
    return f"{why}; the file is damaged, export the model again" if why else None


def _stored_problem(tensor: TensorProto, count: int) -> str | None:
    usual = FIELD_OF_TYPE.get(tensor.data_type, "int32_data")
    filled = [field for field in DATA_FIELDS if len(getattr(tensor, field))]
    if tensor.HasField("raw_data"):
        if tensor.data_type == TensorProto.STRING:
            return "texts cannot be raw bytes"
        filled.append("raw_data")
        have, need, unit = len(tensor.raw_data), payload_bytes(tensor), "bytes"
    else:
        have, unit = len(getattr(tensor, usual)), "values"
        bits = PACKED_BITS.get(dtype_name(tensor.data_type), 8)
        # Types of less than a byte are packed into bytes, and each byte stands in a number of its own; those of 6 bits are not packed.
        bits = bits if 8 % bits == 0 else 8
        need = count * 2 if tensor.data_type in COMPLEX else (count * bits + 7) // 8
    if have != need:
        return f"shape {_shown(list(tensor.dims))} needs {need} {unit}, the file has {have}"
    return f"its values stand in {' and '.join(filled)} at once" if len(filled) > 1 else None


def _unknown_type(proto: TypeProto) -> int | None:
    """An element type in `proto` that does not exist; 0, no type at all, is left to later steps."""
    which = proto.WhichOneof("value")
    while which in ("sequence_type", "optional_type", "map_type"):
        held = getattr(proto, which)
        proto = held.value_type if which == "map_type" else held.elem_type
        which = proto.WhichOneof("value")
    if which not in ("tensor_type", "sparse_tensor_type"):
        return None
    element: int = getattr(proto, which).elem_type
    return None if not element or element in TensorProto.DataType.DESCRIPTOR.values_by_number else element


def _sparse_problem(sparse: SparseTensorProto) -> str | None:
    dims = list(sparse.dims)
    if min(dims, default=0) < 0 or len(dims) > MAX_RANK:
        return f"shape {_shown(dims)} is impossible; export the model again"
    if prod(dims) > MAX_ELEMENTS:
        return f"shape {_shown(dims)} declares {prod(dims)} elements, at most {MAX_ELEMENTS} are supported"
    count = prod(sparse.values.dims)
    if len(sparse.values.dims) != 1 or list(sparse.indices.dims) not in ([count], [count, len(dims)]):
        return (
            f"{list(sparse.values.dims)} values and {list(sparse.indices.dims)} indices do not fit together; "
            "export the model again"
        )
    if sparse.indices.data_type != TensorProto.INT64:
        return "its indices are no 64-bit integers; export the model again"
    return None


def _shown(dims: list[int]) -> str:
    return f"[{', '.join(map(str, dims[:8]))}{', …' if len(dims) > 8 else ''}]"


class _Expansion:
    """How many nodes and bytes a model has once each call of a function is replaced by the function's body."""

    def __init__(self, model: ModelProto, problems: Problems) -> None:
        self.model, self.problems = model, problems
        self.functions: Mapping[tuple[str, str, str], FunctionProto] = {function_key(f): f for f in model.functions}
        if len(self.functions) < len(model.functions):
            problems.add("two functions have the same name; export the model again")
        self.known: dict[tuple[str, str, str], tuple[int, int]] = {}

    def check(self) -> int:
        """The number of nodes; a problem where that or the bytes are beyond their limits."""
        count, nbytes = self._size(self.model.graph.node, ())
        if count > MAX_NODES:
            self.problems.add(
                f"the graph has {count} nodes once its functions are written out, at most {MAX_NODES} are supported"
            )
        elif self.functions and nbytes > MAX_EXPANDED_BYTES:
            self.problems.add(
                f"the graph has {nbytes} bytes once its functions are written out, at most {MAX_EXPANDED_BYTES} are "
                "supported; export without functions"
            )
        return count

    def _size(self, nodes: Iterable[NodeProto], path: tuple[tuple[str, str, str], ...]) -> tuple[int, int]:
        """(nodes, bytes) of what `nodes` become; bytes of the nodes themselves are counted in functions alone."""
        count = nbytes = 0
        waiting = list(nodes)
        while waiting:
            node = waiting.pop()
            for _, body in bodies_of(node) if node.attribute else ():
                waiting.extend(body.node)
            key = (node.domain, node.op_type, node.overload)
            if key not in self.functions:
                count += 1
                continue
            if key in path or len(path) >= MAX_FUNCTION_DEPTH:
                self.problems.add(
                    f"function {node.op_type!r} calls itself or nests more than {MAX_FUNCTION_DEPTH} deep; "
                    "export without functions"
                )
                return count, nbytes
            if key not in self.known:
                inner, held = self._size(self.functions[key].node, (*path, key))
                self.known[key] = inner, held + self.functions[key].ByteSize()
            count += self.known[key][0]
            nbytes += self.known[key][1]
        return count, nbytes
