"""From what mpiexec prints to a sentence. The texts are those of the launchers, as they print them."""

import doctest
from pathlib import Path

import pytest

from hpdlf.errors import RunError
from hpdlf.exec import diagnosis
from hpdlf.exec.diagnosis import Said, diagnose, is_launcher_noise, oom_kills, read_mpiexec
from hpdlf.exec.rank_status import RankReport

KILLED = "prterun noticed that process rank 1 with PID 8531 on node vm exited on\nsignal 9 (Killed).\n"
EXITED = """prterun detected that one or more processes exited with non-zero status,
thus causing the job to be terminated. The first process to do so was:

   Process name: [prterun-vm-8536@1,1]
   Exit code:    3
"""
MPIRUN = "mpirun noticed that process rank 2 with PID 0 on node n017 exited on signal 11 (Segmentation fault).\n"
INTEL = """===================================================================================
=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES
=   RANK 3 PID 4711 RUNNING AT n001
=   KILLED BY SIGNAL: 9 (Killed)
===================================================================================
"""
MPICH = """=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES
=   PID 4711 RUNNING AT n001
=   EXIT CODE: 9
"""
SRUN = "srun: error: n002: task 5: Killed\n"
SRUN_EXIT = "srun: error: n002: task 5: Exited with exit code 4\n"
LOST = """PRTE has lost communication with a remote daemon.

  HNP daemon   : [prterun-n001-1@0,0] on node n001
  Remote daemon: [prterun-n001-1@0,1] on node n002
"""


def test_doctests() -> None:
    assert doctest.testmod(diagnosis).failed == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (KILLED, Said(rank=1, signal=9)),
        (EXITED, Said(rank=1, exit_code=3)),
        (MPIRUN, Said(rank=2, signal=11)),
        (INTEL, Said(rank=3, signal=9)),
        (MPICH, Said(signal=9)),
        (SRUN, Said(rank=5, signal=9)),
        (SRUN_EXIT, Said(rank=5, exit_code=4)),
        (LOST, Said(lost_node="n002")),
        ("an ordinary warning", Said()),
    ],
)
def test_what_launchers_say(text: str, expected: Said) -> None:
    assert read_mpiexec("some warning\n" + text + "more\n") == expected


@pytest.mark.parametrize("text", [KILLED, EXITED, MPIRUN, INTEL, LOST])
def test_their_accounts_are_noise(text: str) -> None:
    assert is_launcher_noise(text)
    assert not is_launcher_noise("A warning about your network")


def report(rank: int, **values: object) -> RankReport:
    return RankReport(
        **{"rank": rank, "role": "stage0", "host": "vm", "pid": 10, "state": "running", "step": 4, **values}
    )  # type: ignore[arg-type]


def test_out_of_memory_is_known_where_the_kernel_counts() -> None:
    reports = {1: report(1)}
    assert "dmesg" in diagnose(137, KILLED, reports).reason
    assert "the kernel killed it because memory ran out" in diagnose(137, KILLED, reports, out_of_memory=True).reason


def test_the_dead_rank_is_blamed_not_those_that_noticed() -> None:
    noticed = report(0, state="failed", error="Exception: MPI_ERR_OTHER", error_class="Exception", ended_s=1.0)
    found = diagnose(137, KILLED, {0: noticed, 1: report(1)})
    assert (found.rank, found.step, found.restartable) == (1, 4, True)


def test_an_error_of_the_users_comes_first_and_as_it_is() -> None:
    full = report(0, state="failed", error="The disk is full.", error_class="RunError", user_error=True, ended_s=2.0)
    other = report(1, state="failed", error="Exception: x", error_class="Exception", ended_s=1.0)
    found = diagnose(1, KILLED, {0: full, 1: other})
    assert (found.reason, found.restartable) == ("The disk is full.", False)
    assert found.report is not None
    assert isinstance(found.report.as_error(), RunError)
    assert str(found.report.as_error()) == "The disk is full."


def test_nothing_known_is_said_so() -> None:
    assert diagnose(213, "", {}).reason == "mpiexec ended with exit code 213 before any rank had started"
    assert diagnose(213, "", {0: report(0)}).reason == "mpiexec ended with exit code 213, without saying why"
    assert diagnose(1, LOST, {0: report(0)}).reason.startswith("the connection to node n002 was lost")


def test_counting_kills(tmp_path: Path) -> None:
    (tmp_path / "memory.events").write_text("low 0\nhigh 0\nmax 3\noom 1\noom_kill 2\n")
    assert oom_kills(tmp_path / "memory.events") == 2
    assert oom_kills(tmp_path / "absent") is None
