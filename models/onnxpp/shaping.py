"""Give every tensor of a normalised model its shape: bind dimensions, take branches, convert the operator set, infer.

The batch becomes symbolic. Where a file was exported for a fixed batch and what it froze cannot be released, the batch
stays the number that it is: such a model can be looked at, simulated and run, at that batch only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from onnx import AttributeProto, GraphProto, ModelProto

from .batch import BATCH, bind_dims
from .graph import Dim, Tensor
from .inlining import has_bodies, inline_branches
from .load import MAX_ELEMENTS
from .normalise import convert_opset
from .problems import Problems
from .release import apply_edits
from .shapes import TRIPS, Inferred, infer, value_info
from .weights import light_copy

__all__ = ["Shaped", "shape_model", "write_bodies"]

# Branches may hold branches; each round takes those that stand in the main graph then.
INLINING_ROUNDS = 20


@dataclass(frozen=True, kw_only=True, eq=False)
class Shaped:
    """A model with its dimensions bound, and what inference says of it.

    inlined      for every round, the branch of each If that was taken
    fixed_batch  the samples of one run, where the batch could not be made symbolic, and `why`
    """

    model: ModelProto
    tensors: dict[str, Tensor]
    bodies: dict[str, dict[str, Tensor]]
    trips: dict[str, Dim]
    inlined: list[dict[str, str]]
    fixed_batch: int | None
    why: str


def shape_model(
    model: ModelProto, *, batch_dim: str | None, bind: Mapping[str, int] | None, problems: Problems
) -> Shaped:
    """Types and shapes of everything, with the batch symbolic in `model`; stops at the first step with problems."""
    fixed = bind_dims(model, batch_dim=batch_dim, bind=bind, problems=problems)
    problems.stop()
    inlined: list[dict[str, str]] = []
    while has_bodies(model.graph) and len(inlined) < INLINING_ROUNDS:
        inferred, _, _ = _inferred(model, fixed, problems)
        if not inferred.branches:
            break
        inline_branches(model, inferred.branches)
        inlined.append(inferred.branches)
    if not has_bodies(model.graph):
        # onnx's converter leaves graphs inside operators as they are, so with one of them the whole model stays.
        model = convert_opset(model, problems)
    inferred, kept, why = _inferred(model, fixed, problems)
    if kept is not None:
        _freeze(model, fixed or 1)
    if inferred.edits:
        apply_edits(model, inferred.edits)
        inferred = infer(light_copy(model), problems)._replace(edits=inferred.edits)
        problems.stop()
    for tensor in inferred.tensors.values():
        _check(tensor, problems)
    problems.stop()
    _drop_unused(model, inferred)
    return Shaped(
        model=model,
        tensors=inferred.tensors,
        bodies=inferred.bodies,
        trips=inferred.trips,
        inlined=inlined,
        fixed_batch=kept,
        why=why,
    )


def _inferred(model: ModelProto, fixed: int | None, problems: Problems) -> tuple[Inferred, int | None, str]:
    """What inference says, the batch if it stays fixed, and why it does."""
    if fixed is None:
        found = infer(light_copy(model), problems)
        problems.stop()
        return found, None, ""
    attempt = Problems(problems.place)
    found = infer(light_copy(model), attempt, release=fixed)
    grows = (
        any(d.per_sample for v in model.graph.output for d in found.tensors[v.name].shape) if found.tensors else False
    )
    scalar = any(not found.tensors[v.name].shape for v in model.graph.output) if found.tensors else False
    if not attempt.found and (grows or scalar or not model.graph.input):
        return found, None, ""
    why = attempt.found[0] if attempt.found else f"no output grows with the {BATCH}"
    light = light_copy(model)
    _freeze(light, fixed)
    found = infer(light, problems, fixed=fixed)
    problems.stop()
    return found, _samples(model, fixed, found), why


def _samples(model: ModelProto, fixed: int, found: Inferred) -> int:
    """The samples of one run: the fixed batch where inputs and outputs agree on it, else the run is one sample."""
    leading = {
        found.tensors[v.name].shape[0].fixed
        for v in (*model.graph.input, *model.graph.output)
        if v.name in found.tensors and found.tensors[v.name].shape
    }
    return fixed if leading == {fixed} else 1


def _freeze(model: ModelProto, fixed: int) -> None:
    for value in model.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == BATCH:
                dim.dim_value = fixed


def _check(tensor: Tensor, problems: Problems) -> None:
    if prod(tensor.dims(1)) > MAX_ELEMENTS:
        problems.add(f"tensor {tensor.name!r} has shape {tensor.dims(1)}, more than {MAX_ELEMENTS} elements")
    elif any(d.at(1) < 0 for d in tensor.shape):
        problems.add(f"tensor {tensor.name!r} has shape [{', '.join(map(str, tensor.shape))}], negative for one sample")


def _drop_unused(model: ModelProto, inferred: Inferred) -> None:
    """Targets of reshapes that were replaced are read by nobody any more."""
    if not inferred.edits:
        return
    read = {name for node in model.graph.node for name in node.input} | {v.name for v in model.graph.output}
    replaced = {edit["old"] for edit in inferred.edits if "old" in edit}
    kept = [t for t in model.graph.initializer if t.name in read or t.name not in replaced]
    if len(kept) < len(model.graph.initializer):
        copies = [type(t).FromString(t.SerializeToString()) for t in kept]
        del model.graph.initializer[:]
        model.graph.initializer.extend(copies)


def write_bodies(graph: GraphProto, shaped: Shaped, path: str = "") -> None:
    """Write shapes of what graphs inside operators compute into these graphs, and how often loops run."""
    for index, node in enumerate(graph.node):
        if not node.attribute or not any(a.type == AttributeProto.GRAPH for a in node.attribute):
            continue
        where = f"{path}/{node.name or f'{node.op_type}_{index}'}" if path else node.name
        if where in shaped.trips:
            node.metadata_props.add(key=TRIPS, value=str(shaped.trips[where]))
        for attribute in node.attribute:
            if attribute.type != AttributeProto.GRAPH:
                continue
            found = shaped.bodies.get(f"{where}/{attribute.name}", {})
            body = attribute.g
            ends = {v.name for v in (*body.input, *body.output)}
            for value in (*body.input, *body.output):
                if value.name in found:
                    value.CopyFrom(value_info(found[value.name]))
            del body.value_info[:]
            made = [n for inner in body.node for n in inner.output if n in found and n not in ends]
            body.value_info.extend([value_info(found[name]) for name in made])
            write_bodies(body, shaped, f"{where}/{attribute.name}")
