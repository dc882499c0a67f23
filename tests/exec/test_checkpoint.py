"""Checkpoints: nothing half-written ever counts, and another number of stages takes them up."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from hpdlf.errors import RunError
from hpdlf.exec.checkpoint import (
    Checkpoint,
    checkpoints,
    latest,
    pack,
    packed_names,
    remove_incomplete,
    unpack,
    write_manifest,
    write_shard,
)
from hpdlf.exec.optimizers import make_optimizer
from hpdlf.exec.tensor_files import write_tensors
from hpdlf.models.plan.recipe import Recipe


def save(folder: Path, step: int, stages: list[dict[str, np.ndarray]], keep: int = 2) -> Path:
    shards = [write_shard(folder, step=step, name=f"stage{i}", tensors=tensors) for i, tensors in enumerate(stages)]
    return write_manifest(
        folder, step=step, epoch=0, seed=1, plan_sha256="p", shards=shards, about={"cut": 2}, keep=keep
    )


def newest(folder: Path) -> Checkpoint:
    found = latest(folder)
    assert found is not None
    return found


A, B, C = (np.arange(n, dtype=t) for n, t in ((6, "float32"), (1000, "float64"), (3, "int32")))


def test_what_is_written_is_read_by_name_whatever_the_shard(tmp_path: Path) -> None:
    save(tmp_path, 7, [{"parameter/a": A.reshape(2, 3), "opt/count": C[1]}, {"parameter/b": B, "opt/count": C[1]}])
    found = newest(tmp_path)
    assert (found.step, found.epoch, found.seed, found.plan_sha256, found.about) == (7, 0, 1, "p", {"cut": 2})
    assert found.names == ("opt/count", "parameter/a", "parameter/b")
    values = found.read(["parameter/b", "opt/count"])
    assert list(values) == ["parameter/b", "opt/count"]
    np.testing.assert_array_equal(values["parameter/b"], B)
    assert values["opt/count"].shape == ()
    found.verify()
    with pytest.raises(RunError, match="has no parameter/c"):
        found.read(["parameter/c"])


@given(
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=3), max_size=5),
    dtype=st.sampled_from(["float32", "float64", "float16", "int64", "int32", "uint8", "bool", ">f4"]),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_files_are_safetensors(tmp_path: Path, shapes: list[list[int]], dtype: str) -> None:
    tensors = {f"t/{i}": np.arange(np.prod(s, dtype=int)).reshape(s).astype(dtype) for i, s in enumerate(shapes)}
    tensors |= {"transposed": np.arange(6, dtype="float32").reshape(2, 3).T, "byte": np.array(3, "uint8")}
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        nbytes, _ = write_tensors(file, tensors)
    assert path.stat().st_size == nbytes
    read = load_file(path)
    assert set(read) == set(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(read[name], tensor)


def test_without_manifest_there_is_no_checkpoint(tmp_path: Path) -> None:
    assert latest(tmp_path / "absent") is None
    save(tmp_path, 10, [{"a": A}])
    write_shard(tmp_path, step=20, name="stage0", tensors={"a": A})
    assert newest(tmp_path).step == 10
    assert [p.name for p in remove_incomplete(tmp_path)] == ["step-00000020"]
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000010"]


def test_the_newest_two_stay(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step, [{"a": A + step}])
    assert [c.step for c in checkpoints(tmp_path)] == [2, 3]


def test_writing_a_step_again_replaces_it_only_when_whole(tmp_path: Path) -> None:
    save(tmp_path, 5, [{"a": A}, {"b": B}])
    write_shard(tmp_path, step=5, name="stage0", tensors={"a": A + 1, "b": B})
    np.testing.assert_array_equal(newest(tmp_path).read(["a"])["a"], A)
    save(tmp_path, 5, [{"a": A + 1, "b": B}])
    np.testing.assert_array_equal(newest(tmp_path).read(["a"])["a"], A + 1)
    assert len(list((tmp_path / "step-00000005").iterdir())) == 2


@pytest.mark.parametrize("damage", ["cut", "gone", "manifest", "escape"])
def test_a_damaged_checkpoint_is_passed_over_and_told(tmp_path: Path, damage: str) -> None:
    save(tmp_path, 1, [{"a": A}])
    path = save(tmp_path, 2, [{"a": A}])
    shard = next(path.glob("*.safetensors"))
    manifest = path / "manifest.json"
    if damage == "cut":
        os.truncate(shard, shard.stat().st_size - 3)
    elif damage == "gone":
        shard.unlink()
    elif damage == "manifest":
        os.truncate(manifest, 40)
    else:
        manifest.write_text(manifest.read_text().replace(shard.name, "../x"))
    found = newest(tmp_path)
    assert found.step == 1
    assert len(found.skipped) == 1
    assert "step-00000002" in found.skipped[0]


def test_changed_bytes_are_found_by_verify(tmp_path: Path) -> None:
    path = save(tmp_path, 1, [{"a": A}])
    shard = next(path.glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(RunError, match="not what was written"):
        newest(tmp_path).verify()


FULL_DISK = """
import resource, sys, numpy as np
from pathlib import Path
from hpdlf.errors import RunError
from hpdlf.exec.checkpoint import write_manifest, write_shard
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
folder = Path(sys.argv[1])
try:
    shard = write_shard(folder, step=2, name="stage0", tensors={"a": np.zeros(int(sys.argv[3]))})
    write_manifest(folder, step=2, epoch=0, seed=1, plan_sha256="p", shards=[shard] * 1000)
