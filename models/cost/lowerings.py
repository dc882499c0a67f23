"""The ways to compute what has several: of every family, which there are for a shape, and which is expected to be fastest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..onnxpp.graph import Operator
from ..onnxpp.hints import DIRECTIONS, WAYS, Direction
from .lowerings_convolution import CONVOLUTIONS, Convolution, convolution_of
from .lowerings_family import Family, Shape
from .lowerings_product import BATCHES, LINEARS, Linear, ProductBatch

__all__ = [
    "DIRECTIONS",
    "FAMILIES",
    "WAYS",
    "Convolution",
    "Direction",
    "Family",
    "Linear",
    "ProductBatch",
    "Shape",
    "convolution_of",
    "expected_way",
    "families_of",
    "family_of",
    "shape_from",
    "shape_of",
    "ways",
]

FAMILIES: tuple[Family, ...] = (CONVOLUTIONS, LINEARS, BATCHES)


def family_of(shape: Shape) -> Family:
    """Whose shape this is."""
    return next(family for family in FAMILIES if isinstance(shape, family.shape))


def families_of(node: Operator) -> tuple[Family, ...]:
    """Those that a node may be of, judging by its operator."""
    return () if node.domain else tuple(family for family in FAMILIES if node.op_type in family.op_types)


def shape_of(node: Operator, operands: Sequence[Sequence[int]]) -> Shape | None:
    """The shape of a node's work by the shapes of its operands; None where it is of no family.

    Raises:
        ModelError: the operands do not fit the node.
    """
    return next((s for f in families_of(node) if (s := f.read(node, operands)) is not None), None)


def shape_from(family: str, numbers: Mapping[str, Any]) -> Shape:
    """A shape of the family of that name, from its fields as JSON gives them."""
    (kind,) = (f.shape for f in FAMILIES if f.name == family)
    shape: Shape = kind(**{name: _tuples(value) for name, value in numbers.items()})
    return shape


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def ways(shape: Shape, direction: Direction) -> tuple[str, ...]:
    """Every way to compute this direction of `shape`, XLA's own first; none where its family has no such direction."""
    family = family_of(shape)
    return family.ways(shape, direction) if direction in family.directions else ()


def expected_way(shape: Shape, direction: Direction, *, kind: str = "cpu", item_bytes: int = 4) -> str:
    """The way that is expected to be the fastest where nothing was measured, on a "cpu" or a "gpu".

    On a GPU XLA calls the vendor's library, which chooses by itself; only what is a product in any case is told as one.
    """
    if kind != "cpu":
        return "matmul" if "matmul" in ways(shape, direction) else "xla"
    return family_of(shape).expected(shape, direction, item_bytes)
