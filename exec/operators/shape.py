"""Moving and reshaping data. Where every input is static so is the result: shapes are computed before the run."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ...errors import ModelError
from ...models.onnxpp.graph import Operator
from .layout import ChannelsLast, channels_first, channels_last
from .registry import Value, lowers, static, text

__all__ = ["concat", "constant", "gather", "reshape", "slice_", "split", "transpose"]


def _axes(axes: Any, rank: int) -> tuple[int, ...]:
    return tuple(int(a) % rank for a in np.ravel(axes))


@lowers("Reshape", since=5)
def reshape(node: Operator, x: Value, shape: Value) -> Value:
    """0 copies the input's dim (unless `allowzero`), -1 takes what is left."""
    wanted = [int(d) for d in static(node, "shape", shape)]
    if not node.attributes.get("allowzero", 0):
        wanted = [x.shape[i] if d == 0 else d for i, d in enumerate(wanted)]
    return x.reshape(wanted)


@lowers("Reshape")
def reshape_by_attribute(node: Operator, x: Value) -> Value:
    """Before opset 5 the shape is an attribute."""
    return reshape(node, x, np.asarray(node.attributes["shape"]))


@lowers("Flatten")
def flatten(node: Operator, x: Value) -> Value:
    """To two dims: those before `axis` (default 1), and the rest."""
    axis = int(node.attributes.get("axis", 1))
    before = axis if axis >= 0 else axis + x.ndim
    return x.reshape(prod(x.shape[:before]), prod(x.shape[before:]))


@lowers("Squeeze", since=13)
def squeeze(node: Operator, x: Value, axes: Value | None = None) -> Value:
    """Without the dims of 1 named by `axes`, or without any."""
    return x.squeeze() if axes is None else x.squeeze(_axes(static(node, "axes", axes), x.ndim))


@lowers("Squeeze")
def squeeze_by_attribute(node: Operator, x: Value) -> Value:
    """Before opset 13 the axes are an attribute."""
    axes = node.attributes.get("axes")
    return squeeze(node, x, None if axes is None else np.asarray(axes))


@lowers("Unsqueeze", since=13)
def unsqueeze(node: Operator, x: Value, axes: Value) -> Value:
    """With dims of 1 at `axes` of the result."""
    places = static(node, "axes", axes)
    rank = x.ndim + places.size
    shape = iter(x.shape)
    new = set(_axes(places, rank))
    return x.reshape([1 if i in new else next(shape) for i in range(rank)])


@lowers("Unsqueeze")
def unsqueeze_by_attribute(node: Operator, x: Value) -> Value:
    """Before opset 13 the axes are an attribute."""
    return unsqueeze(node, x, np.asarray(node.attributes["axes"]))


@lowers("Transpose", layout="any")
def transpose(node: Operator, x: Any) -> Any:
    """Axes in the order `perm`, reversed by default."""
    perm = node.attributes.get("perm")
    if isinstance(x, ChannelsLast) and tuple(perm or ()) == (0, *range(2, x.ndim), 1):
        return x.array
    x = channels_first(x)
    return x.transpose(node.attributes.get("perm") or tuple(reversed(range(x.ndim))))


@lowers("Concat", layout="any")
def concat(node: Operator, *values: Any) -> Array | ChannelsLast:
    """Along `axis`."""
    axis = int(node.attributes.get("axis", 1))
    if any(isinstance(v, ChannelsLast) for v in values):
        axis = axis % values[0].ndim
        turned = axis if axis == 0 else (axis - 1 if axis > 1 else -1)
        return ChannelsLast(jnp.concatenate(list(map(channels_last, values)), axis=turned))
    return jnp.concatenate(values, axis=axis)


