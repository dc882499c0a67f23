"""The table of accuracy: its rows on made-up measurements, and its promises on the published ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpdlf.errors import DataError
from hpdlf.experiments.published.allreduce import SYSTEMS, read_collectives
from hpdlf.experiments.validate_collectives import main, validate
from hpdlf.models.cost.fit_links import Timed, predicted_s

DATA = Path(__file__).parents[2].parent / "shared" / "data"
HEADER = "gpu,n_gpus,bytes,out_of_place_us,out_of_place_busbw_GBps,in_place_us,in_place_busbw_GBps\n"


@pytest.fixture
def made_up(tmp_path: Path) -> Path:
    """What the shipped profile of NVLink 3 says, as a table of nccl-tests, 4 % slower."""
    system = SYSTEMS["vtrain", "A100"]
    lines = []
    for ranks in (2, 4, 8):
        for power in range(20, 31):
            timed = Timed("all_reduce", 2.0**power, ranks, 1.0)
            lines.append(f"A100,{ranks},{2**power},{1.04e6 * predicted_s(timed, system.cluster(timed))},0,0,0")
    (tmp_path / "vtrain").mkdir()
    (tmp_path / "vtrain" / "allreduce_nccl_intranode.csv").write_text(HEADER + "\n".join(lines) + "\n")
    return tmp_path


def test_rows_say_how_far_off_which_system_is(made_up: Path) -> None:
    rows = validate(made_up, ["shipped"])
    assert [(row["system"], row["ranks"], row["n"]) for row in rows] == [("A100", p, 11) for p in (2, 4, 8)]
    for row in rows:
        assert row["median_ape"] == pytest.approx(1 - 1 / 1.04, rel=1e-3)
        assert row["bias"] == pytest.approx(1 / 1.04 - 1, rel=1e-3)
        assert row["coverage90"] == 1.0


def test_a_link_fitted_on_other_numbers_of_ranks_is_close(made_up: Path) -> None:
    assert max(row["median_ape"] for row in validate(made_up, ["ranks"])) < 0.15


def test_the_command_writes_the_rows(made_up: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.json"
    assert main([str(made_up), "--case", "shipped", "--json", str(file)]) == 0
    assert len(json.loads(file.read_text())["rows"]) == 3
    assert "median   3.8%" in capsys.readouterr().out


def test_folders_without_tables_and_damaged_tables_are_refused(made_up: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds none of"):
        read_collectives(tmp_path / "nowhere")
    (made_up / "vtrain" / "allreduce_nccl_intranode.csv").write_text("gpu,bytes\nA100,12\n")
    with pytest.raises(DataError, match="no table of measured collectives"):
        read_collectives(made_up)
    assert main([str(tmp_path / "nowhere")]) == 2


@pytest.mark.skipif(not DATA.is_dir(), reason="the public measurements (../shared/data) are not here")
def test_known_systems_are_predicted_within_five_percent() -> None:
    rows = [r for r in validate(DATA, ["shipped"]) if r["what"].endswith(("NCCL", "NCCL 2.0")) and r["ranks"] <= 8]
    assert {row["system"] for row in rows} >= {"A100", "V100", "1080Ti", "M40", "P100"}
    assert max(row["median_ape"] for row in rows) < 0.05
    assert min(row["coverage90"] for row in rows) > 0.8
