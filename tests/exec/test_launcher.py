"""Real ranks under a real mpiexec: one dies, one fails, one falls silent, somebody presses Ctrl-C."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hpdlf.errors import DataError, RunError
from hpdlf.exec.launcher import Launched, launch
from hpdlf.exec.mpi import find_mpiexec
from hpdlf.exec.rank_status import process_started, read_reports

pytestmark = pytest.mark.mpi

try:
    find_mpiexec()
except RunError as error:
    pytest.skip(str(error), allow_module_level=True)

# A rank that says where it is; the body decides how it ends. It needs no MPI library: mpiexec starts any program.
RANK = """
import os, signal, sys, time
from pathlib import Path
from hpdlf.errors import DataError, RunError
from hpdlf.exec.rank_status import RankStatus
rank, attempt = int(os.environ["OMPI_COMM_WORLD_RANK"]), int(os.environ["HPDLF_ATTEMPT"])
folder = Path(sys.argv[1])
status = RankStatus(folder, rank, f"stage{rank}", beat_s=0.1)
def die(number): time.sleep(0.5); os.kill(os.getpid(), number); time.sleep(60)
def work(): time.sleep(60)
with status:
    status.running(7)
"""


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., tuple[Launched, str, list[str]]]:
    """Launch two ranks with this body; what came of it, what they printed, and what was told."""

    def go(body: str, **options: object) -> tuple[Launched, str, list[str]]:
        script = tmp_path / "rank.py"
        script.write_text(RANK + "".join(f"    {line}\n" for line in body.splitlines()))
        printed: list[str] = []
        told: list[str] = []
        options = {"max_restarts": 0, "output": printed.append, "tell": told.append, **options}
        done = launch([sys.executable, str(script), str(tmp_path)], 2, run_folder=tmp_path, **options)  # type: ignore[arg-type]
        return done, "".join(printed), told

    return go


def test_ranks_end_well(run: Callable[..., tuple[Launched, str, list[str]]], tmp_path: Path) -> None:
    done, printed, told = run(
        "print('rank', rank, os.environ['MALLOC_ARENA_MAX'], len(os.sched_getaffinity(0)), sys.argv[2:])"
    )
    assert done.failures == ()
    assert told == []
    lines = sorted(printed.splitlines())
    assert [line[:8] for line in lines] == ["rank 0 1", "rank 1 1"]
    assert all(line.endswith(" 1 []") for line in lines) or len(os.sched_getaffinity(0)) == 1, (
        "each rank is bound to one core"
    )
    assert {r.state for r in read_reports(tmp_path).values()} == {"finished"}


def test_a_killed_rank_is_named_and_the_run_starts_again(
    run: Callable[..., tuple[Launched, str, list[str]]], tmp_path: Path
) -> None:
    half = tmp_path / "checkpoints" / "step-00000009"
    half.mkdir(parents=True)
    done, printed, told = run(
        "if attempt == 0: die(signal.SIGKILL) if rank == 1 else work()\nelse: print('attempt', attempt, sys.argv[2:])",
        max_restarts=2,
    )
    assert len(done.failures) == len(told) == 1
    assert re.match(
        r"Rank 1 \(stage1\), process \d+ on \S+, was ended by signal 9 at about step 7: (killed|the kernel killed it)",
        told[0],
    )
    assert "Starting again from the beginning, as there is no checkpoint yet (restart 1 of 2)" in told[0]
    assert printed.count("attempt 1 ['--resume']") == 2
    assert "-----" not in printed, "mpiexec's own account is left out"
    assert "signal 9" in (tmp_path / "errors-0.log").read_text()
    assert not half.exists()


def test_restarts_are_used_up(run: Callable[..., tuple[Launched, str, list[str]]]) -> None:
    with pytest.raises(
        RunError, match=r"rank 0 .*signal 11 at about step 7: a library accessed .*that was attempt 2.*--resume"
    ):
        run("die(signal.SIGSEGV) if rank == 0 else work()", max_restarts=1)


def test_an_exit_without_a_word(run: Callable[..., tuple[Launched, str, list[str]]]) -> None:
    with pytest.raises(RunError, match=r"rank 1 \(stage1\).* ended by itself with exit code 3 at about step 7"):
        run("os._exit(3) if rank == 1 else work()")


def test_an_error_that_the_user_can_mend_is_passed_on_and_not_repeated(
    run: Callable[..., tuple[Launched, str, list[str]]],
) -> None:
    with pytest.raises(DataError) as caught:
        run("if rank == 1: raise DataError('The array x is too short. Write it again.')\nwork()", max_restarts=3)
    assert str(caught.value) == "The array x is too short. Write it again."
    assert caught.value.exit_code == 2


def test_an_error_that_nobody_foresaw(run: Callable[..., tuple[Launched, str, list[str]]], tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"rank 0 \(stage0\).* failed at step 7 with KeyError: 'w'\. .*errors-0\.log"):
        run("if rank == 0: {}['w']\nwork()", max_restarts=3)
    assert "Traceback" in (tmp_path / "errors-0.log").read_text()


def test_a_rank_that_falls_silent_counts_as_dead(
    run: Callable[..., tuple[Launched, str, list[str]]], tmp_path: Path
) -> None:
    with pytest.raises(RunError, match=r"rank 1 \(stage1\).* gave no sign of life at about step 7"):
        run("die(signal.SIGSTOP) if rank == 1 else work()", silence_s=1.5)
    assert not any(process_started(r.pid) == r.started for r in read_reports(tmp_path).values())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_everything_with_one_sentence(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "rank.py").write_text(RANK + "    work()\n")
    launcher = (
        "import sys\nfrom pathlib import Path\nfrom hpdlf.errors import RunError\nfrom hpdlf.exec.launcher import "
        "launch\n"
        "try:\n    launch([sys.executable, sys.argv[1], sys.argv[2]], 2, run_folder=Path(sys.argv[2]))\n"
        "except RunError as error:\n    print(error)\n    sys.exit(error.exit_code)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", launcher, str(tmp_path / "rank.py"), str(tmp_path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 30
    while len([r for r in read_reports(tmp_path).values() if r.state == "running"]) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 1
    mend = f"Go on with `hpdlf train PLAN --out {tmp_path} --resume`."
    assert out == f"Stopped at about step 7; there is no checkpoint yet. {mend}\n"
    assert err == ""
    assert not any(process_started(r.pid) == r.started for r in read_reports(tmp_path).values())


def test_more_ranks_than_cores_share_them(tmp_path: Path) -> None:
    printed: list[str] = []
    ranks = len(os.sched_getaffinity(0)) + 1
    code = "import os; print(len(os.sched_getaffinity(0)), os.environ.get('OMPI_MCA_mpi_yield_when_idle'))"
    launch([sys.executable, "-c", code], ranks, run_folder=tmp_path, output=printed.append)
    assert len("".join(printed).splitlines()) == ranks


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="before any rank had started"):
        launch([str(tmp_path / "absent")], 2, run_folder=tmp_path, output=lambda _: None)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a file system of a given size")
def test_a_full_disk_while_checkpointing_is_told_by_the_rank_that_met_it(tmp_path: Path) -> None:
    """Run folder and checkpoints lie on the same full disk: reports and logs cannot grow, the message comes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    body = """
    import numpy as np
    from hpdlf.exec.checkpoint import write_manifest, write_shard
    checkpoints = folder / "checkpoints"
    if rank == 0:
        shard = write_shard(checkpoints, step=1, name="stage0", tensors={"w": np.zeros(1000)})
        write_manifest(checkpoints, step=1, epoch=0, seed=0, plan_sha256="", shards=[shard])
        try:
            with (folder / "filler").open("wb", buffering=0) as filler:
                while True:
                    filler.write(bytes(4096))
        except OSError:
            pass
        print("x" * 100_000, file=sys.stderr)
        write_shard(checkpoints, step=2, name="stage0", tensors={"w": np.zeros(1000)})
    work()
"""
    try:
        (tmp_path / "rank.py").write_text(RANK + body)
        command = [sys.executable, str(tmp_path / "rank.py"), str(disk)]
        with pytest.raises(
            RunError, match=r"after step 2 cannot .*: the disk is full\. .*after step 1 is intact; free"
        ):
            launch(command, 2, run_folder=disk, output=lambda _: None)
        assert [p.name for p in (disk / "checkpoints").iterdir()] == ["step-00000001"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)
