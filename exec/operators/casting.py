"""Conversions between element types: Cast, CastLike, BitCast.

The standard's rules, which differ from NumPy's and XLA's where a value does not fit: 8-bit floats saturate (unless
`saturate` is 0), whole numbers keep their low bits, 4- and 2-bit floats saturate always.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ...errors import ModelError
from ...models.onnxpp.graph import Operator
from .registry import Context, OnlyOnHostError, Value, lowers, text

__all__ = ["cast", "converted", "element_type", "element_type_of"]

# onnx.TensorProto.DataType as NumPy and JAX name the types.
_ELEMENT_TYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16",
    11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16", 17: "float8_e4m3fn",
    18: "float8_e4m3fnuz", 19: "float8_e5m2", 20: "float8_e5m2fnuz", 21: "uint4", 22: "int4", 23: "float4_e2m1fn",
    24: "float8_e8m0fnu", 25: "uint2", 26: "int2",
}  # fmt: skip
_STRING = 8

# Opset 1 names types instead of numbering them.
_CODES = {
    "FLOAT": 1, "UINT8": 2, "INT8": 3, "UINT16": 4, "INT16": 5, "INT32": 6, "INT64": 7, "STRING": 8, "BOOL": 9,
    "FLOAT16": 10, "DOUBLE": 11, "UINT32": 12, "UINT64": 13, "COMPLEX64": 14, "COMPLEX128": 15,
}  # fmt: skip


def element_type(node: Operator, code: int) -> np.dtype[Any]:
    """The dtype of an ONNX element type code.

    >>> element_type(Operator(name="c", op_type="Cast", family="elementwise", inputs=("x",), outputs=("y",)), 1)
    dtype('float32')
    """
    if code not in _ELEMENT_TYPES:
        raise ModelError(
            f"{node.op_type} node {node.name!r} asks for ONNX element type {code}, which the executor does not compute "
            f"with. Known are {', '.join(_ELEMENT_TYPES.values())}."
        )
    return jnp.dtype(_ELEMENT_TYPES[code])


def element_type_of(node: Operator, attribute: str, default: Any) -> np.dtype[Any]:
    """The dtype that an attribute asks for; absent or 0 means `default`."""
    code = int(node.attributes.get(attribute, 0))
    return element_type(node, code) if code else jnp.dtype(default)


def converted(x: Value, dtype: Any, *, saturate: bool = True, round_mode: str = "up") -> Value:
    """x (any numbers) as `dtype`, by the rules of the standard's Cast; what is static stays so, with all its bits."""
    dtype = jnp.dtype(dtype)
    if dtype == x.dtype:
        return x
    if x.dtype.name.startswith("float8_e8m0"):
        x = _from_powers(x)
    if dtype.name.startswith("float8_e8m0"):
        return _to_powers(jnp.asarray(x).astype(jnp.float32), saturate, round_mode)
    if dtype.name.startswith("float8") and saturate:
        wide = jnp.asarray(x)
        wide = (
            wide if jnp.issubdtype(wide.dtype, jnp.floating) and wide.dtype.itemsize > 1 else wide.astype(jnp.float32)
        )
        limit = float(jnp.finfo(dtype).max)
        return jnp.clip(wide, -limit, limit).astype(dtype)
    if jnp.issubdtype(dtype, jnp.integer) and jnp.issubdtype(x.dtype, jnp.floating) and _bits(dtype) < 32:
        # What does not fit is undefined; this is what the standard's tests and a C compiler make of it.
        return jnp.asarray(x).astype(jnp.int32).astype(dtype)
    return x.astype(dtype)


def _bits(dtype: np.dtype[Any]) -> int:
    return int(jnp.iinfo(dtype).bits)


