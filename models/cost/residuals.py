"""What the forward pass keeps for the backward pass: which tensors, each once, and their bytes.

The rules follow the derivatives (d is a gradient):

| operators | kept, where the gradient that needs it is wanted |
|---|---|
| matmul, conv, rnn, attention | an operand, if another operand wants a gradient: ``dA = dC B^T``, ``dB = A^T dC`` |
| Mul | either operand, if the other wants a gradient; Div its operands and, for the divisor's gradient, the result |
| Relu, Sigmoid, Tanh, Exp, Sqrt, Softmax and others whose derivative is a function of the result | the result |
| other element-wise operators | the operands; Add, Sub, Neg, Identity, Cast and the like nothing |
| Dropout | its mask, one byte an element |
| normalisation | the operand and the statistics |
| MaxPool and other maxima | operand and result; averages and sums nothing |
| Gather and other look-ups | the indices |
| loss | the operand |
| data movement, views | nothing |

Parameters, constants and state are not counted: they live anyway. A view shares the memory of what it shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ..onnxpp.graph import Graph, Operator
from .memo import memo_of
from .roofline import storage

__all__ = ["residual_bytes", "residual_tensors", "wants_gradient"]

_PRODUCTS = frozenset({"matmul", "conv", "rnn", "attention"})
_TWO_FACTORS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose"})
_LINEAR = frozenset(
    {
        "Add",
        "Sub",
        "Neg",
        "Identity",
        "Cast",
        "CastLike",
        "Sum",
        "Mean",
        "Not",
        "And",
        "Or",
        "Xor",
        "Equal",
        "Less",
        "Greater",
    }
    | {"LessOrEqual", "GreaterOrEqual", "Sign", "Floor", "Ceil", "Round", "IsNaN", "IsInf", "ConstantOfShape", "Shape"}
)
_BY_RESULT = frozenset(
    {"Relu", "LeakyRelu", "Elu", "Selu", "Celu", "ThresholdedRelu", "Sigmoid", "Tanh", "Exp", "Sqrt", "Reciprocal"}
    | {"Softmax", "LogSoftmax", "Softplus", "HardSigmoid"}
)
_MAXIMA = frozenset({"MaxPool", "GlobalMaxPool", "LpPool", "GlobalLpPool", "ReduceMax", "ReduceMin", "ReduceProd"})
_MAXIMA |= {"ReduceL2", "ReduceLogSumExp", "ReduceL1", "ReduceSumSquare", "ReduceLogSum"}


def wants_gradient(graph: Graph) -> frozenset[str]:
    """The float tensors that depend on a trainable parameter."""
    memo = memo_of(graph)
    if "wants_gradient" not in memo:
        wanted = set(graph.parameters)
        for operator in graph.operators:
            if wanted.intersection(operator.inputs):
                wanted.update(t for t in operator.outputs if t and graph.tensors[t].is_float)
        memo["wants_gradient"] = frozenset(wanted)
    found: frozenset[str] = memo["wants_gradient"]
    return found


def residual_tensors(graph: Graph, operators: Sequence[str], *, fused: bool = False) -> tuple[str, ...]:
    """The activations that the forward pass of `operators` keeps, each once, in the order in which they are met.

    Tensors that come into the segment from outside are among them where an operator inside keeps them. A view stands
    for the tensor that it shows. Masks of Dropout and statistics of normalisation have no name, so only
    :func:`residual_bytes` counts them. `fused`: element-wise operators run in one kernel with those before them, so that
    what they hand each other is computed again from the first one's operands instead of kept.
    """
    wanted = wants_gradient(graph)
    lasting = _lasting(graph)
    shows = _views(graph)
    inside = frozenset(operators)
    kept: dict[str, None] = {}

    def keep(tensor: str, *, elementwise: bool) -> None:
        while tensor in shows:
            tensor = shows[tensor]
        if not tensor or tensor in lasting:
            return
        producer = graph.producer.get(tensor)
        again = elementwise and producer is not None and producer.name in inside and _is_cheap(producer)
        if again and producer is not None:
            for operand in producer.inputs:
                keep(operand, elementwise=True)
        else:
            kept[tensor] = None

    for name in operators:
        operator = graph.operator[name]
        for tensor in _kept(operator, wanted):
            keep(tensor, elementwise=fused and operator.family == "elementwise")
    return tuple(kept)


def _is_cheap(operator: Operator) -> bool:
    """Whether a kernel computes an operator again from its operands: element by element, and nothing drawn at random."""
    return operator.family == "elementwise" and operator.op_type != "Dropout"


def residual_bytes(
    graph: Graph, operators: Sequence[str], *, batch: int, precision: str = "float32", fused: bool = False
) -> int:
    """Bytes that the forward pass of `operators` keeps for the backward pass, for `batch` samples."""
    stored = storage(precision)
    total = sum(graph.tensors[t].nbytes(batch, stored) for t in residual_tensors(graph, operators, fused=fused))
    wanted = wants_gradient(graph)
    for name in operators:
        operator = graph.operator[name]
        if not wanted.intersection(operator.inputs):
            continue
        if operator.op_type == "Dropout":
            total += graph.tensors[operator.outputs[0]].elements(batch)
        elif operator.family == "normalisation":
            total += _statistics_bytes(graph, operator, batch, stored)
    return total


def _kept(operator: Operator, wanted: frozenset[str]) -> Iterable[str]:
    inputs = [t for t in operator.inputs if t]
    if not wanted.intersection(inputs):
        return ()
    first, family, kind = inputs[0], operator.family, operator.op_type
    if family in _PRODUCTS or kind == "Mul":
        # A bias is only added: its gradient needs nothing, and nobody's needs it.
        factors = inputs[:2] if kind in _TWO_FACTORS else inputs
        kept = [t for i, t in enumerate(factors) if wanted.intersection(factors[:i] + factors[i + 1 :])]
        return [*kept, *operator.outputs[:1]] if family in ("rnn", "attention") else kept
    if kind == "Div":
        return (inputs[1], operator.outputs[0]) if inputs[1] in wanted else (inputs[1],)
    if kind in _BY_RESULT or family == "softmax":
        return operator.outputs[:1]
    if kind == "Dropout" or kind in _LINEAR or family in ("movement", "view"):
        return ()
    if kind in _MAXIMA:
        return (first, operator.outputs[0])
    if family in ("pooling", "reduction"):
        return ()
    if family == "gather":
        return inputs[1:2]
    if family in ("normalisation", "loss"):
        return (first,) if family == "normalisation" else inputs
    return inputs


def _statistics_bytes(graph: Graph, operator: Operator, batch: int, precision: str) -> int:
    """Mean and inverse deviation: per channel for a batch norm, else one of each per normalised row."""
    x = graph.tensors[operator.inputs[0]]
    dims = x.dims(batch)
    if operator.op_type == "BatchNormalization":
        count = dims[1] if len(dims) > 1 else 1
    else:
        scale = operator.inputs[1] if len(operator.inputs) > 1 else ""
        row = graph.tensors[scale].elements(batch) if scale else (dims[-1] if dims else 1)
        count = x.elements(batch) // max(row, 1)
    per_element = x.nbytes(batch, precision) // max(x.elements(batch), 1)
    return 2 * count * per_element


def _lasting(graph: Graph) -> frozenset[str]:
    memo = memo_of(graph)
    if "lasting" not in memo:
        memo["lasting"] = frozenset((*graph.parameters, *graph.constants, *graph.state))
    found: frozenset[str] = memo["lasting"]
    return found


def _views(graph: Graph) -> Mapping[str, str]:
    memo = memo_of(graph)
    if "views" not in memo:
        memo["views"] = {o.outputs[0]: o.inputs[0] for o in graph.operators if o.family == "view" and o.inputs}
    found: Mapping[str, str] = memo["views"]
    return found
