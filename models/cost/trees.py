"""Boosted regression trees as plain arrays, evaluated by NumPy.

scikit-learn grows them (:func:`Forest.of`); what is kept is, per tree, a complete binary tree of a fixed depth as one
array of tests and one of leaf values, and per feature the sorted thresholds that its tests compare with. A row's
features are turned into ranks among the thresholds once; every test then compares two small integers.

Friedman, "Greedy function approximation: a gradient boosting machine", Annals of Statistics 29(5), 2001.

>>> import numpy as np
>>> forest = Forest(depth=1, start=0.5, thresholds=(np.array([1.0]),), feature=np.array([[0]], np.uint8),
...     rank=np.array([[0]], np.uint8), leaves=np.array([[-1.0, 1.0]], np.float32))
>>> forest.predict(np.array([[0.0], [1.0], [3.0]]))
array([-0.5, -0.5,  1.5])
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Forest"]

# Rows evaluated at once: their ranks and positions stay in the processor's cache.
_CHUNK = 64
# A test that sends every row to the left.
_ALWAYS_LEFT = 255


@dataclass(frozen=True, kw_only=True, eq=False)
class Forest:
    """`start` plus the sum over trees of the leaf that a row reaches.

    thresholds  per feature, ascending, at most 254; a row goes left where its feature <= the threshold
    feature, rank  (trees, 2**depth - 1): the feature that a node tests, and which of its thresholds; 255: always left
    leaves      (trees, 2**depth)
    """

    depth: int
    start: float
    thresholds: tuple[NDArray[np.float64], ...]
    feature: NDArray[np.uint8]
    rank: NDArray[np.uint8]
    leaves: NDArray[np.float32]

    def predict(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Values of `rows` (n, features), as an array (n,)."""
        ranks = np.empty(rows.shape, np.uint8)
        for j, values in enumerate(self.thresholds):
            # The number of thresholds below the value: it goes left at every threshold of that rank or above.
            ranks[:, j] = np.searchsorted(values, rows[:, j], side="left")
        found = np.empty(len(rows))
        n_trees, n_nodes = self.feature.shape
        feature, rank, leaves = self.feature.ravel().astype(np.intp), self.rank.ravel(), self.leaves.ravel()
        first_node = np.arange(n_trees) * n_nodes
        first_leaf = np.arange(n_trees) * (n_nodes + 1) - n_nodes
        for begin in range(0, len(rows), _CHUNK):
            chunk = ranks[begin : begin + _CHUNK]
            flat = np.ascontiguousarray(chunk).ravel()
            row_start = (np.arange(len(chunk)) * chunk.shape[1])[:, None]
            node = np.zeros((len(chunk), n_trees), np.intp)
            for _ in range(self.depth):
                at = node + first_node
                node = 2 * node + 1 + (flat[feature[at] + row_start] > rank[at])
            found[begin : begin + _CHUNK] = leaves[node + first_leaf].sum(axis=1, dtype=np.float64)
        return found + self.start

    @classmethod
    def of(cls, fitted: Any, depth: int) -> Forest:
        """The trees of a fitted ``HistGradientBoostingRegressor`` whose `max_depth` was `depth`."""
        trees = [stage[0].nodes for stage in fitted._predictors]
        used: list[set[float]] = [set() for _ in range(fitted.n_features_in_)]
        for nodes in trees:
            for node in nodes[nodes["is_leaf"] == 0]:
                used[int(node["feature_idx"])].add(float(node["num_threshold"]))
        thresholds = tuple(np.array(sorted(values)) for values in used)
        n_nodes = 2**depth - 1
        feature = np.zeros((len(trees), n_nodes), np.uint8)
        rank = np.full((len(trees), n_nodes), _ALWAYS_LEFT, np.uint8)
        leaves = np.zeros((len(trees), n_nodes + 1), np.float32)

        for t, nodes in enumerate(trees):
            stack = [(0, 0)]  # (node of scikit-learn, place in the complete tree)
            while stack:
                index, place = stack.pop()
                node = nodes[index]
                if place >= n_nodes:
                    leaves[t, place - n_nodes] = node["value"]
                elif node["is_leaf"]:
                    stack.append((index, 2 * place + 1))
                else:
                    j = int(node["feature_idx"])
                    feature[t, place] = j
                    rank[t, place] = np.searchsorted(thresholds[j], node["num_threshold"])
                    stack += [(int(node["left"]), 2 * place + 1), (int(node["right"]), 2 * place + 2)]
        start = float(np.ravel(fitted._baseline_prediction)[0])
        return cls(depth=depth, start=start, thresholds=thresholds, feature=feature, rank=rank, leaves=leaves)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything as named arrays, for a file."""
        return {
            "depth": np.array(self.depth),
            "start": np.array(self.start),
            "thresholds": np.concatenate([*self.thresholds, np.empty(0)]),
            "counts": np.array([len(t) for t in self.thresholds]),
            "feature": self.feature,
            "rank": self.rank,
            "leaves": self.leaves.astype(np.float16),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Forest:
        """What :meth:`arrays` said.

        Raises:
            KeyError, ValueError: an array is missing or they do not fit together.
        """
        counts = np.asarray(arrays["counts"], dtype=int)
        thresholds = np.split(np.asarray(arrays["thresholds"], dtype=float), np.cumsum(counts)[:-1])
        forest = cls(
            depth=int(arrays["depth"]),
            start=float(arrays["start"]),
            thresholds=tuple(thresholds),
            feature=np.asarray(arrays["feature"], np.uint8),
            rank=np.asarray(arrays["rank"], np.uint8),
            leaves=np.asarray(arrays["leaves"], np.float32),
        )
        nodes = 2**forest.depth - 1
        trees = len(forest.leaves)
        fits = forest.feature.shape == forest.rank.shape == (trees, nodes) and forest.leaves.shape == (trees, nodes + 1)
        if not fits or (forest.feature.size and int(forest.feature.max()) >= len(counts)):
            raise ValueError("the arrays of a forest do not fit together")
        return forest
