"""Validation against tables laid out like the published ones, made here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpdlf.errors import DataError
from hpdlf.experiments.scoring import summarise
from hpdlf.experiments.validate_operators import main, validate
from hpdlf.hwprofiles import load_device
from hpdlf.models.cost.operator_times import OperatorTimes

FIELDS = {
    "file", "device", "op", "n", "refused", "median_ape", "p90_ape", "bias", "spearman", "coverage90", "relative_width",
}  # fmt: skip


def write(folder: Path, name: str, header: str, *rows: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n")


def gemm(folder: Path, *rows: str) -> None:
    write(folder, "neusight/gemm.csv", "op,device,src_split,B,M,N,K,kernel,latency_ms", *rows)


LAYERS = "device,case,op,op_name,input_shapes,output_shape,count,fwd_ms_mean,bwd_ms_mean"


def test_scores_in_closed_form() -> None:
    row = summarise(
        file="f", device="d", op="o", measured=[1.0, 2.0, 4.0], predicted=[1.5, 2.0, 3.0], low=[1.2, 1.0, 2.0],
        high=[2.0, 3.0, 6.0], refused={"no peak": 1},
    )  # fmt: skip
    assert set(row) == FIELDS
    assert row["n"] == 4
    assert row["median_ape"] == pytest.approx((0.25 + 0.5) / 2)  # of 0, 0.25, 0.5 and the refused one's 1
    assert row["bias"] == pytest.approx(0.0)
    assert row["spearman"] == pytest.approx(1.0)
    assert row["coverage90"] == pytest.approx(2 / 3)
    assert row["relative_width"] == pytest.approx(1.0)


def test_rows_say_what_was_refused_and_why(tmp_path: Path) -> None:
    gemm(
        tmp_path,
        "linear,V100-PCIE-32GB,test,1,4096,4096,4096,k,11.0",
        "linear,V100-PCIE-32GB,test,1,2048,2048,2048,k,1.5",
        "linear,Abacus-9,test,1,64,64,64,k,9.0",
    )
    rows = {row["device"]: row for row in validate(tmp_path)["rows"]}
    known, unknown = rows["V100-PCIE-32GB"], rows["Abacus-9"]
    assert known["n"] == 2
    assert known["refused"] == {}
    assert known["median_ape"] < 0.2
    assert unknown["median_ape"] == 1.0
    ((reason, count),) = unknown["refused"].items()
    assert count == 1
    assert "Abacus-9" in reason


def test_a_device_that_was_never_measured_is_predicted_with_a_wider_interval(tmp_path: Path) -> None:
    gemm(
        tmp_path,
        "linear,H100-SXM5-80GB,test,1,8192,8192,8192,k,22.0",
        "linear,A100-PCIE-40GB,test,1,8192,8192,8192,k,70.0",
    )
    rows = {row["device"]: row for row in validate(tmp_path)["rows"]}
    assert rows["H100-SXM5-80GB"]["refused"] == {}
    assert rows["H100-SXM5-80GB"]["relative_width"] > rows["A100-PCIE-40GB"]["relative_width"]


def test_a_network_is_the_sum_over_its_operators_as_often_as_they_are_counted(tmp_path: Path) -> None:
    write(
        tmp_path, "neusight/model_layers.csv", LAYERS,
        'T4,net-inf-128-2,call_function,addmm,"[[768], [256, 768], [768, 768]]","(256, 768)",3,0.2,0.0',
        'T4,net-inf-128-2,call_function,softmax,"[[24, 128, 128]]","(24, 128, 128)",1,0.05,0.0',
        'T4,net-train-128-2,call_module,lm_head,"[[2, 128, 768]]","(2, 128, 50257)",1,6.0,12.0',
    )  # fmt: skip
    inference, training = validate(tmp_path)["networks"]
    assert (inference["case"], inference["phase"]) == ("net-inf-128-2", "inference")
    assert inference["measured_s"] == pytest.approx(3 * 0.2e-3 + 0.05e-3)
    assert training["phase"] == "training"
    assert training["measured_s"] == pytest.approx(18e-3)
    # The head's forward product and both gradients have the same multiply-adds each.
    times = OperatorTimes.default()
    from hpdlf.experiments.published.neusight import layer_rows

    head = next(r for r in layer_rows(tmp_path) if r.op == "lm_head")
    said = times.times((*head.forward, *head.backward), load_device("T4"), context="network").seconds
    assert training["predicted_s"] == pytest.approx(said.sum())


def test_a_folder_without_tables_and_a_table_without_columns_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError, match="none of the tables"):
        validate(tmp_path)
    write(tmp_path, "neusight/gemm.csv", "device,B,M,N", "T4,1,2,3")
    assert main([str(tmp_path)]) == 2
    assert "has no column op, K, latency_ms" in capsys.readouterr().err
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "is no folder" in capsys.readouterr().err


def test_json_is_the_report_and_the_table_names_every_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gemm(tmp_path, "bmm,P100-PCIE-16GB,test,16,512,512,64,k,0.2")
    assert main([str(tmp_path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report) == {"rows", "networks"}
    assert set(report["rows"][0]) == FIELDS
    assert main([str(tmp_path)]) == 0
    assert "P100-PCIE-16GB" in capsys.readouterr().out
