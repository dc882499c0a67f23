"""Operators that behave differently in training: which form a file gives them, and how they are put into training.

BatchNormalization normalises by its batch's own statistics and puts out updated running ones, or normalises by those.
It says which by `training_mode` from operator set 14 on, before by having more than one output. Dropout drops or is the
identity: by `training_mode` from set 12 on, before the run decides (until set 6 unless `is_test` is set).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from .graph import Tensor

__all__ = ["after_conversion", "before_conversion", "is_training_norm", "open_dropouts", "training_mode"]

NORM_SAYS_SO = 14
DROPOUT_SAYS_SO = 12
RESULTS = ("", "running_mean", "running_var", "saved_mean", "saved_var")


def _opset(model: ModelProto) -> int:
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)


def is_training_norm(node: NodeProto) -> bool:
    """Whether a node is a BatchNormalization in training mode: only that has more than one result."""
    if node.op_type != "BatchNormalization" or node.domain not in ("", "ai.onnx"):
        return False
    return any(a.name == "training_mode" and a.i == 1 for a in node.attribute) or sum(map(bool, node.output)) > 1


def open_dropouts(model: ModelProto) -> frozenset[str]:
    """Results of the Dropout nodes of which the file leaves to the run whether they drop."""
    if _opset(model) >= DROPOUT_SAYS_SO:
        return frozenset()
    return frozenset(node.output[0] for node in model.graph.node if node.op_type == "Dropout" and not _is_test(node))


def _is_test(node: NodeProto) -> bool:
    return any(a.name == "is_test" and a.i for a in node.attribute)


def before_conversion(model: ModelProto) -> None:
    """Take away, in place, what the converter of operator sets refuses in training forms: the batch's own statistics as
    fourth and fifth result, where nobody reads them, and `is_test` where it is 0."""
    if _opset(model) >= NORM_SAYS_SO:
        return
    read = {name for node in model.graph.node for name in node.input} | {v.name for v in model.graph.output}
    for node in model.graph.node:
        if node.op_type not in ("BatchNormalization", "Dropout"):
            continue
        for attribute in [a for a in node.attribute if a.name == "is_test" and not a.i]:
            node.attribute.remove(attribute)
        results = list(node.output)
        while node.op_type == "BatchNormalization" and len(results) > 3 and results[-1] not in read:
            results.pop()
        while results and not results[-1]:
            results.pop()
        del node.output[:]
        node.output.extend(results)


def after_conversion(model: ModelProto) -> None:
    """Say so, in place, of every BatchNormalization that trains, where the operator set has a word for it."""
    if _opset(model) < NORM_SAYS_SO:
        return
    for node in model.graph.node:
        if is_training_norm(node):
            _set_training(node)


def _set_training(node: NodeProto) -> None:
    for attribute in [a for a in node.attribute if a.name == "training_mode"]:
        node.attribute.remove(attribute)
    node.attribute.append(helper.make_attribute("training_mode", 1))


def training_mode(
    model: ModelProto,
    parameters: Iterable[str],
    tensors: dict[str, Tensor],
    taken: set[str],
    *,
    dropouts: Collection[str] = (),
) -> None:
    """Put every BatchNormalization whose scale or bias is trained into training mode, and the `dropouts` (by their
    results, see :func:`open_dropouts`).

    A BatchNormalization whose scale and bias are frozen stays as it was, that is, normalises by the running statistics
    for good. One that a file's exporter put into inference form ("lost" its `training_mode`) trains all the same.
    """
    from .normalise import unique_name

    trained, says_so = set(parameters), _opset(model) >= NORM_SAYS_SO
    for node in model.graph.node:
        if node.op_type != "BatchNormalization" or not (
            trained.intersection(node.input[1:3]) or is_training_norm(node)
        ):
            continue
        if says_so:
            _set_training(node)
        results = list(node.output)
        # Before, a node in training has all five results: the last two are the batch's own statistics.
        for place in range(1, 3 if says_so else 5):
            running = tensors[node.input[3 + (place - 1) % 2]]
            if place == len(results):
                results.append("")
            results[place] = results[place] or unique_name(f"{node.name}_{RESULTS[place]}", taken)
            tensors[results[place]] = Tensor(name=results[place], dtype=running.dtype, shape=running.shape)
        del node.output[:]
        node.output.extend(results)
    if _opset(model) >= DROPOUT_SAYS_SO:
        _switch_on(
            [n for n in model.graph.node if n.op_type == "Dropout" and n.output[0] in dropouts], model, tensors, taken
        )


def _switch_on(nodes: list[NodeProto], model: ModelProto, tensors: dict[str, Tensor], taken: set[str]) -> None:
    from .normalise import unique_name

    nodes = [node for node in nodes if len(node.input) < 3 or not node.input[2]]
    if not nodes:
        return
    name = unique_name("training_mode", taken)
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(True), name))
    tensors[name] = Tensor(name=name, dtype="bool", shape=())
    for node in nodes:
        operands = [*node.input, "", ""][:2]
        del node.input[:]
        node.input.extend([*operands, name])
