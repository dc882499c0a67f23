"""The benchmark of the executor: what it compares, when it refuses, and that a small one runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hpdlf.exec.environment import compilation_cache
from hpdlf.experiments import benchmark_executor
from hpdlf.experiments.benchmark_executor import WORKLOADS, Workload, benchmark, main

TINY = Workload(
    name="tiny",
    network="mlp",
    hyper={"widths": (8, 16, 4)},
    threads=1,
    baselines=("jax",),
    batch=16,
    steps=6,
    window_steps=2,
    least=0.9,
)


def test_the_table_has_what_was_promised() -> None:
    eager = {w.name: (w.least, w.aim) for w in WORKLOADS if w.baselines[0] == "eager"}
    assert eager == {
        "mlp 3x2048": (1.5, 2.0),
        "gpt 4x512": (1.1, 1.3),
        "resnet18 64": (1.0, 1.3),
        "resnet18 224": (0.8, 1.1),
        "resnet50 224": (0.8, 1.1),
        "mobilenet_v3 224": (0.8, 1.1),
        "unet 128": (0.8, 1.1),
        "bert_base 128": (0.8, 1.1),
    }
    ddp = [w for w in WORKLOADS if w.baselines == ("ddp",)]
    assert {w.name for w in ddp} == set(eager)
    assert {(w.ranks, w.cores, w.aim) for w in ddp} == {(2, 1, 1.5)}
    assert {w.least for w in ddp if "224" in w.name} == {1.0}
    assert {w.least for w in ddp if "224" not in w.name} == {1.2}
    inference = {w.name: (w.least, w.aim, w.batch) for w in WORKLOADS if w.kind == "inference"}
    assert inference == {"resnet50 224": (0.6, 1.0, 8), "bert_base 128": (0.6, 1.0, 8)}
    assert {w.baselines for w in WORKLOADS if w.kind == "inference"} == {("onnxruntime", "eager")}
    assert all(w.steps >= 3 * w.window_steps for w in WORKLOADS)


@pytest.mark.slow
@pytest.mark.mpi
def test_a_small_training_is_compared(tmp_path: Path) -> None:
    said: list[str] = []
    result = benchmark([TINY], repeats=2, folder=tmp_path, tell=said.append)
    assert (result.skipped, result.failed) == ([], [])
    (row,), (detail,) = result.rows, result.details
    assert (row.workload, row.ranks, row.threads, row.baseline, row.kind) == (
        "tiny",
        1,
        1,
        "hand-written JAX",
        "training",
    )
    assert row.ratio == pytest.approx(row.ours_samples_per_s / row.baseline_samples_per_s)
    assert row.memory_ratio == pytest.approx(row.ours_peak_bytes / row.baseline_peak_bytes)
    assert len(detail.ratios) == 2
    assert detail.loss_difference < 1e-5
    assert json.loads(json.dumps(result.to_dict()))["rows"][0]["ratio"] == row.ratio
    assert "tiny: repeat 2 of 2" in said


@pytest.mark.slow
@pytest.mark.mpi
@pytest.mark.parametrize("chosen", [None, "/somewhere"])
def test_code_that_was_compiled_before_is_not_found(
    chosen: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HPDLF_CACHE", raising=False)
    if chosen:
        monkeypatch.setenv("HPDLF_CACHE", chosen)
    usual, own = compilation_cache(), tmp_path / "compiled0"
    with benchmark_executor._nothing_compiled_before(own):
        assert own in compilation_cache().parents
        compilation_cache().mkdir(parents=True)
    assert compilation_cache() == usual
    assert not own.exists()


def test_what_does_not_compute_the_same_has_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The baseline trains with another rate."""
    from hpdlf.experiments.benchmark_baselines import Job
    from hpdlf.experiments.benchmark_workloads import prepare

    def spoiled(workload: Workload, folder: Path, *, tune_s: float) -> None:
        prepare(workload, folder, tune_s=tune_s)
        replace(Job.read(folder), learning_rate=1.0).write(folder)

    monkeypatch.setattr(benchmark_executor, "prepare", spoiled)
    result = benchmark([TINY], repeats=1, folder=tmp_path, tidy=True)
    assert result.rows == []
    (failed,) = result.failed
    assert failed["workload"] == "tiny, beside hand-written JAX"
    assert "their speeds cannot be compared" in failed["reason"]
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_prepared_is_told(tmp_path: Path) -> None:
    result = benchmark([replace(TINY, batch=15, ranks=2)], repeats=1, folder=tmp_path)
    assert result.rows == []
    assert [f["workload"] for f in result.failed] == ["tiny, 2 ranks"]
    assert "15" in result.failed[0]["reason"]


def test_missing_baselines_are_left_out_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_executor, "find_spec", lambda name: None)
    result = benchmark([replace(TINY, baselines=("eager", "ddp", "onnxruntime"))], folder=tmp_path)
    assert (result.rows, result.failed) == ([], [])
    assert [s["workload"] for s in result.skipped] == [
        "tiny, beside PyTorch eager",
        "tiny, beside PyTorch DDP",
        "tiny, beside onnxruntime",
    ]
    assert "PyTorch is not installed, and it is the baseline: `pip install 'hpdlf[benchmark]'`" in {
        s["reason"] for s in result.skipped
    }


def test_compiling_wants_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_executor, "find_spec", lambda name: object())
    monkeypatch.setattr(benchmark_executor.shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    assert "C++ compiler" in benchmark_executor._missing("compile")
    assert benchmark_executor._missing("eager") == ""
    monkeypatch.setattr(benchmark_executor.shutil, "which", lambda name: name if name == "icpx" else None)
    monkeypatch.setenv("CXX", "icpx")
    assert benchmark_executor._missing("compile") == ""


def test_the_command_chooses(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked: dict[str, object] = {}

    def benchmark(workloads: list[Workload], **options: object) -> benchmark_executor.Result:
        asked.update(options, workloads=workloads)
        return benchmark_executor.Result(failed=[{"workload": "a", "reason": "b"}])

    monkeypatch.setattr(benchmark_executor, "benchmark", benchmark)
    chosen = ["--workload", "resnet50 224", "--ranks", "1", "--kind", "training", "--baseline", "eager"]
    assert main(["--json", "--quick", *chosen]) == 1
    (only,) = asked["workloads"]  # type: ignore[misc]
    assert (only.name, only.baselines, only.steps, asked["repeats"]) == ("resnet50 224", ("eager",), 4, 1)
    assert json.loads(capsys.readouterr().out)["failed"] == [{"workload": "a", "reason": "b"}]
    for wrong in (["--repeats", "0"], ["--workload", "resnet50 224", "--ranks", "7"], ["--workload", "resnet51"]):
        with pytest.raises(SystemExit):
            main(wrong)
