"""What a family of computations is: a kind of shape, its directions, and the ways to compute each of them.

All ways of a direction mean the same and differ by rounding alone; ``exec/operators`` has a function for each, and
:mod:`.lowering_terms` says what it spends its time on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..onnxpp.graph import Operator
from ..onnxpp.hints import Direction

__all__ = ["Family", "Shape", "older_kernels"]


def older_kernels(convolutional: bool, threads: int) -> bool:
    """Whether XLA compiles by its older generator of kernels what runs on so many threads: networks with convolutions on one
    core, for less memory (``exec/compiling.py``). Its kernels differ most in copies that change a layout.
    """
    return convolutional and threads == 1


class Shape(Protocol):
    """The shape of a computation: a frozen dataclass of numbers, and tuples of them; ``from_key`` of its class reads a key."""

    @property
    def key(self) -> str:
        """Names this shape and no other: the family's name, :attr:`count`, "x", and the rest."""

    @property
    def count(self) -> int:
        """How many samples, rows or products there are: the size that changes with the batch."""

    @property
    def brief(self) -> str:
        """The same for people, without what is usual."""

    @property
    def flops(self) -> float:
        """Of each direction, a product and a sum being two."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """Computations that are read off nodes, measured and chosen alike.

    name        the first word of the shapes' keys
    op_types    of the standard's operators whose nodes may be computations of this family
    shape       the class of the shapes
    directions  what is computed: each direction with the number of the operand whose gradient it is, None of the result
    read        (node, shapes of its operands) -> the shape of its work; None where the node is none of this family
    ways        (shape, direction) -> every way that is worth a try, XLA's own first where it is
    promise     (shape, direction) -> what a measurement may save, in FLOP: a guess, by which tuning is ordered
    """

    name: str
    op_types: frozenset[str]
    shape: type[Any]
    directions: Mapping[Direction, int | None]
    read: Callable[[Operator, Sequence[Sequence[int]]], Any]
    ways: Callable[[Any, Direction], tuple[str, ...]]
    promise: Callable[[Any, Direction], float]
