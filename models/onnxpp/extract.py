"""From an ONNX++ proto to the :class:`Graph` that the rest of the house works on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from onnx import ModelProto

from .bodies import operator_of
from .count import family
from .graph import Dim, Graph, Tensor
from .modes import is_training_norm
from .parameters import constant_tensors, frontier
from .problems import Problems
from .shapes import RANDOM, read_tensor
from .weights import dtype_name

__all__ = ["extract_graph", "families", "read_tensors", "state_of"]


def families(model: ModelProto, constant: set[str], parameters: Iterable[str] = ()) -> dict[str, str]:
    """The family of every node that depends on data, by the node's name.

    What is computed from shapes and constants alone is a view, unless it is random: integers for the shape operands
    of others, which cost nothing beside the data they describe. So is a weight that is turned round, as a tied output's
    matrix is: a product takes it either way.
    """
    shape_only: set[str] = constant.difference(parameters)
    weights = {t.name for t in model.graph.initializer}
    result: dict[str, str] = {}
    for node in model.graph.node:
        outputs = [name for name in node.output if name]
        if all(name in constant for name in outputs) and node.op_type not in RANDOM:
            continue
        arithmetic = node.op_type in ("Shape", "Size") or all(name in shape_only for name in node.input if name)
        arithmetic = arithmetic and node.op_type not in RANDOM
        if arithmetic:
            shape_only.update(outputs)
        kind = family(node.op_type, shape_arithmetic=arithmetic)
        if node.op_type == "Dropout" and (len(node.input) < 3 or not node.input[2]):
            kind = "view"  # in inference mode Dropout is the identity
        if node.op_type == "Transpose" and node.input[0] in weights:
            kind = "view"
        result[node.name] = kind
    return result


def state_of(model: ModelProto) -> dict[str, str]:
    """Running statistics of every BatchNormalization in training mode: {statistic: the tensor that replaces it}."""
    state: dict[str, str] = {}
    for node in model.graph.node:
        if is_training_norm(node):
            state.update({old: new for old, new in zip(node.input[3:5], node.output[1:3], strict=False) if new})
    return state


def read_tensors(model: ModelProto, problems: Problems) -> dict[str, Tensor]:
    """Every tensor whose type and shape the file states."""
    graph = model.graph
    tensors = {
        t.name: Tensor(name=t.name, dtype=dtype_name(t.data_type), shape=tuple(Dim(d) for d in t.dims))
        for t in graph.initializer
    }
    for value in [*graph.input, *graph.value_info, *graph.output]:
        try:
            tensors[value.name] = read_tensor(value)
        except ValueError as error:
            problems.add(f"tensor {value.name!r}: {error}; import the original again")
    return tensors


def _fixed_batch(model: ModelProto) -> int | None:
    said = next((p.value for p in model.metadata_props if p.key == "hpdlf.fixed_batch"), "")
    return int(said) if said.isdecimal() else None


def extract_graph(
    model: ModelProto,
    tensors: dict[str, Tensor],
    *,
    parameters: Iterable[str],
    loss: str | None,
    targets: Iterable[str],
) -> Graph:
    """The graph of an ONNX++ proto. Tensors that no operator on data reads or computes are left out."""
    parameters, targets = tuple(parameters), tuple(targets)
    constant = constant_tensors(model, parameters)
    kinds = families(model, constant, parameters)
    opsets = {"" if o.domain == "ai.onnx" else o.domain: o.version for o in model.opset_import}
    operators = tuple(
        replace(operator_of(node, opsets, node.name), family=kinds[node.name])
        for node in model.graph.node
        if node.name in kinds
    )
    state = state_of(model)
    trained = {*parameters, *state}
    border = frontier(model, constant)
    used = dict.fromkeys(name for o in operators for name in (*o.inputs, *o.outputs) if name)
    used.update(
        dict.fromkeys((*parameters, *(v.name for v in model.graph.input), *(v.name for v in model.graph.output)))
    )
    return Graph(
        name=model.graph.name,
        opset=opsets[""],
        domains={domain: version for domain, version in opsets.items() if domain},
        operators=operators,
        tensors={name: tensors[name] for name in used},
        inputs=tuple(v.name for v in model.graph.input if v.name not in targets),
        targets=targets,
        outputs=tuple(v.name for v in model.graph.output if v.name != loss),
        loss=loss,
        parameters=parameters,
        state=state,
        constants=tuple(name for name in border if name not in trained),
        fixed_batch=_fixed_batch(model),
    )
