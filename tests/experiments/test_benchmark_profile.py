"""Instructions find the operators that they were compiled from, and times are divided among these."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpdlf.experiments.benchmark_profile import Instruction, attribute, instructions_of, profile
from hpdlf.experiments.benchmark_results import Result, show
from hpdlf.experiments.benchmark_workloads import Workload, prepare

MODULE = """\
HloModule jit_f, entry_computation_layout={(f32[8,4]{1,0})->f32[4]{0}}

%fused (p: f32[8,4]) -> f32[8,4] {
  %p = f32[8,4]{1,0} parameter(0)
  ROOT %e = f32[8,4]{1,0} exponential(%p), metadata={op_name="jit(f)/jvp(onnx:a.act)/exp" stack_frame_id=1}
}

ENTRY %main (x: f32[8,4], w: f32[4,4]) -> f32[4] {
  %x = f32[8,4]{1,0} parameter(0)
  %w = f32[4,4]{1,0} parameter(1)
  %bare = f32[8,4]{1,0} fusion(%x), kind=kLoop, calls=%fused
  %dot.1 = f32[8,4]{1,0} dot(%bare, %w), metadata={op_name="jit(f)/transpose(jvp(onnx:a))/dot_general"}
  %half = f32[2,4]{1,0} reduce-window(%dot.1, %x), window={size=4x1}
  %sum = f32[4]{0} reduce(%half, %x), dimensions={0}, metadata={op_name="jit(f)/transpose(jvp(onnx:a.b))/reduce_sum"}
  %lonely = (f32[4]{0}, s32[]) custom-call(%w), custom_call_target="sort"
  %loop = f32[4]{0} while(%sum), condition=%c, body=%b, metadata={op_name="jit(f)/jvp(onnx:a)/while"}
  ROOT %add.2 = f32[4]{0} add(%sum, %loop), metadata={op_name="jit(f)/jit(update)/add"}
}
"""
TYPES = {"a": "MatMul", "a.act": "Exp", "a.b": "Add"}


def test_what_has_no_name_has_that_of_what_it_holds_or_who_reads_it() -> None:
    found = instructions_of(MODULE)
    assert found["dot.1"] == Instruction(
        opcode="dot", shape="f32[8,4]", path="jit(f)/transpose(jvp(onnx:a))/dot_general"
    )
    assert found["bare"].path == "jit(f)/jvp(onnx:a.act)/exp"
    assert found["half"].path == found["sum"].path
    assert found["lonely"] == Instruction(opcode="custom-call", shape="(f32[4], s32[])", path="")


def test_times_are_divided() -> None:
    seconds = {
        "dot.1": 4.0,
        "half": 2.0,
        "sum": 1.0,
        "bare": 1.0,
        "lonely": 1.0,
        "add.2": 0.5,
        "unseen.7": 0.5,
        "loop": 9.0,
    }
    shares = attribute(seconds, instructions_of(MODULE), TYPES)
    assert [(s.operator, s.op_type, s.direction, s.seconds, s.share) for s in shares] == [
        ("a", "MatMul", "backward", 4.0, 0.4),
        ("a.b", "Add", "backward", 3.0, 0.3),
        ("a.act", "Exp", "forward", 1.0, 0.1),
        ("custom-call (f32[4], s32[])", "", "", 1.0, 0.1),
        ("update", "optimizer", "", 0.5, 0.05),
        ("unseen", "", "", 0.5, 0.05),
    ]


def test_names_with_strokes_are_found() -> None:
    """Exporters name nodes by paths; one may begin as another does."""
    path = "jit(f)/jvp(onnx:/layer/Conv_1)/conv_general_dilated"
    types = {"/layer/Conv": "Conv", "/layer/Conv_1": "ConvTranspose"}
    instruction = Instruction(opcode="convolution", shape="f32[1]", path=path)
    (share,) = attribute({"c": 1.0}, {"c": instruction}, types)
    assert (share.operator, share.op_type, share.direction) == ("/layer/Conv_1", "ConvTranspose", "forward")


@pytest.mark.slow
@pytest.mark.mpi
@pytest.mark.parametrize("kind", ["training", "inference"])
def test_a_small_network(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workload = Workload(
        name="tiny",
        network="mlp",
        hyper={"widths": (256, 512, 10)},
        kind=kind,  # type: ignore[arg-type]
        threads=1,
        baselines=("jax",),
        batch=512,
        steps=6,
        window_steps=2,
        least=0.9,
    )
    prepare(workload, tmp_path / "w")
    found = profile(workload, tmp_path / "w")
    assert (found["workload"], found["kind"], found["threads"]) == ("tiny", kind, 1)
    assert found["attributed"] > 0.7
    assert 0.0 < found["covered"] < 1.5
    first = found["operators"][0]
    assert (first["op_type"], first["operator"] in ("dense1", "dense2")) == ("Gemm", True)
    directions = {o["direction"] for o in found["operators"] if o["op_type"] == "Gemm"}
    assert directions == ({"forward", "backward"} if kind == "training" else {"forward"})
    show(Result(profiles=[found]))
    assert "tiny, " + kind in capsys.readouterr().out
