"""Damaged and hostile variants of an ONNX file, drawn with a seed: bytes as a bad disk or an editor changes them, and fields.

The import must take each of them or refuse it in one message; the tests see to that. To try a file of your own:

>>> from onnx import helper
>>> node = helper.make_node("Relu", ["x"], ["y"])
>>> ends = [helper.make_tensor_value_info(name, 1, ["N", 4]) for name in ("x", "y")]
>>> content = helper.make_model(helper.make_graph([node], "g", ends[:1], ends[1:])).SerializeToString()
>>> mutated(content, seed=1) == mutated(content, seed=1)
True
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

from google.protobuf.message import Message
from onnx import AttributeProto, FunctionProto, ModelProto, NodeProto, TensorProto, helper

NUMBERS = (0, 1, -1, 2, 3, 7, 255, 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1, -(2**31), -(2**63))
TEXTS = (
    "",
    "x",
    "nowhere",
    "../../etc/passwd",
    "/dev/zero",
    "a" * 300,
    "\0",
    "\x1b[31m",
    "\n\n",
    "Ünï",
    "ai.onnx",
    "com.example",
)
OPERATOR_NAMES = (
    "Add MatMul Conv Reshape Concat Slice Gather Loop If Scan Constant ConstantOfShape Expand Resize Tile Range NonZero Pad "
    "LSTM BatchNormalization QuantizeLinear TopK Split SequenceConstruct Einsum Squeeze Relue Identity Shape Transpose"
)
OPERATORS = tuple(OPERATOR_NAMES.split())


def mutated(content: bytes, seed: int) -> bytes:
    """One variant of a file: half of them changed in their bytes, half in their fields, some several times."""
    rng = random.Random(seed)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if rng.random() < 0.4:
            content = bytes(rng.choice(BYTES)(rng, bytearray(content)))
            continue
        model = ModelProto()
        try:
            model.ParseFromString(content)
        except Exception:  # protobuf's DecodeError
            continue
        try:
            rng.choice(FIELDS)(rng, model)
            content = model.SerializeToString()
        except (ValueError, TypeError, IndexError, OverflowError):
            continue  # what cannot be written is no file
    return content


def _flip(rng: random.Random, content: bytearray) -> bytearray:
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        if content:
            content[rng.randrange(len(content))] = rng.randrange(256)
    return content


def _cut(rng: random.Random, content: bytearray) -> bytearray:
    start = rng.randrange(len(content) + 1)
    del content[start : start + rng.choice((1, 2, 10, 1000, len(content)))]
    return content


def _insert(rng: random.Random, content: bytearray) -> bytearray:
    at = rng.randrange(len(content) + 1)
    content[at:at] = rng.randbytes(rng.choice((1, 2, 10, 1000)))
    return content


def _double(rng: random.Random, content: bytearray) -> bytearray:
    start = rng.randrange(len(content) + 1)
    part = content[start : start + rng.choice((2, 20, 200, 2000))]
    at = rng.randrange(len(content) + 1)
    content[at:at] = part * rng.choice((1, 1, 50))
    return content


def _blank(rng: random.Random, content: bytearray) -> bytearray:
    start = rng.randrange(len(content) + 1)
    size = min(rng.choice((1, 16, 500)), len(content) - start)
    content[start : start + size] = bytes([rng.choice((0, 0xFF, 0x80))]) * size
    return content


BYTES: tuple[Callable[[random.Random, bytearray], bytearray], ...] = (_flip, _cut, _insert, _double, _blank)


def _messages(message: Message) -> Iterator[Message]:
    yield message
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for inner in value if field.is_repeated else [value]:
            yield from _messages(inner)


def _any_field(rng: random.Random, model: ModelProto) -> None:
    """Any field of any message: another value, gone, twice, or shuffled."""
    message = rng.choice(list(_messages(model)))
    fields = message.ListFields()
    if not fields or rng.random() < 0.1:
        field = rng.choice(message.DESCRIPTOR.fields)
    else:
        field = rng.choice(fields)[0]
    if rng.random() < 0.15:
        message.ClearField(field.name)
    elif field.is_repeated:
        _repeated(rng, getattr(message, field.name), field)
    elif field.message_type is not None:
        getattr(message, field.name).SetInParent()
    else:
        setattr(message, field.name, _scalar(rng, field, getattr(message, field.name)))


def _repeated(rng: random.Random, held: Any, field: Any) -> None:
    how = rng.randrange(4)
    if how == 0 and len(held):
        del held[rng.randrange(len(held))]
    elif how == 1 and len(held):
        held.extend([held[rng.randrange(len(held))]] * rng.choice((1, 1, 3, 1000)))
    elif field.message_type is None and len(held):
        held[rng.randrange(len(held))] = _scalar(rng, field, held[0])
    elif field.message_type is None:
        held.append(_scalar(rng, field, None))
    elif len(held) > 1:
        copies = [type(one).FromString(one.SerializeToString()) for one in held]
        rng.shuffle(copies)
        del held[:]
        held.extend(copies)


def _scalar(rng: random.Random, field: Any, old: Any) -> Any:
    if field.type in (field.TYPE_BYTES,):
        return rng.choice((b"", b"\xff", rng.randbytes(16), bytes(old or b"")[:-1]))
    if field.type == field.TYPE_STRING:
        return rng.choice((*TEXTS, rng.choice(OPERATORS)))
    if field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
        return rng.choice((0.0, -1.0, 1e30, float("nan"), float("inf")))
    number = rng.choice((*NUMBERS, rng.randrange(40)))
    return number if field.type in (field.TYPE_INT64, field.TYPE_UINT64) else max(min(number, 2**31 - 1), -(2**31))


def _dims(rng: random.Random, model: ModelProto) -> None:
    tensors = [m for m in _messages(model) if isinstance(m, TensorProto)]
    tensor = rng.choice(tensors)
    tensor.dims[:] = [rng.choice(NUMBERS) for _ in range(rng.randrange(1, 5))]


def _shape_values(rng: random.Random, model: ModelProto) -> None:
    """What a small operand of 64-bit integers holds: targets of reshapes, axes, trip counts."""
    tensors = [m for m in _messages(model) if isinstance(m, TensorProto) and m.data_type == TensorProto.INT64]
    tensor = rng.choice(tensors)
    count = max(len(tensor.raw_data) // 8, len(tensor.int64_data), 1)
    values = [rng.choice((*NUMBERS, 4, 100, 50_000)) for _ in range(count)]
    tensor.ClearField("raw_data")
    tensor.int64_data[:] = values


def _operator(rng: random.Random, model: ModelProto) -> None:
    rng.choice(model.graph.node).op_type = rng.choice(OPERATORS)


def _operands(rng: random.Random, model: ModelProto) -> None:
    """Operands of two nodes change places, or a node reads what stands after it."""
    nodes = model.graph.node
    node, other = rng.choice(nodes), rng.choice(nodes)
    names = [*other.output, *other.input, "nowhere", ""]
    node.input[rng.randrange(len(node.input))] = rng.choice(names)


def _attribute(rng: random.Random, model: ModelProto) -> None:
    node = rng.choice([n for n in model.graph.node if n.attribute])
    attribute = rng.choice(node.attribute)
    name = attribute.name
    how = rng.randrange(4)
    if how == 0:
        node.attribute.remove(attribute)
    elif how == 1:
        attribute.type = rng.choice(list(AttributeProto.AttributeType.values()))
    elif how == 2:
        value = rng.choice(
            ([rng.choice(NUMBERS) for _ in range(3)], rng.choice(NUMBERS), 1.5, "text", [0.0], [b"a", b"b"])
        )
        attribute.CopyFrom(helper.make_attribute(name, value))
    else:
        attribute.ints[:] = [rng.choice(NUMBERS) for _ in attribute.ints]


def _opset(rng: random.Random, model: ModelProto) -> None:
    opset = rng.choice(model.opset_import)
    opset.version = rng.choice((*NUMBERS, *range(1, 30)))
    if rng.random() < 0.2:
        model.opset_import.add(domain=rng.choice(TEXTS), version=rng.choice(NUMBERS))


def _external(rng: random.Random, model: ModelProto) -> None:
    tensor = rng.choice([m for m in _messages(model) if isinstance(m, TensorProto)])
    tensor.data_location = TensorProto.EXTERNAL
    if rng.random() < 0.7:
        tensor.ClearField("raw_data")
    for key in rng.sample(("location", "offset", "length", "checksum", "basepath"), rng.randrange(1, 5)):
        tensor.external_data.add(key=key, value=rng.choice((*TEXTS, "m.onnx", ".", "..", *map(str, NUMBERS))))


def _input(rng: random.Random, model: ModelProto) -> None:
    value = rng.choice(model.graph.input)
    kind = rng.randrange(3)
    if kind == 0:
        value.type.sequence_type.elem_type.tensor_type.elem_type = 1
    elif kind == 1:
        value.type.tensor_type.elem_type = rng.choice(NUMBERS) & 31
    else:
        del value.type.tensor_type.shape.dim[:]
        for _ in range(rng.randrange(6)):
            value.type.tensor_type.shape.dim.add(dim_value=rng.choice(NUMBERS))


def _nested(rng: random.Random, model: ModelProto) -> None:
    """Branches in branches, or loops in loops, up to thirty deep."""
    nodes = [NodeProto(op_type="Relu", input=[model.graph.input[0].name], output=["r"])]
    operator = rng.choice(("If", "Loop", "Scan"))
    for level in range(rng.choice((1, 3, 8, 30))):
        result = helper.make_tensor_value_info("r", 1, None)
        body = helper.make_graph(nodes, f"b{level}", [], [result])
        inputs = [model.graph.input[0].name] * rng.randrange(3)
        bodies = {"then_branch": body, "else_branch": body} if operator == "If" and level < 6 else {"body": body}
        nodes = [helper.make_node(operator, inputs, ["r"], **bodies)]
    model.graph.node.extend(nodes)


def _functions(rng: random.Random, model: ModelProto) -> None:
    """Functions that call each other twice, each the one before, and the last one perhaps itself."""
    depth = rng.choice((1, 5, 12, 40, 70))
    for level in range(depth):
        callee = f"f{level - 1}" if level else rng.choice(("f0", f"f{depth - 1}", "g"))
        nodes = [
            helper.make_node(callee, ["a"], ["b"], domain="f"),
            helper.make_node(callee, ["b"], ["c"], domain="f"),
        ]
        if not level and rng.random() < 0.7:
            nodes = [helper.make_node("Relu", ["a"], ["c"])]
        model.functions.append(
            FunctionProto(
                name=f"f{level}",
                domain="f",
                input=["a"],
                output=["c"],
                node=nodes,
                opset_import=[helper.make_opsetid("", 18), helper.make_opsetid("f", 1)],
            )
        )
    model.opset_import.add(domain="f", version=1)
    model.graph.node.add(op_type=f"f{depth - 1}", domain="f", input=[model.graph.input[0].name], output=["called"])


FIELDS: tuple[Callable[[random.Random, ModelProto], None], ...] = (
    *(_any_field,) * 6,
    *(_attribute,) * 2,
    *(_shape_values,) * 2,
    _dims,
    _operator,
    _operands,
    _opset,
    _external,
    _input,
    _nested,
    _functions,
)
