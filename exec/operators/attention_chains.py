"""Attention as exporters write it, softmax(mask(q k · scale)) v in five operators or so, computed in parts.

The chain is found among the operators of a segment, and becomes one step that computes the same operators part by part: a few
samples for each core at a time. XLA's product on processors shares out no batch of small products, so that 64 heads of 256 x 64 x 256
run on one core, however many there are; products of different parts run beside each other.
Where a constant mask hides all keys beyond some place from a block of queries, as a causal one does, the block is computed with
the keys before that place alone: what is left away has the weight exp(-1e9), which is zero. That is done where nothing else can
hide keys, since a query of which all keys are hidden shares its weight among all of them. Both orders of computing differ by
rounding alone.

Measured on two cores of an AMD EPYC (Zen 4), forward and backward, 8 samples of 8 heads, 256 queries and keys of 64 numbers,
causal: 38.6 ms whole, 32 to 35 in parts, 25 to 29 in parts of two blocks; on one core (4 samples) 24.1 and 18.8.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ...models.onnxpp.graph import Operator
from ..affinity import allowed_cpus
from .interpret import Step, interpret
from .registry import Context, Lowering

__all__ = ["Chain", "chains", "joined"]

# There are as many parts as cores, or more where scores of so many bytes would not stay in a cache; each is compiled by itself.
PART_BYTES, MOST_PARTS = 8 << 20, 16
# A block has at least so many queries, and there are at most so many: smaller products run slower than what they save.
BLOCK_ROWS, MOST_BLOCKS = 128, 4
# A score that is at most this has no weight beside one that is not hidden.
HIDDEN = -1e9
_MASKING = ("Add", "Sub", "Where")
_BETWEEN = ("Mul", "Div", *_MASKING)


@dataclass(frozen=True, kw_only=True)
class Chain:
    """The steps of one attention in order: a product, what is done element by element, softmax, a product.

    q, k, v   (..., M, D), (..., D, K) and (..., K, E), by name
    sides     what the operators between read besides, by name; they broadcast with the scores (..., M, K)
    seen      of each query how many of the `keys` it sees, up to the last one that is not hidden; None: not known
    """

    steps: tuple[Step, ...]
    q: str
    k: str
    v: str
    sides: tuple[str, ...]
    seen: tuple[int, ...] | None
    keys: int


def joined(steps: Sequence[Step], lasting: Collection[str], static: Mapping[str, np.ndarray]) -> list[Step]:
    """`steps` with every chain as one step, at the place of its last one.

    lasting   tensors that somebody else reads: no chain goes over them
    static    values that are known before the run, as masks may be
    """
    found = chains(steps, lasting, static)
    last = {chain.steps[-1][0].name: chain for chain in found}
    inner = {node.name for chain in found for node, _ in chain.steps}
    return [
        _step(last[node.name]) if node.name in last else (node, function)
        for node, function in steps
        if node.name in last or node.name not in inner
    ]


def chains(steps: Sequence[Step], lasting: Collection[str], static: Mapping[str, np.ndarray]) -> list[Chain]:
    """The attentions among `steps`; parameters as for :func:`joined`."""
    readers = Counter(name for node, _ in steps for name in node.inputs)
    reader = {name: (node, function) for node, function in steps for name in node.inputs}
    found: list[Chain] = []
    ends: set[str] = set()
    for first in steps:
        if first[0].op_type != "MatMul" or first[0].name in ends:  # what ends one attention begins no other
            continue
        members, at = [first], first[0].outputs[0]
        while readers[at] == 1 and at not in lasting:
            node, function = reader[at]
            members.append((node, function))
            if not _goes_on(node, at, members):
                break
            at = node.outputs[0]
        if _is_attention(members):
            found.append(_chain(tuple(members), static))
            ends.add(members[-1][0].name)
    return found


def _goes_on(node: Operator, at: str, members: Sequence[Step]) -> bool:
    """Whether the chain may go through `node`, which reads `at`."""
    before = members[-2][0]
    if before.op_type == "Softmax" or len(node.outputs) != 1 or node.domain:
        return False
    if node.op_type == "Softmax":
        return True
    if node.attributes.get("broadcast"):  # early opsets align operands in another way
        return False
    return node.op_type in _BETWEEN and not (node.op_type in ("Div", "Sub") and node.inputs[0] != at)


def _is_attention(members: Sequence[Step]) -> bool:
    nodes = [node for node, _ in members]
    if len(nodes) < 3 or nodes[-1].op_type != "MatMul" or nodes[-2].op_type != "Softmax":
        return False
    # A tensor that is read in two places would have to be cut in two ways.
    read = [name for p, n in pairwise(nodes) for name in n.inputs if name != p.outputs[0]] + [*nodes[0].inputs]
    outside = Counter(name for name in read if name not in nodes[0].outputs)
    ends = (*nodes[0].inputs, nodes[-1].inputs[1])
    condition = any(n.op_type == "Where" and n.inputs[0] == p.outputs[0] for p, n in pairwise(nodes))
    return nodes[-1].inputs[0] == nodes[-2].outputs[0] and not condition and all(outside[name] == 1 for name in ends)


def _chain(members: tuple[Step, ...], static: Mapping[str, np.ndarray]) -> Chain:
    nodes = [node for node, _ in members]
    within = {node.outputs[0] for node in nodes}
    mask = _mask(nodes[1:-2], within, static)
    sides = dict.fromkeys(name for node in nodes[1:-2] for name in node.inputs if name not in within)
    return Chain(
        steps=members,
        q=nodes[0].inputs[0],
        k=nodes[0].inputs[1],
        v=nodes[-1].inputs[1],
        sides=tuple(sides),
        seen=None if mask is None else tuple((mask.shape[1] - np.argmax(mask[:, ::-1], axis=1)).tolist()),
        keys=0 if mask is None else mask.shape[1],
    )


def _mask(nodes: Sequence[Operator], within: Collection[str], static: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Which keys (columns) each query (row) sees by the one constant mask among `nodes`.

    None where there is none, where it hides all keys from a query (which then shares its weight among all of them), or where
    something else may hide keys as well, or scale what is hidden.
    """
    masks = [(i, _shown(node, within, static)) for i, node in enumerate(nodes) if node.op_type in _MASKING]
    known = [(i, shown) for i, shown in masks if shown is not None]
    hiding = [(i, shown) for i, shown in known if not shown.all()]
    if len(known) < len(masks) or len(hiding) != 1:
        return None
    (at, shown), *_ = hiding
    if shown.ndim < 2 or math.prod(shown.shape[:-2]) != 1 or any(n.op_type in ("Mul", "Div") for n in nodes[at:]):
        return None
    table = shown.reshape(shown.shape[-2:])
    return table if table.any(axis=1).all() else None


