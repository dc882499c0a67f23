"""External data: weights in files beside the model, found without leaving its folder and mapped into memory.

A location in a model may be anything: a path upwards, a link, a pipe that never ends, or a file that becomes a link between
being looked at and being opened. So the way to it is resolved, must end in the model's folder or in one that the user
allowed, and is then opened step by step from there, none of which may be a link any more.
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterable, Sequence
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from ...errors import ModelError
from .problems import Problems
from .survey import Survey
from .weights import PACKED_BITS, dtype_name, is_external, payload_bytes

__all__ = ["ExternalFiles", "check_external", "external_path", "fetch_small", "open_regular", "tensor_values"]

# Up to this many elements a tensor may be an operand that shapes depend on.
SMALL_ELEMENTS = 4096


class MissingDataError(ModelError):
    """External data that is not there, which is no problem for planning alone."""


def open_regular(path: str | Path, *, flags: int = 0, dir_fd: int | None = None) -> BinaryIO:
    """A regular file, open for reading; never waits for a pipe. Raises OSError, IsADirectoryError for a folder."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | flags, dir_fd=dir_fd)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(None, "it is a folder")
        if not stat.S_ISREG(mode):
            raise OSError(None, "it is no regular file")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


class ExternalFiles:
    """Where tensors of one model find their bytes. Each file is looked up once."""

    def __init__(self, folder: Path, allow_external: Iterable[Path] = ()) -> None:
        self.folder = folder
        self.roots = [Path(folder).resolve(), *(Path(f).resolve() for f in allow_external)]
        self.found: dict[str, tuple[Path, Path, int]] = {}

    def place(self, tensor: TensorProto) -> tuple[Path, int, int]:
        """File, offset and length in bytes of a tensor's data; see :func:`external_path`."""
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        what = f"weights of {tensor.name!r}: external data {location!r}"
        path, _, available = self._file(location, what)
        size = payload_bytes(tensor)
        try:
            offset, length = int(entries.get("offset") or 0), int(entries.get("length") or size)
        except ValueError:
            raise ModelError(f"{what} has an offset or length that is no number; export the model again") from None
        if length != size:
            raise ModelError(
                f"{what} has {length} bytes, but shape {list(tensor.dims)} needs {size}; export the model again"
            )
        if offset < 0 or offset + length > available:
            raise ModelError(
                f"{what} ends at byte {available}, bytes {offset} to {offset + length} are needed; copy the file again"
            )
        return path, offset, length

    def open(self, tensor: TensorProto) -> tuple[BinaryIO, int, int]:
        """The open file, offset and length of a tensor's data."""
        path, offset, length = self.place(tensor)
        location = next(entry.value for entry in tensor.external_data if entry.key == "location")
        root = self.found[location][1]
        what = f"weights of {tensor.name!r}: external data {location!r}"
        at = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            parts = path.relative_to(root).parts
            for part in parts[:-1]:
                inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
                os.close(at)
                at = inner
            file = open_regular(parts[-1], flags=os.O_NOFOLLOW, dir_fd=at)
        except OSError as error:
            raise ModelError(f"{what} cannot be read: {error.strerror or error}; copy the file again") from None
        finally:
            os.close(at)
        if os.fstat(file.fileno()).st_size < offset + length:
            file.close()
            raise ModelError(f"{what} became shorter while it was read; copy the file again")
        return file, offset, length

    def _file(self, location: str, what: str) -> tuple[Path, Path, int]:
        """(path without links, the folder that allows it, bytes) of a location."""
        if location in self.found:
            return self.found[location]
        if not location or "\0" in location:
            raise ModelError(f"{what} names no file; export the model again")
        try:
            path = (self.folder / location).resolve()
            root = next((root for root in self.roots if path.is_relative_to(root)), None)
            if root is None:
                raise ModelError(
                    f"{what} lies outside the model's folder {self.folder} (or is reached through a link out of it); "
                    f"move the file there, or allow its folder: --allow-external {path.parent}"
                )
            status = os.stat(path, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            raise MissingDataError(
                f"{what} is missing; put the file into {self.folder}, or import for planning alone with --without-weights"
            ) from None
        except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
            why = getattr(error, "strerror", None) or error
            raise ModelError(f"{what} cannot be read: {why}; copy the file again") from None
        if not stat.S_ISREG(status.st_mode):
            raise ModelError(f"{what} is no regular file; export the model again")
        if status.st_nlink > 1 and root is self.roots[0] and len(self.roots) == 1:
            # A second name of a file that may lie anywhere; onnx refuses these as well.
            raise ModelError(
                f"{what} has {status.st_nlink} names (hard links), so it may lie outside the model's folder too; copy the "
                f"file, or allow its folder: --allow-external {path.parent}"
            )
        self.found[location] = path, root, status.st_size
        return self.found[location]


def external_path(tensor: TensorProto, folder: Path, allow_external: Iterable[Path] = ()) -> tuple[Path, int, int]:
    """File, offset and length in bytes of a tensor's external data.

    The file must lie, after every link is followed, inside `folder` or a folder of `allow_external`, and hold as many
    bytes as the tensor's shape and type ask for. Raises ModelError, which says what is wrong and how to mend it.
    """
    return ExternalFiles(folder, allow_external).place(tensor)


def check_external(
    surveyed: Survey, folder: Path | None, allow_external: Sequence[Path], without_weights: bool, problems: Problems
) -> None:
    """Every external tensor of a model, wherever it stands, has its bytes where it may have them; nothing is read."""
    absent: list[str] = []
    files = None if folder is None else ExternalFiles(folder, allow_external)
    for tensor, what, _ in surveyed.tensors:
        if not is_external(tensor):
            continue
        if files is None:
            problems.add(f"{what}: external data has no folder here; give the path of the model's file")
            continue
        try:
            files.place(tensor)
        except MissingDataError as error:
            absent.append(str(error))
        except ModelError as error:
            problems.add(str(error))
    if absent and not without_weights:
        more = f" (and {len(absent) - 1} more tensors)" if len(absent) > 1 else ""
        problems.add(absent[0] + more)


def fetch_small(surveyed: Survey, folder: Path, allow_external: Iterable[Path] = ()) -> None:
    """Read external tensors of attributes, and small ones inside operators, into their model, in place.

    Shapes may depend on these. Weights of the main graph, and large ones anywhere, stay where they are; so do absent ones.
    """
    files = ExternalFiles(folder, allow_external)
    for tensor, _, kind in surveyed.tensors:
        if kind == "weight" or not is_external(tensor) or (kind == "inner" and prod(tensor.dims) > SMALL_ELEMENTS):
            continue
        try:
            file, offset, length = files.open(tensor)
        except MissingDataError:
            continue
        with file:
            file.seek(offset)
            raw = file.read(length)
        tensor.raw_data = raw
        tensor.ClearField("data_location")
        del tensor.external_data[:]


def tensor_values(tensor: TensorProto, folder: Path, allow_external: Iterable[Path] = ()) -> np.ndarray:
    """The values of a tensor. External ones are mapped into memory: pages are read when they are used, and no sooner.

    The array is read-only. Types of less than a byte are unpacked, and so read. Raises ModelError.
    """
    if not is_external(tensor):
        return np.asarray(numpy_helper.to_array(tensor))
    file, offset, length = ExternalFiles(folder, allow_external).open(tensor)
    with file:
        if dtype_name(tensor.data_type) in PACKED_BITS:
            file.seek(offset)
            inline = TensorProto(
                name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, raw_data=file.read(length)
            )
            return np.asarray(numpy_helper.to_array(inline))
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).newbyteorder("<")
        if not length:
            return np.zeros(tuple(tensor.dims), dtype)
        start = offset % mmap.ALLOCATIONGRANULARITY
        mapped = mmap.mmap(file.fileno(), length + start, access=mmap.ACCESS_READ, offset=offset - start)
        values = np.frombuffer(mapped, dtype, count=length // dtype.itemsize, offset=start).reshape(tuple(tensor.dims))
        return values if values.flags.aligned else values.copy()
