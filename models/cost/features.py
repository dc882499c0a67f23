"""Features that mean the same on every device: an operation's shape relative to tiles, waves and caches, its
arithmetic intensity relative to the ridge, its time at the roofline relative to a launch.

Three groups of operations have features of their own: *products* (matrix products, attention), *convolutions*, and
*rows* (all that streams rows through memory). Each also has a time at the roofline of sustained rates, and the
regression's target is the logarithm of time over that (the negative logarithm of the utilisation).

Tiles: libraries cut the result of a product into tiles (here: the usual sizes from 32 x 32 to 256 x 128), each
computed by one multiprocessor. What a tile covers beyond the matrix is lost (`pad`), and so is the part of the last wave
of tiles that leaves multiprocessors idle (`wave`): NVIDIA, "Matrix Multiplication Background User's Guide", 2023.

Winograd (Lavin, Gray, "Fast algorithms for convolutional neural networks", CVPR 2016): a 3 x 3 convolution of stride 1
needs 16 multiplications for a tile of 2 x 2 results in place of 36, and 36 for one of 4 x 4 in place of 144, where the
transformed tensors go through memory between kernels. Libraries choose among these and the direct product, so the
fastest of the three is the time at the roofline, with what small pictures waste of a tile; the regression says what a
library makes of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .operation import Operation
from .traits import Traits

__all__ = ["CONTEXTS", "GROUPS", "Features", "features", "group_of"]

Array = NDArray[np.float64]

GROUPS = ("product", "convolution", "rows")
# Software whose operators were measured: PyTorch 2 in eager mode, the vendors' libraries called directly (2016 to 2018),
# TensorFlow 1, cuBLAS and flash attention as training frameworks call them for half precision (2024), and PyTorch's
# operators timed inside of networks in place of one by one.
CONTEXTS = ("pytorch", "library", "tensorflow", "framework", "network")
TILES = ((256, 128), (128, 128), (128, 64), (64, 128), (64, 64), (32, 128), (128, 32), (32, 32))
WINOGRAD_SAVES = 2.25
# The rate of normalising over the batch, over that of other streams: no table has it alone; from whole steps of ResNet-50 on one V100
# and one A100 (NVIDIA's DeepLearningExamples), where it is all that the other operators' measured times leave.
BATCH_NORMALISES = 0.8
PHASES = ("forward", "backward_input", "backward_weight", "training")
PRECISIONS = ("float64", "float32", "tf32", "bfloat16", "float16", "float8", "int8")
# The finer kinds of rows that cost differently; what is not named goes by its family.
ROW_KINDS = {
    name: i
    for i, names in enumerate(
        (
            "add mul sub div sum mean max min where masked_fill",
            "relu neg abs clip cast",
            "tanh sigmoid gelu exp erf softplus hardswish hardsigmoid elu",
            "powu",
            "pow",
            "layernormalization rmsnormalization",
            "softmax logsoftmax",
            "batchnormalization instancenormalization groupnormalization",
            "dropout",
        )
    )
    for name in names.split()
}
ROW_FAMILIES = {
    name: 20 + i
    for i, name in enumerate(("elementwise", "normalisation", "softmax", "reduction", "pooling", "gather", "movement",
                              "loss", "update", "rnn"))
}  # fmt: skip


class Features(NamedTuple):
    """`rows` (n, features) and seconds at the roofline of sustained rates (n,)."""

    rows: Array
    roof_s: Array


def group_of(family: str) -> str:
    """The group of features that a family of operations has."""
    if family in ("matmul", "attention", "rnn"):
        return "product"
    return "convolution" if family == "conv" else "rows"


def features(
    group: str,
    operations: Sequence[Operation],
    traits: Sequence[Traits],
    launch_s: Sequence[float] | Array,
    context: Sequence[int] | NDArray[np.int64],
) -> Features:
    """Features of `operations`, all of one group, each on the device with the traits beside it, where a call costs
    `launch_s` and the software is `context` (an index of :data:`CONTEXTS`).
    """
    make = {"product": _products, "convolution": _convolutions, "rows": _rows}[group]
    of_device = np.array([(t.matrix_flops_per_s, t.vector_flops_per_s, t.bandwidth_bytes_per_s, t.units, t.l2_bytes,
                           launch, t.generation)
                          for t, launch in zip(traits, launch_s, strict=True)]).reshape(-1, 7)  # fmt: skip
    common = np.array(
        [
            (o.flops, o.read_bytes, o.write_bytes, o.item_bytes, PHASES.index(o.phase) if o.phase in PHASES else 0,
             PRECISIONS.index(o.precision))
            for o in operations
        ]
    ).reshape(-1, 6)  # fmt: skip
    dims = np.array([o.dims for o in operations], dtype=float)
    kinds = [o.op for o in operations]
    families = [o.family for o in operations]
    return make(dims, common, of_device, np.asarray(context, float), kinds, families)


def _log2(x: Array) -> Array:
    return np.log2(np.maximum(x, 1e-30))


def _finish(columns: list[Array], compute_s: Array, memory_s: Array, launch_s: Array) -> Features:
    roof_s = np.maximum(np.maximum(compute_s, memory_s), 1e-12)
    return Features(np.column_stack([_log2(roof_s / launch_s), *columns]), roof_s)


def _tiles(m: Array, n: Array, batch: Array, units: Array, sizes: Sequence[tuple[int, int]] = TILES) -> list[Array]:
    """For each size of tile: the share of the tiles that the matrix covers, waves, and the share of busy units."""
    found = []
    for a, b in sizes:
        across, down = np.ceil(m / a), np.ceil(n / b)
        waves = batch * across * down / units
        pad = m * n / (across * a * down * b)
        found += [pad, _log2(waves), pad * waves / np.ceil(waves)]
    return found


def _divisible(x: Array) -> Array:
    """How many times 2 divides x, up to 5: what wide loads and matrix units ask for."""
    n = x.astype(np.int64)
    return np.sum([n % 2**i == 0 for i in range(1, 6)], axis=0, dtype=float)


def _products(
    dims: Array, common: Array, device: Array, context: Array, kinds: Sequence[str], families: Sequence[str]
) -> Features:
    batch, m, n, k = dims.T
    flops, read, write, item, phase, precision = common.T
    peak, _, bandwidth, units, l2, launch, generation = device.T
    operands = read
    batched = np.array([kind == "bmm" for kind in kinds], float)
    attention = np.array([("matmul", "rnn", "attention").index(family) for family in families], float)
    columns = [
        _log2(flops / peak) - _log2((read + write) / bandwidth), _log2(batch), _log2(m), _log2(n), _log2(k),
        _log2(m / n), _log2(np.minimum(m, n)), _log2(np.maximum(m, n)),
        batched, attention, *_tiles(m, n, batch, units), _divisible(m), _divisible(n), _divisible(k),
        _log2(operands / batch / l2), _log2((read + write) / l2), phase, precision, item, context, generation,
    ]  # fmt: skip
    return _finish(columns, flops / peak, (read + write) / bandwidth, launch)


def _convolutions(
    dims: Array, common: Array, device: Array, context: Array, kinds: Sequence[str], families: Sequence[str]
) -> Features:
    n, c, k, r, s, p, q, stride, groups = dims.T
    flops, read, write, item, phase, precision = common.T
    peak, _, bandwidth, units, l2, launch, generation = device.T
    traffic = read + write
    positions = n * p * q
    depth = c / groups * r * s
    # Its three products: result (positions by filters), data (positions by channels), weights (filters by depth).
    rows = np.where(phase == 0, positions, np.where(phase == 1, positions * stride**2, k / groups))
    across = np.where(phase == 0, k / groups, np.where(phase == 1, c / groups, depth))
    inner = np.where(phase == 0, depth, np.where(phase == 1, k / groups * r * s, positions))
    direct_s = np.maximum(flops / peak, traffic / bandwidth)
    able = (r == 3) & (s == 3) & (stride == 1) & (groups == 1) & (precision <= 1) & (phase != 2)
    small, large = (n * np.ceil(p / a) * np.ceil(q / a) for a in (2, 4))
    times = np.where(phase == 3, 2.0, 1.0)  # a training step does the forward product and one gradient
    fused_s = np.maximum(2 * 16 * small * c * k * times / peak, traffic / bandwidth)
    # The larger tiles' transforms go through memory: written by one kernel, read by the next.
    through = traffic + 2 * 36 * item * (large * (c + k) + c * k) * times
    apart_s = 2 * 36 * large * c * k * times / peak + through / bandwidth
    fused_s, apart_s = (np.where(able, t, direct_s) for t in (fused_s, apart_s))
    roof_s = np.minimum(np.minimum(direct_s, fused_s), apart_s)
    columns = [
        _log2(n), _log2(c), _log2(k), r, s, _log2(p * q), _log2(rows), _log2(across), _log2(inner), stride,
        _log2(groups), ((groups > 1) & (groups == c)).astype(float), able.astype(float),
        _log2(fused_s / direct_s), _log2(apart_s / direct_s), _log2(flops / peak) - _log2(traffic / bandwidth),
        p * q / (4 * np.ceil(p / 2) * np.ceil(q / 2)), p * q / (16 * np.ceil(p / 4) * np.ceil(q / 4)), _log2(large),
        *_tiles(rows, across, groups, units, TILES[1:3]), *_tiles(large, k, np.full_like(n, 36.0), units, TILES[1:6:2]),
        *_tiles(small, k, np.ones_like(n), units, TILES[1::6]),
        _divisible(c), _divisible(k), _divisible(p), p, _log2(traffic / l2), _log2(k * depth * item / l2), phase,
        precision, item, context, np.sign(generation),
    ]  # fmt: skip
    return _finish(columns, roof_s, traffic / bandwidth, launch)


def _rows(
    dims: Array, common: Array, device: Array, context: Array, kinds: Sequence[str], families: Sequence[str]
) -> Features:
    rows, width = dims.T
    flops, read, write, item, phase, _ = common.T
    _, peak, bandwidth, units, l2, launch, generation = device.T
    kind = np.array(
        [ROW_KINDS.get(name, ROW_FAMILIES.get(family, 20)) for name, family in zip(kinds, families, strict=True)], float
    )
    # A normalisation over the batch streams too, at the rate below.
    batched = np.array([name == "batchnormalization" for name in kinds], bool)
    read, write = (nbytes / np.where(batched, BATCH_NORMALISES, 1.0) for nbytes in (read, write))
    operands = np.where(batched, 2.0, read / np.maximum(write, 1.0))
    # The bytes say all there is to the backward pass of what only streams. Two operands to one result are as a sum's, where no such
    # kernel was measured: it was inside of networks alone.
    streams = batched | np.array([family in ("elementwise", "movement", "pooling") for family in families], bool)
    phase = np.where(streams, 0.0, phase)
    simple = batched | np.isin(kind, [ROW_KINDS["relu"], ROW_KINDS["tanh"]])
    unseen = batched | (context != CONTEXTS.index("network"))
    kind = np.where(simple & (operands >= 1.5) & unseen, float(ROW_KINDS["add"]), kind)
    columns = [
        _log2(rows), _log2(width), _log2(read + write), kind, np.minimum(operands, 8.0), _log2((read + write) / l2),
        _log2(width * item), rows / units / np.maximum(np.ceil(rows / units), 1.0), _log2(rows / units),
        _divisible(width), width / (256 * np.ceil(width / 256)), phase, item, context, generation,
    ]  # fmt: skip
    return _finish(columns, flops / peak, (read + write) / bandwidth, launch)
