"""Operators of onnxruntime's own domain, written out in standard ones.

Files that onnxruntime's optimiser or quantiser wrote fuse what the standard writes as several operators. Each has a rule
here that writes it out again: a function of a :class:`Rewriting`, registered by its name. What has none is refused by name.

The definitions are those of onnxruntime's contrib operators (docs/ContribOperators.md of that project).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

__all__ = ["DOMAIN", "SUPPORTED", "Rewriting", "rewrite_contrib", "rewrites"]

DOMAIN = "com.microsoft"
Rule = Callable[["Rewriting"], None]
RULES: dict[str, Rule] = {}
# onnxruntime takes these in the standard's domain too, whatever the operator set.
STANDARD_SINCE = {"LayerNormalization": 17, "SimplifiedLayerNormalization": 10**6, "Gelu": 20}


def rewrites(*names: str) -> Callable[[Rule], Rule]:
    """Register the rule of operators by name."""

    def register(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, rule))
        return rule

    return register


class Rewriting:
    """One node that is written out: its operands and attributes, and the nodes that take its place."""

    def __init__(self, node: NodeProto, model: ModelProto, taken: set[str], version: int) -> None:
        self.node, self.model, self.taken, self.version = node, model, taken, version
        self.inputs = [*node.input, *[""] * 12]
        self.outputs = [*node.output, *[""] * 8]
        self.attributes: dict[str, Any] = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        self.nodes: list[NodeProto] = []
        self.prefix = node.name or next(filter(None, node.output), node.op_type)

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute, text as text."""
        value = self.attributes.get(name, default)
        return value.decode(errors="replace") if isinstance(value, bytes) else value

    def name(self, wanted: str) -> str:
        """A name that nobody has."""
        from .normalise import unique_name

        return unique_name(f"{self.prefix}.{wanted}", self.taken)

    def op(self, op_type: str, *operands: str, result: str = "", count: int = 1, **attributes: Any) -> str:
        """Append a standard node; returns its first result."""
        results = [result or self.name(op_type)] + [self.name(op_type) for _ in range(count - 1)]
        self.nodes.append(
            helper.make_node(op_type, list(operands), results, name=self.name(f"{op_type}_"), **attributes)
        )
        return results[0]

    def several(self, op_type: str, count: int, *operands: str, **attributes: Any) -> list[str]:
        """Append a standard node of several results."""
        self.op(op_type, *operands, count=count, **attributes)
        return list(self.nodes[-1].output)

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        """An initializer."""
        name = self.name("constant")
        self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def number(self, value: float, like: str) -> str:
        """A number of the type of a tensor."""
        return self.like(self.constant(value, np.float32), like)

    def like(self, x: str, other: str) -> str:
        """`x` in the type of `other`, a floating-point tensor."""
        if self.version >= 15:
            return self.op("CastLike", x, other)
        # Older sets have no such operator: the type is that of the node's weights.
        floats = (TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.DOUBLE)
        held = {t.data_type for t in self.model.graph.initializer if t.name in self.node.input}
        return self.op("Cast", x, to=next((kind for kind in floats if kind in held), TensorProto.FLOAT))

    def tensor(self, name: str) -> TensorProto | None:
        """The initializer of that name."""
        return next((t for t in self.model.graph.initializer if t.name == name), None)

    def mean(self, x: str) -> str:
        """The mean over the last axis, which stays as 1."""
        return (
            self.op("ReduceMean", x, self.constant([-1])) if self.version >= 18 else self.op("ReduceMean", x, axes=[-1])
        )

    def split(self, x: str, parts: int, axis: int) -> list[str]:
        """Equal parts."""
        extra = {"num_outputs": parts} if self.version >= 18 else {}
        return self.several("Split", parts, x, axis=axis, **extra)

    def unsqueeze(self, x: str, *axes: int) -> str:
        """New axes of extent 1."""
        return (
            self.op("Unsqueeze", x, self.constant(list(axes)))
            if self.version >= 13
            else self.op("Unsqueeze", x, axes=axes)
        )


