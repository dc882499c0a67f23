"""The command line as people meet it: what it prints, where, and with which exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hpdlf.__main__ import main
from hpdlf.models.zoo import build, digits_cnn, mlp

FLOAT = TensorProto.FLOAT
STEPS = ["import", "inspect", "profile", "simulate", "whatif", "plan", "approve", "train", "refine", "report", "export"]
COMMANDS = [*STEPS, "tune", "doctor"]


class Said(NamedTuple):
    """What a command left: its exit code and what it wrote."""

    code: int
    out: str
    err: str


Hpdlf = Callable[..., Said]


@pytest.fixture
def hpdlf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Hpdlf:
    """hpdlf(*words): run a command in `tmp_path`, away from the user's own profiles and observations."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HPDLF_PROFILES", str(tmp_path / "profiles"))
    monkeypatch.setenv("HPDLF_DATABASE", str(tmp_path / "observations.duckdb"))
    monkeypatch.setenv("COLUMNS", "100")

    def run(*words: object) -> Said:
        code = main([str(word) for word in words])
        captured = capfd.readouterr()
        return Said(code, captured.out, captured.err)

    return run


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """digits.onnx, and train.npz and recipe.toml that fit it."""
    onnx.save(digits_cnn(channels=(4, 8), hidden=16), tmp_path / "digits.onnx")
    rng = np.random.default_rng(0)
    images = rng.random((320, 1, 8, 8), dtype=np.float32)
    np.savez(tmp_path / "train.npz", x=images, labels=rng.integers(0, 10, 320))
    (tmp_path / "recipe.toml").write_text(
        'epochs = 2\n[data]\nsource = "train.npz"\n[evaluation]\nfraction = 0.2\n', encoding="utf-8"
    )
    return tmp_path / "digits.onnx"


PLAN = ("plan", "digits.onnx", "--on", "generic-x86", "--batch", "64", "--ranks", "2", "-o", "plan.json")


def refused(said: Said, *parts: str, code: int = 2) -> None:
    """One message with all `parts`, on standard error alone, without a traceback."""
    assert said.code == code, said
    assert said.out == ""
    assert "Traceback" not in said.err
    for part in parts:
        assert part in said.err, said.err


