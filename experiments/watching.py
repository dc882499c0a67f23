"""Watching a training run from a terminal: a progress bar with loss, speed and time left beside the prediction. The time
left is the predicted one, corrected by what the run does (:mod:`.following`).

Where nobody looks on at a terminal, a line every few seconds says the same.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import HpdlfError
from ..exec.progress import Progress
from ..models.plan import load_plan
from .following import Follower
from .units import seconds
from .verbs import steps_of

__all__ = ["Watch", "watch"]

LINE_EVERY_S = 5.0


class Watch(Progress):
    """Progress of a run of `steps` steps of `batch` samples, predicted to take `step_s` seconds each."""

    def __init__(self, steps: int, step_s: float, batch: int, bar: Any = None) -> None:
        super().__init__(self._saw)
        self.steps, self.step_s, self.batch = steps, step_s, batch
        self._bar = bar
        self._task = bar.add_task("training", total=steps, told="starting ranks and compiling") if bar else None
        self._speeds: list[float] = []
        self._said_s = 0.0
        self._loss: float | None = None
        self._evaluations: list[str] = []
        self._folder: Path | None = None
        self._follower: Follower | None = None

    def follow(self, path: Path) -> None:
        """Begin; the file need not exist yet. What is in it already is passed over."""
        self._folder = path.parent
        super().follow(path)

    def tell(self, text: str) -> None:
        """A sentence of the launcher's."""
        if self._bar:
            self._bar.console.print(text, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def _saw(self, entry: dict[str, Any]) -> None:
        if "evaluation" in entry:
            found = entry["evaluation"]
            value = "unavailable" if found["value"] is None else f"{found['value']:.4f}"
            self._evaluations.append(f"{found['metric']} {value} after step {entry['step']}")
            return
        self._loss = entry["loss"]
        if entry["samples_per_s"]:
            self._speeds = [*self._speeds[-19:], entry["samples_per_s"]]
            self._correct(self.batch / entry["samples_per_s"])
        done = entry["step"] + 1
        told = self._told(done)
        if self._bar:
            self._bar.update(self._task, completed=done, told=told)
        elif time.monotonic() - self._said_s >= LINE_EVERY_S or done == self.steps:
            self._said_s = time.monotonic()
            print(f"step {done}/{self.steps}: {told}", flush=True)

    def _told(self, done: int) -> str:
        left = max(self.steps - done, 0)
        if not self._speeds:
            return f"loss {self._loss:.4f}"
        speed = sorted(self._speeds)[len(self._speeds) // 2]
        step_s = self._follower.step_s[0] if self._follower else self.batch / speed
        told = f"loss {self._loss:.4f}, {speed:,.0f} samples/s"
        if not left:
            return told
        return f"{told}, {seconds(left * step_s)} left (predicted {seconds(left * self.step_s)})"

    def _correct(self, step_s: float) -> None:
        """Take in a step, and what was traced meanwhile. Whatever cannot be read leaves the time left to the speed."""
        try:
            if self._follower is None and self._folder is not None and self.step_s > 0.0:
                self._follower = Follower(self._folder, self.step_s)
            if self._follower is not None:
                self._follower.take(step_s)
        except (HpdlfError, OSError):
            self._folder, self._follower = None, None

    def summary(self) -> list[str]:
        """What the run came to."""
        loss = [] if self._loss is None else [f"Loss {self._loss:.4f} after {self.steps} steps."]
        return [*loss, *(f"Evaluation: {e}." for e in self._evaluations[-1:])]


@contextmanager
def watch(plan_path: Path) -> Iterator[Watch]:
    """A :class:`Watch` for a plan, with a bar where there is a terminal."""
    plan = load_plan(plan_path)
    steps = steps_of(plan_path) or 0
    step_s = float(plan.prediction["figures"]["step_s"]["value"]) if plan.prediction else 0.0
    if not sys.stdout.isatty():
        yield Watch(steps, step_s, plan.strategy.batch)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    with Bar(
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TextColumn("{task.fields[told]}"),
    ) as bar:
        yield Watch(steps, step_s, plan.strategy.batch, bar)
