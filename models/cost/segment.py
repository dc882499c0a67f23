"""The cost of operators behind one call: what they take one by one, less what fusing neighbours saves (:mod:`.fusing`), one launch,
and a fingerprint.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...hwprofiles import Device
from ..onnxpp.count import PHASES, Phase
from ..onnxpp.graph import Graph, Operator
from .attention import SPREAD as ATTENTION_SPREAD
from .attention import attention_seconds
from .factors import NINETY
from .fusing import PRODUCTS, fusion, narrowed, turned, wide_tensors
from .memo import memo_of
from .operation import Operation, operations_of
from .operator_times import OperatorTimes, relatives_of
from .residuals import wants_gradient
from .roofline import dominant, roof_of, storage
from .software import Fuses
from .traits import traits_of
from .workload import Workload

__all__ = ["Parts", "compute_workload", "fingerprint", "operations_in", "seconds_of"]

Parts = Sequence[tuple[Sequence[str], str]]


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
        wide = wide_tensors(graph) if fuses == "autocast" else frozenset()
        for names, phase in parts:
            phase = _work_phase(phase)
            saved, fused = fusion(graph, names, batch=batch, phase=phase, precision=precision, fuses=fuses)
            for name in names:
                operator = graph.operator[name]
                wanted = _wanted_phase(graph, operator, phase)
                if wanted is not None:
                    if wide and operator.family in PRODUCTS and operator.inputs[0] in wide:
                        found += [narrowed(operator, graph, batch, precision, wanted)] * (wanted != "backward_weight")
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
                        found += [turned(operator, graph, batch)] * (2 if wanted == "backward" else 1)
        memo[memo_key] = tuple(found)
    kept: tuple[Operation, ...] = memo[memo_key]
    return kept


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
