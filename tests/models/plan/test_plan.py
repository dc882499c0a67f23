from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpdlf.errors import PlanError
from hpdlf.models.plan import HashedFile, Plan, Recipe, Strategy, file_sha256, load_plan, write_plan


def a_plan() -> Plan:
    return Plan(
        configuration="hpdlf-12345678",
        model=HashedFile(path="m.onnx", sha256="0" * 64),
        external=(HashedFile(path="m.bin", sha256="1" * 64),),
        data_sha256="2" * 64,
        cluster="xeon-64:2",
        cluster_sha256="3" * 64,
        cluster_toml='name = "xeon-64:2"\n',
        strategy=Strategy(batch=64, data=2, pipeline=2, microbatches=4, schedule="gpipe"),
        recipe=Recipe(epochs=3),
        placement=(0, 1, 2, 3),
        objective="energy",
        reason="It is the most frugal, s’il vous plaît.",
        prediction={"figures": {"step_s": {"value": 0.1, "low": 0.05, "high": 0.2}}},
    )


def test_a_plan_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_plan(a_plan(), path)
    assert load_plan(path) == a_plan()
    before = path.read_bytes()
    write_plan(load_plan(path), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


def written(tmp_path: Path, **changes: object) -> Path:
    path = tmp_path / "plan.json"
    write_plan(a_plan(), path)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path


def test_a_plan_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"has plan format 2, this hpdlf reads 1: `pip install --upgrade hpdlf`"):
        load_plan(written(tmp_path, format=2))


def test_all_problems_come_together(tmp_path: Path) -> None:
    strategy = {"batch": 7, "data": 2}
    with pytest.raises(PlanError) as caught:
        load_plan(written(tmp_path, strategy=strategy, colour="red", cluster=5))
    said = str(caught.value)
    assert "strategy: batch 7 does not divide into 2 replicas" in said
    assert "colour: there is no such field" in said
    assert "cluster: input should be a valid string, not 5" in said
    assert "`hpdlf plan MODEL --on CLUSTER --batch B -o PLAN`" in said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\x00\x01ONNX", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[1, 2]", "no plan that can be used"),
        (b"{}", "configuration: it is missing"),
    ],
)
def test_what_is_no_plan_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(PlanError, match=said):
        load_plan(path)


def test_a_plan_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"nowhere.json: the plan cannot be read: No such file"):
        load_plan(tmp_path / "nowhere.json")


def test_a_plan_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "plan.json").mkdir()  # replacing a folder by a file fails
    with pytest.raises(PlanError, match="the plan cannot be written"):
        write_plan(a_plan(), tmp_path / "plan.json")
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


def test_hashing_reads_every_byte(tmp_path: Path) -> None:
    import hashlib

    content = bytes(range(256)) * 10_000
    (tmp_path / "f").write_bytes(content)
    assert file_sha256(tmp_path / "f") == hashlib.sha256(content).hexdigest()
