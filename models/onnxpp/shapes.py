"""Shapes as affine functions of the batch: infer at three batch sizes, solve with two, verify with the third.

onnx's shape inference knows symbols, but loses them in most shape arithmetic. At a concrete batch size it loses
little, and what is left (Range, Where, Expand over shapes ...) is integer arithmetic on few numbers, which onnx's
reference evaluator does here. The three sizes are primes that no layer is likely to have, so a coincidence cannot
pass for a law.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from .batch import BATCH
from .graph import Dim, Tensor
from .problems import Problems
from .weights import dtype_name

__all__ = ["Inferred", "infer", "infer_at", "parse_dim", "read_tensor", "value_info"]

SIZES = (11, 23, 37)
FOLDABLE_ELEMENTS = 4096
ROUNDS = 30
Inferred = dict[str, tuple[int, tuple[int, ...]]]
RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial")


def parse_dim(text: str) -> Dim:
    """The dimension that :class:`Dim` writes as `text`; ValueError if it is not one.

    >>> parse_dim("16*batch"), parse_dim("1+batch"), parse_dim("12")
    (Dim(fixed=0, per_sample=16), Dim(fixed=1, per_sample=1), Dim(fixed=12, per_sample=0))
    """
    fixed, per_sample = 0, 0
    head, star, tail = text.rpartition("+")
    if tail.endswith(BATCH):
        factor = tail.removesuffix(BATCH).removesuffix("*")
        per_sample = int(factor) if factor else 1
        fixed = int(head) if star else 0
        if not per_sample:
            raise ValueError(f"{text!r} is no dimension")
    else:
        fixed = int(text)
    dim = Dim(fixed, per_sample)
    if str(dim) != text:
        raise ValueError(f"{text!r} is no dimension")
    return dim


def value_info(tensor: Tensor) -> ValueInfoProto:
    """A tensor's type and shape as ONNX writes them; a dimension that depends on the batch is a ``dim_param``."""
    element_type = TensorProto.STRING if tensor.dtype == "string" else _element_type(tensor.dtype)
    dims = [str(d) if d.per_sample else d.fixed for d in tensor.shape]
    return helper.make_tensor_value_info(tensor.name, element_type, dims)


def _element_type(dtype: str) -> int:
    import ml_dtypes  # noqa: F401  (registers bfloat16 and the eight-bit types with NumPy)

    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def read_tensor(value: ValueInfoProto) -> Tensor:
    """The inverse of :func:`value_info`; ValueError if a dimension has no size or is no function of the batch."""
    shape = []
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        raise ValueError("has no shape")
    for dim in kind.shape.dim:
        which = dim.WhichOneof("value")
        if which is None:
            raise ValueError("has a dimension without a size")
        shape.append(Dim(dim.dim_value) if which == "dim_value" else parse_dim(dim.dim_param))
    return Tensor(name=value.name, dtype=dtype_name(kind.elem_type), shape=tuple(shape))


def infer(light: ModelProto, problems: Problems) -> dict[str, Tensor]:
    """Every tensor of a light model with its dimensions bound, by name; problems say what could not be inferred."""
    runs: list[Inferred] = []
    for size in SIZES:
        before = len(problems.found)
        runs.append(infer_at(light, size, problems))
        if len(problems.found) > before:
            return {}
    first, second, third = runs
    tensors: dict[str, Tensor] = {}
    crooked: dict[str, str] = {}
    producer = {name: node for node in light.graph.node for name in node.output}
    for name, (element_type, at_first) in first.items():
        at_second, at_third = second[name][1], third[name][1]
        if not len(at_first) == len(at_second) == len(at_third):
            crooked[name] = "its rank changes with the batch"
            continue
        shape: list[Dim] = []
        for one, two, three in zip(at_first, at_second, at_third, strict=True):
            slope, rest = divmod(two - one, SIZES[1] - SIZES[0])
            dim = Dim(one - slope * SIZES[0], slope)
            if rest or slope < 0 or dim.at(SIZES[2]) != three:
                crooked[name] = (
                    f"a dimension is {one}, {two}, {three} for batches of {SIZES[0]}, {SIZES[1]}, {SIZES[2]}"
                )
            shape.append(dim)
        try:
            tensors[name] = Tensor(name=name, dtype=dtype_name(element_type), shape=tuple(shape))
        except ValueError as error:
            problems.add(f"tensor {name!r}: {error}; export the model again")
    for name, why in list(crooked.items())[:3]:
        node = producer.get(name)
        where = f"node {node.name!r} ({node.op_type}): " if node else ""
        problems.add(
            f"{where}tensor {name!r} is not proportional to the batch: {why}; rebuild that part without the batch"
        )
    return tensors