@lowers("Split", since=13)
def split(node: Operator, x: Value, sizes: Value | None = None) -> tuple[Value, ...]:
    """Along `axis` into parts of given sizes, or as many equal ones as there are outputs (the last may be smaller)."""
    axis = int(node.attributes.get("axis", 0)) % x.ndim
    count = int(node.attributes.get("num_outputs") or len(node.outputs))
    part = -(-x.shape[axis] // count)
    if sizes is None:
        ends = [min(part * (i + 1), x.shape[axis]) for i in range(count)]
    else:
        ends = np.cumsum(static(node, "split", sizes)).tolist()
    if ends[-1] != x.shape[axis]:
        raise ModelError(f"Split node {node.name!r}: parts end at {ends}, axis {axis} has {x.shape[axis]} elements.")
    before = (slice(None),) * axis
    return tuple(x[(*before, slice(a, z))] for a, z in zip([0, *ends[:-1]], ends, strict=True))


@lowers("Split")
def split_by_attribute(node: Operator, x: Value) -> tuple[Value, ...]:
    """Before opset 13 the sizes are an attribute."""
    sizes = node.attributes.get("split")
    return split(node, x, None if sizes is None else np.asarray(sizes))


@lowers("Slice", since=10)
def slice_(
    node: Operator, x: Value, starts: Value, ends: Value, axes: Value | None = None, steps: Value | None = None
) -> Value:
    """x[start:end:step] along each of `axes` (default: the first ones); ends beyond the tensor are cut off."""
    first, last = static(node, "starts", starts), static(node, "ends", ends)
    along = range(first.size) if axes is None else _axes(static(node, "axes", axes), x.ndim)
    step = np.ones(first.size, np.int64) if steps is None else static(node, "steps", steps)
    index: list[slice] = [slice(None)] * x.ndim
    for axis, a, z, s in zip(along, first.tolist(), last.tolist(), step.tolist(), strict=True):
        size = x.shape[axis]
        # Going down, an end before the first element means 'including it', which Python writes as None.
        low: int | None = z + size if z < 0 else z
        if s < 0 and low is not None and low < 0:
            low = None
        index[axis] = slice(max(a + size if a < 0 else a, 0), low if low is None else max(low, 0), s)
    return x[tuple(index)]


@lowers("Slice")
def slice_by_attribute(node: Operator, x: Value) -> Value:
    """Before opset 10 bounds and axes are attributes."""
    starts, ends = np.asarray(node.attributes["starts"]), np.asarray(node.attributes["ends"])
    axes = node.attributes.get("axes")
    return slice_(node, x, starts, ends, None if axes is None else np.asarray(axes))


@lowers("Gather")
def gather(node: Operator, x: Value, indices: Value) -> Value:
    """x at `indices` along `axis`; negative indices count from the end."""
    axis = int(node.attributes.get("axis", 0))
    if isinstance(x, np.ndarray) and isinstance(indices, np.ndarray):
        try:
            return np.take(x, indices, axis=axis)
        except IndexError:
            raise ModelError(
                f"Gather node {node.name!r} takes rows up to {int(indices.max())} of a table of {x.shape[axis]}, which the "
                "file may hold for the one batch size that it was exported for; export with a dynamic batch axis"
            ) from None
    size = x.shape[axis]
    at = jnp.asarray(indices)
    return jnp.take(jnp.asarray(x), jnp.where(at < 0, at + size, at), axis=axis, mode="clip")


@lowers("GatherElements", since=11)
def gather_elements(node: Operator, x: Array, indices: Array) -> Array:
    """x[.., indices, ..] element by element along `axis`."""
    return jnp.take_along_axis(jnp.asarray(x), jnp.asarray(indices), axis=int(node.attributes.get("axis", 0)))


@lowers("Expand", since=8)
def expand(node: Operator, x: Value, shape: Value) -> Array:
    """Broadcast to `shape`, both ways."""
    wanted = tuple(int(d) for d in static(node, "shape", shape))
    return jnp.broadcast_to(x, np.broadcast_shapes(x.shape, wanted))


@lowers("Tile", since=6)
def tile(node: Operator, x: Value, repeats: Value) -> Array:
    """Repeated along every axis."""
    return jnp.tile(x, tuple(int(r) for r in static(node, "repeats", repeats)))


@lowers("Shape")
def shape_of(node: Operator, x: Value) -> np.ndarray:
    """The input's dims from `start` to `end`: known before the run."""
    return np.asarray(x.shape, np.int64)[slice(node.attributes.get("start", 0), node.attributes.get("end"))]


@lowers("Size")
def size_of(node: Operator, x: Value) -> np.ndarray:
    """The input's number of elements."""
    return np.asarray(x.size, np.int64)


_PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "edge", "wrap": "wrap"}


