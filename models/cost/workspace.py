"""What a compiled segment needs in memory beyond its arguments and results.

XLA reports arguments, outputs and temporaries; the peak of a call was measured as arguments + outputs - aliased +
temporaries plus 5 to 20 % (on XLA:CPU). Temporaries are modelled as

* the intermediates that live at once between the segment's borders, walking its operators in order (in reverse for a
  backward pass, where they are gradients of the same sizes), without those that fusion never writes and those kept
  as residuals; and
* the largest convolution's unfolded operand (``im2col``: a column of channels x kernel for every output position),
  which the libraries and the CPU lowering build for small pictures; bounded by :data:`MOST_UNFOLDED_BYTES` as larger
  ones are convolved directly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, prod

from ..onnxpp.graph import Graph, Operator, item_bytes
from .fusing import fusion
from .memo import memo_of
from .residuals import residual_tensors
from .roofline import storage

__all__ = ["MOST_UNFOLDED_BYTES", "SLACK", "workspace_bytes"]

# Measured peaks lie 5 to 20 % above the sum of what XLA reports: alignment and fragmentation.
SLACK = 1.2
MOST_UNFOLDED_BYTES = 1 << 28
# Convolutions to pictures of at most this many positions a side are unfolded (im2col was fastest up to 7 x 7).
_UNFOLDED_SIDE = 7


def workspace_bytes(
    graph: Graph, operators: Sequence[str], *, batch: int, phase: str, precision: str = "float32"
) -> int:
    """Temporary bytes of `operators` compiled as one in `phase` for `batch` samples, :data:`SLACK` included."""
    stored = storage(precision)
    backward = phase.startswith("backward")
    inside = frozenset(operators)
    readers = _readers(graph)
    wanted_later = frozenset((*graph.outputs, *graph.state.values(), graph.loss))
    kept = frozenset(residual_tensors(graph, operators)) if graph.loss else frozenset()
    saved = fusion(graph, operators, batch=batch, phase=phase, precision=precision).saved_bytes

    def size(producer: Operator, tensor: str) -> int:
        """Bytes that `tensor` (backward: its gradient) takes between the operators; 0 where it does not exist in
        memory.
        """
        if not tensor or producer.family == "view" or tensor in wanted_later:
            return 0
        if not inside.issuperset(readers.get(tensor, ())):
            return 0
        if not backward and tensor in kept:
            return 0
        nbytes = graph.tensors[tensor].nbytes(batch, stored)
        unwritten = saved.get(producer.name, 0) >= nbytes and len(producer.outputs) == 1
        return 0 if unwritten else nbytes

    born: dict[str, tuple[int, int]] = {}  # tensor: (position at which it appears, bytes)
    last: dict[str, int] = {}
    for position, name in enumerate(operators):
        operator = graph.operator[name]
        for tensor in operator.outputs:
            born[tensor] = (position, size(operator, tensor))
        for tensor in operator.inputs:
            if tensor in born:
                last[tensor] = position
    # Liveness is the same walked backwards: a gradient appears where its tensor was last read and goes where it was
    # made.
    change = [0] * (len(operators) + 1)
    for tensor, (position, nbytes) in born.items():
        change[position] += nbytes
        change[last.get(tensor, position) + 1] -= nbytes
    live = most = 0
    for step in change:
        live += step
        most = max(most, live)
    unfolded = max((_unfolded_bytes(graph, graph.operator[n], batch, stored) for n in operators), default=0)
    return ceil((most + unfolded) * SLACK)


def _readers(graph: Graph) -> Mapping[str, Sequence[str]]:
    """By tensor, the names of the operators that read it."""
    memo = memo_of(graph)
    if "readers" not in memo:
        found: dict[str, list[str]] = {}
        for operator in graph.operators:
            for tensor in operator.inputs:
                found.setdefault(tensor, []).append(operator.name)
        memo["readers"] = found
    kept: Mapping[str, Sequence[str]] = memo["readers"]
    return kept


def _unfolded_bytes(graph: Graph, operator: Operator, batch: int, precision: str) -> int:
    if operator.op_type != "Conv" or len(operator.inputs) < 2:
        return 0
    weight = graph.tensors[operator.inputs[1]].dims(batch)
    out = graph.tensors[operator.outputs[0]].dims(batch)
    kernel, positions = weight[2:], out[2:]
    if prod(kernel) == 1 or max(positions, default=0) > _UNFOLDED_SIDE:
        return 0
    return min(out[0] * prod(positions) * prod(weight[1:]) * item_bytes(precision), MOST_UNFOLDED_BYTES)
