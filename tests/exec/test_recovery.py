"""Runs that something happens to: a rank is killed, the disk is full, somebody presses Ctrl-C."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpdlf.errors import HpdlfError, RunError
from hpdlf.exec.checkpoint import checkpoints
from hpdlf.exec.mpi import find_mpiexec
from hpdlf.exec.rank_status import process_started, read_reports
from hpdlf.exec.run_folder import RunFolder
from hpdlf.exec.train import Run, train
from hpdlf.models.plan import Strategy

pytestmark = pytest.mark.mpi

try:
    find_mpiexec()
except RunError as error:
    pytest.skip(str(error), allow_module_level=True)

STEPS, EVERY = 1200, 200
Losses = Callable[[Path], list[float]]

SLOW = """
import time
import numpy as np
rng = np.random.default_rng(0)
x = rng.standard_normal((320, 8))
labels = np.argmax(x @ rng.standard_normal((8, 4)), axis=1)
class Samples:
    def __len__(self): return 320
    def __getitem__(self, i):
        time.sleep(PAUSE_S)
        return {"x": x[i], "labels": labels[i]}
samples = Samples()
"""


@pytest.fixture(scope="module")
def plans(planner: Any) -> dict[str, Any]:
    """Plain SGD: what rounding differs by dies out, however long the training."""
    sgd = {"optimizer": {"name": "sgd", "learning_rate": 0.05}, "steps": STEPS, "checkpoint_every": EVERY}
    evaluated = {"evaluation": {"fraction": 0.2, "every": "end"}}
    one, two = Strategy(batch=64, precision="float64"), Strategy(batch=64, precision="float64", data=2)
    return {
        "one": planner("one", one, **sgd, **evaluated),
        "two": planner("two", two, **sgd, **evaluated),
        "patient": planner("patient", two, **sgd, **evaluated, max_restarts=100),
    }


@pytest.fixture(scope="module")
def undisturbed(plans: dict[str, Any], run_under_mpiexec: Any, losses: Losses, tmp_path_factory: Any) -> list[float]:
    out = tmp_path_factory.mktemp("runs") / "one"
    done = run_under_mpiexec(1, (plans["one"].path, out, False))
    assert done.returncode == 0, done.stderr
    return losses(out)


class Training:
    """`train` on a thread, so that a test may interfere."""

    def __init__(self, plan: Path, out: Path) -> None:
        self.folder, self.told = RunFolder(out), []
        self._found: Run | BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(plan, out), daemon=True)
        self._thread.start()

    def _run(self, plan: Path, out: Path) -> None:
        try:
            self._found = train(plan, out, tell=self.told.append)
        except BaseException as error:
            self._found = error

    def running(self) -> bool:
        return self._thread.is_alive()

    def step(self) -> int:
        """The last step that the metrics have."""
        try:
            lines = self.folder.metrics.read_text().splitlines()
        except FileNotFoundError:
            return -1
        return max((json.loads(line).get("step", -1) for line in lines), default=-1)

    def kill(self, rank: int) -> bool:
        """Whether there was such a rank."""
        report = read_reports(self.folder.path).get(rank)
        if report is None or process_started(report.pid) != report.started:
            return False
        os.kill(report.pid, signal.SIGKILL)
        return True

    def result(self, timeout_s: float) -> Run:
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), "the run does not end"
        if isinstance(self._found, BaseException):
            raise self._found
        assert self._found is not None
        return self._found


def wait_for(condition: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def check_ended_as_undisturbed(training: Training, undisturbed: list[float], losses: Losses) -> None:
    np.testing.assert_allclose(losses(training.folder.path), undisturbed, rtol=1e-8)
    kept = checkpoints(training.folder.checkpoints)
    assert kept[-1].step == STEPS
    for checkpoint in kept:
        checkpoint.verify()
    assert any("evaluation" in line for line in training.folder.metrics.read_text().splitlines())


def test_a_killed_rank_is_named_and_the_loss_is_what_it_would_have_been(
    plans: dict[str, Any], undisturbed: list[float], losses: Losses, tmp_path: Path
) -> None:
    training = Training(plans["two"].path, tmp_path / "run")
    wait_for(lambda: training.step() > EVERY + 20, 90)
    assert training.kill(1)
    run = training.result(90)
    (told,) = training.told
    assert "ank 1 (stage0), process " in told
    assert "was ended by signal 9" in told
    assert "Starting again from the checkpoint after step" in told
    assert [told.startswith(reason[:4].capitalize()) for reason in run.about["restarts"]] == [True]
    check_ended_as_undisturbed(training, undisturbed, losses)


@pytest.mark.slow
def test_ten_kills_of_any_rank_at_any_moment(
    plans: dict[str, Any], undisturbed: list[float], losses: Losses, tmp_path: Path
) -> None:
    """While ranks start, compile, train, write checkpoints or evaluate; as many runs as it takes."""
    rng, kills, runs = random.Random(7), 0, 0
    while kills < 10:
        training = Training(plans["patient"].path, tmp_path / f"run{runs}")
        runs += 1
        while training.running():
            wait_for(lambda t=training: bool(read_reports(t.folder.path)) or not t.running(), 90)
            time.sleep(rng.uniform(0.0, 9.0))
            kills += kills < 10 and training.kill(rng.randrange(2))
            time.sleep(1.0)
        training.result(1)
        check_ended_as_undisturbed(training, undisturbed, losses)


def cli(plan: Path, out: Path, *more: str, before: str = "") -> subprocess.Popen[str]:
    command = ["train", str(plan), "--out", str(out), *more]
    script = f"{before}\nimport sys\nfrom hpdlf.__main__ import main\nsys.exit(main({command!r}))"
    return subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )


def test_ctrl_c_ends_with_one_sentence_and_keeps_the_checkpoint(
    planner: Any, tmp_path: Path, losses: Losses
) -> None:
    (planner.folder / "slow_samples.py").write_text(SLOW.replace("PAUSE_S", "0.0002"))
    plan = planner(
        "slow", Strategy(batch=64), steps=2000, checkpoint_every=20, data={"source": "slow_samples:samples"}
    )
    out = tmp_path / "run"
    folder = RunFolder(out)
    process = cli(plan.path, out)
    wait_for(lambda: len(checkpoints(folder.checkpoints)) > 0 or process.poll() is not None, 90)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1, err
    (kept,) = checkpoints(folder.checkpoints)[-1:]
    told = f"the checkpoint after step {kept.step} is kept. Go on with `hpdlf train"
    assert told in err.replace("\n", " ")
    assert "Traceback" not in err
    kept.verify()
    left = sorted(p.name for p in folder.checkpoints.rglob("*") if p.name.endswith(".part"))
    assert left == []
    assert folder.read()["state"] == "failed"
    assert not any(process_started(r.pid) == r.started for r in read_reports(out).values())


FULL = SLOW.replace(
    "time.sleep(PAUSE_S)",
    "if (reads := globals().get('reads', 0) + 1) == 64 * 12 and 'hpdlf.exec.worker' in sys.modules['__main__'].__spec__.name:\n"
    "            resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))\n"
    "        globals()['reads'] = reads",
).replace("import time", "import resource, sys")


def test_a_full_disk_while_checkpointing(planner: Any, tmp_path: Path) -> None:
    """Files may not grow beyond 30 kB after the twelfth step: the checkpoint after the eighth stays as it is."""
    from hpdlf.models.zoo import small

    (planner.folder / "full_samples.py").write_text(FULL)
    plan = planner(
        "full",
        Strategy(batch=64, precision="float64"),
        model=small.mlp((8, 64, 64, 4)),
        checkpoint_every=8,
        data={"source": "full_samples:samples"},
    )
    out = tmp_path / "run"
    process = cli(plan.path, out)
    _, err = process.communicate(timeout=90)
    assert process.returncode == 1, err
    flat = " ".join(err.split())
    assert "after step 16 cannot be written to" in flat
    assert "the file would be larger than allowed. The checkpoint after step 8 is intact; free some space" in flat
    assert "Traceback" not in err
    (kept,) = checkpoints(RunFolder(out).checkpoints)
    assert kept.step == 8
    kept.verify()
    assert sorted(p.name for p in RunFolder(out).checkpoints.iterdir()) == ["step-00000008"]


BROKEN = """
import os
import numpy as np
rank = os.environ.get("OMPI_COMM_WORLD_RANK", "")
class Samples:
    def __len__(self): return 320
    def __getitem__(self, i):
        Samples.reads = getattr(Samples, "reads", 0) + 1
        if rank == "1" and Samples.reads > WHEN:
            raise LookupError("sample %d cannot be had" % i)
        return {"x": np.zeros(8), "labels": np.int64(0)}
