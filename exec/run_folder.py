"""Where a run keeps its files.

    RUN/plan.json, approval.json, model.onnx   copies of what was approved (external weights stay with the plan)
    RUN/run.json                               what ran, where, how it went
    RUN/metrics.jsonl                          one line a step, one an evaluation
    RUN/trace.rank<R>.attempt<A>.jsonl         what every rank did, when
    RUN/predicted.trace.jsonl                  what the simulator said it would do
    RUN/checkpoints/                           see exec/checkpoint.py
    RUN/ranks/                                 see exec/rank_status.py
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import RunError

__all__ = ["RunFolder"]

_ATTEMPT = re.compile(r"trace\.rank\d+\.attempt(\d+)\.jsonl")


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run."""

    path: Path

    @property
    def about(self) -> Path:
        """What ran, where, how it went."""
        return self.path / "run.json"

    @property
    def plan(self) -> Path:
        """The copied plan."""
        return self.path / "plan.json"

    @property
    def approval(self) -> Path:
        """The copied approval."""
        return self.path / "approval.json"

    @property
    def model(self) -> Path:
        """The copied ONNX++ file."""
        return self.path / "model.onnx"

    @property
    def metrics(self) -> Path:
        """Loss and speed by step."""
        return self.path / "metrics.jsonl"

    @property
    def predicted(self) -> Path:
        """The simulated trace."""
        return self.path / "predicted.trace.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    def trace(self, rank: int, attempt: int) -> Path:
        """One rank's events in one attempt."""
        return self.path / f"trace.rank{rank}.attempt{attempt}.jsonl"

    def traces(self) -> list[Path]:
        """All of them."""
        return sorted(self.path.glob("trace.rank*.attempt*.jsonl"))

    def next_attempt(self) -> int:
        """A number that no rank has traced under yet."""
        names = (_ATTEMPT.fullmatch(p.name) for p in self.traces())
        return 1 + max((int(found[1]) for found in names if found), default=-1)

    def read(self) -> dict[str, Any]:
        """run.json.

        Raises:
            RunError: this is no folder of a run, or the file is damaged.
        """
        try:
            return dict(json.loads(self.about.read_text()))
        except OSError:
            raise RunError(f"{self.path} holds no run: `hpdlf train PLAN --out {self.path}` makes one.") from None
        except (ValueError, TypeError) as error:
            raise RunError(
                f"{self.about} is damaged or was cut short ({error}). Put back a copy of it, or train again into another "
                "folder with `--out`."
            ) from None

    def write(self, about: Mapping[str, Any]) -> None:
        """Replace run.json.

        Raises:
            RunError: it cannot be written; the old one stays.
        """
        part = _part(self.about)
        try:
            part.write_text(json.dumps(dict(about), indent=1) + "\n")
            part.replace(self.about)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise RunError(f"{self.about} cannot be written: {error.strerror}. Make room, then `--resume`.") from None

    def keep(self, copies: Mapping[Path, Path]) -> None:
        """Copy files into the folder, {copy: original}: all of them, or none where one cannot be written (OSError)."""
        try:
            for copy, original in copies.items():
                shutil.copyfile(original, _part(copy))
            for copy in copies:
                _part(copy).replace(copy)
        finally:
            for copy in copies:
                _part(copy).unlink(missing_ok=True)


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.part")
