r"""What the ways of :mod:`.lowerings` spend their time on: the work of each way of each direction, by kind.

``terms(shape, direction, way, item_bytes=4)`` gives the seconds that one reference core would take for each kind of work, at
:data:`FLOPS_PER_S` and :data:`BYTES_PER_S`; :mod:`.lowering_times` has learned how many of them a core really takes. The terms
follow from what each way does (``exec/operators``), made of three things:

* **products** (m x k) by (k x n), `batch` of them: arithmetic (``f``), what vectors of 16 numbers waste at the edges of the
  result (``edge``), thin ones (``thin``: doublings of the least of the three below 64), packing of both operands (``mk``,
  ``kn``), the result (``mn``), more for what exceeds the second-level cache (``_far``), and calls;
* **copies**, of windows into rows, of operands transposed, of tiles transformed: bytes, and more where only few numbers lie
  together (``_narrow``: doublings of those below 16) or where rows lie a power of two apart (``_apart``);
* **sums** of shifted pictures: elements times places in the window, and loops' turns.

>>> from .lowerings_product import Linear
>>> {name: float(f"{s:.2g}") for name, s in terms(Linear(rows=256, wide=64, result=10), "forward", "xla").items() if s}
{'f': 3.3e-06, 'edge': 2e-06, 'edge_one': 6.6e-07, 'thin': 8.8e-06, 'mk': 6.6e-06, 'kn': 2.6e-07, 'mn': 1e-06, 'call': 1e-06}
"""

from __future__ import annotations

from math import ceil, log2, prod

from ..onnxpp.hints import Direction
from .lowerings_convolution import CONVOLUTIONS, Convolution, bundles_of
from .lowerings_family import Shape
from .lowerings_product import BATCHES, LINEARS, Linear, ProductBatch, over_rows_way

__all__ = ["ARITHMETIC", "Terms", "group_of", "terms"]

Terms = dict[str, float]
"""Seconds of the reference core by kind of work."""

FLOPS_PER_S = 1e11
BYTES_PER_S = 1e10
CALL_S = 1e-6
# Of the reference core: numbers in a vector, and what stays in the second-level cache.
VECTOR = 16
CACHE_BYTES = 1 << 20
L1_BYTES = 32 << 10
THIN = 64
ARITHMETIC = frozenset({"f", "edge", "edge_one", "edge_m", "thin", "gathered_f"})
"""The terms that are arithmetic; all others are traffic, and calls."""


def group_of(shape: Shape, direction: Direction, way: str, *, older: bool) -> str:
    """The name under which thetas are learned: the family, direction and way; XLA has several convolutions of its own, and makes
    other kernels around them where the generator is the `older` (:func:`.lowerings_family.older_kernels`). Those of solids, and
    of pictures smaller than the window, are plain loops by both.

    >>> from .lowerings_product import Linear
    >>> group_of(Linear(rows=256, wide=64, result=10), "forward", "xla", older=False)
    'linear forward xla'
    """
    kind = _own_kind(shape, direction) if isinstance(shape, Convolution) and way == "xla" else ""
    by = " older" * (older and kind != " loops")
    return f"{_FAMILIES[type(shape)]} {direction} {way}{kind}{by}"


def _own_kind(conv: Convolution, direction: Direction) -> str:
    """Of which kind XLA's own convolution is."""
    if conv.groups > 1:
        return " grouped" if conv.groups < conv.channels else " depthwise"
    over = {"forward": conv.size, "input": conv.output}.get(direction, conv.kernel)
    if len(conv.kernel) > 2 or any(n < k for n, k in zip(over, conv.kernel, strict=True)):
        return " loops"
    return " point" * (prod(conv.kernel) == 1)


def terms(shape: Shape, direction: Direction, way: str, item_bytes: int = 4) -> Terms:
    """The work of computing a direction of `shape` in `way`, for elements of so many bytes."""
    work = _Work(item_bytes)
    if isinstance(shape, Convolution):
        _CONVOLUTIONS[way](work, shape, direction)
    elif isinstance(shape, Linear):
        _linear(work, shape, direction, way)
    elif isinstance(shape, ProductBatch):
        _products(work, shape, direction, way)
    return work.terms


_FAMILIES: dict[type, str] = {family.shape: family.name for family in (CONVOLUTIONS, LINEARS, BATCHES)}


