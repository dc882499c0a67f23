"""Sequences and optionals: lists of arrays, and values that may be None.

In compiled code a sequence is a list while tracing, so that one of known length (a tensor split up, say) costs nothing
and passes gradients on. What comes from outside, or depends on data, runs on the host by the same functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from ...errors import ModelError
from ...models.onnxpp.graph import Body, Operator
from .interpret import outer_values, run_body
from .registry import Context, Function, Value, lowers, needed, static

__all__ = ["sequence_map", "split_to_sequence"]


def _both(*op_types: str, since: int) -> Callable[[Function], Function]:
    """Registers a function for compiled code and for the host."""

    def register(function: Function) -> Function:
        lowers(*op_types, since=since, folds=False)(function)
        return lowers(*op_types, since=since, host=True)(function)

    return register


@_both("SequenceConstruct", since=11)
def sequence_construct(node: Operator, *values: Value) -> list[Value]:
    """A sequence of the operands."""
    return list(values)


@_both("SequenceEmpty", since=11)
def sequence_empty(node: Operator) -> list[Value]:
    """A sequence of nothing; its element type matters to the checker alone."""
    return []


@_both("SequenceInsert", since=11)
def sequence_insert(
    node: Operator, sequence: Sequence[Value], value: Value, position: Value | None = None
) -> list[Value]:
    """The sequence with `value` before `position` in -n..n, by default at its end."""
    at = len(sequence) if position is None else _position(node, position, len(sequence), ends=True)
    return [*sequence[:at], value, *sequence[at:]]


@_both("SequenceErase", since=11)
def sequence_erase(node: Operator, sequence: Sequence[Value], position: Value | None = None) -> list[Value]:
    """The sequence without what is at `position`, by default without its last."""
    at = _position(node, np.array(-1) if position is None else position, len(sequence))
    return [*sequence[:at], *sequence[at + 1 :]]


@_both("SequenceAt", since=11)
def sequence_at(node: Operator, sequence: Sequence[Value], position: Value) -> Value:
    """The tensor at `position` in -n..n-1."""
    return sequence[_position(node, position, len(sequence))]


@_both("SequenceLength", since=11)
def sequence_length(node: Operator, sequence: Sequence[Value]) -> Value:
    """How many tensors there are: int64, a scalar."""
    return np.asarray(len(sequence), np.int64)


@_both("ConcatFromSequence", since=11)
def concat_from_sequence(node: Operator, sequence: Sequence[Value]) -> Value:
    """All tensors one after the other along `axis`, or stacked along a new one (`new_axis`)."""
    if not sequence:
        raise ModelError(f"ConcatFromSequence node {node.name!r} got an empty sequence: its result has no shape")
    library: Any = np if all(isinstance(v, np.ndarray) for v in sequence) else jnp
    axis = int(needed(node, "axis"))
    return library.stack(sequence, axis) if node.attributes.get("new_axis", 0) else library.concatenate(sequence, axis)


@_both("SplitToSequence", since=11)
def split_to_sequence(node: Operator, x: Value, split: Value | None = None) -> list[Value]:
    """`x` cut along `axis`: into pieces of the lengths `split`, of one length (the last may be shorter), or of one
    row each, then without the axis if `keepdims` is 0."""
    axis = int(node.attributes.get("axis", 0)) % x.ndim
    size = x.shape[axis]
    if split is None:
        keep = node.attributes.get("keepdims", 1)
        before = (slice(None),) * axis
        return [x[(*before, slice(i, i + 1) if keep else i)] for i in range(size)]
    lengths = static(node, "split", split)
    if lengths.ndim == 0:
        step = int(lengths)
        if step < 1:
            raise ModelError(f"SplitToSequence node {node.name!r} splits into pieces of length {step}")
        lengths = np.diff([*range(0, size, step), size])
    if lengths.sum() != size or (lengths < 0).any():
        raise ModelError(
            f"SplitToSequence node {node.name!r} splits into lengths {lengths.tolist()}, but axis {axis} has {size}"
        )
    ends = np.cumsum(lengths)
    return [x[(slice(None),) * axis + (slice(int(e - n), int(e)),)] for e, n in zip(ends, lengths, strict=True)]


@_both("SequenceMap", since=17)
def sequence_map(
    node: Operator, *values: Any, context: Context, run: Callable[..., tuple[Any, ...]] | None = None
) -> tuple[list[Value], ...]:
    """A graph applied to each tensor of a sequence; further sequences go along, tensors are given to each."""
    (sequence, *more), outer = outer_values(node, values)
    body: Body = node.attributes["body"]
    for other in more:
        if isinstance(other, list) and len(other) != len(sequence):
            raise ModelError(
                f"SequenceMap node {node.name!r} goes over sequences of {len(sequence)} and {len(other)} tensors at once"
            )
    rows = [
        (run or run_body)(body, (item, *(o[i] if isinstance(o, list) else o for o in more)), outer, context)
        for i, item in enumerate(sequence)
    ]
    return tuple([row[i] for row in rows] for i in range(len(body.outputs)))


@_both("Optional", since=15)
def optional(node: Operator, value: Any = None) -> Any:
    """An optional that holds `value`, or nothing."""
    return value


@_both("OptionalHasElement", since=15)
def optional_has_element(node: Operator, value: Any = None) -> Value:
    """Whether there is something: bool, a scalar."""
    return np.asarray(value is not None)


@_both("OptionalGetElement", since=15)
def optional_get_element(node: Operator, value: Any) -> Any:
    """What an optional holds; a tensor or sequence as it is."""
    if value is None:
        raise ModelError(
            f"OptionalGetElement node {node.name!r} takes the element of an empty optional; "
            "test with OptionalHasElement first, or give the model that input"
        )
    return value


def _position(node: Operator, position: Value, length: int, ends: bool = False) -> int:
    """A place in a sequence, counted from the front."""
    at = int(static(node, "position", position).reshape(()))
    if not -length <= at < length + ends:
        raise ModelError(f"{node.op_type} node {node.name!r}: position {at} in a sequence of {length} tensors")
    return at + length if at < 0 else at