def rewrite_contrib(model: ModelProto) -> list[str]:
    """Write out every contrib operator of the main graph that has a rule, in place; the names of those that have none."""
    graph = model.graph
    version = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)

    def concerns(node: NodeProto) -> bool:
        old = node.op_type in STANDARD_SINCE and not node.domain and version < STANDARD_SINCE[node.op_type]
        return node.domain == DOMAIN or old

    if not any(concerns(node) for node in graph.node):
        return []
    functions = {(f.domain, f.name) for f in model.functions}
    taken = {name for node in graph.node for name in (*node.output, node.name)}
    taken |= {t.name for t in graph.initializer} | {v.name for v in graph.input}
    unknown: dict[str, None] = {}
    ordered: list[NodeProto] = []
    for node in graph.node:
        rule = RULES.get(node.op_type)
        if not concerns(node) or (node.domain, node.op_type) in functions:
            ordered.append(node)
        elif rule is None:
            unknown[node.op_type] = None
            ordered.append(node)
        else:
            rewriting = Rewriting(node, model, taken, version)
            rule(rewriting)
            ordered.extend(rewriting.nodes)
    copies = [NodeProto.FromString(node.SerializeToString()) for node in ordered]
    del graph.node[:]
    graph.node.extend(copies)
    return list(unknown)


# --- activations and norms -------------------------------------------------------------------------------------------


def _gelu(r: Rewriting, x: str, result: str, *, tanh: bool) -> str:
    """Half of x, times one plus the error function of x / √2, or the tanh that is near it (Hendrycks and Gimpel 2016)."""
    if tanh:
        cube = r.op("Mul", r.op("Mul", x, x), x)
        inner = r.op("Add", x, r.op("Mul", cube, r.number(0.044715, x)))
        curve = r.op("Tanh", r.op("Mul", inner, r.number(float(np.sqrt(2 / np.pi)), x)))
    else:
        curve = r.op("Erf", r.op("Mul", x, r.number(float(np.sqrt(0.5)), x)))
    return r.op("Mul", r.op("Mul", x, r.number(0.5, x)), r.op("Add", curve, r.number(1.0, x)), result=result)


@rewrites("Gelu")
def _exact_gelu(r: Rewriting) -> None:
    _gelu(r, r.inputs[0], r.outputs[0], tanh=r.attribute("approximate", "none") == "tanh")


@rewrites("BiasGelu")
def _bias_gelu(r: Rewriting) -> None:
    _gelu(r, r.op("Add", r.inputs[0], r.inputs[1]), r.outputs[0], tanh=False)


@rewrites("FastGelu")
def _fast_gelu(r: Rewriting) -> None:
    x = r.op("Add", r.inputs[0], r.inputs[1]) if r.inputs[1] else r.inputs[0]
    _gelu(r, x, r.outputs[0], tanh=True)


@rewrites("QuickGelu")
def _quick_gelu(r: Rewriting) -> None:
    x = r.inputs[0]
    gate = r.op("Sigmoid", r.op("Mul", x, r.number(float(r.attribute("alpha", 1.702)), x)))
    r.op("Mul", x, gate, result=r.outputs[0])


def _norm(r: Rewriting, x: str, scale: str, bias: str, result: str, *, centred: bool = True) -> None:
    """Over the last axis; without centring it is RMSNorm (Zhang and Sennrich 2019)."""
    shifted = r.op("Sub", x, r.mean(x)) if centred else x
    spread = r.op("Sqrt", r.op("Add", r.mean(r.op("Mul", shifted, shifted)), r.number(r.attribute("epsilon", 1e-5), x)))
    scaled = r.op("Div", shifted, spread)
    if bias:
        r.op("Add", r.op("Mul", scaled, scale), bias, result=result)
    else:
        r.op("Mul", scaled, scale, result=result)


def _layer_norm(r: Rewriting, x: str, scale: str, bias: str, result: str) -> None:
    if r.version >= 17:
        operands = [x, scale, bias] if bias else [x, scale]
        r.op("LayerNormalization", *operands, result=result, axis=-1, epsilon=float(r.attribute("epsilon", 1e-5)))
    else:
        _norm(r, x, scale, bias, result)


