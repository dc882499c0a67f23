"""Runs the ONNX standard's own backend tests over :class:`hpdlf.exec.backend.Backend`, and writes down what fails.

    python -m hpdlf.experiments.validate_conformance                 # all, and the count
    python -m hpdlf.experiments.validate_conformance --only 'lstm'   # those whose names match
    python -m hpdlf.experiments.validate_conformance --table docs/onnx.md

With --table the file's table of failing tests is written anew; a reason that stands there already is kept.
"""

from __future__ import annotations

import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

__all__ = ["Result", "read_table", "run_suite", "suite"]

BEGIN, END = "<!-- failing tests -->", "<!-- end of failing tests -->"
NO_REASON = "(no reason is known yet)"


class Result(NamedTuple):
    """One test: its name, and the error that it ended with, or None."""

    name: str
    error: str | None


def suite(only: str = "") -> dict[str, Callable[[object], None]]:
    """The standard's tests for this machine's CPU whose names match the regular expression `only`, by name."""
    from onnx.backend.test import BackendTest

    from ..exec.backend import Backend

    with warnings.catch_warnings():
        # Making the cases overflows here and there on purpose.
        warnings.simplefilter("ignore")
        items = BackendTest(Backend, __name__)._test_items
    tests = {name: item.func for category in items.values() for name, item in category.items()}
    return {n: tests[n] for n in sorted(tests) if n.endswith("_cpu") and re.search(only, n)}


def run_suite(tests: dict[str, Callable[[object], None]]) -> Iterator[Result]:
    """Runs them one after the other."""
    for name, test in tests.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                test(None)
        except Exception as error:
            yield Result(name, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
        else:
            yield Result(name, None)


def read_table(path: Path) -> dict[str, str]:
    """{test: reason} of the failing tests that a document lists."""
    text = path.read_text()
    inside = text[text.index(BEGIN) : text.index(END)]
    rows = re.findall(r"^\| `(test_\w+)` \| (.*) \|$", inside, re.MULTILINE)
    return {f"{name}_cpu": reason for name, reason in rows}


def _write_table(path: Path, failed: list[Result]) -> None:
    text, known = path.read_text(), read_table(path)
    rows = [f"| `{r.name.removesuffix('_cpu')}` | {known.get(r.name, NO_REASON)} |" for r in failed]
    table = "\n".join([BEGIN, "", "| Test | Why it fails |", "|---|---|", *rows, "", END])
    path.write_text(text[: text.index(BEGIN)] + table + text[text.index(END) + len(END) :])


def main(
    only: Annotated[str, typer.Option(help="A regular expression: run the tests whose names it matches.")] = "",
    table: Annotated[Path | None, typer.Option(help="A document whose table of failing tests is written anew.")] = None,
) -> None:
    """Runs the ONNX standard's backend tests and counts those that pass."""
    began = time.perf_counter()
    tests = suite(only)
    failed = []
    for number, result in enumerate(run_suite(tests), start=1):
        if result.error is not None:
            failed.append(result)
            print(f"\r{result.name}: {result.error}")
        if sys.stderr.isatty():
            print(f"\r{number} of {len(tests)}", end="", file=sys.stderr, flush=True)
    print(f"\r{len(tests) - len(failed)} of {len(tests)} passed in {time.perf_counter() - began:.0f} s")
    if table is not None:
        if only:
            raise typer.BadParameter("a table is written of the whole suite: leave --only out")
        _write_table(table, failed)


if __name__ == "__main__":
    typer.run(main)
