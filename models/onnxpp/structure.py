"""What a model is made of: operator sets that onnx knows, and operators that are in them, however deep they stand."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache

import onnx
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto

from .problems import Problems, did_you_mean
from .survey import Survey, bodies_of, function_key, node_label

__all__ = ["check_attributes", "check_inputs", "check_operators", "check_opsets"]

DOMAIN_OF = {"ai.onnx": "", "": ""}
# Domains whose operators are rewritten into standard ones.
CONTRIB = "com.microsoft"


@cache
def _newest() -> Mapping[str, int]:
    """The newest operator set of every domain that onnx knows."""
    newest: dict[str, int] = {"": onnx.defs.onnx_opset_version()}
    for schema in onnx.defs.get_all_schemas_with_history():
        newest[schema.domain] = max(newest.get(schema.domain, 0), schema.since_version)
    return newest


@cache
def _rewritten() -> frozenset[str]:
    """Operators of other tools that the import knows how to rewrite."""
    if importlib.util.find_spec(f"{__package__}.contrib") is None:
        return frozenset()
    return frozenset(importlib.import_module(f"{__package__}.contrib").SUPPORTED)


def _versions(holder: ModelProto | FunctionProto) -> dict[str, int]:
    return {DOMAIN_OF.get(o.domain, o.domain): o.version for o in holder.opset_import}


def check_opsets(model: ModelProto, problems: Problems) -> None:
    """Operator sets between 1 and the newest that onnx knows, one per domain, the standard one among them."""
    if model.ir_version > onnx.IR_VERSION:
        problems.add(
            f"version {model.ir_version} of the file format is newer than {onnx.IR_VERSION}, the newest that the installed "
            "onnx knows; update onnx, or export with an older version"
        )
    holders: list[tuple[str, ModelProto | FunctionProto]] = [("", model)]
    holders += [(f" of function {f.name!r}", f) for f in model.functions]
    for where, holder in holders:
        seen: dict[str, int] = {}
        for opset in holder.opset_import:
            domain = DOMAIN_OF.get(opset.domain, opset.domain)
            newest = _newest().get(domain)
            called = f"operator set {opset.version}" + (f" of domain {domain!r}" if domain else "") + where
            if newest is not None and not 1 <= opset.version <= newest:
                problems.add(f"{called} is not among 1 to {newest}, which the installed onnx knows")
            elif seen.setdefault(domain, opset.version) != opset.version:
                problems.add(f"{called} is imported beside {seen[domain]}; export the model again")


def check_operators(model: ModelProto, surveyed: Survey, problems: Problems) -> None:
    """Every operator is one that onnx knows at its operator set, one that can be rewritten, or a function of the file."""
    functions = {function_key(f) for f in model.functions}
    counts: Counter[tuple[str, str, int]] = Counter()
    first: dict[tuple[str, str, int], str] = {}
    own = _versions(model)
    parts: list[tuple[Sequence[NodeProto], FunctionProto | None]] = []
    parts += [(inner.graph.node, inner.function) for inner in surveyed.graphs]
    parts += [(function.node, function) for function in model.functions]
    for nodes, function in parts:
        versions = own if function is None else {**own, **_versions(function)}
        for node in nodes:
            if functions and (node.domain, node.op_type, node.overload) in functions:
                continue
            domain = DOMAIN_OF.get(node.domain, node.domain)
            key = (domain, node.op_type, versions.get(domain, 0))
            if key not in counts:
                first[key] = repr(node.name) if node.name else "without a name"
            counts[key] += 1
    for (domain, op_type, version), count in counts.items():
        where = f"node {first[domain, op_type, version]}" + (f" and {count - 1} more" if count > 1 else "")
        if domain == CONTRIB and op_type in _rewritten():
            continue
        if domain not in _newest():
            names = sorted({name for d, name, _ in counts if d == domain})
            shown = ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
            problems.add(
                f"domain {domain!r} is unknown to onnx (operators {shown}): export with standard operators only"
            )
        elif not version:
            called = f"domain {domain!r}" if domain else "the standard domain"
            problems.add(f"no operator set of {called} is imported, which operators of it need; export the model again")
        elif not 1 <= version <= _newest()[domain]:
            continue  # said once, of the operator set
        elif not onnx.defs.has(op_type, max_inclusive_version=version, domain=domain):
            known = {s.name for s in onnx.defs.get_all_schemas() if s.domain == domain}
            place = f"operator set {version}" + (f" of domain {domain!r}" if domain else "")
            problems.add(f"{where}: operator {op_type!r} is unknown in {place}{did_you_mean(op_type, known)}")


def check_inputs(graph: GraphProto, problems: Problems) -> None:
    """Every input is a tensor: what is imported is fed with arrays."""
    for value in graph.input:
        if not value.type.HasField("tensor_type"):
            kind = (value.type.WhichOneof("value") or "of no type").removesuffix("_type").replace("_", " ")
            problems.add(
                f"input {value.name!r} is no tensor ({kind}), and only tensors can be fed when a model is planned or "
                "trained; export with tensors as inputs, or run the model as it is: hpdlf.exec.backend"
            )


def check_attributes(model: ModelProto, surveyed: Survey, problems: Problems) -> None:
    """Operators that are nothing without an attribute have it: If two branches, a loop its body, a Constant its value."""
    needed: Mapping[str, tuple[str, ...]] = {
        "If": ("then_branch", "else_branch"),
        **dict.fromkeys(("Loop", "Scan", "SequenceMap"), ("body",)),
    }
    for part in (*(inner.graph for inner in surveyed.graphs), *model.functions):
        for node in part.node:
            if DOMAIN_OF.get(node.domain, node.domain):
                continue
            if node.op_type == "Constant" and (len(node.attribute) != 1 or len(node.output) != 1):
                problems.add(
                    f"{node_label(node)}: it has {len(node.attribute)} values, not one; export the model again"
                )
            if node.op_type not in needed:
                continue
            have = Counter(name for name, _ in bodies_of(node))
            for name in needed[node.op_type]:
                if have[name] != 1:
                    problems.add(f"{node_label(node)}: it has no graph {name!r}; export the model again")
