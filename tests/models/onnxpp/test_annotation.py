from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from hpdlf.errors import ModelError
from hpdlf.models.onnxpp import Onnxpp, annotate, annotation, import_model, load_onnxpp, save_onnxpp


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


def model_metadata(key: str, value: str | None) -> Callable[[onnx.ModelProto], None]:
    """Sets one entry, or takes it out."""

    def change(model: onnx.ModelProto) -> None:
        others = [p for p in model.metadata_props if p.key != key]
        del model.metadata_props[:]
        model.metadata_props.extend(others)
        if value is not None:
            model.metadata_props.add(key=key, value=value)

    return change


def node_metadata(key: str, value: str) -> Callable[[onnx.ModelProto], object]:
    return lambda model: model.graph.node[0].metadata_props.add(key=key, value=value)


DAMAGED: list[tuple[str, Callable[[onnx.ModelProto], object]]] = [
    (r"hpdlf.parameters: '\[' is no JSON list of names", model_metadata("hpdlf.parameters", "[")),
    ("hpdlf.parameters: .* is no JSON list", model_metadata("hpdlf.parameters", "[" * 100_000)),
    ("hpdlf.targets: '{}' is no JSON list", model_metadata("hpdlf.targets", "{}")),
    (
        "no constant tensor 'conv1.weigth'; did you mean conv1.weight",
        model_metadata("hpdlf.parameters", '["conv1.weigth"]'),
    ),
    ("'conv1.weight' occurs twice", model_metadata("hpdlf.parameters", '["conv1.weight", "conv1.weight"]')),
    ("no input 'lables'; did you mean labels", model_metadata("hpdlf.targets", '["lables"]')),
    ("no output 'lose'; did you mean loss", model_metadata("hpdlf.loss", "lose")),
    ("'logits' is no scalar", model_metadata("hpdlf.loss", "logits")),
    ("hpdlf.parametres is unknown; did you mean parameters", model_metadata("hpdlf.parametres", "[]")),
    ("hpdlf.original is missing", model_metadata("hpdlf.original", None)),
    ("'beef' is no SHA-256", model_metadata("hpdlf.source.sha256", "beef")),
    ("'-1' is no number of samples", model_metadata("hpdlf.fixed_batch", "-1")),
    ("has format '2', this version reads '1'", model_metadata("hpdlf.format", "2")),
    ("hpdlf.loss occurs 2 times", lambda m: m.metadata_props.add(key="hpdlf.loss", value="loss")),
    ("hpdlf.lowering is unknown", node_metadata("hpdlf.lowering", "im2col")),
    ("hpdlf.family occurs twice", node_metadata("hpdlf.family", "conv")),
    ("no family 'convv'; did you mean conv", lambda m: setattr(m.graph.node[0].metadata_props[0], "value", "convv")),
    ("no configuration 'pp'", node_metadata("hpdlf.segment.pp", "0")),
    ("'often' is no number of FLOPs", lambda m: setattr(m.graph.node[0].metadata_props[1], "value", "often")),
    ("hpdlf.trips", node_metadata("hpdlf.trips", "often")),
]


@pytest.mark.parametrize(("message", "damage"), DAMAGED, ids=[m for m, _ in DAMAGED])
def test_damaged_metadata_is_refused(
    message: str, damage: Callable[[onnx.ModelProto], object], small_file: Path, tmp_path: Path
) -> None:
    model = onnx.load(small_file)
    damage(model)
    onnx.save(model, tmp_path / "pp.onnx")
    for read in (load_onnxpp, import_model):
        with pytest.raises(ModelError, match=message):
            read(tmp_path / "pp.onnx")


def test_a_place_of_ours_that_is_damaged_is_refused(small: Onnxpp, tmp_path: Path) -> None:
    stages = cut(small, 5)
    placed = annotate(small, configuration="p", stages=stages, segments=dict.fromkeys(stages, "s"), n_devices=2)
    node = placed.proto.graph.node[0]
    node.device_configurations[0].pipeline_stage = -1
    del placed.proto.graph.node[1].device_configurations[:]
    placed.proto.graph.node[2].device_configurations[0].configuration_id = "q"
    save_onnxpp(placed, tmp_path / "pp.onnx")
    with pytest.raises(ModelError) as caught:
        load_onnxpp(tmp_path / "pp.onnx")
    for part in (
        f"node {node.name!r}, configuration 'p': pipeline stage -1, stages count from 0",
        "does not place 2 operators",
        "stages [-1, 0, 1], expected 0 to at most 1 without a gap",
        "no configuration 'q'",
        "hpdlf.segment.p without a place in that configuration",
    ):
        assert part in str(caught.value)