@rewrites("LayerNormalization")
def _old_layer_norm(r: Rewriting) -> None:
    _layer_norm(r, r.inputs[0], r.inputs[1], r.inputs[2], r.outputs[0])


@rewrites("SimplifiedLayerNormalization")
def _simplified(r: Rewriting) -> None:
    _norm(r, r.inputs[0], r.inputs[1], "", r.outputs[0], centred=False)


@rewrites("SkipLayerNormalization")
def _skip_norm(r: Rewriting) -> None:
    x, skip, scale, shift, bias = r.inputs[:5]
    _layer_norm(r, _skip(r, x, skip, bias), scale, shift, r.outputs[0])


@rewrites("SkipSimplifiedLayerNormalization")
def _skip_simplified(r: Rewriting) -> None:
    x, skip, scale, bias = r.inputs[:4]
    _norm(r, _skip(r, x, skip, bias), scale, "", r.outputs[0], centred=False)


def _skip(r: Rewriting, x: str, skip: str, bias: str) -> str:
    total = r.op("Add", x, skip, result="" if bias else r.outputs[3])
    return r.op("Add", total, bias, result=r.outputs[3]) if bias else total


@rewrites("EmbedLayerNormalization")
def _embed(r: Rewriting) -> None:
    ids, segments, words, places, kinds, scale, shift, mask, numbers = r.inputs[:9]
    total = r.op("Gather", words, ids, axis=0)
    if numbers:
        place = r.op("Gather", places, numbers, axis=0)
    else:
        length = r.op("Gather", r.op("Shape", ids), r.constant(1), axis=0)
        place = r.op("Gather", places, r.op("Range", r.constant(0), length, r.constant(1)), axis=0)
    total = r.op("Add", total, place, result="" if segments else r.outputs[2])
    if segments:
        total = r.op("Add", total, r.op("Gather", kinds, segments, axis=0), result=r.outputs[2])
    _layer_norm(r, total, scale, shift, r.outputs[0])
    if r.outputs[1]:  # the length of each sample
        counted = r.op("Cast", mask, to=TensorProto.INT32) if mask else ""
        if not counted:
            zeros = r.op("Mul", r.op("Cast", ids, to=TensorProto.INT32), r.constant(0, np.int32))
            counted = zeros
        if r.version >= 13:
            r.op("ReduceSum", counted, r.constant([1]), result=r.outputs[1], keepdims=0)
        else:
            r.op("ReduceSum", counted, result=r.outputs[1], axes=[1], keepdims=0)


# --- products --------------------------------------------------------------------------------------------------------


def _activated(r: Rewriting, x: str, result: str) -> None:
    kind, values = r.attribute("activation", ""), list(r.attribute("activation_params", ()))
    if not kind:
        r.op("Identity", x, result=result)
    elif kind == "LeakyRelu":
        r.op(kind, x, result=result, alpha=values[0] if values else 0.01)
    elif kind == "HardSigmoid":
        alpha, beta = values or (0.2, 0.5)
        r.op(kind, x, result=result, alpha=alpha, beta=beta)
    elif kind == "Clip":
        r.op(kind, x, r.number(values[0], x), r.number(values[1], x), result=result)
    else:
        r.op(kind, x, result=result)


@rewrites("FusedConv")
def _fused_conv(r: Rewriting) -> None:
    own = {k: v for k, v in r.attributes.items() if not k.startswith("activation")}
    made = r.op("Conv", *[name for name in r.inputs[:3] if name], **own)
    if r.inputs[3]:
        made = r.op("Add", made, r.inputs[3])
    _activated(r, made, r.outputs[0])


@rewrites("FusedGemm")
def _fused_gemm(r: Rewriting) -> None:
    own = {k: v for k, v in r.attributes.items() if not k.startswith("activation")}
    _activated(r, r.op("Gemm", *[name for name in r.inputs[:3] if name], **own), r.outputs[0])


