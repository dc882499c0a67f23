"""Files are counted before they are parsed."""

import time

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from hpdlf.errors import ModelError
from hpdlf.models.onnxpp import wire
from hpdlf.models.onnxpp.wire import check_wire
from hpdlf.models.zoo import mlp


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def test_small_files_and_large_weights_pass_at_once() -> None:
    model = mlp((4, 2))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(20_000_000, np.float32), "w"))
    content = model.SerializeToString()
    start = time.process_time()
    check_wire(content, "m.onnx")
    assert time.process_time() - start < 0.1


def test_two_bytes_that_become_two_hundred() -> None:
    nodes = field(1, b"") * (wire.MAX_FIELDS + 1)
    content = field(7, nodes)
    start = time.process_time()
    with pytest.raises(ModelError, match=r"m.onnx holds more than 2000000 fields: it would take gigabytes"):
        check_wire(content, "m.onnx")
    assert time.process_time() - start < 9


def test_messages_in_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "SCANNED_FROM_BYTES", 0)
    graph = b""
    for _ in range(200):
        graph = field(1, field(5, field(6, graph)))  # a node's attribute's graph
    with pytest.raises(ModelError, match="nests messages more than 100 deep"):
        check_wire(field(7, graph), "m.onnx")
    with pytest.raises(Exception, match="pars"):
        ModelProto.FromString(field(7, graph))


@pytest.mark.parametrize(
    "content", [b"\xff" * 100, b"PK\x03\x04" * 20, b"\x0a", b"\x08", b"\x3a\xff\xff\xff\xff\x0f", b""]
)
def test_what_is_no_protobuf_is_left_to_the_parser(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(wire, "SCANNED_FROM_BYTES", 0)
    check_wire(content, "m.onnx")


def test_a_sound_file_passes_whatever_its_fields_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "SCANNED_FROM_BYTES", 0)
    model = mlp((4, 3, 2))
    model.graph.initializer.append(helper.make_tensor("d", TensorProto.DOUBLE, [2], [1.5, 2.5]))
    model.metadata_props.add(key="a", value="b")
    check_wire(model.SerializeToString(), "m.onnx")
