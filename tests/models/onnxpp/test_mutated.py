"""Damaged and hostile files: each is imported or refused in one clear message, in little time and little memory."""

import resource
import sys
import time
from pathlib import Path

import onnx
import pytest

from hpdlf.errors import ModelError
from hpdlf.experiments.mutations import mutated
from hpdlf.models.onnxpp import import_model
from hpdlf.models.zoo import bert, conv_bn_net, gpt, mlp

CORPUS = Path(__file__).parents[3].parent / "shared" / "onnx"
STANDARD = Path(onnx.__file__).parent / "backend" / "test" / "data"
LONGEST_S = 10.0
MEMORY_BYTES = 2**30
LARGEST_SEED = 200_000


def looped() -> onnx.ModelProto:
    """A loop in whose body there is a branch."""
    return onnx.parser.parse_model(
        """
        <ir_version: 10, opset_import: ["" : 18]>
        looped (float[N, 4] x) => (float[N, 4] y, float[R, N, 4] every)
        <int64 rounds = {3}, bool go = {1}>
        {
            y, every = Loop (rounds, go, x) <body = round (int64 i, bool on, float[N, 4] a) => (bool more, float[N, 4] b, float[N, 4] c)
            {
                more = Identity (on)
                total = ReduceSum <keepdims = 0> (a)
                zero = Constant <value_float = 0.0> ()
                positive = Greater (total, zero)
                b = If (positive) <then_branch = t () => (float[N, 4] p) { p = Relu (a) },
                                   else_branch = e () => (float[N, 4] q) { q = Neg (a) }>
                c = Identity (b)
            }>
        }
        """
    )


def called() -> onnx.ModelProto:
    """Functions, one of which calls the other."""
    return onnx.parser.parse_model(
        """
        <ir_version: 10, opset_import: ["" : 18, "f" : 1]>
        called (float[N, 8] x) => (float[N, 4] y)
        <int64[2] shape = {-1, 4}>
        { a = f.twice (x)  b = Reshape (a, shape)  c = Shape (b)  y = Expand (b, c) }
        <domain: "f", opset_import: ["" : 18, "f" : 1]> twice (a) => (c) { b = f.once (a) c = f.once (b) }
        <domain: "f", opset_import: ["" : 18]> once (a) => (b) { b = Relu (a) }
        """
    )


def seeds() -> list[tuple[str, bytes, dict[str, int]]]:
    """Small networks, graphs with everything unusual, and what ships with onnx or lies in the corpus; with sizes to bind."""
    built = {
        "mlp": mlp((4, 3, 2)),
        "conv": conv_bn_net(),
        "bert": bert(layers=1, hidden=8, heads=2, seq_len=4, vocab=20, max_positions=8, seed=0),
        "gpt": gpt(layers=1, hidden=8, heads=2, seq_len=4, vocab=20, seed=0),
        "looped": looped(),
        "called": called(),
    }
    found = [(name, model.SerializeToString()) for name, model in built.items()]
    files = [
        *STANDARD.glob("simple/*/model.onnx"),
        *STANDARD.glob("pytorch-*/*/model.onnx"),
        *STANDARD.glob("light/*.onnx"),
    ]
    if CORPUS.is_dir():
        files += CORPUS.glob("*.onnx")
    small = [file for file in sorted(files) if file.stat().st_size <= LARGEST_SEED]
    found += [(f"{file.parent.name}/{file.stem}", file.read_bytes()) for file in small]
    return [(name, content, sizes(content)) for name, content in found]


def sizes(content: bytes) -> dict[str, int]:
    """A size for each symbolic dimension of the inputs that is no batch."""
    graph = onnx.ModelProto.FromString(content).graph
    dims = [list(value.type.tensor_type.shape.dim) for value in graph.input]
    batches = {shape[0].dim_param for shape in dims if shape}
    return {d.dim_param: 4 for shape in dims for d in shape if d.dim_param and d.dim_param not in batches}


def verdict(path: Path, content: bytes, bind: dict[str, int]) -> str:
    """ "" if the file is imported, else what is said; asserts all that must hold of both."""
    start = time.perf_counter()
    try:
        import_model(path, content=content, without_weights=True, bind=bind)
    except ModelError as error:
        said = str(error)
    else:
        said = ""
    assert time.perf_counter() - start < LONGEST_S
    if said:
        assert str(path) in said
        assert len(said) < 20_000
        assert all(c.isprintable() or c == "\n" for c in said), said
        for noise in ("Traceback", ".cc:", ".py", "InferenceError", "object at 0x", "cannot be understood"):
            assert noise not in said, said
    return said


def memory() -> int:
    """The most memory in bytes that this process has had."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def run(path: Path, variants: range) -> tuple[int, int]:
    """How many variants are imported and how many refused."""
    originals = seeds()
    before, imported = memory(), 0
    for seed in variants:
        name, content, bind = originals[seed % len(originals)]
        try:
            imported += not verdict(path, mutated(content, seed), bind)
        except BaseException as error:
            error.add_note(f"variant {seed} of {name}")
            raise
    assert memory() - before < MEMORY_BYTES
    return imported, len(variants) - imported


def test_a_sample_of_damaged_files(tmp_path: Path) -> None:
    imported, refused = run(tmp_path / "m.onnx", range(60))
    assert imported
    assert refused


@pytest.mark.slow
@pytest.mark.parametrize("start", range(1000, 3000, 250))
def test_damaged_files(tmp_path: Path, start: int) -> None:
    run(tmp_path / "m.onnx", range(start, start + 250))


def test_variants_are_reproducible() -> None:
    content = mlp((4, 2)).SerializeToString()
    assert [mutated(content, seed) for seed in range(20)] == [mutated(content, seed) for seed in range(20)]
    assert len({mutated(content, seed) for seed in range(20)}) > 15
