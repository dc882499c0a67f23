"""Where operators run: written into and read from the places that the ONNX standard has for it, and checked there.

onnx's checker looks at none of these annotations, so everything that could be wrong with them is looked for here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple

from onnx import ModelProto

from ...errors import ModelError
from .count import FAMILIES
from .extract import families
from .graph import Tensor
from .onnxpp import PREFIX, Onnxpp, metadata
from .parameters import constant_tensors
from .problems import Problems, did_you_mean

__all__ = ["Placement", "annotate", "annotation", "check_annotations"]

MODEL_KEYS = ("format", "source.name", "source.sha256", "original", "loss", "targets", "parameters", "fixed_batch")
REQUIRED_KEYS = ("format", "source.name", "source.sha256", "original", "targets", "parameters")
NODE_KEYS = ("family", "flops", "trips")
SEGMENT = "segment."


class Placement(NamedTuple):
    """Where one operator runs: its pipeline stage and the segment it is compiled into."""

    stage: int
    segment: str


def annotate(
    model: Onnxpp, *, configuration: str, stages: Mapping[str, int], segments: Mapping[str, str], n_devices: int
) -> Onnxpp:
    """A copy of `model` in which `configuration` says each operator's stage and segment (by operator name).

    An earlier configuration of the same id is replaced, others stay. Raises ModelError unless both mappings name
    exactly the graph's operators and the stages are sound (see :func:`check_annotations`).
    """
    names = set(model.graph.operator)
    problems = Problems(f"configuration {configuration!r} of {model.graph.name!r}", "cannot be written")
    for what, mapping in (("stages", stages), ("segments", segments)):
        for name in sorted(set(mapping) - names):
            problems.add(f"{what}: the graph has no operator {name!r}{did_you_mean(name, names)}")
        if missing := [o.name for o in model.graph.operators if o.name not in mapping]:
            problems.add(f"{what}: {len(missing)} operators are left out, {missing[0]!r} first")
    problems.stop()
    proto = ModelProto()
    proto.CopyFrom(model.proto)
    kept = [c for c in proto.configuration if c.name != configuration]
    del proto.configuration[:]
    proto.configuration.extend(kept)
    proto.configuration.add(name=configuration, num_devices=n_devices)
    key = f"{PREFIX}{SEGMENT}{configuration}"
    for node in proto.graph.node:
        others = [c for c in node.device_configurations if c.configuration_id != configuration]
        if len(others) != len(node.device_configurations):
            del node.device_configurations[:]
            node.device_configurations.extend(others)
        props = [p for p in node.metadata_props if p.key != key]
        if len(props) != len(node.metadata_props):
            del node.metadata_props[:]
            node.metadata_props.extend(props)
        if node.name in names:
            node.device_configurations.add(configuration_id=configuration, pipeline_stage=stages[node.name])
            node.metadata_props.add(key=key, value=segments[node.name])
    _check_configurations(proto, names, problems)
    problems.stop()
    return Onnxpp(
        proto=proto,
        graph=model.graph,
        folder=model.folder,
        source_sha256=model.source_sha256,
        allow_external=model.allow_external,
    )


def annotation(model: Onnxpp, configuration: str) -> Mapping[str, Placement]:
    """Each operator's stage and segment in `configuration`, in the graph's order; ModelError if there is none."""
    known = [c.name for c in model.proto.configuration]
    if configuration not in known:
        listed = f"; it has {', '.join(known)}" if known else "; it has none"
        raise ModelError(
            f"{model.graph.name!r} has no configuration {configuration!r}{did_you_mean(configuration, known) or listed}"
        )
    key = f"{PREFIX}{SEGMENT}{configuration}"
    return {
        node.name: Placement(placed.pipeline_stage, next((p.value for p in node.metadata_props if p.key == key), ""))
        for node in model.proto.graph.node
        for placed in node.device_configurations
        if placed.configuration_id == configuration
    }


def check_annotations(proto: ModelProto, tensors: Mapping[str, Tensor], problems: Problems) -> None:
    """Everything that an ONNX++ file says of itself: known keys, tensors that exist, families, configurations.

    A configuration has an id of its own and at least one device; it places every operator that depends on data, or
    none; no operator's stage comes before the stage of what it reads; stages count from 0 without a gap and are no
    more than devices.
    """
    said = metadata(proto)
    for key in said:
        if key not in MODEL_KEYS:
            problems.add(f"metadata {PREFIX}{key} is unknown{did_you_mean(key, MODEL_KEYS)}")
    for key in REQUIRED_KEYS:
        if key not in said:
            problems.add(f"metadata {PREFIX}{key} is missing; import the original again")
    inputs = {v.name for v in proto.graph.input}
    outputs = {v.name for v in proto.graph.output}
    for name in _names(said, "targets", problems):
        if name not in inputs:
            problems.add(f"metadata {PREFIX}targets: the graph has no input {name!r}{did_you_mean(name, inputs)}")
    constant = constant_tensors(proto)
    parameters = _names(said, "parameters", problems)
    for name in parameters:
        if name not in constant:
            problems.add(f"metadata {PREFIX}parameters: no constant tensor {name!r}{did_you_mean(name, constant)}")
        elif name in tensors and not tensors[name].is_float:
            problems.add(f"metadata {PREFIX}parameters: {name!r} is {tensors[name].dtype}, only floats can be trained")
    if (loss := said.get("loss")) is not None:
        if loss not in outputs:
            problems.add(f"metadata {PREFIX}loss: the graph has no output {loss!r}{did_you_mean(loss, outputs)}")
        elif loss in tensors and tensors[loss].shape:
            problems.add(f"metadata {PREFIX}loss: {loss!r} is no scalar")
    kinds = families(proto, constant_tensors(proto, parameters))
    for node in proto.graph.node:
        for prop in node.metadata_props:
            key = prop.key.removeprefix(PREFIX)
            if not prop.key.startswith(PREFIX) or key.startswith(SEGMENT):
                continue
            if key not in NODE_KEYS:
                problems.add(f"node {node.name!r}: metadata {prop.key} is unknown{did_you_mean(key, NODE_KEYS)}")
            elif key == "family" and prop.value not in FAMILIES:
                problems.add(f"node {node.name!r}: no family {prop.value!r}{did_you_mean(prop.value, FAMILIES)}")
        for name in filter(None, node.output):
            if name not in tensors:
                problems.add(
                    f"tensor {name!r} of node {node.name!r} has no shape in value_info; import the original again"
                )
    _check_configurations(proto, set(kinds), problems)


def _names(said: Mapping[str, str], key: str, problems: Problems) -> list[str]:
    try:
        names = json.loads(said.get(key, "[]"))
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        problems.add(f"metadata {PREFIX}{key}: {said[key][:60]!r} is no JSON list of names; import the original again")
        return []
    return names


def _check_configurations(proto: ModelProto, operators: set[str], problems: Problems) -> None:
    devices: dict[str, int] = {}
    for configuration in proto.configuration:
        where = f"configuration {configuration.name!r}"
        if not configuration.name or configuration.name in devices:
            problems.add(f"{where}: the id is empty or taken")
        if configuration.num_devices < 1:
            problems.add(f"{where}: {configuration.num_devices} devices, at least 1 is needed")
        devices[configuration.name] = configuration.num_devices
    placed: dict[str, dict[str, int]] = {name: {} for name in devices}
    for node in proto.graph.node:
        segments = {
            p.key.removeprefix(PREFIX + SEGMENT) for p in node.metadata_props if p.key.startswith(PREFIX + SEGMENT)
        }
        for place in node.device_configurations:
            name = place.configuration_id
            if name not in devices:
                problems.add(f"node {node.name!r}: no configuration {name!r}{did_you_mean(name, devices)}")
            elif node.name in placed[name]:
                problems.add(f"node {node.name!r} is placed twice in configuration {name!r}")
            else:
                placed[name][node.name] = place.pipeline_stage
            if name in devices and name not in segments:
                problems.add(f"node {node.name!r}: no {PREFIX}{SEGMENT}{name} beside its place in that configuration")
    for name, stages in placed.items():
        where = f"configuration {name!r}"
        missing = [n for n in sorted(operators) if n not in stages]
        if missing and stages:
            problems.add(f"{where} does not place {len(missing)} operators, {missing[0]!r} first")
        if not stages:
            continue
        used = set(stages.values())
        if used != set(range(len(used))) or len(used) > devices[name]:
            problems.add(f"{where}: stages {sorted(used)}, expected 0 to at most {devices[name] - 1} without a gap")
        at: dict[str, int] = {}
        for node in proto.graph.node:
            if node.name not in stages:
                continue
            stage = stages[node.name]
            for operand in node.input:
                if at.get(operand, 0) > stage:
                    problems.add(
                        f"{where}: node {node.name!r} is in stage {stage}, but reads {operand!r} of stage "
                        f"{at[operand]}; stages must not go back"
                    )
            at.update(dict.fromkeys(node.output, stage))
