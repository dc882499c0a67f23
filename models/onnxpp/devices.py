"""Several devices, as the standard writes them down: configurations, sharded tensors and pipeline stages, of any tool.

``ModelProto.configuration`` names a set of devices; each of a node's ``device_configurations`` says under one of them how
the node's tensors are split (``sharding_spec``) and which ``pipeline_stage`` it is in. onnx's checker looks at none of it.
What is checked here is what the standard says (onnx.proto and its proposal for several devices, IR version 11):

* a configuration has a name of its own, at least one device, and as many names of devices as devices, or none;
* a node is annotated once in a configuration, which exists; stages are not below 0;
* a sharding names an operand or a result of its node, each tensor once;
* an axis lies within the tensor's rank (it may count from the back), each is split once, into at least one part and into
  no more than it has elements; stated sizes are the tensor's;
* devices lie within the configuration; a number that the map of groups has stands for a group of devices, and a number
  below 0 always does; where a tensor is split, there is a device or group for every part.

What only a pipeline of ours has to satisfy stands in :mod:`.annotation`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from onnx import GraphProto, ModelProto, NodeProto

from .graph import Dim, Tensor
from .problems import Problems, did_you_mean
from .shapes import read_tensor
from .survey import survey
from .weights import dtype_name

__all__ = ["Strategy", "check_devices", "strategies"]

# A file that is damaged in one place is often damaged in all of them: suggestions for each would take minutes.
SUGGESTIONS = 20


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """What one configuration says, in short.

    configuration  its name
    n_devices      how many devices it has, and `devices`, what they are called (empty: nothing)
    stages         pipeline stages that nodes are in, ascending; empty without a pipeline
    placed         nodes that say something under it, of `nodes`
    split          tensors that are split, and `parts`, into how many at most
    copied         tensors that are held whole by several devices
    goes_back      a node in an earlier stage than what it reads, so that the stages are no pipeline; "" if none is
    """

    configuration: str
    n_devices: int
    devices: tuple[str, ...]
    stages: tuple[int, ...]
    placed: int
    nodes: int
    split: int
    parts: int
    copied: int
    goes_back: str

    def __str__(self) -> str:
        """One line for people.

        >>> print(Strategy(configuration="tp", n_devices=2, devices=(), stages=(), placed=3, nodes=4, split=5, parts=2,
        ...                copied=0, goes_back=""))
        tp: 2 devices, 3 of 4 nodes annotated, 5 tensors split into up to 2 parts
        """
        said = [f"{self.n_devices} device{'s' * (self.n_devices != 1)}"]
        if self.devices:
            said[0] += f" ({', '.join(self.devices[:4])}{', ...' if len(self.devices) > 4 else ''})"
        said.append(f"{self.placed} of {self.nodes} nodes annotated")
        if self.stages:
            first, last, count = self.stages[0], self.stages[-1], len(self.stages)
            which = f"{first}" if count == 1 else f"{first} to {last}"
            said.append(f"{count} pipeline stage{'s' * (count != 1)} ({which})")
        if self.split:
            said.append(f"{self.split} tensor{'s' * (self.split != 1)} split into up to {self.parts} parts")
        if self.copied:
            said.append(f"{self.copied} held whole by several devices")
        if self.goes_back:
            said.append(f"no pipeline: {self.goes_back!r} is in an earlier stage than what it reads")
        return f"{self.configuration}: {', '.join(said)}"


def check_devices(proto: ModelProto, tensors: Mapping[str, Tensor], problems: Problems) -> None:
    """Notes everything that is wrong with the annotations of `proto`, whoever wrote them; graphs in operators included.

    tensors  what is known of the main graph's tensors; of others the rank is not checked
    """
    devices: dict[str, int] = {}
    for configuration in proto.configuration:
        name, count = configuration.name, configuration.num_devices
        where = f"configuration {name!r}"
        if not name:
            problems.add("a configuration of devices has no name; name it, or take it out")
        elif name in devices:
            problems.add(f"{where} occurs twice; names of configurations must differ")
        if count < 1:
            problems.add(f"{where}: {count} devices, at least 1 is needed")
        if configuration.device and len(configuration.device) != count:
            problems.add(f"{where}: {count} devices, but {len(configuration.device)} names of devices")
        devices.setdefault(name, count)
    checks = _Checks(devices, problems)
    if not devices and not any(n.device_configurations for n in proto.graph.node) and not _bodies(proto.graph):
        return
    for inner in survey(proto).graphs:
        if any(node.device_configurations for node in inner.graph.node):
            checks.graph(inner.graph, tensors if not inner.where else _stated(inner.graph), inner.where)


def _bodies(graph: GraphProto) -> bool:
    return any(a.HasField("g") or a.graphs for node in graph.node for a in node.attribute)


def _stated(graph: GraphProto) -> dict[str, Tensor]:
    """Tensors of a graph inside an operator whose shape it states."""
    found: dict[str, Tensor] = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        try:
            found[value.name] = read_tensor(value)
        except (ValueError, KeyError):
            continue  # no shape, or one with names that are none of ours
    return found


class _Checks:
    def __init__(self, devices: Mapping[str, int], problems: Problems) -> None:
        self.devices, self.problems = devices, problems
        self.suggested = 0

    def graph(self, graph: GraphProto, tensors: Mapping[str, Tensor], inside: str) -> None:
        around = f" in {inside}" if inside else ""
        known = dict(tensors)
        for weight in graph.initializer:
            if weight.name not in known:
                dims = tuple(Dim(d) for d in weight.dims)
                known[weight.name] = Tensor(name=weight.name, dtype=dtype_name(weight.data_type), shape=dims)
        for node in graph.node:
            if node.device_configurations:
                self.node(node, known, f"node {node.name or node.op_type!r}{around}")

    def node(self, node: NodeProto, tensors: Mapping[str, Tensor], where: str) -> None:
        seen: set[str] = set()
        for place in node.device_configurations:
            name = place.configuration_id
            if name not in self.devices:
                self.problems.add(f"{where}: no configuration {name!r}{self._near(name, self.devices)}")
            if name in seen:
                self.problems.add(f"{where} is placed twice in configuration {name!r}")
            seen.add(name)
            here = f"{where}, configuration {name!r}"
            if place.pipeline_stage < 0:
                self.problems.add(f"{here}: pipeline stage {place.pipeline_stage}, stages count from 0")
            own = dict.fromkeys(n for n in (*node.input, *node.output) if n)
            split: set[str] = set()
            for spec in place.sharding_spec:
                tensor = spec.tensor_name
                if tensor not in own:
                    self.problems.add(
                        f"{here}: a sharding names tensor {tensor!r}, which is no operand and no result of the node"
                        f"{self._near(tensor, own)}"
                    )
                elif tensor in split:
                    self.problems.add(f"{here}: tensor {tensor!r} has two shardings")
                split.add(tensor)
                self.sharding(spec, tensors.get(tensor), self.devices.get(name), f"{here}, tensor {tensor!r}")

    def sharding(self, spec: Any, tensor: Tensor | None, n_devices: int | None, here: str) -> None:
        """One tensor's split and the devices that its parts go to."""
        groups: dict[int, Sequence[int]] = {}
        for entry in spec.index_to_device_group_map:
            if entry.key in groups:
                self.problems.add(f"{here}: the group of devices {entry.key} is given twice")
            if not entry.value:
                self.problems.add(f"{here}: the group of devices {entry.key} is empty")
            groups[entry.key] = entry.value
        direct = [device for device in spec.device if device not in groups]
        for device in dict.fromkeys((*direct, *(d for group in groups.values() for d in group))):
            if device < 0 and device in direct:
                self.problems.add(f"{here}: device {device} is no group of its map{self._listed(groups)}")
            elif n_devices is not None and n_devices >= 1 and not 0 <= device < n_devices:
                self.problems.add(
                    f"{here}: device {device} is out of range, the configuration has {n_devices} (from 0)"
                )
        parts = 1
        axes: dict[int, None] = {}
        rank = len(tensor.shape) if tensor is not None and not tensor.dtype.endswith(")") else None
        for dim in spec.sharded_dim:
            axis = dim.axis
            if rank is not None:
                if not -rank <= axis < rank:
                    self.problems.add(f"{here}: axis {axis} is out of range, it has rank {rank}")
                    continue
                axis %= rank
            if axis in axes:
                self.problems.add(f"{here}: axis {axis} is split twice")
            axes[axis] = None
            parts *= self.split(dim, tensor, axis if rank is not None else None, f"{here}, axis {dim.axis}")
        if parts > 1 and spec.device and len(spec.device) != parts:
            self.problems.add(f"{here}: {parts} parts, but {len(spec.device)} devices or groups for them")
        elif parts > 1 and n_devices is not None and not spec.device and parts > max(n_devices, 1):
            self.problems.add(f"{here}: {parts} parts, but the configuration has {n_devices} devices")

    def split(self, dim: Any, tensor: Tensor | None, axis: int | None, here: str) -> int:
        """Into how many parts an axis is split."""
        if not dim.simple_sharding:
            self.problems.add(f"{here}: it is not said into how many parts")
        wrong = [s.num_shards for s in dim.simple_sharding if s.num_shards < 1]
        if wrong:
            self.problems.add(f"{here}: {wrong[0]} parts, at least 1 is needed")
            return 1
        parts = prod(s.num_shards for s in dim.simple_sharding)
        sizes = [s.dim_value for s in dim.simple_sharding if s.HasField("dim_value")]
        if any(size < 0 for size in sizes):
            self.problems.add(f"{here}: a size of {min(sizes)} is impossible")
        if tensor is None or axis is None or tensor.shape[axis].per_sample or axis in tensor.at_most:
            return parts
        size = tensor.shape[axis].fixed
        if parts > max(size, 1):
            self.problems.add(f"{here}: {parts} parts of {size} elements")
        elif sizes and len(sizes) == len(dim.simple_sharding) and prod(sizes) != size:
            self.problems.add(f"{here}: its size is stated as {prod(sizes)}, but it has {size} elements")
        return parts

    def _near(self, name: str, known: Iterable[str]) -> str:
        self.suggested += 1
        return did_you_mean(name, known) if self.suggested <= SUGGESTIONS else ""

    @staticmethod
    def _listed(groups: Mapping[int, Any]) -> str:
        return f"; it has {', '.join(map(str, groups))}" if groups else "; it has none"


