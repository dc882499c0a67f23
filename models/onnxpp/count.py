"""What an operator costs in arithmetic and memory traffic, before any device is known.

Conventions. A multiply-add is two FLOPs. An elementwise operator does :data:`PER_ELEMENT` FLOPs per element of its
result, a transcendental function counting as the additions, multiplications and divisions of its textbook form with
exp, log, sqrt and erf as one each. Bytes are operands read plus results written, each once, at the working precision:
what a device moves that keeps nothing between operators. Views move nothing.

Backward. Let y = f(x, w). ``backward_input`` computes the gradients of the operands that are data,
``backward_weight`` those of the trained parameters, ``backward`` both. A product (matmul, convolution) costs its
forward FLOPs once per operand that gets a gradient: dL/dx = dL/dy · wᵀ and dL/dw = xᵀ · dL/dy have the forward's
multiply-adds each (Goodfellow, Bengio, Courville, "Deep Learning", 2016, section 6.5.6). Each gradient of an operand
reads dL/dy and the other operands and writes as many bytes as the operand has. Attention, which keeps no scores, does
its two products again as five (Dao et al. 2022, algorithm 4), and only what a causal one sees. Everything else reads
dL/dy and the operands that its derivative depends on once and does the forward's FLOPs twice: one product with the derivative for
every evaluation of it; a bias or scale adds one reduction of dL/dy. A sum hands dL/dy on as it is: no work, but where two
activations join, the gradients of the two ways that parted before are added up once, which is counted here. Whether the first
layer's input needs a gradient is the caller's to know.

Operators that are neither products nor element by element have a formula each in :mod:`.formulas`; those that hold
graphs do what the graphs do. What hangs on values (how many boxes overlap, which branch is taken) is counted at its most.

A batch normalisation that trains reads its operand twice: for the statistics, then to normalise.

>>> from hpdlf.models.onnxpp.graph import Dim, Graph, Operator, Tensor
>>> dims = {"x": (Dim(per_sample=1), Dim(8)), "w": (Dim(8), Dim(4)), "y": (Dim(per_sample=1), Dim(4))}
>>> product = Operator(name="p", op_type="MatMul", family="matmul", inputs=("x", "w"), outputs=("y",))
>>> graph = Graph(name="g", opset=18, operators=(product,), inputs=("x",), targets=(), outputs=("y",), loss=None,
...     tensors={k: Tensor(name=k, dtype="float32", shape=v) for k, v in dims.items()},
...     parameters=("w",), state={}, constants=())
>>> work(product, graph, batch=2, phase="forward")
Work(flops=128, read_bytes=192, write_bytes=32)
>>> work(product, graph, batch=2, phase="backward_weight")
Work(flops=128, read_bytes=96, write_bytes=128)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import prod
from typing import Literal, NamedTuple

from .families import FAMILIES, FAMILY_OPERATORS, PER_ELEMENT, family
from .formulas import FORMULAS, trips
from .graph import Body, Dim, Graph, Operator, Tensor

__all__ = ["FAMILIES", "FAMILY_OPERATORS", "PER_ELEMENT", "PHASES", "Phase", "Work", "family", "work"]

Phase = Literal["forward", "backward", "backward_input", "backward_weight"]
PHASES: tuple[Phase, ...] = ("forward", "backward", "backward_input", "backward_weight")

RUN_BODIES = frozenset({"If", "Loop", "Scan", "SequenceMap", "Gradient"})
FREE_FORWARD = {"movement", "gather", "view"}
# The gradient of what these compute does not depend on their operands; those of SUMS is dL/dy itself.
SUMS = frozenset({"Add", "Sub", "Sum", "Neg", "Identity"})
LINEAR = SUMS | {"Cast", "CastLike", "Mean", "RotaryEmbedding"}


class Work(NamedTuple):
    """FLOPs, bytes read and bytes written."""

    flops: int
    read_bytes: int
    write_bytes: int

    def plus(self, other: Work) -> Work:
        """The sum of both."""
        return Work(self.flops + other.flops, self.read_bytes + other.read_bytes, self.write_bytes + other.write_bytes)


def work(operator: Operator, graph: Graph, *, batch: int, phase: Phase, precision: str = "float32") -> Work:
    """FLOPs and bytes of one operator for `batch` samples at a working `precision` (of its floating-point tensors).

    Raises ValueError for a phase that does not exist.
    """
    if phase not in PHASES:
        raise ValueError(f"phase {phase!r}: expected one of {', '.join(PHASES)}")
    if operator.family == "view":
        return Work(0, 0, 0)
    if phase == "forward":
        return _forward(operator, graph, batch, precision)
    if phase == "backward":
        data = _backward(operator, graph, batch, precision, weights=False)
        return data.plus(_backward(operator, graph, batch, precision, weights=True))
    return _backward(operator, graph, batch, precision, weights=phase == "backward_weight")


def _bytes(names: Iterable[str], graph: Graph, batch: int, precision: str) -> int:
    return sum(graph.tensors[name].nbytes(batch, precision) for name in names if name)


def _forward(operator: Operator, graph: Graph, batch: int, precision: str) -> Work:
    if _bodies(operator):
        return _bodies_work(operator, graph, batch, precision, "forward")
    flops = _forward_flops(operator, graph, batch)
    write = _bytes(operator.outputs, graph, batch, precision)
    if operator.family == "gather" and operator.op_type.startswith("Gather"):
        # What is gathered is read, not the table; then the indices.
        read = _bytes(operator.outputs[:1], graph, batch, precision) + _bytes(
            operator.inputs[1:], graph, batch, precision
        )
    elif operator.op_type == "Slice":
        read = write
    elif operator.op_type == "BatchNormalization" and operator.attributes.get("training_mode"):
        read = _bytes((operator.inputs[0], *operator.inputs), graph, batch, precision)
    else:
        read = _bytes(operator.inputs, graph, batch, precision)
    return Work(flops, read, write)


def _size(name: str, graph: Graph, batch: int) -> int:
    return graph.tensors[name].elements(batch)


def _forward_flops(operator: Operator, graph: Graph, batch: int) -> int:
    kind, op_type = operator.family, operator.op_type
    if op_type in FORMULAS:
        return FORMULAS[op_type](
            operator,
            [graph.tensors[name].dims(batch) if name else () for name in operator.inputs],
            [graph.tensors[name].dims(batch) if name else () for name in operator.outputs],
        )
    if kind in FREE_FORWARD:
        return 0
    result = _size(next(filter(None, operator.outputs)), graph, batch)
    if kind in ("matmul", "conv"):
        return 2 * _multiply_adds(operator, graph, batch) + (result if _bias(operator) else 0)
    first = _size(operator.inputs[0], graph, batch) if operator.inputs and operator.inputs[0] else result
    if kind == "pooling":
        window = operator.attributes.get("kernel_shape")
        return result * prod(window) if window else first
    if kind == "reduction":
        return first
    if kind == "rnn":
        return _recurrent_flops(operator, graph, batch)
    if kind == "loss":
        return first * PER_ELEMENT.get(op_type, 1)
    if op_type == "LRN":
        return result * (2 * int(operator.attributes.get("size", 5)) + 3)
    if op_type == "BatchNormalization" and operator.attributes.get("training_mode"):
        return result * PER_ELEMENT["LayerNormalization"]
    operands = max(sum(1 for name in operator.inputs if name) - 1, 1) if op_type in ("Sum", "Mean", "Max", "Min") else 1
    return result * PER_ELEMENT.get(op_type, 1) * operands


def _bias(operator: Operator) -> str:
    """The operand that is added to a product: Conv's and Gemm's third."""
    if operator.op_type in ("Conv", "ConvTranspose", "Gemm") and len(operator.inputs) > 2:
        return operator.inputs[2]
    return ""


def _multiply_adds(operator: Operator, graph: Graph, batch: int) -> int:
    tensors, op_type = graph.tensors, operator.op_type
    shapes = [tensors[name].dims(batch) if name else () for name in operator.inputs]
    result = prod(tensors[operator.outputs[0]].dims(batch))
    if op_type == "ConvTranspose":
        # Every element of the input meets the kernels of its group's output channels.
        return prod(shapes[0]) * prod(shapes[1][1:])
    if operator.family == "conv":
        weight = shapes[3] if op_type == "QLinearConv" else shapes[1]
        return result * prod(weight[1:])
    if op_type == "Gemm":
        return result * (shapes[0][0] if operator.attributes.get("transA") else shapes[0][1])
    if op_type == "Einsum":
        return _einsum_multiply_adds(operator, shapes)
    if op_type in ("Attention", "FlexAttention", "LinearAttention"):
        # Scores q·kᵀ and the weighted sum of v: every query element meets the key positions it sees, and so back.
        queries, keys = shapes[0][-2], shapes[1][-2]
        most = min(queries, keys)
        seen = queries * keys
        if operator.attributes.get("is_causal"):
            seen = most * (most + 1) // 2 + (queries - most) * keys
            if operator.attributes.get("queries_shared"):  # ranks have parts of the queries that see equally much
                seen = queries * (keys + 1) // 2
        return (prod(shapes[0]) + result) // queries * seen
    return result * (shapes[0][-1] if shapes[0] else 1)


def _einsum_multiply_adds(operator: Operator, shapes: list[tuple[int, ...]]) -> int:
    """The product of all labels' sizes: one multiply-add for each point of the index space (for two operands)."""
    equation = operator.attributes["equation"]
    text = (equation.decode() if isinstance(equation, bytes) else equation).replace(" ", "")
    terms = text.split("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        head, dots, tail = term.partition("...")
        hidden = len(shape) - len(head) - len(tail) if dots else 0
        # Axes behind the dots are counted from the right, as they broadcast.
        labels = [*head, *(f"...{i}" for i in range(hidden, 0, -1)), *tail]
        for label, size in zip(labels, shape, strict=True):
            sizes[label] = size if sizes.get(label, 1) == 1 else sizes[label]
    return prod(sizes.values()) * max(len(shapes) - 1, 1)


def _recurrent_flops(operator: Operator, graph: Graph, batch: int) -> int:
    """Per step and direction: both products with the gates' weights, and ten FLOPs per gate and unit."""
    steps_samples = prod(graph.tensors[operator.inputs[0]].dims(batch)[:2])
    directions, gate_units, _ = graph.tensors[operator.inputs[1]].dims(batch)
    weights = _size(operator.inputs[1], graph, batch) + _size(operator.inputs[2], graph, batch)
    return steps_samples * (2 * weights + 10 * directions * gate_units)


def _bodies(operator: Operator) -> list[Body]:
    if operator.op_type not in RUN_BODIES:
        return []
    return [value for value in operator.attributes.values() if isinstance(value, Body)]


def _bodies_work(operator: Operator, graph: Graph, batch: int, precision: str, phase: Phase) -> Work:
    """If: the branch with more to do. Loop, Scan, SequenceMap: the body, as often as it runs at most. Gradient: its part
    of the graph, forward and backward.
    """
    totals = []
    for body in _bodies(operator):
        inside = _inside(body, graph)
        total = Work(0, 0, 0)
        for inner in body.operators:
            total = total.plus(work(inner, inside, batch=batch, phase=phase, precision=precision))
            if operator.op_type == "Gradient":
                total = total.plus(work(inner, inside, batch=batch, phase="backward_input", precision=precision))
        totals.append(total)
    most = max(totals, key=lambda total: (total.flops, total.read_bytes + total.write_bytes))
    times = 1 if operator.op_type in ("If", "Gradient") else trips(operator, graph.tensors, batch)
    return Work(most.flops * times, most.read_bytes * times, most.write_bytes * times)


def _inside(body: Body, graph: Graph) -> Graph:
    """A body as a graph: what it reads of the graph around it is there, its own constants are fixed."""
    constants = {
        name: Tensor(name=name, dtype=str(value.dtype), shape=tuple(map(Dim, value.shape)))
        for name, value in body.constants.items()
    }
    return replace(
        graph,
        operators=body.operators,
        tensors={**graph.tensors, **body.tensors, **constants},
        inputs=body.inputs,
        outputs=body.outputs,
        constants=(*graph.constants, *constants),
    )


def _backward(operator: Operator, graph: Graph, batch: int, precision: str, *, weights: bool) -> Work:
    if _bodies(operator):
        phase: Phase = "backward_weight" if weights else "backward_input"
        return _bodies_work(operator, graph, batch, precision, phase)
    tensors = graph.tensors
    differentiable = [name for name in operator.inputs if name and tensors[name].is_float]
    first = next(filter(None, operator.outputs))  # recurrent networks may give their last state alone
    if not tensors[first].is_float:
        return Work(0, 0, 0)
    if weights:
        wanted = [name for name in differentiable if name in graph.trainable]
    else:
        wanted = [name for name in differentiable if name not in graph.fixed]
    if not wanted:
        return Work(0, 0, 0)
    above = _bytes([first], graph, batch, precision)
    result = _size(first, graph, batch)
    total = Work(0, 0, 0)
    if operator.op_type in ("Attention", "FlexAttention"):
        # Five products for the forward's two: the scores once more, and gradients of both factors of both.
        read = 2 * above + _bytes(operator.inputs, graph, batch, precision)
        return Work(5 * _multiply_adds(operator, graph, batch), read, _bytes(wanted, graph, batch, precision))
    if operator.family in ("matmul", "conv") and operator.op_type not in FORMULAS:
        bias = _bias(operator)
        flops = 2 * _multiply_adds(operator, graph, batch)
        for name in wanted:
            others = [n for n in differentiable if n not in (name, bias)]
            own = tensors[name].nbytes(batch, precision)
            if name == bias:
                total = total.plus(Work(result, above, own))
            else:
                total = total.plus(Work(flops, above + _bytes(others, graph, batch, precision), own))
        return total
    written = _bytes(wanted, graph, batch, precision)
    if weights:
        # One reduction of dL/dy per parameter, times the data where the parameter is a factor.
        read = above + _bytes([n for n in differentiable if n not in graph.fixed], graph, batch, precision)
        flops = _forward_flops(operator, graph, batch) if operator.family == "rnn" else 2 * result * len(wanted)
        return Work(0 if operator.family == "gather" else flops, read, written)
    if operator.family in FREE_FORWARD and operator.op_type not in FORMULAS:
        return Work(0, above, written)
    if operator.op_type in SUMS:
        whole = [name for name in wanted if _size(name, graph, batch) == result]
        parts = [name for name in wanted if name not in whole]  # broadcast: dL/dy is summed up
        joins = (len(whole) - 1) * above if len(whole) > 1 else 0
        read = 2 * joins + len(parts) * above
        return Work(read // max(above, 1) * result // 2, read, joins + _bytes(parts, graph, batch, precision))
    read = above + _bytes(_derivative_reads(operator, differentiable, wanted), graph, batch, precision)
    if operator.op_type == "Dropout":
        read += result  # the mask, a byte an element
    return Work(2 * _forward_flops(operator, graph, batch), read, written)


def _derivative_reads(operator: Operator, operands: list[str], wanted: list[str]) -> list[str]:
    """The operands that the gradients of the `wanted` ones depend on."""
    if operator.op_type in LINEAR or operator.op_type in ("Dropout", "Where"):
        return []
    if operator.op_type == "Mul":
        return [name for name in operands if any(other != name for other in wanted)]
    return operands
