"""`hpdlf tune`, and what it does to plans: measured once, kept when stopped, written as hints that the ranks follow."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
from rich.console import Console

from hpdlf.__main__ import main
from hpdlf.errors import ModelError, PlanError
from hpdlf.exec.environment import examine_machine
from hpdlf.exec.tuning import Answer, Question
from hpdlf.experiments import tuning
from hpdlf.experiments.tuning import Row, Tuning, tune
from hpdlf.experiments.tuning_commands import sentences, tuning_table
from hpdlf.experiments.verbs import plan
from hpdlf.models.cost import ObservationDatabase
from hpdlf.models.cost.lowering_choice import check_lowering, measured_ways
from hpdlf.models.cost.lowerings import Convolution, ways
from hpdlf.models.onnxpp import load_onnxpp
from hpdlf.models.onnxpp.hints import Hint, hints_of, with_hints, with_lowering
from hpdlf.models.plan import load_plan
from hpdlf.models.zoo import conv_bn_net, mlp


@pytest.fixture
def net(tmp_path: Path) -> Path:
    onnx.save(conv_bn_net(), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def pretend(monkeypatch: pytest.MonkeyPatch, *, stop_after: int | None = None) -> list[Question]:
    """Every way but XLA's takes a second, XLA's half of one."""
    asked: list[Question] = []

    def time_ways(questions: Sequence[Question], *, seconds: float, threads: int | None = None) -> Iterator[Any]:
        for number, question in enumerate(questions):
            if stop_after is not None and number == stop_after:
                raise KeyboardInterrupt
            asked.append(question)
            yield question
            able = ways(question.shape, question.direction)
            times = {way: 0.5 if way == "xla" else 1.0 for way in able}
            told = {w: {"seconds": s, "low_s": s, "high_s": s, "repeats": 3} for w, s in times.items()}
            yield Answer(question=question, ways=told, failed={})

    monkeypatch.setattr(tuning, "time_ways", time_ways)
    return asked


def test_nothing_is_measured_twice(net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = pretend(monkeypatch)
    options: dict[str, Any] = {"batch": 4, "threads": 1, "database": tmp_path / "o.duckdb"}
    seen: list[tuple[str, int, int]] = []
    first = tune(net, **options, progress=lambda *told: seen.append(told))
    assert (first.measured, first.known, first.open) == (len(asked), 0, 0)
    assert len(asked) == len({(q.shape, q.direction) for q in asked}) > 3
    assert seen[-1][1:] == (len(asked), len(asked))
    assert all(row.hint.way == "xla" and row.hint.source == "measured" for row in first.rows)
    assert sum(row.count for row in first.rows if row.direction == "forward") == 4  # three convolutions, a linear layer
    assert first.expected_s - first.chosen_s == pytest.approx(sum(row.gain_s or 0.0 for row in first.rows))
    again = tune(net, **options)
    assert (again.measured, again.known) == (0, len(asked))
    assert [row.hint for row in again.rows] == [row.hint for row in first.rows]
    assert tune(net, **options, again=True).measured == len(first.rows)
    assert tune(net, **{**options, "batch": 8}).known == 0
    assert len(again.to_frame()) == len(again.rows)


def test_the_largest_come_first(net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = pretend(monkeypatch)
    tune(net, batch=4, threads=1, database=tmp_path / "o.duckdb")
    work = [q.shape.flops for q in asked]
    assert work == sorted(work, reverse=True)


def test_what_was_measured_before_a_stop_is_kept(net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, stop_after=2)
    options: dict[str, Any] = {"batch": 4, "threads": 1, "database": tmp_path / "o.duckdb"}
    found = tune(net, **options)
    assert (found.stopped, found.measured) == (True, 2)
    assert found.open > 0
    asked = pretend(monkeypatch)
    found = tune(net, **options)
    assert (found.stopped, found.known, found.open) == (False, 2, 0)
    assert found.measured == len(asked)


def test_impossible_wishes_are_refused(net: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="nothing to tune for in 'bfloat16': training runs in float32 or float64"):
        tune(net, dtype="bfloat16", database=tmp_path / "o.duckdb")
    with pytest.raises(PlanError, match="both are positive"):
        tune(net, seconds=0, database=tmp_path / "o.duckdb")


def test_the_command_shows_the_choices_in_a_hundred_columns(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    pretend(monkeypatch)
    words = ["tune", str(net), "--batch", "4", "--threads", "1", "--database", str(tmp_path / "o.duckdb")]
    assert main(words) == 0
    out = capfd.readouterr().out
    assert "3x8x8 to 8, 3x3" in out
    assert "to 10, transposed" in out
    table = out[: out.index("The measured operators")].splitlines()
    assert len(table) > 9
    assert all(len(line.rstrip()) <= 100 for line in table)
    assert "0 had been measured before" in out
    assert main([*words, "--json"]) == 0
    rows = json.loads(capfd.readouterr().out)
    assert {row["direction"] for row in rows} == {"forward", "input", "weight"}
    pretend(monkeypatch, stop_after=1)
    assert main([*words, "--again"]) == 1
    assert "Stopped: " in capfd.readouterr().out


def test_the_widest_row_keeps_to_a_hundred_columns() -> None:
    conv = Convolution(
        samples=8,
        channels=960,
        filters=960,
        groups=960,
        size=(112, 112),
        kernel=(5, 5),
        strides=(2, 2),
        dilations=(1, 1),
        pads=((2, 2), (2, 2)),
        output=(56, 56),
    )
    hint = Hint(way="winograd4", seconds=1.2345, source="measured")
    row = Row(shape=conv, direction="forward", count=16, hint=hint, expected="winograd2", expected_s=2.3456)
    found = Tuning(
        name="net[0]",
        batch=1,
        threads=1,
        rows=(row,),
        measured=1,
        known=0,
        open=1,
        has_loss=False,
        failed=("conv, forward by im2col: MemoryError: too large",),
        seconds=1.0,
        stopped=False,
        database=Path("o.duckdb"),
    )
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(tuning_table(found, rows=20))
    text = console.export_text()
    (line,) = (line for line in text.splitlines() if line.lstrip().startswith("960x112x112, depthwise 5x5/2"))
    assert line.split()[-7:] == ["16", "forward", "winograd4", "1,234", "winograd2", "2,346", "17,778"]
    assert "net[0]: 1 sample on 1 thread" in text
    told = " ".join(sentences(found))
    for part in ("Measured 1 choice in 1 s", "1 choice is left", "`--loss` appends one", "by im2col: MemoryError"):
        assert part in told


def test_a_network_without_choices_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 4]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "relu.onnx")
    words = ["tune", str(tmp_path / "relu.onnx"), "--loss", "none", "--database", str(tmp_path / "o.duckdb")]
    assert main(words) == 0
    assert "has nothing that can be computed in several ways" in capfd.readouterr().out


def test_a_perceptron_is_measured(tmp_path: Path) -> None:
    onnx.save(mlp((4, 8, 3)), tmp_path / "mlp.onnx")
    found = tune(tmp_path / "mlp.onnx", batch=2, threads=1, seconds=10, database=tmp_path / "o.duckdb")
    assert (found.open, found.failed) == (0, ())
    assert {row.direction for row in found.rows} >= {"weight"}
    assert all(row.shape.key.startswith("linear 2x") and row.hint.source == "measured" for row in found.rows)


def planned(net: Path, database: Path, batch: int = 8) -> Any:
    return plan(
        net, on="generic-x86:1x2", batch=batch, out=net.parent / "plan.json", ranks=2, data=2, database=database
    )


def test_a_plan_says_how_convolutions_are_computed(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    database = tmp_path / "o.duckdb"
    before = planned(net, database)
    told = hints_of(load_onnxpp(tmp_path / "plan.onnx"), before.plan.configuration)
    assert told == before.hinted.hints
    assert {h.source for hints in told.values() for h in hints.values()} == {"modelled"}
    assert before.hinted.unmeasured > 3
    options = {"loss": "mse", "allow_external": ["my weights"], "database": database}
    assert (
        f"`hpdlf tune net.onnx --batch 4 --threads 1 --loss mse --allow-external 'my weights' --database {database}`"
        in before.hinted.advice("net.onnx", **options)
    )
    assert f"Of {before.hinted.unmeasured} choices how" in before.hinted.advice("net.onnx")
    pretend(monkeypatch)
    tune(net, batch=4, threads=1, database=database)
    after = planned(net, database)
    told = hints_of(load_onnxpp(tmp_path / "plan.onnx"), after.plan.configuration)
    assert {(h.way, h.seconds, h.source) for hints in told.values() for h in hints.values()} == {
        ("xla", 0.5, "measured")
    }
    assert all(h.detail["machine"] == examine_machine().fingerprint for hints in told.values() for h in hints.values())
    assert (after.hinted.unmeasured, after.hinted.measured) == (0, before.hinted.unmeasured)
    chosen = with_lowering(load_onnxpp(tmp_path / "plan.onnx"), after.plan.configuration).graph
    assert all(set(o.lowering.values()) == {"xla"} for o in chosen.operators if o.op_type == "Conv")
    check_lowering(chosen, samples=4)
    # Another number of samples is another shape.
    assert planned(net, database, batch=16).hinted.unmeasured > 3
    words = ["plan", str(net), "--on", "generic-x86", "--batch", "16", "--ranks", "2", "--data", "2"]
    assert main([*words, "-o", str(tmp_path / "other.json"), "--database", str(database)]) == 0
    said = capfd.readouterr().out.replace("\n", " ")
    assert f"run `hpdlf tune {net} --batch 8 --threads 1 --database {database}` where" in said
    # Nobody can train in 16 bits, so nothing is to be measured, and sums would round in that type.
    assert main([*words, "--precision", "bfloat16", "-o", str(tmp_path / "other.json")]) == 0
    assert "hpdlf tune" not in capfd.readouterr().out
    coarse = hints_of(load_onnxpp(tmp_path / "other.onnx"), load_plan(tmp_path / "other.json").configuration)
    assert {h.way for hints in coarse.values() for h in hints.values()} <= {"xla", "matmul"}


def test_the_timings_of_the_machine_that_was_profiled_are_taken(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan made on a login node for compute nodes, whose device was measured there."""
    from hpdlf.models.cost import Observation

    database = tmp_path / "o.duckdb"
    pretend(monkeypatch)
    tune(net, batch=4, threads=1, database=database)
    there = Observation(
        subject="generic-x86-core",
        subject_kind="cpu",
        kind="operator",
        key="k",
        components={"conv": 1.0},
        seconds=1.0,
        low_s=1.0,
        high_s=1.0,
        run="profile measure",
        machine="other",
        time="2026-01-01",
    )
    ObservationDatabase(database).add([there])
    assert planned(net, database).hinted.unmeasured > 3
    here = examine_machine().fingerprint
    assert measured_ways(ObservationDatabase(database), machine=here, threads=1)


