"""Operators that hold graphs: If, Loop, Scan.

Compiled where shapes allow it; else each body is run on the host, where it may change shapes, and hold sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ...errors import ModelError
from ...models.onnxpp.graph import Body, Operator
from .interpret import outer_values, run_body
from .registry import Context, NotStaticError, OnlyOnHostError, Value, lowers, static
from .strings import is_text

__all__ = ["endless", "if_", "loop", "scan"]

# A loop of so few rounds is written out: its body may then change shapes, and its gradient needs no stack of carries.
UNROLLED = 8
# So many are written out where they must be: shapes change, or the number of a round decides about shapes.
UNROLLED_AT_NEED = 64
# A loop that data may end before so many rounds is a scan, which can be differentiated.
BOUNDED = 256


def _alike(one: Sequence[Any], other: Sequence[Any]) -> bool:
    return len(one) == len(other) and all(
        a.shape == b.shape and a.dtype == b.dtype for a, b in zip(one, other, strict=True)
    )


def _known(value: Any) -> bool:
    return isinstance(value, np.ndarray | np.generic)


def _tensors(node: Operator, values: Sequence[Any]) -> tuple[Array, ...]:
    """The values as arrays of JAX; a compiled loop or condition takes nothing else."""
    if any(v is None or isinstance(v, list | tuple) or is_text(v) for v in values):
        raise OnlyOnHostError(f"{node.op_type} node {node.name!r} passes on what is no tensor of numbers.")
    return tuple(map(jnp.asarray, values))


@lowers("If", folds=True)
def if_(node: Operator, condition: Value, *captured: Value, context: Context) -> tuple[Value, ...]:
    """The branch that a condition chooses. Where it is computed from data, both must give the same shapes."""
    _, outer = outer_values(node, (condition, *captured))
    branches = [node.attributes[name] for name in ("else_branch", "then_branch")]
    if _known(condition):
        return run_body(branches[int(np.asarray(condition).reshape(()))], (), outer, context)

    def branch(body: Body) -> Any:
        return lambda: _tensors(node, run_body(body, (), outer, context))

    try:
        shapes = [jax.eval_shape(branch(body)) for body in branches]
    except (NotStaticError, OnlyOnHostError):
        shapes = []
    if not shapes or not _alike(*shapes):
        # Which branch it is decides about shapes: the condition must be known first.
        static(node, "cond", condition)
    return tuple(lax.cond(jnp.reshape(condition, ()), branch(branches[1]), branch(branches[0])))


@lowers("Loop", since=1)
def loop(
    node: Operator, rounds: Value | None, condition: Value | None, *values: Value, context: Context
) -> tuple[Value, ...]:
    """Repeats a body at most `rounds` times while its condition holds; values carried on, and results stacked."""
    (_, _, *carried), outer = outer_values(node, (rounds, condition, *values))
    body: Body = node.attributes["body"]
    count = len(carried)
    stacked = len(body.outputs) - 1 - count
    if condition is not None and _known(condition) and not condition.reshape(()):
        rounds = np.zeros((), np.int64)
    if not endless(body) or (condition is not None and not _known(condition)):
        return _while(node, body, rounds, condition, carried, outer, context, stacked)
    if rounds is None:
        raise ModelError(
            f"{node.op_type} node {node.name!r} never ends: it has no number of rounds, and its condition holds"
        )
    number = int(static(node, "M", rounds).reshape(()))
    if number <= UNROLLED:
        return _unrolled(node, body, number, carried, outer, context, stacked)
    try:
        return _scanned(node, body, number, carried, outer, context)
    except (NotStaticError, OnlyOnHostError) as error:
        if _is_outer(error, outer) or number > UNROLLED_AT_NEED:
            raise _for_host(node, error, outer) from error
    try:
        return _unrolled(node, body, number, carried, outer, context, stacked)
    except NotStaticError as error:
        raise _for_host(node, error, outer) from error


def _is_outer(error: Exception, outer: dict[str, Any]) -> bool:
    """Whether an operand that should be known before the run comes from the graph around: then it can become so."""
    operand = getattr(error, "operand", None)
    return operand is not None and any(operand is value for value in outer.values())


def _for_host(node: Operator, error: Exception, outer: dict[str, Any]) -> Exception:
    """What to raise of an operator with a body that cannot be compiled as it is."""
    if isinstance(error, OnlyOnHostError) or _is_outer(error, outer):
        return error
    return OnlyOnHostError(f"{node.op_type} node {node.name!r} needs in each round what the one before computed.")


def _scanned(
    node: Operator, body: Body, number: int, given: Sequence[Any], outer: dict[str, Any], context: Context
) -> tuple[Value, ...]:
    """A known number of rounds that are all alike."""
    carried = list(_tensors(node, given))
    count = len(carried)

    def step(values: list[Array], index: Array) -> tuple[list[Array], list[Array]]:
        given = (index, np.ones((), bool), *values)
        results = list(_tensors(node, run_body(body, given, outer, _of_round(context, index))[1:]))
        if not _alike(results[:count], values):
            raise OnlyOnHostError(f"{node.op_type} node {node.name!r} changes the shape of what it carries on.")
        return results[:count], results[count:]

    kept, results = lax.scan(step, carried, jnp.arange(number, dtype=jax.dtypes.canonicalize_dtype(np.int64)))
    return (*kept, *results)


def _of_round(context: Context, index: Any) -> Context:
    """Every round draws random numbers of its own."""
    return replace(context, key=jax.random.fold_in(context.key, index))


def endless(body: Body) -> bool:
    """Whether a body's condition is always true: a constant, or what it was given."""
    name = body.outputs[0]
    producer = {n: o for o in body.operators for n in o.outputs}
    while name in producer and producer[name].op_type == "Identity":
        name = producer[name].inputs[0]
    if len(body.inputs) > 1 and name == body.inputs[1]:
        return True
    if name in body.constants:
        return bool(np.all(body.constants[name]))
    if name in producer and producer[name].op_type == "Constant" and "value" in producer[name].attributes:
        return bool(np.all(producer[name].attributes["value"]))
    return False


