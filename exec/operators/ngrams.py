"""Counts of n-grams in sequences of words or numbers, on the host: a dictionary of n-grams is looked up in."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from ...errors import ModelError
from ...models.onnxpp.graph import Operator
from .registry import lowers, needed, text

__all__ = ["tf_idf_vectorizer"]

# The result has as many columns as the largest of `ngram_indexes` says: more than any vocabulary has is an error.
MOST = 2**26


@lowers("TfIdfVectorizer", since=9, host=True)
def tf_idf_vectorizer(node: Operator, x: np.ndarray) -> np.ndarray:
    """How often each n-gram of a pool occurs in x (C,) or (N, C): float32 (K,) or (N, K).

    n goes from `min_gram_length` to `max_gram_length`; between two items of an n-gram always 0, always 1, ... or always
    `max_skip_count` others may lie. `mode` "IDF" gives the `weights` of what occurs, "TFIDF" counts times weights.
    """
    get = node.attributes.get
    if x.ndim not in (1, 2):
        raise ModelError(f"TfIdfVectorizer node {node.name!r} takes (C,) or (N, C), not {x.shape}")
    mode = text(node, "mode", "TF")
    least, most, skips = (int(needed(node, name)) for name in ("min_gram_length", "max_gram_length", "max_skip_count"))
    if mode not in ("TF", "IDF", "TFIDF"):
        raise ModelError(f"TfIdfVectorizer node {node.name!r} has the mode {mode!r}; it is TF, IDF or TFIDF")
    places = _pool(node)
    rows = [list(map(str, row)) if x.dtype.kind in "OUS" else row.tolist() for row in np.atleast_2d(x)]
    coordinates = np.asarray(needed(node, "ngram_indexes"), np.int64)
    if (coordinates < 0).any() or coordinates.max(initial=0) >= MOST:
        raise ModelError(f"TfIdfVectorizer node {node.name!r}: its ngram_indexes are not within 0..{MOST - 1}")
    counts = np.zeros((len(rows), int(coordinates.max(initial=-1)) + 1), np.float32)
    for count, row in zip(counts, rows, strict=True):
        for n in range(least, most + 1):
            # A single item has nothing in between.
            for step in range(1, (skips if n > 1 else 0) + 2):
                for start in range(len(row) - step * (n - 1)):
                    place = places.get(tuple(row[start : start + step * (n - 1) + 1 : step]))
                    if place is not None:
                        count[coordinates[place]] += 1
    if mode != "TF":
        weights = np.ones(counts.shape[1], np.float32)
        if get("weights"):
            weights[coordinates] = np.asarray(get("weights"), np.float32)[: len(coordinates)]
        counts = weights * (np.minimum(counts, 1) if mode == "IDF" else counts)
    return counts if x.ndim == 2 else counts[0]


def _pool(node: Operator) -> dict[tuple[Any, ...], int]:
    """The number of each n-gram. The pool has all 1-grams first, then all 2-grams, ...; where
    each kind begins is in `ngram_counts`."""
    get = node.attributes.get
    items = [str(word) for word in get("pool_strings") or ()] or list(get("pool_int64s") or ())
    starts = [*(int(start) for start in needed(node, "ngram_counts")), len(items)]
    places: dict[tuple[Any, ...], int] = {}
    number = 0
    for n, (start, end) in enumerate(pairwise(starts), 1):
        if start > end or (end - start) % n:
            raise ModelError(
                f"TfIdfVectorizer node {node.name!r}: its pool has {end - start} items for {n}-grams, from {start} to {end}"
            )
        for at in range(start, end, n):
            places.setdefault(tuple(items[at : at + n]), number)
            number += 1
    if number != len(needed(node, "ngram_indexes")):
        raise ModelError(
            f"TfIdfVectorizer node {node.name!r} has {number} n-grams and {len(needed(node, 'ngram_indexes'))} ngram_indexes"
        )
    return places
