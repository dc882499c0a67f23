"""Figures of a comparison, worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hpdlf.errors import RunError
from hpdlf.experiments.benchmark_baselines import Measured
from hpdlf.experiments.benchmark_results import TOLERANCE, Result, compare, show
from hpdlf.experiments.benchmark_workloads import Workload

WORKLOAD = Workload(
    name="net",
    network="mlp",
    baselines=("eager", "compile"),
    batch=8,
    steps=8,
    window_steps=2,
    least=1.5,
    aim=2.0,
    threads=1,
)


def measured(*window_s: float, losses: tuple[float, ...] = (2.0, 1.0), peak_bytes: int = 100) -> Measured:
    return Measured(window_s=window_s, losses=losses, peak_bytes=peak_bytes)


def test_figures_are_medians() -> None:
    ours = [measured(1.0, 2.0, 9.0), measured(2.0, 2.0, 2.0, peak_bytes=150), measured(1.0, 1.0, 2.0)]
    theirs = [measured(4.0, 4.0, 4.0, peak_bytes=50), measured(3.0, 3.0, 4.0, peak_bytes=50), measured(4.0, 4.0, 1.0)]
    row, detail = compare(WORKLOAD, "eager", ours, theirs, others_cpu_share=0.25)
    assert row.ours_samples_per_s == 16 / 2.0
    assert row.baseline_samples_per_s == 16 / 4.0
    assert (row.ratio, detail.ratios) == (2.0, (2.0, 1.5, 4.0))
    assert (row.ours_peak_bytes, row.baseline_peak_bytes, row.memory_ratio) == (100, 50, 2.0)
    assert (detail.least, detail.aim, detail.others_cpu_share) == (1.5, 2.0, 0.25)
    assert detail.loss_difference == 0.0


def test_nothing_is_promised_beside_the_second_baseline() -> None:
    _, detail = compare(WORKLOAD, "compile", [measured(1.0)], [measured(1.0)])
    assert (detail.least, detail.aim, detail.baseline) == (None, None, "torch.compile")
    predicting = replace(WORKLOAD, kind="inference", baselines=("onnxruntime", "eager"))
    ours, theirs = [measured(1.0, losses=())], [measured(1.0, losses=())]
    wanted = {b: compare(predicting, b, ours, theirs)[1].least for b in predicting.baselines}
    assert wanted == {"onnxruntime": 1.5, "eager": None}


@pytest.mark.parametrize("loss", [1.0 + 2 * TOLERANCE, float("nan"), float("inf")])
def test_other_losses_are_refused(loss: float) -> None:
    with pytest.raises(RunError, match=r"net: the losses differ from those of PyTorch eager .* cannot be compared"):
        compare(WORKLOAD, "eager", [measured(1.0, losses=(2.0, loss))], [measured(1.0)])


def test_other_predictions_are_refused() -> None:
    ours, theirs = [measured(1.0, losses=())], [measured(1.0, losses=())]
    with pytest.raises(RunError, match="the losses differ"):
        compare(WORKLOAD, "eager", ours, theirs, predicted=float("nan"))
    assert compare(WORKLOAD, "eager", ours, theirs, predicted=1e-6)[1].loss_difference == 1e-6


def test_people_see_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    row, detail = compare(WORKLOAD, "eager", [measured(0.01)], [measured(0.02)])
    result = Result(rows=[row], details=[detail], skipped=[{"workload": "other", "reason": "no compiler [here]"}])
    show(result)
    said = capsys.readouterr().out
    for part in ("net", "PyTorch eager", "1,600", "2.00", "≥ 1.5, aim 2.0", "Left out: other. no compiler [here]."):
        assert part in said
    assert "Inference" not in said
