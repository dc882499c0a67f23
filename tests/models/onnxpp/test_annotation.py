from pathlib import Path

import onnx
import pytest

from hpdlf.errors import ModelError
from hpdlf.models.onnxpp import Onnxpp, annotate, annotation, load_onnxpp, save_onnxpp


def cut(model: Onnxpp, at: int) -> dict[str, int]:
    return {o.name: int(i >= at) for i, o in enumerate(model.graph.operators)}


def test_round_trip_through_the_standard_places(small: Onnxpp, tmp_path: Path) -> None:
    stages = cut(small, 5)
    segments = {name: f"s{stage}" for name, stage in stages.items()}
    placed = annotate(small, configuration="plan-1", stages=stages, segments=segments, n_devices=4)
    placed = annotate(placed, configuration="plan-2", stages=dict.fromkeys(stages, 0), segments=segments, n_devices=1)
    save_onnxpp(placed, tmp_path / "pp.onnx")
    onnx.checker.check_model(str(tmp_path / "pp.onnx"), full_check=True)
    loaded = load_onnxpp(tmp_path / "pp.onnx")
    found = annotation(loaded, "plan-1")
    assert {name: p.stage for name, p in found.items()} == stages
    assert {name: p.segment for name, p in found.items()} == segments
    assert list(found) == [o.name for o in small.graph.operators]
    assert [(c.name, c.num_devices) for c in loaded.proto.configuration] == [("plan-1", 4), ("plan-2", 1)]
    assert not small.proto.configuration
    again = annotate(placed, configuration="plan-1", stages=cut(small, 3), segments=segments, n_devices=2)
    assert {name: p.stage for name, p in annotation(again, "plan-1").items()} == cut(small, 3)
    with pytest.raises(ModelError, match=r"did you mean .*plan-1"):
        annotation(loaded, "plan-l")


def test_unsound_placements_are_refused(small: Onnxpp) -> None:
    stages = cut(small, 5)
    segments = dict.fromkeys(stages, "s")
    with pytest.raises(ModelError, match="stages must not go back"):
        annotate(small, configuration="p", stages={n: 1 - s for n, s in stages.items()}, segments=segments, n_devices=2)
    with pytest.raises(ModelError, match="without a gap"):
        annotate(small, configuration="p", stages={n: 2 * s for n, s in stages.items()}, segments=segments, n_devices=4)
    with pytest.raises(ModelError, match="at most 0 without a gap"):
        annotate(small, configuration="p", stages=stages, segments=segments, n_devices=1)
    del stages["conv1"]
    with pytest.raises(ModelError) as caught:
        annotate(small, configuration="p", stages={**stages, "conv7": 0}, segments=segments, n_devices=2)
    assert "no operator 'conv7'; did you mean" in str(caught.value)
    assert "1 operators are left out, 'conv1' first" in str(caught.value)
