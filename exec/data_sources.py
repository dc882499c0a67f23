"""Opening data: `.npz`, folders of `.npy`, and what a Python module offers, each as named columns of samples."""

from __future__ import annotations

import functools
import importlib
import struct
import sys
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..errors import DataError
from ..models.plan.recipe import is_module_source

__all__ = ["Column", "dataset_columns", "open_files", "open_module", "source_files"]

# What an iterable may fill before we ask how many samples are wanted: every rank that reads data holds it.
MOST_STREAM_BYTES = 8 * 2**30


@dataclass(frozen=True, kw_only=True)
class Column:
    """One value per sample; `shape` leaves the sample's axis out. `array` is everything [samples, ...], where known."""

    samples: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    array: np.ndarray | None
    fetch: Callable[[np.ndarray], np.ndarray]

    def read(self, indices: np.ndarray) -> np.ndarray:
        """The values of the samples `indices`, [len(indices), *shape]; a copy."""
        return self.fetch(indices)


def _array_column(array: np.ndarray) -> Column:
    plain = array.view(np.ndarray)  # indexing a memmap makes memmaps, which is slow
    native = plain.dtype.newbyteorder("=")

    def fetch(indices: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(plain[indices], dtype=native)

    return Column(samples=len(array), shape=array.shape[1:], dtype=native, array=plain, fetch=fetch)


# --- files ------------------------------------------------------------------------------------------------------------


def open_files(path: Path) -> dict[str, Column]:
    """The columns of an `.npz` file, of a folder of `.npy` files, or of a single `.npy` file (named by its stem).

    Raises:
        DataError: there is nothing of the kind, or it was cut short, or holds Python objects.
    """
    if path.is_dir():
        files = _npy_files(path)
        return {file.stem: _checked(_open_npy(file), file) for file in files}
    if not path.is_file():
        raise DataError(
            f"{path}: there is no such data. Give the .npz file, or a folder of .npy files, as `source` in [data] of "
            "the recipe."
        )
    if path.suffix == ".npy":
        return {path.stem: _checked(_open_npy(path), path)}
    if path.suffix != ".npz":
        raise DataError(
            f"{path} is neither .npz nor .npy nor a folder of .npy files. Write it with `numpy.savez(FILE, x=..., "
            "y=...)`."
        )
    return _open_npz(path)


def _npy_files(folder: Path) -> list[Path]:
    files = sorted(f for f in folder.iterdir() if f.suffix == ".npy" and f.is_file())
    if not files:
        raise DataError(f"{folder}: there are no .npy files in it. Write one per input and label with `numpy.save`.")
    return files


def _open_npy(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(
            f"{path} is no readable .npy file ({_reason(error)}). Write it again with `numpy.save`."
        ) from None


def _open_npz(path: Path) -> dict[str, Column]:
    columns = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if not info.filename.endswith(".npy"):
                    raise DataError(
                        f"{path} holds {info.filename!r}, which is no array. Write it again with `numpy.savez`."
                    )
                if info.compress_type == zipfile.ZIP_STORED:
                    array = _map_member(path, info)
                else:
                    with archive.open(info) as member:
                        array = np.lib.format.read_array(member, allow_pickle=False)
                columns[info.filename.removesuffix(".npy")] = _checked(array, path, info.filename)
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, struct.error, NotImplementedError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path} is no readable .npz file, or was cut short ({_reason(error)}). Write it again with `numpy.savez`."
        ) from None
    return columns


def _map_member(path: Path, info: zipfile.ZipInfo) -> np.ndarray:
    """An uncompressed member as a memory map: its array's bytes lie in the file as they are."""
    with path.open("rb") as file:
        file.seek(info.header_offset)
        local = file.read(
            30
        )  # the local file header of the zip format; its name and extra field may differ from the directory's
        name_bytes, extra_bytes = struct.unpack("<HH", local[26:30])
        start = info.header_offset + 30 + name_bytes + extra_bytes
        file.seek(start)
        version = np.lib.format.read_magic(file)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(
            version
        )
        if read_header is None:
            raise ValueError(f"{info.filename} has .npy version {version}")
        shape, fortran, dtype = read_header(file)
        offset = file.tell()
    nbytes = dtype.itemsize * int(np.prod(shape, dtype=object))
    if dtype.hasobject:
        raise ValueError(f"{info.filename} holds Python objects")
    if offset + nbytes > start + info.file_size:
        raise ValueError(f"{info.filename} declares {nbytes} bytes and has fewer")
    if nbytes == 0:
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape, order="F" if fortran else "C")


