"""Arrays that a person hands over, checked against what the model states: names, shapes, types, labels.

The rules are those of the data of a plan (:mod:`.data`): floats become the run's float type, integers the model's integer
type if they fit; integers for floats, and anything else, is refused with the words that mend it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ..errors import DataError
from ..models.onnxpp.graph import Dim, Graph, Tensor
from .data import label_problem

__all__ = ["batch_of", "converted", "fed", "named", "parts", "rows"]

Given = Mapping[str, Any] | Sequence[Any] | np.ndarray | jax.Array
SCANNED_ELEMENTS = 10**6
"""Labels of more elements are not looked through: that would cost more than it tells."""


def named(given: Any, names: Sequence[str], what: str) -> dict[str, Any]:
    """What is given, by the names it goes by: a dictionary, one array for one name, or a sequence in the order of `names`.

    what   "inputs" or "targets", for the message

    >>> named([1, 2], ["a", "b"], "inputs")
    {'a': 1, 'b': 2}

    Raises:
        DataError: there are more, fewer or others.
    """
    if isinstance(given, Mapping):
        found = dict(given)
    elif len(names) == 1 and not (isinstance(given, list | tuple) and len(given) == 1 and hasattr(given[0], "shape")):
        found = {names[0]: given}
    elif isinstance(given, list | tuple) and len(given) == len(names):
        found = dict(zip(names, given, strict=True))
    else:
        have = len(given) if isinstance(given, list | tuple) else 0 if given is None else 1
        raise DataError(
            f"The model has {len(names)} {what} ({', '.join(names) or 'none'}), {have} were given. Give a list in this order, "
            f"or a dictionary by name."
        )
    wrong = [f"{name} is missing" for name in names if found.get(name) is None]
    wrong += [f"{name} is none of them" for name in found if name not in names]
    if wrong:
        raise DataError(f"The model's {what} are {', '.join(names) or 'none'}; {'; '.join(wrong)}.")
    return found


def fed(graph: Graph, given: Mapping[str, Any], *, precision: str) -> tuple[dict[str, Any], int]:
    """(arrays of the types that the model computes with, samples in them).

    given   by the names of inputs and targets. NumPy arrays are copied, as the caller may write into them while the model
            still computes; JAX arrays, which nobody can write into, are taken as they are

    Raises:
        DataError: shapes or types do not fit, arrays differ in their number of samples, or there is a label that no class has;
        everything in one message.
    """
    arrays: dict[str, Any] = {}
    problems: list[str] = []
    counts: dict[str, int] = {}
    for name, value in given.items():
        tensor = graph.tensors[name]
        array = value if isinstance(value, jax.Array) else np.asarray(value)
        count = batch_of(tensor, array.shape)
        if count is None:
            shape = ", ".join(map(str, tensor.shape))
            problems.append(f"{name} has shape ({shape}), {tuple(array.shape)} was given")
        elif any(d.per_sample for d in tensor.shape):
            counts[name] = count
        dtype = np.dtype(precision if tensor.is_float else tensor.dtype)
        try:
            arrays[name] = converted(array, dtype, name)
        except DataError as error:
            problems.append(str(error))
            continue
        if count is not None and name in graph.targets and array.size <= SCANNED_ELEMENTS:
            label = label_problem(graph, name, np.asarray(arrays[name]))
            problems += [label] if label else []
    if len(set(counts.values())) > 1:
        problems.append("samples differ: " + ", ".join(f"{name} has {count}" for name, count in counts.items()))
    if graph.fixed_batch is not None and any(count != graph.fixed_batch for count in counts.values()):
        problems.append(f"the model was exported for {graph.fixed_batch} samples and runs with just as many")
    if problems:
        raise DataError(f"This does not fit {graph.name}: " + "; ".join(problems) + ".")
    return arrays, next(iter(counts.values()), graph.fixed_batch or 1)


def batch_of(tensor: Tensor, shape: Sequence[int]) -> int | None:
    """The samples in an array of `shape`; None if it is none of this tensor. A tensor without samples fits any number: 1.

    >>> batch_of(Tensor(name="x", dtype="float32", shape=(Dim(per_sample=2), Dim(3))), (8, 3))
    4
    """
    if len(shape) != len(tensor.shape):
        return None
    dims = list(zip(tensor.shape, shape, strict=True))
    found = {(size - d.fixed) / d.per_sample for d, size in dims if d.per_sample} or {1.0}
    count = int(next(iter(found)))
    fits = count > 0 and all(_holds(tensor, axis, d, size, count) for axis, (d, size) in enumerate(dims))
    return count if fits else None


def _holds(tensor: Tensor, axis: int, dim: Dim, size: int, count: int) -> bool:
    return size <= dim.at(count) if axis in tensor.at_most else size == dim.at(count)


def parts(tensors: Mapping[str, Tensor], arrays: Mapping[str, Any], batch: int, count: int) -> list[dict[str, Any]]:
    """The arrays of every microbatch."""
    if count == 1:
        return [dict(arrays)]
    size = batch // count
    return [rows(tensors, arrays, batch, m * size, (m + 1) * size) for m in range(count)]


def rows(tensors: Mapping[str, Tensor], arrays: Mapping[str, Any], total: int, first: int, last: int) -> dict[str, Any]:
    """Samples first..last-1 of `total`, along whatever axis they lie; what has no samples is everybody's."""
    found = {}
    for name, array in arrays.items():
        axis = next((i for i, d in enumerate(tensors[name].shape) if d.per_sample), None)
        if axis is None or (first, last) == (0, total):
            found[name] = array
            continue
        each = tensors[name].shape[axis].per_sample
        found[name] = array[(slice(None),) * axis + (slice(first * each, last * each),)]
    return found


def converted(array: Any, wanted: np.dtype[Any], name: str) -> Any:
    """As `wanted`; a copy unless it is JAX's.

    Raises:
        DataError: no conversion would keep the meaning; one clause, without a full stop.
    """
    if array.dtype == wanted:
        return array if isinstance(array, jax.Array) else np.array(array, order="C")
    floats = array.dtype.kind == "f" or array.dtype.name == "bfloat16"
    if wanted.kind == "f" and floats:
        return array.astype(wanted)
    if wanted.kind in "iu" and array.dtype.kind in "iu":
        limits = np.iinfo(wanted)
        lowest, highest = (int(array.min()), int(array.max())) if array.size else (0, 0)
        if lowest < limits.min or highest > limits.max:
            raise DataError(f"{name} lies between {lowest} and {highest}, which {wanted} cannot hold")
        return np.asarray(array).astype(wanted)
    mend = f"convert it, array.astype({wanted.name!r})"
    if wanted.kind == "f" and array.dtype == np.uint8:
        mend += " / 255 for bytes of images"
    raise DataError(f"{name} is {wanted}, {array.dtype} was given: {mend}")
