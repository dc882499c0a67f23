"""Showing results on a terminal, or in a pipe or file: tables, sentences, JSON, pictures, and what went wrong."""

from __future__ import annotations

import json
import os
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError

if TYPE_CHECKING:
    import typer
    from rich.console import Console
    from rich.status import Status

__all__ = ["complain", "draw", "help_alone", "print_json", "show", "status"]

COLUMNS = 100


def show(*things: Any) -> None:
    """Tables as wide as the terminal; sentences wrapped at words there, and as whole lines where nobody looks on."""
    console = _console()
    for thing in things:
        console.print(thing, soft_wrap=isinstance(thing, str) and not console.is_terminal)


def status(text: str) -> AbstractContextManager[Status]:
    """What is going on, on the terminal and nowhere else, as long as the context is open."""
    return _console(stderr=True).status(text)


def print_json(value: Any) -> None:
    """A value as JSON on standard output."""
    print(json.dumps(value, indent=1, allow_nan=False))


def draw(figure: Any, path: Path) -> None:
    """Write a picture, whole, in place of what was there.

    Raises:
        DataError: it cannot be written there, or there are no such pictures.
    """
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        figure.savefig(part)
        part.replace(path)
    except OSError as error:
        raise DataError(f"{path}: the picture cannot be written: {error.strerror}. Choose another place.") from None
    except ValueError:
        ending = repr(path.suffix) if path.suffix else "no ending"
        raise DataError(f"{path}: pictures with {ending} cannot be drawn. Choose .png, .svg or .pdf.") from None
    finally:
        part.unlink(missing_ok=True)


def complain(message: str) -> None:
    """What went wrong, on standard error; wrapped at words on a terminal."""
    if sys.stderr.isatty():
        _console(stderr=True).print(message)
    else:
        print(message, file=sys.stderr)


def help_alone(context: typer.Context) -> None:
    """Without a command: show those that there are, and end as wrong usage does."""
    import typer

    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)


def _console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    given = os.environ.get("COLUMNS", "")
    width = None if terminal else int(given) if given.isdigit() and int(given) > 40 else COLUMNS
    return Console(stderr=stderr, width=width, highlight=False, markup=False, emoji=False)