def _checked(array: np.ndarray, path: Path, member: str = "") -> Column:
    where = f"{path}, {member}" if member else str(path)
    if array.ndim == 0:
        raise DataError(f"{where} is a single number; the first axis of every array must be the sample.")
    if array.dtype.kind not in "fiub":
        raise DataError(f"{where} is of type {array.dtype}; numbers are wanted.")
    return _array_column(array)


def _reason(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


# --- Python -----------------------------------------------------------------------------------------------------------


def open_module(source: str, *, base_folder: Path, most_samples: int | None) -> dict[str, Column]:
    """The columns of `module:attribute`: a dataset with `__len__` and `__getitem__` whose samples are dicts (or tuples,
    whose columns are then named "0", "1", ...), or an iterable of dict batches, or a callable without arguments that
    returns one of them.

    Raises:
        DataError: there is no such module or attribute, or what it gives is nothing of the kind.
    """
    module_name, attribute = source.split(":")
    try:
        value: Any = _load_module(module_name, base_folder)
        for name in attribute.split("."):
            value = getattr(value, name)
        if isinstance(value, type) or (callable(value) and not hasattr(value, "__getitem__")):
            value = value()
        if (
            hasattr(value, "__getitem__")
            and hasattr(value, "__len__")
            and not isinstance(value, Mapping | list | tuple)
        ):
            return dataset_columns(value, source)
        if isinstance(value, Mapping):
            return {str(k): _array_column(_plain(v, source, str(k))) for k, v in value.items()}
        if isinstance(value, list | tuple) and value and _is_sample_list(value):
            return dataset_columns(value, source)
        if isinstance(value, Iterable):
            return _stream_columns(value, source, most_samples)
    except DataError:
        raise
    except AttributeError as error:
        raise DataError(f"{source}: {error}. Correct `source` in [data] of the recipe.") from error
    except Exception as error:  # anything may go wrong in somebody else's module
        raise DataError(
            f"{source} failed with {type(error).__name__}: {_reason(error)}. `--debug` shows where."
        ) from error
    raise DataError(
        f"{source} is a {type(value).__name__}: neither a dataset with __len__ and __getitem__ nor an iterable of dict "
        "batches."
    )


def _is_sample_list(value: Any) -> bool:
    """A list holds samples, unless the arrays of its first dict look like batches: equally long along a first axis."""
    first = value[0]
    if not isinstance(first, Mapping):
        return True
    lengths = {np.shape(v)[:1] for v in first.values()}
    return len(lengths) != 1 or lengths == {()}


def _named(sample: Any, source: str) -> dict[str, np.ndarray]:
    if isinstance(sample, Mapping):
        return {str(k): _plain(v, source, str(k)) for k, v in sample.items()}
    if isinstance(sample, list | tuple):
        return {str(i): _plain(v, source, str(i)) for i, v in enumerate(sample)}
    raise DataError(f"{source} gives a {type(sample).__name__} where a dict of arrays (or a tuple) is wanted.")


def _plain(value: Any, source: str, name: str) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise DataError(f"{source} gives {name} as {array.dtype}; numbers are wanted.")
    return array


def dataset_columns(dataset: Any, source: str) -> dict[str, Column]:
    samples = len(dataset)
    if samples == 0:
        raise DataError(f"{source} has no samples.")
    first = _named(dataset[0], source)
    latest: dict[str, Any] = {
        "indices": None,
        "samples": None,
    }  # columns of one batch are asked for one after the other

    def fetch(name: str, indices: np.ndarray) -> np.ndarray:
        if latest["indices"] is not indices:
            latest["samples"] = [_named(dataset[int(i)], source) for i in indices]
            latest["indices"] = indices
        rows = [sample.get(name) for sample in latest["samples"]]
        for index, row in zip(indices, rows, strict=True):
            if row is None or row.shape != first[name].shape:
                found = "is missing" if row is None else f"has shape {row.shape}"
                raise DataError(
                    f"{source}: {name} of sample {int(index)} {found}, that of sample 0 has {first[name].shape}."
                )
        return (
            np.stack(rows).astype(first[name].dtype, copy=False)
            if rows
            else np.zeros((0, *first[name].shape), first[name].dtype)
        )

    return {
        name: Column(
            samples=samples, shape=value.shape, dtype=value.dtype, array=None, fetch=functools.partial(fetch, name)
        )
        for name, value in first.items()
    }


def _stream_columns(batches: Iterable[Any], source: str, most_samples: int | None) -> dict[str, Column]:
    """Everything that an iterable yields, in its order: a sample's index is its place in the stream."""
    parts: dict[str, list[np.ndarray]] = {}
    samples = held_bytes = 0
    for number, batch in enumerate(batches):
        arrays = _named(batch, source)
        lengths = {array.shape[0] if array.ndim else None for array in arrays.values()}
        if len(lengths) != 1 or None in lengths or (parts and set(parts) != set(arrays)):
            listed = ", ".join(f"{k} {v.shape}" for k, v in arrays.items())
            raise DataError(
                f"{source}: batch {number} has {listed}; every batch must have the same arrays, all as long as each "
                "other."
            )
        for name, array in arrays.items():
            parts.setdefault(name, []).append(array)
            held_bytes += array.nbytes
        samples += int(next(iter(lengths)))  # type: ignore[arg-type]
        if most_samples is not None and samples >= most_samples:
            break
        if held_bytes > MOST_STREAM_BYTES:
            raise DataError(
                f"{source} has yielded {samples} samples, {held_bytes / 2**30:.0f} GiB, and goes on; an iterable is "
                "held in memory. Write "
                "`samples = N` under [data] in the recipe to take the first N, or offer a dataset with __len__ and "
                "__getitem__."
            )
    if not parts:
        raise DataError(f"{source} yields nothing.")
    try:
        return {name: _array_column(np.concatenate(arrays)[:most_samples]) for name, arrays in parts.items()}
    except ValueError as error:
        raise DataError(f"{source}: batches differ in the shape of their samples ({_reason(error)}).") from None


def _load_module(name: str, base_folder: Path) -> ModuleType:
    """Import a module that lies in `base_folder` or is installed, as `python` would with that folder on its path."""
    folder = str(base_folder.resolve())
    wanted = _module_file(name, base_folder)
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__file__", None) != str(wanted):
        del sys.modules[name]  # of the same name, from another folder
    sys.path.insert(0, folder)
    try:
        importlib.invalidate_caches()
        return importlib.import_module(name)
    finally:
        sys.path.remove(folder)


def _module_file(name: str, base_folder: Path) -> Path:
    """The source file of a module, found without running anything."""
    places: list[str] | None = [str(base_folder.resolve()), *sys.path]
    spec = None
    parts = name.split(".")
    for depth in range(len(parts)):
        spec = PathFinder.find_spec(".".join(parts[: depth + 1]), places)
        if spec is None:
            break
        places = list(spec.submodule_search_locations or [])
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise DataError(
            f"There is no Python module {name} in {base_folder} or among what is installed. Correct `source` in [data] "
            "of the recipe, "
            "or install the module."
        )
    return Path(spec.origin)


def source_files(source: str, *, base_folder: Path) -> dict[str, Path]:
    """The files that a data source consists of, by name within it. Nothing is run.

    Raises:
        DataError: there is no such data.
    """
    if is_module_source(source):
        file = _module_file(source.split(":")[0], base_folder)
        return {file.name: file}
    path = base_folder / source
    if path.is_dir():
        return {file.name: file for file in _npy_files(path)}
    if not path.is_file():
        raise DataError(
            f"{path}: there is no such data. Give the .npz file, or a folder of .npy files, as `source` in [data] of "
            "the recipe."
        )
    return {path.name: path}