@rewrites("FusedMatMul", "TransposeMatMul")
def _fused_matmul(r: Rewriting) -> None:
    a, b = r.inputs[:2]
    if r.attribute("transBatchA") or r.attribute("transBatchB"):
        r.nodes.append(r.node)
        return
    for flag, at in (("transA", 0), ("transB", 1)):
        if r.attribute(flag):
            turned = _swap_last(r, (a, b)[at])
            a, b = (turned, b) if at == 0 else (a, turned)
    alpha = float(r.attribute("alpha", 1.0))
    if alpha == 1.0:
        r.op("MatMul", a, b, result=r.outputs[0])
    else:
        made = r.op("MatMul", a, b)
        r.op("Mul", made, r.number(alpha, made), result=r.outputs[0])


def _swap_last(r: Rewriting, x: str) -> str:
    """The last two axes of a tensor whose rank is not known: as rows and columns behind everything else."""
    shape = r.op("Shape", x)
    lead = r.op("Slice", shape, r.constant([0]), r.constant([-2]), r.constant([0]))
    tail = r.op("Slice", shape, r.constant([-2]), r.constant([2**31]), r.constant([0]))
    whole = r.op("Reshape", x, r.op("Concat", r.constant([-1]), tail, axis=0))
    turned = r.op("Transpose", whole, perm=[0, 2, 1])
    first = r.op("Slice", tail, r.constant([0]), r.constant([1]), r.constant([0]))
    second = r.op("Slice", tail, r.constant([1]), r.constant([2]), r.constant([0]))
    return r.op("Reshape", turned, r.op("Concat", lead, second, first, axis=0))


@rewrites("MatMulIntegerToFloat")
def _matmul_integer_to_float(r: Rewriting) -> None:
    a, b, a_scale, b_scale, a_zero, b_zero, bias = r.inputs[:7]
    whole = r.op("MatMulInteger", *_trimmed(a, b, a_zero, b_zero))
    made = r.op(
        "Mul",
        r.op("Cast", whole, to=TensorProto.FLOAT),
        r.op("Mul", a_scale, b_scale),
        result="" if bias else r.outputs[0],
    )
    if bias:
        r.op("Add", made, bias, result=r.outputs[0])


@rewrites("DynamicQuantizeMatMul")
def _dynamic_matmul(r: Rewriting) -> None:
    a, b, b_scale, b_zero, bias = r.inputs[:5]
    values, scale, zero = r.several("DynamicQuantizeLinear", 3, a)
    whole = r.op("MatMulInteger", *_trimmed(values, b, zero, b_zero))
    made = r.op(
        "Mul",
        r.op("Cast", whole, to=TensorProto.FLOAT),
        r.op("Mul", scale, b_scale),
        result="" if bias else r.outputs[0],
    )
    if bias:
        r.op("Add", made, bias, result=r.outputs[0])


def _trimmed(*names: str) -> list[str]:
    """Operands without the absent ones at the end."""
    kept = list(names)
    while kept and not kept[-1]:
        kept.pop()
    return kept


# --- quantised -------------------------------------------------------------------------------------------------------


@rewrites("QuantizeLinear", "DequantizeLinear")
def _own_domain(r: Rewriting) -> None:
    r.op(r.node.op_type, *_trimmed(*r.inputs[:3]), result=r.outputs[0], **r.attributes)


def _dequantized(r: Rewriting, at: int) -> str:
    """Operand `at`, with the scale and the zero point that follow it, as numbers."""
    return r.op("DequantizeLinear", *_trimmed(*r.inputs[at : at + 3]))


def _quantized(r: Rewriting, x: str, at: int) -> None:
    r.op("QuantizeLinear", *_trimmed(x, *r.inputs[at : at + 2]), result=r.outputs[0])


@rewrites("QLinearAdd", "QLinearMul")
def _quantized_pair(r: Rewriting) -> None:
    made = r.op(r.node.op_type.removeprefix("QLinear"), _dequantized(r, 0), _dequantized(r, 3))
    _quantized(r, made, 6)