def _shown(node: Operator, within: Collection[str], static: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Where a constant operand hides no score; None where it is not known."""
    outside = [name for name in node.inputs if name not in within]
    if any(name not in static for name in outside):
        return None
    given = [static[name] for name in outside]
    if node.op_type == "Where":
        condition, other = given
        hides = other.size > 0 and float(other.max()) <= HIDDEN
        kept = condition if node.inputs[1] in within else ~condition
        return kept if hides or np.all(kept) else None
    (value,) = given
    return np.asarray(value > HIDDEN if node.op_type == "Add" else value < -HIDDEN)


# --- computing one -----------------------------------------------------------------------------------------------------


def _step(chain: Chain) -> Step:
    node = chain.steps[-1][0]
    whole = Operator(
        name=node.name,
        op_type="Attention",
        domain="hpdlf",
        family="attention",
        inputs=tuple(dict.fromkeys((chain.q, chain.k, chain.v, *chain.sides))),
        outputs=node.outputs,
    )

    def compute(node: Operator, *operands: Array, context: Context) -> Array:
        return _in_parts(chain, dict(zip(node.inputs, operands, strict=True)), context)

    function = Lowering(
        op_type=whole.op_type,
        domain=whole.domain,
        since=1,
        function=compute,
        wants=frozenset({"context"}),
        folds=False,
    )
    return whole, function


def _in_parts(chain: Chain, values: Mapping[str, Any], context: Context) -> Array:
    q, k, v = (values[name] for name in (chain.q, chain.k, chain.v))
    if jax.default_backend() != "cpu" or not q.ndim == k.ndim == v.ndim >= 3:
        return _computed(chain, values, context)
    scores = (*np.broadcast_shapes(q.shape[:-2], k.shape[:-2]), q.shape[-2], k.shape[-1])
    softmax, lowering = chain.steps[-2]
    axis = softmax.attributes.get("axis", -1 if lowering.since >= 13 else 1)
    fits = (
        axis in (-1, len(scores) - 1)
        and all(np.broadcast_shapes(np.shape(values[name]), scores) == scores for name in chain.sides)
        and v.shape[0] == scores[0] > 0
    )
    if not fits:
        return _computed(chain, values, context)
    nbytes = math.prod(scores) * q.dtype.itemsize
    rows, shares = _blocks(chain.seen, chain.keys, scores), _shares(scores[0], nbytes)
    if len(rows) * len(shares) > 1:  # ways were chosen for the whole products, which no part is
        chain = replace(chain, steps=tuple((replace(node, lowering={}), function) for node, function in chain.steps))
    parts = []
    for samples in shares:
        blocks = []
        for queries, keys in rows:
            cut = {
                chain.q: _cut(q, scores, samples, queries, None),
                chain.k: _cut(k, scores, samples, None, keys),
                chain.v: v[samples, ..., keys, :],
            }
            cut |= {name: _cut(values[name], scores, samples, queries, keys) for name in chain.sides}
            blocks.append(_computed(chain, cut, context))
        parts.append(jnp.concatenate(blocks, axis=-2) if len(blocks) > 1 else blocks[0])
    return jnp.concatenate(parts) if len(parts) > 1 else parts[0]


def _computed(chain: Chain, values: Mapping[str, Any], context: Context) -> Array:
    inner = dict(values)
    interpret(chain.steps, inner, context, {})
    result: Array = inner[chain.steps[-1][0].outputs[0]]
    return result


def _shares(count: int, nbytes: int) -> list[slice]:
    """`count` samples, whose scores have `nbytes` together, in parts that differ by one at most."""
    parts = min(count, max(min(len(allowed_cpus()), MOST_PARTS), min(round(nbytes / PART_BYTES), MOST_PARTS)))
    edges = [i * count // parts for i in range(parts + 1)]
    return [slice(a, z) for a, z in pairwise(edges)]


def _blocks(seen: tuple[int, ...] | None, width: int, scores: tuple[int, ...]) -> list[tuple[slice, slice]]:
    """Blocks of queries with the keys that they see."""
    rows, keys = scores[-2:]
    everything = [(slice(0, rows), slice(0, keys))]
    if seen is None or (len(seen), width) != (rows, keys):  # a row of a mask, or a column, counts for all
        return everything
    count = max(1, min(MOST_BLOCKS, rows // BLOCK_ROWS))
    edges = [round(i * rows / count) for i in range(count + 1)]
    blocks = [(slice(a, z), slice(0, max(seen[a:z]))) for a, z in pairwise(edges)]
    return blocks if any(z.stop < keys for _, z in blocks) else everything


def _cut(value: Any, scores: tuple[int, ...], samples: slice, queries: slice | None, keys: slice | None) -> Any:
    """What a part of the scores needs of something that broadcasts with them; None for a last dim that is another."""
    index = [slice(None)] * value.ndim
    if value.ndim == len(scores) and value.shape[0] == scores[0]:
        index[0] = samples
    for axis, part in ((-2, queries), (-1, keys)):
        if part is not None and value.ndim >= -axis and value.shape[axis] == scores[axis] > 1:
            index[axis] = part
    return value[tuple(index)]
