"""Tensors and their bytes: sizes, and copies of a model without its heavy weights.

Everything that checks, converts or infers works on a *light* copy, in which every heavy initializer has become a graph
input of the same name, type and shape: no step of the import touches the weights.
"""

from __future__ import annotations

from functools import cache
from math import prod

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

from ...errors import ModelError
from .survey import survey

__all__ = [
    "TRAINED",
    "densify",
    "dtype_name",
    "is_external",
    "is_heavy",
    "light_copy",
    "payload_bytes",
    "without_values",
]

# Shape operands (of Reshape, Slice, Resize ...) are far smaller and must stay visible to shape inference.
HEAVY_BYTES = 1024
# Metadata of an initializer: "true" or "false" where the file says whether it is trained. Such a one is what it is: no
# copies are made of it where several operators share it.
TRAINED = "hpdlf.trained"
MAX_RANK = 64
# A sparse tensor of a few bytes may be an exabyte once it is written out.
MAX_DENSE_BYTES = 2**28
PACKED_BITS = {"int4": 4, "uint4": 4, "float4_e2m1fn": 4, "float6_e2m3fn": 6, "float6_e3m2fn": 6, "int2": 2, "uint2": 2}


@cache
def dtype_name(element_type: int) -> str:
    """NumPy's name of an ONNX element type; ValueError if there is no such type.

    >>> dtype_name(TensorProto.FLOAT), dtype_name(TensorProto.BFLOAT16)
    ('float32', 'bfloat16')
    """
    if element_type == TensorProto.STRING:
        return "string"
    if not element_type or element_type not in TensorProto.DataType.DESCRIPTOR.values_by_number:
        raise ValueError(f"element type {element_type} is unknown")
    return str(helper.tensor_dtype_to_np_dtype(element_type).name)


def payload_bytes(tensor: TensorProto) -> int:
    """Bytes that a tensor's declared shape and type ask for; types of less than a byte are packed."""
    count = prod(tensor.dims)
    name = dtype_name(tensor.data_type)
    if name == "string":
        return 0
    if name in PACKED_BITS:
        return (count * PACKED_BITS[name] + 7) // 8
    return count * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def is_external(tensor: TensorProto) -> bool:
    """Whether the bytes lie in another file."""
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def is_heavy(tensor: TensorProto) -> bool:
    """Whether a light copy leaves the tensor out."""
    return is_external(tensor) or payload_bytes(tensor) > HEAVY_BYTES


def light_copy(model: ModelProto) -> ModelProto:
    """The model with every heavy initializer turned into a graph input: some kilobytes per hundred nodes remain."""
    light = ModelProto(
        ir_version=model.ir_version,
        producer_name=model.producer_name,
        opset_import=model.opset_import,
        functions=model.functions,
    )
    graph, copy = model.graph, light.graph
    copy.name = graph.name
    copy.node.extend(graph.node)
    copy.input.extend(graph.input)
    copy.output.extend(graph.output)
    copy.value_info.extend(graph.value_info)
    present = {value.name for value in graph.input}
    for tensor in graph.initializer:
        if not is_heavy(tensor):
            copy.initializer.append(tensor)
        elif tensor.name not in present:
            copy.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return light


def without_values(light: ModelProto) -> ModelProto:
    """`light` without the heavy values that its attributes and inner graphs hold, in place: onnx's checker reads none."""
    for tensor, _, kind in survey(light).tensors:
        if kind in ("inner", "attribute") and is_heavy(tensor):
            empty = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=[0], raw_data=b"")
            tensor.CopyFrom(empty)
    return light


def densify(graph: GraphProto, place: object) -> None:
    """Turn sparse initializers of the main graph into dense ones, in place. Raises ModelError where that is too much."""
    total = 0
    for sparse in graph.sparse_initializer:
        name = sparse.values.name
        total += prod(sparse.dims) * helper.tensor_dtype_to_np_dtype(sparse.values.data_type).itemsize
        if total > MAX_DENSE_BYTES:
            raise ModelError(
                f"{place} cannot be imported: with sparse initializer {name!r}, {total} bytes are needed to write them out, "
                f"at most {MAX_DENSE_BYTES} are supported; export with dense weights as external data"
            )
        values, places = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
        dense: np.ndarray = np.zeros(tuple(sparse.dims), values.dtype)
        try:
            if places.ndim == 1:
                dense.reshape(-1)[places] = values
            else:
                dense[tuple(places.T)] = values
        except IndexError:
            raise ModelError(
                f"{place} cannot be imported: sparse initializer {name!r} has an index outside its shape "
                f"{list(sparse.dims)}; export the model again"
            ) from None
        graph.initializer.append(numpy_helper.from_array(dense, name))
    del graph.sparse_initializer[:]
