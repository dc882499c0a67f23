"""Nothing runs but what somebody approved, byte for byte."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hpdlf.errors import ApprovalError, PlanError
from hpdlf.models.plan import (
    HashedFile,
    Plan,
    Recipe,
    Strategy,
    approval_path,
    check_approval,
    file_sha256,
    write_approval,
    write_plan,
)

DATA = "d" * 64


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """A plan with a model, an external file and data."""
    (tmp_path / "model.onnx").write_bytes(b"a model")
    (tmp_path / "weights.bin").write_bytes(b"its weights")
    path = tmp_path / "plan.json"
    write_plan(
        Plan(
            configuration="c",
            model=HashedFile(path="model.onnx", sha256=file_sha256(tmp_path / "model.onnx")),
            external=(HashedFile(path="weights.bin", sha256=file_sha256(tmp_path / "weights.bin")),),
            data_sha256=DATA,
            cluster="local",
            cluster_sha256="0" * 64,
            cluster_toml="",
            strategy=Strategy(batch=8),
            recipe=Recipe(),
            placement=(0,),
        ),
        path,
    )
    return path


def flip_a_byte(path: Path, at: int = -2) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(bytes(content))


def test_what_was_approved_may_run(plan: Path) -> None:
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    written = write_approval(plan, approved_by=" Ada Lovelace ", data_sha256=DATA, now=now)
    found, approval = check_approval(plan, data_sha256=DATA)
    assert approval == written
    assert (approval.approved_by, approval.approved_at) == ("Ada Lovelace", "2026-01-02T03:04:05+00:00")
    assert found.strategy == Strategy(batch=8)
    assert sorted(p.name for p in plan.parent.iterdir()) == [
        "model.onnx",
        "plan.json",
        "plan.json.approval.json",
        "weights.bin",
    ]


def test_a_plan_without_approval_does_not(plan: Path) -> None:
    with pytest.raises(
        ApprovalError, match=r"plan.json is not approved. Look at it and approve it with `hpdlf approve"
    ):
        check_approval(plan, data_sha256=DATA)


@pytest.mark.parametrize(("name", "named"), [("model.onnx", "model.onnx"), ("weights.bin", "weights.bin")])
def test_one_byte_of_a_file_changed(plan: Path, name: str, named: str) -> None:
    write_approval(plan, approved_by="Ada", data_sha256=DATA)
    flip_a_byte(plan.parent / name)
    with pytest.raises(ApprovalError, match=rf"changed since it was approved. Changed:\n  {named}\n"):
        check_approval(plan, data_sha256=DATA)
    flip_a_byte(plan.parent / name)
    check_approval(plan, data_sha256=DATA)


def test_one_byte_of_the_plan_changed(plan: Path) -> None:
    write_approval(plan, approved_by="Ada", data_sha256=DATA)
    plan.write_bytes(plan.read_bytes() + b" ")  # still the same JSON
    with pytest.raises(ApprovalError, match=r"Changed:\n  the plan plan.json\n"):
        check_approval(plan, data_sha256=DATA)


def test_every_byte_of_the_plan_counts(plan: Path) -> None:
    write_approval(plan, approved_by="Ada", data_sha256=DATA)
    whole = plan.read_bytes()
    for at in range(0, len(whole), 37):
        flip_a_byte(plan, at)
        with pytest.raises((ApprovalError, PlanError)):
            check_approval(plan, data_sha256=DATA)
        plan.write_bytes(whole)


@pytest.mark.parametrize("now", ["e" * 64, None])
def test_other_data(plan: Path, now: str | None) -> None:
    write_approval(plan, approved_by="Ada", data_sha256=DATA)
    with pytest.raises(ApprovalError, match=r"Changed:\n  the training data\n"):
        check_approval(plan, data_sha256=now)


def test_all_that_changed_is_named(plan: Path) -> None:
    write_approval(plan, approved_by="Ada", data_sha256=DATA)
    flip_a_byte(plan.parent / "model.onnx")
    (plan.parent / "weights.bin").unlink()
    with pytest.raises(ApprovalError) as caught:
        check_approval(plan, data_sha256="e" * 64)
    assert "model.onnx\n  weights.bin (it is not there)\n  the training data\n" in str(caught.value)


def test_what_does_not_fit_cannot_be_approved(plan: Path) -> None:
    flip_a_byte(plan.parent / "model.onnx")
    with pytest.raises(ApprovalError, match=r"cannot be approved: it no longer describes(.|\n)*model.onnx"):
        write_approval(plan, approved_by="Ada", data_sha256=DATA)
    assert not approval_path(plan).exists()


def test_somebody_must_be_named(plan: Path) -> None:
    with pytest.raises(ApprovalError, match="Nobody is named"):
        write_approval(plan, approved_by="  ", data_sha256=DATA)


def test_an_approval_that_cannot_be_read(plan: Path) -> None:
    write_approval(plan, approved_by="Ada", data_sha256=DATA)
    whole = approval_path(plan).read_text()
    for broken in (whole[:-20], "", "[]", "\x00", "[" * 100_000, json.dumps(json.loads(whole) | {"extra": 1})):
        approval_path(plan).write_text(broken)
        with pytest.raises(ApprovalError, match="no approval that can be read"):
            check_approval(plan, data_sha256=DATA)
    approval_path(plan).write_text(json.dumps(json.loads(whole) | {"format": 2}))
    with pytest.raises(ApprovalError, match="has approval format 2, this hpdlf reads 1"):
        check_approval(plan, data_sha256=DATA)


def test_an_approval_that_cannot_be_written(plan: Path) -> None:
    approval_path(plan).mkdir()
    with pytest.raises(ApprovalError, match="the approval cannot be written"):
        write_approval(plan, approved_by="Ada", data_sha256=DATA)
    assert not list(plan.parent.glob(".*"))
