"""Features before a model of scikit-learn's kind (domain ai.onnx.ml): chosen, scaled, filled in, encoded. Compiled."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from ...errors import ModelError
from ...models.onnxpp.graph import Operator
from .ml_scores import DOMAIN, float_list
from .registry import OnlyOnHostError, Value, lowers, text

__all__ = [
    "array_feature_extractor",
    "binarizer",
    "feature_vectorizer",
    "imputer",
    "normalizer",
    "one_hot_encoder",
    "scaler",
]


@lowers("ArrayFeatureExtractor", domain=DOMAIN)
def array_feature_extractor(node: Operator, x: Value, indices: Value) -> Array:
    """The columns `indices` of x (..., C): (..., K); of x (C,): (1, K)."""
    chosen = jnp.take(jnp.asarray(x), jnp.asarray(indices).reshape(-1), axis=-1)
    return chosen[None] if chosen.ndim == 1 else chosen


@lowers("ArrayFeatureExtractor", domain=DOMAIN, host=True)
def array_feature_extractor_of_strings(node: Operator, x: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """The same of strings."""
    chosen = np.take(x, np.asarray(indices).reshape(-1), axis=-1)
    return chosen[None] if chosen.ndim == 1 else chosen


@lowers("Binarizer", domain=DOMAIN)
def binarizer(node: Operator, x: Value) -> Array:
    """1 where x is above the threshold, else 0."""
    return (jnp.asarray(x) > node.attributes.get("threshold", 0.0)).astype(x.dtype)


@lowers("FeatureVectorizer", domain=DOMAIN)
def feature_vectorizer(node: Operator, *values: Value) -> Array:
    """All operands side by side, float32: (N, C) each, of which `inputdimensions` columns count; (C,) is one row."""
    widths = node.attributes.get("inputdimensions") or (None,) * len(values)
    if len(widths) != len(values) or any(width is not None and not 0 <= width < 2**24 for width in widths):
        raise ModelError(f"FeatureVectorizer node {node.name!r} has {len(values)} inputs of the widths {list(widths)}")
    rows = [jnp.asarray(v).astype(jnp.float32) for v in values]
    rows = [v[None] if v.ndim < 2 else v.reshape(v.shape[0], -1) for v in rows]
    return jnp.concatenate([_of_width(v, width) for v, width in zip(rows, widths, strict=True)], axis=1)


def _of_width(x: Array, width: int | None) -> Array:
    if width is None or width == x.shape[1]:
        return x
    return x[:, :width] if width < x.shape[1] else jnp.pad(x, ((0, 0), (0, width - x.shape[1])))


@lowers("Imputer", domain=DOMAIN)
def imputer(node: Operator, x: Value) -> Array:
    """x with one value (by default 0; it may be NaN) replaced, by one value or by one for each column."""
    x = jnp.asarray(x)
    kind, singular = ("floats", "float") if jnp.issubdtype(x.dtype, jnp.floating) else ("int64s", "int64")
    values, replaced = (
        node.attributes.get(f"imputed_value_{kind}"),
        node.attributes.get(f"replaced_value_{singular}", 0),
    )
    if not values or (len(values) != 1 and len(values) != x.shape[-1]):
        raise ModelError(
            f"Imputer node {node.name!r} needs imputed_value_{kind} for inputs of {x.dtype}: one, or one for each of "
            f"{x.shape[-1]} columns"
        )
    missing = jnp.isnan(x) if np.isnan(replaced) else x == jnp.asarray(replaced, x.dtype)
    return jnp.where(missing, jnp.asarray(values, x.dtype), x)


@lowers("Normalizer", domain=DOMAIN)
def normalizer(node: Operator, x: Value) -> Array:
    """Each row divided by its largest element, its sum of magnitudes or its length; float32. Rows of 0 stay."""
    x = jnp.asarray(x).astype(jnp.float32)
    norm = text(node, "norm", "MAX")
    if norm == "MAX":
        size = jnp.max(x, axis=-1, keepdims=True)
    elif norm == "L1":
        size = jnp.sum(jnp.abs(x), axis=-1, keepdims=True)
    elif norm == "L2":
        # The inner choice keeps the gradient finite where the length is 0.
        square = jnp.sum(x * x, axis=-1, keepdims=True)
        size = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
    else:
        raise ModelError(f"Normalizer node {node.name!r} has the norm {norm!r}; it is MAX, L1 or L2")
    return x / jnp.where(size == 0, 1, size)


@lowers("OneHotEncoder", domain=DOMAIN)
def one_hot_encoder(node: Operator, x: Value) -> Array:
    """A new last axis with a 1 at the place of the element's category, float32; others give nothing but 0."""
    if not node.attributes.get("zeros", 1):
        raise OnlyOnHostError(f"OneHotEncoder node {node.name!r} stops at an unknown category: compiled code cannot.")
    categories = node.attributes.get("cats_int64s")
    if not categories:
        raise ModelError(f"OneHotEncoder node {node.name!r} has no cats_int64s for inputs that are numbers")
    found = jnp.asarray(x).astype(jnp.int64)[..., None] == jnp.asarray(categories, jnp.int64)
    return found.astype(jnp.float32)


@lowers("OneHotEncoder", domain=DOMAIN, host=True)
def one_hot_encoder_of_strings(node: Operator, x: np.ndarray) -> np.ndarray:
    """The same of strings too; an unknown category is an error where `zeros` is 0."""
    kind = "cats_strings" if x.dtype.kind in "OUS" else "cats_int64s"
    categories = node.attributes.get(kind)
    if not categories:
        raise ModelError(f"OneHotEncoder node {node.name!r} has no {kind}")
    values: Any = x.astype(str) if kind == "cats_strings" else x.astype(np.int64)
    found = values[..., None] == np.array(categories)
    if not node.attributes.get("zeros", 1) and not found.any(-1).all():
        unknown = values.reshape(-1)[~found.any(-1).reshape(-1)].tolist()[0]
        raise ModelError(f"OneHotEncoder node {node.name!r}: {unknown!r} is none of its categories, and zeros is 0")
    return found.astype(np.float32)


@lowers("Scaler", domain=DOMAIN)
def scaler(node: Operator, x: Value) -> Array:
    """(x - offset) * scale, float32; one number or one for each column."""
    x = jnp.asarray(x).astype(jnp.float32)
    sizes = (1, x.shape[-1] if x.ndim else 1)
    return (x - float_list(node, "offset", (0.0,), sizes)) * float_list(node, "scale", (1.0,), sizes)
