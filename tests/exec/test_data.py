"""Data from files and from Python, cut short, misshapen, or of another type than the model wants."""

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpdlf.errors import DataError
from hpdlf.exec.data import Dataset, check_dataset, data_sha256, open_dataset
from hpdlf.exec.data_sources import Column
from hpdlf.models.onnxpp.graph import Dim, Graph, Operator, Tensor
from hpdlf.models.plan.recipe import Data

RNG = np.random.default_rng(0)
IMAGES = RNG.random((20, 3, 4))
LABELS = RNG.integers(0, 10, 20)


def graph(shape: tuple[int, ...] = (3, 4), dtype: str = "float32", label: str = "int64") -> Graph:
    batch = Dim(per_sample=1)
    tensors = [
        Tensor(name="x", dtype=dtype, shape=(batch, *map(Dim, shape))),
        Tensor(name="y", dtype=label, shape=(batch,)),
        Tensor(name="scores", dtype="float32", shape=(batch, Dim(10))),
        Tensor(name="loss", dtype="float32", shape=()),
    ]
    operators = (
        Operator(name="net", op_type="Flatten", family="view", inputs=("x",), outputs=("scores",)),
        Operator(
            name="loss", op_type="SoftmaxCrossEntropyLoss", family="loss", inputs=("scores", "y"), outputs=("loss",)
        ),
    )
    return Graph(
        name="net", opset=17, operators=operators, tensors={t.name: t for t in tensors}, inputs=("x",), targets=("y",),
        outputs=("scores",), loss="loss", parameters=(), state={}, constants=(),
    )  # fmt: skip


def bound(folder: Path, source: str, model: Graph | None = None, precision: str = "float32", **data: Any) -> Dataset:
    recipe = Data(source=source, **data)
    return check_dataset(
        open_dataset(recipe, base_folder=folder), model or graph(), scale=recipe.scale, precision=precision
    )


def make(folder: Path, kind: str, **arrays: np.ndarray) -> str:
    if kind == "npz":
        np.savez(folder / "d.npz", **arrays)  # type: ignore[arg-type]
        return "d.npz"
    if kind == "compressed":
        np.savez_compressed(folder / "d.npz", **arrays)  # type: ignore[arg-type]
        return "d.npz"
    (folder / "d").mkdir()
    for name, array in arrays.items():
        np.save(folder / "d" / f"{name}.npy", array)
    return "d"


@pytest.mark.parametrize("kind", ["npz", "compressed", "folder"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_files_are_read_by_index(tmp_path: Path, kind: str, order: Any, precision: str) -> None:
    source = make(tmp_path, kind, x=np.array(IMAGES, order=order), y=LABELS.astype(">i4"))
    dataset = bound(tmp_path, source, precision=precision)
    assert dataset.samples == 20
    chosen = np.array([19, 0, 3, 3])
    read = dataset.read(chosen)
    np.testing.assert_array_equal(read["x"], IMAGES.astype(precision)[chosen])
    np.testing.assert_array_equal(read["y"], LABELS[chosen])
    assert (read["x"].dtype, read["y"].dtype) == (precision, "int64")
    assert read["x"].flags.c_contiguous
    assert list(dataset.read(chosen, ["y"])) == ["y"]


@pytest.mark.parametrize(("kind", "mapped"), [("npz", True), ("folder", True), ("compressed", False)])
def test_what_can_be_is_memory_mapped(tmp_path: Path, kind: str, mapped: bool) -> None:
    dataset = open_dataset(Data(source=make(tmp_path, kind, x=IMAGES)), base_folder=tmp_path)
    array: Any = dataset.columns["x"].array
    while isinstance(array.base, np.ndarray):
        array = array.base
    assert (array.base is not None and not isinstance(array.base, np.ndarray)) is mapped


def test_names_scales_and_fewer_samples(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 256, (20, 3, 4)).astype("uint8")
    source = make(tmp_path, "npz", images=pixels, classes=LABELS.astype("int8"), more=np.zeros(20))
    dataset = bound(tmp_path, source, arrays={"x": "images", "y": "classes"}, scale={"x": 1 / 255}, samples=12)
    assert dataset.samples == 12
    assert set(dataset.columns) == {"x", "y"}
    np.testing.assert_allclose(dataset.read(np.array([4]))["x"], pixels[[4]] / 255, rtol=1e-6)


@pytest.mark.parametrize("size", [0, 1, 50, 300, 1500, -1, -30])
@pytest.mark.parametrize("kind", ["npz", "compressed", "folder"])
def test_files_cut_short(tmp_path: Path, kind: str, size: int) -> None:
    source = make(tmp_path, kind, x=IMAGES)
    file = tmp_path / source / "x.npy" if kind == "folder" else tmp_path / source
    os.truncate(file, size if size >= 0 else file.stat().st_size + size)
    with pytest.raises(DataError) as caught:
        open_dataset(Data(source=source), base_folder=tmp_path)
    assert str(file) in str(caught.value)
    assert "Write it again" in str(caught.value)


def test_a_member_that_declares_more_than_it_has(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (2**40, 2**20)})
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue() + bytes(80))
    with pytest.raises(DataError, match="and has fewer"):
        open_dataset(Data(source="d.npz"), base_folder=tmp_path)