class _Work:
    """Terms as they add up."""

    def __init__(self, item_bytes: int) -> None:
        self.terms: Terms = {}
        self.item_bytes = item_bytes

    def add(self, name: str, seconds: float) -> None:
        self.terms[name] = self.terms.get(name, 0.0) + seconds

    def arithmetic(self, name: str, flops: float) -> None:
        """Products and sums; vectors have half as many places for numbers twice as long."""
        self.add(name, flops * self.item_bytes / 4 / FLOPS_PER_S)

    def weighed(self, name: str, elements: float, weight: float = 1.0) -> None:
        """Elements read or written, times a weight."""
        self.add(name, elements * self.item_bytes / BYTES_PER_S * weight)

    def moved(self, name: str, elements: float) -> None:
        """Elements read or written, and what of them is beyond the cache."""
        self.weighed(name, elements)
        self.weighed(f"{name}_far", elements, _doublings(elements * self.item_bytes, CACHE_BYTES))

    def product(self, m: float, k: float, n: float, batch: float = 1.0) -> None:
        """`batch` products (m x k) by (k x n)."""
        self.arithmetic("f", 2.0 * batch * m * k * n)
        self.arithmetic("edge", 2.0 * batch * m * k * _edge(n))
        self.arithmetic("edge_one", 2.0 * batch * m * k * (n % 4))
        self.arithmetic("edge_m", 2.0 * batch * k * n * _edge(m))
        self.arithmetic("thin", 2.0 * batch * m * k * n * _doublings(THIN, min(m, k, n)))
        self.moved("mk", batch * m * k)
        self.moved("kn", batch * k * n)
        self.moved("mn", batch * m * n)
        self.add("call", batch * CALL_S)

    def copied(self, elements: float, together: float, apart: float = 1.0) -> None:
        """A copy of elements, so many of which lie together; transposed where rows of `apart` elements become columns."""
        self.moved("copy", elements)
        self.weighed("copy_narrow", elements, _doublings(VECTOR, together))
        self.weighed("copy_apart", elements, _evenness(apart))

    def gathered(self, elements: float, together: int) -> None:
        """Windows that XLA's convolution gathers: vector by vector where so many `together` fill vectors, else one by one."""
        self.weighed("mk_narrow", elements, _doublings(VECTOR, together))
        for width in (2, 4, 8, 16):
            self.weighed(f"mk_by_{width}", elements, together % width > 0)

    def over_rows(self, rows: float, first: int, second: int, way: str) -> None:
        """aᵀ b of a (rows, first) and b (rows, second)."""
        if way in ("swapped", "swapturned"):
            self.moved("result", float(first * second))
            first, second = second, first
        if way in ("turned", "swapturned"):
            self.copied(rows * first, first, first)
        else:
            self.weighed("gathered", rows * first)
            self.weighed("gathered_apart", rows * first, _evenness(first))
            self.arithmetic("gathered_f", 2.0 * rows * first * second * _doublings(rows, 512))
        self.product(first, rows, second)


def _doublings(amount: float, limit: float) -> float:
    """How many times `limit` doubles up to `amount`; 0 where it is more."""
    return log2(amount / limit) if amount > limit > 0 else 0.0


