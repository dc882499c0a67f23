"""Col2Im: windows of an image, laid out as columns, added up to the image again."""

from __future__ import annotations

from itertools import product
from math import prod

import jax.numpy as jnp
from jax import Array, lax

from ...errors import ModelError
from ...models.onnxpp.graph import Operator
from .registry import Value, lowers, static
from .window import window_of

__all__ = ["col2im"]


@lowers("Col2Im", since=18)
def col2im(node: Operator, columns: Value, image_shape: Value, block_shape: Value) -> Array:
    """columns (N, C * block, blocks) -> (N, C, *image): each block goes back to its place, overlaps add up.

    The reverse of what a convolution reads, block by block in row-major order.
    """
    image = [int(n) for n in static(node, "image_shape", image_shape)]
    block = [int(n) for n in static(node, "block_shape", block_shape)]
    window = window_of(node, image, block)
    batch, rows, count = columns.shape
    if rows % prod(block) or count != prod(window.output):
        raise ModelError(
            f"Col2Im node {node.name!r}: columns {tuple(columns.shape)} do not fit blocks of {block} in an image of {image}, "
            f"which has {prod(window.output)} of them. Correct the node's strides, pads and dilations."
        )
    taps = jnp.asarray(columns).reshape(batch, -1, prod(block), *window.output)
    total = None
    for number, position in enumerate(product(*map(range, block))):
        config = [(0, 0, 0), (0, 0, 0)]
        for i, k in enumerate(position):
            begin = k * window.dilations[i] - window.pads[i][0]
            end = begin + (window.output[i] - 1) * window.strides[i] + 1
            config.append((begin, image[i] - end, window.strides[i] - 1))
        # Negative pads cut off what lies in the padding around the image.
        placed = lax.pad(taps[:, :, number], jnp.zeros((), taps.dtype), config)
        total = placed if total is None else total + placed
    assert total is not None
    return total
