"""The loss: found in the graph, or appended to it from standard operators.

| kind | loss | fed as |
|---|---|---|
| ``softmax_xent`` | SoftmaxCrossEntropyLoss of the scores: the mean over the labels that are not -100 | ``labels``: int64 classes |
| ``sigmoid_xent`` | the mean of softplus(x) - x * t over all scores x: binary cross entropy | ``targets``: 0 to 1, like the output |
| ``mse`` | the mean of the squared difference (Sub, Mul, ReduceMean) | ``targets``: like the output |

The scores are the first floating-point output that has a batch dim. Where that is a Softmax or LogSoftmax over the
classes (for ``sigmoid_xent`` a Sigmoid) the loss reads its operand instead, through the same reshapes: the cross entropy
of a softmax of a softmax is not what anybody trains, and the logarithm of a rounded probability is not stable. The
operator stays, as the model's prediction.

A label of -100 does not count (as in PyTorch). The mean is then over the labels that count in one microbatch on one
replica: with unequally many of them the microbatches' means weigh alike, as in data-parallel PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from .graph import Dim, Tensor
from .normalise import unique_name
from .problems import Problems, did_you_mean

__all__ = ["IGNORED_LABEL", "LOSSES", "Loss", "append_loss", "find_loss"]

LOSSES = ("softmax_xent", "sigmoid_xent", "mse")
IGNORED_LABEL = -100
VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Transpose", "Cast")
LOSS_OPERATORS = ("SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss")


class Loss(NamedTuple):
    """The scalar to minimise, the inputs that only it reads, and whether this module appended it."""

    tensor: str
    targets: tuple[str, ...]
    appended: bool


def find_loss(
    model: ModelProto, tensors: dict[str, Tensor], *, output: str | None = None, problems: Problems
) -> Loss | None:
    """The graph's own loss: the output called `output`, else the first that is one floating-point number whatever the
    batch; None without one.

    A named output may have dims of 1, which a Squeeze then takes away. Its targets are the inputs that reach the loss
    but none of the outputs that are no single number. Where there are none of these they are those that reach the label
    operand of its loss operator, but not the scores.
    """
    graph = model.graph
    floats = [o.name for o in graph.output if tensors[o.name].is_float]
    scalars = [name for name in floats if not tensors[name].shape]
    if output is not None and not _is_loss(output, model, tensors, problems):
        return None
    if output is None and not scalars:
        return None
    loss = output or scalars[0]
    producer = {name: node for node in graph.node for name in node.output if name}
    inputs = {v.name for v in graph.input}
    others = [o.name for o in graph.output if o.name != loss and tensors[o.name].shape]
    seen = _sources([loss], producer)
    if others:
        targets = (seen & inputs) - _sources(others, producer)
    else:
        losses = [n for n in graph.node if n.op_type in LOSS_OPERATORS and not seen.isdisjoint(n.output)]
        labels = _sources([n.input[1] for n in losses], producer)
        targets = (labels & inputs) - _sources([n.input[0] for n in losses], producer)
    named = tuple(v.name for v in graph.input if v.name in targets)
    if not tensors[loss].shape:
        return Loss(loss, named, False)
    append = _Appended(model, tensors)
    scalar = append.node("Squeeze", [loss], append.tensor(f"{loss}_scalar", tensors[loss].dtype, ()))
    append.declare_output(scalar)
    return Loss(scalar.name, named, False)


def _is_loss(name: str, model: ModelProto, tensors: Mapping[str, Tensor], problems: Problems) -> bool:
    """Whether the output `name` can be minimised; a problem says why not."""
    outputs = [o.name for o in model.graph.output]
    if name not in outputs:
        what = "is computed inside the graph, but no output of it" if name in tensors else "does not exist"
        near = did_you_mean(name, outputs) or f"; the outputs are {', '.join(outputs[:8])}"
        problems.add(f"--loss-output {name}: the tensor {what}{near}")
        return False
    tensor = tensors[name]
    if not tensor.is_float:
        problems.add(f"--loss-output {name}: its values are {tensor.dtype}, which has no gradient")
        return False
    if any(d != Dim(1) for d in tensor.shape):
        shape = ", ".join(map(str, tensor.shape))
        problems.add(
            f"--loss-output {name}: it has shape [{shape}], but a loss is one number: name an output that is one, or "
            f"have a loss of this one appended: --loss {LOSSES[0]}"
        )
        return False
    return True


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
    floats = [tensors[o.name] for o in model.graph.output if tensors[o.name].is_float]
    fitting = [t for t in floats if any(d.per_sample for d in t.shape)]
    output = next((t for t in fitting if not t.at_most), None)
    if fitting and output is None:
        problems.add(
            f"--loss {kind}: the size of output {fitting[0].name!r} depends on data, so nobody can know its labels: make "
            "what it is selected from an output, and train that"
        )
        return None
    if output is None:
        problems.add(f"--loss {kind}: the graph has no floating-point output per sample to compute a loss of")
        return None
    if kind == "softmax_xent" and len(output.shape) < 2:
        problems.add(
            f"--loss {kind}: output {output.name!r} has one number per sample, no score per class: "
            "choose --loss mse or --loss sigmoid_xent"
        )
        return None
    append = _Appended(model, tensors)
    if kind == "mse":
        return append.squared(output.name)
    if kind == "sigmoid_xent":
        return append.binary(append.before(output.name, {"Sigmoid": lambda node, axis: True}))
    classes = {"Softmax": append.is_over, "LogSoftmax": append.is_over}
    return append.cross_entropy(append.before(output.name, classes))


def _class_axis(rank: int) -> int:
    """Classes stand last in [batch, classes] and [batch, tokens, classes], at 1 in [batch, classes, height, width]."""
    return rank - 1 if rank <= 3 else 1


def _rows(samples: Dim, tokens: Dim) -> Dim:
    """Their product, of which at most one depends on the batch."""
    return Dim(samples.fixed * tokens.fixed, samples.per_sample * tokens.fixed + samples.fixed * tokens.per_sample)


class _Appended:
    """Nodes that a loss adds, each with its result's type and shape; names avoid those that are taken."""

    def __init__(self, model: ModelProto, tensors: dict[str, Tensor]) -> None:
        self.graph: GraphProto = model.graph
        self.tensors = tensors
        self.opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
        self.taken = set(tensors) | {n for node in model.graph.node for n in (*node.output, node.name)}
        self.producer: dict[str, NodeProto] = {n: node for node in model.graph.node for n in node.output if n}

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

    def declare_output(self, tensor: Tensor) -> None:
        from .shapes import value_info

        self.graph.output.append(value_info(tensor))

    def finish(self, loss: Tensor, target: Tensor) -> Loss:
        from .shapes import value_info

        self.graph.input.append(value_info(target))
        self.declare_output(loss)
        return Loss(loss.name, (target.name,), True)

    # What the model's last operator reads

    def before(self, output: str, bypassed: Mapping[str, Callable[[NodeProto, int], bool]]) -> str:
        """What `output` would be without its last operator, where that is one of `bypassed` and its test agrees (asked
        with the axis, of its operand, of the classes); `output` itself where it is not."""
        views: list[NodeProto] = []
        name, axis = output, _class_axis(len(self.tensors[output].shape))
        while name in self.producer and self.producer[name].op_type in VIEWS:
            node = self.producer[name]
            back = self._axis_before(node, axis) if self.tensors[node.input[0]].is_float else None
            if back is None:
                return output
            views.append(node)
            name, axis = node.input[0], back
        last = self.producer.get(name)
        if last is None or last.domain or last.op_type not in bypassed or not bypassed[last.op_type](last, axis):
            return output
        name = last.input[0]
        for view in reversed(views):
            shape = self.tensors[view.output[0]].shape
            dtype = self.tensors[view.output[0] if view.op_type == "Cast" else name].dtype
            result = self.tensor(f"{view.output[0]}_scores", dtype, shape)
            attributes = {a.name: helper.get_attribute_value(a) for a in view.attribute}
            name = self.node(view.op_type, [name, *view.input[1:]], result, **attributes).name
        return name

    def _axis_before(self, view: NodeProto, axis: int) -> int | None:
        """The axis of a view's operand that became its result's `axis`; None where several were joined or split."""
        before, after = self.tensors[view.input[0]].shape, self.tensors[view.output[0]].shape
        if view.op_type == "Transpose":
            order = next((list(a.ints) for a in view.attribute if a.name == "perm"), list(range(len(before)))[::-1])
            return order[axis]
        if before[: axis + 1] == after[: axis + 1]:
            return axis
        from_end = len(after) - axis
        if before[-from_end:] == after[-from_end:] and from_end <= len(before):
            return len(before) - from_end
        return None

    def is_over(self, node: NodeProto, axis: int) -> bool:
        """Whether a Softmax is over `axis` alone; before operator set 13 it is over all axes from its own on."""
        shape = self.tensors[node.input[0]].shape
        given = next((a.i for a in node.attribute if a.name == "axis"), -1 if self.opset >= 13 else 1) % len(shape)
        return given == axis and (self.opset >= 13 or all(d == Dim(1) for d in shape[axis + 1 :]))

    # The losses

    def cross_entropy(self, name: str) -> Loss:
        scores = self.tensors[name]
        shape = scores.shape
        if len(shape) > 2 and all(d == Dim(1) for d in shape[2:]):
            flat = self.tensor(f"{name}_flat", scores.dtype, shape[:2])
            scores = self.node("Flatten", [name], flat, axis=1)
            shape = scores.shape
        if len(shape) == 3:
            return self._tokens(scores)
        labels = self.tensor("labels", "int64", (shape[0], *shape[2:]))
        return self._compared(scores, labels.name, labels)

    def _tokens(self, scores: Tensor) -> Loss:
        """One row for every token is a view; the operator's own order, classes at axis 1, would move all scores."""
        shape = scores.shape
        late = bool(shape[1].per_sample and not shape[0].per_sample)  # [tokens, batch, classes]
        labels = self.tensor("labels", "int64", (shape[1], shape[0]) if late else shape[:2])
        rows = _rows(shape[0], shape[1])
        flat = self.node(
            "Reshape",
            [scores.name, self.constant([-1, shape[2].fixed])],
            self.tensor(f"{scores.name}_rows", scores.dtype, (rows, shape[2])),
        )
        given = labels
        if late:
            given = self.node("Transpose", [labels.name], self.tensor("labels_first", "int64", shape[:2]), perm=[1, 0])
        classes = self.tensor("labels_rows", "int64", (rows,))
        self.node("Reshape", [given.name, self.constant([-1])], classes)
        return self._compared(flat, classes.name, labels)

    def _compared(self, scores: Tensor, classes: str, labels: Tensor) -> Loss:
        loss = self.tensor("loss", scores.dtype, ())
        kind = "SoftmaxCrossEntropyLoss"
        self.node(kind, [scores.name, classes], loss, reduction="mean", ignore_index=IGNORED_LABEL)
        return self.finish(loss, labels)

    def squared(self, name: str) -> Loss:
        output = self.tensors[name]
        targets = self._like("targets", output)
        error = self.node("Sub", [name, targets.name], self._like("loss.error", output))
        square = self.node("Mul", [error.name, error.name], self._like("loss.square", output))
        return self._mean(square, targets)

    def binary(self, name: str) -> Loss:
        scores = self.tensors[name]
        targets = self._like("targets", scores)
        plus = self.node("Softplus", [name], self._like("loss.softplus", scores))
        product = self.node("Mul", [name, targets.name], self._like("loss.product", scores))
        each = self.node("Sub", [plus.name, product.name], self._like("loss.each", scores))
        return self._mean(each, targets)

    def _like(self, name: str, other: Tensor) -> Tensor:
        return self.tensor(name, other.dtype, other.shape)

    def _mean(self, each: Tensor, targets: Tensor) -> Loss:
        loss = self.tensor("loss", each.dtype, ())
        return self.finish(self.node("ReduceMean", [each.name], loss, keepdims=0), targets)
