"""Labels and maps of ai.onnx.ml: tables from numbers or strings to others, and dictionaries by feature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from ...errors import ModelError
from ...models.onnxpp.graph import Operator
from .registry import OnlyOnHostError, Value, lowers, text

__all__ = ["cast_map", "category_mapper", "dict_vectorizer", "label_encoder", "zip_map"]

DOMAIN = "ai.onnx.ml"
DEFAULTS = {"strings": "_Unused", "int64s": -1, "floats": -0.0}


def _is_text(values: np.ndarray) -> bool:
    return values.dtype.kind in "OUS"


def _listed(node: Operator, prefix: str) -> np.ndarray:
    """The attribute `keys_*` or `values_*` that is given, as an array of its type."""
    tensor = node.attributes.get(f"{prefix}_tensor")
    if tensor is not None:
        array = np.asarray(tensor).reshape(-1)
        return array.astype(object) if _is_text(array) else array
    for kind, dtype in (("strings", object), ("int64s", np.int64), ("floats", np.float32)):
        if node.attributes.get(f"{prefix}_{kind}"):
            return np.array(list(node.attributes[f"{prefix}_{kind}"]), dtype)
    raise ModelError(
        f"{node.op_type} node {node.name!r} has none of {prefix}_strings, {prefix}_int64s, {prefix}_floats"
    )


def _default(node: Operator, values: np.ndarray) -> Any:
    """What is given for an unknown key."""
    tensor = node.attributes.get("default_tensor")
    if tensor is not None:
        return np.asarray(tensor).reshape(-1)[0]
    if _is_text(values):
        return text(node, "default_string", "_Unused")
    if np.issubdtype(values.dtype, np.floating):
        return values.dtype.type(node.attributes.get("default_float", -0.0))
    return values.dtype.type(node.attributes.get("default_int64", -1))


def _table(node: Operator) -> tuple[np.ndarray, np.ndarray, Any]:
    """(keys, values, default) of a LabelEncoder; of a repeated key the last."""
    keys, values = _listed(node, "keys"), _listed(node, "values")
    if len(keys) != len(values):
        raise ModelError(f"LabelEncoder node {node.name!r} has {len(keys)} keys and {len(values)} values")
    return keys[::-1], values[::-1], _default(node, values)


@lowers("LabelEncoder", domain=DOMAIN, since=2)
def label_encoder(node: Operator, x: Value) -> Array:
    """Each element replaced by the value of its key, or by a default; a key NaN fits NaN. Shapes stay."""
    keys, values, default = _table(node)
    if _is_text(keys) or _is_text(values):
        raise OnlyOnHostError(f"LabelEncoder node {node.name!r} maps strings.")
    x = jnp.asarray(x)
    order = np.argsort(keys, kind="stable")
    sorted_keys, sorted_values = keys[order], values[order]
    # The first of equal keys is the last of the list; NaN, sorted behind all others, is looked up for itself.
    place = jnp.clip(jnp.searchsorted(jnp.asarray(sorted_keys), x), 0, len(keys) - 1)
    found = jnp.asarray(sorted_keys)[place] == x
    result = jnp.where(found, jnp.asarray(sorted_values)[place], jnp.asarray(default, values.dtype))
    if np.issubdtype(keys.dtype, np.floating) and np.isnan(keys).any():
        result = jnp.where(jnp.isnan(x), values[np.isnan(keys)][0], result)
    return result


@lowers("LabelEncoder", domain=DOMAIN, since=2, host=True)
def label_encoder_of_strings(node: Operator, x: np.ndarray) -> np.ndarray:
    """The same from or to strings."""
    keys, values, default = _table(node)
    table = {_key(k): v for k, v in zip(keys[::-1].tolist(), values[::-1].tolist(), strict=True)}
    given = x.reshape(-1).tolist() if _is_text(x) or not _is_text(keys) else x.reshape(-1).astype(str).tolist()
    found = [table.get(_key(item), default) for item in given]
    return np.array(found, object if _is_text(values) else values.dtype).reshape(x.shape)


def _key(value: Any) -> Any:
    """A value to look up: texts as str, every NaN alike."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return "NaN of floats" if isinstance(value, float) and value != value else value


@lowers("LabelEncoder", domain=DOMAIN, since=1, host=True)
def label_encoder_by_place(node: Operator, x: np.ndarray) -> np.ndarray:
    """Before version 2: strings to their place in a list, numbers to the string at that place."""
    classes = [str(c) for c in node.attributes.get("classes_strings") or ()]
    return _swapped(node, x, classes, list(range(len(classes))))


