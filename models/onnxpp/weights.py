"""Tensors and their bytes: sizes, external data read safely, and copies of a model without its heavy weights.

Everything that checks, converts or infers works on a *light* copy, in which every heavy initializer has become a graph
input of the same name, type and shape: no step of the import touches the weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from ...errors import ModelError

__all__ = [
    "TRAINED",
    "dtype_name",
    "external_path",
    "is_external",
    "is_heavy",
    "light_copy",
    "payload_bytes",
    "tensor_values",
]

# Shape operands (of Reshape, Slice, Resize ...) are far smaller and must stay visible to shape inference.
HEAVY_BYTES = 1024
# Metadata of an initializer: "true" or "false" where the file says whether it is trained. Such a one is what it is: no
# copies are made of it where several operators share it.
TRAINED = "hpdlf.trained"
MAX_RANK = 64
PACKED_BITS = {"int4": 4, "uint4": 4, "float4_e2m1fn": 4, "int2": 2, "uint2": 2}


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


def external_path(tensor: TensorProto, folder: Path, allow_external: Iterable[Path] = ()) -> tuple[Path, int, int]:
    """File, offset and length in bytes of a tensor's external data.

    The file must lie, after every link is followed, inside `folder` or a folder of `allow_external`, and hold as many
    bytes as the tensor's shape and type ask for. Raises ModelError, which says what is wrong and how to mend it.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    what = f"weights of {tensor.name!r}: external data {location!r}"
    if not location or "\0" in location:
        raise ModelError(f"{what} names no file; export the model again")
    allowed = [folder.resolve(), *(Path(f).resolve() for f in allow_external)]
    path = (folder / location).resolve()
    if not any(path.is_relative_to(root) for root in allowed):
        raise ModelError(
            f"{what} lies outside the model's folder {folder} (or is reached through a link out of it); "
            f"move the file there, or allow its folder: --allow-external {path.parent}"
        )
    if not path.is_file():
        raise ModelError(
            f"{what} is missing; put the file into {folder}, or import for planning alone with --without-weights"
        )
    size = payload_bytes(tensor)
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", size))
    except ValueError:
        raise ModelError(f"{what} has an offset or length that is no number; export the model again") from None
    if length != size:
        raise ModelError(
            f"{what} has {length} bytes, but shape {list(tensor.dims)} needs {size}; export the model again"
        )
    if offset < 0 or offset + length > path.stat().st_size:
        raise ModelError(
            f"{what} ends at byte {path.stat().st_size}, bytes {offset} to {offset + length} are needed; "
            "copy the file again"
        )
    return path, offset, length


def tensor_values(tensor: TensorProto, folder: Path, allow_external: Iterable[Path] = ()) -> np.ndarray:
    """The values of an initializer, read from its file if they are external."""
    if not is_external(tensor):
        return np.asarray(numpy_helper.to_array(tensor))
    path, offset, length = external_path(tensor, folder, allow_external)
    inline = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    with path.open("rb") as file:
        file.seek(offset)
        inline.raw_data = file.read(length)
    return np.asarray(numpy_helper.to_array(inline))
