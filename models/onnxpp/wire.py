"""What a protobuf holds, counted before it is parsed: two bytes of a file can become two hundred bytes of memory.

Only files are counted that are large enough to hurt: a message of one field takes at least two bytes in the file and about
a hundred in memory. Weights are one field each and are skipped whole, so a file of gigabytes takes milliseconds; text after
text and node after node is what takes time. See https://protobuf.dev/programming-guides/encoding for the format.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnx import ModelProto

from ...errors import ModelError

__all__ = ["MAX_FIELDS", "SCANNED_FROM_BYTES", "check_wire"]

# Below this a file cannot take more than some hundreds of megabytes in memory, whatever it holds.
SCANNED_FROM_BYTES = 2**21
# Messages, texts and packed lists; a node with four names and two attributes has about twelve.
MAX_FIELDS = 2_000_000
# Protobuf's own parsers stop at 100 as well.
MAX_NESTING = 100


def check_wire(content: bytes, place: object) -> None:
    """Raises ModelError where `content` holds too many fields, or messages in messages too deep, to be parsed safely.

    A file that is no ONNX at all passes: parsing says so better.
    """
    if len(content) < SCANNED_FROM_BYTES:
        return
    tables: dict[str, Mapping[int, Any]] = {}
    count = 0
    waiting: list[tuple[int, int, Any, int]] = [(0, len(content), ModelProto.DESCRIPTOR, 0)]
    while waiting:
        at, end, descriptor, depth = waiting.pop()
        if depth > MAX_NESTING:
            raise ModelError(
                f"{place} nests messages more than {MAX_NESTING} deep: it is damaged or hostile; export the model again"
            )
        inner = _messages(descriptor, tables)
        while at < end:
            tag = content[at]  # numbers of one byte are by far the most: calls would take most of the time
            if tag < 0x80:
                at += 1
            else:
                tag, at = _varint(content, at, end)
            kind = tag & 7
            if kind == 0:
                _, at = _varint(content, at, end)
            elif kind == 1:
                at += 8
            elif kind == 5:
                at += 4
            elif kind == 2:
                if at < end and content[at] < 0x80:
                    length = content[at]
                    at += 1
                else:
                    length, at = _varint(content, at, end)
                if length > end - at:
                    return
                message = inner.get(tag >> 3)
                if message is not None:
                    waiting.append((at, at + length, message, depth + 1))
                at += length
            else:
                return  # groups, which ONNX does not have, or no protobuf
            count += 1
            if count > MAX_FIELDS:
                raise ModelError(
                    f"{place} holds more than {MAX_FIELDS} fields: it would take gigabytes of memory to read; "
                    "export the model again, with its weights as raw bytes"
                )


def _messages(descriptor: Any, tables: dict[str, Mapping[int, Any]]) -> Mapping[int, Any]:
    """The descriptors of a message's fields that are messages, by number."""
    if descriptor.full_name not in tables:
        tables[descriptor.full_name] = {
            field.number: field.message_type for field in descriptor.fields if field.message_type is not None
        }
    return tables[descriptor.full_name]


def _varint(content: bytes, at: int, end: int) -> tuple[int, int]:
    """A number of seven bits per byte, and where it ends; past the end it is 0."""
    value = shift = 0
    while at < end:
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            return value, at
    return 0, end
