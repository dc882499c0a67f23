"""Shapes of operators that hold graphs (If, Loop, Scan).

A condition that is known when the batch and the other dimensions are bound decides for its branch. Otherwise a result has
what both branches agree on, and where they differ in a dimension the larger of the two, as the most that there can be. A
loop's body is walked until its carried values keep their shapes; where they grow by the same every time, the number of
rounds says how far.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto

from .known import Known

if TYPE_CHECKING:
    from .scope import Node, Scope
    from .walk import Rule, Walk

__all__ = ["CONTROL_FLOW_RULES", "path_of", "unknown"]

Operands = list["Known | None"]
# Exporters write a loop without a limit as one of the largest number there is.
MOST_ROUNDS = 2**31
ROUNDS_WALKED = 4


def unknown(why: str) -> Exception:
    """The refusal of a shape."""
    from .scope import UnknownShapeError

    return UnknownShapeError(why)


def path_of(scope: Scope, node: Node, attribute: str) -> str:
    """Where a graph stands that is an attribute of a node."""
    return f"{scope.path}/{node.name}/{attribute}" if scope.path else f"{node.name}/{attribute}"


def _if(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
    condition = operands[0]
    assert condition is not None
    if condition.exact is not None:
        taken = "then_branch" if bool(condition.exact.reshape(-1)[0]) else "else_branch"
        if not scope.path:
            walk.branches[scope.size][node.name] = taken
        return list(walk.body(node.bodies[taken], [], scope, path_of(scope, node, taken)))
    both = [walk.body(node.bodies[b], [], scope, path_of(scope, node, b)) for b in ("then_branch", "else_branch")]
    return [_either(a, b, name) for a, b, name in zip(*both, node.outputs, strict=True)]


def _either(a: Known, b: Known, name: str) -> Known:
    """What is either of two values."""
    if (a.kind, len(a.dims)) != (b.kind, len(b.dims)):
        raise unknown(
            f"its branches give {name!r} shapes {list(a.dims)} and {list(b.dims)}, of which the data decide; "
            "export with one of the branches"
        )
    if a.dtype != b.dtype:
        raise unknown(f"its branches give {name!r} two types; export the model again")
    differ = [i for i, (x, y) in enumerate(zip(a.dims, b.dims, strict=True)) if x != y]
    dims = [max(x, y) for x, y in zip(a.dims, b.dims, strict=True)]
    loose = (*differ, *a.loose, *b.loose)
    high = low = None
    if a.high is not None and b.high is not None and not loose and a.high.dtype != object:
        first, second = a.high if a.low is None else a.low, b.high if b.low is None else b.low
        high, low = np.maximum(a.high, b.high), np.minimum(first, second)
        low = None if np.array_equal(low, high) else low
    return Known(a.dtype, dims, loose=loose, high=high, low=low, kind=a.kind)


def _rounds(operand: Known | None, condition: Known | None, *, checks: bool) -> tuple[int | None, bool]:
    """(how often a loop runs at most, whether that is how often it runs); None where nothing says."""
    if condition is not None and condition.exact is not None and not bool(condition.exact.reshape(-1)[0]):
        return 0, True
    if operand is None or operand.high is None:
        return None, False
    most = int(operand.high.reshape(-1)[0])
    if most >= MOST_ROUNDS:
        return None, False
    return max(most, 0), operand.exact is not None and not checks


def _loop(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
    graph = node.bodies["body"]
    path = path_of(scope, node, "body")
    start = operands[1] if len(operands) > 1 else None
    carried = [o for o in operands[2:] if o is not None]
    # A body that computes its condition from constants alone, or hands it on, never stops early.
    checks = _checks(graph, start)
    rounds, certain = _rounds(operands[0] if operands else None, start, checks=checks)
    count = np.asarray(0, np.int64)
    number = Known.of_value(np.asarray(max((rounds or 1) - 1, 0), np.int64), count)
    condition = Known(TensorProto.BOOL, ())
    if not checks:
        condition = Known.of_value(np.asarray(True))

    def run(values: Sequence[Known]) -> list[Known]:
        return walk.body(graph, [number, condition, *values], scope, path)

    states = [[_carried(v) for v in carried]]
    outputs = run(states[0]) if rounds != 0 else None
    if outputs is None:
        results: Operands = list(carried)
        made = run(states[0])
        return [*results, *(Known(k.dtype, (0, *k.dims)) for k in made[1 + len(carried) :])]
    for _ in range(ROUNDS_WALKED):
        states.append([_carried(v) for v in outputs[1 : 1 + len(carried)]])
        if all(_same(a, b) for a, b in zip(states[-2], states[-1], strict=True)):
            break
        outputs = run(states[-1])
    final = [
        _grown([s[i] for s in states], rounds, certain, name)
        for i, name in zip(range(len(carried)), node.outputs, strict=False)
    ]
    if any(not _same(a, b) for a, b in zip(final, states[-1], strict=True)):
        outputs = run(final)
    if rounds is not None:
        walk.trips[scope.size][path.rpartition("/")[0]] = rounds
    scans = outputs[1 + len(carried) :]
    if scans and rounds is None:
        raise unknown(
            f"how often the loop runs, and so the length of {node.outputs[len(carried)]!r}, depends on data, and nothing "
            "bounds it; export with a fixed number of rounds"
        )
    stacked = [
        Known(k.dtype, (rounds or 0, *k.dims), loose=(*(() if certain else (0,)), *(i + 1 for i in k.loose)))
        for k in scans
    ]
    if not certain:
        final = [_either(a, b, n) for a, b, n in zip(final, map(_carried, carried), node.outputs, strict=False)]
    return [*final, *stacked]


def _checks(graph: Any, start: Known | None) -> bool:
    """Whether a loop's body may end it before its rounds are over."""
    name = graph.output[0].name
    constants = {t.name: t for t in graph.initializer}
    producer = {n: node for node in graph.node for n in node.output}
    while name in producer and producer[name].op_type == "Identity":
        name = producer[name].input[0]
    if len(graph.input) > 1 and name == graph.input[1].name:
        return start is not None and start.exact is None
    if name in constants:
        from onnx import numpy_helper

        return not bool(numpy_helper.to_array(constants[name]).reshape(-1)[0])
    node = producer.get(name)
    if node is not None and node.op_type == "Constant" and node.attribute[0].name == "value":
        from onnx import numpy_helper

        return not bool(numpy_helper.to_array(node.attribute[0].t).reshape(-1)[0])
    return True


