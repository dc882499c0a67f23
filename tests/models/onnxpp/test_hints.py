"""Hints in the file: round trips, the graph that they make, and everything that a damaged one can be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from hpdlf.errors import ModelError
from hpdlf.models.onnxpp import Onnxpp, annotate, import_model, load_onnxpp, save_onnxpp
from hpdlf.models.onnxpp.hints import DIRECTIONS, WAYS, Hint, hints_of, with_hints, with_lowering

MEASURED = Hint(way="im2col", seconds=0.25, source="measured", detail={"machine": "abc", "threads": 2, "time": "2026"})
MODELLED = Hint(way="taps", detail={"shape": "conv 1x1"})


def placed_in(model: Onnxpp, *names: str) -> Onnxpp:
    stages = dict.fromkeys((o.name for o in model.graph.operators), 0)
    for name in names:
        model = annotate(model, configuration=name, stages=stages, segments=dict.fromkeys(stages, "s"), n_devices=1)
    return model


def test_hints_come_back_and_reach_the_graph(small: Onnxpp, tmp_path: Path) -> None:
    placed = placed_in(small, "p", "q")
    told = {"conv1": {"forward": MEASURED, "weight": MODELLED}}
    hinted = with_hints(with_hints(placed, "q", {"conv1": {"input": MODELLED}}), "p", told)
    save_onnxpp(hinted, tmp_path / "pp.onnx")
    onnx.checker.check_model(str(tmp_path / "pp.onnx"), full_check=True)
    loaded = load_onnxpp(tmp_path / "pp.onnx")
    assert hints_of(loaded, "p") == told
    assert hints_of(loaded, "q") == {"conv1": {"input": MODELLED}}
    assert loaded.graph.operator["conv1"].lowering == {}
    chosen = with_lowering(loaded, "p").graph
    assert chosen.operator["conv1"].lowering == {"forward": "im2col", "weight": "taps"}
    assert all(not o.lowering for o in chosen.operators if o.name != "conv1")
    assert with_lowering(with_lowering(loaded, "p"), "q").graph.operator["conv1"].lowering == {"input": "taps"}
    assert hints_of(placed, "p") == {}
    assert replace(chosen, operators=loaded.graph.operators) == loaded.graph


def test_importing_again_keeps_hints(small: Onnxpp, tmp_path: Path) -> None:
    save_onnxpp(with_hints(placed_in(small, "p"), "p", {"conv1": {"forward": MEASURED}}), tmp_path / "pp.onnx")
    assert hints_of(import_model(tmp_path / "pp.onnx"), "p") == {"conv1": {"forward": MEASURED}}


def test_a_plan_that_is_written_again_loses_its_old_hints_alone(small: Onnxpp) -> None:
    hinted = placed_in(small, "p", "q")
    for name in ("p", "q"):
        hinted = with_hints(hinted, name, {"conv1": {"forward": MEASURED}})
    assert hints_of(with_hints(hinted, "p", {}), "p") == {}
    again = placed_in(hinted, "p")
    assert hints_of(again, "p") == {}
    assert hints_of(again, "q") == {"conv1": {"forward": MEASURED}}


def test_what_nobody_could_read_back_is_not_written(small: Onnxpp) -> None:
    placed = placed_in(small, "plan")
    with pytest.raises(ModelError) as caught:
        with_hints(
            placed,
            "plan",
            {"conv7": {"forward": MODELLED}, "conv1": {"forwards": MODELLED, "input": Hint(way="imcol")}},  # type: ignore[dict-item]
        )
    for part in ("no operator 'conv7'; did you mean", "no direction 'forwards'; did you mean forward", "im2col?"):
        assert part in str(caught.value)
    with pytest.raises(ModelError, match="no such configuration; did you mean plan"):
        with_hints(placed, "plam", {})
    with pytest.raises(ModelError, match="no configuration 'q'; it has plan"):
        with_lowering(placed, "q")


GOOD = {"way": "im2col", "seconds": None, "source": "modelled", "detail": {}}
DAMAGED = [
    ("{", "is no JSON object of directions"),
    ("[]", "is no JSON object of directions"),
    ("[" * 100_000, "is no JSON object of directions"),
    (json.dumps({"forward": GOOD | {"detail": {"shape": "x" * 10_000}}}), "is no JSON object of directions"),
    (json.dumps({"foward": GOOD}), "no direction 'foward'; did you mean forward"),
    (json.dumps({str(i): GOOD for i in range(50)}), "no direction '0'"),
    (json.dumps({"forward": "im2col"}), 'forward: "im2col" is no JSON object'),
    (json.dumps({"forward": GOOD | {"second": 1}}), "'second' is unknown; did you mean seconds"),
    (json.dumps({"forward": GOOD | {"way": "wingrad4"}}), 'no way "wingrad4"; did you mean winograd4'),
    (json.dumps({"forward": GOOD | {"way": None}}), "no way null; there are xla"),
    (json.dumps({"forward": {"way": "xla"}}), "the source is null, expected measured or modelled"),
    (json.dumps({"forward": GOOD | {"source": "guessed"}}), 'the source is "guessed"'),
    (json.dumps({"forward": GOOD | {"source": "measured"}}), "a measured way says its seconds"),
    (json.dumps({"forward": GOOD | {"seconds": 0.1}}), "only a measured way has seconds"),
    (json.dumps({"forward": GOOD | {"source": "measured", "seconds": -1}}), "seconds -1 are no time"),
    (json.dumps({"forward": GOOD | {"source": "measured", "seconds": True}}), "seconds true are no time"),
    (json.dumps({"forward": GOOD | {"source": "measured", "seconds": "1"}}), 'seconds "1" are no time'),
    (json.dumps({"forward": GOOD | {"source": "measured", "seconds": float("nan")}}), "seconds NaN are no time"),
    (json.dumps({"forward": GOOD | {"source": "measured", "seconds": float("inf")}}), "seconds Infinity are no time"),
    (json.dumps({"forward": GOOD | {"detail": {"versions": {}}}}), "is no JSON object of texts and numbers"),
    (json.dumps({"forward": GOOD | {"detail": []}}), "the detail [] is no JSON object"),
]


@pytest.mark.parametrize(("value", "message"), DAMAGED, ids=[m for _, m in DAMAGED])
def test_damaged_hints_are_refused(value: str, message: str, small: Onnxpp, tmp_path: Path) -> None:
    placed = placed_in(small, "p")
    node = next(n for n in placed.proto.graph.node if n.name == "conv1")
    node.metadata_props.add(key="hpdlf.lowering.p", value=value)
    onnx.save(placed.proto, tmp_path / "pp.onnx")
    for read in (load_onnxpp, import_model):
        with pytest.raises(ModelError) as caught:
            read(tmp_path / "pp.onnx")
        assert message in str(caught.value)
        assert "node 'conv1': metadata hpdlf.lowering.p" in str(caught.value)


def test_hints_without_a_place_are_refused(small: Onnxpp, tmp_path: Path) -> None:
    placed = placed_in(small, "plan")
    constant = next(n for n in placed.proto.graph.node if n.name == "conv1")
    value = json.dumps({"forward": GOOD})
    constant.metadata_props.add(key="hpdlf.lowering.plam", value=value)
    constant.metadata_props.add(key="hpdlf.lowering.plan", value=value)
    constant.metadata_props.add(key="hpdlf.lowering.plan", value=value)
    del constant.device_configurations[:]
    onnx.save(placed.proto, tmp_path / "pp.onnx")
    with pytest.raises(ModelError) as caught:
        load_onnxpp(tmp_path / "pp.onnx")
    for part in (
        "hpdlf.lowering.plam: no configuration 'plam'; did you mean plan",
        "hpdlf.lowering.plan without a place in that configuration",
        "hpdlf.lowering.plan occurs twice",
    ):
        assert part in str(caught.value)


def test_the_names_are_those_that_the_families_have() -> None:
    from hpdlf.models.cost import lowerings

    named = {direction for family in lowerings.FAMILIES for direction in family.directions}
    assert named == set(DIRECTIONS) == set(lowerings.DIRECTIONS)
    assert lowerings.WAYS == WAYS


def test_hints_of_products_come_back(small: Onnxpp, tmp_path: Path) -> None:
    told = {"conv1": {"left": Hint(way="turned"), "right": Hint(way="swapturned")}}
    save_onnxpp(with_hints(placed_in(small, "p"), "p", told), tmp_path / "pp.onnx")  # type: ignore[arg-type]
    assert hints_of(load_onnxpp(tmp_path / "pp.onnx"), "p") == told
