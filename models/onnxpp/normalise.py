"""Bring what exporters write into one form, without changing what the graph computes.

Functions inlined; Constant nodes turned into initializers; initializers that old files list as inputs, listed no more;
every node named, names unique; vectors that an exporter merged because they were equal, untied (:mod:`.untie`);
gathers that only reshape, written as reshapes (:mod:`.strided`); the operator set converted to 18 or newer.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from ...errors import ModelError
from . import sandbox
from .kept import mark_slots, put_aside, restore, take_slots
from .modes import after_conversion, before_conversion
from .problems import Problems
from .strided import reshape_ordered_gathers
from .untie import untie
from .weights import is_heavy, light_copy

__all__ = ["convert_opset", "normalise", "unique_name", "without_functions"]

TARGET_OPSET = 18
IR_VERSION = 11


def unique_name(wanted: str, taken: set[str]) -> str:
    """`wanted`, or the first of wanted_1, wanted_2 … that is not taken; the answer is taken from then on."""
    name, count = wanted, 0
    while name in taken:
        count += 1
        name = f"{wanted}_{count}"
    taken.add(name)
    return name


def normalise(model: ModelProto, place: object = "the model") -> ModelProto:
    """The same model in the house's form (see the module), changed in place where that is possible.

    `place` names the file in messages. Raises ModelError where its functions cannot be written out.
    """
    kept = put_aside(model, placed_only=not model.functions)
    model = without_functions(model, place)
    # From version 4 on initializers need not be inputs.
    model.ir_version = max(model.ir_version, 4)
    constants_to_initializers(model)
    weights = {t.name for t in model.graph.initializer}
    inputs = [v for v in model.graph.input if v.name not in weights]
    if len(inputs) != len(model.graph.input):
        del model.graph.input[:]
        model.graph.input.extend(inputs)
    name_nodes(model)
    reshape_ordered_gathers(model)
    untie(model)
    restore(model, kept)
    return model


def without_functions(model: ModelProto, place: object = "the model") -> ModelProto:
    """The same model with its functions written out; weights are put aside meanwhile. Raises ModelError."""
    if not model.functions:
        return model
    light = light_copy(model)
    mark_slots(light)
    nodes = len(light.graph.node) + sum(len(f.node) for f in light.functions)
    reply = sandbox.run_limited("inline", light.SerializeToString(), place=place, nodes=nodes)
    model = _with_weights(ModelProto.FromString(reply), model)
    take_slots(model)
    return model


def constants_to_initializers(model: ModelProto) -> None:
    graph = model.graph
    if not any(node.op_type == "Constant" and not node.domain for node in graph.node):
        return
    kept: list[NodeProto] = []
    for node in graph.node:
        if node.op_type != "Constant" or node.domain or not (tensor := _constant_value(node)):
            kept.append(node)
            continue
        tensor.name = node.output[0]
        graph.initializer.append(tensor)
    del graph.node[:]
    graph.node.extend(kept)


def _constant_value(node: NodeProto) -> TensorProto | None:
    attribute = node.attribute[0]
    if attribute.name == "value":
        tensor = TensorProto()
        tensor.CopyFrom(attribute.t)
        return tensor
    value = onnx.helper.get_attribute_value(attribute)
    if attribute.name in ("value_float", "value_floats"):
        return numpy_helper.from_array(np.asarray(value, np.float32))
    if attribute.name in ("value_int", "value_ints"):
        return numpy_helper.from_array(np.asarray(value, np.int64))
    return None


def name_nodes(model: ModelProto) -> None:
    """Give every node a name of its own: its own where that is unique, else the operator's and a number."""
    taken: set[str] = set()
    wanted = [node.name for node in model.graph.node]
    counts = Counter(wanted)
    taken.update(name for name in wanted if name)
    seen: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if not node.name:
            node.name = unique_name(f"{node.op_type}_{index}", taken)
        elif counts[node.name] > 1 and node.name in seen:
            node.name = unique_name(node.name, taken)
        seen.add(node.name)


def convert_opset(model: ModelProto, problems: Problems) -> ModelProto:
    """The model at operator set 18 or newer, or as it is where onnx's converter refuses it.

    Weights are put aside meanwhile: the converter never sees them.
    """
    version = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    if version >= TARGET_OPSET:
        return model
    light = light_copy(model)
    before_conversion(light)
    try:
        reply = sandbox.run_limited(
            "convert",
            light.SerializeToString(),
            place=problems.place,
            nodes=len(light.graph.node),
            target=TARGET_OPSET,
        )
    except ModelError:
        # Some operators have no way up (Upsample, say). Every version of theirs can be counted and run.
        return model
    converted = _with_weights(ModelProto.FromString(reply), model)
    restore(converted, put_aside(model))
    constants_to_initializers(converted)
    name_nodes(converted)
    after_conversion(converted)
    return converted


def _with_weights(changed: ModelProto, model: ModelProto) -> ModelProto:
    """A light copy of `model` that onnx changed, with the heavy initializers that were its inputs."""
    heavy = {t.name: t for t in model.graph.initializer if is_heavy(t)}
    kept = heavy.keys() | {t.name for t in changed.graph.initializer}
    inputs = [v for v in changed.graph.input if v.name not in kept]
    del changed.graph.input[:]
    changed.graph.input.extend(inputs)
    changed.graph.initializer.extend(heavy.values())
    return changed
