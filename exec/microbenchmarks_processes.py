"""Processes for measuring: one core and one thread each, messages as JSON lines, nothing left behind by a failure."""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from ..errors import RunError
from .environment import rank_environment

__all__ = ["json_lines", "json_lines_together", "mpi_command", "one_core_environment", "run_together"]


def one_core_environment() -> dict[str, str]:
    """The environment of a rank (see :func:`.environment.rank_environment`), on the processor whatever else there is."""
    return rank_environment() | {"JAX_PLATFORMS": "cpu"}


def mpi_command(ranks: int) -> tuple[list[str] | None, str]:
    """The beginning of a command that starts `ranks` ranks (the mpiexec beside this Python first), or None and why."""
    from importlib.util import find_spec

    if find_spec("mpi4py") is None:
        return (
            None,
            "mpi4py is not installed; `pip install 'hpdlf[mpi]'`, or load the centre's MPI module and install mpi4py",
        )
    beside = Path(sys.executable).parent / "mpiexec"
    mpiexec = str(beside) if beside.is_file() else shutil.which("mpiexec")
    if mpiexec is None:
        return None, "there is no mpiexec; `pip install 'hpdlf[mpi]'`, or load the centre's MPI module"
    try:
        said = subprocess.run([mpiexec, "--version"], capture_output=True, text=True, timeout=30, check=False).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"{mpiexec} does not run: {error}"
    open_mpi = "open mpi" in said.lower() or "open-mpi" in said.lower()
    extra = ["--oversubscribe", "--allow-run-as-root"] if open_mpi else []
    return [mpiexec, "-n", str(ranks), *extra], ""


def json_lines(
    command: list[str],
    *,
    env: dict[str, str],
    timeout_s: float,
    what: str,
    started: Callable[[subprocess.Popen[str]], None] = lambda process: None,
) -> Iterator[dict[str, Any]]:
    """Run `command` and yield the JSON objects that it prints, as it prints them.

    Raises RunError if it fails or takes longer than `timeout_s`. However this ends, the command and its children do
    not outlive it. `started` is told of the process.
    """
    with tempfile.TemporaryFile("w+") as errors:
        process = _start(command, env, errors)
        started(process)
        late = threading.Event()

        def expire() -> None:
            late.set()
            _end(process)

        watch = threading.Timer(timeout_s, expire)
        watch.daemon = True
        watch.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                # Libraries print warnings of their own among the messages.
                if line.startswith("{"):
                    yield json.loads(line)
            code = process.wait()
        finally:
            watch.cancel()
            _end(process)
        if late.is_set():
            raise RunError(
                f"{what} took longer than {timeout_s:.0f} s and was stopped; is the machine busy with something else?"
            )
        if code:
            raise RunError(f"{what} failed with exit code {code}: {_last_line(errors)}")


def json_lines_together(
    commands: list[list[str]], *, env: dict[str, str], timeout_s: float, what: str
) -> Iterator[dict[str, Any]]:
    """As :func:`json_lines`, of several commands at once, in the order in which objects come."""
    messages: queue.Queue[dict[str, Any] | BaseException | None] = queue.Queue()
    processes: list[subprocess.Popen[str]] = []

    def read(command: list[str]) -> None:
        try:
            lines = json_lines(command, env=env, timeout_s=timeout_s, what=what, started=processes.append)
            for message in lines:
                messages.put(message)
        except BaseException as error:
            messages.put(error)
        else:
            messages.put(None)

    readers = [threading.Thread(target=read, args=(command,), daemon=True) for command in commands]
    for reader in readers:
        reader.start()
    running, failure = len(readers), None
    try:
        while running:
            found = messages.get()
            if isinstance(found, dict):
                yield found
                continue
            running -= 1
            failure = failure or found
    finally:
        for process in processes:
            _end(process)
    if failure is not None:
        raise failure


def run_together(
    commands: list[list[str]],
    *,
    env: dict[str, str],
    timeout_s: float,
    what: str,
    meanwhile: Callable[[], None] | None = None,
) -> list[str]:
    """Run the commands at once and return what each printed; `meanwhile` is called while they run. Raises RunError."""
    with tempfile.TemporaryFile("w+") as errors:
        processes = []
        try:
            processes = [_start(command, env, errors) for command in commands]
            if meanwhile is not None:
                meanwhile()
            outputs = [process.communicate(timeout=timeout_s)[0] for process in processes]
        except subprocess.TimeoutExpired:
            raise RunError(f"{what} took longer than {timeout_s:.0f} s and was stopped") from None
        finally:
            for process in processes:
                _end(process)
        if any(process.returncode for process in processes):
            raise RunError(f"{what} failed: {_last_line(errors)}")
        return outputs


def _start(command: list[str], env: dict[str, str], errors: IO[str]) -> subprocess.Popen[str]:
    try:
        return subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            # A group of its own: it can be ended with all its children, and Ctrl-C reaches only us, who end it.
            start_new_session=True,
        )
    except OSError as error:
        raise RunError(f"{command[0]} cannot be started: {error.strerror}") from None


def _end(process: subprocess.Popen[str]) -> None:
    """End a process that still runs, and its group; mpiexec gets a moment to end its ranks."""
    if process.poll() is not None:
        return
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            return
        try:
            process.wait(timeout=3)
            return
        except subprocess.TimeoutExpired:
            continue


def _last_line(errors: IO[str]) -> str:
    errors.seek(0)
    lines = [line.strip() for line in errors.read().splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
