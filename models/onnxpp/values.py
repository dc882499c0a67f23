"""Values of weights and of everything computed from constants alone, read when a run needs them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from onnx import NodeProto, TensorProto

from ...errors import ModelError
from .external import tensor_values
from .kept import copy_without
from .onnxpp import Onnxpp
from .parameters import constant_tensors
from .problems import did_you_mean
from .shapes import evaluate_nodes
from .weights import is_external, is_heavy

__all__ = ["load_values", "released"]


def load_values(model: Onnxpp, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Values of constant tensors by name: initializers (external ones from their files), results of constant subgraphs.

    Raises ModelError for a tensor that depends on data or does not exist, and for external data that is missing or
    unsafe.
    """
    graph = model.proto.graph
    names = list(dict.fromkeys(names))
    weights = {t.name: t for t in graph.initializer}
    result = {
        name: tensor_values(weights[name], model.folder, model.allow_external) for name in names if name in weights
    }
    computed = [name for name in names if name not in weights]
    if not computed:
        return result
    constant = constant_tensors(model.proto, model.graph.parameters)
    for name in computed:
        if name not in constant:
            why = "depends on data" if name in model.graph.tensors else f"does not exist{did_you_mean(name, constant)}"
            raise ModelError(f"the value of {name!r} in {model.graph.name!r} cannot be loaded: the tensor {why}")
    needed, wanted = _cone(list(graph.node), set(computed))
    feeds = {
        name: result[name] if name in result else tensor_values(weights[name], model.folder, model.allow_external)
        for name in wanted
        if name in weights
    }
    result.update(zip(computed, evaluate_nodes(needed, feeds, computed, model.proto), strict=True))
    return {name: result[name] for name in names}


def released(model: Onnxpp, names: Iterable[str]) -> Onnxpp:
    """`model` without the numbers of the weights `names`, which somebody else holds: no memory for a second copy.

    Whoever asks it for these numbers gets a ModelError. The model that was given stays as it is, for whoever has it.
    """
    gone = set(names)
    # A part of a message is not given back before the whole is, so what stays is copied.
    proto = copy_without(model.proto, ("graph",))
    proto.graph.CopyFrom(copy_without(model.proto.graph, ("initializer",)))
    for tensor in model.proto.graph.initializer:
        if tensor.name in gone and is_heavy(tensor) and not is_external(tensor):
            # In no file: reading it is refused.
            proto.graph.initializer.add(
                name=tensor.name,
                data_type=tensor.data_type,
                dims=tensor.dims,
                data_location=TensorProto.EXTERNAL,
                metadata_props=tensor.metadata_props,
            )
        else:
            proto.graph.initializer.append(tensor)
    return replace(model, proto=proto)


def _cone(nodes: list[NodeProto], wanted: set[str]) -> tuple[list[NodeProto], set[str]]:
    """The nodes that compute `wanted`, in order, and every tensor they read."""
    needed: list[NodeProto] = []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            needed.append(node)
            wanted.update(filter(None, node.input))
    return needed[::-1], wanted
