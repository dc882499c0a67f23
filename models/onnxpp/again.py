"""Importing what is ONNX++ already: it stays as it is, or, where something else is wanted of it, is imported anew.

A second import changes nothing: loss, parameters and every annotation are those of the file. With a loss where there
was none, other parameters, another batch or other sizes, the graph that the file was made of is taken out again
(``hpdlf.original``, with the weights that the file has) and imported as it was the first time. What other tools
annotated meanwhile goes along. A place that a plan gave every operator of the old graph cannot: such a file is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from onnx import ModelProto

from ...errors import ModelError
from .export import unpack_original
from .kept import copy_without, put_aside, restore
from .onnxpp import PREFIX, Onnxpp, metadata
from .weights import is_heavy

__all__ = ["as_imported", "is_wanted_anew"]


def is_wanted_anew(
    found: Onnxpp,
    *,
    loss: str | None,
    loss_output: str | None,
    train: str | None,
    freeze: str | None,
    batch_dim: str | None,
    bind: Mapping[str, int] | None,
    loss_optional: bool,
) -> bool:
    """Whether an import with these options would give something else than `found`."""
    graph = found.graph
    if train is not None or freeze is not None or batch_dim is not None or bind:
        return True
    if loss_output is not None and loss_output != graph.loss:
        return True
    return loss is not None and graph.loss is None and not (loss_optional and graph.fixed_batch is not None)


def as_imported(proto: ModelProto, path: Path, options: Iterable[str], *, loss: str | None = None) -> ModelProto:
    """The graph that an ONNX++ file was made of, with its weights and with what other tools have annotated since.

    `options` are those that need it, for messages; `loss` is the file's loss where they name none. Raises ModelError
    where the file has no sound original, says where every operator of the old graph runs, or would lose its loss.
    """
    ours = sorted(
        {
            prop.key.removeprefix(f"{PREFIX}segment.")
            for node in proto.graph.node
            for prop in node.metadata_props
            if prop.key.startswith(f"{PREFIX}segment.")
        }
    )
    asked = ", ".join(options)
    if ours:
        raise ModelError(
            f"{path} cannot be imported anew with {asked}: it says where each of its operators runs (configuration "
            f"{ours[0]!r}), which another graph would make wrong; import the original model with {asked}"
        )
    try:
        original = unpack_original(metadata(proto).get("original", ""))
    except ValueError as error:
        raise ModelError(
            f"{path} cannot be imported anew with {asked}: {error}; import the original model with {asked}"
        ) from None
    if loss is not None and all(loss != value.name for value in original.graph.output):
        raise ModelError(
            f"{path} cannot be imported anew with {asked} alone: its loss {loss!r} was appended when it was imported; name it "
            "again with --loss"
        )
    held = {t.name: t for t in proto.graph.initializer}
    weights = []
    for tensor in original.graph.initializer:
        if not is_heavy(tensor):
            weights.append(tensor)
        elif (now := held.get(tensor.name)) is not None and (now.dims, now.data_type) == (
            tensor.dims,
            tensor.data_type,
        ):
            weights.append(now)
        else:
            raise ModelError(
                f"{path} cannot be imported anew with {asked}: the weights of {tensor.name!r} are not as they were when it "
                f"was imported; import the original model with {asked}"
            )
    copies = [type(t).FromString(t.SerializeToString()) for t in weights]
    del original.graph.initializer[:]
    original.graph.initializer.extend(copies)
    since = put_aside(_without_ours(proto))
    restore(original, since)
    return original


def _without_ours(proto: ModelProto) -> ModelProto:
    """A copy, without weights, of what is not ours in the file."""
    copy: ModelProto = copy_without(proto, ("graph", "functions"))
    copy.graph.CopyFrom(copy_without(proto.graph, ("initializer", "sparse_initializer", "value_info")))
    for holder in (copy, *copy.graph.node, *copy.graph.input, *copy.graph.output):
        others = [p for p in holder.metadata_props if not p.key.startswith(PREFIX)]
        if len(others) < len(holder.metadata_props):
            del holder.metadata_props[:]
            holder.metadata_props.extend(others)
    return copy
