"""Writing the safetensors format: any reader of the format opens these files.

The library's own writer builds the whole file in memory and reports a full disk as a string; this one streams from the
arrays, hashes on the way, and raises OSError. The format: eight bytes with the header's length, the header as JSON, the
values.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

__all__ = ["write_tensors"]

_TYPE_NAMES = {
    "bool": "BOOL", "int8": "I8", "uint8": "U8", "int16": "I16", "uint16": "U16", "int32": "I32", "uint32": "U32",
    "int64": "I64", "uint64": "U64", "float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64",
}  # fmt: skip
ALIGNMENT = 64
CHUNK_BYTES = 2**24


def write_tensors(file: BinaryIO, tensors: Mapping[str, np.ndarray]) -> tuple[int, str]:
    """Write `tensors`; returns the file's bytes and its SHA-256. The values start 64-byte aligned, wide types first."""
    arrays = {name: np.asarray(tensor) for name, tensor in tensors.items()}
    order = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
    header: dict[str, Any] = {}
    offset = 0
    for name in order:
        array = arrays[name]
        header[name] = {
            "dtype": _TYPE_NAMES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    digest = hashlib.sha256()
    pieces = [memoryview(len(text).to_bytes(8, "little")), memoryview(text)]
    for piece in pieces + [_little_endian(arrays[name]) for name in order]:
        for start in range(0, len(piece), CHUNK_BYTES):
            chunk = piece[start : start + CHUNK_BYTES]
            file.write(chunk)
            digest.update(chunk)
    return 8 + len(text) + offset, digest.hexdigest()


def _little_endian(array: np.ndarray) -> memoryview:
    """The values as bytes in a row, without copying where they already are."""
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
