"""An operation: one operator in one phase, in the terms that its cost depends on, whatever the device and whoever
asked for it (a graph, a published table, a micro-benchmark).

`dims` are named per family in :data:`DIMS`. Products are written as what the library is asked to compute: the
gradient of a matrix product is a matrix product with its dimensions turned, that of a convolution keeps the
convolution's dimensions and says which gradient it is.

| family | dims |
|---|---|
| matmul, attention, rnn | batch products of (m x k) by (k x n); a recurrent layer's is that of one step |
| conv | n samples, c channels to k filters of r x s, result p x q, stride, groups |
| all others | rows x columns: what is normalised, reduced or gathered lies in the columns |

>>> product = Operation(family="matmul", op="linear", dims=(1, 128, 64, 32), flops=2 * 128 * 64 * 32,
...     read_bytes=4 * (128 * 32 + 32 * 64), write_bytes=4 * 128 * 64)
>>> product.dim("m"), product.component
(128, 'matmul')
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from math import prod

from ..onnxpp.count import Phase, Work, work
from ..onnxpp.graph import Graph, Operator
from .memo import memo_of

__all__ = ["DIMS", "Operation", "operations_of"]

_ROWS = ("rows", "columns")
DIMS: Mapping[str, tuple[str, ...]] = {
    "matmul": ("batch", "m", "n", "k"),
    "attention": ("batch", "m", "n", "k"),
    "rnn": ("batch", "m", "n", "k"),
    "conv": ("n", "c", "k", "r", "s", "p", "q", "stride", "groups"),
}
HALF_PRECISIONS = frozenset({"tf32", "bfloat16", "float16", "float8"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Operation:
    """Arithmetic in FLOP, traffic in bytes (operands once, results once, less what fusion saves), and the shape.

    op          the finer kind within the family: "linear" and "bmm", "conv" and "convtranspose" (whose forward pass is
                the "backward_input" of a convolution), else the ONNX type in small letters ("relu")
    phase       "forward", "backward_input" or "backward_weight"; products of a backward pass say which they are
    precision   of the arithmetic; tensors lie in memory at `item_bytes` each
    own_kernel  False where it runs inside the kernel of the operator that feeds it
    count       how often it is done, each time waiting for the last (the steps of a recurrent layer); everything else
                describes one time
    """

    family: str
    op: str
    dims: tuple[int, ...]
    flops: float
    read_bytes: float
    write_bytes: float
    phase: str = "forward"
    precision: str = "float32"
    item_bytes: int = 4
    own_kernel: bool = True
    count: int = 1

    @property
    def traffic_bytes(self) -> float:
        """Bytes moved between the device and its memory."""
        return self.read_bytes + self.write_bytes

    @property
    def component(self) -> str:
        """The component of a workload that this operation belongs to: its family, ".backward" and ".half" where they
        apply.
        """
        return component_name(self.family, phase=self.phase, precision=self.precision)

    def dim(self, name: str) -> int:
        """A dimension by its name in :data:`DIMS`."""
        return self.dims[DIMS.get(self.family, _ROWS).index(name)]


def component_name(family: str, *, phase: str, precision: str) -> str:
    """The component of an operation: backward passes and matrix units at reduced precision have factors of their own.

    >>> component_name("conv", phase="backward_weight", precision="bfloat16")
    'conv.backward.half'
    """
    return _component_name(family, phase.startswith("backward"), precision in HALF_PRECISIONS)


@cache
def _component_name(family: str, backward: bool, half: bool) -> str:
    return family + (".backward" if backward else "") + (".half" if half else "")


def operations_of(
    operator: Operator,
    graph: Graph,
    *,
    batch: int,
    phase: Phase,
    precision: str = "float32",
    stored: str = "float32",
    saved_bytes: float = 0.0,
    own_kernel: bool = True,
    casts_read: bool = True,
) -> tuple[Operation, ...]:
    """What `operator` asks a device to do in `phase` for `batch` samples: none for a view, two for a backward pass
    that wants the gradients of data and of weights, else one.

    `stored` is the dtype of tensors in memory. `saved_bytes` of the traffic are spared by fusion (the first operation
    spares them). `own_kernel` as in :class:`Operation`.

    "float8" is that of products with weights: activations and gradients are cast first, by rows and by columns as the products of
    both passes want them (Micikevicius et al. 2022, arXiv 2209.05433); weights are once a step, which is not counted. Attention, the
    product before the loss and all else stay at 16 bits. `casts_read`: a cast is a kernel of its own that reads what it casts, else
    the kernel before it casts what it writes.
    """
    asked = batch, _alike(operator, graph, batch), phase, precision, stored, saved_bytes, own_kernel, casts_read
    memo: dict[object, tuple[Operation, ...]] = memo_of(graph).setdefault("operations of", {})
    if asked not in memo:
        memo[asked] = _operations(operator, graph, batch, phase, precision, stored, saved_bytes, own_kernel, casts_read)
    return memo[asked]


def _alike(operator: Operator, graph: Graph, batch: int) -> int:
    """A number that operators share which ask the same of a device: equal layers are looked at once."""
    memo = memo_of(graph)
    numbers: dict[str, int] = memo.setdefault(("alike", batch), {})
    if operator.name not in numbers:
        kinds: dict[object, int] = memo.setdefault(("alike kinds", batch), {})
        shapes: dict[str, object] = memo.setdefault(("alike shapes", batch), {})
        operands = []
        for name in (*operator.inputs, *operator.outputs):
            if name not in shapes:
                tensor = graph.tensors.get(name)
                shapes[name] = tensor and (
                    tensor.dtype, tensor.dims(batch), name in graph.fixed, name in graph.trainable
                )  # fmt: skip
            operands.append(shapes[name])
        kind = operator.op_type, operator.family, repr(operator.attributes), len(operator.inputs), tuple(operands)
        narrow = operator.family == "matmul" and _is_narrow(operator, graph)
        numbers[operator.name] = kinds.setdefault((*kind, narrow), len(kinds))
    return numbers[operator.name]


def _operations(
    operator: Operator,
    graph: Graph,
    batch: int,
    phase: Phase,
    precision: str,
    stored: str,
    saved_bytes: float,
    own_kernel: bool,
    casts_read: bool,
) -> tuple[Operation, ...]:
    found: list[Operation] = []
    narrow = precision == "float8" and _is_narrow(operator, graph)
    if precision == "float8" and not narrow:
        precision = "bfloat16"
    for part in ("backward_input", "backward_weight") if phase == "backward" else (phase,):
        done = work(operator, graph, batch=batch, phase=part, precision=stored)
        if not done.flops and not (done.read_bytes or done.write_bytes):
            continue
        item = max(done.write_bytes // max(_elements(operator, graph, batch), 1), 1) if part == "forward" else 4
        done, saved_bytes = _spare(done, saved_bytes)
        op, dims, kernel_phase, count = _shape(operator, graph, batch, part)
        if narrow:
            if part != "backward_weight":
                found.append(_cast(operator, graph, batch=batch, part=part, reads=casts_read))
            done = Work(done.flops, done.read_bytes // 2, done.write_bytes)
        found.append(
            Operation(
                family="attention" if op == "attention" else operator.family,
                op=op,
                dims=dims,
                flops=done.flops / count,
                read_bytes=done.read_bytes / count,
                write_bytes=done.write_bytes / count,
                phase=kernel_phase,
                precision=precision,
                item_bytes=1 if narrow else _ITEM.get(stored, min(item, 8)),
                own_kernel=own_kernel,
                count=count,
            )
        )
    return tuple(found)


def _is_narrow(operator: Operator, graph: Graph) -> bool:
    """Whether an operator is a product with weights whose result is not what the loss is computed from."""
    if operator.family != "matmul" or operator.op_type == "Attention":
        return False
    if not any(t in graph.parameters or t in graph.constants for t in operator.inputs[1:2]):
        return False
    return operator.name not in _before_loss(graph)


def _before_loss(graph: Graph) -> frozenset[str]:
    """The operators between the last product and the loss, that product among them."""
    memo = memo_of(graph)
    if "before_loss" not in memo:
        found: set[str] = set()
        waiting = [graph.loss] if graph.loss else list(graph.outputs)
        while waiting:
            maker = graph.producer.get(waiting.pop())
            if maker is None or maker.name in found:
                continue
            found.add(maker.name)
            if maker.family != "matmul":
                waiting += [t for t in maker.inputs if t]
        memo["before_loss"] = frozenset(found)
    kept: frozenset[str] = memo["before_loss"]
    return kept


def _cast(operator: Operator, graph: Graph, *, batch: int, part: str, reads: bool) -> Operation:
    """The cast to 8 bits before a product: of its data on the way forward, of the gradient on the way back; two copies each."""
    dims = graph.tensors[(operator.inputs if part == "forward" else operator.outputs)[0]].dims(batch)
    elements = prod(dims)
    columns = dims[-1] if dims else 1
    return Operation(
        family="elementwise",
        op="cast",
        dims=(max(elements // columns, 1), columns),
        flops=float(elements),
        read_bytes=2.0 * elements if reads else 0.0,
        write_bytes=2.0 * elements,
        phase="forward" if part == "forward" else "backward_input",
        precision="bfloat16",
        item_bytes=2,
        own_kernel=reads,
    )


_ITEM = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "float8": 1}


def _spare(done: Work, saved_bytes: float) -> tuple[Work, float]:
    """`done` without up to `saved_bytes` of traffic, writes first, and what is left of them."""
    writes = min(saved_bytes, done.write_bytes)
    reads = min(saved_bytes - writes, done.read_bytes)
    left = Work(done.flops, int(done.read_bytes - reads), int(done.write_bytes - writes))
    return left, saved_bytes - writes - reads


def _elements(operator: Operator, graph: Graph, batch: int) -> int:
    return sum(graph.tensors[t].elements(batch) for t in operator.outputs if t)


Shape = tuple[str, tuple[int, ...], str, int]


def _shape(operator: Operator, graph: Graph, batch: int, phase: str) -> Shape:
    dims = [graph.tensors[t].dims(batch) if t else () for t in operator.inputs]
    result = graph.tensors[next(filter(None, operator.outputs))].dims(batch)
    if operator.family == "conv" and len(dims) > 1 and len(dims[0]) > 2:
        return _convolution(operator, dims, result, phase)
    if operator.family == "matmul" and len(dims) > 1 and dims[1]:
        return _product(operator, dims, result, phase)
    if operator.family == "rnn":
        steps, samples, features = dims[0]
        directions, gate_units, _ = dims[1]
        return operator.op_type.lower(), (1, samples, gate_units, features + dims[2][2]), phase, steps * directions
    widest = max((*dims, result), key=prod) if operator.family in _BY_OPERAND else result
    columns = _columns(operator, widest)
    return operator.op_type.lower(), (max(prod(widest) // max(columns, 1), 1), columns), phase, 1


# What these read is larger than what they write.
_BY_OPERAND = frozenset({"reduction", "loss", "normalisation", "softmax"})


def _columns(operator: Operator, dims: tuple[int, ...]) -> int:
    """Elements that one row has: the axes that are normalised or reduced together, else the last axis."""
    if not dims:
        return 1
    if operator.op_type == "BatchNormalization":
        return prod(dims) // dims[1] if len(dims) > 1 else 1  # samples and positions of a channel together
    if operator.op_type == "InstanceNormalization":
        return prod(dims[2:]) or 1
    axis = operator.attributes.get("axis", operator.attributes.get("axes", -1))
    axes: Iterable[int] = axis if isinstance(axis, (list, tuple)) else (axis,)
    if operator.op_type in ("LayerNormalization", "RMSNormalization"):
        first = next(iter(axes))
        return prod(dims[first:]) or 1
    if operator.family in ("softmax", "reduction"):
        return prod(dims[a] for a in axes if isinstance(a, int) and -len(dims) <= a < len(dims)) or 1
    return dims[-1] or 1


def _product(operator: Operator, dims: list[tuple[int, ...]], result: tuple[int, ...], phase: str) -> Shape:
    """(batch, m, n, k) of a matrix product; a gradient is a product with its dimensions turned."""
    a, b = dims[0], dims[1]
    if operator.op_type in ("Attention", "LinearAttention"):
        return "attention", (prod(a[:-2]), a[-2] if len(a) > 1 else 1, b[-2], a[-1]), phase, 1
    if operator.op_type == "Gemm":
        k = a[0] if operator.attributes.get("transA") else a[1]
        batch, m, n = 1, result[0], result[1]
    elif operator.op_type == "Einsum" or not result or not a:
        k = max(1, a[-1] if a else 1)
        batch, m, n = 1, max(prod(result[:-1]), 1), result[-1] if result else 1
    else:
        k = a[-1]
        n = result[-1] if len(b) > 1 else 1
        if len(b) <= 2 or prod(b[:-2]) == 1:
            batch, m = 1, prod(result) // max(n, 1)
        else:
            batch, m = prod(result[:-2]), result[-2] if len(result) > 1 else 1
    op = "linear" if batch == 1 else "bmm"
    if phase == "backward_input":
        return op, (batch, m, k, n), phase, 1
    if phase == "backward_weight":
        return op, (batch, k, n, m), phase, 1
    return op, (batch, m, n, k), phase, 1


def _convolution(operator: Operator, dims: list[tuple[int, ...]], result: tuple[int, ...], phase: str) -> Shape:
    data, weight = dims[0], dims[3] if operator.op_type == "QLinearConv" and len(dims) > 3 else dims[1]
    groups = int(operator.attributes.get("group", 1))
    strides = operator.attributes.get("strides") or (1,)
    if operator.op_type == "ConvTranspose":
        # The forward pass is the gradient by the input of the convolution that leads from the result to the operand.
        turned = {"forward": "backward_input", "backward_input": "forward"}.get(phase, phase)
        narrow, wide, filters, channels = data, result, data[1], result[1]
        phase = turned
    else:
        narrow, wide, filters, channels = result, data, result[1], data[1]
    del wide
    kernel, positions = weight[2:], narrow[2:]
    r, s = (prod(kernel[:-1]), kernel[-1]) if len(kernel) > 1 else (1, kernel[0])
    p, q = (prod(positions[:-1]), positions[-1]) if len(positions) > 1 else (1, positions[0])
    stride = int(max(strides))
    op = "convtranspose" if operator.op_type == "ConvTranspose" else "conv"
    return op, (data[0], channels, filters, r, s, p, q, stride, groups), phase, 1
