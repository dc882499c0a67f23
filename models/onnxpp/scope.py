"""What a walk over a graph works on: nodes, decoded once; the values of one graph at one batch size; what comes out."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

from onnx import GraphProto, NodeProto

from .arithmetic import plain_attributes
from .known import Known

__all__ = ["BATCH", "RANDOM", "SHAPE_OPERANDS", "Found", "Node", "Scope", "Shapes", "UnknownShapeError"]

BATCH = "batch"
RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial")

# Operands whose values a result's shape depends on, by operator.
BY_SECOND = (
    "Reshape Expand Tile TopK OneHot Squeeze Unsqueeze Split SplitToSequence CenterCropPad Upsample AffineGrid "
    "ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceSumSquare"
)
SHAPE_OPERANDS: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(BY_SECOND.split(), (1,)),
    "Slice": (1, 2, 3, 4),
    "Pad": (1, 3),
    "Resize": (1, 2, 3),
    "ConstantOfShape": (0,),
    "Range": (0, 1, 2),
    "Col2Im": (1, 2),
    "MaxUnpool": (2,),
    "DFT": (1, 2),
    "STFT": (1, 3),
    "MelWeightMatrix": (0, 1, 2, 3, 4),
    "HannWindow": (0,),
    "HammingWindow": (0,),
    "BlackmanWindow": (0,),
}


class UnknownShapeError(Exception):
    """A result's shape cannot be known, or operands do not fit: one sentence without the node's name."""


class Node:
    """One node, decoded once for all batch sizes."""

    def __init__(self, proto: NodeProto, versions: Mapping[str, int], name: str = "") -> None:
        self.proto = proto
        self.name, self.op_type = name or proto.name, proto.op_type
        self.domain = "" if proto.domain == "ai.onnx" else proto.domain
        self.version = versions.get(self.domain, 1)
        self.inputs, self.outputs = list(proto.input), list(proto.output)
        self.key: tuple[object, ...] = (
            self.op_type,
            self.domain,
            b"".join([a.SerializeToString(deterministic=True) for a in proto.attribute]),
            len(self.inputs),
            tuple([bool(name) for name in self.outputs]),
        )

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """Attributes as Python values, without graphs."""
        return plain_attributes(self.proto)

    @cached_property
    def bodies(self) -> dict[str, GraphProto]:
        """Attributes that are graphs."""
        return {a.name: a.g for a in self.proto.attribute if a.HasField("g")}

    def __str__(self) -> str:
        return f"node {self.name!r} ({self.op_type})"


class Scope:
    """The values of one graph at one batch size; names that it does not have are those of the graph around it."""

    def __init__(self, outer: Scope | None, path: str, size: int) -> None:
        self.known: dict[str, Known] = {}
        self.outer, self.path, self.size = outer, path, size

    def get(self, name: str) -> Known | None:
        """What is known of a value that is visible here."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.known:
                return scope.known[name]
            scope = scope.outer
        return None


class Found(NamedTuple):
    """A tensor's type, its dimensions as (fixed, per sample), and the axes on which these are the most there can be."""

    dtype: str
    dims: tuple[tuple[int, int], ...]
    loose: tuple[int, ...]


class Shapes(NamedTuple):
    """What a walk found.

    tensors   of the main graph, by name
    bodies    of graphs inside operators: {path: tensors}; a path is NODE/ATTRIBUTE, and so on inwards
    branches  the branch that each If of the main graph takes, where its condition is known
    trips     how often each Loop and Scan runs its body, at most, by path of the node, where that is known
    edits     what to change so that a fixed batch becomes symbolic (see :mod:`.release`)
    problems  why there is nothing of all this
    """

    tensors: dict[str, Found]
    bodies: dict[str, dict[str, Found]]
    branches: dict[str, str]
    trips: dict[str, tuple[int, int]]
    edits: list[dict[str, Any]]
    problems: list[str]
