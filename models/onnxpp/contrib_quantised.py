"""Arithmetic on quantised numbers as onnxruntime fuses it, written out in standard operators (see :mod:`.contrib`)."""

from __future__ import annotations

from onnx import TensorProto

from .contrib import Rewriting, rewrites, trimmed

__all__: list[str] = []


@rewrites("MatMulIntegerToFloat")
def _matmul_integer_to_float(r: Rewriting) -> None:
    a, b, a_scale, b_scale, a_zero, b_zero, bias = r.inputs[:7]
    whole = r.op("MatMulInteger", *trimmed(a, b, a_zero, b_zero))
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
    whole = r.op("MatMulInteger", *trimmed(values, b, zero, b_zero))
    made = r.op(
        "Mul",
        r.op("Cast", whole, to=TensorProto.FLOAT),
        r.op("Mul", scale, b_scale),
        result="" if bias else r.outputs[0],
    )
    if bias:
        r.op("Add", made, bias, result=r.outputs[0])


@rewrites("QuantizeLinear", "DequantizeLinear")
def _own_domain(r: Rewriting) -> None:
    r.op(r.node.op_type, *trimmed(*r.inputs[:3]), result=r.outputs[0], **r.attributes)


def _dequantized(r: Rewriting, at: int) -> str:
    """Operand `at`, with the scale and the zero point that follow it, as numbers."""
    return r.op("DequantizeLinear", *trimmed(*r.inputs[at : at + 3]))


def _quantized(r: Rewriting, x: str, at: int) -> None:
    r.op("QuantizeLinear", *trimmed(x, *r.inputs[at : at + 2]), result=r.outputs[0])


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
    parts = [r.op("DequantizeLinear", *trimmed(*r.node.input[i : i + 3])) for i in range(2, len(r.node.input), 3)]
    made = r.op("Concat", *parts, axis=r.attribute("axis"))
    r.op("QuantizeLinear", made, *trimmed(*r.inputs[:2]), result=r.outputs[0])


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
        r.op("QuantizeLinear", *trimmed(made, r.inputs[7], r.inputs[8]), result=r.outputs[0])
    else:
        r.op("Identity", made, result=r.outputs[0])
