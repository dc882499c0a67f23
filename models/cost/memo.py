"""What was once computed about a graph or a cluster, kept as long as that lives. Neither ever changes, so nothing here
goes stale.
"""

from __future__ import annotations

import weakref
from typing import Any

from ...hwprofiles import Cluster
from ..onnxpp.graph import Graph

__all__ = ["memo_of"]

# By id because both hold mappings and so have no hash; an entry goes when its owner goes.
_MEMOS: dict[int, dict[Any, Any]] = {}


def memo_of(owner: Graph | Cluster) -> dict[Any, Any]:
    """The memo of this very object."""
    key = id(owner)
    if key not in _MEMOS:
        _MEMOS[key] = {}
        weakref.finalize(owner, _MEMOS.pop, key, None)
    return _MEMOS[key]
