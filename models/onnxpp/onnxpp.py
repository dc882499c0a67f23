"""ONNX++: a standard ONNX file that also says how it is trained and, once planned, where its operators run.

Everything of ours stands in ``metadata_props`` under ``hpdlf.``:

=========================  ==========================================================================================
hpdlf.format               version of this format: "1"
hpdlf.source.name          file name of the imported model
hpdlf.source.sha256        SHA-256 of that file
hpdlf.original             the imported graph without its large weights, for the export: base64 of zlib of a ModelProto
hpdlf.loss                 the tensor to minimise; absent if the model has no loss
hpdlf.targets              JSON list: inputs that only the loss reads
hpdlf.parameters           JSON list: tensors that are trained
hpdlf.fixed_batch          the samples of one run, where the batch could not be made symbolic; else absent
on a node: hpdlf.family    its family
hpdlf.flops                FLOPs of its forward pass for one sample, for readers; never read back
hpdlf.segment.ID           the segment it belongs to in configuration ID
hpdlf.lowering.ID          JSON {direction: hint}: how it is computed in configuration ID (see :mod:`.hints`)
hpdlf.trips                how often the body of a Loop or Scan runs at most, for one batch
on a value: hpdlf.at_most  JSON {axis: dimension} of sizes that depend on data, at most that; with "!" exactly that
=========================  ==========================================================================================

Where an operator runs stands in the standard's places: ``ModelProto.configuration`` names a configuration and its
number of devices, ``NodeProto.device_configurations`` gives a node its ``pipeline_stage``. Shapes are in
``value_info``, with dimensions like ``16*batch`` as ``dim_param``: loading infers nothing.

Weights stay as they were, inline or external. Saving into another folder copies external files along, to the same
relative places; it never overwrites a different file there.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto

from ...errors import ModelError
from .external import open_regular
from .extract import extract_graph, read_tensors
from .graph import Graph
from .load import read_model
from .problems import Problems
from .write import copy_external, write_atomic, write_model

__all__ = ["FORMAT", "Onnxpp", "load_onnxpp", "metadata", "save_onnxpp", "write_atomic"]

FORMAT = "1"
PREFIX = "hpdlf."


@dataclass(frozen=True, kw_only=True, eq=False)
class Onnxpp:
    """An imported model: its ONNX++ proto (external weights not loaded) and the graph it says.

    folder         where external data lies, relative to which the proto names it
    allow_external further folders that external data may lie in
    source_sha256  SHA-256 of the file that was imported
    """

    proto: ModelProto
    graph: Graph
    folder: Path
    source_sha256: str
    allow_external: tuple[Path, ...] = ()


def metadata(model: ModelProto) -> dict[str, str]:
    """The model's own metadata, without the prefix ``hpdlf.``"""
    return {p.key.removeprefix(PREFIX): p.value for p in model.metadata_props if p.key.startswith(PREFIX)}


def save_onnxpp(model: Onnxpp, path: str | Path) -> None:
    """Write `model` to `path`, atomically; external data is copied along when the folder is another (see the module).

    No weight is loaded that is not in memory. A model whose weights stand in the file and that no file can hold (2 GiB)
    gets them written to `path`.data beside it. Raises ModelError where the place cannot be written, or holds another
    file under the name of an external one.
    """
    path = Path(path)
    copy_external(model.proto, model.folder, model.allow_external, path.parent)
    write_model(model.proto, path)


def is_onnxpp(path: str | Path) -> bool:
    """Whether a file says that it is ONNX++; False for anything else, a file that cannot be read included."""
    try:
        with open_regular(path) as file:
            if not os.fstat(file.fileno()).st_size:
                return False
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                # The key stands in the file as it is: no need to parse what may be large, or no ONNX at all.
                return content.find(f"{PREFIX}format".encode()) >= 0
    except (OSError, ValueError):  # ValueError: a null byte in the name
        return False


def load_onnxpp(path: str | Path, *, allow_external: Iterable[str | Path] = (), without_weights: bool = True) -> Onnxpp:
    """Read an ONNX++ file and validate every annotation; no inference.

    External data may be absent (`without_weights`): it is missed where values are asked for. Raises ModelError.
    """
    path = Path(path)
    proto, _ = read_model(path, allow_external=allow_external, without_weights=without_weights)
    return read_onnxpp(proto, path, allow_external=allow_external)


def read_onnxpp(proto: ModelProto, path: Path, *, allow_external: Iterable[str | Path] = ()) -> Onnxpp:
    """The model that the ONNX++ `proto`, read from `path` and checked, says; ModelError with all that is wrong with it."""
    from .annotation import check_annotations

    said = metadata(proto)
    if "format" not in said:
        raise ModelError(f"{path} is a plain ONNX file, no ONNX++; import it: hpdlf import {path} -o FILE")
    if said["format"] != FORMAT:
        raise ModelError(
            f"{path} has format {said['format']!r}, this version reads {FORMAT!r}; import the original again"
        )
    problems = Problems(path, "cannot be read as ONNX++")
    tensors = read_tensors(proto, problems)
    check_annotations(proto, tensors, problems)
    problems.stop()
    graph = extract_graph(
        proto,
        tensors,
        parameters=json.loads(said["parameters"]),
        loss=said.get("loss"),
        targets=json.loads(said["targets"]),
    )
    return Onnxpp(
        proto=proto,
        graph=graph,
        folder=path.parent,
        source_sha256=said["source.sha256"],
        allow_external=tuple(Path(f) for f in allow_external),
    )


def set_metadata(proto: ModelProto, entries: Mapping[str, str]) -> None:
    """Replace the model's own metadata by `entries` (keys without the prefix); others' metadata stays."""
    others = [p for p in proto.metadata_props if not p.key.startswith(PREFIX)]
    del proto.metadata_props[:]
    proto.metadata_props.extend(others)
    for key, value in entries.items():
        proto.metadata_props.add(key=PREFIX + key, value=value)
