"""Inference of a network that was imported to be trained: the loss cut off, weights folded once instead of in every call.

A BatchNormalization that uses its running statistics is a factor and a summand per channel, and so belongs into the weights of
the convolution before it (Jacob et al. 2018, section 3.2):

    y = (conv(x, W) + b - mean) s + bias = conv(x, W s) + (bias + (b - mean) s),   s = scale / sqrt(variance + epsilon)

with one s per output channel. The products are computed in float64, so results differ from the network's own by rounding in
the run's precision alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..models.onnxpp.graph import Graph, Operator, Tensor

__all__ = ["Fold", "Inference", "inference"]


@dataclass(frozen=True, kw_only=True)
class Fold:
    """One convolution and the normalisation that went into it; names of tensors, '' where the convolution has no bias.

    weight, bias          what the folded operator reads
    axis                  of the weight, along which output channels lie
    """

    weight: str
    bias: str
    axis: int
    old_weight: str
    old_bias: str
    scale: str
    shift: str
    mean: str
    variance: str
    epsilon: float

    @property
    def reads(self) -> tuple[str, ...]:
        """The tensors that the folded ones are computed of."""
        names = (self.old_weight, self.old_bias, self.scale, self.shift, self.mean, self.variance)
        return tuple(name for name in names if name)

    def values(self, held: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The folded weight and bias, in the type that the weight has."""
        weight = np.asarray(held[self.old_weight])
        scale, shift, mean, variance = (
            np.asarray(held[name], np.float64) for name in (self.scale, self.shift, self.mean, self.variance)
        )
        factor = scale / np.sqrt(variance + self.epsilon)
        before = np.asarray(held[self.old_bias], np.float64) if self.old_bias else 0.0
        along = [1] * weight.ndim
        along[self.axis] = -1
        folded = weight * factor.reshape(along)
        return {
            self.weight: folded.astype(weight.dtype),
            self.bias: (shift + (before - mean) * factor).astype(weight.dtype),
        }


@dataclass(frozen=True, kw_only=True)
class Inference:
    """A graph that gives the model's outputs and nothing else, and what went into its weights.

    In `graph` running statistics are no state but parameters, since nothing replaces them.
    """

    graph: Graph
    folds: tuple[Fold, ...]

    @property
    def reads(self) -> tuple[str, ...]:
        """The tensors of the original model that :meth:`values` wants."""
        made = {name for fold in self.folds for name in (fold.weight, fold.bias)}
        folded = (name for fold in self.folds for name in fold.reads)
        return tuple(dict.fromkeys((*(p for p in self.graph.parameters if p not in made), *folded)))

    def values(self, held: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters of `graph`, of the original model's values; what is not folded is handed on as it is."""
        made: dict[str, Any] = {}
        for fold in self.folds:
            made |= fold.values(held)
        return {name: made[name] if name in made else held[name] for name in self.graph.parameters}


def inference(graph: Graph, outputs: Sequence[str] | None = None) -> Inference:
    """`graph` for predictions (or other `outputs`, its loss say): without what only the rest needs, normalisations folded
    where that is exact.

    A normalisation is folded if it keeps its running statistics, which are values of the model, if nothing else reads the
    convolution before it, and if the convolution's weight is a value of the model too.
    """
    outputs = tuple(graph.outputs if outputs is None else outputs)
    needed = _needed(graph, outputs)
    readers = Counter(name for operator in needed for name in operator.inputs)
    readers.update(outputs)
    folds: dict[str, Fold] = {}  # by the convolution's name
    gone: dict[str, str] = {}  # normalisations that went into one
    for operator in needed:
        convolution = graph.producer.get(operator.inputs[0]) if operator.inputs else None
        if convolution is not None and _folds(graph, convolution, operator, readers):
            folds[convolution.name] = _fold(graph, convolution, operator)
            gone[operator.name] = convolution.name
    result_of = {gone[o.name]: o.outputs[0] for o in needed if o.name in gone}
    operators = tuple(
        replace(o, inputs=(o.inputs[0], folds[o.name].weight, folds[o.name].bias), outputs=(result_of[o.name],))
        if o.name in folds
        else _as_evaluated(o)
        for o in needed
        if o.name not in gone
    )
    read = {name for operator in operators for name in operator.inputs}
    made = {name: t for fold in folds.values() for name, t in _tensors(graph, fold).items()}
    parameters = [p for p in (*graph.parameters, *graph.state) if p in read]
    return Inference(
        graph=replace(
            graph,
            operators=operators,
            tensors={**graph.tensors, **made},
            inputs=tuple(name for name in (*graph.inputs, *graph.targets) if name in read or name in outputs),
            outputs=outputs,
            targets=(),
            loss=None,
            parameters=(*parameters, *made),
            state={},
            constants=tuple(c for c in graph.constants if c in read and c not in parameters),
        ),
        folds=tuple(folds.values()),
    )


def _needed(graph: Graph, outputs: Sequence[str]) -> list[Operator]:
    """The operators that `outputs` depend on, in order."""
    wanted, found = set(outputs), []
    for operator in reversed(graph.operators):
        if wanted.intersection(operator.outputs):
            found.append(operator)
            wanted.update(operator.inputs)
    return found[::-1]


def _folds(graph: Graph, convolution: Operator, norm: Operator, readers: Counter[str]) -> bool:
    if norm.op_type != "BatchNormalization" or norm.domain or not norm.attributes.get("spatial", 1):
        return False
    if convolution.op_type not in ("Conv", "ConvTranspose") or convolution.domain:
        return False
    if convolution.op_type == "ConvTranspose" and convolution.attributes.get("group", 1) != 1:
        return False  # its output channels lie along two axes
    if any(readers[name] for name in norm.outputs[1:]):
        return False  # the statistics are wanted for themselves
    # Gradients are not asked for here, so a constant weight is as good as a trained one.
    values = (*convolution.inputs[1:], *norm.inputs[1:])
    return readers[norm.inputs[0]] == 1 and all(name in graph.fixed for name in values if name)


def _fold(graph: Graph, convolution: Operator, norm: Operator) -> Fold:
    scale, shift, mean, variance = norm.inputs[1:5]
    return Fold(
        weight=_fresh(graph, f"{norm.outputs[0]}.folded_weight"),
        bias=_fresh(graph, f"{norm.outputs[0]}.folded_bias"),
        axis=0 if convolution.op_type == "Conv" else 1,
        old_weight=convolution.inputs[1],
        old_bias=convolution.inputs[2] if len(convolution.inputs) > 2 else "",
        scale=scale,
        shift=shift,
        mean=mean,
        variance=variance,
        epsilon=float(norm.attributes.get("epsilon", 1e-5)),
    )


def _fresh(graph: Graph, name: str) -> str:
    while name in graph.tensors:
        name += "_"
    return name


def _tensors(graph: Graph, fold: Fold) -> dict[str, Tensor]:
    weight, shift = graph.tensors[fold.old_weight], graph.tensors[fold.shift]
    return {fold.weight: replace(weight, name=fold.weight), fold.bias: replace(shift, name=fold.bias)}


def _as_evaluated(operator: Operator) -> Operator:
    """A normalisation that stays gives its result alone: nothing takes up new statistics."""
    if operator.op_type != "BatchNormalization" or len(operator.outputs) == 1:
        return operator
    attributes = {**operator.attributes, "training_mode": 0}
    return replace(operator, inputs=operator.inputs[:5], outputs=operator.outputs[:1], attributes=attributes)