def _to_powers(x: Array, saturate: bool, round_mode: str) -> Array:
    """float32 as powers of two from 2^-127 (code 0) to 2^127 (code 254); NaN is 255.

    Source: Open Compute Project, Microscaling Formats 1.0; negative numbers, of which it says nothing, become NaN.
    """
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    exponent, fraction = (bits >> 23) & 0xFF, bits & 0x7FFFFF
    # Below 2^-126 the exponent's bits stop at 0, and 2^-127 is a fraction of a half.
    small = exponent == 0
    more = jnp.where(small, jnp.where(fraction > 0x400000, 2 * (fraction - 0x400000), 0), fraction)
    if round_mode not in ("up", "down", "nearest"):
        raise ModelError(f"round_mode {round_mode!r} of Cast is none of up, down, nearest; export the model again")
    step = {"up": more > 0, "down": jnp.zeros_like(more, bool), "nearest": more >= 0x400000}[round_mode]
    code = exponent + step.astype(jnp.uint32)
    # By bits: XLA takes numbers as small as these for 0.
    below = small & (fraction < 0x400000)
    if saturate:
        code = jnp.where(below, 0, jnp.minimum(code, 254))
    else:
        code = jnp.where(below, 255, jnp.minimum(code, 255))
    code = jnp.where(jnp.isnan(x) | (bits > 0x80000000), 255, code)
    return lax.bitcast_convert_type(code.astype(jnp.uint8), jnp.float8_e8m0fnu)


def _from_powers(x: Value) -> Array:
    """Powers of two as float32: the code is the exponent, as float32 stores it."""
    code = lax.bitcast_convert_type(jnp.asarray(x), jnp.uint8).astype(jnp.uint32)
    bits = jnp.where(code == 0, 0x400000, jnp.where(code == 255, 0x7FC00000, code << 23)).astype(jnp.uint32)
    return lax.bitcast_convert_type(bits, jnp.float32)


def _target(node: Operator) -> int:
    """The element type code of the attribute `to`."""
    to = node.attributes["to"]
    if not isinstance(to, str | bytes):
        return int(to)
    name = text(node, "to", "")
    if name not in _CODES:
        raise ModelError(f"Cast node {node.name!r} asks for element type {name!r}; known are {', '.join(_CODES)}.")
    return _CODES[name]


def _saturates(node: Operator) -> bool:
    return bool(node.attributes.get("saturate", 1))


@lowers("Cast", folds=True)
def cast(node: Operator, x: Value, *, context: Context) -> Value:
    """x as another element type; a static x stays static and keeps all 64 bits.

    Where all floats compute in one precision, a cast to floats of another width would lose what that has.
    """
    code = _target(node)
    if code == _STRING:
        raise OnlyOnHostError(f"Cast node {node.name!r} makes strings of numbers.")
    dtype = element_type(node, code)
    if context.precision is not None and jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize > 1:
        dtype = jnp.dtype(context.precision)
    return converted(x, dtype, saturate=_saturates(node), round_mode=text(node, "round_mode", "up"))


@lowers("CastLike", since=15)
def cast_like(node: Operator, x: Value, like: Value) -> Value:
    """x as the element type of another tensor."""
    return converted(x, like.dtype, saturate=_saturates(node), round_mode=text(node, "round_mode", "up"))


@lowers("Cast", host=True)
def cast_on_host(node: Operator, x: np.ndarray) -> np.ndarray:
    """x to or from strings."""
    code = _target(node)
    if code == _STRING:
        return _as_text(x)
    return _from_text(node, x, element_type(node, code))


@lowers("CastLike", since=15, host=True)
def cast_like_on_host(node: Operator, x: np.ndarray, like: np.ndarray) -> np.ndarray:
    """x to or from strings."""
    if like.dtype.kind in "OUS":
        return _as_text(x)
    return _from_text(node, x, jnp.dtype(like.dtype))