def infer_at(light: ModelProto, batch: int, problems: Problems) -> Inferred:
    """Type and shape of every tensor for `batch` samples, by repeated inference and folding of shape arithmetic."""
    model = ModelProto()
    model.CopyFrom(light)
    graph = model.graph
    for value in graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == BATCH:
                dim.dim_value = batch
    # What a file says about inner and output shapes may be stale or of the fixed batch: inference starts afresh.
    del graph.value_info[:]
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    known: Inferred = {t.name: (t.data_type, tuple(t.dims)) for t in graph.initializer}
    values = {t.name: numpy_helper.to_array(t) for t in graph.initializer if prod(t.dims) <= FOLDABLE_ELEMENTS}
    # Propagated data take time by the length of every vector, long biases too, and most graphs need none.
    propagate = False
    for _ in range(ROUNDS):
        try:
            inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=propagate)
        except Exception as error:  # InferenceError and plain RuntimeError
            problems.add(f"shapes do not fit (batch of {batch}): {_one_line(error)}")
            return {}
        for value in [*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output]:
            shape = _concrete(value)
            if shape is not None:
                known[value.name] = (value.type.tensor_type.elem_type, shape)
        missing = [n for n in graph.node if any(o and o not in known for o in n.output)]
        if not missing:
            break
        if not propagate:
            propagate = True
            continue
        if not _fold(model, known, values):
            node = missing[0]
            more = f" (and {len(missing) - 1} nodes after it)" if len(missing) > 1 else ""
            problems.add(
                f"the shape of {node.output[0]!r}, computed by node {node.name!r} ({node.op_type}){more}, cannot be "
                "inferred from the inputs' shapes: it depends on data, or onnx has no inference for this operator; "
                "export with static shapes and standard operators"
            )
            return {}
    return known


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) < 400 else text[:400] + " …"


def _concrete(value: ValueInfoProto) -> tuple[int, ...] | None:
    kind = value.type.tensor_type
    if not kind.HasField("shape") or any(dim.WhichOneof("value") != "dim_value" for dim in kind.shape.dim):
        return None
    return tuple(dim.dim_value for dim in kind.shape.dim)


def _fold(model: ModelProto, known: Inferred, values: dict[str, np.ndarray]) -> bool:
    """Evaluate shape arithmetic whose operands are known and turn its results into initializers; False if none was."""
    graph = model.graph
    kept: list[NodeProto] = []
    for node in graph.node:
        results = _evaluate(node, model, known, values)
        if results is None:
            kept.append(node)
            continue
        for name, value in zip(node.output, results, strict=False):
            if name:
                tensor = numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name)
                values[name], known[name] = value, (tensor.data_type, tuple(tensor.dims))
                graph.initializer.append(tensor)
    if len(kept) == len(graph.node):
        return False
    del graph.node[:]
    graph.node.extend(kept)
    return True


def _evaluate(
    node: NodeProto, model: ModelProto, known: Inferred, values: Mapping[str, np.ndarray]
) -> list[np.ndarray] | None:
    if node.domain or node.op_type in RANDOM:
        return None
    if node.op_type == "Shape" and node.input[0] in known:
        dims = np.asarray(known[node.input[0]][1], np.int64)
        bounds = {a.name: a.i for a in node.attribute}
        return [dims[slice(bounds.get("start"), bounds.get("end"))]]
    if node.op_type == "Size" and node.input[0] in known:
        return [np.asarray(prod(known[node.input[0]][1]), np.int64)]
    if not node.input or any(name and name not in values for name in node.input):
        return None
    if any(name in known and prod(known[name][1]) > FOLDABLE_ELEMENTS for name in node.output):
        return None
    if node.op_type in ("ConstantOfShape", "Expand", "Tile", "Range") and not _small_result(node, values):
        return None
    results = evaluate_nodes([node], {name: values[name] for name in node.input if name}, list(node.output), model)
    return results if all(r.size <= FOLDABLE_ELEMENTS for r in results) else None


def _small_result(node: NodeProto, values: Mapping[str, np.ndarray]) -> bool:
    operands = [values[name].astype(np.float64) for name in node.input]
    if node.op_type == "Range":
        start, limit, delta = (float(o.reshape(())) for o in operands)
        return bool(delta) and (limit - start) / delta <= FOLDABLE_ELEMENTS
    size = float(np.prod(np.maximum(operands[-1], 1)))
    return size * (operands[0].size if node.op_type == "Tile" else 1) <= FOLDABLE_ELEMENTS


def evaluate_nodes(
    nodes: list[NodeProto], feeds: dict[str, np.ndarray], outputs: list[str], model: ModelProto
) -> list[np.ndarray]:
    """Run nodes of `model` in onnx's reference evaluator on known operands; an absent output gives an empty array."""
    from onnx.reference import ReferenceEvaluator

    wanted = [name for name in outputs if name]
    graph = helper.make_graph(
        nodes,
        "constants",
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for n, v in feeds.items()],
        [helper.make_empty_tensor_value_info(name) for name in wanted],
    )
    part = helper.make_model(graph, opset_imports=list(model.opset_import), ir_version=model.ir_version)
    results = dict(zip(wanted, ReferenceEvaluator(part).run(None, feeds), strict=True))
    return [np.asarray(results[name]) if name else np.empty(0) for name in outputs]