def _carried(value: Known) -> Known:
    """A value from one round to the next: what it holds changes, its shape perhaps too."""
    return value.without_value()


def _same(a: Known, b: Known) -> bool:
    return a.shape_only() == b.shape_only()


def _grown(states: Sequence[Known], rounds: int | None, certain: bool, name: str) -> Known:
    """A carried value after `rounds` rounds, from its first few."""
    first, last = states[0], states[-1]
    if len(states) < 2 or _same(states[-2], last):
        if len(states) > 2 and not _same(first, last):
            return last if certain and (rounds or 0) >= len(states) - 2 else _either(last, first, name)
        return last
    if any(len(s.dims) != len(first.dims) for s in states):
        raise unknown(f"the rank of {name!r} changes from round to round; export with the loop unrolled")
    steps = [tuple(b - a for a, b in zip(x.dims, y.dims, strict=True)) for x, y in pairwise(states)]
    steady = steps[-1] == steps[-2] if len(steps) > 1 else True
    if rounds is None or not steady:
        raise unknown(
            f"{name!r} grows from round to round, and {'nothing bounds how often the loop runs' if rounds is None else 'not steadily'}; "
            "export with a fixed number of rounds"
        )
    grown = [d + (rounds - len(steps)) * step for d, step in zip(last.dims, steps[-1], strict=True)]
    dims = [max(d, 0) for d in grown]
    loose = () if certain else [i for i, step in enumerate(steps[-1]) if step]
    return Known(last.dtype, dims, loose=(*last.loose, *loose), kind=last.kind)


def _scan(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
    if node.version < 9:
        raise unknown("Scan of operator set 8 is not supported; export with operator set 9 or newer")
    graph, path, given = node.bodies["body"], path_of(scope, node, "body"), node.attributes
    count = int(given["num_scan_inputs"])
    present = [o for o in operands if o is not None]
    state, scanned = present[: len(present) - count], present[len(present) - count :]
    axes = [a % len(o.dims) for a, o in zip(given.get("scan_input_axes") or [0] * count, scanned, strict=True)]
    rounds = min((o.dims[a] for o, a in zip(scanned, axes, strict=True)), default=0)
    open_rounds = any(a in o.loose for o, a in zip(scanned, axes, strict=True))
    parts = [
        Known(o.dtype, o.dims[:a] + o.dims[a + 1 :], loose=[i - (i > a) for i in o.loose if i != a])
        for o, a in zip(scanned, axes, strict=True)
    ]
    states = [[_carried(v) for v in state]]
    outputs = walk.body(graph, [*states[0], *parts], scope, path)
    for _ in range(ROUNDS_WALKED):
        states.append([_carried(v) for v in outputs[: len(state)]])
        if all(_same(a, b) for a, b in zip(states[-2], states[-1], strict=True)):
            break
        outputs = walk.body(graph, [*states[-1], *parts], scope, path)
    final = [
        _grown([s[i] for s in states], rounds, not open_rounds, n)
        for i, n in zip(range(len(state)), node.outputs, strict=False)
    ]
    walk.trips[scope.size][path.rpartition("/")[0]] = rounds
    made = outputs[len(state) :]
    stacked: list[Known] = []
    for k, axis in zip(made, given.get("scan_output_axes") or [0] * len(made), strict=True):
        at = axis % (len(k.dims) + 1)
        loose = [i + (i >= at) for i in k.loose] + ([at] if open_rounds else [])
        stacked.append(Known(k.dtype, (*k.dims[:at], rounds, *k.dims[at:]), loose=loose))
    return [*final, *stacked]


CONTROL_FLOW_RULES: dict[tuple[str, str], Rule] = {
    ("", "If"): _if,
    ("", "Loop"): _loop,
    ("", "Scan"): _scan,
}
