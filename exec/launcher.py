"""Starting ranks, watching them, and starting them again where that can help.

:func:`launch` runs ``mpiexec`` with the flags and the environment that this machine wants, forwards what the ranks
print, and finds out which rank ended and why if the run does not end well. Interrupted (Ctrl-C, or a termination
signal) it ends every rank, removes half-written checkpoints and says how to go on.
"""

from __future__ import annotations

import codecs
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..errors import RunError
from .affinity import THREADS, allowed_cpus
from .checkpoint import latest, remove_incomplete
from .diagnosis import Failure, diagnose, is_launcher_noise, oom_kills
from .environment import rank_environment
from .mpi import Mpiexec, detect_mpi_context, find_mpiexec
from .rank_status import process_started, read_reports

__all__ = ["Launched", "detect_mpi_context", "launch"]

GRACE_S = 10.0
POLL_S = 0.2
TAIL_CHARACTERS = 200_000


@dataclass(frozen=True, kw_only=True)
class Launched:
    """A run that ended well, after `failures` (none, usually)."""

    seconds: float
    failures: tuple[Failure, ...]


def launch(
    command: Sequence[str],
    ranks: int,
    *,
    run_folder: Path,
    checkpoint_folder: Path | None = None,
    max_restarts: int = 3,
    resume: Callable[[int], Sequence[str]] | None = None,
    environment: Mapping[str, str] | None = None,
    threads: int = 1,
    silence_s: float = 300.0,
    output: Callable[[str], None] | None = None,
    tell: Callable[[str], None] | None = None,
    mpiexec: Mpiexec | None = None,
) -> Launched:
    """Run `command` as `ranks` MPI ranks until it ends well.

    run_folder          where ranks report in ``ranks/`` (see :class:`hpdlf.exec.rank_status.RankStatus`)
    checkpoint_folder   default: ``checkpoints`` in it; cleared of what is half-written whenever ranks have ended badly
    max_restarts        further attempts after ranks died; HPDLF_ATTEMPT in their environment counts from 0
    resume              the command of attempt number n > 0; default: `command` with ``--resume``, once
    environment         variables on top of :func:`hpdlf.exec.environment.rank_environment`
    threads             cores that every rank computes on; HPDLF_THREADS in their environment where it is more than one
    silence_s           a rank that has reported once and then not for so long counts as dead
    output              what the ranks print, in pieces; default: this process's own output
    tell                sentences of our own about restarts; default: this process's error output

    Raises:
        RunError: a rank died and attempts are used up, or it failed in a way that another attempt would repeat; or
        there is no
            mpiexec; or somebody interrupted the run. An error that a rank reports as the user's keeps its class.
    """
    mpiexec = mpiexec or find_mpiexec()
    folder = checkpoint_folder or run_folder / "checkpoints"
    say = tell or (lambda text: print(text, file=sys.stderr, flush=True))
    failures: list[Failure] = []
    began = time.monotonic()
    current = list(command)
    while True:
        attempt = len(failures)
        variables = {**(environment or {}), "HPDLF_ATTEMPT": str(attempt)}
        with _Attempt(mpiexec, current, ranks, run_folder, variables, attempt, output, threads) as running:
            failure = running.wait(silence_s)
        if failure is None:
            return Launched(seconds=time.monotonic() - began, failures=tuple(failures))
        remove_incomplete(folder)
        if running.interrupted:
            raise RunError(
                f"Stopped{_reached(failure, folder)}. Go on with `hpdlf train PLAN --out {run_folder} --resume`."
            )
        failures.append(failure)
        if not failure.restartable:
            if failure.report is not None and failure.report.user_error:
                raise failure.report.as_error()
            raise RunError(f"The run failed: {failure.reason}.{_log_hint(running.log)}")
        if len(failures) > max_restarts:
            again = f"; that was attempt {len(failures)}" if max_restarts else ""
            raise RunError(
                f"The run failed: {failure.reason}{again}. Go on with `hpdlf train PLAN --out {run_folder} "
                f"--resume`.{_log_hint(running.log)}"
            )
        found = latest(folder)
        origin = (
            f"from the checkpoint after step {found.step}"
            if found
            else "from the beginning, as there is no checkpoint yet"
        )
        say(
            f"{failure.reason[0].upper()}{failure.reason[1:]}. Starting again {origin} (restart {len(failures)} of "
            f"{max_restarts})."
        )
        if resume is not None:
            current = list(resume(len(failures)))
        elif "--resume" not in current:
            current.append("--resume")


def _reached(failure: Failure, folder: Path) -> str:
    found = latest(folder)
    step = "" if failure.step is None else f" at about step {failure.step}"
    return f"{step}; the checkpoint after step {found.step} is kept" if found else f"{step}; there is no checkpoint yet"


def _log_hint(log: Path) -> str:
    return f" What the ranks printed as errors is in {log}." if log.is_file() and log.stat().st_size else ""