except RunError as error:
    print(error)
    sys.exit(error.exit_code)
"""


@pytest.mark.parametrize(("limit", "elements"), [(0, 100_000), (4096, 100_000), (400_000, 100_000), (4096, 10)])
def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, limit: int, elements: int) -> None:
    """A limit on the size of files is met while writing the shard, or (the last case) while writing the manifest."""
    save(tmp_path, 1, [{"a": A}])
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path), str(limit), str(elements)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "the file would be larger than allowed" in done.stdout
    assert "after step 1 is intact" in done.stdout
    assert "--resume" in done.stdout
    assert "Traceback" not in done.stderr
    assert sorted(str(p) for p in tmp_path.rglob("*")) == before
    np.testing.assert_array_equal(newest(tmp_path).read()["a"], A)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a file system of a given size")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        save(disk, 1, [{"a": A}])
        with pytest.raises(RunError, match=r"the disk is full.*after step 1 is intact.*free some space"):
            write_shard(disk, step=2, name="stage0", tensors={"a": np.zeros(1_000_000)})
        assert [p.name for p in disk.iterdir()] == ["step-00000001"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("name", ["sgd", "momentum", "adamw", "amsgrad", "lamb"])
def test_optimizer_state_of_one_stage_continues_on_two(name: str, tmp_path: Path) -> None:
    """Train one step on one stage, save; load as two stages; both continue as the one does."""
    recipe = Recipe(optimizer={"name": name, "clip_value": 1.0}, schedule={"name": "cosine", "warmup_steps": 3})
    optimizer = make_optimizer(recipe, total_steps=10, steps_per_epoch=5)
    parameters = {"w": np.ones((2, 3), "float32"), "block/b": np.ones(3, "float32")}
    gradients = {"w": np.full((2, 3), 0.3, "float32"), "block/b": np.arange(3, dtype="float32")}
    _, state = optimizer.update(gradients, optimizer.init(parameters), parameters)
    expected, _ = optimizer.update(gradients, state, parameters)
    save(tmp_path, 1, [pack(state, parameters)])
    for stage in parameters:
        mine = {stage: parameters[stage]}
        template = jax.eval_shape(optimizer.init, mine)
        loaded = unpack(template, newest(tmp_path).read(packed_names(template, mine)), mine)
        update, _ = optimizer.update({stage: gradients[stage]}, loaded, mine)
        np.testing.assert_array_equal(update[stage], expected[stage])


def test_state_of_another_optimizer_is_refused() -> None:
    parameters = {"w": np.ones(3, "float32")}
    adam, momentum = (
        make_optimizer(Recipe(optimizer={"name": n}), total_steps=1, steps_per_epoch=1).init(parameters)
        for n in ("adam", "momentum")
    )
    with pytest.raises(RunError, match="does not fit this plan"):
        unpack(adam, pack(momentum, parameters), parameters)
