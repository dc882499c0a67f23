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
on a node: hpdlf.family    its family
hpdlf.flops                FLOPs of its forward pass for one sample, for readers; never read back
hpdlf.segment.ID           the segment it belongs to in configuration ID
=========================  ==========================================================================================

Where an operator runs stands in the standard's places: ``ModelProto.configuration`` names a configuration and its
number of devices, ``NodeProto.device_configurations`` gives a node its ``pipeline_stage``. Shapes are in
``value_info``, with dimensions like ``16*batch`` as ``dim_param``: loading infers nothing.

Weights stay as they were, inline or external. Saving into another folder copies external files along, to the same
relative places; it never overwrites a different file there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from filecmp import cmp
from pathlib import Path
from shutil import copyfile
from tempfile import NamedTemporaryFile

from onnx import ModelProto

from ...errors import ModelError
from .external import external_path
from .extract import extract_graph, read_tensors
from .graph import Graph
from .load import read_model
from .problems import Problems
from .weights import is_external

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


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: into a temporary file beside it, then renamed. Raises ModelError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            try:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                os.chmod(file.name, 0o666 & ~_umask())
                os.replace(file.name, path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise ModelError(
            f"{path} cannot be written: {error.strerror}; nothing was changed, choose another place"
        ) from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def save_onnxpp(model: Onnxpp, path: str | Path) -> None:
    """Write `model` to `path`, atomically; external data is copied along when the folder is another (see the module).

    Raises ModelError where the place cannot be written, or holds another file under the name of an external one.
    """
    path = Path(path)
    _copy_external(model, path.parent)
    try:
        content = model.proto.SerializeToString(deterministic=True)
    except Exception as error:  # protobuf's EncodeError, or ValueError beyond 2 GiB
        raise ModelError(f"{path} cannot be written: {error}; export the original with external data") from None
    write_atomic(path, content)


def _copy_external(model: Onnxpp, folder: Path) -> None:
    if folder.resolve() == model.folder.resolve():
        return
    places: dict[str, Path] = {}
    for tensor in model.proto.graph.initializer:
        if is_external(tensor):
            location = next(e.value for e in tensor.external_data if e.key == "location")
            try:
                places[location] = external_path(tensor, model.folder, model.allow_external)[0]
            except ModelError:
                continue  # imported without its weights: there is nothing to copy
    for location, source in places.items():
        target = folder / location
        if not target.resolve().is_relative_to(folder.resolve()):
            raise ModelError(
                f"external data {location!r} would lie outside {folder}; save into {model.folder}, or put the weights "
                "beside the model first"
            )
        if target.exists():
            if not cmp(source, target, shallow=False):
                raise ModelError(f"{target} exists and is not the model's external data; save into another folder")
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        try:
            copyfile(source, partial)
            os.replace(partial, target)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise ModelError(f"{target} cannot be written: {error.strerror}; choose another place") from None


def is_onnxpp(path: str | Path) -> bool:
    """Whether a file says that it is ONNX++; False for anything else, a file that cannot be read included."""
    try:
        content = Path(path).read_bytes()
    except OSError:
        return False
    # The key stands in the file as it is: no need to parse what may be large, or no ONNX at all.
    return f"{PREFIX}format".encode() in content


def load_onnxpp(path: str | Path, *, allow_external: Iterable[str | Path] = (), without_weights: bool = True) -> Onnxpp:
    """Read an ONNX++ file and validate every annotation; no inference.

    External data may be absent (`without_weights`): it is missed where values are asked for. Raises ModelError.
    """
    from .annotation import check_annotations

    path = Path(path)
    proto, _ = read_model(path, allow_external=allow_external, without_weights=without_weights)
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
