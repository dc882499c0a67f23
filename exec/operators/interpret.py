"""Computes operators in order: what a segment, a run of a whole graph, and an operator's own graphs have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...models.onnxpp.graph import Body, Operator
from ..failing import named
from .known import in_numpy
from .layout import ChannelsLast, channels_first, followed, whole
from .registry import Context, Lowering, lowering

__all__ = ["BAKED_BYTES", "computed", "in_precision", "interpret", "outer_values", "run_body"]

BAKED_BYTES = 1024
"""Values up to this size that are known before the run become part of the compiled code; larger ones are passed to it."""

Step = tuple[Operator, Lowering]


def interpret(
    steps: Iterable[Step], values: dict[str, Any], context: Context, batch_axes: Mapping[str, int | None]
) -> None:
    """Computes `steps` in order; `values` has their operands by name and gets their results.

    `batch_axes` has the axis along which samples lie in a node's first operand; a node that is not in it inherits the
    context's.
    """
    kept_last: set[str] = set()
    steps = list(steps)
    readers = Counter(name for node, _ in steps for name in node.inputs)
    for node, function in steps:
        operands = [values[name] if name else None for name in node.inputs]
        with jax.named_scope(f"onnx:{node.name}"), named(node):
            results = _in_layout(
                node, function, operands, context.at(node, batch_axes.get(node.name, context.batch_axis))
            )
        new = {n: in_precision(v, context.precision) for n, v in zip(node.outputs, results, strict=False) if n}
        new = {n: whole(v) if readers[n] > 1 else v for n, v in new.items()}
        values.update(new)
        kept_last.update(n for n, v in new.items() if isinstance(v, ChannelsLast))
    # For whoever reads them next; what nobody reads is not compiled.
    values.update({name: channels_first(values[name]) for name in kept_last})


def _in_layout(node: Operator, function: Lowering, operands: Sequence[Any], context: Context) -> tuple[Any, ...]:
    """The operator's results; pictures stay with channels last where the operator knows of that (see :mod:`.layout`)."""
    if function.layout == "any" or not any(isinstance(v, ChannelsLast) for v in operands):
        return computed(node, function, operands, context)
    moved = followed(node, operands) if function.layout == "follows" else None
    if moved is None:
        return computed(node, function, [channels_first(v) for v in operands], context)
    return tuple(map(ChannelsLast, computed(node, function, moved, context)))


def computed(node: Operator, function: Lowering, operands: Sequence[Any], context: Context) -> tuple[Any, ...]:
    """The operator's results. Small ones of static operands are computed at once: they may be a shape."""
    if function.folds and all(isinstance(v, np.ndarray | None) for v in operands):
        known = in_numpy(node, operands)
        if known is not None and all(v.nbytes <= BAKED_BYTES for v in known):
            return known
        if known is None and _is_small(node, function, operands, context):
            with jax.ensure_compile_time_eval():
                results = function(node, *operands, context=context)
            if any(isinstance(v, jax.core.Tracer) for v in jax.tree.leaves(results)):
                # A graph inside may draw random numbers, whose key is known in the run alone.
                return results
            results = tuple(map(_on_host, results))
            if all(v is None or isinstance(v, list) or v.nbytes <= BAKED_BYTES for v in results):
                return results
    return function.as_made(node, *operands, context=context)


def _is_small(node: Operator, function: Lowering, operands: Sequence[Any], context: Context) -> bool:
    """Whether it pays to compute at once: of large operands only where the result will be small."""
    if all(v is None or v.nbytes <= BAKED_BYTES for v in operands):
        return True
    results = jax.eval_shape(lambda: function(node, *operands, context=context))
    return all(v.size * v.dtype.itemsize <= BAKED_BYTES for v in jax.tree.leaves(results))


def _on_host(value: Any) -> Any:
    if isinstance(value, list):
        return [_on_host(item) for item in value]
    return None if value is None else np.asarray(value)


def run_body(body: Body, given: Sequence[Any], outer: Mapping[str, Any], context: Context) -> tuple[Any, ...]:
    """The outputs of a graph inside an operator: `given` are its inputs in order, `outer` what it reads around itself."""
    values: dict[str, Any] = {name: outer[name] for name in body.reads}
    values.update({name: in_precision(value, context.precision) for name, value in body.constants.items()})
    values.update(zip(body.inputs, given, strict=False))
    steps = [(node, lowering(node, body.opsets.get(node.domain, 1))) for node in body.operators]
    interpret(steps, values, context, {})
    return tuple(values[name] if name else None for name in body.outputs)


def in_precision(value: Any, precision: Any) -> Any:
    """Floats in the working precision (if there is one), everything else as it is."""
    if precision is None or not hasattr(value, "dtype"):
        return value
    if not jnp.issubdtype(value.dtype, jnp.floating) or value.dtype == jnp.dtype(precision):
        return value
    return value.astype(precision)


def outer_values(node: Operator, operands: Sequence[Any]) -> tuple[Sequence[Any], dict[str, Any]]:
    """(the operator's own operands, what its graphs read around it by name)."""
    count = len(node.inputs) - len(node.captured)
    return operands[:count], dict(zip(node.captured, operands[count:], strict=True))
