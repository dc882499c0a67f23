"""Matrix products, with a weight and in batches: their shapes, the ways to compute them and their gradients.

XLA's own product on a processor is one of two libraries. A left operand that lies by rows goes to one that shares a product's
tiles among threads, but never the products of a batch; a left operand that is contracted over its rows goes to another, which
gathers it element by element but shares a batch among threads. So a transposed copy before (or the other operand first, and
the result transposed) may pay, and which of them does depends on sizes and threads.

============ =============================================================================
way          what is done
============ =============================================================================
xla          XLA's own product of the operands as they lie
turned       a transposed copy of the left operand first
swapped      the right operand stands on the left, and the result is transposed
swapturned   both: a transposed copy of the right operand stands on the left
============ =============================================================================
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from ..onnxpp.graph import Operator
from ..onnxpp.hints import Direction
from .lowerings_family import Family

__all__ = ["BATCHES", "LINEARS", "Linear", "ProductBatch", "batch_of", "linear_of", "linear_shape", "over_rows_way"]

# Rows from which it pays to transpose the result, which is as large with few rows.
MANY_ROWS = 256
# Columns from which a transposed copy pays.
WIDE = 128
# Of what convolutions promise, FLOP by FLOP.
GAIN = 0.2


@dataclass(frozen=True, kw_only=True)
class Linear:
    """The shape of x (rows, wide) by a weight (wide, result), which lies as (result, wide) where it is `transposed`."""

    rows: int
    wide: int
    result: int
    transposed: bool = False

    @property
    def key(self) -> str:
        """Names this shape and no other.

        >>> Linear(rows=1024, wide=768, result=3072, transposed=True).key
        'linear 1024x768 to 3072 transposed'
        """
        return f"linear {self.rows}x{self.wide} to {self.result}{' transposed' * self.transposed}"

    @classmethod
    def from_key(cls, key: str) -> Linear:
        """The shape of that key; ValueError where it is none."""
        found = re.fullmatch(r"linear (\d+)x(\d+) to (\d+)( transposed)?", key)
        if not found:
            raise ValueError(f"{key!r} is no key of a linear layer")
        rows, wide, result = map(int, found.group(1, 2, 3))
        return cls(rows=rows, wide=wide, result=result, transposed=bool(found[4]))

    @property
    def count(self) -> int:
        """Rows."""
        return self.rows

    @property
    def brief(self) -> str:
        """For people."""
        return f"{self.rows}x{self.wide} to {self.result}{', transposed' * self.transposed}"

    @property
    def flops(self) -> float:
        """Of each direction."""
        return 2.0 * self.rows * self.wide * self.result


@dataclass(frozen=True, kw_only=True)
class ProductBatch:
    """The shape of `batch` products (rows, inner) by (inner, columns), whatever dims the batch has."""

    batch: int
    rows: int
    inner: int
    columns: int

    @property
    def key(self) -> str:
        """Names this shape and no other.

        >>> ProductBatch(batch=96, rows=128, inner=64, columns=128).key
        'products 96x128x64 by 64x128'
        """
        return f"products {self.batch}x{self.rows}x{self.inner} by {self.inner}x{self.columns}"

    @classmethod
    def from_key(cls, key: str) -> ProductBatch:
        """The shape of that key; ValueError where it is none."""
        found = re.fullmatch(r"products (\d+)x(\d+)x(\d+) by (\d+)x(\d+)", key)
        if not found or found[3] != found[4]:
            raise ValueError(f"{key!r} is no key of a batch of products")
        batch, rows, inner, columns = map(int, found.group(1, 2, 3, 5))
        return cls(batch=batch, rows=rows, inner=inner, columns=columns)

    @property
    def count(self) -> int:
        """Products."""
        return self.batch

    @property
    def brief(self) -> str:
        """For people.

        >>> ProductBatch(batch=96, rows=128, inner=64, columns=128).brief
        '96 times 128x64 by 64x128'
        """
        return f"{self.batch} times {self.rows}x{self.inner} by {self.inner}x{self.columns}"

    @property
    def flops(self) -> float:
        """Of each direction."""
        return 2.0 * self.batch * self.rows * self.inner * self.columns


# --- with a weight ----------------------------------------------------------------------------------------------------


def linear_shape(x: Sequence[int], w: Sequence[int], *, transposed: bool = False) -> Linear | None:
    """x (..., K) by w (K, M), or (M, K) where it lies transposed; None where this is no such product, or an empty one."""
    if len(x) < 2 or len(w) != 2 or not prod((*x, *w)) or x[-1] != w[1 if transposed else 0]:
        return None
    return Linear(
        rows=prod(x[:-1]), wide=int(x[-1]), result=int(w[0 if transposed else 1]), transposed=bool(transposed)
    )


def linear_of(node: Operator, operands: Sequence[Sequence[int]]) -> Linear | None:
    """The shape of a MatMul's or Gemm's work, if its right operand has two dims."""
    x, w = operands[:2]
    if node.op_type == "MatMul":
        return linear_shape(x, w)
    x = tuple(reversed(x)) if node.attributes.get("transA", 0) else x
    return linear_shape(x, w, transposed=bool(node.attributes.get("transB", 0)))


def _linear_ways(linear: Linear, direction: Direction) -> tuple[str, ...]:
    if direction == "weight":
        return ("xla", "turned", "swapped", "swapturned")
    # Where the weight lies as a product wants it there is nothing better.
    return ("xla", "swapped") if linear.transposed == (direction == "forward") else ("xla",)


def over_rows_way(rows: int, first: int, second: int) -> str:
    """The way in which sums over rows inside of other operators' ways are computed: aᵀ b of a (rows, first) and b (rows, second).

    The narrower operand stands on the left, and is transposed before where it is wide enough for that to pay. Measured on two
    cores of an AMD EPYC (Zen 4) with jaxlib 0.10.2 in float32, milliseconds:

    ===================== ====== ====== ======= ==========
    rows x first, second     xla turned swapped swapturned
    ===================== ====== ====== ======= ==========
    1,024 x 768, 3,072      26.5   23.7    29.2       30.7
    2,048 x 2,048, 512      27.3   27.1    26.8       22.5
    25,088 x 64, 64         2.36   3.24    2.31       3.21
    25,088 x 256, 64         9.7    8.6     7.1        6.7
    256 x 2,048, 10         0.94   0.92    0.15       0.12
    16 x 2,048, 2,048       1.64   0.92    3.57       2.71
    8 x 2,048, 1,000        0.42   0.47    2.08       1.86
    ===================== ====== ====== ======= ==========
    """
    swapped = first > second and rows >= MANY_ROWS
    turned = (second if swapped else first) >= WIDE
    return ("xla", "turned", "swapped", "swapturned")[2 * swapped + turned]


def _linear_promise(linear: Linear, direction: Direction) -> float:
    return GAIN * linear.flops


LINEARS = Family(
    name="linear",
    op_types=frozenset({"MatMul", "Gemm"}),
    shape=Linear,
    directions={"forward": None, "input": 0, "weight": 1},
    read=linear_of,
    ways=_linear_ways,
    promise=_linear_promise,
)


# --- in batches -------------------------------------------------------------------------------------------------------


def batch_of(node: Operator, operands: Sequence[Sequence[int]]) -> ProductBatch | None:
    """The shape of a MatMul's work, if both operands have the same dims before the last two."""
    a, b = operands[:2]
    if node.op_type != "MatMul" or min(len(a), len(b)) < 3 or tuple(a[:-2]) != tuple(b[:-2]):
        return None
    if not prod((*a, *b)) or a[-1] != b[-2]:
        return None
    return ProductBatch(batch=prod(a[:-2]), rows=int(a[-2]), inner=int(a[-1]), columns=int(b[-1]))


def _batch_ways(products: ProductBatch, direction: Direction) -> tuple[str, ...]:
    """What XLA computes as it lies has a left operand by rows forward and for the gradient of the left operand; there other
    forms never won."""
    return ("xla", "turned", "swapped", "swapturned") if direction == "right" else ("xla", "turned")


def _batch_promise(products: ProductBatch, direction: Direction) -> float:
    return GAIN * products.flops


BATCHES = Family(
    name="products",
    op_types=frozenset({"MatMul"}),
    shape=ProductBatch,
    directions={"forward": None, "left": 0, "right": 1},
    read=batch_of,
    ways=_batch_ways,
    promise=_batch_promise,
)