class _Attempt:
    """One mpiexec from start to end; leaving the block ends whatever still runs."""

    def __init__(
        self,
        mpiexec: Mpiexec,
        command: Sequence[str],
        ranks: int,
        run_folder: Path,
        variables: Mapping[str, str],
        attempt: int,
        output: Callable[[str], None] | None,
        threads: int,
    ) -> None:
        self.run_folder, self.attempt, self.ranks = run_folder, attempt, ranks
        self.interrupted = False
        self.log = run_folder / f"errors-{attempt}.log"
        variables = {**({THREADS: str(threads)} if threads > 1 else {}), **variables}
        own = rank_environment({}, threads=threads)
        env = rank_environment(threads=threads) | dict(variables)
        allowed = len(allowed_cpus())
        (run_folder / "ranks").mkdir(parents=True, exist_ok=True)
        for stale in (run_folder / "ranks").glob("*.json"):
            stale.unlink(missing_ok=True)
        self._oom_before = oom_kills()
        self._tail: list[str] = []
        self._process = subprocess.Popen(
            [
                *mpiexec.command(ranks, cpus=allowed, forward=sorted({*own, *variables}), threads=threads),
                *command,
            ],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # so that a terminal's Ctrl-C reaches us alone, and we end the ranks in order
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._readers = [
            threading.Thread(target=_forward, args=(self._process.stdout, output or _writer(sys.stdout)), daemon=True),
            threading.Thread(
                target=self._errors, args=(self._process.stderr, output or _writer(sys.stderr)), daemon=True
            ),
        ]
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> _Attempt:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def wait(self, silence_s: float) -> Failure | None:
        """Until the attempt ends; None if it ended well."""
        silent = None
        try:
            with _terminations():
                silent = self._watch(silence_s)
        except KeyboardInterrupt:
            self.interrupted = True
        self._end()
        code = self._process.returncode
        reports = read_reports(self.run_folder, attempt=self.attempt)
        if code == 0 and not self.interrupted and silent is None:
            return None
        kills = oom_kills()
        out_of_memory = kills is not None and self._oom_before is not None and kills > self._oom_before
        return diagnose(code, "".join(self._tail), reports, out_of_memory=out_of_memory, silent=silent)

    def _watch(self, silence_s: float) -> int | None:
        """Wait for mpiexec; the rank that fell silent, if that ended the wait."""
        seen: dict[int, tuple[tuple[Any, ...], float]] = {}
        look = time.monotonic()
        while True:
            try:
                self._process.wait(POLL_S)
                return None
            except subprocess.TimeoutExpired:
                pass
            if (now := time.monotonic()) < look:
                continue
            look = now + min(5.0, silence_s / 4)
            for rank, report in read_reports(self.run_folder, attempt=self.attempt).items():
                sign = (report.beat, report.state, report.step)
                if rank not in seen or seen[rank][0] != sign:
                    seen[rank] = (sign, now)
                elif report.state in ("starting", "running") and now - seen[rank][1] > silence_s:
                    return rank

    def _end(self) -> None:
        """End mpiexec and, should it not have done so, its ranks on this host."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        deadline = time.monotonic() + GRACE_S
        while left := self._left():
            for pid in left:
                _kill(pid)
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)
        for reader in self._readers:
            reader.join(GRACE_S)

    def _left(self) -> list[int]:
        """Ranks on this host that still run: mpiexec, when it is stopped, does not always wait for them."""
        reports = read_reports(self.run_folder, attempt=self.attempt).values()
        here = [r for r in reports if r.host == platform.node() and r.started is not None]
        return [r.pid for r in here if process_started(r.pid) == r.started]

    def _errors(self, stream: IO[bytes], write: Callable[[str], None]) -> None:
        """Forward error output but for mpiexec's own account of a dead rank, and keep all of it."""
        block: list[str] | None = None
        with _Log(self.log) as log:
            for raw in stream:
                line = raw.decode("utf-8", errors="replace")
                log.write(line)
                self._tail.append(line)
                while sum(map(len, self._tail)) > TAIL_CHARACTERS and len(self._tail) > 1:
                    self._tail.pop(0)
                ruler = set(line.strip()) == {"-"} and len(line.strip()) > 60
                if block is None and not ruler:
                    write(line)
                elif block is None:
                    block = [line]
                else:
                    block.append(line)
                    if ruler:
                        if not is_launcher_noise("".join(block)):
                            write("".join(block))
                        block = None
            if block is not None and not is_launcher_noise("".join(block)):
                write("".join(block))
        stream.close()


class _Log:
    """A file of lines that stops growing where the disk is full: a reader that stopped would halt the ranks."""

    def __init__(self, path: Path) -> None:
        self._file: IO[bytes] | None
        try:
            self._file = path.open("wb", buffering=0)
        except OSError:
            self._file = None

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, line: str) -> None:
        if self._file is None:
            return
        try:
            self._file.write(line.encode())
        except OSError:
            self._file.close()
            self._file = None


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _forward(stream: IO[bytes], write: Callable[[str], None]) -> None:
    """Pass on what comes as it comes: a progress bar has no line ends."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    while piece := os.read(stream.fileno(), 65536):
        write(decoder.decode(piece))
    stream.close()


def _writer(file: IO[str]) -> Callable[[str], None]:
    def write(text: str) -> None:
        file.write(text)
        file.flush()

    return write


@contextmanager
def _terminations() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end a run as Ctrl-C does. Only the main thread may; elsewhere they keep their meaning."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    former = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
