"""The loss: found in the graph, or appended to it from standard operators.

``softmax_xent`` is SoftmaxCrossEntropyLoss (mean over the labels) of the first output against int64 class numbers
named ``labels``. Where that output is a Softmax the loss reads the Softmax's operand instead, as cross-entropy of a
softmax of a softmax is not what anybody trains; the Softmax stays, as the model's prediction. ``mse`` is the mean of
the squared difference (Sub, Mul, ReduceMean) to a tensor named ``targets`` of the output's shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from .graph import Dim, Tensor
from .normalise import unique_name
from .problems import Problems, did_you_mean

__all__ = ["LOSSES", "Loss", "append_loss", "find_loss"]

LOSSES = ("softmax_xent", "mse")
VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity")


class Loss(NamedTuple):
    """The scalar to minimise, the inputs that only it reads, and whether this module appended it."""

    tensor: str
    targets: tuple[str, ...]
    appended: bool


def find_loss(model: ModelProto, tensors: Mapping[str, Tensor]) -> Loss | None:
    """The graph's own loss: its first output that is one floating-point number whatever the batch; None without one.

    Its targets are the inputs that reach the loss but no other output. Where the loss is the only output they are
    those that reach the label operand of its loss operator, but not the scores.
    """
    graph = model.graph
    scalars = [o.name for o in graph.output if tensors[o.name].is_float and not tensors[o.name].shape]
    if not scalars:
        return None
    loss = scalars[0]
    producer = {name: node for node in graph.node for name in node.output if name}
    inputs = {v.name for v in graph.input}
    others = [o.name for o in graph.output if o.name != loss]
    seen = _sources([loss], producer)
    if others:
        targets = (seen & inputs) - _sources(others, producer)
    else:
        losses = [n for n in graph.node if n.op_type in ("SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss")]
        labels = _sources([n.input[1] for n in losses], producer)
        targets = (labels & inputs) - _sources([n.input[0] for n in losses], producer)
    return Loss(loss, tuple(v.name for v in graph.input if v.name in targets), False)


def _sources(names: list[str], producer: Mapping[str, NodeProto]) -> set[str]:
    seen: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name and name not in seen:
            seen.add(name)
            waiting.extend(producer[name].input if name in producer else ())
    return seen


def append_loss(model: ModelProto, kind: str, tensors: dict[str, Tensor], problems: Problems) -> Loss | None:
    """Append the loss `kind` to the graph and its tensors to `tensors`; None (and a problem) where that cannot be."""
    if kind not in LOSSES:
        problems.add(f"--loss {kind}: expected one of {', '.join(LOSSES)}{did_you_mean(kind, LOSSES)}")
        return None
    graph = model.graph
    output = next((o.name for o in graph.output if tensors[o.name].is_float), None)
    if output is None or not any(d.per_sample for d in tensors[output].shape):
        problems.add(f"--loss {kind}: the graph has no floating-point output per sample to compute a loss of")
        return None
    taken = set(tensors) | {name for node in graph.node for name in (*node.output, node.name)}
    append = _Appended(graph=graph, tensors=tensors, taken=taken)
    return append.cross_entropy(_logits(model, output, tensors)) if kind == "softmax_xent" else append.squared(output)


def _logits(model: ModelProto, output: str, tensors: Mapping[str, Tensor]) -> str:
    """What a final Softmax over the classes reads, seen through reshapes; `output` itself without such a Softmax."""
    producer = {name: node for node in model.graph.node for name in node.output if name}
    name = output
    while name in producer and producer[name].op_type in VIEWS:
        name = producer[name].input[0]
    node = producer.get(name)
    if node is None or node.op_type not in ("Softmax", "LogSoftmax"):
        return output
    rank = len(tensors[name].shape)
    axis = next((a.i for a in node.attribute if a.name == "axis"), -1) % rank
    return node.input[0] if axis == _class_axis(tensors[name]) else output


def _class_axis(logits: Tensor) -> int:
    """Classes stand last in [batch, classes] and [batch, tokens, classes], at 1 in [batch, classes, height, width]."""
    rank = len(logits.shape)
    return rank - 1 if rank <= 3 else 1


def _rows(samples: Dim, tokens: Dim) -> Dim:
    """Their product, of which at most one depends on the batch."""
    return Dim(samples.fixed * tokens.fixed, samples.per_sample * tokens.fixed + samples.fixed * tokens.per_sample)


class _Appended:
    """Nodes that a loss adds, each with its result's type and shape; names avoid those that are taken."""

    def __init__(self, *, graph: GraphProto, tensors: dict[str, Tensor], taken: set[str]) -> None:
        self.graph, self.tensors, self.taken = graph, tensors, taken

    def tensor(self, wanted: str, dtype: str, shape: tuple[Dim, ...]) -> Tensor:
        tensor = Tensor(name=unique_name(wanted, self.taken), dtype=dtype, shape=shape)
        self.tensors[tensor.name] = tensor
        return tensor

    def node(self, op_type: str, inputs: list[str], result: Tensor, **attributes: object) -> Tensor:
        name = unique_name(f"loss.{op_type}", self.taken)
        self.graph.node.append(helper.make_node(op_type, inputs, [result.name], name=name, **attributes))
        return result

    def constant(self, values: list[int]) -> str:
        """An int64 initializer."""
        name = self.tensor("loss.shape", "int64", (Dim(len(values)),)).name
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(values, np.int64), name))
        return name

    def finish(self, loss: Tensor, target: Tensor) -> Loss:
        from .shapes import value_info

        self.graph.input.append(value_info(target))
        self.graph.output.append(value_info(loss))
        return Loss(loss.name, (target.name,), True)

    def cross_entropy(self, name: str) -> Loss:
        logits = self.tensors[name]
        shape = logits.shape
        if len(shape) > 2 and all(d == Dim(1) for d in shape[2:]):
            flat = self.tensor(f"{name}_flat", logits.dtype, shape[:2])
            logits = self.node("Flatten", [name], flat, axis=1)
        tokens = shape[1:2] if len(shape) == 3 and logits.name == name else ()
        labels = self.tensor("labels", "int64", (shape[0], *(tokens or logits.shape[2:])))
        classes = labels
        if tokens:
            # One row for every token is a view; the operator's own order, classes at axis 1, would move all scores.
            rows = _rows(shape[0], shape[1])
            logits = self.node(
                "Reshape",
                [name, self.constant([-1, shape[2].fixed])],
                self.tensor(f"{name}_rows", logits.dtype, (rows, shape[2])),
            )
            flat_labels = self.tensor("labels_rows", "int64", (rows,))
            classes = self.node("Reshape", [labels.name, self.constant([-1])], flat_labels)
        loss = self.tensor("loss", logits.dtype, ())
        self.node("SoftmaxCrossEntropyLoss", [logits.name, classes.name], loss, reduction="mean")
        return self.finish(loss, labels)

    def squared(self, name: str) -> Loss:
        output = self.tensors[name]
        targets = self.tensor("targets", output.dtype, output.shape)
        error = self.node("Sub", [name, targets.name], self.tensor("loss.error", output.dtype, output.shape))
        square = self.node("Mul", [error.name, error.name], self.tensor("loss.square", output.dtype, output.shape))
        loss = self.node("ReduceMean", [square.name], self.tensor("loss", output.dtype, ()), keepdims=0)
        return self.finish(loss, targets)