def _unrolled(
    node: Operator,
    body: Body,
    number: int,
    carried: Sequence[Any],
    outer: dict[str, Any],
    context: Context,
    stacked: int,
) -> tuple[Value, ...]:
    rows: list[Sequence[Any]] = []
    for index in range(number):
        given = (np.asarray(index, np.int64), np.ones((), bool), *carried)
        _, *results = run_body(body, given, outer, _of_round(context, index))
        carried, row = results[: len(carried)], results[len(carried) :]
        rows.append(row)
    if stacked and not rows:
        raise OnlyOnHostError(f"{node.op_type} node {node.name!r} stacks the results of no round at all.")
    try:
        return (*carried, *(jnp.stack(_tensors(node, [r[i] for r in rows])) for i in range(stacked)))
    except ValueError:
        raise OnlyOnHostError(f"{node.op_type} node {node.name!r} stacks results of several shapes.") from None


def _while(
    node: Operator,
    body: Body,
    rounds: Value | None,
    condition: Value | None,
    carried: Sequence[Value],
    outer: dict[str, Any],
    context: Context,
    stacked: int,
) -> tuple[Value, ...]:
    """As many rounds as the data ask for: what is carried must keep its shape, and nothing is stacked."""
    if stacked:
        raise OnlyOnHostError(
            f"{node.op_type} node {node.name!r} stacks the results of a number of rounds that data decide."
        )
    integer = jax.dtypes.canonicalize_dtype(np.int64)
    most = jnp.asarray(np.iinfo(integer).max if rounds is None else rounds, integer).reshape(())
    start = jnp.asarray(True if condition is None else condition).reshape(())

    def holds(state: tuple[Any, ...]) -> Array:
        index, on, *_ = state
        return on & (index < most)

    def step(state: tuple[Any, ...]) -> tuple[Any, ...]:
        index, on, *values = state
        again, *results = _tensors(node, run_body(body, (index, on, *values), outer, _of_round(context, index)))
        if not _alike(results, values):
            raise OnlyOnHostError(f"{node.op_type} node {node.name!r} changes the shape of what it carries on.")
        return (index + 1, again.reshape(()), *results)

    state = (jnp.zeros((), integer), start, *_tensors(node, carried))
    try:
        if rounds is not None and _known(rounds) and rounds.reshape(()) <= BOUNDED:
            # A scan has a gradient, and rounds that are left out cost next to nothing.
            number = max(int(rounds.reshape(())), 0)
            (_, _, *kept), _ = lax.scan(lambda s, _: (lax.cond(s[1], step, lambda s: s, s), None), state, length=number)
        else:
            _, _, *kept = lax.while_loop(holds, step, state)
    except NotStaticError as error:
        raise _for_host(node, error, outer) from error
    return tuple(kept)