samples = Samples()
"""


@pytest.mark.parametrize(
    ("when", "told"),
    [
        pytest.param(32 * 10, r"rank 1 \(stage0\), process \d+ on \S+, failed at step \d+ with .*cannot be had", id="at step 10"),
        pytest.param(0, "sample 0 cannot be had", marks=pytest.mark.slow, id="while setting up"),
    ],
)
def test_a_rank_that_fails_alone_is_what_the_user_hears_of(
    planner: Any, tmp_path: Path, when: int, told: str
) -> None:
    """The other rank waits in a collective that nobody will join; the run ends all the same, with the right error."""
    (planner.folder / f"broken{when}.py").write_text(BROKEN.replace("WHEN", str(when)))
    plan = planner(
        f"broken{when}",
        Strategy(batch=64, data=2),
        steps=1000,
        data={"source": f"broken{when}:samples"},
    )
    training = Training(plan.path, tmp_path / "run")
    with pytest.raises(HpdlfError, match=told):
        training.result(90)
    assert training.folder.read()["state"] == "failed"
    assert training.told == []


@pytest.mark.slow
def test_a_rank_that_fails_under_somebody_elses_mpiexec_speaks_for_itself(
    planner: Any, run_under_mpiexec: Any, tmp_path: Path
) -> None:
    (planner.folder / "broken.py").write_text(BROKEN.replace("WHEN", "320"))
    plan = planner("broken", Strategy(batch=64, data=2), steps=1000, data={"source": "broken:samples"})
    done = run_under_mpiexec(2, (plan.path, tmp_path / "run", False))
    assert done.returncode == 1
    assert "Rank 1: " in done.stderr
    assert "cannot be had" in done.stderr
    assert "Rank 0: " not in done.stderr
    assert RunFolder(tmp_path / "run").read()["state"] == "failed"
