"""What fusing neighbours saves, and what kernels that a framework calls one by one cost beyond them.

**What fusion saves.** A compiler computes an element-wise operator, a normalisation or a softmax in one pass with
the element-wise operators, reductions, normalisations, softmaxes and losses that consume its result, so the tensor
between them

* is not read by a consumer that stands in the same segment, and
* is not written either, if every consumer of the graph is such a one, the tensor is no output of the graph, and the
  backward pass does not want it kept (see :mod:`.residuals`).

That is what a compiler does ("all"). A framework that calls kernels has some that are fused by hand, for tensors of 16 bits ("pairs":
what is element-wise with what is element-wise or a normalisation before it, and a softmax with the scaling and the mask before it),
or one for every operator ("none"), where only a bias is added by the product before it. Such a framework keeps the pictures of
float32 networks channels first, as it did before there were matrix units, which want them last: in tf32 each convolution turns its
operand and its result. "autocast" is "none" under PyTorch's automatic mixed precision, where layer norms, softmax and losses compute
in float32, so does what is element-wise with such a result (the residual sums of a transformer, most of all), and products cast back.

The backward pass saves the gradient of the same tensor likewise: the consumer need not write it, nor the producer
read it. An operator never saves more than it moves. Products (matrix products, convolutions) are taken as unfused:
their libraries write their result. A consumer that is fused into its producer is no kernel of its own.

>>> from hpdlf.models.onnxpp.graph import Dim, Tensor
>>> batch = (Dim(per_sample=1), Dim(4))
>>> tensors = {t: Tensor(name=t, dtype="float32", shape=batch) for t in "xyz"}
>>> graph = Graph(name="two", opset=20, tensors=tensors, inputs=("x",), targets=(), outputs=("z",), loss=None,
...     parameters=(), state={}, constants=(), operators=(
...     Operator(name="a", op_type="Exp", family="elementwise", inputs=("x",), outputs=("y",)),
...     Operator(name="b", op_type="Neg", family="elementwise", inputs=("y",), outputs=("z",))))
>>> fusion(graph, ("a", "b"), batch=2, phase="forward")
Fusion(saved_bytes={'b': 32, 'a': 32}, fused=frozenset({'b'}))
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..onnxpp.graph import Graph, Operator
from .memo import memo_of
from .operation import Operation
from .residuals import residual_tensors
from .roofline import storage
from .software import Fuses

__all__ = ["PRODUCTS", "Fusion", "fusion", "narrowed", "turned", "wide_tensors"]

# By how a software fuses, the families whose results a kernel hands on, and those that take them.
_GIVE: Mapping[Fuses, frozenset[str]] = {
    "all": frozenset({"elementwise", "normalisation", "softmax"}),
    "pairs": frozenset({"elementwise", "normalisation"}),
}
_TAKE: Mapping[Fuses, frozenset[str]] = {
    "all": frozenset({"elementwise", "normalisation", "softmax", "reduction", "loss"}),
    "pairs": frozenset({"elementwise", "softmax"}),
}


class Fusion(NamedTuple):
    """Bytes that each operator need not move, and the operators that run inside their producer's kernel."""

    saved_bytes: Mapping[str, int]
    fused: frozenset[str]


def fusion(
    graph: Graph,
    operators: Sequence[str],
    *,
    batch: int,
    phase: str,
    precision: str = "float32",
    fuses: Fuses = "all",
) -> Fusion:
    """What fusing `operators` saves in `phase`; see the module's text for the rule."""
    inside = frozenset(operators)
    consumers = _consumers(graph)
    lasting = {*graph.outputs, *graph.state.values(), graph.loss}
    stored = storage(precision)
    kept = (
        frozenset(residual_tensors(graph, operators))
        if graph.loss and not phase.startswith("backward")
        else frozenset()
    )
    saved: dict[str, int] = {}
    fused: set[str] = set()
    give, take = _GIVE.get(fuses, frozenset()), _TAKE.get(fuses, frozenset())
    by_product = _biases(graph, operators, inside) if fuses != "all" and phase == "forward" else frozenset()
    for name in operators:
        producer = graph.operator[name]
        if name in by_product:
            saved[name] = 3 * graph.tensors[producer.outputs[0]].nbytes(batch, stored)
            fused.add(name)
        if name in by_product or producer.family not in give:
            continue
        for tensor in producer.outputs:
            readers = consumers.get(tensor, ())
            joined = [r for r in readers if r.name in inside and r.family in take]
            if not joined:
                continue
            nbytes = graph.tensors[tensor].nbytes(batch, stored)
            for reader in joined:
                saved[reader.name] = saved.get(reader.name, 0) + nbytes
                fused.add(reader.name)
            if len(joined) == len(readers) and tensor not in lasting and tensor not in kept:
                saved[name] = saved.get(name, 0) + nbytes
    return Fusion(saved, frozenset(fused))


