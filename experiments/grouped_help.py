"""Help of a command with many options: those that say the same kind of thing stand together under a heading."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

__all__ = ["Grouped"]


class Grouped(TyperCommand):
    """A command whose help has a section for every `rich_help_panel` among its options; those without one come first."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then the sections in the order in which they are first mentioned."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            if (row := parameter.get_help_record(ctx)) is None:
                continue
            named = getattr(parameter, "rich_help_panel", None)
            default = "Arguments" if parameter.param_type_name == "argument" else "Options"
            sections.setdefault(named or default, []).append(row)
        for heading, rows in sections.items():
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)
