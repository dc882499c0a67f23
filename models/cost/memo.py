"""What was once computed about a graph, kept as long as the graph lives. A graph never changes, so nothing here goes
stale.
"""

from __future__ import annotations

import weakref
from typing import Any

from ..onnxpp.graph import Graph

__all__ = ["memo_of"]

# By id because a Graph holds mappings and so has no hash; its entry goes when the graph goes.
_MEMOS: dict[int, dict[Any, Any]] = {}


def memo_of(graph: Graph) -> dict[Any, Any]:
    """The memo of this very object."""
    key = id(graph)
    if key not in _MEMOS:
        _MEMOS[key] = {}
        weakref.finalize(graph, _MEMOS.pop, key, None)
    return _MEMOS[key]
