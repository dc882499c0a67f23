"""``hpdlf tune``: measure which way computes each operator fastest on this machine."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from . import options as o
from .console import print_json, show

if TYPE_CHECKING:
    from rich.table import Table

    from .tuning import Row, Tuning

__all__ = ["tune", "tuning_table"]

Samples = Annotated[int, typer.Option("--batch", metavar="B", min=1, help="Samples that a rank computes at once.")]
Threads = Annotated[
    int | None, typer.Option("--threads", metavar="N", min=1, help="Threads of a rank (default: every CPU there is).")
]
Seconds = Annotated[float, typer.Option("--seconds", metavar="S", min=1, help="Time to measure for.")]
Again = Annotated[bool, typer.Option("--again", help="Measure once more what was measured before.")]
Type = Annotated[str, typer.Option("--precision", help="float32 or float64, as the recipe says.")]
Rows = Annotated[
    int, typer.Option("--rows", metavar="N", min=1, help="How many choices to show, those that take longest.")
]


def tune(
    model: o.Model,
    batch: Samples = 1,
    threads: Threads = None,
    seconds: Seconds = 170.0,
    precision: Type = "float32",
    again: Again = False,
    rows: Rows = 20,
    loss: o.Loss = "softmax_xent",
    allow_external: o.AllowExternal = None,
    database: o.Database = None,
    as_json: o.Json = False,
) -> None:
    """Measure the fastest way to compute each operator here."""
    from .tuning import tune as run

    with _bar() as progress:
        found = run(
            model,
            batch=batch,
            threads=threads,
            seconds=seconds,
            dtype=precision,
            again=again,
            loss=loss,
            allow_external=allow_external or (),
            database=database,
            progress=progress,
        )
    if as_json:
        print_json(found.to_dicts())
    else:
        show(*([tuning_table(found, rows=rows)] if found.chosen_s else []), *sentences(found))
    if found.stopped:
        raise typer.Exit(1)


@contextmanager
def _bar() -> Iterator[Callable[[str, int, int], None] | None]:
    """What goes on, on the terminal and nowhere else."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(bar_width=16), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda text, done, total: bar.update(task, completed=done, total=total, description=text[:60])


def tuning_table(found: Tuning, *, rows: int) -> Table:
    """The measured choices that take most of a step, the largest last, where people look first."""
    from rich.text import Text

    from .tables import plain_table

    title = f"{found.name}: {_counted(found.batch, 'sample')} on {_counted(found.threads, 'thread')}"
    columns = ("shape", "layers", "direction", "way", "ms", "expected", "ms", "gain, ms")
    table = plain_table(title, *columns, right=("layers", "ms", "gain, ms"))
    table.caption_justify = "left"
    table.caption = Text(
        "layers: how many are alike; direction: forward, or the gradient of that operand; ms: of one layer; "
        "expected: the way that is taken where nothing is measured; gain: of all layers, in every step"
    )
    timed = [row for row in found.rows if row.hint.seconds is not None]
    for row in reversed(timed[:rows]):
        table.add_row(row.shape.brief, str(row.count), row.direction, row.hint.way, *_figures(row))
    return table


def _figures(row: Row) -> tuple[str, str, str, str]:
    taken = _ms(row.hint.seconds)
    if row.expected == row.hint.way:
        return taken, "the same", "", ""
    return taken, row.expected, _ms(row.expected_s), _ms(row.gain_s)


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:,.0f}" if abs(seconds) >= 0.1 else f"{seconds * 1e3:.3g}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def sentences(found: Tuning) -> list[str]:
    """What it comes to."""
    if not found.rows:
        return [f"{found.name} has nothing that can be computed in several ways, so there is nothing to choose."]
    told = []
    if found.chosen_s:
        less = 1 - found.chosen_s / found.expected_s
        told.append(
            f"The measured operators of a step take {_ms(found.chosen_s)} ms; by the ways that are expected to be fastest it "
            f"would be {_ms(found.expected_s)} ms ({less:.0%} less)."
        )
    if not found.has_loss:
        told.append("The model has no loss, so its forward pass alone was looked at; `--loss` appends one.")
    told.append(
        f"Measured {_counted(found.measured, 'choice')} in {found.seconds:.0f} s; {found.known} had been measured before. "
        f"`hpdlf plan` takes them from {found.database}."
    )
    told += [f"Could not be run: {text}." for text in found.failed]
    if found.open:
        verb = "is" if found.open == 1 else "are"
        stopped = "Stopped: " if found.stopped else ""
        told.append(f"{stopped}{_counted(found.open, 'choice')} {verb} left. Run the command again to go on.")
    return told
