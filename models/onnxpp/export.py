"""The trained weights in the graph that was imported.

An ONNX++ file carries the imported graph itself (normalised, see :mod:`.normalise`, but with its own operator set,
batch dimension, BatchNormalization in inference form and no appended loss) without its large weights, whose bytes the
ONNX++ file has anyway. So an export needs nothing but the ONNX++ file, and writes what the user brought, with other
numbers in it.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from ...errors import ModelError
from .external import tensor_values
from .graph import Tensor
from .onnxpp import Onnxpp, metadata, write_atomic
from .problems import Problems, did_you_mean
from .weights import is_heavy

__all__ = ["export_trained", "pack_original", "unpack_original"]

MAX_ORIGINAL_BYTES = 2**28
MAX_INLINE_BYTES = 2**31 - 2**20


def pack_original(model: ModelProto) -> str:
    """The model without the bytes of its heavy initializers, as text for the metadata."""
    light = ModelProto()
    weights = list(model.graph.initializer)
    kept = [TensorProto(name=t.name, data_type=t.data_type, dims=t.dims) if is_heavy(t) else t for t in weights]
    light.CopyFrom(_without_weights(model))
    light.graph.initializer.extend(kept)
    return base64.b64encode(zlib.compress(light.SerializeToString(deterministic=True), 9)).decode()


def _without_weights(model: ModelProto) -> ModelProto:
    bare = ModelProto(
        ir_version=model.ir_version,
        producer_name=model.producer_name,
        producer_version=model.producer_version,
        domain=model.domain,
        model_version=model.model_version,
        doc_string=model.doc_string,
        opset_import=model.opset_import,
        metadata_props=model.metadata_props,
    )
    graph, source = bare.graph, model.graph
    graph.name, graph.doc_string = source.name, source.doc_string
    graph.node.extend(source.node)
    graph.input.extend(source.input)
    graph.output.extend(source.output)
    graph.value_info.extend(source.value_info)
    return bare


def unpack_original(text: str) -> ModelProto:
    """The inverse of :func:`pack_original`. Raises ValueError if the text is damaged or unpacks beyond 256 MiB."""
    try:
        unpacker = zlib.decompressobj()
        content = unpacker.decompress(base64.b64decode(text, validate=True), MAX_ORIGINAL_BYTES)
        if not unpacker.eof:
            raise ValueError("it is cut short or larger than any graph")
        return ModelProto.FromString(content)
    except (zlib.error, ValueError, onnx.checker.ValidationError) as error:
        raise ValueError(f"the imported graph cannot be unpacked: {error}") from None
    except Exception as error:  # protobuf's DecodeError
        raise ValueError(f"the imported graph cannot be read: {error}") from None


def export_trained(model: Onnxpp, values: Mapping[str, np.ndarray], path: str | Path) -> None:
    """Write the imported graph with `values` in place of its weights to `path`, atomically, all weights inline.

    `values` gives parameters and running statistics by name; those left out keep their imported values.
    Floating-point values are cast to the tensor's own type. A weight that was computed from constants
    (ConstantOfShape, say) becomes an initializer. A BatchNormalization that the file already had in training mode
    stays so. Raises ModelError for names that are no parameter or statistic, for shapes that differ, for weights
    above 2 GiB and for a place that cannot be written.
    """
    path = Path(path)
    known = {*model.graph.parameters, *model.graph.state}
    problems = Problems(f"trained weights of {model.graph.name!r}", "cannot be exported")
    for name, value in values.items():
        if name not in known:
            problems.add(f"{name!r} is no parameter and no running statistic{did_you_mean(name, known)}")
        elif (shape := model.graph.tensors[name].dims(1)) != np.shape(value):
            problems.add(f"{name!r} has shape {np.shape(value)}, expected {shape}")
    problems.stop()
    try:
        original = unpack_original(metadata(model.proto).get("original", ""))
    except ValueError as error:
        raise ModelError(f"{model.graph.name!r} cannot be exported: {error}; import the model again") from None
    _replace(original, model, values)
    size = original.ByteSize()
    if size > MAX_INLINE_BYTES:
        raise ModelError(f"{path} would have {size} bytes, an ONNX file holds 2 GiB; keep the checkpoint instead")
    write_atomic(path, original.SerializeToString(deterministic=True))


def _replace(original: ModelProto, model: Onnxpp, values: Mapping[str, np.ndarray]) -> None:
    graph = original.graph
    imported = {t.name: t for t in model.proto.graph.initializer}
    trained = {name: _initializer(model.graph.tensors[name], value) for name, value in values.items()}
    kept = [node for node in graph.node if not all(name in trained for name in node.output if name)]
    weights: list[TensorProto] = []
    for tensor in graph.initializer:
        if tensor.name in trained:
            weights.append(trained.pop(tensor.name))
        elif is_heavy(tensor):
            value = tensor_values(imported[tensor.name], model.folder, model.allow_external)
            weights.append(numpy_helper.from_array(value, tensor.name))
        else:
            weights.append(tensor)
    weights.extend(trained.values())
    read = {name for node in kept for name in node.input} | {o.name for o in graph.output}
    weights = [TensorProto.FromString(t.SerializeToString()) for t in weights if t.name in read]
    nodes = [NodeProto.FromString(n.SerializeToString()) for n in kept]
    del graph.node[:]
    del graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(weights)


def _initializer(tensor: Tensor, value: np.ndarray) -> TensorProto:
    import ml_dtypes  # noqa: F401  (registers bfloat16 with NumPy)

    return numpy_helper.from_array(np.ascontiguousarray(value, dtype=np.dtype(tensor.dtype)), tensor.name)
