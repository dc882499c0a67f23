import json
from pathlib import Path

import pytest

from hpdlf.errors import DataError
from hpdlf.experiments.fit_prior import derive, main
from hpdlf.models.cost.factors import PRIOR_FILE

DATA = Path(__file__).parents[2].parent / "shared" / "data"


def test_a_known_ratio_is_found(tmp_path: Path) -> None:
    """A processor that takes exactly three times the roofline for every product, behind a floor of 0.05 ms."""
    rows = ["device,mode,precision,application,M,N,K,transA,transB,time_ms"]
    floor_ms = 0.05
    for i in range(200):
        m, n, k = 512 * (1 + i % 7), 256 * (1 + i % 5), 1024 * (1 + i % 3)
        roof_s = max(2.0 * m * n * k / 6.09e12, 4.0 * (m * k + k * n + m * n) / 400e9)
        rows.append(f"KNL7250,train,fp32,,{m},{n},{k},N,N,{floor_ms + 3e3 * roof_s}")
    rows += [f"KNL7250,train,fp32,,1,1,1,N,N,{floor_ms}"] * 20
    (tmp_path / "deepbench").mkdir()
    (tmp_path / "deepbench" / "gemm.csv").write_text("\n".join(rows))
    found = derive(tmp_path)["kinds"]["cpu"]["matmul"]
    assert found["value"] == pytest.approx(3.0, rel=0.01)
    assert found["devices"] == 1


def test_a_folder_without_data_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match="none of the data sets"):
        derive(tmp_path)
    assert main([str(tmp_path), "-o", str(tmp_path / "out.json")]) == 2
    assert not (tmp_path / "out.json").exists()


@pytest.mark.skipif(not DATA.is_dir(), reason="the public measurements (../shared/data) are not here")
def test_the_shipped_factors_are_what_the_data_give() -> None:
    assert derive(DATA) == json.loads(PRIOR_FILE.read_text())
