"""The trained weights in the graph that was imported.

An ONNX++ file carries the imported graph itself (normalised, see :mod:`.normalise`, but with its own operator set,
batch dimension, BatchNormalization in inference form and no appended loss) without its large weights, whose bytes the
ONNX++ file has anyway. So an export needs nothing but the ONNX++ file, and writes what the user brought, with other
numbers in it.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from ...errors import ModelError
from .external import tensor_values
from .graph import Tensor
from .kept import copy_without
from .onnxpp import Onnxpp, metadata
from .problems import Problems, did_you_mean
from .survey import bodies_of
from .weights import is_heavy
from .write import VALUES, Weight, write_model

__all__ = ["export_trained", "pack_original", "unpack_original"]

MAX_ORIGINAL_BYTES = 2**28


def pack_original(model: ModelProto) -> str:
    """The model without the bytes of its heavy initializers, as text for the metadata."""
    light: ModelProto = copy_without(model, ("graph",))
    light.graph.CopyFrom(copy_without(model.graph, ("initializer",)))
    light.graph.initializer.extend([copy_without(t, VALUES) if is_heavy(t) else t for t in model.graph.initializer])
    return base64.b64encode(zlib.compress(light.SerializeToString(deterministic=True), 9)).decode()


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
    """Write the imported graph with `values` in place of its weights to `path`, atomically.

    `values` gives parameters and running statistics by name; those left out keep their imported values.
    Floating-point values are cast to the tensor's own type. A weight that was computed from constants
    (ConstantOfShape, say) becomes an initializer. A BatchNormalization that the file already had in training mode
    stays so. Weights stand in the file; where that would have more than 2 GiB, which no protobuf holds, they stand in
    `path`.data beside it. Raises ModelError for names that are no parameter or statistic, for shapes that differ and
    for a place that cannot be written.
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
    write_model(original, path, _later(original, model, values))


def _later(original: ModelProto, model: Onnxpp, values: Mapping[str, np.ndarray]) -> Mapping[str, Weight]:
    """How to come by the numbers of the weights that `original` holds without any."""
    imported = {t.name: t for t in model.proto.graph.initializer}

    def of(tensor: TensorProto) -> np.ndarray:
        if tensor.name in values:
            return _cast(model.graph.tensors[tensor.name], values[tensor.name])
        held = imported.get(tensor.name)
        if held is None or (held.dims, held.data_type) != (tensor.dims, tensor.data_type):
            raise ModelError(
                f"{model.graph.name!r} cannot be exported: the weights of {tensor.name!r} are not in the file as they were "
                "imported; import the model again"
            )
        return tensor_values(held, model.folder, model.allow_external)

    return {t.name: partial(of, t) for t in original.graph.initializer if t.name in values or is_heavy(t)}


def _replace(original: ModelProto, model: Onnxpp, values: Mapping[str, np.ndarray]) -> None:
    """Leave the trained weights' numbers out of `original`, and what computed them; what nobody reads goes."""
    graph = original.graph
    trained = dict.fromkeys(values)
    kept = [node for node in graph.node if not all(name in trained for name in node.output if name)]
    weights: list[TensorProto] = []
    for tensor in graph.initializer:
        if tensor.name in trained:
            del trained[tensor.name]
            bare = copy_without(tensor, VALUES)
            bare.data_type = _element_type(model.graph.tensors[tensor.name])
            weights.append(bare)
        else:
            weights.append(tensor)
    for name in trained:
        tensor = model.graph.tensors[name]
        weights.append(TensorProto(name=name, data_type=_element_type(tensor), dims=tensor.dims(1)))
    read = read_names([*kept], graph)
    weights = [TensorProto.FromString(t.SerializeToString()) for t in weights if t.name in read]
    nodes = [NodeProto.FromString(n.SerializeToString()) for n in kept]
    del graph.node[:]
    del graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(weights)


def read_names(nodes: Iterable[NodeProto], graph: GraphProto) -> set[str]:
    """What `nodes` of a graph, graphs inside them, and its outputs read."""
    read = {o.name for o in graph.output}
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        read.update(node.input)
        for _, body in bodies_of(node):
            waiting.extend(body.node)
            read.update(o.name for o in body.output)
    return read


def _element_type(tensor: Tensor) -> int:
    import ml_dtypes  # noqa: F401  (registers bfloat16 with NumPy)

    return int(helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype)))


def _cast(tensor: Tensor, value: np.ndarray) -> np.ndarray:
    import ml_dtypes  # noqa: F401

    return np.ascontiguousarray(value, dtype=np.dtype(tensor.dtype))
