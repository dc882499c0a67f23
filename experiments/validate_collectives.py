"""How well collectives are predicted: ``python -m hpdlf.experiments.validate_collectives DIR [--json FILE]``.

DIR is laid out as published/allreduce.py says (any of the files). Every measured collective is predicted in four ways:

* shipped   by the model and the profiles that come with the package, which were fitted on these tables;
* ranks     by a link fitted on the other numbers of ranks of the same system;
* sizes     by a link fitted on the smaller half of the sizes (for the larger) and the other way round;
* system    by a link that knows its datasheet and wiring alone, and takes efficiency and overhead from the systems of
            other families on a like fabric (their geometric means), with an interval as wide as those differ.

and a row says, per file, system and number of ranks, how many measurements there are, the median and 90th percentile
of the absolute relative error, the bias (median relative error), the share of measurements inside the 90 % interval and
the median width of that interval over the prediction. Errors and shares are fractions. ``--fit`` prints instead what
the links' profiles should say, fitted on all that is there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import exp
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ..errors import HpdlfError
from ..hwprofiles import Link, Quantity, load_link
from ..models.cost import CostModel, Estimate, collective_workload
from ..models.cost.fit_links import COLLECTIVE, Timed, fit_link
from .published.allreduce import Measured, System, read_collectives

__all__ = ["CASES", "main", "validate"]

CASES = ("shipped", "ranks", "sizes", "system")
# Software other than what the model describes is shown beside it and never fitted on.
MODELLED = ("NCCL", "Intel MLSL", "SimuMax")
NINETY = 1.645
# Links whose wiring says what share of the bandwidth small groups see: rings that fit among the first GPUs of the cube
# mesh (directed Hamiltonian cycles over NVLinks that no two share; five GPUs have none and are given the two links of
# the fifth), and links between GPUs that are all joined directly.
WIRING: Mapping[str, Mapping[int, float]] = {
    "nvlink2": {2: 1 / 6, 3: 2 / 6, 4: 4 / 6, 5: 2 / 6, 6: 2 / 6, 7: 4 / 6, 8: 1.0},
    "nvlink2-mesh": {2: 1 / 3, 3: 2 / 3, 4: 1.0},
    "pcie3-host": {2: 1.0, 8: 1.0},  # each GPU sees less than the bridge between sockets carries
}
# The share of a link's bandwidth that is left where every byte crosses it twice.
LEAST_SPREAD = 0.15
STAGED: Mapping[str, float] = {"pcie3-host": 0.5}
# What one system tells of another: fabrics that behave alike.
_LIKE = {"nvlink-sharp": "nvlink", "omni-path": "network", "infiniband": "network", "ethernet": "network"}


def validate(data: Path, cases: Iterable[str] = CASES) -> list[dict[str, Any]]:
    """The rows of the table, as the module says.

    Raises:
        DataError: `data` holds none of the tables.
    """
    measured = read_collectives(data)
    rows: list[dict[str, Any]] = []
    predict: dict[str, Callable[[Sequence[Measured]], Iterator[tuple[Measured, Estimate]]]] = {
        "shipped": lambda found: ((one, _price(one, None)) for one in found),
        "ranks": _without_ranks,
        "sizes": _without_sizes,
        "system": _without_system,
    }
    for case in cases:
        groups: dict[tuple[str, str, str, int], list[tuple[Measured, Estimate]]] = {}
        for one, estimate in predict[case](measured):
            key = (one.file, one.system.name, f"{one.timed.kind}, {one.library}", one.timed.ranks)
            groups.setdefault(key, []).append((one, estimate))
        rows += [_row(case, key, found) for key, found in groups.items()]
    return rows


def _row(case: str, key: tuple[str, str, str, int], found: Sequence[tuple[Measured, Estimate]]) -> dict[str, Any]:
    errors = np.array([estimate.seconds / one.timed.seconds - 1.0 for one, estimate in found])
    inside = [e.low_s <= one.timed.seconds <= e.high_s for one, e in found]
    file, system, what, ranks = key
    return {
        "case": case,
        "file": file,
        "system": system,
        "what": what,
        "ranks": ranks,
        "n": len(found),
        "median_ape": float(np.median(np.abs(errors))),
        "p90_ape": float(np.quantile(np.abs(errors), 0.9)),
        "bias": float(np.median(errors)),
        "coverage90": float(np.mean(inside)),
        "relative_width": median((e.high_s - e.low_s) / e.seconds for _, e in found),
    }


def _price(one: Measured, link: Link | None) -> Estimate:
    """The prediction with `link` in the place of the one that the measurement spans."""
    timed, across = one.timed, one.timed.nodes > 1
    cluster = one.system.cluster(timed, inner=None if across else link, outer=link if across else None)
    workload = collective_workload(
        timed.kind, int(timed.nbytes), ranks=timed.placed(cluster), cluster=cluster, algorithm=timed.algorithm
    )
    assert workload is not None
    return CostModel.default().price(workload, None)


def _spanning(measured: Sequence[Measured]) -> Iterator[tuple[System, bool, list[Measured]]]:
    """Measurements by system, those of one node apart from those of several; software that is modelled only."""
    groups: dict[tuple[str, bool], list[Measured]] = {}
    for one in measured:
        if one.library.startswith(MODELLED) and "problem" not in one.library:
            groups.setdefault((one.system.name, one.timed.nodes > 1), []).append(one)
    for (_, across), found in groups.items():
        yield found[0].system, across, found


def _profile(system: System, across: bool) -> Link:
    name = system.outer if across else system.inner
    assert name is not None
    return load_link(name)


def _fitted(system: System, across: bool, found: Sequence[Measured], start: Link | None = None) -> Link:
    """The link of a system fitted on what was measured there: at most some dozens of sizes for each number of ranks."""

    def layout(link: Link, timed: Timed) -> Any:
        return system.cluster(timed, inner=None if across else link, outer=link if across else None)

    reductions = [one.timed for one in found if one.timed.kind == "all_reduce"]
    vary = [f for f in COLLECTIVE if f != "half_bandwidth_bytes" or len(reductions) > 100]
    if len({one.nodes if across else one.ranks for one in reductions}) < 2 or (across and system.inner):
        vary.remove("group_share")
    link = _bare(start or _profile(system, across))
    return fit_link(link, _thinned(reductions), layout, vary=vary, source=", ".join(sorted({o.file for o in found})))


def _thinned(timed: Sequence[Timed]) -> list[Timed]:
    by_group: dict[tuple[int, int], list[Timed]] = {}
    for one in sorted(timed, key=lambda one: one.nbytes):
        by_group.setdefault((one.ranks, one.nodes), []).append(one)
    return [one for group in by_group.values() for one in group[:: max(1, len(group) // 25)]]


def _bare(link: Link) -> Link:
    """The link as its datasheet and wiring tell it: without what only a measurement of collectives can say."""
    shares = {
        str(ranks): Quantity(value=share, unit="1", source="wiring", tier="modelled")
        for ranks, share in WIRING.get(link.name, {}).items()
    }
    return dataclasses.replace(
        link,
        collective_efficiency=None,
        collective_overhead_s=None,
        half_bandwidth_bytes=None,
        group_share=shares,
    )


def _without_ranks(measured: Sequence[Measured]) -> Iterator[tuple[Measured, Estimate]]:
    for system, across, found in _spanning(measured):
        for ranks in sorted({one.timed.ranks for one in found}):
            rest = [one for one in found if one.timed.ranks != ranks and one.timed.kind == "all_reduce"]
            if rest:
                link = _wired(_fitted(system, across, rest), {one.timed.ranks for one in rest})
                yield from ((one, _price(one, link)) for one in found if one.timed.ranks == ranks)


def _wired(link: Link, seen: set[int]) -> Link:
    """`link` with what its wiring says of the groups that were not seen, in proportion to those that were."""
    wired = WIRING.get(link.name, {})
    known = [link.share_of(ranks) / wired[ranks] for ranks in seen if ranks in wired]
    if not known:
        return link
    scale = median(known)
    unseen = {
        str(ranks): Quantity(value=share * scale, unit="1", source="wiring", tier="modelled")
        for ranks, share in wired.items()
        if ranks not in seen
    }
    return dataclasses.replace(link, group_share={**link.group_share, **unseen})


def _without_sizes(measured: Sequence[Measured]) -> Iterator[tuple[Measured, Estimate]]:
    for system, across, found in _spanning(measured):
        sizes = sorted({one.timed.nbytes for one in found})
        middle = sizes[len(sizes) // 2]
        for small in (True, False):
            rest = [one for one in found if (one.timed.nbytes < middle) != small]
            if any(one.timed.kind == "all_reduce" for one in rest):
                link = _fitted(system, across, rest)
                yield from ((one, _price(one, link)) for one in found if (one.timed.nbytes < middle) == small)


def _without_system(measured: Sequence[Measured]) -> Iterator[tuple[Measured, Estimate]]:
    fitted = [(system, across, found, _fitted(system, across, found)) for system, across, found in _spanning(measured)]
    for system, across, found, _ in fitted:
        bare = _bare(_profile(system, across))
        others = [
            link
            for other, there, _, link in fitted
            if other.family != system.family and there == across and _alike(link, bare)
        ]
        if others:
            yield from ((one, _price(one, _like(bare, others))) for one in found)


def _alike(a: Link, b: Link) -> bool:
    return _LIKE.get(a.fabric, a.fabric) == _LIKE.get(b.fabric, b.fabric)


def _like(bare: Link, others: Sequence[Link]) -> Link:
    """`bare` with the geometric means of what was fitted on `others`."""

    def mean(values: Sequence[float], unit: str, least: float) -> Quantity:
        logs = np.log(values)
        middle = float(np.mean(logs))
        spread = max(least, float(np.std(logs, ddof=1)) if len(values) > 1 else 0.0)
        low, high = exp(middle - NINETY * spread), exp(middle + NINETY * spread)
        return Quantity(value=exp(middle), low=low, high=high, unit=unit, source="other systems", tier="modelled")

    efficiency = [
        one.collective_efficiency.value / STAGED.get(one.name, 1.0) * STAGED.get(bare.name, 1.0)
        for one in others
        if one.collective_efficiency
    ]
    overhead = [one.collective_overhead_s.value for one in others if one.collective_overhead_s]
    shares = bare.group_share
    if not shares and bare.fabric == "pcie":
        groups = sorted({ranks for one in others for ranks in one.group_share}, key=int)
        direct = [one for one in others if one.name not in WIRING] or others
        shares = {g: mean([one.share_of(int(g)) for one in direct], "1", 0.2) for g in groups}
    return dataclasses.replace(
        bare,
        collective_efficiency=mean(efficiency, "1", LEAST_SPREAD),
        collective_overhead_s=mean(overhead, "s", 0.5),
        group_share=shares,
    )


def _print_fit(measured: Sequence[Measured]) -> None:
    for system, across, found in _spanning(measured):
        link = _fitted(system, across, found)
        sys.stdout.write(f"{system.name}: {link.name}\n")
        for name in COLLECTIVE:
            held = getattr(link, name)
            for key, one in held.items() if isinstance(held, Mapping) else [("", held)]:
                if one is not None:
                    sys.stdout.write(f"  {name}{'.' * bool(key)}{key} = {one.value:.3g} [{one.low}, {one.high}]\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(description="how well measured collectives are predicted")
    parser.add_argument("data", type=Path, help="folder with vtrain/, deepbench/, collectives/, simumax/")
    parser.add_argument("--case", choices=CASES, action="append", help="only these ways of predicting")
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--fit", action="store_true", help="print what the links' profiles should say")
    options = parser.parse_args(arguments)
    try:
        if options.fit:
            _print_fit(read_collectives(options.data))
            return 0
        rows = validate(options.data, options.case or CASES)
    except HpdlfError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    for row in rows:
        sys.stdout.write(
            f"{row['case']:8} {row['system']:14} {row['what']:40} {row['ranks']:3} ranks {row['n']:4}  "
            f"median {row['median_ape']:6.1%}  p90 {row['p90_ape']:6.1%}  bias {row['bias']:+7.1%}  "
            f"inside {row['coverage90']:4.0%}  width {row['relative_width']:.2f}\n"
        )
    if options.json:
        options.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
