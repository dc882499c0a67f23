"""Shapes of operators that hold graphs (If, Loop, Scan, SequenceMap), of sequences and of optional values.

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
    from .walk import Node, Rule, Scope, Walk

__all__ = ["CONTROL_FLOW_RULES"]

Operands = list["Known | None"]
# Exporters write a loop without a limit as one of the largest number there is.
MOST_ROUNDS = 2**31
ROUNDS_WALKED = 4


def _unknown(why: str) -> Exception:
    from .walk import UnknownShapeError

    return UnknownShapeError(why)


def _path(scope: Scope, node: Node, attribute: str) -> str:
    return f"{scope.path}/{node.name}/{attribute}" if scope.path else f"{node.name}/{attribute}"


def _if(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
    condition = operands[0]
    assert condition is not None
    if condition.exact is not None:
        taken = "then_branch" if bool(condition.exact.reshape(-1)[0]) else "else_branch"
        if not scope.path:
            walk.branches[scope.size][node.name] = taken
        return list(walk.body(node.bodies[taken], [], scope, _path(scope, node, taken)))
    both = [walk.body(node.bodies[b], [], scope, _path(scope, node, b)) for b in ("then_branch", "else_branch")]
    return [_either(a, b, name) for a, b, name in zip(*both, node.outputs, strict=True)]


def _either(a: Known, b: Known, name: str) -> Known:
    """What is either of two values."""
    if (a.kind, len(a.dims)) != (b.kind, len(b.dims)):
        raise _unknown(
            f"its branches give {name!r} shapes {list(a.dims)} and {list(b.dims)}, of which the data decide; "
            "export with one of the branches"
        )
    if a.dtype != b.dtype:
        raise _unknown(f"its branches give {name!r} two types; export the model again")
    differ = [i for i, (x, y) in enumerate(zip(a.dims, b.dims, strict=True)) if x != y]
    dims = [max(x, y) for x, y in zip(a.dims, b.dims, strict=True)]
    loose = (*differ, *a.loose, *b.loose)
    high = low = None
    if a.high is not None and b.high is not None and not loose and a.high.dtype != object:
        lows = [k.high if k.low is None else k.low for k in (a, b)]
        high, low = np.maximum(a.high, b.high), np.minimum(*lows)
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
    path = _path(scope, node, "body")
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
        raise _unknown(
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
        raise _unknown(f"the rank of {name!r} changes from round to round; export with the loop unrolled")
    steps = [tuple(b - a for a, b in zip(x.dims, y.dims, strict=True)) for x, y in pairwise(states)]
    steady = steps[-1] == steps[-2] if len(steps) > 1 else True
    if rounds is None or not steady:
        raise _unknown(
            f"{name!r} grows from round to round, and {'nothing bounds how often the loop runs' if rounds is None else 'not steadily'}; "
            "export with a fixed number of rounds"
        )
    grown = [d + (rounds - len(steps)) * step for d, step in zip(last.dims, steps[-1], strict=True)]
    dims = [max(d, 0) for d in grown]
    loose = () if certain else [i for i, step in enumerate(steps[-1]) if step]
    return Known(last.dtype, dims, loose=(*last.loose, *loose), kind=last.kind)


def _scan(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
    if node.version < 9:
        raise _unknown("Scan of operator set 8 is not supported; export with operator set 9 or newer")
    graph, path, given = node.bodies["body"], _path(scope, node, "body"), node.attributes
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


# --- sequences and optional values -----------------------------------------------------------------------------------


def _sequence(elements: Sequence[Known], count: int, *, loose: bool = False) -> Known:
    """A sequence of `count` values, each like one of `elements`; its dimensions are the largest of theirs."""
    first = elements[0]
    if any(len(e.dims) != len(first.dims) for e in elements):
        raise _unknown("a sequence of tensors of several ranks is not supported; export without sequences")
    dims = [max(extents) for extents in zip(*(e.dims for e in elements), strict=True)]
    differ = [i + 1 for i, extents in enumerate(zip(*(e.dims for e in elements), strict=True)) if len(set(extents)) > 1]
    inner = {i + 1 for e in elements for i in e.loose}
    return Known(first.dtype, (count, *dims), loose=(*((0,) if loose else ()), *differ, *inner), kind="sequence")


def _element(sequence: Known) -> Known:
    if len(sequence.dims) < 1 or sequence.dims == (0,):
        raise _unknown("the elements of an empty sequence have no shape; export without sequences")
    return Known(sequence.dtype, sequence.dims[1:], loose=[i - 1 for i in sequence.loose if i])


def _construct(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
    present = [o for o in operands if o is not None]
    return [_sequence(present, len(present))]


def _empty(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
    return [Known(int(node.attributes.get("dtype", TensorProto.FLOAT)), (0,), kind="sequence")]


def _insert(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
    whole, item = operands[0], operands[1]
    assert whole is not None
    assert item is not None
    elements = [item] if not whole.dims[0] else [_element(whole), item]
    return [_sequence(elements, whole.dims[0] + 1, loose=0 in whole.loose)]


def _erase(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
    whole = operands[0]
    assert whole is not None
    return [Known(whole.dtype, (max(whole.dims[0] - 1, 0), *whole.dims[1:]), loose=whole.loose, kind="sequence")]


def _at(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
    whole = operands[0]
    assert whole is not None
    return [_element(whole)]


def _length(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
    whole = operands[0]
    assert whole is not None
    most = np.asarray(whole.dims[0], np.int64)
    return [Known.of_value(most, np.asarray(0, np.int64) if 0 in whole.loose else None)]


def _split(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
    data, split = operands[0], operands[1] if len(operands) > 1 else None
    assert data is not None
    axis = node.attributes.get("axis", 0) % len(data.dims)
    extent, dims = data.dims[axis], list(data.dims)
    if split is None:
        count, part = extent, 1
        if not node.attributes.get("keepdims", 1):
            del dims[axis]
            loose = [i - (i > axis) + 1 for i in data.loose if i != axis]
            return [
                Known(data.dtype, (count, *dims), loose=[*loose, *([0] if axis in data.loose else [])], kind="sequence")
            ]
        equal = True
    elif split.exact is None:
        count, part, equal = (split.elements if split.dims else extent), extent, False
    elif split.dims:
        count, part = split.elements, int(split.exact.max(initial=0))
        equal = len(set(split.exact.tolist())) <= 1
    else:
        part = max(int(split.exact.reshape(-1)[0]), 1)
        count, equal = -(-extent // part), not extent % part
    dims[axis] = part
    loose = [i + 1 for i in data.loose if i != axis] + ([] if equal else [axis + 1])
    open_count = axis in data.loose or (split is not None and split.exact is None and not split.dims)
    return [Known(data.dtype, (count, *dims), loose=[*loose, *([0] if open_count else [])], kind="sequence")]


def _concat(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
    whole = operands[0]
    assert whole is not None
    item, axis = _element(whole), int(node.attributes["axis"])
    if node.attributes.get("new_axis", 0):
        at = axis % (len(item.dims) + 1)
        loose = [i + (i >= at) for i in item.loose] + ([at] if 0 in whole.loose else [])
        return [Known(item.dtype, (*item.dims[:at], whole.dims[0], *item.dims[at:]), loose=loose)]
    at = axis % len(item.dims)
    dims = list(item.dims)
    dims[at] *= whole.dims[0]
    return [Known(item.dtype, dims, loose=[*item.loose, *([at] if 0 in whole.loose else [])])]


def _map(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
    present = [o for o in operands if o is not None]
    inputs = [_element(o) if o.kind == "sequence" else o for o in present]
    results = walk.body(node.bodies["body"], inputs, scope, _path(scope, node, "body"))
    first = present[0]
    walk.trips[scope.size][_path(scope, node, "body").rpartition("/")[0]] = first.dims[0]
    return [_sequence([r], first.dims[0], loose=0 in first.loose) for r in results]


def _identity(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
    whole = operands[0]
    return [whole] if whole is not None and whole.kind else walk.usual(node, operands)


def _optional(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
    held = operands[0] if operands else None
    if held is None:
        raise _unknown("what an empty optional would hold has no shape; export without optionals")
    return [Known(held.dtype, held.dims, loose=held.loose, kind=f"optional {held.kind}".strip())]


def _optional_element(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
    held = operands[0]
    assert held is not None
    return [Known(held.dtype, held.dims, loose=held.loose, kind=held.kind.removeprefix("optional").strip())]


def _optional_has(walk: Walk, node: Node, operands: Operands, scope: Scope) -> Operands:
    return [Known.of_value(np.asarray(bool(operands and operands[0] is not None)))]


CONTROL_FLOW_RULES: dict[tuple[str, str], Rule] = {
    ("", "If"): _if,
    ("", "Loop"): _loop,
    ("", "Scan"): _scan,
    ("", "SequenceMap"): _map,
    ("", "SequenceConstruct"): _construct,
    ("", "SequenceEmpty"): _empty,
    ("", "SequenceInsert"): _insert,
    ("", "SequenceErase"): _erase,
    ("", "SequenceAt"): _at,
    ("", "SequenceLength"): _length,
    ("", "SplitToSequence"): _split,
    ("", "ConcatFromSequence"): _concat,
    ("", "Identity"): _identity,
    ("", "Optional"): _optional,
    ("", "OptionalGetElement"): _optional_element,
    ("", "OptionalHasElement"): _optional_has,
}
