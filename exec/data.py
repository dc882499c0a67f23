"""Training data: where it lies, whether it fits the model, and samples of it by index.

Arrays of `.npy` files and of uncompressed `.npz` members are memory-mapped: a rank reads what it asks for, and ranks of
one node share the pages. Compressed members and what Python yields are held in memory. Nothing is ever unpickled.

What is converted on reading: floats to the model's float type (or the run's precision), integers to the model's integer
type (checked to fit). Integers for an input of floats need a `scale` in the recipe; floats are never cut to integers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..models.onnxpp.graph import Graph, Tensor
from ..models.plan.recipe import Data, is_module_source
from .data_sources import Column, open_files, open_module, source_files
from .hashing import sha256_of_files

__all__ = ["Dataset", "check_dataset", "data_sha256", "label_problem", "open_dataset"]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """`samples` samples of named columns. `convert` maps a name to what is done to its values on reading."""

    source: str
    samples: int
    columns: Mapping[str, Column]
    convert: Mapping[str, Callable[[np.ndarray], np.ndarray]] = field(default_factory=dict)

    def read(self, indices: np.ndarray, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
        """Arrays [len(indices), ...] by name; only `names` if given. They are the caller's own and contiguous.

        Raises:
            DataError: a value does not fit the type that the model wants, or a Python dataset returns something else
            than before.
        """
        found = {}
        for name in self.columns if names is None else names:
            values = self.columns[name].read(indices)
            found[name] = self.convert[name](values) if name in self.convert else values
        return found


def open_dataset(data: Data, *, base_folder: Path, source: str | None = None) -> Dataset:
    """The recipe's data, its columns under the names that the model gives them where the recipe maps them.

    base_folder   where relative paths and modules are looked for
    source        instead of the recipe's: that of the evaluation

    Raises:
        DataError: it is not there, is no such data, was cut short, or the arrays differ in their number of samples.
    """
    source = source or data.source
    if source is None:
        raise DataError(
            'The recipe names no data. Give it `[data]` with `source = "FILE.npz"` (or a folder of .npy files, or '
            "module:attribute) "
            "and plan again with `hpdlf plan --recipe RECIPE`."
        )
    if is_module_source(source):
        columns = open_module(source, base_folder=base_folder, most_samples=data.samples)
    else:
        columns = open_files(base_folder / source)
    columns = _renamed(columns, data, source)
    counts = {name: column.samples for name, column in columns.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise DataError(
            f"{source}: the arrays differ in their number of samples (the first axis): {listed}. Write them again, "
            "equally long."
        )
    samples = next(iter(counts.values()), 0)
    if samples == 0:
        raise DataError(
            f"{source}: there are no samples in it. Write the file again, or name another under `source` in [data]."
        )
    if data.samples is not None and data.samples > samples:
        raise DataError(
            f"{source} has {samples} samples, the recipe's [data] asks for {data.samples}: lower `samples`, or leave "
            "it out."
        )
    return Dataset(source=source, samples=data.samples or samples, columns=columns)


def _renamed(columns: Mapping[str, Column], data: Data, source: str) -> dict[str, Column]:
    missing = {tensor: array for tensor, array in data.arrays.items() if array not in columns}
    if missing:
        listed = ", ".join(f"{array} (for {tensor})" for tensor, array in missing.items())
        raise DataError(
            f"{source} has no array {listed}; it has {', '.join(sorted(columns))}. Correct [data.arrays] in the recipe "
            "and plan again."
        )
    taken = set(data.arrays.values())
    named = {tensor: columns[array] for tensor, array in data.arrays.items()}
    return named | {name: column for name, column in columns.items() if name not in taken and name not in named}


def check_dataset(dataset: Dataset, graph: Graph, *, scale: Mapping[str, float], precision: str = "float32") -> Dataset:
    """The dataset with just the model's inputs and labels, converted to its types; `scale` is the recipe's.

    Raises:
        DataError: names, shapes or types do not fit, or labels lie outside the model's classes: everything in one
        message.
    """
    wanted = [graph.tensors[name] for name in (*graph.inputs, *graph.targets)]
    problems = [
        f"scale names {name}, which is no input of {graph.name}"
        for name in scale
        if name not in {t.name for t in wanted}
    ]
    convert: dict[str, Callable[[np.ndarray], np.ndarray]] = {}
    for tensor in wanted:
        if tensor.name not in dataset.columns:
            problems.append(
                f"{_wish(tensor)}, but there is no array of that name{_suggestion(dataset, tensor, wanted)}"
            )
            continue
        column = dataset.columns[tensor.name]
        problem = _shape_problem(tensor, column)
        dtype = np.dtype(precision if tensor.is_float else tensor.dtype)
        conversion = _conversion(tensor, column.dtype, dtype, scale.get(tensor.name))
        if isinstance(conversion, str):
            problem = f"{problem}; {conversion}" if problem else conversion
        else:
            convert[tensor.name] = conversion
        if problem:
            problems.append(f"{_wish(tensor)}, but the array is {_shape(column)} {column.dtype}: {problem}")
        elif tensor.name in graph.targets:
            problems += _label_problems(graph, tensor, column, dataset.samples)
    if problems:
        columns = "; ".join(f"{name} {_shape(column)} {column.dtype}" for name, column in dataset.columns.items())
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise DataError(
            f"{dataset.source} does not fit {graph.name}:\n{lines}\nThe data has: {columns}. Correct the data, or "
            "[data] in the recipe, "
            "and plan again with `hpdlf plan --recipe RECIPE`."
        )
    return replace(dataset, columns={t.name: dataset.columns[t.name] for t in wanted}, convert=convert)


def _wish(tensor: Tensor) -> str:
    return f"the model wants {tensor.name} as ({', '.join(map(str, tensor.shape))}) {tensor.dtype}"


def _shape(column: Column) -> str:
    return f"({', '.join(map(str, (column.samples, *column.shape)))})"


def _suggestion(dataset: Dataset, tensor: Tensor, wanted: list[Tensor]) -> str:
    names = {t.name for t in wanted}
    fitting = [n for n, c in dataset.columns.items() if n not in names and not _shape_problem(tensor, c)]
    return f'; if {fitting[0]} is meant, write `{tensor.name} = "{fitting[0]}"` under [data.arrays]' if fitting else ""


def _shape_problem(tensor: Tensor, column: Column) -> str:
    """Why a column does not fit; '' if it does."""
    if not tensor.shape or tensor.shape[0] != (0, 1) or any(d.per_sample for d in tensor.shape[1:]):
        return (
            "the first dimension of an input must be the batch; import the model again with `hpdlf import --batch-dim`"
        )
    expected = tuple(d.fixed for d in tensor.shape[1:])
    if expected == column.shape:
        return ""
    if np.prod(expected, dtype=int) == np.prod(column.shape, dtype=int):
        return f"a sample has shape {column.shape} instead of {expected}, of as many elements; reshape the array"
    return f"a sample has shape {column.shape} instead of {expected}"


def _conversion(
    tensor: Tensor, given: np.dtype[Any], wanted: np.dtype[Any], scale: float | None
) -> Callable[[np.ndarray], np.ndarray] | str:
    """What to do to the values of `tensor` on reading, or why nothing would help."""
    if wanted.kind == "f" and given.kind in "fiub":
        if given.kind != "f" and scale is None:
            hint = (
                "1/255 (0.00392156862745098) for bytes of images"
                if given == np.uint8
                else "1.0 to take the numbers as they are"
            )
            return f"integers for floats need a factor; write `{tensor.name} = FACTOR` under [data.scale], {hint}"
        if scale is None or scale == 1.0:
            return lambda values: values.astype(wanted, copy=False)
        return lambda values: values.astype(wanted) * wanted.type(scale)
    if scale is not None:
        return "a scale is for inputs of floats"
    if given == wanted:
        return lambda values: values
    if given.kind in "iu" and wanted.kind in "iu":
        return lambda values: _to_integer(values, wanted, tensor.name)
    return f"{given} is not converted to {wanted}; write the array as {wanted}"


def _to_integer(values: np.ndarray, wanted: np.dtype[Any], name: str) -> np.ndarray:
    limits = np.iinfo(wanted)
    if values.size and (int(values.min()) < limits.min or int(values.max()) > limits.max):
        raise DataError(
            f"Values of {name} lie between {values.min()} and {values.max()}, which {wanted} cannot hold. Write the "
            "array again."
        )
    return values.astype(wanted)


def _label_problems(graph: Graph, label: Tensor, column: Column, samples: int) -> list[str]:
    """Labels that no class has; only in arrays quickly looked through."""
    if column.array is None or samples * max(1, int(np.prod(column.shape))) > 10**8:
        return []
    problem = label_problem(graph, label.name, column.array[:samples])
    return [problem] if problem else []


def label_problem(graph: Graph, name: str, values: np.ndarray) -> str:
    """Which of the labels `values` no class has, where a loss over classes reads them; '' if all is well."""
    readers = [
        o
        for o in graph.operators
        if o.op_type in ("SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss") and name in o.inputs
    ]
    if not readers or values.dtype.kind not in "iu":
        return ""
    classes = graph.tensors[readers[0].inputs[0]].shape[1].fixed
    ignored = readers[0].attributes.get("ignore_index")
    strange = (values < 0) | (values >= classes)
    if ignored is not None:
        strange &= values != ignored
    if not strange.any():
        return ""
    first = np.unravel_index(int(np.argmax(strange)), strange.shape)
    return (
        f"{name} must lie in 0..{classes - 1}, but sample {int(first[0])} has {values[first]} "
        f"({int(strange.sum())} such values)"
    )


def data_sha256(source: str, evaluation: str | None = None, *, base_folder: Path) -> str:
    """The hash that a plan and its approval carry: over the bytes of the file, or over names and bytes of the `.npy` files of a folder;
    with `evaluation`, a source of its own in the recipe, over both.

    For `module:attribute` it is that of the module's source file: code that it imports and data that it reads are not covered.
    Nothing is run to find it.

    Raises:
        DataError: there is no such data.
    """
    files = source_files(source, base_folder=base_folder)
    if evaluation is not None:
        scored = source_files(evaluation, base_folder=base_folder)
        files = {f"training/{n}": f for n, f in files.items()} | {f"evaluation/{n}": f for n, f in scored.items()}
    return sha256_of_files(files)