@lowers("Pad", since=11)
def pad(node: Operator, x: Value, pads: Value, fill: Value | None = None, axes: Value | None = None) -> Array:
    """`pads` elements before and after each of `axes` (default all); negative ones cut off."""
    flat = static(node, "pads", pads).tolist()
    along = range(x.ndim) if axes is None else _axes(static(node, "axes", axes), x.ndim)
    widths = [(0, 0)] * x.ndim
    for i, axis in enumerate(along):
        widths[axis] = (int(flat[i]), int(flat[i + len(flat) // 2]))
    mode = text(node, "mode", "constant")
    if mode not in _PAD_MODES:
        raise ModelError(f"Pad node {node.name!r}: mode {mode!r} is none of {', '.join(_PAD_MODES)}.")
    if mode == "constant":
        value = jnp.asarray(0 if fill is None else jnp.reshape(fill, ()), x.dtype)
        return lax.pad(jnp.asarray(x), value, [(a, z, 0) for a, z in widths])
    kept = x[tuple(slice(max(-a, 0), n - max(-z, 0)) for (a, z), n in zip(widths, x.shape, strict=True))]
    return jnp.pad(kept, [(max(a, 0), max(z, 0)) for a, z in widths], mode=_PAD_MODES[mode])


@lowers("Pad")
def pad_by_attribute(node: Operator, x: Value) -> Array:
    """Before opset 11 pads and value are attributes."""
    get = node.attributes.get
    return pad(node, x, np.asarray(get("pads") or get("paddings")), np.asarray(get("value", 0.0)))


@lowers("Constant")
def constant(node: Operator) -> np.ndarray:
    """The value that stands in the node."""
    for name in ("value", "value_float", "value_floats", "value_int", "value_ints", "value_string", "value_strings"):
        if name not in node.attributes:
            continue
        value = node.attributes[name]
        if name == "value":
            return _tensor(value)
        if "string" in name:
            words = [value] if name == "value_string" else value
            texts = np.array([w.decode() if isinstance(w, bytes) else str(w) for w in words], object)
            return texts.reshape(()) if name == "value_string" else texts
        return np.asarray(value, np.float32 if "float" in name else np.int64)
    raise ModelError(f"Constant node {node.name!r} holds {', '.join(node.attributes)}: only dense tensors can be run.")


@lowers("ConstantOfShape", since=9)
def constant_of_shape(node: Operator, shape: Value) -> Array:
    """One value (default 0.0) everywhere."""
    value = node.attributes.get("value")
    filled = np.zeros(1, np.float32) if value is None else _tensor(value).reshape(1)
    return jnp.full(tuple(int(d) for d in static(node, "shape", shape)), filled[0])


def _tensor(value: Any) -> np.ndarray:
    """A tensor attribute as NumPy."""
    if isinstance(value, np.ndarray | np.generic | Sequence | int | float):
        return np.asarray(value)
    from onnx import numpy_helper

    return numpy_helper.to_array(value)


@lowers("Range", since=11)
def range_(node: Operator, start: Value, limit: Value, delta: Value) -> Array:
    """start, start + delta, ... before limit."""
    a, z, d = (static(node, n, v).item() for n, v in (("start", start), ("limit", limit), ("delta", delta)))
    count = max(int(np.ceil((z - a) / d)), 0)
    return jnp.asarray(a + d * np.arange(count), jax.dtypes.canonicalize_dtype(np.asarray(start).dtype))


@lowers("DepthToSpace")
def depth_to_space(node: Operator, x: Array) -> Array:
    """(N, C, H, W) -> (N, C/b², H b, W b)."""
    block, (n, c, h, w) = int(node.attributes["blocksize"]), x.shape
    if text(node, "mode", "DCR") == "DCR":
        y = x.reshape(n, block, block, c // block**2, h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        y = x.reshape(n, c // block**2, block, block, h, w).transpose(0, 1, 4, 2, 5, 3)
    return y.reshape(n, c // block**2, h * block, w * block)


@lowers("SpaceToDepth")
def space_to_depth(node: Operator, x: Array) -> Array:
    """(N, C, H, W) -> (N, C b², H/b, W/b)."""
    block, (n, c, h, w) = int(node.attributes["blocksize"]), x.shape
    # The mode is an attribute since opset 27.
    order = (0, 3, 5, 1, 2, 4) if text(node, "mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    y = x.reshape(n, c, h // block, block, w // block, block).transpose(order)
    return y.reshape(n, c * block**2, h // block, w // block)
