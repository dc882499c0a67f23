"""Fitting on tables made here, whose truth is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hpdlf.errors import DataError
from hpdlf.experiments import fit_operator_times as fitting
from hpdlf.experiments.fit_operator_times import fit, main
from hpdlf.hwprofiles import load_device
from hpdlf.models.cost.operator_times import OperatorTimes, save
from hpdlf.models.cost.traits import traits_of

DEVICES = ("V100-PCIE-32GB", "T4", "A100-PCIE-80GB")


def seconds(device: str, m: int, n: int, k: int) -> float:
    """Two thirds of the sustained rate, but for matrices that do not fill their tiles; at least 50 us."""
    traits = traits_of(load_device(device))
    utilisation = 0.66 * (m / (128 * np.ceil(m / 128))) * (n / (128 * np.ceil(n / 128)))
    roof_s = max(2.0 * m * n * k / traits.matrix_flops_per_s, 4.0 * (m * k + k * n + m * n) / traits.bandwidth_bytes_per_s)
    return max(roof_s / utilisation, 5e-5)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tables")
    rng = np.random.default_rng(0)
    rows = ["op,device,src_split,B,M,N,K,kernel,latency_ms"]
    for device in DEVICES:
        for m, n, k in rng.integers(16, 4096, size=(700 if device == "T4" else 300, 3)):
            rows.append(f"linear,{device},train,1,{m},{n},{k},k,{1e3 * seconds(device, m, n, k)}")
    (folder / "neusight").mkdir()
    (folder / "neusight" / "gemm.csv").write_text("\n".join(rows))
    return folder


def test_the_truth_is_found_also_for_a_chip_that_was_left_out(
    tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for settings in ("GENERAL", "PARTICULAR"):
        monkeypatch.setattr(fitting, settings, {**getattr(fitting, settings), "max_iter": 40})
    monkeypatch.setattr(fitting, "MANY", 600)
    model = fit(tables)
    assert set(model.general) == {"product"}
    assert set(model.particular) == {("product", "pytorch", "T4")}
    assert {key[2] for key in model.offsets} == {"V100-PCIE-32", "A100-PCIE-80"}
    whole = {(r["left_out"], r["device"]): r for r in model.report if r["op"] == "all"}
    for device in DEVICES:
        assert whole["device left out", device]["median_ape"] < 0.08
        assert whole["device left out", device]["coverage90"] > 0.7
    assert whole["shapes left out", "T4"]["median_ape"] < 0.06
    # The same tables give the same bytes.
    for name in ("one.npz", "two.npz"):
        save(model if name == "one.npz" else fit(tables), tmp_path / name)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    again = OperatorTimes.load(tmp_path / "one.npz")
    assert [dict(row) for row in again.report] == [dict(row) for row in model.report]


def test_a_folder_without_tables_is_refused_and_nothing_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match="none of the published tables"):
        fit(tmp_path)
    assert main([str(tmp_path), "-o", str(tmp_path / "out.npz")]) == 2
    assert "none of the published tables" in capsys.readouterr().err
    assert not (tmp_path / "out.npz").exists()
