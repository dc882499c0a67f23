"""Models written to files: whole or not at all, with weights beside them where one file cannot hold everything."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from filecmp import cmp
from pathlib import Path
from shutil import copyfile
from tempfile import NamedTemporaryFile
from typing import IO, TypeAlias

import numpy as np
from onnx import ModelProto, TensorProto, numpy_helper

from ...errors import ModelError
from .external import ExternalFiles
from .kept import copy_without
from .survey import survey
from .weights import is_external, is_heavy, payload_bytes

__all__ = ["VALUES", "Weight", "copy_external", "write_atomic", "write_model"]

# A protobuf holds 2 GiB at most; what is left is for the graph that names the weights once they are outside.
MAX_INLINE_BYTES = 2**31 - 1
# Weights begin at multiples of a page, so that they can be mapped.
ALIGNMENT = 4096
# Where a tensor's numbers stand.
VALUES = (
    *("raw_data", "float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data"),
    *("external_data", "data_location"),
)

# Gives a weight's numbers when they are asked for.
Weight: TypeAlias = Callable[[], np.ndarray]


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: into a temporary file beside it, then renamed. Raises ModelError."""
    with _atomic(path) as file:
        file.write(content)


@contextmanager
def _atomic(path: Path) -> Iterator[IO[bytes]]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
                os.chmod(file.name, 0o666 & ~_umask())
                os.replace(file.name, path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise ModelError(
            f"{path} cannot be written: {error.strerror}; nothing was changed, choose another place"
        ) from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_model(proto: ModelProto, path: Path, weights: Mapping[str, Weight] | None = None) -> None:
    """Write a model to `path`, atomically.

    weights  numbers of initializers that `proto` holds without any, by name; each is asked for once, when it is written

    Where all of it is more than a file can hold (2 GiB), large initializers go to `path`.data, in pages that are mapped
    when they are read; it is written first, so that `path` never names what is not there. Raises ModelError.
    """
    weights = weights or {}
    graph = proto.graph
    held = proto.ByteSize() if not _is_huge(proto) else MAX_INLINE_BYTES + 1
    size = held + sum(payload_bytes(t) + 64 for t in graph.initializer if t.name in weights)
    outside = [t for t in graph.initializer if is_heavy(t) and not is_external(t)] if size > MAX_INLINE_BYTES else []
    names = {t.name for t in outside}
    beside = _free_name(proto, path) if names else path
    whole: ModelProto = proto
    if weights or names:
        whole = copy_without(proto, ("graph",))
        whole.graph.CopyFrom(copy_without(graph, ("initializer",)))
        at = 0
        for tensor in graph.initializer:
            added = whole.graph.initializer.add()
            if tensor.name in names:
                added.CopyFrom(copy_without(tensor, VALUES))
                at = -(-at // ALIGNMENT) * ALIGNMENT
                added.data_location = TensorProto.EXTERNAL
                length = payload_bytes(tensor)
                for key, value in (("location", beside.name), ("offset", str(at)), ("length", str(length))):
                    added.external_data.add(key=key, value=value)
                at += length
            elif tensor.name in weights:
                added.CopyFrom(copy_without(tensor, VALUES))
                added.raw_data = numpy_helper.from_array(weights[tensor.name]()).raw_data
            else:
                added.CopyFrom(tensor)
    try:
        content = whole.SerializeToString(deterministic=True)
    except Exception as error:  # protobuf's EncodeError, or ValueError beyond 2 GiB
        raise ModelError(
            f"{path} cannot be written: {error}; a file holds 2 GiB, export the original with external data"
        ) from None
    if len(content) > MAX_INLINE_BYTES:
        raise ModelError(
            f"{path} would have {len(content)} bytes, a file holds 2 GiB; export the original with external data"
        )
    if names:
        _write_beside(beside, outside, weights)
    write_atomic(path, content)


def _free_name(proto: ModelProto, path: Path) -> Path:
    """A file beside `path` in which none of the model's weights lie already."""
    taken = {e.value for t, _, _ in survey(proto).tensors for e in t.external_data if e.key == "location"}
    name, count = f"{path.name}.data", 0
    while name in taken:
        count += 1
        name = f"{path.name}.{count}.data"
    return path.with_name(name)


def _is_huge(proto: ModelProto) -> bool:
    """Whether the values in it alone are more than protobuf can count."""
    return sum(payload_bytes(t) for t in proto.graph.initializer if not is_external(t)) > MAX_INLINE_BYTES


def _write_beside(path: Path, tensors: Iterable[TensorProto], weights: Mapping[str, Weight]) -> None:
    with _atomic(path) as file:
        at = 0
        for tensor in tensors:
            file.write(bytes(-at % ALIGNMENT))
            at += -at % ALIGNMENT
            if tensor.name in weights:
                raw = numpy_helper.from_array(weights[tensor.name]()).raw_data
            elif tensor.HasField("raw_data"):
                raw = tensor.raw_data
            else:
                raw = numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data
            file.write(raw)
            at += len(raw)


def copy_external(proto: ModelProto, source_folder: Path, allow_external: Iterable[Path], folder: Path) -> None:
    """Copy the files of external data to the same relative places in `folder`, unless it is the folder where they lie.

    Files that are absent (imported without its weights) are passed over. Raises ModelError where another file is in the
    way or the place cannot be written.
    """
    if folder.resolve() == source_folder.resolve():
        return
    places: dict[str, Path] = {}
    files = ExternalFiles(source_folder, allow_external)
    for tensor, _, _ in survey(proto).tensors:
        if is_external(tensor):
            location = next((e.value for e in tensor.external_data if e.key == "location"), "")
            if location in places:
                continue
            try:
                places[location] = files.place(tensor)[0]
            except ModelError:
                continue
    for location, source in places.items():
        target = folder / location
        if not target.resolve().is_relative_to(folder.resolve()):
            raise ModelError(
                f"external data {location!r} would lie outside {folder}; save into {source_folder}, or put the weights "
                "beside the model first"
            )
        if target.exists():
            if not cmp(source, target, shallow=False):
                raise ModelError(f"{target} exists and is not the model's external data; save into another folder")
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        try:
            copyfile(source, partial)
            os.replace(partial, target)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise ModelError(f"{target} cannot be written: {error.strerror}; choose another place") from None
