"""From any ONNX file to ONNX++: the order of the steps, and what is written down of each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from onnx import ModelProto

from .again import as_imported, is_wanted_anew
from .count import work
from .devices import check_devices
from .export import pack_original
from .extract import extract_graph
from .graph import Graph
from .inlining import inline_branches
from .kept import keep_remarks, put_aside, restore
from .load import read_model
from .loss import LOSSES, append_loss, find_loss
from .modes import open_dropouts, training_mode
from .normalise import IR_VERSION, convert_opset, normalise
from .onnxpp import FORMAT, PREFIX, Onnxpp, metadata, read_onnxpp, set_metadata
from .parameters import select
from .problems import Problems
from .shapes import TRIPS, value_info
from .shaping import Shaped, shape_model, write_bodies
from .structure import check_inputs

__all__ = ["import_model"]


def import_model(
    path: str | Path,
    *,
    loss: str | None = None,
    loss_output: str | None = None,
    train: str | None = None,
    freeze: str | None = None,
    batch_dim: str | None = None,
    bind: Mapping[str, int] | None = None,
    allow_external: Iterable[str | Path] = (),
    without_weights: bool = False,
    content: bytes | None = None,
    loss_optional: bool = False,
) -> Onnxpp:
    """Import an ONNX file: check and convert it, make its batch symbolic, find its parameters and its loss, and count.

    loss            "softmax_xent", "sigmoid_xent" or "mse", appended if the graph has no scalar loss of its own
    loss_output     the output that is the loss, where the graph has one that is not its first scalar
    train, freeze   regular expressions over tensor names: what is trained, what is not (see :func:`.parameters.select`)
    batch_dim       the batch dimension, by its symbolic name or as INPUT:AXIS, where it is not axis 0
    bind            sizes of the other symbolic dimensions
    allow_external  folders besides the model's own in which external data may lie
    without_weights tolerate absent external data: enough to plan and simulate
    content         the file's bytes, where they were never written to `path`
    loss_optional   go without the loss where none can be appended, or where there is nothing to train

    With a loss the model is meant for training: each BatchNormalization whose scale or bias is trained goes into
    training mode, and its running statistics become ``graph.state``; Dropout drops where the file asks for it, or leaves
    it open as before operator set 12. Without a loss both stay as the file has them. Raises ModelError with all problems
    found.
    """
    path = Path(path)
    allowed = tuple(Path(folder) for folder in allow_external)
    model, sha256 = read_model(path, allow_external=allowed, without_weights=without_weights, content=content)
    problems = Problems(path)
    check_inputs(model.graph, problems)
    problems.stop()
    name = path.name
    if "format" in metadata(model):
        found_already = read_onnxpp(model, path, allow_external=allowed)
        if not is_wanted_anew(
            found_already,
            loss=loss,
            loss_output=loss_output,
            train=train,
            freeze=freeze,
            batch_dim=batch_dim,
            bind=bind,
            loss_optional=loss_optional,
        ):
            return found_already
        name, sha256 = metadata(model)["source.name"], found_already.source_sha256
        asked: dict[str, object] = {"--loss": loss, "--loss-output": loss_output, "--train": train, "--freeze": freeze}
        asked |= {"--batch-dim": batch_dim, "--bind": bind or None}
        named = [option for option, value in asked.items() if value is not None]
        unnamed = found_already.graph.loss if loss is None and loss_output is None else None
        model = as_imported(model, path, named, loss=unnamed)
    # The imported graph is put aside before anything of its meaning changes.
    model = normalise(model, path)
    original = pack_original(model)
    dropouts = open_dropouts(model)
    placed = put_aside(model, placed_only=True)
    given = {name for node in model.graph.node for name in node.output} | {t.name for t in model.graph.initializer}
    shaped = shape_model(model, batch_dim=batch_dim, bind=bind, problems=problems)
    model, tensors = shaped.model, shaped.tensors
    set_metadata(model, {} if shaped.fixed_batch is None else {"fixed_batch": str(shaped.fixed_batch)})
    found = find_loss(model, tensors, output=loss_output, problems=problems)
    problems.stop()
    parameters = select(model, tensors, train=train, freeze=freeze, problems=problems)
    if shaped.fixed_batch is not None:
        found = None
        if (loss or loss_output) and not loss_optional:
            problems.add(_untrainable(shaped))
    elif found is None and loss is not None and (parameters or not loss_optional):
        found = append_loss(model, loss, tensors, Problems(path) if loss_optional and loss in LOSSES else problems)
    problems.stop()
    if found is not None:
        taken = {*tensors, *(node.name for node in model.graph.node)}
        training_mode(model, parameters, tensors, taken, dropouts=dropouts)
    _drop_counts(model)
    write_bodies(model.graph, shaped)
    restore(model, placed)
    check_devices(model, tensors, problems)
    problems.stop()
    graph = extract_graph(
        model, tensors, parameters=parameters, loss=found and found.tensor, targets=found.targets if found else ()
    )
    if not given.issuperset((*graph.parameters, *graph.state)):
        # The converter rebuilt a weight under another name: export the converted graph.
        original = pack_original(_converted(path, allowed, without_weights, content, shaped.inlined, problems))
    _write_down(model, graph, shaped, original=original, name=name, sha256=sha256)
    return Onnxpp(proto=model, graph=graph, folder=path.parent, source_sha256=sha256, allow_external=allowed)


def _drop_counts(model: ModelProto) -> None:
    """Counts of an earlier import, of which another tool left nothing else."""
    stale = (f"{PREFIX}family", f"{PREFIX}flops", TRIPS)
    for node in model.graph.node:
        others = [p for p in node.metadata_props if p.key not in stale]
        if len(others) < len(node.metadata_props):
            del node.metadata_props[:]
            node.metadata_props.extend(others)


def _untrainable(shaped: Shaped) -> str:
    return (
        f"it cannot be trained: it was exported for a fixed batch, and this import tried to make it symbolic: {shaped.why}; "
        "export with a dynamic batch axis, or name it with --batch-dim INPUT:AXIS"
    )


def _converted(
    path: Path,
    allowed: tuple[Path, ...],
    without_weights: bool,
    content: bytes | None,
    inlined: Iterable[Mapping[str, str]],
    problems: Problems,
) -> ModelProto:
    model, _ = read_model(path, allow_external=allowed, without_weights=without_weights, content=content)
    if "format" in metadata(model):
        model = as_imported(model, path, ())
    model = normalise(model, path)
    for branches in inlined:
        inline_branches(model, branches)
    return convert_opset(model, problems)


def _write_down(model: ModelProto, graph: Graph, shaped: Shaped, *, original: str, name: str, sha256: str) -> None:
    tensors = shaped.tensors
    model.ir_version = max(model.ir_version, IR_VERSION)
    proto = model.graph
    weights = {t.name for t in proto.initializer}
    ends = {v.name for v in (*proto.input, *proto.output)}
    for value in (*proto.input, *proto.output):
        anew = value_info(tensors[value.name])
        keep_remarks(anew, value)
        value.CopyFrom(anew)
    before = {value.name: value for value in proto.value_info}
    inner = [n for node in proto.node for n in node.output if n and n not in ends and n not in weights]
    stated = [value_info(tensors[n]) for n in inner]
    for value in stated:
        if value.name in before:
            keep_remarks(value, before[value.name])
    del proto.value_info[:]
    proto.value_info.extend(stated)
    for node in proto.node:
        operator = graph.operator.get(node.name)
        if operator is not None:
            flops = work(operator, graph, batch=1, phase="forward").flops
            node.metadata_props.add(key=f"{PREFIX}family", value=operator.family)
            node.metadata_props.add(key=f"{PREFIX}flops", value=str(flops))
    entries = {"format": FORMAT, "source.name": name, "source.sha256": sha256, "original": original}
    if graph.fixed_batch is not None:
        entries["fixed_batch"] = str(graph.fixed_batch)
    if graph.loss is not None:
        entries["loss"] = graph.loss
    entries["targets"] = json.dumps(graph.targets)
    entries["parameters"] = json.dumps(graph.parameters)
    set_metadata(model, entries)
