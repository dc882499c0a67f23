"""The graph that everything after the import works on: operators in order, tensors of shapes affine in the batch size.

A :class:`Graph` is what an ONNX++ file says, without its weights. Operators that depend on constants alone are not
part of it: their results are parameters or constants, whose values :func:`hpdlf.models.onnxpp.load_values` computes
when a run needs them.

>>> image = Tensor(name="x", dtype="float32", shape=(Dim(per_sample=1), Dim(3), Dim(8), Dim(8)))
>>> image.dims(batch=4), image.nbytes(batch=4)
((4, 3, 8, 8), 3072)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from math import prod
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Body", "Dim", "Graph", "Operator", "Tensor"]


class Dim(NamedTuple):
    """A dimension ``fixed + per_sample * batch``."""

    fixed: int = 0
    per_sample: int = 0

    def at(self, batch: int) -> int:
        """The dimension for `batch` samples."""
        return self.fixed + self.per_sample * batch

    def __str__(self) -> str:
        if not self.per_sample:
            return str(self.fixed)
        text = "batch" if self.per_sample == 1 else f"{self.per_sample}*batch"
        return f"{self.fixed}+{text}" if self.fixed else text


@dataclass(frozen=True, kw_only=True, slots=True)
class Tensor:
    """A named tensor; `dtype` is NumPy's name of the element type ("float32", "int64", "bfloat16").

    On the axes `at_most` the size depends on data, and the shape says the most that it can be. A sequence's first
    dimension is its length, the others are its elements'; its dtype is "sequence(float32)", say.
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...]
    at_most: tuple[int, ...] = ()

    def dims(self, batch: int) -> tuple[int, ...]:
        """The shape for `batch` samples."""
        return tuple(d.at(batch) for d in self.shape)

    def elements(self, batch: int) -> int:
        """The number of elements for `batch` samples."""
        return prod(self.dims(batch))

    def nbytes(self, batch: int, precision: str | None = None) -> int:
        """Bytes for `batch` samples; `precision`, a plan's working one, replaces the dtype of float tensors."""
        dtype = precision if precision and self.is_float else self.dtype
        return (self.elements(batch) * item_bits(dtype) + 7) // 8

    @property
    def is_float(self) -> bool:
        """Whether a gradient can flow through this tensor."""
        return "float" in self.dtype and "(" not in self.dtype


def item_bytes(dtype: str) -> int:
    """Bytes of one element, rounded up; knows the types that NumPy does not.

    >>> item_bytes("bfloat16"), item_bytes("float8_e4m3fn"), item_bytes("sequence(map(int64,float32))")
    (2, 1, 12)
    """
    return (item_bits(dtype) + 7) // 8


_BITS = {"bfloat16": 16, "string": 64, "int4": 4, "uint4": 4, "float4_e2m1fn": 4, "int2": 2, "uint2": 2}


@cache
def item_bits(dtype: str) -> int:
    """Bits of one element: types of less than a byte are packed. A text counts as the reference to it."""
    if dtype in _BITS:
        return _BITS[dtype]
    if "(" in dtype:
        parts = dtype.partition("(")[2].removesuffix(")")
        return sum(item_bits(part) for part in ([parts] if "(" in parts else parts.split(",")))
    if dtype.startswith("float8"):
        return 8
    return 8 * np.dtype(dtype).itemsize


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One ONNX node that depends on data. Absent optional inputs are ''.

    `family` groups operators that cost alike: "matmul", "conv", "normalisation", "softmax", "elementwise", "pooling",
    "gather", "reduction", "movement" (data movement that copies), "view" (none: reshapes), "rnn", "loss".

    An operator with graphs of its own (If, Loop, Scan) has them among its `attributes` as :class:`Body`. What they read
    of the graph around them is listed in `captured`, and once more at the end of `inputs`: dependencies are complete.
    `trips` is how often a Loop's or Scan's body runs at most; None where that is not known.

    `lowering` says how to compute a direction ("forward", or the gradient of an operand, see
    :data:`.hints.Direction`), where a plan has chosen among several ways.
    """

    name: str
    op_type: str
    domain: str = ""
    family: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    captured: tuple[str, ...] = ()
    trips: Dim | None = None
    lowering: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Body:
    """A graph that takes values and gives values: a branch of If, the body of Loop or Scan, a function, a whole file.

    `constants` are its initializers by name, `opsets` the version of every domain ("" is the standard's own), `reads`
    the tensors of the graph around it that it uses. `tensors` are types and shapes of what it computes, where the file
    states them (an import does).
    """

    name: str
    opsets: Mapping[str, int]
    operators: tuple[Operator, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)
    reads: tuple[str, ...] = ()
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A model as the rest of the house sees it. `operators` are in topological order and their names unique.

    inputs      data fed every step, labels excluded
    targets     inputs that only the loss reads (labels)
    outputs     the model's own outputs: its predictions
    loss        the scalar to minimise, or None
    parameters  float tensors to train
    state       tensors that the forward pass updates: {tensor: name of the value that replaces it} (running statistics)
    constants   every other tensor with a value known before the run (initializers, folded subgraphs)
    domains     versions of the other operator sets, by domain ("ai.onnx.ml")
    fixed_batch the samples of one run, where the batch cannot be symbolic: all shapes are those of so many
    """

    name: str
    opset: int
    operators: tuple[Operator, ...]
    tensors: Mapping[str, Tensor]
    inputs: tuple[str, ...]
    targets: tuple[str, ...]
    outputs: tuple[str, ...]
    loss: str | None
    parameters: tuple[str, ...]
    state: Mapping[str, str]
    constants: tuple[str, ...]
    domains: Mapping[str, int] = field(default_factory=dict)
    fixed_batch: int | None = None

    @property
    def opsets(self) -> Mapping[str, int]:
        """The version of every domain's operator set; "" is the standard's own."""
        return {**self.domains, "": self.opset}

    @cached_property
    def operator(self) -> Mapping[str, Operator]:
        """Operators by name."""
        return {o.name: o for o in self.operators}

    @cached_property
    def producer(self) -> Mapping[str, Operator]:
        """The operator that computes a tensor, by the tensor's name."""
        return {t: o for o in self.operators for t in o.outputs if t}

    @cached_property
    def trainable(self) -> frozenset[str]:
        """The parameters, as a set."""
        return frozenset(self.parameters)

    @cached_property
    def fixed(self) -> frozenset[str]:
        """Tensors that pass no gradient on: parameters (theirs ends there), state and constants."""
        return frozenset((*self.parameters, *self.state, *self.constants))

    @property
    def parameter_count(self) -> int:
        """Trainable elements."""
        return sum(self.tensors[p].elements(1) for p in self.parameters)

    def parameter_bytes(self, precision: str | None = None) -> int:
        """Bytes of all trainable parameters."""
        return sum(self.tensors[p].nbytes(1, precision) for p in self.parameters)