def _biases(graph: Graph, operators: Sequence[str], inside: frozenset[str]) -> frozenset[str]:
    """The operators that add a row to every row of a product, whose result nothing else reads: libraries add it as they write."""
    found = set()
    for name in operators:
        added = graph.operator[name]
        if added.op_type != "Add":
            continue
        for product, row in (added.inputs, added.inputs[::-1]):
            producer = graph.producer.get(product)
            if (
                producer is not None
                and producer.op_type == "MatMul"
                and producer.name in inside
                and len(graph.tensors[row].shape) <= 1
                and len(_consumers(graph)[product]) == 1
            ):
                found.add(name)
    return frozenset(found)


PRODUCTS = frozenset({"matmul", "conv", "attention"})


def wide_tensors(graph: Graph) -> frozenset[str]:
    """The tensors that automatic mixed precision keeps in float32."""
    memo = memo_of(graph)
    if "wide" not in memo:
        found: set[str] = set()
        for operator in graph.operators:
            computes = operator.family in ("softmax", "loss") or operator.op_type.startswith(("Layer", "RMS"))
            follows = operator.family not in PRODUCTS and operator.family != "normalisation"
            if computes or (follows and found.intersection(operator.inputs)):
                found.update(t for t in operator.outputs if t and graph.tensors[t].is_float)
        memo["wide"] = frozenset(found)
    kept: frozenset[str] = memo["wide"]
    return kept


def narrowed(operator: Operator, graph: Graph, batch: int, precision: str, phase: str) -> Operation:
    """The cast of a product's operand from float32, or of its gradient back to it."""
    dims = graph.tensors[operator.inputs[0]].dims(batch)
    elements = math.prod(dims)
    columns = dims[-1]
    forward = phase == "forward"
    return Operation(
        family="elementwise", op="cast", dims=(elements // columns, columns), flops=0.0, precision=precision, item_bytes=2,
        read_bytes=(4.0 if forward else 2.0) * elements, write_bytes=(2.0 if forward else 4.0) * elements,
        phase="forward" if forward else "backward_input",
    )  # fmt: skip


def turned(operator: Operator, graph: Graph, batch: int) -> Operation:
    """Turning a convolution's operand and result from channels first to channels last, or back."""
    sizes = [graph.tensors[t].elements(batch) for t in (operator.inputs[0], operator.outputs[0])]
    columns = graph.tensors[operator.outputs[0]].dims(batch)[-1]
    nbytes = 4.0 * sum(sizes)
    return Operation(
        family="elementwise", op="cast", dims=(sum(sizes) // columns, columns), flops=0.0, read_bytes=nbytes, write_bytes=nbytes,
        precision="tf32",
    )  # fmt: skip


def _consumers(graph: Graph) -> Mapping[str, tuple[Operator, ...]]:
    memo = memo_of(graph)
    if "consumers" not in memo:
        readers: dict[str, list[Operator]] = {}
        for operator in graph.operators:
            for tensor in dict.fromkeys(operator.inputs):
                if tensor:
                    readers.setdefault(tensor, []).append(operator)
        memo["consumers"] = {tensor: tuple(found) for tensor, found in readers.items()}
    found: Mapping[str, tuple[Operator, ...]] = memo["consumers"]
    return found
