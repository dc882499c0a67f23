"""Read an ONNX file that may be anything: budgets first, then structure, then onnx's checker; all problems together.

Nothing is executed, unpickled or unpacked here, and no path or link is followed out of the model's folder. onnx's own code,
which trusts its input, runs in a process of its own (:mod:`.sandbox`); shape inference comes after this module.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path

import onnx
from onnx import ModelProto, NodeProto

from ...errors import ModelError
from . import sandbox
from .budgets import MAX_ELEMENTS, MAX_FILE_BYTES, MAX_NAME, check_budgets
from .contrib import rewrite_contrib
from .external import check_external, fetch_small, open_regular
from .problems import Problems, did_you_mean
from .structure import check_attributes, check_operators, check_opsets
from .survey import Survey, survey
from .weights import densify, light_copy, without_values
from .wire import check_wire
from .wiring import check_wiring

__all__ = ["MAX_ELEMENTS", "check", "read_model"]


def read_model(
    path: str | Path,
    *,
    allow_external: Iterable[str | Path] = (),
    without_weights: bool = False,
    content: bytes | None = None,
) -> tuple[ModelProto, str]:
    """The model in `path` (external data left where it is) and the file's SHA-256, after all checks but inference.

    `without_weights` tolerates external data that is absent: enough to plan and simulate. `content` is what would stand
    in a file at `path` that was never written. Raises ModelError.
    """
    sandbox.start()
    path = Path(path)
    content = _content(path) if content is None else content
    check_wire(content, path)
    model = ModelProto()
    try:
        model.ParseFromString(content)
    except Exception:  # protobuf's DecodeError, of which protobuf ships no types
        raise ModelError(
            f"{path} is no ONNX file: it is no protobuf of onnx.ModelProto; export the model again"
        ) from None
    if not model.ir_version or not model.HasField("graph") or not (model.graph.node or model.graph.output):
        raise ModelError(f"{path} is no ONNX file: it holds no graph; export the model again")
    allowed = [Path(folder) for folder in allow_external]
    check(model, path, folder=path.parent, allow_external=allowed, without_weights=without_weights)
    return model, sha256(content).hexdigest()


def check(
    model: ModelProto,
    place: object,
    *,
    folder: Path | None = None,
    allow_external: Iterable[Path] = (),
    without_weights: bool = False,
) -> None:
    """Every check but inference, of any ONNX model: control flow, functions, and inputs that are no tensors are fine.

    place   names the model in messages
    folder  where its external data lies; None: it must have none

    In place, operators of onnxruntime are written out in standard ones (:mod:`.contrib`), nodes that are out of order are
    sorted, sparse initializers become dense ones, and external tensors that are no weights are read. Raises ModelError
    with all problems found.
    """
    sandbox.begin()
    allow_external = list(allow_external)
    problems = Problems(place)
    surveyed = survey(model)
    _check_texts(model, surveyed, problems)
    problems.stop()
    nodes = check_budgets(model, surveyed, problems)
    problems.stop()
    rewrite_contrib(model)
    surveyed = survey(model)
    check_external(surveyed, folder, allow_external, without_weights, problems)
    check_opsets(model, problems)
    check_operators(model, surveyed, problems)
    check_attributes(model, surveyed, problems)
    check_wiring(model, problems)
    problems.stop()
    sandbox.run_limited("check", _checkable(model).SerializeToString(), place=place, nodes=nodes)
    densify(model.graph, place)
    if not any(opset.domain in ("", "ai.onnx") for opset in model.opset_import):
        # A model of other domains alone. What later steps add to it are standard operators.
        model.opset_import.add(domain="", version=onnx.defs.onnx_opset_version())
    if folder is not None:
        fetch_small(survey(model), folder, allow_external)


def _content(path: Path) -> bytes:
    try:
        file = open_regular(path)
    except (FileNotFoundError, NotADirectoryError):
        siblings = [p.name for p in path.parent.glob("*.onnx")] if path.parent.is_dir() else []
        raise ModelError(f"{path} does not exist{did_you_mean(path.name, siblings)}") from None
    except IsADirectoryError:
        raise ModelError(f"{path} is no file; name an ONNX file") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise ModelError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    with file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            raise ModelError(f"{path} is empty; export the model again")
        if size > MAX_FILE_BYTES:
            raise ModelError(f"{path} has {size} bytes, a protobuf holds 2 GiB at most; export with external data")
        try:
            return file.read(MAX_FILE_BYTES)
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror}") from None


def _check_texts(model: ModelProto, surveyed: Survey, problems: Problems) -> None:
    """Every text that later steps compare, print or copy is one, and no name is endless."""
    damaged = ModelError(f"{problems.place} is damaged: a name in it is no text; export the model again")
    try:
        for text in _texts(model, surveyed):
            if not isinstance(text, str):
                raise damaged  # some versions of protobuf hand out bytes where a text is not UTF-8
            if len(text) > MAX_NAME:
                problems.add(f"a name has {len(text)} characters, at most {MAX_NAME} are supported; export again")
        for holder in (model, model.graph, *model.graph.node, *model.graph.value_info):
            for entry in holder.metadata_props:
                if not isinstance(entry.key, str) or not isinstance(entry.value, str):
                    raise damaged
    except UnicodeDecodeError:  # others raise
        raise damaged from None


def _texts(model: ModelProto, surveyed: Survey) -> Iterator[object]:
    yield from (model.producer_name, model.producer_version, model.domain)
    for opset in model.opset_import:
        yield opset.domain
    for configuration in model.configuration:
        yield configuration.name
    for function in model.functions:
        yield from (function.name, function.domain, function.overload)
        yield from (*function.input, *function.output, *function.attribute)
        yield from _node_texts(function.node)
        for opset in function.opset_import:
            yield opset.domain
        for default in function.attribute_proto:
            yield default.name
    for inner in surveyed.graphs:
        graph = inner.graph
        yield graph.name
        for value in (*graph.input, *graph.output, *graph.value_info):
            yield value.name
            for dim in value.type.tensor_type.shape.dim:
                yield dim.dim_param
        yield from _node_texts(graph.node)
    for tensor, _, _ in surveyed.tensors:
        yield tensor.name
        for entry in tensor.external_data:
            yield from (entry.key, entry.value)


def _node_texts(nodes: Iterable[NodeProto]) -> Iterator[object]:
    for node in nodes:
        yield from (node.name, node.op_type, node.domain, node.overload, *node.input, *node.output)
        for place in node.device_configurations:
            yield place.configuration_id
        for attribute in node.attribute:
            yield attribute.name
            yield attribute.ref_attr_name


def _checkable(model: ModelProto) -> ModelProto:
    """What onnx's checker is given: no weights, and what old exporters left out put right."""
    light = light_copy(model)
    light.graph.sparse_initializer.extend(model.graph.sparse_initializer)
    light = without_values(light)
    # Until version 3 initializers had to be inputs too, which a light copy of a newer exporter's file may break.
    light.ir_version = max(light.ir_version, 4)
    for value in light.graph.output:
        # Some exporters state no shape for outputs, which the checker wants and inference finds anyway.
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.shape.SetInParent()
    return light
