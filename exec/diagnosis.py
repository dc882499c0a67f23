"""Why a run ended: from what the ranks said, what mpiexec said, and how it exited, to a sentence."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .rank_status import RankReport

__all__ = ["Failure", "Said", "diagnose", "is_launcher_noise", "oom_kills", "read_mpiexec"]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """How an attempt ended. `rank` is None where nothing tells; `restartable`: another attempt may end better."""

    rank: int | None
    step: int | None
    reason: str
    restartable: bool
    report: RankReport | None = None


@dataclass(frozen=True, kw_only=True)
class Said:
    """What mpiexec says of the first rank that ended badly."""

    rank: int | None = None
    signal: int | None = None
    exit_code: int | None = None
    lost_node: str | None = None


_SIGNAL = (
    # Open MPI (prterun), also mpirun of version 4; Intel MPI; srun
    re.compile(r"process rank (?P<rank>\d+) with PID \d+ on node \S+ exited on signal (?P<signal>\d+)"),
    re.compile(r"RANK (?P<rank>\d+) PID \d+ RUNNING AT \S+ =? ?KILLED BY SIGNAL: (?P<signal>\d+)"),
    re.compile(
        r"srun: error: \S+: task (?P<rank>\d+): (?P<word>Killed|Terminated|Segmentation fault|Aborted|Bus error)"
    ),
)
_EXIT = (
    re.compile(r"Process name: \[[^\]]*,(?P<rank>\d+)\] Exit code: (?P<code>\d+)"),
    re.compile(r"srun: error: \S+: task (?P<rank>\d+): Exited with exit code (?P<code>\d+)"),
)
_HYDRA = re.compile(r"BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES.{0,200}?EXIT CODE: (?P<code>\d+)")
_LOST = re.compile(r"lost communication with a remote daemon.{0,400}?Remote daemon *: \S+ on node (?P<node>[\w.-]+)")
_WORDS = {"Killed": 9, "Terminated": 15, "Segmentation fault": 11, "Aborted": 6, "Bus error": 7}
_NOISE = re.compile(
    r"noticed that process rank|exited with non-zero status|MPI_ABORT was invoked|calling \"abort\""
    r"|lost communication with a|has exited due to process|BAD TERMINATION"
)


def read_mpiexec(text: str) -> Said:
    """What the messages of an mpiexec or srun say.

    >>> read_mpiexec("prterun noticed that process rank 1 with PID 8531 on node vm exited on\\nsignal 9 (Killed).")
    Said(rank=1, signal=9, exit_code=None, lost_node=None)
    """
    flat = " ".join(text.split())
    for pattern in _SIGNAL:
        if found := pattern.search(flat):
            named = found.groupdict()
            number = int(named["signal"]) if named.get("signal") else _WORDS[named["word"]]
            return Said(rank=int(named["rank"]), signal=number)
    for pattern in _EXIT:
        if found := pattern.search(flat):
            return Said(rank=int(found["rank"]), exit_code=int(found["code"]))
    if found := _LOST.search(flat):
        return Said(lost_node=found["node"])
    if found := _HYDRA.search(flat):
        code = int(found["code"])
        return Said(signal=code) if code in (6, 7, 9, 11, 15) else Said(exit_code=code)
    return Said()


def is_launcher_noise(block: str) -> bool:
    """Whether a block that mpiexec prints between dashes only repeats what we say better."""
    return _NOISE.search(" ".join(block.split())) is not None


def oom_kills(path: Path = Path("/sys/fs/cgroup/memory.events")) -> int | None:
    """Processes of this control group that the kernel has killed for want of memory; None where it does not tell."""
    try:
        counts = dict(line.split() for line in path.read_text().splitlines())
        return int(counts["oom_kill"])
    except (OSError, ValueError, KeyError):
        return None


def diagnose(
    exit_code: int,
    text: str,
    reports: Mapping[int, RankReport],
    *,
    out_of_memory: bool = False,
    silent: int | None = None,
) -> Failure:
    """How an attempt failed.

    exit_code       mpiexec's
    text            what it and the ranks printed as errors
    reports         of the ranks, of this attempt
    out_of_memory   the kernel killed a process for want of memory meanwhile
    silent          the rank whose process gave no sign of life, so that the attempt was stopped
    """
    failed = sorted((r for r in reports.values() if r.state == "failed"), key=lambda r: r.ended_s or 0.0)
    mendable = next((r for r in failed if r.user_error), None)
    if mendable is not None:
        return Failure(
            rank=mendable.rank, step=mendable.step, reason=mendable.error, restartable=False, report=mendable
        )
    said = read_mpiexec(text)
    report = reports.get(said.rank) if said.rank is not None else None
    who, at = _who(said.rank, report), _at(report)
    step = report.step if report else max((r.step for r in reports.values() if r.step is not None), default=None)

    def failure(reason: str, restartable: bool = True) -> Failure:
        return Failure(rank=said.rank, step=step, reason=reason, restartable=restartable, report=report)

    if silent is not None:
        quiet = reports.get(silent)
        reason = f"{_who(silent, quiet)} gave no sign of life{_at(quiet)}: its host is down, or the process was halted"
        return Failure(rank=silent, step=quiet.step if quiet else None, reason=reason, restartable=True, report=quiet)
    if said.signal is not None:
        return failure(f"{who} was ended by signal {said.signal}{at}: {_signal_in_words(said.signal, out_of_memory)}")
    if said.lost_node is not None:
        return failure(f"the connection to node {said.lost_node} was lost: it is down, or the network is")
    if failed:
        first = failed[0]
        reason = f"{_who(first.rank, first)} failed{_at(first)} with {first.error}"
        return Failure(rank=first.rank, step=first.step, reason=reason, restartable=False, report=first)
    if said.exit_code is not None:
        return failure(f"{who} ended by itself with exit code {said.exit_code}{at}, without saying why")
    if not reports:
        return failure(f"mpiexec ended with exit code {exit_code} before any rank had started", restartable=False)
    return failure(f"mpiexec ended with exit code {exit_code}, without saying why")


def _who(rank: int | None, report: RankReport | None) -> str:
    if rank is None:
        return "a rank"
    return f"{report.name}, process {report.pid} on {report.host}," if report else f"rank {rank}"


def _at(report: RankReport | None) -> str:
    if report is None:
        return ""
    if report.step is None:
        return " before its first step"
    # A rank that died had no chance to say how far it came since its last beat.
    return f" at step {report.step}" if report.state == "failed" else f" at about step {report.step}"


def _signal_in_words(number: int, out_of_memory: bool) -> str:
    if number == signal.SIGKILL:
        if out_of_memory:
            return "the kernel killed it because memory ran out; plan with more devices or smaller microbatches"
        return "killed, by a person or because memory ran out (`dmesg | grep -i oom` tells)"
    meanings = {
        signal.SIGTERM: "somebody, or a batch system, told it to end",
        signal.SIGSEGV: "a library accessed memory that is not its own",
        signal.SIGABRT: "a library gave up; its message stands above",
        signal.SIGBUS: "memory-mapped data vanished under it: a data file was cut short, or /dev/shm is full",
        signal.SIGILL: "a library was built for another kind of CPU",
        signal.SIGFPE: "a library divided by zero",
        signal.SIGINT: "somebody interrupted it",
    }
    try:
        known = signal.Signals(number)
    except ValueError:
        return "unknown"
    return meanings.get(known, signal.strsignal(number) or known.name)