@pytest.mark.parametrize("kind", ["npz", "compressed", "folder"])
def test_objects_are_never_unpickled(tmp_path: Path, kind: str) -> None:
    source = make(tmp_path, kind, x=np.array([{"a": 1}, None], dtype=object))
    with pytest.raises(DataError, match="no readable"):
        open_dataset(Data(source=source), base_folder=tmp_path)


@pytest.mark.parametrize(
    ("arrays", "data", "expected"),
    [
        ({"x": IMAGES, "y": LABELS[:19]}, {}, "differ in their number of samples .*: x 20, y 19"),
        ({"x": IMAGES[:0], "y": LABELS[:0]}, {}, "no samples"),
        ({"x": IMAGES, "y": LABELS}, {"samples": 21}, "has 20 samples, the recipe's .* asks for 21"),
        ({"x": IMAGES, "y": LABELS}, {"arrays": {"x": "pictures"}}, "has no array pictures .for x.; it has x, y"),
        ({"x": np.array(3.0)}, {}, "single number"),
        ({"x": np.array(["a", "b"])}, {}, "numbers are wanted"),
    ],
)
def test_data_that_contradicts_itself(
    tmp_path: Path, arrays: dict[str, np.ndarray], data: dict[str, Any], expected: str
) -> None:
    source = make(tmp_path, "npz", **arrays)
    with pytest.raises(DataError, match=expected):
        open_dataset(Data(source=source, **data), base_folder=tmp_path)


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        (
            {"x": IMAGES.reshape(20, 12), "y": LABELS},
            [
                "the model wants x as (batch, 3, 4) float32, but the array is (20, 12) float64",
                "as many elements; reshape",
            ],
        ),
        ({"x": IMAGES[:, :2], "y": LABELS}, ["a sample has shape (2, 4) instead of (3, 4)"]),
        ({"x": IMAGES.astype("uint8"), "y": LABELS}, ["need a factor", "[data.scale]", "1/255"]),
        ({"x": IMAGES, "y": LABELS * 1.0}, ["float64 is not converted to int64"]),
        ({"x": IMAGES, "y": LABELS + 1}, ["y must lie in 0..9, but sample", "has 10"]),
        ({"images": IMAGES, "y": LABELS}, ["no array of that name", 'write `x = "images"` under [data.arrays]']),
        ({"x": IMAGES[:, 0], "y": LABELS[:, None]}, ["x as (batch, 3, 4)", "y as (batch) int64"]),
    ],
)
def test_data_that_does_not_fit_the_model(tmp_path: Path, arrays: dict[str, np.ndarray], expected: list[str]) -> None:
    arrays["y"][0:1] = arrays["y"].max()
    with pytest.raises(DataError) as caught:
        bound(tmp_path, make(tmp_path, "npz", **{k: v.copy() for k, v in arrays.items()}))
    for part in ("d.npz does not fit net", "hpdlf plan --recipe", *expected):
        assert part in str(caught.value)


def test_integers_that_do_not_fit(tmp_path: Path) -> None:
    source = make(tmp_path, "npz", x=np.full((20, 3, 4), 2**40), y=LABELS)
    dataset = bound(tmp_path, source, graph(dtype="int32"))
    with pytest.raises(DataError, match="int32 cannot hold"):
        dataset.read(np.array([0]))


MODULE = """
import numpy as np
count = 0
class Faces:
    def __len__(self): return 6
    def __getitem__(self, i):
        global count
        count += 1
        return {"x": np.full((3, 4), i, "float32"), "y": i % 3}
faces = Faces()
pairs = [(np.full((3, 4), float(i)), i) for i in range(6)]
def stream():
    for start in (0, 2, 4):
        pair = np.array([start, start + 1])
        yield {"x": np.stack([np.full((3, 4), i, "float32") for i in pair]), "y": pair % 3}
batches = list(stream())
arrays = {"x": np.stack([b["x"] for b in batches]).reshape(6, 3, 4), "y": np.arange(6) % 3}
def endless():
    while True:
        yield from stream()
def ragged():
    yield {"x": np.zeros((2, 3)), "y": np.zeros(2, int)}
    yield {"x": np.zeros((2, 3)), "y": np.zeros(1, int)}
def broken():
    raise KeyError("no such key")
number = 3
"""


