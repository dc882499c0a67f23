"""Initial values of parameters and state: from the model file, or drawn by seed and name, the same however the model is
cut.

Rules for drawn weights (all uniform on +-limit, variance limit^2 / 3):

    he       limit = sqrt(6 / fan_in)               He et al. 2015, eq. 10
    glorot   limit = sqrt(6 / (fan_in + fan_out))   Glorot and Bengio 2010, eq. 16
    lecun    limit = sqrt(3 / fan_in)               LeCun et al. 1998

Scales of normalisations begin at 1, what is added at 0, running means at 0 and running variances at 1.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from math import prod, sqrt

import numpy as np

from ..errors import DataError
from ..models.onnxpp.graph import Graph, Operator
from .random_streams import uniform

__all__ = ["fans", "initial_values"]

Load = Callable[[Iterable[str]], Mapping[str, np.ndarray]]
_NORMALISATIONS = (
    "BatchNormalization",
    "LayerNormalization",
    "GroupNormalization",
    "InstanceNormalization",
    "RMSNormalization",
)
# Where these operators have their state: [running mean, running variance].
_RUNNING = {"BatchNormalization": (3, 4)}


def initial_values(
    graph: Graph, names: Collection[str], *, initialization: str, seed: int, load: Load, precision: str = "float32"
) -> dict[str, np.ndarray]:
    """Values of the parameters and the state called `names`, floats in `precision`.

    initialization   the recipe's: "model" (what the file holds), "he", "glorot", "lecun" or "zeros"
    load             gives values of the model file by name

    Raises:
        DataError: "model", but every matrix among `names` is one number repeated, as in files that hold shapes only.
    """
    if initialization == "model":
        values = {name: np.asarray(value) for name, value in load(names).items()}
        _refuse_placeholders(graph, values)
    else:
        readers = _readers(graph)
        values = {name: _drawn(graph, name, readers.get(name), initialization, seed) for name in names}
    return {name: _in_precision(values[name], precision) for name in names}


def _in_precision(value: np.ndarray, precision: str) -> np.ndarray:
    """A contiguous copy of the caller's own; floats in `precision`."""
    return np.array(value, dtype=precision if value.dtype.kind == "f" else value.dtype, order="C")


def _refuse_placeholders(graph: Graph, values: Mapping[str, np.ndarray]) -> None:
    weights = {n: v for n, v in values.items() if n in set(graph.parameters) and v.ndim > 1 and v.size > 1}
    if weights and all((v == v.flat[0]).all() for v in weights.values()):
        name, value = next(iter(weights.items()))
        raise DataError(
            f"The weights in {graph.name} are placeholders: {name} {list(value.shape)}, say, is {value.flat[0]:g} "
            "throughout. Write "
            '`initialization = "he"` (or glorot, lecun) in the recipe and plan again with `hpdlf plan --recipe RECIPE`.'
        )


def _readers(graph: Graph) -> dict[str, tuple[Operator, int]]:
    """The first operator that reads each tensor, and as which input."""
    found: dict[str, tuple[Operator, int]] = {}
    for operator in graph.operators:
        for place, name in enumerate(operator.inputs):
            found.setdefault(name, (operator, place))
    return found


def fans(operator: Operator | None, place: int, shape: tuple[int, ...]) -> tuple[int, int]:
    """(fan_in, fan_out) of a weight: how many values one output sums up, and how many outputs one value goes into."""
    kind = operator.op_type if operator else ""
    attributes = operator.attributes if operator else {}
    if kind == "Conv":
        window, groups = prod(shape[2:]), int(attributes.get("group", 1))
        return shape[1] * window, shape[0] // groups * window
    if kind == "ConvTranspose":
        window, groups = prod(shape[2:]), int(attributes.get("group", 1))
        return shape[0] // groups * window, shape[1] * window
    rows, columns = shape[-2], shape[-1]
    if kind == "Gemm" and attributes.get("transB" if place == 1 else "transA", 0):
        return columns, rows
    if kind in ("RNN", "GRU", "LSTM"):
        return columns, rows
    if kind == "Gather":  # one row is looked up
        return columns, columns
    return rows, columns


def _drawn(graph: Graph, name: str, reader: tuple[Operator, int] | None, rule: str, seed: int) -> np.ndarray:
    tensor = graph.tensors[name]
    shape = tensor.dims(1)
    operator, place = reader or (None, 0)
    kind = operator.op_type if operator else ""
    if name in graph.state:
        return np.full(shape, 1.0 if place == _RUNNING.get(kind, (0, -1))[1] else 0.0, tensor.dtype)
    if rule == "zeros":
        return np.zeros(shape, tensor.dtype)
    if kind in _NORMALISATIONS:
        return np.full(shape, 1.0 if place == 1 else 0.0)
    if kind == "PRelu":
        return np.full(shape, 0.25)
    if (sum(d > 1 for d in shape) < 2 and kind not in ("Conv", "ConvTranspose", "MatMul", "Gemm")) or kind in (
        "Add",
        "Sub",
        "Sum",
    ):
        return np.full(shape, 1.0 if kind in ("Mul", "Div") else 0.0)
    if len(shape) < 2:
        return np.zeros(shape)  # the bias of a Conv or Gemm
    if kind == "Gemm" and place == 2:
        return np.zeros(shape)
    fan_in, fan_out = (max(1, f) for f in fans(operator, place, shape))
    limit = {"he": sqrt(6 / fan_in), "glorot": sqrt(6 / (fan_in + fan_out)), "lecun": sqrt(3 / fan_in)}[rule]
    return (2 * uniform(prod(shape), seed=seed, purpose=name).reshape(shape) - 1) * limit
