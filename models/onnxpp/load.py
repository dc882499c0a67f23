"""Read an ONNX file that may be anything: budgets first, then structure, then onnx's own checker; all problems together.

Nothing is executed, unpickled or unpacked here, and no path or link is followed out of the model's folder. Shape
inference, which trusts its input, comes after this module.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from hashlib import sha256
from math import prod
from pathlib import Path

import onnx
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto

from ...errors import ModelError
from .problems import Problems, did_you_mean
from .weights import MAX_RANK, external_path, is_external, light_copy, payload_bytes

__all__ = ["read_model"]

MAX_FILE_BYTES = 2**31 - 1
MAX_ELEMENTS = 2**36
MAX_NODES = 500_000
# Operators whose body is a graph of its own; a later module may unroll them.
CONTROL_FLOW = ("If", "Loop", "Scan", "SequenceMap")
DOMAIN_OF = {"ai.onnx": "", "": ""}
FIELD_OF_TYPE = {
    **dict.fromkeys((TensorProto.FLOAT, TensorProto.COMPLEX64), "float_data"),
    **dict.fromkeys((TensorProto.DOUBLE, TensorProto.COMPLEX128), "double_data"),
    **dict.fromkeys((TensorProto.UINT32, TensorProto.UINT64), "uint64_data"),
    TensorProto.INT64: "int64_data",
    TensorProto.STRING: "string_data",
}


def read_model(
    path: str | Path, *, allow_external: Iterable[str | Path] = (), without_weights: bool = False
) -> tuple[ModelProto, str]:
    """The model in `path` (external data left where it is) and the file's SHA-256, after every check that needs no inference.

    `without_weights` tolerates external data that is absent: enough to plan and simulate. Raises ModelError.
    """
    path = Path(path)
    content = _content(path)
    model = ModelProto()
    try:
        model.ParseFromString(content)
    except Exception:  # protobuf's DecodeError, of which protobuf ships no types
        raise ModelError(
            f"{path} is no ONNX file: it is no protobuf of onnx.ModelProto; export the model again"
        ) from None
    if not model.ir_version or not model.HasField("graph") or not (model.graph.node or model.graph.output):
        raise ModelError(f"{path} is no ONNX file: it holds no graph; export the model again")
    problems = Problems(path)
    _budgets(model, problems)
    problems.stop()
    _weights(model, path.parent, [Path(f) for f in allow_external], without_weights, problems)
    _opsets(model, problems)
    _operators(model, problems)
    _wiring(model, problems)
    problems.stop()
    try:
        onnx.checker.check_model(_checkable(model))
    except Exception as error:  # the checker raises several unrelated types
        problems.add(f"onnx's checker says: {str(error).strip()}")
    problems.stop()
    return model, sha256(content).hexdigest()


def _content(path: Path) -> bytes:
    if not path.exists():
        siblings = [p.name for p in path.parent.glob("*.onnx")] if path.parent.is_dir() else []
        raise ModelError(f"{path} does not exist{did_you_mean(path.name, siblings)}")
    if not path.is_file():
        raise ModelError(f"{path} is no file; name an ONNX file")
    size = path.stat().st_size
    if size == 0:
        raise ModelError(f"{path} is empty; export the model again")
    if size > MAX_FILE_BYTES:
        raise ModelError(f"{path} has {size} bytes, a protobuf holds 2 GiB at most; export with external data")
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None


def _attribute_tensors(nodes: Iterable[NodeProto]) -> Iterator[tuple[str, TensorProto]]:
    for node in nodes:
        for attribute in node.attribute:
            for tensor in ([attribute.t] if attribute.HasField("t") else []) + list(attribute.tensors):
                yield f"attribute {attribute.name!r} of node {node.name or node.op_type!r}", tensor


def _budgets(model: ModelProto, problems: Problems) -> None:
    """Sizes that are declared, before anything allocates them; calls of functions, before anything inlines them."""
    graph = model.graph
    named = [(f"initializer {t.name!r}", t) for t in graph.initializer]
    inner = [t for function in model.functions for t in _attribute_tensors(function.node)]
    for where, tensor in [*named, *_attribute_tensors(graph.node), *inner]:
        if not TensorProto.DataType.DESCRIPTOR.values_by_number.get(tensor.data_type) or not tensor.data_type:
            problems.add(f"{where}: element type {tensor.data_type} is unknown; export the model again")
        elif min(tensor.dims, default=0) < 0 or len(tensor.dims) > MAX_RANK:
            problems.add(f"{where}: shape {list(tensor.dims)} is impossible; export the model again")
        elif prod(tensor.dims) > MAX_ELEMENTS:
            problems.add(
                f"{where}: shape {list(tensor.dims)} declares {prod(tensor.dims)} elements, at most {MAX_ELEMENTS}"
            )
        elif not is_external(tensor) and (mismatch := _inline_mismatch(tensor)):
            problems.add(f"{where}: {mismatch}; the file is damaged, export the model again")
    for value in graph.input:
        dims = [d.dim_value for d in value.type.tensor_type.shape.dim if d.dim_value > 0]
        if prod(dims) > MAX_ELEMENTS:
            problems.add(f"input {value.name!r}: shape {dims} declares {prod(dims)} elements, at most {MAX_ELEMENTS}")
    _calls(model, problems)


def _inline_mismatch(tensor: TensorProto) -> str | None:
    count = prod(tensor.dims)
    if tensor.HasField("raw_data"):
        have, need, unit = len(tensor.raw_data), payload_bytes(tensor), "bytes"
    else:
        have = len(getattr(tensor, FIELD_OF_TYPE.get(tensor.data_type, "int32_data")))
        need = count * (2 if tensor.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128) else 1)
        unit = "values"
        if payload_bytes(tensor) < count:  # packed types
            need = have
    return None if have == need else f"shape {list(tensor.dims)} needs {need} {unit}, the file has {have}"


def _calls(model: ModelProto, problems: Problems) -> None:
    """The number of nodes once all functions are inlined; functions that call themselves."""
    functions = {(f.domain, f.name): f for f in model.functions}
    expanded: dict[tuple[str, str], int] = {}

    def size(nodes: Iterable[NodeProto], path: tuple[tuple[str, str], ...]) -> int:
        total = 0
        for node in nodes:
            key = (node.domain, node.op_type)
            if key not in functions:
                total += 1
                continue
            if key in path or len(path) > 50:
                problems.add(
                    f"function {node.op_type!r} calls itself or nests more than 50 deep; export without functions"
                )
                return total
            if key not in expanded:
                expanded[key] = size(functions[key].node, (*path, key))
            total += expanded[key]
        return total

    count = size(model.graph.node, ())
    if count > MAX_NODES:
        problems.add(f"the graph has {count} nodes once its functions are written out, at most {MAX_NODES}")


def _weights(model: ModelProto, folder: Path, allowed: list[Path], without: bool, problems: Problems) -> None:
    absent: list[str] = []
    for tensor in model.graph.initializer:
        if not is_external(tensor):
            continue
        try:
            external_path(tensor, folder, allowed)
        except ModelError as error:
            if "is missing;" not in str(error):
                problems.add(str(error))
            elif not without:
                absent.append(str(error))
    if absent:
        more = f" (and {len(absent) - 1} more tensors)" if len(absent) > 1 else ""
        problems.add(absent[0] + more)
    for where, tensor in _attribute_tensors(model.graph.node):
        if is_external(tensor):
            problems.add(f"{where}: only initializers may have external data; export the model again")
    if model.graph.sparse_initializer:
        problems.add("sparse initializers are not supported; export with dense weights")


def _opsets(model: ModelProto, problems: Problems) -> None:
    known = {schema.domain for schema in onnx.defs.get_all_schemas()} | {f.domain for f in model.functions}
    used = {DOMAIN_OF.get(node.domain, node.domain) for node in model.graph.node}
    if "" not in {DOMAIN_OF.get(o.domain, o.domain) for o in model.opset_import}:
        problems.add("no operator set of the standard domain is imported; export the model again")
    for opset in model.opset_import:
        domain = DOMAIN_OF.get(opset.domain, opset.domain)
        if domain == "" and not 1 <= opset.version <= onnx.defs.onnx_opset_version():
            newest = onnx.defs.onnx_opset_version()
            problems.add(f"operator set {opset.version} is not among 1 to {newest}, which the installed onnx knows")
        elif domain not in known and domain in used:
            names = sorted({n.op_type for n in model.graph.node if n.domain == opset.domain})
            problems.add(
                f"domain {opset.domain!r} is unknown to onnx (operators {', '.join(names[:5])}): "
                "export with standard operators only"
            )


def _operators(model: ModelProto, problems: Problems) -> None:
    versions = {DOMAIN_OF.get(o.domain, o.domain): o.version for o in model.opset_import}
    functions = {(f.domain, f.name) for f in model.functions}
    known = {schema.domain for schema in onnx.defs.get_all_schemas()}
    counts: Counter[tuple[str, str]] = Counter()
    first: dict[tuple[str, str], str] = {}
    for index, node in enumerate(model.graph.node):
        if (node.domain, node.op_type) in functions:
            continue
        key = (DOMAIN_OF.get(node.domain, node.domain), node.op_type)
        counts[key] += 1
        first.setdefault(key, node.name or f"number {index}")
    for (domain, op_type), count in counts.items():
        where = f"node {first[domain, op_type]!r}" + (f" and {count - 1} more" if count > 1 else "")
        if domain in known or domain not in versions:
            version = versions.get(domain, 1)
            if not onnx.defs.has(op_type, max_inclusive_version=max(version, 1), domain=domain):
                names = {s.name for s in onnx.defs.get_all_schemas() if s.domain == domain}
                place = f"operator set {version}" + (f" of domain {domain!r}" if domain else "")
                problems.add(f"{where}: operator {op_type!r} is unknown in {place}{did_you_mean(op_type, names)}")
                continue
        if op_type in CONTROL_FLOW or _has_graph(model, domain, op_type):
            problems.add(
                f"{where}: control flow ({op_type}) is not supported; export with loops unrolled, branches resolved"
            )


def _has_graph(model: ModelProto, domain: str, op_type: str) -> bool:
    kinds = (AttributeProto.GRAPH, AttributeProto.GRAPHS)
    return any(
        a.type in kinds
        for node in model.graph.node
        if node.op_type == op_type and DOMAIN_OF.get(node.domain, node.domain) == domain
        for a in node.attribute
    )


def _wiring(model: ModelProto, problems: Problems) -> None:
    """Each tensor made once, each operand made by somebody, and no cycle. Nodes merely out of order are sorted in place."""
    graph = model.graph
    given = {v.name for v in graph.input} | {t.name for t in graph.initializer}
    for name, count in Counter(t.name for t in graph.initializer).items():
        if count > 1:
            problems.add(f"initializer {name!r} occurs {count} times; export the model again")
    for value in graph.input:
        if not value.type.HasField("tensor_type"):
            kind = value.type.WhichOneof("value") or "of no type"
            problems.add(f"input {value.name!r} is no tensor ({kind}); only tensors can be fed")
    producer: dict[str, int] = {}
    for index, node in enumerate(graph.node):
        for name in filter(None, node.output):
            if name in producer or name in given:
                problems.add(f"tensor {name!r} is computed by node {node.name or index!r} and defined elsewhere too")
            producer[name] = index
    known = [*given, *producer]
    for index, node in enumerate(graph.node):
        for slot, name in enumerate(node.input):
            if name and name not in producer and name not in given:
                problems.add(
                    f"node {node.name or index!r} ({node.op_type}): operand {slot}, {name!r}, is no input, no initializer and "
                    f"computed by no node: its weights are missing{did_you_mean(name, known)}"
                )
    for value in graph.output:
        if value.name not in producer and value.name not in given:
            problems.add(f"output {value.name!r} is computed by no node{did_you_mean(value.name, known)}")
    order = _order(graph.node, producer, problems)
    if order is not None and order != list(range(len(order))):
        nodes = [NodeProto.FromString(graph.node[i].SerializeToString()) for i in order]
        del graph.node[:]
        graph.node.extend(nodes)


def _order(nodes: Iterable[NodeProto], producer: dict[str, int], problems: Problems) -> list[int] | None:
    """Kahn's order, by index where there is a choice; None (and a problem that shows one cycle) if there is none."""
    from heapq import heapify, heappop, heappush

    nodes = list(nodes)
    needs = [{producer[name] for name in node.input if name in producer} for node in nodes]
    readers: dict[int, list[int]] = {}
    for index, sources in enumerate(needs):
        for source in sources:
            readers.setdefault(source, []).append(index)
    waiting = [len(sources) for sources in needs]
    ready = [i for i, count in enumerate(waiting) if not count]
    heapify(ready)
    order: list[int] = []
    while ready:
        index = heappop(ready)
        order.append(index)
        for reader in readers.get(index, ()):
            waiting[reader] -= 1
            if not waiting[reader]:
                heappush(ready, reader)
    if len(order) == len(nodes):
        return order
    left = set(range(len(nodes))) - set(order)
    walk, at = [], min(left)
    while at not in walk:
        walk.append(at)
        at = min(needs[at] & left)
    cycle = [*walk[walk.index(at) :], at][::-1]
    shown = " → ".join(repr(nodes[i].name or f"{nodes[i].op_type} number {i}") for i in cycle[:8])
    problems.add(f"the graph has a cycle: {shown}{' → …' if len(cycle) > 8 else ''}; export the model again")
    return None


def _checkable(model: ModelProto) -> ModelProto:
    light = light_copy(model)
    if light.ir_version < 4:
        # Until version 3 initializers had to be inputs too, which a light copy of a newer exporter's file may break.
        light.ir_version = 4
    return light