@pytest.mark.parametrize("attribute", ["faces", "Faces", "stream", "batches", "arrays", "endless"])
def test_python_gives_the_same_samples_in_each_form(tmp_path: Path, attribute: str) -> None:
    (tmp_path / "people.py").write_text(MODULE)
    dataset = bound(tmp_path, f"people:{attribute}", samples=6)
    read = dataset.read(np.array([5, 1]))
    np.testing.assert_array_equal(read["x"][:, 0, 0], [5, 1])
    np.testing.assert_array_equal(read["y"], [2, 1])


def test_tuples_are_named_by_place(tmp_path: Path) -> None:
    (tmp_path / "people.py").write_text(MODULE)
    dataset = bound(tmp_path, "people:pairs", arrays={"x": "0", "y": "1"})
    np.testing.assert_array_equal(dataset.read(np.array([4]))["y"], [4])


def test_two_columns_of_a_dataset_fetch_its_samples_once(tmp_path: Path) -> None:
    calls = []

    class Counted:
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> dict[str, Any]:
            calls.append(index)
            return {"x": np.zeros(2), "y": 1}

    from hpdlf.exec.data_sources import dataset_columns

    columns = dataset_columns(Counted(), "here")
    calls.clear()
    Dataset(source="here", samples=4, columns=columns).read(np.array([1, 2]))
    assert calls == [1, 2]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("people:absent", "absent"),
        ("nobody:x", "There is no Python module nobody"),
        ("people:broken", "failed with KeyError"),
        ("people:number", "is a int"),
        ("people:ragged", "batch 1 has x .2, 3., y .1,."),
        ("people.py", "neither .npz nor .npy"),
        ("absent.npz", "there is no such data"),
    ],
)
def test_sources_that_give_nothing(tmp_path: Path, source: str, expected: str) -> None:
    (tmp_path / "people.py").write_text(MODULE)
    with pytest.raises(DataError, match=expected):
        open_dataset(Data(source=source), base_folder=tmp_path)


def test_no_source_names_the_mend(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="source = "):
        open_dataset(Data(), base_folder=tmp_path)


def test_the_hash_covers_every_byte_and_runs_nothing(tmp_path: Path) -> None:
    make(tmp_path, "folder", x=IMAGES, y=LABELS)
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text("raise SystemExit('this was run')")
    (tmp_path / "pack" / "people.py").write_text("raise SystemExit('this was run')")
    for source, file in (("d", "d/y.npy"), ("d/x.npy", "d/x.npy"), ("pack.people:x", "pack/people.py")):
        before = data_sha256(source, base_folder=tmp_path)
        assert before == data_sha256(source, base_folder=tmp_path)
        content = bytearray((tmp_path / file).read_bytes())
        content[-1] ^= 1
        (tmp_path / file).write_bytes(content)
        assert data_sha256(source, base_folder=tmp_path) != before
    with pytest.raises(DataError, match="no such data"):
        data_sha256("absent.npz", base_folder=tmp_path)


def test_a_renamed_array_changes_the_hash(tmp_path: Path) -> None:
    make(tmp_path, "folder", x=IMAGES, y=LABELS)
    before = data_sha256("d", base_folder=tmp_path)
    (tmp_path / "d" / "y.npy").rename(tmp_path / "d" / "z.npy")
    assert data_sha256("d", base_folder=tmp_path) != before


def test_columns_say_what_they_hold() -> None:
    column = Column(
        samples=2, shape=(3,), dtype=np.dtype("float32"), array=None, fetch=lambda i: np.zeros((len(i), 3), "float32")
    )
    assert column.read(np.array([0, 1])).shape == (2, 3)


def test_the_hash_covers_the_evaluations_own_data(tmp_path: Path) -> None:
    np.savez(tmp_path / "train.npz", x=np.zeros(4))
    np.savez(tmp_path / "test.npz", x=np.zeros(2))
    alone = data_sha256("train.npz", base_folder=tmp_path)
    both = data_sha256("train.npz", "test.npz", base_folder=tmp_path)
    np.savez(tmp_path / "test.npz", x=np.ones(2))
    assert data_sha256("train.npz", base_folder=tmp_path) == alone
    assert data_sha256("train.npz", "test.npz", base_folder=tmp_path) != both