def _edge(n: float) -> float:
    """What the last vector adds to n."""
    return -(-n // VECTOR) * VECTOR - n


def _evenness(n: float) -> float:
    """How often 2 divides n beyond a vector: rows so far apart share few places of a cache."""
    even = int(n) & -int(n)
    return _doublings(min(even, 1024), VECTOR)


# --- products ---------------------------------------------------------------------------------------------------------


def _linear(work: _Work, shape: Linear, direction: Direction, way: str) -> None:
    rows, wide, result = shape.rows, shape.wide, shape.result
    if direction == "weight":
        first, second = (result, wide) if shape.transposed else (wide, result)
        work.over_rows(rows, first, second, way)
        return
    inner, outer = (wide, result) if direction == "forward" else (result, wide)
    across = shape.transposed == (direction == "forward")  # the weight lies with its columns as rows
    if way == "swapped":
        work.product(outer, inner, rows)
        work.moved("result", float(rows * outer))
    else:
        work.product(rows, inner, outer)
        if across:
            work.weighed("across", inner * outer)
            work.weighed("across_apart", inner * outer, _evenness(inner))


def _products(work: _Work, shape: ProductBatch, direction: Direction, way: str) -> None:
    batch, rows, inner, columns = map(float, (shape.batch, shape.rows, shape.inner, shape.columns))
    # y (rows x columns) = a (rows x inner) b (inner x columns): left is y bᵀ, right aᵀ y.
    m, k, n = {"forward": (rows, inner, columns), "left": (rows, columns, inner), "right": (inner, rows, columns)}[
        direction
    ]
    if way in ("swapped", "swapturned"):
        work.moved("result", batch * m * n)
        m, n = n, m
    work.product(m, k, n, batch)
    if way in ("turned", "swapturned"):
        work.copied(batch * m * k, m if direction == "right" else k, m if direction == "right" else k)
    lies_across = (direction == "right") != (way in ("turned", "swapturned"))
    if lies_across:
        work.weighed("gathered", batch * m * k)
        work.weighed("gathered_apart", batch * m * k, _evenness(m))
        work.arithmetic("gathered_f", 2.0 * batch * m * k * n * _doublings(k, 64))


# --- convolutions -----------------------------------------------------------------------------------------------------


def _sizes(conv: Convolution) -> tuple[float, float, int, int, int]:
    """(outputs, inputs) of a channel over all samples, the window's places, and channels of a group, and filters."""
    return (
        float(conv.samples * prod(conv.output)),
        float(conv.samples * prod(conv.size)),
        prod(conv.kernel),
        conv.channels // conv.groups,
        conv.filters,
    )


def _xla(work: _Work, conv: Convolution, direction: Direction) -> None:
    outputs, inputs, window, channels, filters = _sizes(conv)
    depth = window * channels
    work.moved("weight", float(depth * filters))
    if conv.groups > 1:
        _xla_grouped(work, conv, direction)
    elif direction == "forward":
        work.product(outputs, depth, filters)
        work.gathered(outputs * depth, channels)
    elif direction == "input":
        # A convolution of the gradient with the window turned around; zeros that strides put between are left out.
        seen = window * filters / prod(conv.strides)
        work.product(inputs, seen, channels)
        work.gathered(inputs * seen, filters)
        if max(conv.strides) > 1:
            work.moved("spread", inputs * channels)
    else:
        # A convolution of x with the gradient as its window, channels as samples, samples as channels.
        work.copied(inputs * channels, channels, channels)
        work.copied(outputs * filters, filters, filters)
        work.product(depth, outputs, filters)
        work.gathered(outputs * depth, conv.samples)
        # Each place of the window reads a channel's whole pictures.
        work.weighed("mk_picture", outputs * depth, _doublings(inputs * work.item_bytes, L1_BYTES))
        work.weighed("mk_row", outputs * depth, _doublings(VECTOR, conv.output[-1]))


def _xla_grouped(work: _Work, conv: Convolution, direction: Direction) -> None:
    """Plain loops; the weight's gradient multiplies all channels with all."""
    outputs, inputs, window, channels, filters = _sizes(conv)
    seen = inputs if direction == "input" else outputs
    work.moved("sum", seen * filters * channels * window)
    work.moved("in", inputs * conv.channels)
    work.moved("out", outputs * filters)
    if direction == "weight":
        work.arithmetic("f", 2.0 * outputs * filters * conv.channels * window)


def _split(work: _Work, conv: Convolution, direction: Direction) -> None:
    count, one = bundles_of(conv)
    of_one = terms(one, direction, "xla", work.item_bytes)
    for name, seconds in of_one.items():
        work.add(name, count * seconds)
    outputs, inputs, window, _, _ = _sizes(conv)
    # Channels of a bundle are cut out of rows, and kernels made up with zeros or cut out of them.
    work.moved("cut", inputs * conv.channels + outputs * conv.filters)
    work.weighed("cut_kernel", float(count * window * one.channels * one.filters))


def _matmul(work: _Work, conv: Convolution, direction: Direction) -> None:
    outputs, inputs, _, channels, filters = _sizes(conv)
    skips = inputs != outputs
    if direction == "forward":
        work.product(outputs, channels, filters)
    elif direction == "input":
        work.product(outputs, filters, channels)
    else:
        work.over_rows(outputs, filters, channels, over_rows_way(int(outputs), filters, channels))
    if skips:
        work.copied((outputs if direction != "input" else inputs) * channels, channels)


def _im2col(work: _Work, conv: Convolution, direction: Direction) -> None:
    outputs, inputs, window, channels, filters = _sizes(conv)
    depth = window * channels
    work.moved("weight", float(depth * filters))
    if direction == "forward":
        work.copied(outputs * depth, channels)
        work.product(outputs, depth, filters)
    elif direction == "input":
        work.product(outputs, filters, depth)
        # Every element adds up what windows made of it.
        work.moved("sum", inputs * depth)
        work.weighed("sum_narrow", inputs * depth, _doublings(VECTOR, channels))
        work.moved("out", inputs * channels)
    else:
        work.copied(outputs * depth, channels)
        work.over_rows(outputs, filters, depth, over_rows_way(int(outputs), filters, depth))


def _taps(work: _Work, conv: Convolution, direction: Direction) -> None:
    outputs, _, window, channels, filters = _sizes(conv)
    work.moved("weight", float(window * channels * filters))
    work.copied(outputs * channels * window, channels)
    for _ in range(window):
        work.over_rows(outputs, filters, channels, over_rows_way(int(outputs), filters, channels))


def _winograd(work: _Work, conv: Convolution, direction: Direction, tile: int) -> None:
    _, _, _, channels, filters = _sizes(conv)
    places = float((tile + 2) ** 2)
    spread = conv.size if direction == "input" else conv.output
    tiles = float(conv.samples * prod(ceil(n / tile) for n in spread))
    work.moved("kernel", places * channels * filters)
    if direction == "weight":
        for wide in (channels, filters):
            work.moved("tiles", places * tiles * wide)
            work.weighed("tiles_narrow", places * tiles * wide, _doublings(VECTOR, wide))
        work.product(filters, tiles, channels, places)
        work.weighed("gathered", places * tiles * filters)
        return
    inner, outer = (channels, filters) if direction == "forward" else (filters, channels)
    work.moved("tiles", places * tiles * inner)
    work.weighed("tiles_narrow", places * tiles * inner, _doublings(VECTOR, inner))
    work.moved("result", places * tiles * outer)
    work.product(tiles, inner, outer, places)


def _shifted(work: _Work, conv: Convolution, direction: Direction) -> None:
    outputs, inputs, window, _, filters = _sizes(conv)
    strided = prod(conv.strides)
    if direction == "weight":
        turns = min(conv.output[0], conv.samples)
        row = float(prod(conv.output[1:]) * filters)
        work.moved("sum", outputs * filters * window)
        work.moved("totals", turns * row * window)
        work.weighed("totals_cache", outputs * filters * window, _doublings(row * window * work.item_bytes, L1_BYTES))
        work.add("turns", turns * window * CALL_S)
    else:
        # Of the input's gradient every element of the input is a sum over the places of its phase.
        elements = inputs * filters / strided if direction == "input" else outputs * filters
        work.moved("sum", elements * window)
        work.weighed("sum_strided", elements * window, (strided > 1))
        work.weighed("sum_narrow", elements * window, _doublings(VECTOR, filters))
    work.moved("in", inputs * conv.channels)
    work.moved("out", outputs * filters)
    work.add("call", CALL_S)


def _rows(work: _Work, conv: Convolution, direction: Direction) -> None:
    outputs, inputs, window, _, filters = _sizes(conv)
    work.moved("sum", outputs * filters * window)
    work.weighed("sum_short", outputs * filters * window, _doublings(VECTOR, conv.output[-1]))
    work.weighed("sum_narrow", outputs * filters * window, _doublings(2 * VECTOR, filters))
    work.moved("in", inputs * conv.channels)
    work.moved("out", outputs * filters)
    work.add("call", CALL_S)


_CONVOLUTIONS = {
    "xla": _xla,
    "matmul": _matmul,
    "im2col": _im2col,
    "taps": _taps,
    "winograd2": lambda work, conv, direction: _winograd(work, conv, direction, 2),
    "winograd4": lambda work, conv, direction: _winograd(work, conv, direction, 4),
    "shifted": _shifted,
    "rows": _rows,
    "split": _split,
}