@lowers("CategoryMapper", domain=DOMAIN, host=True)
def category_mapper(node: Operator, x: np.ndarray) -> np.ndarray:
    """Strings to their number, numbers to their string, by two lists of equal length."""
    strings, numbers = node.attributes.get("cats_strings") or (), node.attributes.get("cats_int64s") or ()
    if len(strings) != len(numbers):
        raise ModelError(f"CategoryMapper node {node.name!r} has {len(strings)} strings and {len(numbers)} numbers")
    return _swapped(node, x, [str(s) for s in strings], list(numbers))


def _swapped(node: Operator, x: np.ndarray, strings: Sequence[str], numbers: Sequence[int]) -> np.ndarray:
    if _is_text(x):
        number_of = dict(zip(strings, numbers, strict=True))
        default = int(node.attributes.get("default_int64", -1))
        return np.array([number_of.get(str(s), default) for s in x.reshape(-1)], np.int64).reshape(x.shape)
    string_of = dict(zip(numbers, strings, strict=True))
    default_text = text(node, "default_string", "_Unused")
    return np.array([string_of.get(int(n), default_text) for n in x.reshape(-1)], object).reshape(x.shape)


@lowers("CastMap", domain=DOMAIN, host=True)
def cast_map(node: Operator, x: Mapping[int, Any]) -> np.ndarray:
    """A map's values in the order of its keys, (1, C); or, if `map_form` is SPARSE, each at the place of its key in
    (1, max_map), and 0 or "" elsewhere."""
    to = text(node, "cast_to", "TO_FLOAT")
    types: dict[str, tuple[Any, Any]] = {
        "TO_FLOAT": (np.float32, lambda v: np.float32(v)),
        "TO_INT64": (np.int64, lambda v: np.int64(float(v)) if not isinstance(v, str) else np.int64(v)),
        "TO_STRING": (object, lambda v: v if isinstance(v, str) else _number(v)),
    }
    if to not in types:
        raise ModelError(f"CastMap node {node.name!r} casts to {to!r}; it is {', '.join(types)}")
    dtype, cast = types[to]
    if text(node, "map_form", "DENSE") == "DENSE":
        return np.array([[cast(x[key]) for key in sorted(x)]], dtype)
    size = int(node.attributes.get("max_map", 1))
    result = np.full((1, size), "" if dtype is object else 0, dtype)
    for key, value in x.items():
        if not 0 <= key < size:
            raise ModelError(f"CastMap node {node.name!r}: key {key} is outside of 0..{size - 1} (max_map)")
        result[0, key] = cast(value)
    return result


def _number(value: Any) -> str:
    """A number as text: as short as reads back as the same float32."""
    short = str(np.float32(value))
    return short.removesuffix(".0")


@lowers("DictVectorizer", domain=DOMAIN, host=True)
def dict_vectorizer(node: Operator, x: Mapping[Any, Any]) -> np.ndarray:
    """A map's values, each at the place of its key in a vocabulary, (1, C); 0 or "" for what the map lacks."""
    words = node.attributes.get("string_vocabulary") or node.attributes.get("int64_vocabulary")
    if not words:
        raise ModelError(f"DictVectorizer node {node.name!r} has no string_vocabulary or int64_vocabulary")
    sample = next(iter(x.values()), np.float32(0))
    dtype: Any = object if isinstance(sample, str) else np.asarray(sample).dtype
    if isinstance(sample, float) and not isinstance(sample, np.floating):
        dtype = np.float32
    missing = "" if dtype is object else 0
    return np.array([[x.get(word, missing) for word in words]], dtype)


@lowers("ZipMap", domain=DOMAIN, host=True)
def zip_map(node: Operator, x: np.ndarray) -> list[dict[Any, Any]]:
    """A dictionary from classes to scores for each row of x (N, K); x (K,) is one row."""
    keys = node.attributes.get("classlabels_int64s") or node.attributes.get("classlabels_strings")
    rows = np.asarray(x)
    rows = rows[None] if rows.ndim == 1 else rows
    if not keys or len(keys) != rows.shape[1]:
        raise ModelError(
            f"ZipMap node {node.name!r} has {len(keys or ())} classes for {rows.shape[1]} columns of scores"
        )
    return [dict(zip(keys, row.tolist(), strict=True)) for row in rows]