def _as_text(x: np.ndarray) -> np.ndarray:
    """Numbers as the shortest text that is read back as the same number; `NaN`, `INF`, `-INF`; truth as 1 and 0."""
    if x.dtype.kind in "OUS":
        return x
    if x.dtype == bool:
        x = x.astype(np.int8)
    special = {"nan": "NaN", "inf": "INF", "-inf": "-INF"}
    written = [str(value) for value in x.reshape(-1)]
    return np.array([special.get(word, word) for word in written], dtype=object).reshape(x.shape)


def _from_text(node: Operator, x: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """Numbers from plain or scientific text; INF, +INF, -INF and NaN in any case."""
    if x.dtype.kind not in "OUS":
        return np.asarray(converted(x, dtype, saturate=_saturates(node), round_mode=text(node, "round_mode", "up")))
    words = [word.decode() if isinstance(word, bytes) else str(word) for word in x.reshape(-1)]
    whole = jnp.issubdtype(dtype, jnp.integer)
    read: Callable[[str], Any] = _whole if whole else float
    try:
        numbers = [read(word) for word in words]
    except (ValueError, OverflowError) as error:
        raise ModelError(f"{node.op_type} node {node.name!r}: {error}; its strings must be numbers.") from None
    if dtype.name == "bool":
        return np.array([number != 0 for number in numbers], bool).reshape(x.shape)
    if whole:
        bits = _bits(dtype)
        # Low bits, as from any wider whole number; NumPy refuses to drop the others silently.
        low = [number & ((1 << bits) - 1) for number in numbers]
        if jnp.issubdtype(dtype, jnp.signedinteger):
            low = [number - (1 << bits) if number >> (bits - 1) else number for number in low]
        return np.array(low, np.int64 if dtype != np.uint64 else np.uint64).reshape(x.shape).astype(dtype)
    wide = np.array(numbers, np.float64).reshape(x.shape)
    if dtype.itemsize >= 4:
        with np.errstate(over="ignore"):
            return wide.astype(dtype)
    return np.asarray(converted(wide, dtype, saturate=_saturates(node), round_mode=text(node, "round_mode", "up")))


def _whole(word: str) -> int:
    """
    >>> _whole("12"), _whole("100.5"), _whole("1e3")
    (12, 100, 1000)
    """
    try:
        return int(word)
    except ValueError:
        return int(float(word))


@lowers("BitCast", since=26)
def bit_cast(node: Operator, x: Value) -> Array:
    """The same bits read as another type of the same width."""
    dtype = element_type(node, int(node.attributes["to"]))
    source = jnp.asarray(x)
    if _width(source.dtype) != _width(dtype):
        raise ModelError(
            f"BitCast node {node.name!r} reads {source.dtype.name} ({_width(source.dtype)} bits) as {dtype.name} "
            f"({_width(dtype)} bits): both must be equally wide."
        )
    if source.dtype == dtype:
        return source
    # XLA has no bit pattern for booleans and complex numbers.
    if dtype.name == "bool":
        return _reinterpreted(source, jnp.uint8) != 0
    if jnp.issubdtype(dtype, jnp.complexfloating) or jnp.issubdtype(source.dtype, jnp.complexfloating):
        raise OnlyOnHostError(f"BitCast node {node.name!r} reads complex numbers.")
    return _reinterpreted(source.astype(jnp.uint8) if source.dtype == bool else source, dtype)


def _reinterpreted(x: Array, dtype: Any) -> Array:
    return x if x.dtype == dtype else lax.bitcast_convert_type(x, dtype)


@lowers("BitCast", since=26, host=True)
def bit_cast_on_host(node: Operator, x: np.ndarray) -> np.ndarray:
    """Complex numbers, read as the other 64-bit type or the other way round."""
    return np.ascontiguousarray(x).view(element_type(node, int(node.attributes["to"])))


def _width(dtype: np.dtype[Any]) -> int:
    if jnp.issubdtype(dtype, jnp.integer):
        return _bits(dtype)
    return 4 if dtype.name.startswith("float4") else 8 * dtype.itemsize
