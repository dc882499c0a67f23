"""Strings: joined, split, matched, cleaned. On the host, as NumPy has them: arrays of dtype object."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ...errors import ModelError
from ...models.onnxpp.graph import Operator
from .registry import lowers, text
from .regular import Machine

__all__ = ["regex_full_match", "string_concat", "string_normalizer", "string_split"]


@lowers("StringConcat", since=20, host=True)
def string_concat(node: Operator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Each string of x followed by that of y, broadcast."""
    return np.asarray(x.astype(object) + y.astype(object), object)


@lowers("StringSplit", since=20, host=True)
def string_split(node: Operator, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the pieces of each string along a new last axis, padded with ""; how many they are, int64).

    Without a `delimiter` strings are split where there is white space, and empty pieces do not count.
    """
    delimiter = text(node, "delimiter", "") or None
    most = int(node.attributes.get("maxsplit", -1))
    pieces = [str(item).split(delimiter, most) for item in x.reshape(-1)]
    if delimiter is None and most >= 0:
        # The rest behind the last split keeps the white space at its end in Python; the standard strips it.
        pieces = [[*row[:-1], row[-1].rstrip()] if row else row for row in pieces]
    width = max(map(len, pieces), default=0)
    table = np.full((len(pieces), width), "", object)
    for row, parts in zip(table, pieces, strict=True):
        row[: len(parts)] = parts
    return table.reshape(*x.shape, width), np.array([len(p) for p in pieces], np.int64).reshape(x.shape)


@lowers("RegexFullMatch", since=20, host=True)
def regex_full_match(node: Operator, x: np.ndarray) -> np.ndarray:
    """Whether all of a string matches a regular expression of RE2 (https://github.com/google/re2/wiki/Syntax): bool."""
    pattern = text(node, "pattern", "")
    try:
        machine = _machine(pattern)
    except ValueError as error:
        raise ModelError(f"RegexFullMatch node {node.name!r}: {pattern!r} is no expression of RE2: {error}") from None
    return np.array([machine.matches(str(item)) for item in x.reshape(-1)], bool).reshape(x.shape)


_machine = lru_cache(maxsize=64)(Machine)


@lowers("StringNormalizer", since=10, host=True)
def string_normalizer(node: Operator, x: np.ndarray) -> np.ndarray:
    """The strings but for the `stopwords`, in upper or lower case. x (C,) or (1, C); [""] where nothing is left."""
    if x.ndim not in (1, 2) or (x.ndim == 2 and x.shape[0] != 1):
        raise ModelError(f"StringNormalizer node {node.name!r} takes strings of shape (C,) or (1, C), not {x.shape}")
    sensitive = bool(node.attributes.get("is_case_sensitive", 0))
    stop = {str(word) if sensitive else str(word).lower() for word in node.attributes.get("stopwords") or ()}
    kept = [str(s) for s in x.reshape(-1) if (str(s) if sensitive else str(s).lower()) not in stop]
    action = text(node, "case_change_action", "NONE")
    if action not in ("LOWER", "UPPER", "NONE"):
        raise ModelError(
            f"StringNormalizer node {node.name!r}: case_change_action {action!r} is none of LOWER, UPPER, NONE"
        )
    if action != "NONE":
        kept = [s.lower() if action == "LOWER" else s.upper() for s in kept]
    return np.array(kept or [""], object).reshape(*x.shape[:-1], -1)
