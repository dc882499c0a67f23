"""Which of several ways a node is computed in."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...errors import ModelError
from ...models.cost.lowerings import Direction, Processor, Shape, expected_way, family_of, ways
from ...models.onnxpp.graph import Operator
from ..affinity import allowed_cpus

__all__ = ["way_of", "ways_of"]


def way_of(node: Operator, shape: Shape, direction: Direction, dtype: Any = np.float32) -> str:
    """What the node's hint says, else what is expected to be fastest for elements of type `dtype`: with a thread for each CPU
    of this process, on the machine that was learned from, since nobody has said what this one does.

    Raises ModelError where the hint is none of the ways to compute this shape.
    """
    hint = node.lowering.get(direction)
    if hint is not None:
        if hint not in ways(shape, direction):
            raise ModelError(
                f"{node.op_type} node {node.name!r}: its {direction} lowering {hint!r} cannot compute {shape.key}; there are "
                f"{', '.join(ways(shape, direction))}. Plan the model again with `hpdlf plan`."
            )
        return hint
    on = Processor(threads=len(allowed_cpus())) if jax.default_backend() == "cpu" else Processor(kind="gpu")
    return expected_way(shape, direction, on, item_bytes=jnp.dtype(dtype).itemsize)


def ways_of(node: Operator, shape: Shape, dtype: Any = np.float32) -> tuple[str, str, str]:
    """Of the forward pass, the first operand's gradient and the second's."""
    forward, first, second = (way_of(node, shape, direction, dtype) for direction in family_of(shape).directions)
    return forward, first, second
