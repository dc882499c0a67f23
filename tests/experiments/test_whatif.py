"""What-ifs on a small network: shapes, refusals, and directions that must hold."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from hpdlf.errors import PlanError, ProfileError
from hpdlf.experiments.whatif import whatif
from hpdlf.models.onnxpp import Onnxpp, import_model
from hpdlf.models.zoo import small


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Onnxpp:
    path = tmp_path_factory.mktemp("model") / "digits.onnx"
    onnx.save(small.digits_cnn(), path)
    return import_model(path, loss="softmax_xent")


def test_more_devices_are_faster_and_less_efficient(digits: Onnxpp, tmp_path: Path) -> None:
    found = whatif(digits, ["dgx-a100:2", "xeon-64:2"], [1, 8, 16], batch_per_device=64)
    frame = found.to_frame()
    assert len(frame) == 6
    gpus = frame[frame.cluster == "dgx-a100:2"]
    assert list(gpus.samples_per_s) == sorted(gpus.samples_per_s)
    assert list(gpus.efficiency) == sorted(gpus.efficiency, reverse=True)
    assert gpus.efficiency.iloc[0] == pytest.approx(1.0)
    assert (frame.samples_per_s_low.dropna() <= frame.samples_per_s.dropna()).all()
    refused = frame[frame.refused != ""]
    assert set(refused.cluster) == {"xeon-64:2"}
    assert set(refused.refused) == {"the cluster has 4 devices"}
    assert refused.samples_per_s.isna().all()
    found.plot().savefig(tmp_path / "w.png")
    assert (tmp_path / "w.png").stat().st_size > 10_000
    assert found.table().row_count == 6


def test_bad_requests(digits: Onnxpp) -> None:
    with pytest.raises(PlanError, match="at least 1"):
        whatif(digits, ["dgx-a100:2"], [0])
    with pytest.raises(ProfileError, match="dgx"):
        whatif(digits, ["dgx-a10"], [8])
