"""Progress of a run on a terminal: read from the run's metrics, so that ranks print nothing."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ["Progress"]

LOOK_S = 0.25


class Progress:
    """Follows a metrics file and tells `show` of every new line: a step's loss and speed, or an evaluation."""

    def __init__(self, show: Callable[[dict[str, Any]], None]) -> None:
        self._show = show
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def follow(self, path: Path) -> None:
        """Begin; the file need not exist yet. What is in it already is passed over."""
        start = path.stat().st_size if path.is_file() else 0
        self._thread = threading.Thread(target=self._run, args=(path, start), name="progress", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Show what came last, and end."""
        self._stop.set()
        if self._thread:
            self._thread.join()

    def _run(self, path: Path, position: int) -> None:
        while True:
            last_look = self._stop.wait(LOOK_S)
            if path.is_file():
                with path.open() as file:
                    file.seek(position)
                    while (line := file.readline()).endswith("\n"):
                        position = file.tell()
                        with suppress(ValueError):  # a line that a full disk cut short, and that is removed meanwhile
                            self._show(json.loads(line))
            if last_look:
                return
