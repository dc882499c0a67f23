"""Approval: a person says yes to a plan; the approval is a file of its own over the hashes of all that will run.

Nothing that is not approved is ever executed: :func:`check_approval` compares every hash again before a run.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ...errors import ApprovalError
from .plan import HashedFile, Plan, file_sha256, load_plan

__all__ = ["Approval", "approval_path", "check_approval", "write_approval"]

FORMAT: Literal[1] = 1


class Approval(BaseModel):
    """Who approved which bytes, and when (UTC, ISO 8601)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = FORMAT
    approved_by: str
    approved_at: str
    plan_sha256: str
    model: HashedFile
    external: tuple[HashedFile, ...] = ()
    data_sha256: str | None = None


def approval_path(plan: Path) -> Path:
    """Where a plan's approval lies: beside it."""
    return plan.with_name(f"{plan.name}.approval.json")


def write_approval(
    plan_path: Path, *, approved_by: str, data_sha256: str | None, now: datetime | None = None
) -> Approval:
    """Approve a plan as it lies there.

    data_sha256   the training data's hash as it is now; None where the plan names no data

    Raises:
        ApprovalError: the model or the data are not those that were planned, or nobody is named.
        PlanError: the plan cannot be read.
    """
    plan = load_plan(plan_path)
    if not approved_by.strip():
        raise ApprovalError("Nobody is named as approving: `hpdlf approve PLAN --as NAME`.")
    changed = _changed_files(plan_path, plan) + _changed_data(plan.data_sha256, data_sha256)
    if changed:
        raise ApprovalError(
            _message(plan_path, "cannot be approved: it no longer describes what lies there", changed, "hpdlf plan")
        )
    approval = Approval(
        approved_by=approved_by.strip(),
        approved_at=(now or datetime.now(UTC)).isoformat(timespec="seconds"),
        plan_sha256=file_sha256(plan_path),
        model=plan.model,
        external=plan.external,
        data_sha256=data_sha256,
    )
    target = approval_path(plan_path)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        part.write_text(json.dumps(approval.model_dump(mode="json"), indent=1) + "\n", encoding="utf-8")
        part.replace(target)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ApprovalError(
            f"{target}: the approval cannot be written: {error.strerror}. It lies beside the plan: make that folder writable, "
            "or copy the plan and its model to another."
        ) from None
    return approval


def check_approval(plan_path: Path, *, data_sha256: str | None) -> tuple[Plan, Approval]:
    """The plan and its approval, if what was approved is what lies there, byte for byte.

    Raises:
        ApprovalError: there is no approval, or something changed since; the message names all that did.
        PlanError: the plan cannot be read.
    """
    plan = load_plan(plan_path)
    path = approval_path(plan_path)
    try:
        text = path.read_text(encoding="utf-8")
        if (newer := _format(text)) > FORMAT:
            raise ApprovalError(
                f"{path} has approval format {newer}, this hpdlf reads {FORMAT}: `pip install --upgrade hpdlf`."
            )
        approval = Approval.model_validate_json(text)
    except FileNotFoundError:
        raise ApprovalError(
            f"{plan_path} is not approved. Look at it and approve it with `hpdlf approve {plan_path}`."
        ) from None
    except (OSError, ValidationError, UnicodeDecodeError):
        raise ApprovalError(
            f"{path} is no approval that can be read. Approve again with `hpdlf approve {plan_path}`."
        ) from None
    # The plan names the model's and the external files' hashes: what is approved of the plan is approved of them.
    changed = [] if file_sha256(plan_path) == approval.plan_sha256 else [f"the plan {plan_path.name}"]
    changed += _changed_files(plan_path, plan) + _changed_data(approval.data_sha256, data_sha256)
    if changed:
        raise ApprovalError(
            _message(plan_path, "changed since it was approved", changed, "hpdlf plan` and `hpdlf approve")
        )
    return plan, approval


def _format(text: str) -> int:
    """The format that an approval claims; 0 where it claims none."""
    try:
        table = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return 0
    claimed = table.get("format") if isinstance(table, dict) else None
    return claimed if isinstance(claimed, int) else 0


def _changed_files(plan_path: Path, plan: Plan) -> list[str]:
    changed = []
    for file in (plan.model, *plan.external):
        path = plan_path.parent / file.path
        try:
            if not path.is_file():
                changed.append(f"{file.path} (it is not there)")
            elif file_sha256(path) != file.sha256:
                changed.append(file.path)
        except OSError as error:
            changed.append(f"{file.path} (it cannot be read: {error.strerror})")
    return changed


def _changed_data(before: str | None, now: str | None) -> list[str]:
    return [] if before == now else ["the training data"]


def _message(plan_path: Path, what: str, changed: list[str], commands: str) -> str:
    listed = "\n  ".join(changed)
    return f"{plan_path} {what}. Changed:\n  {listed}\nPut the old files back, or run `{commands}` again."
