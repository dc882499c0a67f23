"""The cost of operators compiled together: rooflines less the traffic that fusion saves, one launch, and a fingerprint.

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

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ...hwprofiles import Device
from ..onnxpp.count import PHASES, Phase
from ..onnxpp.graph import Graph, Operator
from .attention import SPREAD as ATTENTION_SPREAD
from .attention import attention_seconds
from .factors import NINETY
from .memo import memo_of
from .operation import Operation, operations_of
from .operator_times import OperatorTimes, relatives_of
from .residuals import residual_tensors, wants_gradient
from .roofline import dominant, roof_of, storage
from .software import Fuses
from .traits import traits_of
from .workload import Workload

__all__ = ["Fusion", "Parts", "compute_workload", "fingerprint", "fusion", "operations_in", "seconds_of"]

Parts = Sequence[tuple[Sequence[str], str]]

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


def compute_workload(
    graph: Graph,
    parts: Parts,
    *,
    batch: int,
    device: Device,
    precision: str = "float32",
    fuses: Fuses = "all",
) -> Workload:
    """`parts` (operators and the phase in which they run), behind one call, for `batch` samples on `device`.

    Phases are "forward" ("recompute" is the same work), "backward", "backward_input" and "backward_weight". `fuses`: which
    neighbours run as one kernel ("all": compiled as one).

    Raises:
        ProfileError: the profile lacks a peak that `precision` needs.
    """
    roof_of(device, precision)  # refuses a precision that nobody knows
    memo = memo_of(graph)
    memo_key = ("workload", _plain_parts(parts), batch, precision, device.name, fuses)
    if memo_key in memo and memo[memo_key][0] is device:
        kept: Workload = memo[memo_key][1]
        return kept
    operations = operations_in(graph, parts, batch=batch, precision=precision, fuses=fuses)
    n_operators = sum(len(names) for names, _ in parts)
    found = Workload(
        subject=device.name,
        subject_kind="cpu" if device.kind == "cpu" else "gpu",
        kind="operator" if n_operators == 1 else "segment",
        # What was measured is compiled: kernels one by one are other work.
        key=fingerprint(graph, parts, batch=batch, precision=precision) + ("" if fuses == "all" else f":{fuses}"),
        operations=operations,
        n_launches=1,
        **seconds_of(operations, device, precision),
    )
    memo[memo_key] = (device, found)
    return found


def seconds_of(operations: Sequence[Operation], device: Device, precision: str) -> dict[str, Any]:
    """The fields of a workload that depend on the device: what `operations`, compiled as one, take on it.

    On a processor components are seconds at the roofline, and one call ("kernels") for each operation that is a kernel
    of its own; on an accelerator what the shipped regressions say (:mod:`.operator_times`), calls included.
    """
    roof = roof_of(device, precision)
    components: dict[str, float] = {}
    bands: dict[str, list[float]] = {}
    learned: dict[str, bool] = {}
    compute_s = memory_s = flops = nbytes = 0.0
    kernels = 0
    times = _regressed(operations, device) if device.kind != "cpu" else None
    for i, each in enumerate(operations):
        arithmetic_s, traffic_s = roof.times(each.family, each.count * each.flops, each.count * each.traffic_bytes)
        seconds = max(arithmetic_s, traffic_s) if times is None else times[i][0]
        components[each.component] = components.get(each.component, 0.0) + seconds
        if times is not None:
            bands.setdefault(each.component, []).append(seconds * times[i][1])
            learned[each.component] = learned.get(each.component, True) and times[i][2]
        compute_s += arithmetic_s
        memory_s += traffic_s
        flops += each.count * each.flops
        nbytes += each.count * each.traffic_bytes
        kernels += each.count * each.own_kernel
    if times is None:
        components["kernels"] = kernels * roof.launch_s
    components["dispatch"] = roof.launch_s
    return {
        "components": components,
        # Operators of one family err together, so that spreads are averaged, not their squares added.
        "spreads": {name: sum(parts) / max(components[name], 1e-30) for name, parts in bands.items()},
        "learned": frozenset(name for name, known in learned.items() if known),
        "compute_s": compute_s,
        "memory_s": memory_s,
        "flops": flops,
        "traffic_bytes": nbytes,
        "bound": dominant(compute_s=compute_s, memory_s=memory_s, launch_s=roof.launch_s),
    }


def _regressed(operations: Sequence[Operation], device: Device) -> list[tuple[float, float, bool]]:
    """Seconds, the standard deviation of their logarithm, and whether the device or relatives of its age were measured;
    each operation evaluated once for a device.
    """
    seen = _SEEN.setdefault(device.name, {})
    if _SEEN_FOR.get(device.name) is not device:
        seen.clear()
        _SEEN_FOR[device.name] = device
    new = list(dict.fromkeys(o for o in operations if o not in seen))
    for attended in [o for o in new if o.family == "attention"]:
        traits = traits_of(device, attended.precision)
        seconds = attention_seconds(attended, device, traits) * attended.count
        seen[attended] = seconds + traits.launch_s * attended.own_kernel * attended.count, ATTENTION_SPREAD, True
    new = [o for o in new if o.family != "attention"]
    if new:
        times = OperatorTimes.default().times(new, device)
        spread = np.log(times.high_s / times.low_s) / (2 * NINETY)
        known = (times.known | bool(relatives_of(device))).tolist()
        seen.update(zip(new, zip(times.seconds.tolist(), spread.tolist(), known, strict=True), strict=True))
    return [seen[o] for o in operations]


_SEEN: dict[str, dict[Operation, tuple[float, float, bool]]] = {}
_SEEN_FOR: dict[str, Device] = {}


def fingerprint(graph: Graph, parts: Parts, *, batch: int, precision: str = "float32") -> str:
    """A hash of what `parts` compute: operators' types, attributes and wiring, their shapes at `batch`, phases and
    precision, and whether residuals are kept (a graph with a loss is being trained).

    Names of operators and tensors do not enter, so equal layers share their measurements.
    """
    memo = memo_of(graph)
    memo_key = ("fingerprint", _plain_parts(parts), batch, precision)
    if memo_key not in memo:
        numbers: dict[str, int] = {}  # tensors by first appearance: wiring without names
        lines = [f"{precision} {'training' if graph.loss else 'inference'}"]
        for names, phase in parts:
            lines.append(_work_phase(phase))
            lines += [_describe(graph, graph.operator[name], batch, numbers) for name in names]
        packed = "\n".join(lines).encode()
        memo[memo_key] = hashlib.sha256(packed).hexdigest()[:32]
    found: str = memo[memo_key]
    return found


def operations_in(
    graph: Graph, parts: Parts, *, batch: int, precision: str = "float32", fuses: Fuses = "all"
) -> tuple[Operation, ...]:
    """What `parts` ask a device to do, in order, less the traffic that fusing each part saves."""
    memo = memo_of(graph)
    memo_key = ("operations", _plain_parts(parts), batch, precision, fuses)
    if memo_key not in memo:
        found: list[Operation] = []
        stored = storage(precision)
        if fuses in ("pairs", "autocast") and stored == "float32":
            fuses = "none"
        wide = _wide(graph) if fuses == "autocast" else frozenset()
        for names, phase in parts:
            phase = _work_phase(phase)
            saved, fused = fusion(graph, names, batch=batch, phase=phase, precision=precision, fuses=fuses)
            for name in names:
                operator = graph.operator[name]
                wanted = _wanted_phase(graph, operator, phase)
                if wanted is not None:
                    if wide and operator.family in _PRODUCTS and operator.inputs[0] in wide:
                        found += [_narrowed(operator, graph, batch, precision, wanted)] * (wanted != "backward_weight")
                    found += operations_of(
                        operator,
                        graph,
                        batch=batch,
                        phase=wanted,
                        precision=precision,
                        stored="float32" if wide.intersection(operator.outputs) else stored,
                        saved_bytes=saved.get(name, 0),
                        own_kernel=name not in fused,
                        casts_read=fuses in ("none", "autocast"),
                    )
                    if fuses == "none" and precision == "tf32" and operator.family == "conv":
                        found += [_turned(operator, graph, batch)] * (2 if wanted == "backward" else 1)
        memo[memo_key] = tuple(found)
    kept: tuple[Operation, ...] = memo[memo_key]
    return kept


_PRODUCTS = frozenset({"matmul", "conv", "attention"})


def _wide(graph: Graph) -> frozenset[str]:
    """The tensors that automatic mixed precision keeps in float32."""
    memo = memo_of(graph)
    if "wide" not in memo:
        found: set[str] = set()
        for operator in graph.operators:
            computes = operator.family in ("softmax", "loss") or operator.op_type.startswith(("Layer", "RMS"))
            follows = operator.family not in _PRODUCTS and operator.family != "normalisation"
            if computes or (follows and found.intersection(operator.inputs)):
                found.update(t for t in operator.outputs if t and graph.tensors[t].is_float)
        memo["wide"] = frozenset(found)
    kept: frozenset[str] = memo["wide"]
    return kept


def _narrowed(operator: Operator, graph: Graph, batch: int, precision: str, phase: str) -> Operation:
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


def _turned(operator: Operator, graph: Graph, batch: int) -> Operation:
    """Turning a convolution's operand and result from channels first to channels last, or back."""
    sizes = [graph.tensors[t].elements(batch) for t in (operator.inputs[0], operator.outputs[0])]
    columns = graph.tensors[operator.outputs[0]].dims(batch)[-1]
    nbytes = 4.0 * sum(sizes)
    return Operation(
        family="elementwise", op="cast", dims=(sum(sizes) // columns, columns), flops=0.0, read_bytes=nbytes, write_bytes=nbytes,
        precision="tf32",
    )  # fmt: skip


def _plain_parts(parts: Parts) -> tuple[tuple[tuple[str, ...], str], ...]:
    return tuple((tuple(names), str(phase)) for names, phase in parts)


def _work_phase(phase: str) -> str:
    return "forward" if phase == "recompute" else str(phase)


def _wanted_phase(graph: Graph, operator: Operator, phase: str) -> Phase | None:
    """The part of a backward pass that somebody wants: the first layer's input has no gradient, a frozen layer no
    pass at all.
    """
    if phase == "forward":
        return "forward"
    if phase not in PHASES:
        raise ValueError(f"phase {phase!r}: expected one of {', '.join(PHASES)}, recompute")
    gradients = wants_gradient(graph)
    parameters = graph.trainable
    inputs = any(t in gradients and t not in parameters for t in operator.inputs)
    weights = any(t in parameters for t in operator.inputs)
    if phase == "backward":
        if inputs and weights:
            return "backward"
        return "backward_input" if inputs else "backward_weight" if weights else None
    if phase == "backward_input":
        return "backward_input" if inputs else None
    return "backward_weight" if weights else None


def _describe(graph: Graph, operator: Operator, batch: int, numbers: dict[str, int]) -> str:
    """One operator as text: what it is, and its operands and results with their number, dtype and shape."""
    memo = memo_of(graph)
    kinds: dict[str, str] = memo.setdefault("kinds", {})
    shapes: dict[str, str] = memo.setdefault(("shapes", batch), {})
    if operator.name not in kinds:
        about = [operator.domain, operator.op_type, _plain(operator.attributes)]
        kinds[operator.name] = json.dumps(about, separators=(",", ":"))
    words = [kinds[operator.name]]
    for name in (*operator.inputs, "->", *operator.outputs):
        if name not in shapes:
            tensor = graph.tensors.get(name)
            # An absent optional operand leaves a mark where it would stand.
            shapes[name] = "" if tensor is None else f"{tensor.dtype}{tensor.dims(batch)}"
        words.append(f"{numbers.setdefault(name, len(numbers))}{shapes[name]}" if shapes[name] else name)
    return " ".join(words)


def _plain(value: Any) -> Any:
    """`value` as JSON holds it, mappings in the order of their keys."""
    if isinstance(value, Mapping):
        return [[str(k), _plain(value[k])] for k in sorted(value)]
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if hasattr(value, "tobytes"):  # an array
        return [str(value.dtype), list(value.shape), hashlib.sha256(value.tobytes()).hexdigest()]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return str(value)


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
