"""Which work is the same but for its shape: a second key, and how far two shapes lie apart.

Workloads with one :func:`shape_key` do the same things in the same order. Their shapes are points: the logarithms of
all dimensions of all operations and of how often each is done (for messages, collectives, updates and reading: of the
size that their key says). Two are the *same work at another size* where every operation keeps its dimensions but at
most one, which grows by a ratio that all share (:func:`log_ratios`): what another batch does to a segment.

>>> def product(m):
...     return Operation(family="matmul", op="linear", dims=(1, m, 64, 32), flops=0, read_bytes=0, write_bytes=0)
>>> here, starts = shape("operator", (product(8), product(8)))
>>> others = np.array([shape("", (product(a), product(b)))[0] for a, b in ((24, 24), (24, 16), (8, 8))])
>>> np.exp(log_ratios(others, here, starts)).round(9).tolist()
[3.0, nan, 1.0]
>>> shape_key("collective", "all_reduce:4096:8/2"), np.exp(shape("all_reduce:4096:8/2")[0]).round().tolist()
('collective all_reduce:*:8/2', [4096.0])
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from .operation import Operation

__all__ = ["log_ratios", "shape", "shape_key"]

# Logarithms closer than this are of the same integers.
SAME = 1e-9


def shape_key(kind: str, key: str, operations: Sequence[Operation] = ()) -> str:
    """The key without dimensions. `kind`, `key` and `operations` as in a workload.

    Parts of a compound key that are no fingerprint (the update behind a backward pass) stay as they are.
    """
    if not operations:
        name, size, place = _split(key)
        return f"{kind} {name}:*:{place}" if size else f"{kind} {key}"
    lines = [f"{o.family} {o.op} {o.phase} {o.precision} {o.item_bytes} {len(o.dims)}" for o in operations]
    lines += [part for part in key.split("+") if ":" in part]
    return f"{kind} " + hashlib.blake2b("\n".join(lines).encode(), digest_size=8).hexdigest()


def shape(key: str, operations: Sequence[Operation] = ()) -> tuple[np.ndarray, np.ndarray]:
    """The point of a workload [dims], and where each operation's dimensions begin in it [operations].

    A workload without operations and without a size in its key is a point without dimensions.
    """
    if not operations:
        size = _split(key)[1]
        dims = [int(size)] if size else []
        return np.log(np.maximum(np.array(dims, dtype=np.float64), 1.0)), np.arange(len(dims))
    lengths = [1 + len(o.dims) for o in operations]
    dims = [d for o in operations for d in (*o.dims, o.count)]
    return np.log(np.array(dims, dtype=np.float64)), np.cumsum([0, *lengths[:-1]])


def log_ratios(points: np.ndarray, target: np.ndarray, starts: np.ndarray) -> Any:
    """For each of `points` [n, dims], the logarithm of the ratio that leads from `target` [dims] to it; NaN where none
    does. Array [n].
    """
    difference = points - target
    changed = np.abs(difference) > SAME
    if not len(target):
        return np.zeros(len(points))
    ratio = difference[np.arange(len(points)), np.argmax(changed, axis=1)]
    alike = ~changed | (np.abs(difference - ratio[:, None]) < SAME)
    single = np.add.reduceat(changed.astype(np.int64), starts, axis=1).max(axis=1) <= 1
    return np.where(alike.all(axis=1) & single, np.where(changed.any(axis=1), ratio, 0.0), np.nan)


def _split(key: str) -> tuple[str, str, str]:
    """Name, size and place of a key such as "all_reduce:4096:8/2"; no size where it is no number."""
    name, _, rest = key.partition(":")
    size, _, place = rest.partition(":")
    return (name, size, place) if size.isdigit() else (key, "", "")