def strategies(proto: ModelProto) -> tuple[Strategy, ...]:
    """What each configuration of a model says, in the file's order; annotations of graphs inside operators included."""
    if not proto.configuration:
        return ()
    graphs = [inner.graph for inner in survey(proto).graphs]
    count = sum(len(graph.node) for graph in graphs)
    found = []
    for configuration in proto.configuration:
        stages: set[int] = set()
        parts: dict[str, int] = {}
        copied: set[str] = set()
        placed, goes_back = 0, ""
        for graph in graphs:
            at: dict[str, int] = {}
            for node in graph.node:
                place = next((p for p in node.device_configurations if p.configuration_id == configuration.name), None)
                if place is None:
                    continue
                placed += 1
                if place.HasField("pipeline_stage"):
                    stages.add(place.pipeline_stage)
                    if not goes_back and any(at.get(n, -1) > place.pipeline_stage for n in node.input):
                        goes_back = node.name or node.op_type
                    at.update(dict.fromkeys(node.output, place.pipeline_stage))
                for spec in place.sharding_spec:
                    into = prod(s.num_shards for dim in spec.sharded_dim for s in dim.simple_sharding)
                    if into > 1:
                        parts[spec.tensor_name] = max(into, parts.get(spec.tensor_name, 1))
                    elif len(spec.device) > 1 or any(len(g.value) > 1 for g in spec.index_to_device_group_map):
                        copied.add(spec.tensor_name)
        found.append(
            Strategy(
                configuration=configuration.name,
                n_devices=configuration.num_devices,
                devices=tuple(configuration.device),
                stages=tuple(sorted(stages)),
                placed=placed,
                nodes=count,
                split=len(parts),
                parts=max(parts.values(), default=1),
                copied=len(copied.difference(parts)),
                goes_back=goes_back,
            )
        )
    return tuple(found)
