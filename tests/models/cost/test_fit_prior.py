import json
from pathlib import Path

import pytest

from hpdlf.errors import DataError
from hpdlf.models.cost.factors import PRIOR_FILE
from hpdlf.models.cost.fit_prior import derive, main

DATA = Path(__file__).parents[3].parent / "shared" / "data"


def test_a_known_ratio_is_found(tmp_path: Path) -> None:
    """A V100 that takes exactly three times the roofline for every convolution."""
    rows = ["op,device,src_split,B,in_channels,out_channels,kernel_size,input_hw,stride,padding,kernel,latency_ms"]
    floor_ms = 0.05
    for i in range(200):
        b, channels, side = 1 + i % 16, 64 * (1 + i % 7), 28 * (1 + i % 4)
        flops, words = 18.0 * b * side**2 * channels**2, 2.0 * b * side**2 * channels + 9 * channels**2
        roof_s = max(flops / 14.029e12, 4 * words / 900e9)
        rows.append(f"conv,V100-PCIE-32GB,train,{b},{channels},{channels},3,{side},1,1,k,{floor_ms + 3e3 * roof_s}")
    rows += [f"conv,V100-PCIE-32GB,train,1,1,1,3,1,1,1,k,{floor_ms}"] * 20
    (tmp_path / "neusight").mkdir()
    (tmp_path / "neusight" / "conv2d.csv").write_text("\n".join(rows))
    found = derive(tmp_path)["kinds"]["gpu"]["conv"]
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
