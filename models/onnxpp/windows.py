"""Sliding windows: what convolution and pooling share, worked out from a node's attributes.

ONNX gives a window by kernel, strides, dilations, and either pads ``[begin..., end...]`` or an `auto_pad` rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from ...errors import ModelError
from .graph import Operator

__all__ = ["Window", "window_of"]


@dataclass(frozen=True, kw_only=True)
class Window:
    """A window over the spatial dims of a tensor; every field has one entry per spatial dim."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    output: tuple[int, ...]
    ceil_extra: tuple[int, ...]
    """What `ceil_mode` adds behind the end pads (negative: what the last window leaves unread)."""

    @property
    def reach(self) -> tuple[int, ...]:
        """How far a window stretches, dilation included."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    @property
    def is_tiling(self) -> bool:
        """Whether windows neither overlap nor leave gaps nor reach beyond the input."""
        no_pads = all(p == (0, 0) for p in self.pads) and not any(self.ceil_extra)
        return self.kernel == self.strides and set(self.dilations) == {1} and no_pads


def window_of(node: Operator, spatial: Sequence[int], kernel: Sequence[int]) -> Window:
    """The window of a convolution or pooling node over an input with these spatial dims.

    >>> node = Operator(name="p", op_type="MaxPool", family="pooling", inputs=("x",), outputs=("y",),
    ...                 attributes={"strides": [2, 2], "pads": [1, 1, 1, 1]})
    >>> window_of(node, (7, 8), (3, 3)).output
    (4, 4)
    """
    rank, get = len(spatial), node.attributes.get
    kernel = tuple(int(k) for k in kernel)
    strides = tuple(get("strides") or (1,) * rank)
    dilations = tuple(get("dilations") or (1,) * rank)
    flat = list(get("pads") or (0,) * 2 * rank)
    if not (len(kernel) == len(strides) == len(dilations) == rank and len(flat) == 2 * rank):
        raise ModelError(
            f"{node.op_type} node {node.name!r}: kernel {kernel}, strides {strides}, dilations {dilations}, pads {flat}"
            f" do not fit an input with {rank} spatial dims. Correct the node's attributes."
        )
    pads = [(flat[i], flat[i + rank]) for i in range(rank)]
    rule = _text(node, "auto_pad", "NOTSET")
    rounding_up = bool(get("ceil_mode", 0))
    output, extra = [], []
    for i, (size, k, s, d) in enumerate(zip(spatial, kernel, strides, dilations, strict=True)):
        reach = (k - 1) * d + 1
        if rule in ("SAME_UPPER", "SAME_LOWER"):
            count = ceil(size / s)
            missing = max((count - 1) * s + reach - size, 0)
            small, large = missing // 2, missing - missing // 2
            pads[i] = (small, large) if rule == "SAME_UPPER" else (large, small)
        else:
            if rule == "VALID":
                pads[i] = (0, 0)
            room = size + sum(pads[i]) - reach
            count = (ceil(room / s) if rounding_up else room // s) + 1
            # A window that would start in the end pads does not count (ONNX MaxPool, since opset 19).
            if rounding_up and (count - 1) * s >= size + pads[i][0]:
                count -= 1
        if count < 1:
            raise ModelError(
                f"{node.op_type} node {node.name!r}: a window of {reach} does not fit into {size} + pads {pads[i]} "
                f"along spatial dim {i}. The input is too small for this model: import it with larger data dims."
            )
        output.append(count)
        extra.append((count - 1) * s + reach - size - sum(pads[i]))
    return Window(
        kernel=kernel,
        strides=strides,
        dilations=dilations,
        pads=tuple((int(a), int(b)) for a, b in pads),
        output=tuple(output),
        ceil_extra=tuple(e if e > 0 else 0 for e in extra),
    )


def _text(node: Operator, attribute: str, default: str) -> str:
    value = node.attributes.get(attribute, default)
    return value.decode() if isinstance(value, bytes) else str(value)
