"""Activations, normalisations and products as onnxruntime fuses them, written out in standard operators (see :mod:`.contrib`)."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from .contrib import Rewriting, rewrites

__all__: list[str] = []


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
