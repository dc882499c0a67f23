"""Attention as onnxruntime fuses it, and weights in four bits, written out in standard operators (see :mod:`.contrib`)."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from ...errors import ModelError
from .contrib import Rewriting, rewrites

__all__: list[str] = []

MASKED = -10_000.0


def _shape_of(r: Rewriting, x: str, axis: int) -> str:
    return r.op("Gather", r.op("Shape", x), r.constant([axis]), axis=0)


def _heads(r: Rewriting, x: str, heads: int) -> str:
    """[batch, tokens, hidden] as [batch, heads, tokens, hidden / heads]."""
    return r.op("Transpose", r.op("Reshape", x, r.constant([0, 0, heads, -1])), perm=[0, 2, 1, 3])


def _refuse(r: Rewriting, what: str) -> ModelError:
    return ModelError(
        f"node {r.node.name or r.node.op_type!r}: operator {r.node.op_type!r} of com.microsoft with {what} is not supported; "
        "export without onnxruntime's optimiser"
    )


def _attend(r: Rewriting, query: str, key: str, value: str, bias: list[str], *, scale: float, result: str) -> None:
    """softmax(query · keyᵀ · scale + bias) · value, of [batch, heads, tokens, size], as [batch, tokens, hidden]."""
    scores = r.op("MatMul", query, r.op("Transpose", key, perm=[0, 1, 3, 2]))
    if scale:
        scores = r.op("Mul", scores, r.number(scale, scores))
    else:  # one over the root of the size of a head
        size = r.like(r.op("Squeeze", _shape_of(r, query, 3)), scores)
        scores = r.op("Div", scores, r.op("Sqrt", size))
    for each in bias:
        scores = r.op("Add", scores, r.like(each, scores))
    seen = r.op("MatMul", r.op("Softmax", scores, axis=-1), value)
    r.op("Reshape", r.op("Transpose", seen, perm=[0, 2, 1, 3]), r.constant([0, 0, -1]), result=result)


def _causal(r: Rewriting, queries: str, keys: str) -> str:
    """A large negative number where a key comes after its query; the last query sees the last key."""
    count, all_keys = (r.op("Squeeze", _shape_of(r, x, 2)) for x in (queries, keys))
    first = r.op("Sub", all_keys, count)
    rows = r.unsqueeze(r.op("Range", first, all_keys, r.constant(1)), 1)
    columns = r.unsqueeze(r.op("Range", r.constant(0), all_keys, r.constant(1)), 0)
    later = r.op("Greater", columns, rows)
    return r.op(
        "Where", later, r.constant(np.float32(np.finfo(np.float32).min / 2), np.float32), r.constant(0.0, np.float32)
    )


def _rank(r: Rewriting, name: str) -> int | None:
    """The rank that the file states for a tensor, if it does."""
    graph = r.model.graph
    for value in (*graph.input, *graph.value_info):
        if value.name == name and value.type.tensor_type.HasField("shape"):
            return len(value.type.tensor_type.shape.dim)
    tensor = r.tensor(name)
    return None if tensor is None else len(tensor.dims)


def _mask(r: Rewriting, mask: str, keys: str) -> str:
    """What a mask of keys adds to scores: [batch] lengths, or [batch, keys] of zeros where a key is not to be seen."""
    filler = r.constant(float(r.attribute("mask_filter_value", MASKED)), np.float32)
    rank = _rank(r, mask)
    counted = any(
        mask in n.output and n.op_type in ("ReduceSum", "EmbedLayerNormalization") for n in r.model.graph.node
    )
    if rank == 1 or (rank is None and counted):
        length = r.op("Squeeze", _shape_of(r, keys, 2))
        places = r.unsqueeze(r.op("Range", r.constant(0), length, r.constant(1)), 0)
        seen = r.op("Less", places, r.unsqueeze(r.op("Cast", mask, to=TensorProto.INT64), 1))
        seen = r.unsqueeze(seen, 1, 2)
    else:
        seen = r.op("Cast", mask, to=TensorProto.BOOL)
        seen = r.unsqueeze(seen, 1, 2) if rank in (None, 2) else r.unsqueeze(seen, 1) if rank == 3 else seen
    return r.op("Where", seen, r.constant(0.0, np.float32), filler)


@rewrites("Attention")
def _attention(r: Rewriting) -> None:
    x, weights, bias, mask, past, extra = r.inputs[:6]
    if past or r.outputs[1] or r.inputs[6]:
        raise _refuse(r, "a cache of keys and values")
    if r.attribute("do_rotary", 0):
        raise _refuse(r, "rotary embeddings inside")
    heads = int(r.attribute("num_heads"))
    sizes = list(r.attribute("qkv_hidden_sizes", ()))
    projected = r.op("MatMul", x, weights)
    projected = r.op("Add", projected, bias) if bias else projected
    if sizes:
        if r.version >= 13:
            parts = r.several("Split", 3, projected, r.constant(sizes), axis=2)
        else:
            parts = r.several("Split", 3, projected, axis=2, split=sizes)
    else:
        parts = r.split(projected, 3, 2)
    query, key, value = (_heads(r, part, heads) for part in parts)
    added = [_mask(r, mask, key)] if mask else []
    added += [_causal(r, query, key)] if r.attribute("unidirectional", 0) else []
    added += [extra] if extra else []
    _attend(r, query, key, value, added, scale=float(r.attribute("scale", 0.0)), result=r.outputs[0])


@rewrites("MultiHeadAttention")
def _multi_head(r: Rewriting) -> None:
    query, key, value, bias, mask, extra, past = r.inputs[:7]
    if past or r.outputs[1] or r.inputs[7]:
        raise _refuse(r, "a cache of keys and values")
    if not key or not value:
        raise _refuse(r, "packed operands")
    heads = int(r.attribute("num_heads"))
    if bias:
        parts = r.split(bias, 3, 0)
        query, key, value = (r.op("Add", x, part) for x, part in zip((query, key, value), parts, strict=True))
    query, key, value = (x if _rank(r, x) == 4 else _heads(r, x, heads) for x in (query, key, value))
    added = [_mask(r, mask, key)] if mask else []
    added += [_causal(r, query, key)] if r.attribute("unidirectional", 0) else []
    added += [extra] if extra else []
    _attend(r, query, key, value, added, scale=float(r.attribute("scale", 0.0)), result=r.outputs[0])


@rewrites("MatMulNBits")
def _four_bits(r: Rewriting) -> None:
    """B is [columns, blocks, bytes of a block], two numbers a byte, low half first; scales [columns · blocks]."""
    x, packed, scales, zeros, groups, bias = r.inputs[:6]
    bits, block = int(r.attribute("bits", 4)), int(r.attribute("block_size"))
    rows, columns = int(r.attribute("K")), int(r.attribute("N"))
    if bits not in (4, 8) or groups:
        raise _refuse(r, f"{bits} bits" if not groups else "groups in another order")
    blocks = -(-rows // block)
    numbers = _unpacked(r, packed, bits)
    numbers = r.op("Reshape", numbers, r.constant([columns, blocks, block]))
    if zeros:
        kind = r.tensor(zeros)
        if kind is not None and kind.data_type == TensorProto.UINT8:
            flat = r.op("Reshape", _unpacked(r, zeros, bits), r.constant([columns, -1]))
            middle = r.op("Slice", flat, r.constant([0]), r.constant([blocks]), r.constant([1]))
        else:
            middle = r.op("Cast", zeros, to=TensorProto.FLOAT)
        offset = r.op("Reshape", middle, r.constant([columns, blocks, 1]))
    else:
        offset = r.constant(float(2 ** (bits - 1)), np.float32)
    scale = r.op("Reshape", scales, r.constant([columns, blocks, 1]))
    plain = r.op("Mul", r.like(r.op("Sub", numbers, offset), scale), scale)
    flat = r.op("Reshape", plain, r.constant([columns, blocks * block]))
    kept = r.op("Slice", flat, r.constant([0]), r.constant([rows]), r.constant([1]))
    weight = r.like(r.op("Transpose", kept, perm=[1, 0]), x)
    made = r.op("MatMul", x, weight, result="" if bias else r.outputs[0])
    if bias:
        r.op("Add", made, bias, result=r.outputs[0])


def _unpacked(r: Rewriting, packed: str, bits: int) -> str:
    """The numbers in a tensor of bytes, as float32, along a new last axis where there are two a byte."""
    whole = r.op("Cast", packed, to=TensorProto.INT32)
    if bits == 8:
        return r.op("Cast", whole, to=TensorProto.FLOAT)
    sixteen = r.constant(16, np.int32)
    high = r.op("Div", whole, sixteen)
    low = r.op("Sub", whole, r.op("Mul", high, sixteen))
    parts = [r.unsqueeze(part, _last(r, packed)) for part in (low, high)]
    return r.op("Cast", r.op("Concat", *parts, axis=_last(r, packed)), to=TensorProto.FLOAT)


def _last(r: Rewriting, name: str) -> int:
    """The axis behind the last one of an initializer."""
    tensor = r.tensor(name)
    if tensor is None:
        raise _refuse(r, "weights that are computed")
    return len(tensor.dims)


@rewrites("RotaryEmbedding")
def _rotary(r: Rewriting) -> None:
    """Su et al. 2021: pairs of numbers turned by an angle that grows with their place; the angles come as tables."""
    x, places, cosines, sines = r.inputs[:4]
    heads, pairs = int(r.attribute("num_heads", 0)), bool(r.attribute("interleaved", 0))
    if r.attribute("rotary_embedding_dim", 0):
        raise _refuse(r, "a part of each head turned")
    rank, table = _rank(r, x), r.tensor(cosines)
    if table is None:
        raise _refuse(r, "computed tables")
    half = int(table.dims[1])
    split = x if rank == 4 else _heads(r, x, heads) if heads else _heads_of(r, x, 2 * half)
    at = r.op("Cast", places, to=TensorProto.INT64)
    if _rank(r, places) == 1:  # where the first token stands
        count = r.op("Squeeze", _shape_of(r, split, 2))
        at = r.unsqueeze(r.op("Add", r.op("Range", r.constant(0), count, r.constant(1)), r.op("Squeeze", at)), 0)
    cos, sin = (r.unsqueeze(r.op("Gather", t, at, axis=0), 1) for t in (cosines, sines))
    if pairs:
        apart = r.op("Reshape", split, r.constant([0, 0, 0, half, 2]))
        first, second = (r.op("Gather", apart, r.constant(i), axis=4) for i in (0, 1))
    else:
        first, second = r.split(split, 2, 3)
    turned = [
        r.op("Sub", r.op("Mul", first, cos), r.op("Mul", second, sin)),
        r.op("Add", r.op("Mul", second, cos), r.op("Mul", first, sin)),
    ]
    if pairs:
        whole = r.op("Concat", *(r.unsqueeze(t, 4) for t in turned), axis=4)
        made = r.op("Reshape", whole, r.constant([0, 0, 0, 2 * half]))
    else:
        made = r.op("Concat", *turned, axis=3)
    if rank == 4:
        r.op("Identity", made, result=r.outputs[0])
    else:
        r.op("Reshape", r.op("Transpose", made, perm=[0, 2, 1, 3]), r.constant([0, 0, -1]), result=r.outputs[0])


def _heads_of(r: Rewriting, x: str, size: int) -> str:
    return r.op("Transpose", r.op("Reshape", x, r.constant([0, 0, -1, size])), perm=[0, 2, 1, 3])
