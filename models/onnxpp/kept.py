"""What a file says beside its graph, kept through steps that would lose it: annotations, documentation, metadata.

onnx's converter and its inliner build a model anew and leave out nearly everything that no computation needs:
configurations of devices, where nodes run, metadata, training information, notes on quantisation. Other steps replace a
node by several, or call a tensor by a new name. So what the file says is put aside before such a step, and given back to
the nodes that came of it afterwards:

* a node is known by its outputs, which keep their names, or by its own name;
* a node that is new belongs to the node whose operands it makes: it is placed where that one is, and keeps the sharding
  of the tensors that both of them have;
* a sharding that names an operand by its old name gets the new one, which stands at the same place among the operands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

from onnx import ModelProto, NodeProto, TypeProto, ValueInfoProto

from ...errors import ModelError

__all__ = ["Kept", "copy_without", "keep_remarks", "mark_slots", "put_aside", "restore", "take_slots"]

COMPUTED = ("graph", "functions", "opset_import", "ir_version")
GRAPH_PARTS = ("node", "initializer", "sparse_initializer", "input", "output", "value_info", "name")
# Our own metadata that goes with a node's place.
SEGMENT_KEY = "hpdlf.segment."
SLOT = "\x1fslot:"

P = ParamSpec("P")
R = TypeVar("R")


def _of_texts(step: Callable[P, R]) -> Callable[P, R]:
    """protobuf looks at a text when it is read, and raises where it is none."""

    @wraps(step)
    def checked(*args: P.args, **options: P.kwargs) -> R:
        try:
            return step(*args, **options)
        except UnicodeDecodeError:
            raise ModelError("the model is damaged: a text in it is none (no UTF-8); export the model again") from None

    return checked


class _Said(NamedTuple):
    """A node as it was: what it is called, and references to what it says beside its computation."""

    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    doc: str
    metadata: Sequence[Any]
    places: Sequence[Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Kept:
    """What was put aside.

    rest      the model without its graph, and the graph without what is computed
    nodes     what nodes say, by each of their outputs
    named     the same by name, where that is unique
    known     outputs of every node that there was
    tensors   initializers that say something, by name
    values    inputs, outputs and stated shapes that say something, by name
    """

    rest: ModelProto
    nodes: Mapping[str, _Said]
    named: Mapping[str, _Said | None]
    known: frozenset[str]
    tensors: Mapping[str, Any]
    values: Mapping[str, ValueInfoProto]


def copy_without(message: Any, left_out: Iterable[str]) -> Any:
    """A copy of a protobuf message without some of its fields, none of which is copied first."""
    copy = type(message)()
    for field, value in message.ListFields():
        if field.name in left_out:
            continue
        _set(copy, field.name, value)
    return copy


def _set(target: Any, name: str, value: Any) -> None:
    if hasattr(value, "extend"):
        getattr(target, name).extend(value)
    elif hasattr(value, "CopyFrom"):
        getattr(target, name).CopyFrom(value)
    else:
        setattr(target, name, value)


@_of_texts
def put_aside(model: ModelProto, *, placed_only: bool = False) -> Kept:
    """What `model` says beside its graph. `placed_only`: nothing but where nodes run, for steps that keep the rest."""
    graph = model.graph
    nodes: dict[str, _Said] = {}
    named: dict[str, _Said | None] = {}
    known: set[str] = set()
    for node in graph.node:
        outputs = tuple(filter(None, node.output))
        known.update(outputs)
        places = node.device_configurations
        if not (places or (not placed_only and (node.metadata_props or node.doc_string))):
            continue
        said = _Said(node.op_type, tuple(node.input), tuple(node.output), node.doc_string, node.metadata_props, places)
        nodes.update(dict.fromkeys(outputs, said))
        if node.name:
            named[node.name] = None if node.name in named else said
    rest = ModelProto()
    tensors: dict[str, Any] = {}
    values: dict[str, ValueInfoProto] = {}
    if not placed_only:
        rest = copy_without(model, COMPUTED)
        rest.graph.CopyFrom(copy_without(graph, GRAPH_PARTS))
        tensors = {
            t.name: (t.doc_string, t.metadata_props) for t in graph.initializer if t.doc_string or t.metadata_props
        }
        for value in (*graph.input, *graph.output, *graph.value_info):
            if _says(value):
                values[value.name] = ValueInfoProto()
                values[value.name].CopyFrom(value)
    return Kept(rest=rest, nodes=nodes, named=named, known=frozenset(known), tensors=tensors, values=values)


@_of_texts
def restore(model: ModelProto, kept: Kept) -> None:
    """Give `model`, which a step made of the one that `kept` is of, what it no longer says; in place.

    What it says still is left as it is, but for shardings that name a tensor by a name that its node no longer has.
    """
    _fill(model, kept.rest, ("graph",))
    _fill(model.graph, kept.rest.graph, ())
    graph = model.graph
    for tensor in graph.initializer if kept.tensors else ():
        if tensor.name in kept.tensors:
            doc, metadata = kept.tensors[tensor.name]
            _document(tensor, doc)
            _add_metadata(tensor, metadata)
    for value in (*graph.input, *graph.output, *graph.value_info) if kept.values else ():
        if value.name in kept.values:
            keep_remarks(value, kept.values[value.name])
    if not kept.nodes:
        return
    reader: dict[str, _Said] = {}
    for node in reversed(graph.node):
        outputs = [name for name in node.output if name]
        said = next((kept.nodes[name] for name in outputs if name in kept.nodes), None)
        if said is None and kept.known.isdisjoint(outputs):
            same = kept.named.get(node.name)
            said = same if same is not None and same.op_type == node.op_type else None
            if said is None:
                said = next((reader[name] for name in outputs if name in reader), None)
                if said is not None:
                    _place(node, said)
                    _add_metadata(node, [m for m in said.metadata if m.key.startswith(SEGMENT_KEY)])
                    reader.update((name, said) for name in node.input if name and name not in kept.known)
                continue
        if said is None:
            continue
        _document(node, said.doc)
        _add_metadata(node, said.metadata)
        _place(node, said)
        reader.update((name, said) for name in node.input if name and name not in kept.known)


def _fill(target: Any, source: Any, left_out: Iterable[str]) -> None:
    """Give a message the fields of another that it has not got."""
    present = {field.name for field, _ in target.ListFields()}
    for field, value in source.ListFields():
        if field.name in left_out or field.name in present:
            continue
        _set(target, field.name, value)


def _document(target: Any, text: str) -> None:
    if text and not target.doc_string:
        target.doc_string = text


def _add_metadata(target: Any, entries: Iterable[Any]) -> None:
    have = {entry.key for entry in target.metadata_props}
    for entry in list(entries):
        if entry.key not in have:
            target.metadata_props.add(key=entry.key, value=entry.value)


def _place(node: NodeProto, said: _Said) -> None:
    """Where a node runs: what it says itself, then what the node that it comes of says."""
    mine = {name for name in (*node.input, *node.output) if name}
    renamed = _renamed(node, said)
    for place in node.device_configurations:
        for spec in place.sharding_spec:
            if spec.tensor_name not in mine and spec.tensor_name in renamed:
                spec.tensor_name = renamed[spec.tensor_name]
    have = {place.configuration_id for place in node.device_configurations}
    for place in list(said.places):
        if place.configuration_id in have:
            continue
        copy = node.device_configurations.add()
        copy.CopyFrom(place)
        del copy.sharding_spec[:]
        theirs = {*said.inputs, *said.outputs}
        for spec in place.sharding_spec:
            name = spec.tensor_name if spec.tensor_name in mine else renamed.get(spec.tensor_name)
            if name is None and spec.tensor_name in theirs:
                continue  # another of the nodes that came of it has this tensor
            added = copy.sharding_spec.add()
            added.CopyFrom(spec)
            added.tensor_name = name or spec.tensor_name


def _renamed(node: NodeProto, said: _Said) -> Mapping[str, str]:
    """New names of the operands and results of the same operator, by their old ones."""
    if node.op_type != said.op_type:
        return {}
    pairs = [*zip(said.inputs, node.input, strict=False), *zip(said.outputs, node.output, strict=False)]
    return {old: new for old, new in pairs if old and new and old != new}


def mark_slots(model: ModelProto) -> None:
    """In functions, shardings name tensors by their place among operands or results; see :func:`take_slots`."""
    for function in model.functions:
        for node in function.node:
            for place in node.device_configurations:
                for spec in place.sharding_spec:
                    for kind, names in (("input", list(node.input)), ("output", list(node.output))):
                        if spec.tensor_name and spec.tensor_name in names:
                            spec.tensor_name = f"{SLOT}{kind}:{names.index(spec.tensor_name)}"


def take_slots(model: ModelProto) -> None:
    """The inverse of :func:`mark_slots` once functions are written out: tensors have their names in the graph."""
    for node in model.graph.node:
        for place in node.device_configurations:
            for spec in place.sharding_spec:
                if spec.tensor_name.startswith(SLOT):
                    kind, _, index = spec.tensor_name.removeprefix(SLOT).partition(":")
                    names = node.input if kind == "input" else node.output
                    spec.tensor_name = names[int(index)] if int(index) < len(names) else ""


def _says(value: ValueInfoProto) -> bool:
    tensor = value.type.tensor_type
    return bool(
        value.doc_string or value.metadata_props or value.type.denotation or any(d.denotation for d in tensor.shape.dim)
    )


def keep_remarks(value: ValueInfoProto, before: ValueInfoProto) -> None:
    """Give a value its documentation, metadata and denotations as they were `before` it was written anew; in place."""
    _document(value, before.doc_string)
    _add_metadata(value, [entry for entry in before.metadata_props if not entry.key.startswith("hpdlf.")])
    _denote(value.type, before.type)


def _denote(kind: TypeProto, before: TypeProto) -> None:
    if before.denotation:
        kind.denotation = before.denotation
    dims, old = kind.tensor_type.shape.dim, before.tensor_type.shape.dim
    if kind.HasField("tensor_type") and len(dims) == len(old):
        for dim, was in zip(dims, old, strict=True):
            if was.denotation:
                dim.denotation = was.denotation
