"""The blocks of a network: the parts that it is a chain of, found where it is narrow.

A *waist* is a position in the order of operators that a single tensor crosses (tensors that live through most of the network, such as
a mask, left aside). What lies between two waists is a link of a chain. Where links repeat, as the halves of a transformer's layers do, a
*block* is one period of them; what stands before the first is the *stem* (an embedding), what comes after the last the *head*.
Networks whose links differ have a block for each.

Blocks are what frameworks gather at once (FSDP), compute again as one (recomputation), and deal to pipeline stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..onnxpp.graph import Graph, Operator
from .crossing import crossing_tensors

__all__ = ["Blocks", "find_blocks", "waists"]

MOST_PERIOD = 8
Link = tuple[tuple[object, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """`starts` of blocks as positions in the order of operators, ascending, and `end`, behind the last block."""

    starts: tuple[int, ...]
    end: int

    @property
    def borders(self) -> tuple[int, ...]:
        """Every start, and the end."""
        return (*self.starts, self.end)

    def __len__(self) -> int:
        return len(self.starts)


def waists(graph: Graph) -> tuple[int, ...]:
    """Positions 1..n-1 that one tensor crosses that does not live through most of the network.

    An input crosses like what is computed, unless it counts or indexes. A cut at a waist separates no collective from its operands.
    """
    count = len(graph.operators)
    crossing = [list(names) for names in crossing_tensors(graph)]
    for name in graph.inputs:
        if graph.tensors[name].is_float:
            last = max((i for i, o in enumerate(graph.operators) if name in o.inputs), default=0)
            for position in range(1, last + 1):
                crossing[position].append(name)
    spans: dict[str, int] = {}
    for names in crossing:
        for name in names:
            spans[name] = spans.get(name, 0) + 1
    lasting = {name for name, span in spans.items() if span > count // 2}
    exchanged = {t for o in graph.operators if o.family == "collective" for t in (*o.inputs, *o.outputs)}
    found = []
    for position in range(1, count):
        narrow = [t for t in crossing[position] if t not in lasting]
        if len(narrow) == 1 and narrow[0] not in exchanged:
            found.append(position)
    return tuple(found)


def find_blocks(graph: Graph) -> Blocks:
    """The blocks of `graph`; one for the whole of it where it has no waist."""
    count = len(graph.operators)
    borders = [0, *_weighty(graph, waists(graph)), count]
    links = [_kind(graph, graph.operators[a:b]) for a, b in pairwise(borders)]
    period, first, last = _repeats(links)
    if period and max(borders[first], count - borders[last]) <= max(borders[last] - borders[last - period], count // 8):
        # What the first link has ahead of those like it belongs to the stem (the dropout of an embedding).
        start = borders[first + 1] - len(links[first + period])
        return Blocks(starts=(start, *(borders[i] for i in range(first + period, last, period))), end=borders[last])
    return Blocks(starts=tuple(borders[:-1]), end=count)


def _weighty(graph: Graph, positions: Sequence[int]) -> list[int]:
    """Of waists that follow each other without a parameter in between, the first: a link has something to learn."""
    kept: list[int] = []
    trained = graph.trainable
    last = 0
    for position in positions:
        if any(t in trained for o in graph.operators[last:position] for t in o.inputs):
            kept.append(position)
            last = position
    return kept


def _kind(graph: Graph, operators: Sequence[Operator]) -> Link:
    """What makes two links alike: what they do, with weights of the same shapes."""
    return tuple((o.op_type, *(graph.tensors[t].dims(1) for t in o.inputs if t in graph.trainable)) for o in operators)


def _repeats(links: Sequence[Link]) -> tuple[int, int, int]:
    """The period of the longest repetition among `links`, its first link and the one behind its last; 0, 0, 0 if nothing repeats.

    The first link may be longer at its front than those like it, if that makes one period more.
    """
    best = (0, 0, 0)
    for period in range(1, min(MOST_PERIOD, len(links) // 2) + 1):
        i = 0
        while i + period < len(links):
            j = i
            while j + period < len(links) and links[j] == links[j + period]:
                j += 1
            first = i
            if i and _ends(links[i - 1], links[i - 1 + period]) and (j - i + 1) % period == 0:
                first = i - 1
            whole = (j - first) // period + 1 if j > first else 0
            if whole > 1 and whole * period > best[2] - best[1]:
                best = (period, first, first + whole * period)
            i = max(j, i + 1)
    return best


def _ends(link: Link, like: Link) -> bool:
    return link[-len(like) :] == like
