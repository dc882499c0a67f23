"""From any ONNX file to ONNX++: the order of the steps, and what is written down of each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path

from onnx import ModelProto

from .batch import BATCH, bind_dims, release_targets
from .count import work
from .export import pack_original
from .extract import extract_graph
from .graph import Graph, Tensor
from .load import MAX_ELEMENTS, read_model
from .loss import append_loss, find_loss
from .normalise import IR_VERSION, convert_opset, normalise
from .onnxpp import FORMAT, PREFIX, Onnxpp, set_metadata
from .parameters import constant_tensors, select, training_mode
from .problems import Problems
from .shapes import infer, infer_at, value_info
from .weights import light_copy

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

    With a loss the model is meant for training: each BatchNormalization whose scale or bias is trained goes into
    training mode, and its running statistics become ``graph.state``; without one it stays in inference form, and so
    does Dropout in any case, which trains only where the file asks for it. Raises ModelError with all problems found.
    """
    path = Path(path)
    allowed = tuple(Path(folder) for folder in allow_external)
    model, sha256 = read_model(path, allow_external=allowed, without_weights=without_weights, content=content)
    problems = Problems(path)
    # The imported graph is put aside before anything of its meaning changes.
    model = normalise(model)
    original = pack_original(model)
    given = {name for node in model.graph.node for name in node.output} | {t.name for t in model.graph.initializer}
    model = convert_opset(model, problems)
    tensors = _shaped(model, batch_dim=batch_dim, bind=bind, problems=problems)
    found = find_loss(model, tensors, output=loss_output, problems=problems)
    problems.stop()
    if found is None and loss is not None:
        found = append_loss(model, loss, tensors, problems)
    parameters = select(model, tensors, train=train, freeze=freeze, problems=problems)
    problems.stop()
    if found is not None:
        taken = {*tensors, *(node.name for node in model.graph.node)}
        training_mode(model, parameters, tensors, taken)
    graph = extract_graph(
        model, tensors, parameters=parameters, loss=found and found.tensor, targets=found.targets if found else ()
    )
    if not given.issuperset((*graph.parameters, *graph.state)):
        # The converter rebuilt a weight under another name: export the converted graph.
        original = pack_original(_converted(path, allowed, without_weights, content, problems))
    _write_down(model, graph, tensors, original=original, name=path.name, sha256=sha256)
    return Onnxpp(proto=model, graph=graph, folder=path.parent, source_sha256=sha256, allow_external=allowed)


def _converted(
    path: Path, allowed: tuple[Path, ...], without_weights: bool, content: bytes | None, problems: Problems
) -> ModelProto:
    model, _ = read_model(path, allow_external=allowed, without_weights=without_weights, content=content)
    return convert_opset(normalise(model), problems)


def _shaped(
    model: ModelProto, *, batch_dim: str | None, bind: Mapping[str, int] | None, problems: Problems
) -> dict[str, Tensor]:
    """Every tensor's shape, after the batch became symbolic in `model`; stops at the first step with problems."""
    fixed = bind_dims(model, batch_dim=batch_dim, bind=bind, problems=problems)
    problems.stop()
    constant = constant_tensors(model)
    if fixed is not None:
        at_fixed = infer_at(light_copy(model), fixed, problems)
        problems.stop()
        shapes = {name: shape for name, (_, shape) in at_fixed.items()}
        dependent = {name for node in model.graph.node for name in node.output if name not in constant}
        release_targets(model, shapes, fixed, dependent | {v.name for v in model.graph.input})
    tensors = infer(light_copy(model), problems)
    if fixed is not None and problems.found:
        problems.found[-1] += (
            f" (the file was exported for a batch of {fixed}, and this import tried to make it symbolic: "
            "export with a dynamic batch axis, or name it with --batch-dim INPUT:AXIS)"
        )
    problems.stop()
    for tensor in tensors.values():
        if prod(tensor.dims(1)) > MAX_ELEMENTS:
            problems.add(f"tensor {tensor.name!r} has shape {tensor.dims(1)}, more than {MAX_ELEMENTS} elements")
        elif any(d.at(1) < 0 for d in tensor.shape):
            problems.add(
                f"tensor {tensor.name!r} has shape [{', '.join(map(str, tensor.shape))}], negative for one sample"
            )
    batched = any(d.per_sample for v in model.graph.output for d in tensors[v.name].shape)
    scalar = any(not tensors[v.name].shape for v in model.graph.output)
    if model.graph.input and not batched and not scalar:
        problems.add(
            f"no output grows with the {BATCH}: name its dimension with --batch-dim NAME or --batch-dim INPUT:AXIS"
        )
    problems.stop()
    return tensors


def _write_down(
    model: ModelProto, graph: Graph, tensors: Mapping[str, Tensor], *, original: str, name: str, sha256: str
) -> None:
    model.ir_version = max(model.ir_version, IR_VERSION)
    proto = model.graph
    weights = {t.name for t in proto.initializer}
    ends = {v.name for v in (*proto.input, *proto.output)}
    for value in (*proto.input, *proto.output):
        value.CopyFrom(value_info(tensors[value.name]))
    del proto.value_info[:]
    inner = [n for node in proto.node for n in node.output if n and n not in ends and n not in weights]
    proto.value_info.extend(value_info(tensors[n]) for n in inner)
    for node in proto.node:
        operator = graph.operator.get(node.name)
        if operator is not None:
            flops = work(operator, graph, batch=1, phase="forward").flops
            node.metadata_props.add(key=f"{PREFIX}family", value=operator.family)
            node.metadata_props.add(key=f"{PREFIX}flops", value=str(flops))
    entries = {"format": FORMAT, "source.name": name, "source.sha256": sha256, "original": original}
    if graph.loss is not None:
        entries["loss"] = graph.loss
    entries["targets"] = json.dumps(graph.targets)
    entries["parameters"] = json.dumps(graph.parameters)
    set_metadata(model, entries)
