"""From micro-benchmarks of this machine to observations that the cost model learns from.

Every timed operator becomes a graph of that one operator, so that its workload is the one that the same operator has in a model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ..hwprofiles import Cluster
from ..models.cost import Observation, ObservationDatabase, collective_workload, compute_workload, transfer_workload
from ..models.cost.observations import said_by
from ..models.onnxpp import Dim, Graph, Operator, Tensor

if TYPE_CHECKING:
    from ..exec.microbenchmarks import Measurement

__all__ = ["conditions_on", "observations_of", "record"]

RUN = "profile measure"


def record(measurement: Measurement, database: ObservationDatabase | None = None) -> int:
    """Put a measurement into the database, beside earlier ones, which show whether the machine changed; returns how many
    entries.
    """
    from ..exec.environment import examine_conditions, examine_machine, package_versions

    machine = examine_machine()
    found = observations_of(
        measurement,
        machine=machine.fingerprint,
        host=machine.name,
        versions=package_versions(),
        conditions={**examine_conditions(), "threads": 1},
    )
    (database or ObservationDatabase()).add(found)
    return len(found)


def observations_of(
    measurement: Measurement,
    *,
    machine: str = "",
    host: str = "",
    versions: Mapping[str, str] | None = None,
    conditions: Mapping[str, float | str] | None = None,
) -> list[Observation]:
    """What a measurement says about the operators and links of its own profile."""
    time = datetime.now(UTC).isoformat(timespec="seconds")
    about: dict[str, Any] = {
        "run": f"{RUN} {measurement.cluster.name} {time}",
        "machine": machine,
        "host": host,
        "versions": dict(versions or {}),
        "conditions": {**(conditions or {}), **conditions_on(measurement.cluster)},
        "time": time,
    }
    return [*_operators(measurement, about), *_messages(measurement, about)]


def conditions_on(cluster: Cluster, ranks_on_node: int = 1) -> dict[str, float | str]:
    """What a cluster's profile says of the circumstances: who the device is related to, and how many work on a node."""
    device = cluster.device
    related = {"vendor": device.vendor, "architecture": device.architecture}
    return {"ranks_on_node": ranks_on_node, **{name: value for name, value in related.items() if value}}


def _operators(measurement: Measurement, about: dict[str, Any]) -> Iterable[Observation]:
    for timed in measurement.operators:
        graph = _graph(timed.op_type, timed.family, timed.shape, timed.dtype, trained=timed.phase != "forward")
        parts = [(("operator",), timed.phase)]
        workload = compute_workload(
            graph, parts, batch=1, device=measurement.cluster.device, precision=timed.dtype
        )
        yield _observation(workload, timed, about)


def _messages(measurement: Measurement, about: dict[str, Any]) -> Iterable[Observation]:
    cluster: Cluster = measurement.cluster
    for timed in measurement.communication:
        if cluster.node.link is None or timed.ranks > cluster.n_devices:
            continue
        if timed.kind == "allreduce":
            workload = collective_workload("all_reduce", timed.bytes, ranks=range(timed.ranks), cluster=cluster)
        else:
            workload = transfer_workload(timed.bytes, cluster.node.link)
        if workload is not None and timed.bytes:
            together = {"conditions": {**about["conditions"], "ranks_on_node": timed.ranks}}
            yield _observation(workload, timed, about | together)


def _observation(workload: Any, timed: Any, about: dict[str, Any]) -> Observation:
    return Observation(
        **said_by(workload),
        seconds=timed.seconds,
        low_s=min(timed.low_s, timed.seconds),
        high_s=max(timed.high_s, timed.seconds),
        repeats=timed.repeats,
        **about,
    )


def _graph(op_type: str, family: str, shape: Mapping[str, int], dtype: str, *, trained: bool) -> Graph:
    """One operator with the shapes that were timed. `trained`: its operands want gradients, as behind another layer."""
    operands, result, attributes = _SHAPES[op_type](shape)
    tensors = {
        name: Tensor(name=name, dtype=dtype, shape=tuple(Dim(d) for d in dims))
        for name, dims in [*operands.items(), ("y", result)]
    }
    operator = Operator(
        name="operator", op_type=op_type, family=family, inputs=tuple(operands), outputs=("y",), attributes=attributes
    )
    weights = tuple(n for n in operands if n != "x")
    before = Operator(name="before", op_type="Identity", family="view", inputs=("layer",), outputs=("x",))
    tensors["layer"] = Tensor(name="layer", dtype=dtype, shape=tensors["x"].shape)
    return Graph(
        name=op_type,
        opset=20,
        operators=(before, operator) if trained else (operator,),
        tensors=tensors,
        inputs=() if trained else ("x",),
        targets=(),
        outputs=("y",),
        loss=None,
        parameters=("layer", *weights) if trained else weights,
        state={},
        constants=(),
    )


_Shapes = tuple[dict[str, tuple[int, ...]], tuple[int, ...], dict[str, Any]]


def _product(s: Mapping[str, int]) -> _Shapes:
    return {"x": (s["m"], s["k"]), "w": (s["k"], s["n"])}, (s["m"], s["n"]), {}


def _convolution(s: Mapping[str, int]) -> _Shapes:
    height, width = ((s[a] + 2 * s["pad"] - s[b]) // s["stride"] + 1 for a, b in (("h", "r"), ("w", "s")))
    attributes = {"kernel_shape": (s["r"], s["s"]), "strides": (s["stride"],) * 2, "pads": (s["pad"],) * 4}
    return {"x": (s["n"], s["c"], s["h"], s["w"]), "w": (s["k"], s["c"], s["r"], s["s"])}, (s["n"], s["k"], height, width), attributes


def _pool(s: Mapping[str, int]) -> _Shapes:
    result = (s["n"], s["c"], s["h"] // s["stride"], s["w"] // s["stride"])
    return {"x": (s["n"], s["c"], s["h"], s["w"])}, result, {"kernel_shape": (s["r"],) * 2, "strides": (s["stride"],) * 2}


def _normalised(s: Mapping[str, int]) -> _Shapes:
    image = (s["n"], s["c"], s["h"], s["w"])
    return {"x": image, **dict.fromkeys(("scale", "bias", "mean", "variance"), (s["c"],))}, image, {}


def _unary(s: Mapping[str, int]) -> _Shapes:
    return {"x": (s["elements"],)}, (s["elements"],), {}


def _binary(s: Mapping[str, int]) -> _Shapes:
    return {"x": (s["elements"],), "z": (s["elements"],)}, (s["elements"],), {}


def _rows(s: Mapping[str, int]) -> _Shapes:
    return {"x": (s["rows"], s["columns"])}, (s["rows"], s["columns"]), {}


def _transposed(s: Mapping[str, int]) -> _Shapes:
    return {"x": (s["rows"], s["columns"])}, (s["columns"], s["rows"]), {"perm": (1, 0)}


def _reduced(s: Mapping[str, int]) -> _Shapes:
    return {"x": (s["rows"], s["columns"])}, (s["rows"], 1), {}


_SHAPES: Mapping[str, Any] = {
    "MatMul": _product,
    "Conv": _convolution,
    "MaxPool": _pool,
    "BatchNormalization": _normalised,
    "Relu": _unary,
    "Sigmoid": _unary,
    "Add": _binary,
    "Softmax": _rows,
    "Transpose": _transposed,
    "ReduceMean": _reduced,
}
