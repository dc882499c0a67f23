"""The table of how well times between measured sizes are predicted: on made-up series that are exactly a line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpdlf.experiments.validate_interpolation import main, validate


@pytest.fixture
def made_up(tmp_path: Path) -> Path:
    """Matrix products of 20 us and 1 us a row."""
    (tmp_path / "neusight").mkdir()
    lines = ["device,op,B,M,N,K,src_split,kernel,latency_ms"]
    for k in (512, 1024, 2048):
        lines += [f"V100-PCIE-32GB,linear,1,{m},1024,{k},train,x,{0.02 + 0.001 * m}" for m in (16, 64, 256, 1024, 4096)]
    (tmp_path / "neusight" / "gemm.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_what_is_a_line_is_met_between_and_intervals_hold(made_up: Path) -> None:
    rows = {(row["model"], row["way"]): row for row in validate(made_up)}
    for model in ("roofline", "regression"):
        assert rows[model, "a straight line"]["p90_ape"] < 1e-6
        assert rows[model, "between"]["median_ape"] < 0.05
        assert rows[model, "between"]["median_ape"] < rows[model, "the model alone"]["median_ape"]
        assert rows[model, "between"]["coverage90"] > 0.7


def test_the_command_writes_the_rows(made_up: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.json"
    assert main([str(made_up), "--json", str(file)]) == 0
    assert len(json.loads(file.read_text())["rows"]) == 12
    assert "between" in capsys.readouterr().out
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "nowhere: holds no neusight" in capsys.readouterr().err
