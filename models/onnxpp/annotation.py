"""Where operators run: written into and read from the places that the ONNX standard has for it, and checked there.

onnx's checker looks at none of these annotations, so everything that could be wrong with them is looked for here.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from onnx import ModelProto, NodeProto

from ...errors import ModelError
from .count import FAMILIES
from .devices import check_devices
from .extract import families
from .graph import Tensor
from .hints import LOWERING, check_hints, drop_hints
from .onnxpp import PREFIX, Onnxpp, metadata
from .parameters import constant_tensors
from .problems import Problems, did_you_mean
from .shapes import parse_dim

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

    An earlier configuration of the same id is replaced with its hints, others stay. Raises ModelError unless both mappings name
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
        drop_hints(node, configuration)
        if node.name in names:
            node.device_configurations.add(configuration_id=configuration, pipeline_stage=stages[node.name])
            node.metadata_props.add(key=key, value=segments[node.name])
    check_devices(proto, model.graph.tensors, problems)
    _check_pipelines(proto, names, problems)
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

    Configurations of any tool follow the standard (see :mod:`.devices`). One of ours (nodes say their segment in it)
    places every operator that depends on data; no operator's stage comes before the stage of what it reads; stages count
    from 0 without a gap and are no more than devices.
    """
    said = metadata(proto)
    _check_model_metadata(proto, said, problems)
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
    configurations = {c.name: c.num_devices for c in proto.configuration}
    for node in proto.graph.node:
        _check_node_metadata(node, configurations, problems)
        for name in filter(None, node.output):
            if name not in tensors:
                problems.add(
                    f"tensor {name!r} of node {node.name!r} has no shape in value_info; import the original again"
                )
    check_devices(proto, tensors, problems)
    _check_pipelines(proto, set(kinds), problems)


def _names(said: Mapping[str, str], key: str, problems: Problems) -> list[str]:
    try:
        names = json.loads(said.get(key, "[]"))
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        problems.add(f"metadata {PREFIX}{key}: {said[key][:60]!r} is no JSON list of names; import the original again")
        return []
    if len(set(names)) < len(names):
        twice = next(n for n in names if names.count(n) > 1)
        problems.add(f"metadata {PREFIX}{key}: {twice!r} occurs twice; import the original again")
    return names


def _check_model_metadata(proto: ModelProto, said: Mapping[str, str], problems: Problems) -> None:
    """Known keys, each once, none missing, and values of their kind."""
    keys = Counter(p.key.removeprefix(PREFIX) for p in proto.metadata_props if p.key.startswith(PREFIX))
    for key, count in keys.items():
        if key not in MODEL_KEYS:
            problems.add(f"metadata {PREFIX}{key} is unknown{did_you_mean(key, MODEL_KEYS)}")
        elif count > 1:
            problems.add(f"metadata {PREFIX}{key} occurs {count} times; import the original again")
    for key in REQUIRED_KEYS:
        if key not in said:
            problems.add(f"metadata {PREFIX}{key} is missing; import the original again")
    digest = said.get("source.sha256")
    if digest is not None and not re.fullmatch("[0-9a-f]{64}", digest):
        problems.add(f"metadata {PREFIX}source.sha256: {digest[:70]!r} is no SHA-256; import the original again")
    batch = said.get("fixed_batch")
    if batch is not None and not re.fullmatch("[1-9][0-9]{0,9}", batch):
        problems.add(f"metadata {PREFIX}fixed_batch: {batch[:60]!r} is no number of samples; import the original again")


def _check_node_metadata(node: NodeProto, configurations: Mapping[str, int], problems: Problems) -> None:
    """What we say on a node: known keys, each once, with values of their kind."""
    seen: set[str] = set()
    for prop in node.metadata_props:
        if not prop.key.startswith(PREFIX):
            continue
        key = prop.key.removeprefix(PREFIX)
        where = f"node {node.name!r}: metadata {prop.key}"
        if key in seen:
            problems.add(f"{where} occurs twice")
        seen.add(key)
        if key.startswith((SEGMENT, LOWERING)):
            kind, _, name = key.partition(".")
            if name not in configurations:
                problems.add(f"{where}: no configuration {name!r}{did_you_mean(name, configurations)}")
            elif f"{kind}." == LOWERING:
                if all(c.configuration_id != name for c in node.device_configurations):
                    problems.add(f"{where} without a place in that configuration")
                check_hints(where, prop.value, problems)
        elif key not in NODE_KEYS:
            problems.add(f"{where} is unknown{did_you_mean(key, NODE_KEYS)}")
        elif key == "family" and prop.value not in FAMILIES:
            problems.add(f"node {node.name!r}: no family {prop.value!r}{did_you_mean(prop.value, FAMILIES)}")
        elif key == "flops" and not re.fullmatch(r"[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?", prop.value):
            problems.add(f"{where}: {prop.value[:60]!r} is no number of FLOPs; import the original again")
        elif key == "trips":
            try:
                parse_dim(prop.value)
            except ValueError as error:
                problems.add(f"{where} {error}; import the original again")


def _check_pipelines(proto: ModelProto, operators: set[str], problems: Problems) -> None:
    """Configurations of ours (some node has a segment in them) are pipelines: whole, without a gap, never backwards."""
    devices = {c.name: c.num_devices for c in proto.configuration}
    placed: dict[str, dict[str, int]] = {}
    without: dict[str, list[str]] = {}
    for node in proto.graph.node:
        if not node.device_configurations and not node.metadata_props:
            continue
        segments = {
            p.key.removeprefix(PREFIX + SEGMENT) for p in node.metadata_props if p.key.startswith(PREFIX + SEGMENT)
        }
        for place in node.device_configurations:
            name = place.configuration_id
            if name in segments:
                placed.setdefault(name, {})
            else:
                without.setdefault(name, []).append(node.name)
        for name in sorted(segments.difference(c.configuration_id for c in node.device_configurations)):
            problems.add(f"node {node.name!r}: {PREFIX}{SEGMENT}{name} without a place in that configuration")
    for node in proto.graph.node:
        for place in node.device_configurations:
            if place.configuration_id in placed:
                placed[place.configuration_id][node.name] = place.pipeline_stage
    for name, stages in placed.items():
        where = f"configuration {name!r}"
        for node_name in without.get(name, ()):
            problems.add(f"node {node_name!r}: no {PREFIX}{SEGMENT}{name} beside its place in that configuration")
        if missing := [n for n in sorted(operators) if n not in stages]:
            problems.add(f"{where} does not place {len(missing)} operators, {missing[0]!r} first")
        used = set(stages.values())
        if used != set(range(len(used))) or (name in devices and len(used) > devices[name]):
            problems.add(
                f"{where}: stages {sorted(used)}, expected 0 to at most {devices.get(name, 1) - 1} without a gap"
            )
        at: dict[str, int] = {}
        for node in proto.graph.node:
            if node.name not in stages:
                continue
            stage = stages[node.name]
            for operand in node.input:
                if at.get(operand, stage) > stage:
                    problems.add(
                        f"{where}: node {node.name!r} is in stage {stage}, but reads {operand!r} of stage "
                        f"{at[operand]}; stages must not go back"
                    )
            at.update(dict.fromkeys(node.output, stage))