@lowers("Scan", since=9)
def scan(node: Operator, *values: Value, context: Context) -> tuple[Value, ...]:
    """Goes over slices of its last operands: a body gets the state and one slice of each, gives new state and results."""
    own, outer = outer_values(node, values)
    get = node.attributes.get
    body: Body = node.attributes["body"]
    slices = int(node.attributes["num_scan_inputs"])
    states = len(own) - slices
    outputs = len(body.outputs) - states
    backward = get("scan_input_directions") or (0,) * slices
    results_backward = get("scan_output_directions") or (0,) * outputs
    axes = get("scan_input_axes") or (0,) * slices
    result_axes = get("scan_output_axes") or (0,) * outputs
    rows = [jnp.moveaxis(jnp.asarray(v), axis, 0) for v, axis in zip(own[states:], axes, strict=True)]
    rows = [jnp.flip(v, 0) if back else v for v, back in zip(rows, backward, strict=True)]

    def step(state: list[Array], row: tuple[Array, list[Array]]) -> tuple[list[Array], list[Array]]:
        index, slices_ = row
        results = list(_tensors(node, run_body(body, (*state, *slices_), outer, _of_round(context, index))))
        return results[:states], results[states:]

    try:
        kept, stacked = lax.scan(step, list(_tensors(node, own[:states])), (jnp.arange(len(rows[0])), rows))
    except NotStaticError as error:
        raise _for_host(node, error, outer) from error
    stacked = [jnp.flip(v, 0) if back else v for v, back in zip(stacked, results_backward, strict=True)]
    return (*kept, *(jnp.moveaxis(v, 0, axis) for v, axis in zip(stacked, result_axes, strict=True)))


@lowers("Scan", since=8)
def scan_of_batch(node: Operator, lengths: Value | None, *values: Value, context: Context) -> tuple[Value, ...]:
    """Before opset 9: every operand has a batch axis first, the slices lie along the second."""
    if lengths is not None:
        raise OnlyOnHostError(f"Scan node {node.name!r} has sequences of several lengths.")
    own, outer = outer_values(node, (lengths, *values))
    body: Body = node.attributes["body"]
    slices = int(node.attributes["num_scan_inputs"])
    states = len(own) - 1 - slices
    backward = node.attributes.get("directions") or (0,) * slices

    def sample(*operands: Array) -> tuple[Array, ...]:
        rows = [jnp.flip(v, 0) if back else v for v, back in zip(operands[states:], backward, strict=True)]

        def step(state: list[Array], row: list[Array]) -> tuple[list[Array], list[Array]]:
            results = [jnp.asarray(v) for v in run_body(body, (*state, *row), outer, context)]
            return results[:states], results[states:]

        kept, stacked = lax.scan(step, list(operands[:states]), rows)
        return (*kept, *stacked)

    return tuple(jax.vmap(sample)(*(jnp.asarray(v) for v in own[1:])))
