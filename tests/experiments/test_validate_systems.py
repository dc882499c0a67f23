"""The validation of whole systems: on a made-up table, and its promises on the published one."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from hpdlf.experiments.published.system_cases import read_cases
from hpdlf.experiments.system_scores import score
from hpdlf.experiments.validate_systems import main, validate

TABLE = Path(__file__).parents[2].parent / "shared" / "data" / "system_cases_dev.csv"
GPT = {"model": "GPT", "layers": 2, "hidden": 256, "heads": 4, "seq_len": 128, "vocab": 1000, "precision": "bf16"}
RESNET = {
    "model": "ResNet-50 v1.5",
    "framework": "mxnet",
    "precision": "fp32",
    "hardware": "V100",
    "devices_per_node": 8,
}
IMAGES = {"measured_quantity": "throughput", "unit": "images/s"}
ROWS = (
    {**RESNET, "case_id": "one", "n_devices": 1, "global_batch": 64, **IMAGES, "measured_value": 380},
    {**RESNET, "case_id": "eight", "n_devices": 8, "global_batch": 512, **IMAGES, "measured_value": 2900},
    {**GPT, "case_id": "stages", "hardware": "A100-SXM4-80GB", "devices_per_node": 8, "n_devices": 8, "tp": 2, "pp": 2, "dp": 2,
     "microbatch": 1, "global_batch": 8, "measured_quantity": "iteration_time", "measured_value": 0.02, "unit": "s"},
    {**GPT, "case_id": "forward", "hardware": "A100-SXM4-80GB", "devices_per_node": 8, "n_devices": 1, "global_batch": 4,
     "measured_quantity": "inference_latency", "measured_value": 0.002, "unit": "s"},
    {**GPT, "case_id": "passes", "hardware": "A100-SXM4-80GB", "devices_per_node": 8, "n_devices": 1, "global_batch": 4,
     "measured_quantity": "train_fwd_bwd_latency", "measured_value": 0.006, "unit": "s"},
    {**GPT, "case_id": "flops", "hardware": "A100-SXM4-80GB", "devices_per_node": 8, "n_devices": 8, "global_batch": 64, "microbatch": 8,
     "recompute": "full", "measured_quantity": "achieved_flops_per_device", "measured_value": 20, "unit": "TFLOP/s"},
    {**RESNET, "case_id": "run", "n_devices": 8, "global_batch": 512, "round": "v0.7", "samples_to_stop": 4e7,
     "measured_quantity": "time_to_train", "measured_value": 14000, "unit": "s"},
    {**RESNET, "case_id": "unknown", "model": "Oracle", "n_devices": 1, **IMAGES, "measured_value": 1},
    {**RESNET, "case_id": "broken", "n_devices": "many", **IMAGES, "measured_value": 1},
    {**RESNET, "case_id": "strange", "n_devices": 1, "measured_quantity": "accuracy", "measured_value": 0.76, "unit": "1"},
)  # fmt: skip


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("cases") / "cases.csv"
    columns = ["source", "group", "weight", *dict.fromkeys(key for row in ROWS for key in row)]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows({"source": "made up", "group": "other", "weight": 1, **row} for row in ROWS)
    return path


@pytest.fixture(scope="module")
def rows(table):
    return {row.case.case_id: row for row in validate(read_cases(table))}


def test_every_kind_of_row_is_simulated(rows):
    for name in ("one", "eight", "stages", "forward", "passes", "flops", "run"):
        row = rows[name]
        assert row.refused is None, (name, row.refused)
        assert 0.0 < row.low <= row.predicted <= row.high
        assert abs(row.error) < 5.0, name


def test_rows_hang_together(rows):
    assert 6.0 < rows["eight"].predicted / rows["one"].predicted <= 8.0
    assert 0.2 < rows["forward"].predicted / rows["passes"].predicted < 0.5
    steps_s = 4e7 / rows["eight"].predicted
    assert steps_s < rows["run"].predicted < 1.05 * steps_s
    assert rows["stages"].peak_bytes > 0


def test_a_row_that_cannot_be_is_refused_in_a_sentence_and_stops_nobody(rows):
    assert "no network for 'Oracle'" in rows["unknown"].refused
    assert "'n_devices' is 'many'" in rows["broken"].refused
    assert "'accuracy' is nothing that is simulated" in rows["strange"].refused
    assert all("\n" not in row.refused for row in rows.values() if row.refused)


def test_the_command_writes_the_table_as_json(table, capsys):
    assert main([str(table), "--json", "--jobs", "1"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [row["case_id"] for row in report["rows"]] == [row["case_id"] for row in ROWS]
    assert list(report["rows"][0]) == ["case_id", "group", "measured", "predicted", "low", "high", "ape", "refused"]
    (group,) = report["groups"]
    assert {"group", "rows", "refused", "median_ape", "p90_ape", "bias", "coverage90", "relative_width"} == set(group)
    assert (group["rows"], group["refused"]) == (10, 3)


def test_the_command_prints_tables(table, capsys):
    assert main([str(table), "--only", "eight", "--rows", "--jobs", "1"]) == 0
    said = capsys.readouterr().out
    assert "dgx-1-v100:1: data 8" in said
    assert "mean_over_sources" in said


def test_a_missing_table_is_told(capsys, tmp_path):
    assert main([str(tmp_path / "none.csv")]) == 2
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not TABLE.exists(), reason="needs the published table")
def test_published_systems():
    cases = read_cases(TABLE)
    rows = validate([case for case in cases if case.case_id.startswith(("dle-0", "vtrain-00", "neusight-01"))])
    overall = score(rows)["overall"]
    assert overall["refused"] == 0
    assert overall["median_ape"] < 0.2