def run_process(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {"HPDLF_PROFILES": str(folder / "profiles"), "HPDLF_DATABASE": str(folder / "observations.duckdb")}
    return subprocess.run(
        [sys.executable, "-m", "hpdlf", *words],
        cwd=folder,
        env=os.environ | own | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


# --- in processes of their own ---------------------------------------------------------------------------------------


def test_help_names_every_command(tmp_path: Path) -> None:
    done = run_process(tmp_path, "--help", COLUMNS="80")
    assert done.returncode == 0
    for command in COMMANDS:
        assert f"\n  {command} " in done.stdout
    assert "..." not in done.stdout.partition("Commands:")[2]  # no summary is cut off


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from hpdlf.__main__ import main; main(['--help'])\n"
        "heavy = {'numpy', 'onnx', 'pydantic', 'jax', 'pandas', 'sklearn', 'matplotlib', 'duckdb', 'mpi4py', 'simpy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")


def test_whatif_path_needs_neither_jax_nor_mpi_nor_sklearn(digits: Path) -> None:
    """Import, inspect, simulate and plan with data, in a process where importing any of them would fail."""
    code = (
        "import sys\n"
        "for name in ('jax', 'mpi4py', 'sklearn', 'optax'): sys.modules[name] = None\n"
        "from hpdlf.__main__ import main\n"
        "assert main('import digits.onnx -o d.onnx --loss softmax_xent'.split()) == 0\n"
        "assert main('inspect d.onnx'.split()) == 0\n"
        "assert main('simulate d.onnx --on xeon-64 --batch 64 --data 4'.split()) == 0\n"
        "assert main('plan d.onnx --on generic-x86 --batch 64 --ranks 2 --recipe recipe.toml -o p.json'.split()) == 0\n"
        "assert main('approve p.json --yes --as Ada'.split()) == 0\n"
    )
    own = {"HPDLF_PROFILES": "none", "HPDLF_DATABASE": "none.duckdb"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=digits.parent,
        env=os.environ | own,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_piped_output_is_plain_and_fits_the_columns(digits: Path) -> None:
    words = ("simulate", "digits.onnx", "--on", "dgx-a100", "--batch", "64", "--data", "8", "--samples", "6400")
    done = run_process(digits.parent, *words, COLUMNS="100")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert "…" not in done.stdout


def test_error_exit_code_and_debug_of_a_process(tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").touch()
    done = run_process(tmp_path, "inspect", "empty.onnx")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("empty.onnx")
    assert len(done.stderr.splitlines()) == 1
    for words in (("--debug", "inspect", "empty.onnx"), ("inspect", "empty.onnx", "--debug")):
        told = run_process(tmp_path, *words)
        assert told.returncode == 2
        assert "Traceback" in told.stderr
        assert done.stderr in told.stderr


def test_ctrl_c_is_one_line_and_leaves_no_file(digits: Path) -> None:
    code = (
        "import os, signal, sys, hpdlf.sim\n"
        "import hpdlf.experiments.planning as planning\n"
        "planning.search = lambda *a, **k: os.kill(os.getpid(), signal.SIGINT)\n"
        "from hpdlf.__main__ import main\n"
        f"sys.exit(main({list(PLAN)!r}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=digits.parent, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (1, "Stopped.\n")
    assert sorted(p.name for p in digits.parent.iterdir()) == ["digits.onnx", "recipe.toml", "train.npz"]


# --- the happy path --------------------------------------------------------------------------------------------------


def test_version(hpdlf: Hpdlf) -> None:
    said = hpdlf("--version")
    assert said.code == 0
    assert said.out.startswith("hpdlf 0.")


def test_no_command_shows_the_help(hpdlf: Hpdlf) -> None:
    for words in ((), ("profile",)):
        said = hpdlf(*words)
        assert said.code == 2
        assert "Commands:" in said.err


def test_import_inspect_simulate(hpdlf: Hpdlf, digits: Path) -> None:
    said = hpdlf("import", "digits.onnx", "-o", "d.onnx", "--loss", "softmax_xent", "--freeze", "conv1.*")
    assert said.code == 0, said.err
    assert said.out.startswith("Wrote d.onnx: digits_cnn, 11 operators, ")
    onnx.checker.check_model(str(digits.with_name("d.onnx")))

    said = hpdlf("inspect", "d.onnx")
    assert said.code == 0
    for word in ("conv2", "Gemm", "matmul", "Nx10", "total, forward", "loss: loss"):
        assert word in said.out
    told = json.loads(hpdlf("inspect", "d.onnx", "--json", "--batch", 2).out)
    by_name = {o["name"]: o for o in told["operators"]}
    assert by_name["dense2"]["forward"]["flops"] >= 2 * 2 * 16 * 10
    assert by_name["dense2"]["parameters"] == 16 * 10 + 10
    assert by_name["conv1"]["parameters"] == 0  # frozen
    assert told["parameters"] == sum(o["parameters"] for o in told["operators"])

    options = ("--on", "generic-x86", "--batch", 64, "--data", 2, "--microbatches", 2, "--samples", 640)
    said = hpdlf("simulate", "d.onnx", *options, "--trace", "trace.json", "--gantt", "gantt.png")
    assert said.code == 0, said.err
    assert "step time" in said.out
    assert "modelled" in said.out
    assert "energy per step" in said.out
    assert "unavailable" in said.out  # nobody knows what the generic machine draws
    assert " 0 J" not in said.out
    assert json.loads(digits.with_name("trace.json").read_text())["traceEvents"]
    assert digits.with_name("gantt.png").read_bytes().startswith(b"\x89PNG")
    told = json.loads(hpdlf("simulate", "d.onnx", *options, "--json").out)
    assert told["figures"]["energy_j"] is None
    step, epoch = told["figures"]["step_s"], told["epoch_s"]
    said = hpdlf("simulate", "d.onnx", *options, "--breakdown", "--versus", "data=4,on=dgx-a100:1")
    assert said.code == 0, said.err
    for word in ("What a step's time goes to", "critical path", "forward", "Time of a step", "shorter a step than"):
        assert word in said.out
    looked = hpdlf("simulate", "d.onnx", *options, "--breakdown", "--versus", "data=1", "--json").out
    assert sum(row["share"] for row in json.loads(looked)["breakdown"] if row["role"] == "all") == pytest.approx(1.0)
    assert json.loads(looked)["comparison"]["reason"]
    assert "did you mean 'pipeline'" in hpdlf("simulate", "d.onnx", *options, "--versus", "pipelin=2").err
    assert "host_active_power" in hpdlf("simulate", "d.onnx", *options, "--power", "watts.png").err
    assert step["low"] <= step["value"] <= step["high"]
    assert epoch["value"] == pytest.approx(10 * step["value"])


def test_plan_approve_and_what_train_says(hpdlf: Hpdlf, digits: Path) -> None:
    said = hpdlf(*PLAN, "--recipe", "recipe.toml")
    assert said.code == 0, said.err
    assert "Ranked by time" in said.out
    assert "is the fastest of" in said.out
    assert "`hpdlf approve plan.json`" in said.out

    refused(hpdlf("train", "plan.json", "--out", "run"), "plan.json is not approved", "`hpdlf approve ")
    said = hpdlf("approve", "plan.json")
    assert said.code == 2
    assert "no terminal" in said.err
    assert "--yes" in said.err
    assert not digits.with_name("plan.json.approval.json").exists()

    said = hpdlf("approve", "plan.json", "--yes", "--as", "Ada")
    assert said.code == 0, said.err
    assert "all 8 steps" in said.out  # two epochs of 256 samples in batches of 64
    assert "unavailable (the cluster's profile lacks what it needs)" in said.out
    assert "Approved by Ada" in said.out

    plan = digits.with_name("plan.json")
    plan.write_text(plan.read_text().replace('"seed": 0', '"seed": 1'))
    refused(hpdlf("train", "plan.json", "--out", "run"), "changed since it was approved", "the plan plan.json")
    assert not digits.with_name("run").exists()


@pytest.mark.parametrize("name", ["plan.onnx", "train.npz"])
def test_one_changed_byte_is_refused(hpdlf: Hpdlf, digits: Path, name: str) -> None:
    assert hpdlf(*PLAN, "--recipe", "recipe.toml").code == 0
    assert hpdlf("approve", "plan.json", "--yes").code == 0
    file = digits.with_name(name)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    what = "plan.onnx" if name == "plan.onnx" else "the training data"
    refused(hpdlf("train", "plan.json", "--out", "run"), "changed since it was approved", what, "hpdlf approve")
    said = hpdlf("approve", "plan.json", "--yes")
    assert said.code == 2
    assert what in said.err


def test_a_plan_without_data_can_be_approved_but_not_trained(hpdlf: Hpdlf, digits: Path) -> None:
    assert hpdlf(*PLAN).code == 0
    assert "can be simulated, not trained" in hpdlf("approve", "plan.json", "--yes").out
    refused(hpdlf("train", "plan.json", "--out", "run"), "names no data", "--recipe")


def test_profiles(hpdlf: Hpdlf) -> None:
    said = hpdlf("profile", "list")
    assert said.code == 0
    assert "dgx-h100" in said.out
    assert any(row["name"] == "xeon-128" for row in json.loads(hpdlf("profile", "list", "--json").out))
    said = hpdlf("profile", "show", "dgx-a100:2")
    assert "datasheet" in said.out
    assert "node.device.memory" in said.out
    assert json.loads(hpdlf("profile", "show", "generic-x86", "--json").out)


def test_whatif_of_one_model(hpdlf: Hpdlf, digits: Path) -> None:
    options = ("--on", "dgx-a100,xeon-64", "--devices", "1,4", "--batch-per-device", "8")
    said = hpdlf("whatif", "digits.onnx", *options, "-o", "w.svg")
    assert said.code == 0, said.err
    assert "Wrote w.svg." in said.out
    rows = json.loads(hpdlf("whatif", "digits.onnx", *options, "--json").out)
    assert [(r["cluster"], r["devices"]) for r in rows] == [(c, d) for c in ("dgx-a100", "xeon-64") for d in (1, 4)]
    assert rows[1]["samples_per_s"] > rows[0]["samples_per_s"]


# --- bad input -------------------------------------------------------------------------------------------------------


def network(*nodes: onnx.NodeProto, weights: tuple[TensorProto, ...] = (), columns: int | str = 4) -> onnx.ModelProto:
    ends = [helper.make_tensor_value_info(n, FLOAT, ["N", columns]) for n in ("x", "y")]
    graph = helper.make_graph(list(nodes), "net", ends[:1], ends[1:], list(weights))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def external(location: str) -> TensorProto:
    tensor = TensorProto(name="w", data_type=FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


RELU = helper.make_node("Relu", ["x"], ["y"], name="relu")
ADD = helper.make_node("Add", ["x", "w"], ["y"], name="add")
ABC = numpy_helper.from_array(np.ones(4, np.float32), "w")
CYCLE = (helper.make_node("Add", ["x", "y"], ["a"], name="one"), helper.make_node("Relu", ["a"], ["y"], name="two"))
UNKNOWN = helper.make_node("Relue", ["x"], ["y"], name="first")
HUGE = TensorProto(name="w", data_type=FLOAT, dims=[2**40], raw_data=bytes(8))
BAD_MODELS = {
    "no ONNX": (b"import this\n" * 50, ("is no ONNX file",)),
    "empty": (b"", ("is empty",)),
    "unknown operator": (network(UNKNOWN), ("'first'", "'Relue' is unknown", "did you mean")),
    "unbound dims": (network(RELU, columns="length"), ("length", "--bind length=")),
    "cycle": (network(*CYCLE), ("cycle", "'one'", "'two'")),
    "weights missing": (network(ADD, weights=(external("w.bin"),)), ("w.bin", "is missing", "--without-weights")),
    "external data outside": (network(ADD, weights=(external("../w.bin"),)), ("../w.bin", "--allow-external ")),
    "2^40 elements": (network(ADD, weights=(HUGE,)), ("'w'", "elements")),
}


@pytest.mark.parametrize("name", BAD_MODELS)
@pytest.mark.parametrize("before", [b"an earlier import", None])
def test_bad_models(hpdlf: Hpdlf, tmp_path: Path, name: str, before: bytes | None) -> None:
    content, parts = BAD_MODELS[name]
    (tmp_path / "m.onnx").write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    out = tmp_path / "out.onnx"
    if before:
        out.write_bytes(before)
    refused(hpdlf("import", "m.onnx", "-o", "out.onnx"), "m.onnx", *parts)
    assert (out.read_bytes() if out.exists() else None) == before
    assert {p.name for p in tmp_path.iterdir()} <= {"m.onnx", "out.onnx"}


def test_import_never_replaces_its_source(hpdlf: Hpdlf, digits: Path) -> None:
    before = digits.read_bytes()
    refused(hpdlf("import", "digits.onnx", "-o", "digits.onnx"), "digits.onnx", "-o FILE")
    assert digits.read_bytes() == before
    refused(hpdlf("import", "digits.onnx", "-o", "d.onnx", "--bind", "length=-1"), "--bind length=-1", "NAME=SIZE")


PROFILE = """format = 1
profile = "cluster"
name = "mine"
node = "xeon-2s-6148"
link = "fabric-100g"
n_nodes = 2
"""


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ('prise_per_node_hour = { value = 3, unit = "USD/h", source = "me", tier = "recalled" }', ("prise_per_node",)),
        ('price_per_node_hour = { value = 3, unit = "USD/km", source = "me", tier = "recalled" }', ("USD/km",)),
    ],
)
def test_bad_profiles(hpdlf: Hpdlf, digits: Path, line: str, parts: tuple[str, ...]) -> None:
    digits.with_name("mine.toml").write_text(PROFILE + line + "\n")
    said = hpdlf("simulate", "digits.onnx", "--on", "mine.toml", "--batch", "8")
    refused(said, "mine.toml", "price_per_node_hour", *parts)


def test_a_misspelt_cluster_and_this_machine_before_it_was_measured(hpdlf: Hpdlf, digits: Path) -> None:
    simulate = ("simulate", "digits.onnx", "--batch", "8", "--on")
    refused(hpdlf(*simulate, "dgx-a10"), "'dgx-a10'", "did you mean", "hpdlf profile list")
    refused(hpdlf(*simulate, "local"), "hpdlf profile measure")
    refused(hpdlf(*simulate, "nowhere.toml"), "nowhere.toml", "hpdlf profile list")


def test_more_devices_than_there_are(hpdlf: Hpdlf, digits: Path) -> None:
    refused(hpdlf(*PLAN, "--ranks", "16"), "16 ranks", "generic-x86", "2 devices")
    refused(hpdlf(*PLAN[:-4], "-o", "plan.json", "--data", "8"), "8", "generic-x86", "2 devices")
    said = hpdlf("simulate", "digits.onnx", "--on", "generic-x86", "--batch", "64", "--data", "8")
    refused(said, "needs 8 devices", "generic-x86 has 2")
    assert not digits.with_name("plan.json").exists()


@pytest.mark.parametrize(
    ("arrays", "parts"),
    [
        ({"x": np.zeros((320, 8, 8), np.float32), "labels": np.zeros(320, np.int64)}, ("(batch, 1, 8, 8)", "(8, 8)")),
        ({"x": np.zeros((320, 1, 8, 8), np.float32), "labels": np.full(320, 10)}, ("labels", "0..9", "10")),
        ({"x": np.zeros((320, 1, 8, 8), np.uint8), "labels": np.zeros(320, np.int64)}, ("[data.scale]", "x")),
        ({"x": np.zeros((32, 1, 8, 8), np.float32), "labels": np.zeros(32, np.int64)}, ("batch of 64", "--batch 26")),
        ({"images": np.zeros((320, 1, 8, 8), np.float32), "labels": np.zeros(320, np.int64)}, ("[data.arrays]",)),
    ],
)
def test_data_that_does_not_fit(hpdlf: Hpdlf, digits: Path, arrays: dict[str, np.ndarray], parts: tuple[str]) -> None:
    np.savez(digits.with_name("train.npz"), **arrays)
    refused(hpdlf(*PLAN, "--recipe", "recipe.toml"), *parts)
    assert not digits.with_name("plan.json").exists()
    assert not digits.with_name("plan.onnx").exists()


def test_bad_recipes(hpdlf: Hpdlf, digits: Path) -> None:
    digits.with_name("recipe.toml").write_text("epoch = 3\n[optimizer]\nname = 'adamm'\n")
    refused(hpdlf(*PLAN, "--recipe", "recipe.toml"), "recipe.toml", "2 problems", "'epochs'", "'adam'")
    refused(hpdlf(*PLAN, "--recipe", "nowhere.toml"), "nowhere.toml", "--recipe FILE")
    digits.with_name("recipe.toml").write_text('[data]\nsource = "nowhere.npz"\n')
    refused(hpdlf(*PLAN, "--recipe", "recipe.toml"), "nowhere.npz", "no such data")


def test_wrong_options(hpdlf: Hpdlf, digits: Path) -> None:
    said = hpdlf("simulat")
    refused(said, "simulat", "Did you mean 'simulate'?", "`hpdlf --help`")
    refused(hpdlf("plan", "digits.onnx"), "--on", "`hpdlf plan --help`")
    refused(hpdlf(*PLAN, "--objective", "speed"), "'speed'", "time, energy, cost")
    refused(hpdlf(*PLAN, "--choose", "99"), "--choose 99")
    refused(hpdlf(*PLAN, "--objective", "energy"), "energy", "unavailable", "hpdlf profile show generic-x86")
    refused(hpdlf("simulate", "digits.onnx", "--on", "xeon-64", "--batch", "10", "--data", "4"), "multiple of 4")
    refused(hpdlf("simulate", "digits.onnx", "--on", "xeon-64", "--batch", "8", "--schedule", "1f2b"), "1f2b", "gpipe")
    refused(hpdlf("whatif", "digits.onnx", "--devices", "8,x"), "--devices 8,x")
    refused(hpdlf("simulate", "digits.onnx", "--on", "xeon-64", "--batch", "8", "--gantt", "a.xyz"), "a.xyz", ".png")
    refused(hpdlf("simulate", "digits.onnx", "--on", "xeon-64", "--batch", "8", "--gantt", "no/a.png"), "no/a.png")
    assert {p.name for p in digits.parent.iterdir()} == {"digits.onnx", "recipe.toml", "train.npz"}


def test_runs_and_plans_that_are_none(hpdlf: Hpdlf, tmp_path: Path) -> None:
    (tmp_path / "no.json").write_text("{}")
    refused(hpdlf("approve", "no.json", "--yes"), "no.json", "hpdlf plan")
    refused(hpdlf("train", "nowhere.json", "--out", "run"), "nowhere.json", "hpdlf plan")
    for words in (("refine", "run"), ("report", "run", "-o", "r.html"), ("export", "run", "-o", "t.onnx")):
        refused(hpdlf(*words), "run", "hpdlf train", code=1)


def test_what_nobody_expected_is_one_line(hpdlf: Hpdlf, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("hpdlf.hwprofiles.list_profiles", fail)
    said = hpdlf("profile", "list")
    refused(said, "ZeroDivisionError: a bug", "--debug", code=1)
    assert len(said.err.splitlines()) == 1
    assert "Traceback" in hpdlf("profile", "list", "--debug").err


def test_names_with_brackets_are_no_markup(hpdlf: Hpdlf, tmp_path: Path) -> None:
    model = mlp((4, 8, 3))
    model.graph.node[0].name = "layers[red]/dense"
    onnx.save(model, tmp_path / "m.onnx")
    assert "layers[red]" in hpdlf("inspect", "m.onnx").out


# --- strategies --------------------------------------------------------------------------------------------------------


@pytest.fixture
def decoder(tmp_path: Path) -> Path:
    """gpt.onnx: four layers wide enough to be split."""
    model = build("gpt", layers=4, hidden=512, heads=8, seq_len=32, vocab=512, seed=0)
    onnx.save(model, tmp_path / "gpt.onnx")
    return tmp_path / "gpt.onnx"


def test_every_part_of_a_strategy_can_be_asked_for(hpdlf: Hpdlf, decoder: Path) -> None:
    simulate = ("simulate", "gpt.onnx", "--on", "dgx-a100:2", "--batch", "32")
    parts = "--data 2 --pipeline 2 --tensor 2 --context 2 --sequence-parallel --interleave 2 --cut layers"
    more = "--zero 1 --recompute full --precision bfloat16 --mixed --microbatches 4"
    said = hpdlf(*simulate, *parts.split(), *more.split())
    assert said.code == 0, said.err
    told = " ".join(said.out.split())
    assert "data 2 x pipeline 2 x tensor 2 x context 2, 4 microbatches of 4, 1f1b interleaved 2" in told
    said = hpdlf(*simulate, "--data", "4", "--solver", "local", "--synchronise-every", "8")
    assert "averaged every 8 steps" in " ".join(said.out.split())
    assert hpdlf(*simulate, "--pipeline", "4", "--schedule", "zero_bubble").code == 0


def test_whatif_tries_strategies_with_these_parts(hpdlf: Hpdlf, decoder: Path) -> None:
    words = (
        "--on",
        "dgx-a100:2",
        "--devices",
        "6,8",
        "--tensor",
        "4",
        "--zero",
        "1",
        "--batch-per-device",
        "8",
        "--json",
    )
    said = hpdlf("whatif", "gpt.onnx", *words)
    assert said.code == 0, said.err
    six, eight = json.loads(said.out)
    assert "tensor 4" in six["refused"]
    assert eight["strategy"].startswith("data 2 x pipeline 1 x tensor 4")
    assert "zero 1" in eight["strategy"]


def test_strategies_that_cannot_be(hpdlf: Hpdlf, decoder: Path) -> None:
    simulate = ("simulate", "gpt.onnx", "--on", "dgx-a100:2", "--batch", "32")
    refused(hpdlf(*simulate, "--recompute", "ful"), "recompute", "'selective'")
    refused(hpdlf(*simulate, "--interleave", "2"), "interleave needs a pipeline")
    refused(hpdlf(*simulate, "--sequence-parallel"), "sequence_parallel", "tensor 2 or more")
    refused(hpdlf(*simulate, "--data", "4", "--expert", "4"), "no experts", "Leave `expert` at 1")
    refused(hpdlf(*simulate, "--pipeline", "8", "--cut", "layers"), "4 blocks, too few for 8 pipeline stages")
    refused(hpdlf(*simulate, "--zero", "4"), "--zero", "`hpdlf simulate --help`")


def test_what_can_only_be_simulated_is_not_planned(hpdlf: Hpdlf, digits: Path) -> None:
    refused(
        hpdlf(*PLAN, "--schedule", "zero_bubble"), "schedule zero_bubble", "leave `--schedule` out", "`hpdlf simulate`"
    )
    refused(hpdlf(*PLAN, "--solver", "local"), "solver local", "leave `--solver` out")
    assert not digits.with_name("plan.json").exists()


def test_help_puts_like_things_together(hpdlf: Hpdlf) -> None:
    said = hpdlf("simulate", "--help").out
    headings = ["Arguments:", "Options:", "Who computes what:", "Memory and precision:", "Hardware and its price:"]
    assert [line for line in said.splitlines() if line in headings] == headings
    assert max(map(len, said.splitlines())) <= 100
    assert said.index("Who computes") < said.index("--tensor T") < said.index("Memory and") < said.index("--zero 0..3")
