"""Read an ONNX file that may be anything: budgets first, then structure, then onnx's checker; all problems together.

Nothing is executed, unpickled or unpacked here, and no path or link is followed out of the model's folder. Shape
inference, which trusts its input, comes after this module.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import sha256
from math import prod
from pathlib import Path

import onnx
from onnx import ModelProto, NodeProto, TensorProto

from ...errors import ModelError
from .problems import Problems, did_you_mean
from .structure import check_operators, check_opsets, check_wiring
from .weights import MAX_RANK, external_path, is_external, light_copy, payload_bytes

__all__ = ["read_model"]

MAX_FILE_BYTES = 2**31 - 1
MAX_ELEMENTS = 2**36
MAX_NODES = 500_000
FIELD_OF_TYPE = {
    **dict.fromkeys((TensorProto.FLOAT, TensorProto.COMPLEX64), "float_data"),
    **dict.fromkeys((TensorProto.DOUBLE, TensorProto.COMPLEX128), "double_data"),
    **dict.fromkeys((TensorProto.UINT32, TensorProto.UINT64), "uint64_data"),
    TensorProto.INT64: "int64_data",
    TensorProto.STRING: "string_data",
}


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
    path = Path(path)
    content = _content(path) if content is None else content
    model = ModelProto()
    try:
        model.ParseFromString(content)
    except Exception:  # protobuf's DecodeError, of which protobuf ships no types
        raise ModelError(
            f"{path} is no ONNX file: it is no protobuf of onnx.ModelProto; export the model again"
        ) from None
    if not model.ir_version or not model.HasField("graph") or not (model.graph.node or model.graph.output):
        raise ModelError(f"{path} is no ONNX file: it holds no graph; export the model again")
    problems = Problems(path)
    if any(not isinstance(text, str) for text in _texts(model)):
        # protobuf hands out bytes where a text is not UTF-8.
        raise ModelError(f"{path} is damaged: a name in it is no text; export the model again")
    _budgets(model, problems)
    problems.stop()
    _weights(model, path.parent, [Path(f) for f in allow_external], without_weights, problems)
    check_opsets(model, problems)
    check_operators(model, problems)
    check_wiring(model, problems)
    problems.stop()
    try:
        onnx.checker.check_model(_checkable(model))
    except Exception as error:  # the checker raises several unrelated types
        problems.add(f"onnx's checker says: {str(error).strip()}")
    problems.stop()
    return model, sha256(content).hexdigest()


def _content(path: Path) -> bytes:
    if not path.exists():
        siblings = [p.name for p in path.parent.glob("*.onnx")] if path.parent.is_dir() else []
        raise ModelError(f"{path} does not exist{did_you_mean(path.name, siblings)}")
    if not path.is_file():
        raise ModelError(f"{path} is no file; name an ONNX file")
    size = path.stat().st_size
    if size == 0:
        raise ModelError(f"{path} is empty; export the model again")
    if size > MAX_FILE_BYTES:
        raise ModelError(f"{path} has {size} bytes, a protobuf holds 2 GiB at most; export with external data")
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None


def _texts(model: ModelProto) -> Iterator[object]:
    """Every name in the file that later steps compare or print."""
    graph = model.graph
    yield graph.name
    for opset in model.opset_import:
        yield opset.domain
    for configuration in model.configuration:
        yield configuration.name
    for prop in model.metadata_props:
        yield from (prop.key, prop.value)
    for tensor in graph.initializer:
        yield tensor.name
        for entry in tensor.external_data:
            yield from (entry.key, entry.value)
    for value in (*graph.input, *graph.output, *graph.value_info):
        yield value.name
        for dim in value.type.tensor_type.shape.dim:
            yield dim.dim_param
    for function in model.functions:
        yield from (function.name, function.domain, *function.input, *function.output, *function.attribute)
    for node in (*graph.node, *(node for function in model.functions for node in function.node)):
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        for prop in node.metadata_props:
            yield from (prop.key, prop.value)
        for place in node.device_configurations:
            yield place.configuration_id
        for attribute in node.attribute:
            yield from (attribute.name, attribute.ref_attr_name)


def _attribute_tensors(nodes: Iterable[NodeProto]) -> Iterator[tuple[str, TensorProto]]:
    for node in nodes:
        for attribute in node.attribute:
            for tensor in ([attribute.t] if attribute.HasField("t") else []) + list(attribute.tensors):
                yield f"attribute {attribute.name!r} of node {node.name or node.op_type!r}", tensor


def _budgets(model: ModelProto, problems: Problems) -> None:
    """Sizes that are declared, before anything allocates them; calls of functions, before anything inlines them."""
    graph = model.graph
    named = [(f"initializer {t.name!r}", t) for t in graph.initializer]
    inner = [t for function in model.functions for t in _attribute_tensors(function.node)]
    for where, tensor in [*named, *_attribute_tensors(graph.node), *inner]:
        if not TensorProto.DataType.DESCRIPTOR.values_by_number.get(tensor.data_type) or not tensor.data_type:
            problems.add(f"{where}: element type {tensor.data_type} is unknown; export the model again")
        elif min(tensor.dims, default=0) < 0 or len(tensor.dims) > MAX_RANK:
            problems.add(f"{where}: shape {list(tensor.dims)} is impossible; export the model again")
        elif prod(tensor.dims) > MAX_ELEMENTS:
            problems.add(
                f"{where}: shape {list(tensor.dims)} declares {prod(tensor.dims)} elements, at most {MAX_ELEMENTS}"
            )
        elif not is_external(tensor) and (mismatch := _inline_mismatch(tensor)):
            problems.add(f"{where}: {mismatch}; the file is damaged, export the model again")
    for value in graph.input:
        dims = [d.dim_value for d in value.type.tensor_type.shape.dim if d.dim_value > 0]
        if prod(dims) > MAX_ELEMENTS:
            problems.add(f"input {value.name!r}: shape {dims} declares {prod(dims)} elements, at most {MAX_ELEMENTS}")
    _calls(model, problems)


def _inline_mismatch(tensor: TensorProto) -> str | None:
    count = prod(tensor.dims)
    if tensor.HasField("raw_data"):
        have, need, unit = len(tensor.raw_data), payload_bytes(tensor), "bytes"
    else:
        have = len(getattr(tensor, FIELD_OF_TYPE.get(tensor.data_type, "int32_data")))
        need = count * (2 if tensor.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128) else 1)
        unit = "values"
        if payload_bytes(tensor) < count:  # packed types
            need = have
    return None if have == need else f"shape {list(tensor.dims)} needs {need} {unit}, the file has {have}"


def _calls(model: ModelProto, problems: Problems) -> None:
    """The number of nodes once all functions are inlined; functions that call themselves."""
    functions = {(f.domain, f.name): f for f in model.functions}
    expanded: dict[tuple[str, str], int] = {}

    def size(nodes: Iterable[NodeProto], path: tuple[tuple[str, str], ...]) -> int:
        total = 0
        for node in nodes:
            key = (node.domain, node.op_type)
            if key not in functions:
                total += 1
                continue
            if key in path or len(path) > 50:
                problems.add(
                    f"function {node.op_type!r} calls itself or nests more than 50 deep; export without functions"
                )
                return total
            if key not in expanded:
                expanded[key] = size(functions[key].node, (*path, key))
            total += expanded[key]
        return total

    count = size(model.graph.node, ())
    if count > MAX_NODES:
        problems.add(f"the graph has {count} nodes once its functions are written out, at most {MAX_NODES}")


def _weights(model: ModelProto, folder: Path, allowed: list[Path], without: bool, problems: Problems) -> None:
    absent: list[str] = []
    for tensor in model.graph.initializer:
        if not is_external(tensor):
            continue
        try:
            external_path(tensor, folder, allowed)
        except ModelError as error:
            if "is missing;" not in str(error):
                problems.add(str(error))
            elif not without:
                absent.append(str(error))
    if absent:
        more = f" (and {len(absent) - 1} more tensors)" if len(absent) > 1 else ""
        problems.add(absent[0] + more)
    for where, tensor in _attribute_tensors(model.graph.node):
        if is_external(tensor):
            problems.add(f"{where}: only initializers may have external data; export the model again")
    if model.graph.sparse_initializer:
        problems.add("sparse initializers are not supported; export with dense weights")


def _checkable(model: ModelProto) -> ModelProto:
    light = light_copy(model)
    if light.ir_version < 4:
        # Until version 3 initializers had to be inputs too, which a light copy of a newer exporter's file may break.
        light.ir_version = 4
    for value in light.graph.output:
        # Some exporters state no shape for outputs, which the checker wants and inference finds anyway.
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.shape.SetInParent()
    return light
