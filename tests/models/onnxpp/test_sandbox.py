"""The worker process: what it answers, how it is ended, and what it costs."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from hpdlf.errors import ModelError
from hpdlf.models.onnxpp import import_model, sandbox
from hpdlf.models.onnxpp.tasks import TASKS, plain_sentence
from hpdlf.models.zoo import mlp


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A worker that knows the tasks of this file too; ended afterwards."""
    bootstrap = sandbox.BOOTSTRAP.replace(
        "serve()",
        "import hpdlf.models.onnxpp.tasks as tasks, os, time\n"
        "tasks.TASKS = dict(tasks.TASKS, sleep=lambda r, o: time.sleep(60), spin=lambda r, o: exec('while True: pass'),\n"
        "    eat=lambda r, o: bytes(len(bytearray(2**33))), die=lambda r, o: os.kill(os.getpid(), 11), wrong=lambda r, o: 1 / 0,\n"
        "    write=lambda r, o: open(o['path'], 'w').write('x' * 100), length=lambda r, o: str(len(r)).encode(),\n"
        "    environment=lambda r, o: ' '.join(os.environ).encode())\n"
        "tasks.serve()",
    )
    monkeypatch.setattr(sandbox, "BOOTSTRAP", bootstrap)
    sandbox._restart()
    sandbox.begin()
    yield monkeypatch
    sandbox._restart()
    sandbox.begin()


def ask(name: str, request: bytes = b"", **options: object) -> bytes:
    return sandbox.run_limited(name, request, place="m.onnx", nodes=1, **options)


@pytest.mark.parametrize("name", ["sleep", "spin"])
def test_what_takes_too_long_is_ended(task: pytest.MonkeyPatch, name: str) -> None:
    task.setattr(sandbox, "SECONDS", 1.0)
    ask("length")
    sandbox.begin()
    start = time.perf_counter()
    with pytest.raises(ModelError, match=r"^m.onnx cannot be imported: .* takes more than 1 s"):
        ask(name)
    assert time.perf_counter() - start < 3
    sandbox.begin()
    task.setattr(sandbox, "SECONDS", 8.0)
    assert ask("length", b"abc") == b"3"


def test_calls_of_one_import_share_their_time(task: pytest.MonkeyPatch) -> None:
    sandbox._clock.spent_s = 100.0
    with pytest.raises(ModelError, match="takes more than 8 s"):
        ask("sleep")


def test_memory_is_limited(task: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"takes more than 1.0 GiB of memory"):
        ask("eat")
    assert ask("length", bytes(2**22)) == str(2**22).encode()


def test_a_crash_is_one_sentence(task: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"^m.onnx cannot be imported: die crashed onnx, as damaged files do"):
        ask("die")
    assert ask("length") == b"0"


def test_one_that_was_ended_by_others_is_replaced(task: pytest.MonkeyPatch) -> None:
    assert ask("length") == b"0"
    worker = sandbox._worker
    assert worker is not None
    os.kill(worker.process.pid, signal.SIGKILL)
    assert ask("length", b"ab") == b"2"


def test_what_nobody_thought_of_is_one_sentence(task: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"it cannot be understood \(ZeroDivisionError: division by zero\)"):
        ask("wrong")


def test_it_writes_no_file_and_learns_no_secret(task: pytest.MonkeyPatch, tmp_path: Path) -> None:
    task.setenv("SOME_TOKEN", "secret")
    with pytest.raises(ModelError):
        ask("write", path=str(tmp_path / "file"))
    assert not (tmp_path / "file").exists() or (tmp_path / "file").stat().st_size == 0
    assert b"SOME_TOKEN" not in ask("environment")


def test_large_requests_and_replies_pass() -> None:
    sandbox.begin()
    weight = numpy_helper.from_array(np.zeros(3_000_000, "float32"), "w")
    model = mlp((4, 2))
    model.graph.initializer.append(weight)
    model.opset_import[0].version = 17
    reply = sandbox.run_limited("convert", model.SerializeToString(), place="m", nodes=9, target=18)
    assert len(reply) > 12_000_000


def test_only_named_tasks() -> None:
    assert set(TASKS) == {"check", "convert", "inline", "walk"}
    with pytest.raises(ModelError, match="KeyError"):
        ask("eval", b"1 + 1")


def test_messages_of_the_checker_are_plain(tmp_path: Path) -> None:
    assert plain_sentence("[TypeInferenceError] /src/onnx/defs/a.cc:12: no\x1b[31m\n good") == "no?[31m good"
    assert len(plain_sentence("x" * 9999)) < 500


def loops(depth: int) -> ModelProto:
    """Loops in loops that each go round often: a body that is walked four times is walked 4 ** depth times."""
    nodes = [helper.make_node("Concat", ["a0", f"a{depth}"], ["r0"], axis=1)]
    for level in range(depth):
        i = helper.make_tensor_value_info(f"i{level}", TensorProto.INT64, [])
        on = helper.make_tensor_value_info(f"on{level}", TensorProto.BOOL, [])
        kept = helper.make_tensor_value_info(f"k{level}", TensorProto.BOOL, [])
        given = helper.make_tensor_value_info(f"a{level}", TensorProto.FLOAT, None)
        made = helper.make_tensor_value_info(f"r{level}", TensorProto.FLOAT, None)
        on_and_on = helper.make_node("Identity", [f"on{level}"], [f"k{level}"])
        body = helper.make_graph([on_and_on, *nodes], "b", [i, on, given], [kept, made])
        nodes = [helper.make_node("Loop", ["n", "", f"a{level + 1}"], [f"r{level + 1}"], body=body)]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 4]) for n in (f"a{depth}", f"r{depth}")]
    number = numpy_helper.from_array(np.int64(3), "n")
    graph = helper.make_graph(nodes, "deep", ends[:1], ends[1:], [number])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.slow
def test_no_file_takes_longer_than_ten_seconds(tmp_path: Path) -> None:
    onnx.save(loops(12), tmp_path / "m.onnx")
    start = time.perf_counter()
    with pytest.raises(ModelError, match="finding its shapes takes more than 8 s"):
        import_model(tmp_path / "m.onnx")
    assert time.perf_counter() - start < 10


def test_it_costs_little(tmp_path: Path) -> None:
    onnx.save(mlp((4, 3, 2)), tmp_path / "m.onnx")
    import_model(tmp_path / "m.onnx")
    start = time.perf_counter()
    for _ in range(5):
        import_model(tmp_path / "m.onnx")
    assert (time.perf_counter() - start) / 5 < 0.3
