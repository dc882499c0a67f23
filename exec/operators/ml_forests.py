"""Trees of decisions as arrays: what the operators of ai.onnx.ml say in lists, laid out for many rows and trees at once.

Every (row, tree) holds the node that it has reached; a step looks up that node's feature and threshold and goes on to a
child. Leaves lead to themselves, so that as many steps as the deepest tree has bring every row to its leaf.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ...errors import ModelError
from ...models.onnxpp.graph import Operator
from .ml_scores import float_list
from .registry import needed

__all__ = ["Forest", "Votes", "forest_of_ids", "forest_of_places", "leaves_reached"]

MODES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ", "BRANCH_MEMBER")
COMPARE: Any = (jnp.less_equal, jnp.less, jnp.greater_equal, jnp.greater, jnp.equal, jnp.not_equal)
MEMBER = MODES.index("BRANCH_MEMBER")


@dataclass(frozen=True, kw_only=True)
class Votes:
    """What leaves say: (L, V) targets and weights. Where a leaf has fewer than V votes, the target is -1."""

    targets: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Forest:
    """M nodes of T trees. `feature`, `threshold`, `mode` (a place in MODES), `yes`, `no` and `missing` (where a NaN
    goes: True for yes) have one value for each node; `leaf` is a node's row in `votes`, -1 of inner nodes.

    roots     (T,) nodes        depth     steps from a root to the furthest leaf
    members   (S, K) sets of nodes that ask for membership, padded with NaN
    asks_for  the row of a node's set
    """

    feature: np.ndarray
    threshold: np.ndarray
    mode: np.ndarray
    yes: np.ndarray
    no: np.ndarray
    missing: np.ndarray
    leaf: np.ndarray
    roots: np.ndarray
    depth: int
    members: np.ndarray
    asks_for: np.ndarray
    votes: Votes


def forest_of_ids(node: Operator, kind: str) -> Forest:
    """The forest of a TreeEnsembleClassifier ("class") or TreeEnsembleRegressor ("target"), whose nodes have ids."""
    ids = np.asarray(needed(node, "nodes_nodeids"), np.int64)
    count = len(ids)
    trees = _list(node, "nodes_treeids", count, np.int64)
    names = [n.decode() if isinstance(n, bytes) else str(n) for n in needed(node, "nodes_modes")]
    unknown = sorted(set(names) - {*MODES[:MEMBER], "LEAF"})
    if unknown or len(names) != count:
        raise _broken(node, f"nodes_modes has {unknown[0]!r}" if unknown else f"{len(names)} modes for {count} nodes")
    leaf = np.array([n == "LEAF" for n in names])
    place = _Places(node, trees, ids)
    inner = np.flatnonzero(~leaf)
    yes, no = np.arange(count), np.arange(count)
    for children, attribute in ((yes, "nodes_truenodeids"), (no, "nodes_falsenodeids")):
        given = _list(node, attribute, count, np.int64)
        children[inner] = place(trees[inner], given[inner])
    threshold = _floats(node, "nodes_values", count)
    orphans = np.ones(count, bool)
    orphans[yes[inner]] = orphans[no[inner]] = False
    roots = np.flatnonzero(orphans)
    if len(roots) != len(np.unique(trees)) or len(np.unique(trees[roots])) != len(roots):
        raise _broken(node, "its trees do not have one root each")
    rows = np.where(leaf, np.cumsum(leaf) - 1, -1)
    targets = np.asarray(needed(node, f"{kind}_ids"), np.int64)
    if (targets < 0).any() or (targets >= 2**31).any():
        raise _broken(node, f"{kind}_ids goes from {targets.min()} to {targets.max()}")
    of_trees, of_nodes = (_list(node, f"{kind}_{which}", len(targets), np.int64) for which in ("treeids", "nodeids"))
    weights = _floats(node, f"{kind}_weights", len(targets))
    return Forest(
        feature=_list(node, "nodes_featureids", count, np.int32),
        threshold=np.where(leaf, 0, threshold).astype(threshold.dtype),
        mode=np.array([0 if n == "LEAF" else MODES.index(n) for n in names], np.int8),
        yes=yes.astype(np.int32),
        no=no.astype(np.int32),
        missing=_list(node, "nodes_missing_value_tracks_true", count, bool, absent=False),
        leaf=rows.astype(np.int32),
        roots=roots.astype(np.int32),
        depth=_depth(node, roots, yes, no, leaf),
        members=np.zeros((0, 0)),
        asks_for=np.zeros(count, np.int32),
        votes=_votes(rows[place(of_trees, of_nodes)], targets, weights, int(leaf.sum())),
    )


def forest_of_places(node: Operator) -> Forest:
    """The forest of a TreeEnsemble, whose children are places among the inner nodes or among the leaves."""
    count, leaves = len(needed(node, "nodes_featureids")), len(needed(node, "leaf_targetids"))
    mode = np.asarray(needed(node, "nodes_modes")).reshape(-1).astype(np.int64)
    threshold, weights = (np.asarray(needed(node, name)).reshape(-1) for name in ("nodes_splits", "leaf_weights"))
    roots, targets = (np.asarray(needed(node, name), np.int64) for name in ("tree_roots", "leaf_targetids"))
    if not len(mode) == len(threshold) == count or len(weights) != leaves:
        raise _broken(
            node, f"{count} nodes, {len(mode)} modes, {len(threshold)} splits; {leaves} leaves, {len(weights)} weights"
        )
    if not roots.size or (roots < 0).any() or (roots >= count).any():
        raise _broken(node, f"its roots are not among its {count} nodes")
    if (targets < 0).any() or (targets >= 2**31).any():
        raise _broken(node, f"leaf_targetids goes from {targets.min()} to {targets.max()}")
    if (mode < 0).any() or (mode > MEMBER).any():
        raise _broken(node, f"nodes_modes has {mode.max()}; the modes are 0 to {MEMBER}")
    itself = np.arange(count, count + leaves)
    children = []
    for which in ("true", "false"):
        places = _list(node, f"nodes_{which}nodeids", count, np.int64)
        is_leaf = _list(node, f"nodes_{which}leafs", count, bool)
        if (places < 0).any() or (places >= np.where(is_leaf, leaves, count)).any():
            raise _broken(node, f"nodes_{which}nodeids leads out of its {count} nodes and {leaves} leaves")
        children.append(np.concatenate([places + count * is_leaf, itself]))
    yes, no = children
    leaf = np.arange(count + leaves) >= count

    def extended(values: np.ndarray, dtype: Any) -> np.ndarray:
        """Values of the inner nodes, and zeros for the leaves."""
        return np.concatenate([values, np.zeros(leaves)]).astype(dtype)

    return Forest(
        feature=extended(_list(node, "nodes_featureids", count, np.int32), np.int32),
        threshold=np.concatenate([threshold, np.zeros(leaves, threshold.dtype)]),
        mode=extended(mode, np.int8),
        yes=yes.astype(np.int32),
        no=no.astype(np.int32),
        missing=extended(_list(node, "nodes_missing_value_tracks_true", count, bool, absent=False), bool),
        leaf=np.where(leaf, np.arange(count + leaves) - count, -1).astype(np.int32),
        roots=roots.astype(np.int32),
        depth=_depth(node, roots, yes, no, leaf),
        members=_members(node, mode, threshold.dtype),
        asks_for=extended(np.cumsum(mode == MEMBER) - 1, np.int32),
        votes=Votes(targets=targets.astype(np.int32)[:, None], weights=weights[:, None]),
    )


def leaves_reached(forest: Forest, x: Array) -> Array:
    """The leaf (a row of `votes`) of each row in each tree: x (N, F) -> int32 (N, T)."""
    if forest.feature.size and (forest.feature.max() >= x.shape[1] or forest.feature.min() < 0):
        raise ModelError(f"a forest asks for feature {forest.feature.max()} of rows that have {x.shape[1]}")
    feature, threshold, yes, no, missing = (
        jnp.asarray(v) for v in (forest.feature, forest.threshold, forest.yes, forest.no, forest.missing)
    )
    kinds = sorted(set(forest.mode[forest.leaf < 0].tolist()))
    modes, members, asks_for = (jnp.asarray(v) for v in (forest.mode, forest.members.astype(x.dtype), forest.asks_for))

    def step(_: Any, at: Array) -> Array:
        value, limit = jnp.take_along_axis(x, feature[at], axis=1), threshold[at].astype(x.dtype)
        answers = [
            jnp.any(value[..., None] == members[asks_for[at]], axis=-1)
            if kind == MEMBER
            else COMPARE[kind](value, limit)
            for kind in kinds
        ]
        goes = answers[0]
        for kind, answer in zip(kinds[1:], answers[1:], strict=True):
            goes = jnp.where(modes[at] == kind, answer, goes)
        goes = jnp.where(jnp.isnan(value), missing[at], goes)
        return jnp.where(goes, yes[at], no[at])

    start = jnp.broadcast_to(jnp.asarray(forest.roots), (x.shape[0], len(forest.roots)))
    return jnp.asarray(forest.leaf)[lax.fori_loop(0, forest.depth, step, start)]


class _Places:
    """Finds nodes by (tree, id)."""

    def __init__(self, node: Operator, trees: np.ndarray, ids: np.ndarray) -> None:
        self.node = node
        self.pairs = {pair: i for i, pair in enumerate(zip(trees.tolist(), ids.tolist(), strict=True))}
        if len(self.pairs) != len(ids):
            raise _broken(node, "a tree has two nodes of the same id")

    def __call__(self, trees: np.ndarray, ids: np.ndarray) -> np.ndarray:
        pairs = zip(trees.tolist(), ids.tolist(), strict=True)
        try:
            return np.array([self.pairs[pair] for pair in pairs], np.int64)
        except KeyError as error:
            tree, index = error.args[0]
            raise _broken(self.node, f"tree {tree} has no node {index}") from None


def _list(node: Operator, name: str, length: int, dtype: Any, absent: Any = None) -> np.ndarray:
    """A list of `length` integers; where it is absent, `absent` so often if that is a value."""
    given = node.attributes.get(name)
    if not given and absent is not None:
        return np.full(length, absent, dtype)
    values = np.asarray(given or (), np.int64)
    if dtype is np.int32 and (np.abs(values) >= 2**31).any():
        raise _broken(node, f"{name} has {values[np.abs(values).argmax()]}")
    values = values.astype(dtype)
    if len(values) != length:
        raise _broken(node, f"{name} has {len(values)} values for {length} nodes")
    return values


def _floats(node: Operator, name: str, length: int) -> np.ndarray:
    """A list of floats, or the tensor that stands for it where they are doubles."""
    tensor = node.attributes.get(f"{name}_as_tensor")
    values = float_list(node, name) if tensor is None else np.asarray(tensor).reshape(-1)
    if len(values) != length:
        raise _broken(node, f"{name} has {len(values)} values; {length} are needed")
    return values


def _votes(rows: np.ndarray, targets: np.ndarray, weights: np.ndarray, leaves: int) -> Votes:
    """The votes of each leaf in one row, from a list of all votes."""
    keep = rows >= 0
    rows, targets, weights = rows[keep], targets[keep], weights[keep]
    order = np.lexsort((targets, rows))
    rows, targets, weights = rows[order], targets[order], weights[order]
    counts = np.bincount(rows, minlength=leaves)
    column = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    shape = (leaves, max(int(counts.max(initial=0)), 1))
    laid_targets, laid_weights = np.full(shape, -1, np.int32), np.zeros(shape, weights.dtype)
    laid_targets[rows, column], laid_weights[rows, column] = targets, weights
    return Votes(targets=laid_targets, weights=laid_weights)


def _members(node: Operator, mode: np.ndarray, dtype: Any) -> np.ndarray:
    """The sets that nodes ask for, one in a row: they stand one after the other, each ended by a NaN."""
    count = int((mode == MEMBER).sum())
    values = np.asarray(node.attributes.get("membership_values", np.zeros(0, dtype))).reshape(-1)
    ends = np.flatnonzero(np.isnan(values.astype(np.float64)))
    sets = [part[~np.isnan(part.astype(np.float64))] for part in np.split(values, ends)][: len(ends) + 1]
    sets = sets[:count] if len(sets) >= count else sets
    if len(sets) != count:
        raise _broken(node, f"membership_values has {len(sets)} sets for {count} nodes")
    table = np.full((count, max((len(s) for s in sets), default=0)), np.nan, np.float64)
    for row, values in zip(table, sets, strict=True):
        row[: len(values)] = values
    return table


def _depth(node: Operator, roots: Sequence[int] | np.ndarray, yes: np.ndarray, no: np.ndarray, leaf: np.ndarray) -> int:
    """Steps to the furthest leaf. Raises ModelError where a path leads round."""
    front, depth = np.unique(roots), 0
    while not leaf[front].all():
        inner = front[~leaf[front]]
        front, depth = np.unique(np.concatenate([yes[inner], no[inner]])), depth + 1
        if depth > len(leaf):
            raise _broken(node, "a path through a tree leads round in a circle")
    return depth


def _broken(node: Operator, what: str) -> ModelError:
    return ModelError(f"{node.op_type} node {node.name!r} is no forest: {what}; export the model again")
