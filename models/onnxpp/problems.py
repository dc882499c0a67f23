"""Every problem of a file in one message: collected while checking, raised together."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from ...errors import ModelError

__all__ = ["Problems", "did_you_mean"]

SHOWN = 20
# Names in a damaged file may be of any length, and graphs nest.
LONGEST = 800


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A clause that names the nearest known names, or ''.

    >>> did_you_mean("Convv", ["Conv", "Relu"])
    '; did you mean Conv?'
    """
    near = get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(near)}?" if near else ""


class Problems:
    """What is wrong with one file. `add` collects (each sentence once), `stop` raises them all as one ModelError."""

    def __init__(self, place: object, doing: str = "cannot be imported") -> None:
        self.place = str(place)
        self.doing = doing
        self.found: list[str] = []

    def add(self, problem: str) -> None:
        """Note one problem: what and where, and how to mend it. One that is very long loses its middle."""
        if not problem.isprintable():  # names in a damaged file may command a terminal
            problem = "".join(c if c.isprintable() else repr(c)[1:-1] for c in problem)
        if len(problem) > LONGEST:
            problem = f"{problem[: LONGEST // 2]} … {problem[-LONGEST // 2 :]}"
        if problem not in self.found:
            self.found.append(problem)

    def stop(self) -> None:
        """Raise ModelError if anything was found."""
        if not self.found:
            return
        if len(self.found) == 1:
            raise ModelError(f"{self.place} {self.doing}: {self.found[0]}")
        shown = [f"  {i}. {problem}" for i, problem in enumerate(self.found[:SHOWN], start=1)]
        if len(self.found) > SHOWN:
            shown.append(f"  and {len(self.found) - SHOWN} more")
        raise ModelError("\n".join([f"{self.place} {self.doing}, {len(self.found)} problems:", *shown]))