@rewrites("QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax")
def _quantized_one(r: Rewriting) -> None:
    own = {k: v for k, v in r.attributes.items() if k in ("alpha", "axis")}
    _quantized(r, r.op(r.node.op_type.removeprefix("QLinear"), _dequantized(r, 0), **own), 3)


@rewrites("QLinearGlobalAveragePool", "QLinearAveragePool")
def _quantized_pool(r: Rewriting) -> None:
    own = {k: v for k, v in r.attributes.items() if k != "channels_last"}
    x = _dequantized(r, 0)
    last = bool(r.attribute("channels_last", 0))
    x = r.op("Transpose", x, perm=[0, 3, 1, 2]) if last else x
    made = r.op(r.node.op_type.removeprefix("QLinear"), x, **own)
    _quantized(r, r.op("Transpose", made, perm=[0, 2, 3, 1]) if last else made, 3)


@rewrites("QLinearConcat")
def _quantized_concat(r: Rewriting) -> None:
    parts = [r.op("DequantizeLinear", *_trimmed(*r.node.input[i : i + 3])) for i in range(2, len(r.node.input), 3)]
    made = r.op("Concat", *parts, axis=r.attribute("axis"))
    r.op("QuantizeLinear", made, *_trimmed(*r.inputs[:2]), result=r.outputs[0])


@rewrites("QLinearWhere")
def _quantized_where(r: Rewriting) -> None:
    _quantized(r, r.op("Where", r.inputs[0], _dequantized(r, 1), _dequantized(r, 4)), 7)


@rewrites("QGemm")
def _quantized_gemm(r: Rewriting) -> None:
    a, b = _dequantized(r, 0), _dequantized(r, 3)
    own = {k: v for k, v in r.attributes.items() if k in ("transA", "transB", "alpha")}
    made = r.op("Gemm", a, b, **own)
    if r.inputs[6]:  # whole numbers in units of both scales
        scaled = r.op("Mul", r.op("Cast", r.inputs[6], to=TensorProto.FLOAT), r.op("Mul", r.inputs[1], r.inputs[4]))
        made = r.op("Add", made, scaled)
    if r.inputs[7]:
        r.op("QuantizeLinear", *_trimmed(made, r.inputs[7], r.inputs[8]), result=r.outputs[0])
    else:
        r.op("Identity", made, result=r.outputs[0])


@rewrites("DynamicQuantizeLSTM")
def _dynamic_lstm(r: Rewriting) -> None:
    """Weights come transposed and in whole numbers: [directions, inputs, 4 · units], a scale for each direction."""
    x, w, rec, bias, lengths, hidden, cell, peep, w_scale, w_zero, r_scale, r_zero = r.inputs[:12]
    weights = [_direction_weights(r, *each) for each in ((w, w_scale, w_zero), (rec, r_scale, r_zero))]
    own = dict(r.attributes)
    operands = _trimmed(x, *weights, bias, lengths, hidden, cell, peep)
    r.nodes.append(helper.make_node("LSTM", operands, list(r.node.output), name=r.name("LSTM_"), **own))


def _direction_weights(r: Rewriting, weight: str, scale: str, zero: str) -> str:
    number = r.op("Cast", weight, to=TensorProto.FLOAT)
    offset = r.op("Cast", zero, to=TensorProto.FLOAT)
    for_all = [r.op("Reshape", name, r.constant([1, 1, -1])) for name in (offset, scale)]
    tensor = r.tensor(scale)
    if tensor is not None and len(tensor.dims) <= 1:  # one for each direction
        for_all = [r.op("Reshape", name, r.constant([-1, 1, 1])) for name in (offset, scale)]
    elif tensor is not None:
        for_all = [r.op("Reshape", name, r.constant([tensor.dims[0], 1, -1])) for name in (offset, scale)]
    plain = r.op("Mul", r.op("Sub", number, for_all[0]), for_all[1])
    return r.op("Transpose", plain, perm=[0, 2, 1])


from . import contrib_attention  # noqa: E402, F401  (its rules register themselves)

SUPPORTED = frozenset(RULES)
