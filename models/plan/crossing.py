"""Which tensors cross a cut between two operators."""

from __future__ import annotations

from ..onnxpp.graph import Graph

__all__ = ["crossing_tensors"]


def crossing_tensors(graph: Graph) -> list[tuple[str, ...]]:
    """For every position 0..n: the data-dependent tensors that operators before it compute and operators from it on read.

    The model's outputs (the loss excepted) count as read at the end, so position n carries them.
    """
    position = {o.name: i for i, o in enumerate(graph.operators)}
    last_use: dict[str, int] = {}
    for i, operator in enumerate(graph.operators):
        for name in operator.inputs:
            if name in graph.producer:
                last_use[name] = i
    count = len(graph.operators)
    for name in graph.outputs:
        if name in graph.producer and name != graph.loss:
            last_use[name] = count
    crossing: list[list[str]] = [[] for _ in range(count + 1)]
    for name, last in last_use.items():
        for i in range(position[graph.producer[name].name] + 1, last + 1):
            crossing[i].append(name)
    return [tuple(sorted(names, key=lambda n: (position[graph.producer[n].name], n))) for names in crossing]
