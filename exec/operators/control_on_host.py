"""If, Loop and Scan on the host: each round of a body is a run of its own, compiled as far as that goes.

There a loop may carry sequences and texts, change shapes from round to round, and stack as many results as data ask for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from ...errors import ModelError
from ...models.onnxpp.graph import Body, Operator
from .control import endless
from .interpret import outer_values
from .registry import Context, lowers

__all__ = ["if_on_host", "loop_on_host", "scan_of_batch_on_host", "scan_on_host"]

Run = Callable[..., tuple[Any, ...]]


@lowers("If", host=True)
def if_on_host(node: Operator, condition: np.ndarray, *captured: Any, context: Context, run: Run) -> tuple[Any, ...]:
    """What the branch gives that a condition chooses."""
    _, outer = outer_values(node, (condition, *captured))
    return run(node.attributes["then_branch" if _holds(condition) else "else_branch"], (), outer, context)


@lowers("Loop", since=1, host=True)
def loop_on_host(
    node: Operator, rounds: np.ndarray | None, condition: np.ndarray | None, *values: Any, context: Context, run: Run
) -> tuple[Any, ...]:
    """Repeats a body at most `rounds` times while its condition holds; values carried on, and results stacked."""
    (_, _, *carried), outer = outer_values(node, (rounds, condition, *values))
    body: Body = node.attributes["body"]
    most = None if rounds is None else int(np.asarray(rounds).reshape(()))
    if most is None and endless(body) and (condition is None or _holds(condition)):
        raise ModelError(f"Loop node {node.name!r} never ends: it has no number of rounds, and its condition holds")
    on, index, rows = condition is None or _holds(condition), 0, []
    while on and (most is None or index < most):
        given = (np.asarray(index, np.int64), np.asarray(True), *carried)
        again, *results = run(body, given, outer, _of_round(context, index))
        carried, on, index = results[: len(carried)], _holds(again), index + 1
        rows.append(results[len(carried) :])
    names = body.outputs[1 + len(carried) :]
    return (*carried, *(_stacked(node, body, name, [row[i] for row in rows]) for i, name in enumerate(names)))


@lowers("Scan", since=9, host=True)
def scan_on_host(node: Operator, *values: Any, context: Context, run: Run) -> tuple[Any, ...]:
    """Goes over slices of its last operands: a body gets the state and one slice of each, gives new state and results."""
    own, outer = outer_values(node, values)
    get = node.attributes.get
    body: Body = node.attributes["body"]
    slices = int(node.attributes["num_scan_inputs"])
    states = len(own) - slices
    results = len(body.outputs) - states
    axes = get("scan_input_axes") or (0,) * slices
    rows = [np.moveaxis(v, axis, 0) for v, axis in zip(own[states:], axes, strict=True)]
    rows = [v[::-1] if back else v for v, back in zip(rows, get("scan_input_directions") or (0,) * slices, strict=True)]
    kept, stacked = _scanned(node, own[:states], rows, outer, context, run)
    back = get("scan_output_directions") or (0,) * results
    stacked = [v[::-1] if b else v for v, b in zip(stacked, back, strict=True)]
    result_axes = get("scan_output_axes") or (0,) * results
    return (*kept, *(np.moveaxis(v, 0, axis) for v, axis in zip(stacked, result_axes, strict=True)))


@lowers("Scan", since=8, host=True)
def scan_of_batch_on_host(
    node: Operator, lengths: np.ndarray | None, *values: Any, context: Context, run: Run
) -> tuple[Any, ...]:
    """Before opset 9: every operand has a batch axis first, the slices lie along the second, of each sample as many as
    `lengths` says (the rest of its results is 0)."""
    own, outer = outer_values(node, (lengths, *values))
    operands = own[1:]
    slices = int(node.attributes["num_scan_inputs"])
    states = len(operands) - slices
    backward = node.attributes.get("directions") or (0,) * slices
    samples = []
    for sample in range(len(operands[-1])):
        size = operands[-1].shape[1]
        length = size if lengths is None else int(lengths[sample])
        rows = [v[sample, :length] for v in operands[states:]]
        rows = [v[::-1] if back else v for v, back in zip(rows, backward, strict=True)]
        kept, stacked = _scanned(node, [v[sample] for v in operands[:states]], rows, outer, context, run)
        padded = [np.pad(v, [(0, size - length)] + [(0, 0)] * (v.ndim - 1)) for v in stacked]
        samples.append((*kept, *padded))
    return tuple(np.stack(parts) for parts in zip(*samples, strict=True))


def _scanned(
    node: Operator,
    state: Sequence[Any],
    rows: Sequence[np.ndarray],
    outer: dict[str, Any],
    context: Context,
    run: Run,
) -> tuple[list[Any], list[np.ndarray]]:
    """(the last state, each result of all rounds stacked)."""
    body: Body = node.attributes["body"]
    results = []
    for index, row in enumerate(zip(*rows, strict=True)):
        given = run(body, (*state, *(np.asarray(v) for v in row)), outer, _of_round(context, index))
        state = given[: len(state)]
        results.append(given[len(state) :])
    names = body.outputs[len(state) :]
    return list(state), [_stacked(node, body, name, [r[i] for r in results]) for i, name in enumerate(names)]


def _stacked(node: Operator, body: Body, name: str, rows: Sequence[Any]) -> np.ndarray:
    """A result of all rounds. Of none at all its type and shape are what the body says of it."""
    if rows:
        shapes = sorted({row.shape for row in rows})
        if len(shapes) > 1:
            raise ModelError(
                f"{node.op_type} node {node.name!r} stacks {name!r}, whose shape changes from round to round: "
                f"{shapes[0]} and {shapes[1]}. Collect such results in a sequence (SequenceInsert)."
            )
        return np.stack(rows)
    tensor = body.tensors.get(name)
    if tensor is None:
        raise ModelError(
            f"{node.op_type} node {node.name!r} runs no round, and its body does not say which type and shape {name!r} has"
        )
    dtype = object if tensor.dtype == "string" else jax.numpy.dtype(tensor.dtype)
    return np.zeros((0, *(dim.at(0) for dim in tensor.shape)), dtype)


def _holds(condition: Any) -> bool:
    return bool(np.asarray(condition).reshape(()))


def _of_round(context: Context, index: int) -> Context:
    """Every round draws random numbers of its own."""
    return replace(context, key=jax.random.fold_in(context.key, index))