def test_a_lowering_that_cannot_compute_the_shape_is_refused(net: Path, tmp_path: Path) -> None:
    found = planned(net, tmp_path / "o.duckdb")
    model = load_onnxpp(tmp_path / "plan.onnx")
    name = next(o.name for o in model.graph.operators if o.op_type == "Conv")
    for operator, way, message in [
        (name, "matmul", "its weight lowering 'matmul' cannot compute conv 4x"),
        (model.graph.operators[-1].name, "xla", "its weight lowering 'xla' is none of a"),
    ]:
        changed = with_hints(model, found.plan.configuration, {operator: {"weight": Hint(way=way)}})
        graph = with_lowering(changed, found.plan.configuration).graph
        with pytest.raises(ModelError, match=message):
            check_lowering(graph, samples=4)


def test_a_real_measurement_of_a_small_network(net: Path, tmp_path: Path) -> None:
    found = tune(net, batch=2, threads=1, seconds=0.5, database=tmp_path / "o.duckdb")
    assert found.measured > 0
    assert not found.stopped
    assert found.failed == ()
    assert found.seconds < 60
    timed = [row for row in found.rows if row.hint.source == "measured"]
    assert len(timed) == found.measured
    assert all(row.hint.seconds and 0 < row.hint.seconds < 1 and (row.gain_s or 0.0) >= 0 for row in timed)
