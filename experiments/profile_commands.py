"""``hpdlf profile``: list the hardware profiles, show one, measure this machine."""

from __future__ import annotations

import typer

from . import options as o
from .console import help_alone, print_json, show, status

__all__ = ["commands"]

commands = typer.Typer(help="Hardware profiles: list them, show one, measure this machine.", rich_markup_mode=None)


@commands.callback(invoke_without_command=True)
def _profile(context: typer.Context) -> None:
    help_alone(context)


@commands.command("list")
def profile_list(as_json: o.Json = False) -> None:
    """The clusters and devices that there are."""
    from ..hwprofiles import list_profiles
    from .tables import profiles_table

    rows = list_profiles()
    if as_json:
        print_json([row._asdict() for row in rows])
    else:
        show(profiles_table(rows))


@commands.command("show")
def profile_show(name: o.Profile, as_json: o.Json = False) -> None:
    """Every value of a profile (a cluster, device, node, link or region), with its source and tier."""
    from ..hwprofiles import describe, load_profile
    from .tables import profile_table

    profile = load_profile(name)
    rows = describe(profile)
    if as_json:
        print_json([row._asdict() for row in rows])
    else:
        show(profile_table(f"{profile.name}: {profile.description}", rows))


@commands.command("check")
def profile_check(file: o.Profile) -> None:
    """Read a profile file and say what is wrong with it, or how far its values can be trusted."""
    from collections import Counter

    from ..hwprofiles import TIERS, describe, load_profile

    profile = load_profile(file)
    rows = describe(profile)
    tiers = Counter(row.tier for row in rows)
    known = ", ".join(f"{tiers[tier]} {tier}" for tier in TIERS if tiers[tier])
    missing = [row.field for row in rows if row.value == "unavailable"]
    show(f"{file}: a good {type(profile).__name__.lower()} profile. Values by tier: {known}.")
    if missing:
        show(f"Not known: {', '.join(missing)}.")


@commands.command("measure")
def profile_measure(budget: o.Budget = 150.0, database: o.Database = None) -> None:
    """Measure this machine: write its profile, `local`, and learn its speeds."""
    from .verbs import measure

    with status("measuring") as now:
        found = measure(
            budget_s=budget,
            database=database,
            progress=lambda text, done, total: now.update(f"measuring {min(done + 1, total)}/{total}: {text}"),
        )
    show(f"Wrote {found.path}: {found.cluster.description}, measured in {found.seconds:.0f} s.")
    for skipped in found.skipped:
        show(f"  left out: {skipped}")
    if found.notes:
        others = f", and {len(found.notes) - 1} more like it" if len(found.notes) > 1 else ""
        show(f"  disturbed: {found.notes[0]}{others}")
    show("Use it with `--on local`.")
