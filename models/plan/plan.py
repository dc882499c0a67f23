"""The plan: what will be trained, how it is cut over which cluster, and the prediction that argued for it.

A plan is a JSON file. What happens per operator (stage, segment) stands in the ONNX++ file that the plan names by its hash, under
the plan's `configuration`. Paths are relative to the plan's folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...errors import PlanError
from .recipe import Recipe
from .strategy import Strategy

__all__ = ["HashedFile", "Plan", "file_sha256", "load_plan", "write_plan"]

FORMAT: Literal[1] = 1
MOST_PROBLEMS = 30  # of a message


class HashedFile(BaseModel):
    """A file, relative to the plan's folder, and the SHA-256 of its bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Plan(BaseModel):
    """One way to train one model on one cluster.

    configuration   id under which the ONNX++ file says each operator's stage and segment
    model, external the ONNX++ file and the files of its weights
    data_sha256     of the training data that the recipe names; None where it names none
    cluster         name and whole text of the hardware profile that the prediction rests on, and that profile's hash
    placement       the device of every rank
    max_restarts    how often the launcher may start again from the last checkpoint when a rank dies
    objective, reason, prediction   what was asked, why this plan won, and the simulation's figures
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = FORMAT
    configuration: str
    model: HashedFile
    external: tuple[HashedFile, ...] = ()
    data_sha256: str | None = None
    cluster: str
    cluster_sha256: str
    cluster_toml: str
    strategy: Strategy
    recipe: Recipe
    placement: tuple[int, ...]
    max_restarts: int = Field(default=3, ge=0)
    objective: Literal["time", "energy", "cost"] = "time"
    reason: str = ""
    prediction: dict[str, Any] = Field(default_factory=dict)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_plan(plan: Plan, path: Path) -> None:
    """Write a plan whole, in place of what was there."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(json.dumps(plan.model_dump(mode="json"), indent=1) + "\n")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise PlanError(
            f"{path}: the plan cannot be written: {error.strerror}. Choose another place with `-o FILE`."
        ) from None


def load_plan(path: Path) -> Plan:
    """Read a plan.

    Raises:
        PlanError: the file is not there, is no plan, or is from a newer version.
    """
    mend = "Make one with `hpdlf plan MODEL --on CLUSTER --batch B -o PLAN`."
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(f"{path}: the plan cannot be read: {error.strerror}. {mend}") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        raise PlanError(f"{path} is no plan: it is not JSON. {mend}") from None
    if isinstance(table, dict) and isinstance(table.get("format"), int) and table["format"] > FORMAT:
        raise PlanError(
            f"{path} has plan format {table['format']}, this hpdlf reads {FORMAT}: `pip install --upgrade hpdlf`."
        )
    try:
        return Plan.model_validate(table)
    except ValidationError as error:
        problems = [f"  {'.'.join(map(str, p['loc'])) or 'the file'}: {_in_words(p)}" for p in error.errors()]
        if len(problems) > MOST_PROBLEMS:
            problems[MOST_PROBLEMS:] = [f"  and {len(problems) - MOST_PROBLEMS} more"]
        listed = "\n".join(problems)
        raise PlanError(f"{path} is no plan that can be used:\n{listed}\n{mend}") from None


def _in_words(problem: Any) -> str:
    """One of pydantic's problems, for somebody who looks into a plan file."""
    match problem["type"]:
        case "extra_forbidden":
            return "there is no such field"
        case "missing":
            return "it is missing"
        case "value_error":
            return str(problem["ctx"]["error"])
        case _:
            return f"{problem['msg'][0].lower()}{problem['msg'][1:]}, not {problem['input']!r:.80}"
