"""The ways to compute what has several: of every family, which there are for a shape, and which is expected to be fastest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..onnxpp.graph import Operator
from ..onnxpp.hints import DIRECTIONS, WAYS, Direction
from .lowering_times import ONE_CORE, LoweringTimes, Processor
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
    "Processor",
    "ProductBatch",
    "Shape",
    "among_others",
    "convolution_of",
    "expected_seconds",
    "expected_way",
    "families_of",
    "family_of",
    "shape_from",
    "shape_named",
    "shape_of",
    "ways",
]

OWN_AMONG_OTHERS = 1.3

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


def shape_named(key: str) -> Shape:
    """The shape whose key this is.

    Raises:
        ValueError: it is none.
    """
    for family in FAMILIES:
        if key.startswith(f"{family.name} "):
            shape: Shape = family.shape.from_key(key)
            return shape
    raise ValueError(f"{key!r} is the key of no shape")


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def ways(shape: Shape, direction: Direction) -> tuple[str, ...]:
    """Every way to compute this direction of `shape` that is worth a try on a processor, XLA's own first if it is one; none
    where the family has no such direction."""
    family = family_of(shape)
    return family.ways(shape, direction) if direction in family.directions else ()


def expected_way(shape: Shape, direction: Direction, on: Processor = ONE_CORE, *, item_bytes: int = 4) -> str:
    """The way that is expected to be the fastest where nothing was measured, for elements of so many bytes: the one that takes
    least by :class:`LoweringTimes`, of two that take the same the first.

    On a GPU XLA calls the vendor's library, which chooses by itself; only what is a product in any case is told as one. So it
    is for elements of fewer than 4 bytes on a processor, apart from groups: sums outside of products would round in that type,
    and nobody measured them.
    """
    able = ways(shape, direction)
    if on.kind != "cpu" or item_bytes < 4:
        whole = ("matmul", "split") if on.kind == "cpu" else ("matmul",)
        return next((way for way in whole if way in able), "xla")
    if len(able) == 1 or "matmul" in able:
        return able[-1]  # XLA's own convolution by windows of one is plain loops now and then
    times = LoweringTimes.default()

    def seconds(way: str) -> float:
        alone = times.seconds(shape, direction, way, on, item_bytes=item_bytes)
        return alone * among_others(shape, direction, way)

    return min(able, key=seconds)


def among_others(shape: Shape, direction: Direction, way: str) -> float:
    """How many times as long a way takes in a network as alone, beside what all ways do.

    XLA's own gradient of a convolution's weights transposes both operands and the result, and what is fused around it then goes
    through memory the other way: a step of a ResNet-18 at 64 x 64 takes 50 ms on two cores of an AMD EPYC (Zen 5) if its three
    layers of 512 channels at 2 x 2 copy windows, and 62 ms by XLA's own, which alone are as fast.
    """
    own = isinstance(shape, Convolution) and direction == "weight" and way == "xla"
    return OWN_AMONG_OTHERS if own else 1.0


def expected_seconds(
    shape: Shape, direction: Direction, way: str, on: Processor, *, item_bytes: int = 4
) -> float | None:
    """What `way` is expected to take; None where nobody knows (on a GPU, or for elements of fewer than 4 bytes)."""
    if on.kind != "cpu" or item_bytes < 4:
        return None
    return LoweringTimes.default().seconds(shape, direction, way, on, item_bytes=item_bytes)
