"""Strings and n-grams, against onnxruntime and against Python."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import helper

from hpdlf.errors import ModelError
from hpdlf.exec.backend import Backend

Compare = Callable[..., list[np.ndarray]]


def one(op: str, *values: Any, **attributes: Any) -> Any:
    names = [f"x{i}" for i in range(len(values))]
    results = Backend.run_node(
        helper.make_node(op, names, ["y", "z"][: 1 + (op == "StringSplit")], **attributes), list(values)
    )
    return results if op == "StringSplit" else results[0]


def words(*items: str) -> np.ndarray:
    return np.array(items, object)


@pytest.mark.parametrize(
    ("attributes", "expected", "counts"),
    [
        ({}, [["a", "b"], ["c", ""], ["", ""]], [2, 1, 0]),
        ({"delimiter": " "}, [["a", "", "b", ""], ["c", "", "", ""], ["", "", "", ""]], [4, 1, 1]),
        ({"maxsplit": 1}, [["a", "b"], ["c", ""], ["", ""]], [2, 1, 0]),
        ({"delimiter": " ", "maxsplit": 1}, [["a", " b "], ["c", ""], ["", ""]], [2, 1, 1]),
    ],
)
def test_splitting(attributes: dict[str, Any], expected: list[list[str]], counts: list[int]) -> None:
    pieces, number = one("StringSplit", words("a  b ", "c", ""), **attributes)
    assert pieces.tolist() == expected
    assert number.tolist() == counts


def test_splitting_nothing() -> None:
    pieces, number = one("StringSplit", np.zeros((0, 2), object))
    assert pieces.shape == (0, 2, 0)
    assert number.shape == (0, 2)


def test_joining_broadcasts() -> None:
    assert one("StringConcat", words("a", "b"), np.array([["x"], ["y"]], object)).tolist() == [
        ["ax", "bx"],
        ["ay", "by"],
    ]


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({}, ["Monday", "tuesday"]),
        ({"case_change_action": "UPPER", "stopwords": ["monday"]}, ["TUESDAY"]),
        ({"case_change_action": "LOWER", "stopwords": ["monday"], "is_case_sensitive": 1}, ["monday", "tuesday"]),
        ({"stopwords": ["monday", "Tuesday"]}, [""]),
    ],
)
def test_cleaning(attributes: dict[str, Any], expected: list[str]) -> None:
    assert one("StringNormalizer", words("Monday", "tuesday"), **attributes).tolist() == expected
    assert one("StringNormalizer", words("Monday", "tuesday")[None], **attributes).tolist() == [expected]


def test_cleaning_takes_rows_only() -> None:
    with pytest.raises(ModelError, match=r"takes strings of shape \(C,\) or \(1, C\), not \(2, 1\)"):
        one("StringNormalizer", words("a", "b")[:, None])


@pytest.mark.parametrize("mode", ["TF", "IDF", "TFIDF"])
@pytest.mark.parametrize(("lengths", "skips"), [((1, 1), 0), ((1, 2), 0), ((2, 2), 2), ((1, 3), 1)])
@pytest.mark.parametrize("kind", ["int64s", "strings"])
def test_counting_n_grams(
    mode: str, lengths: tuple[int, int], skips: int, kind: str, like_onnxruntime: Compare
) -> None:
    pool: list[Any] = [2, 3, 5, 4, 5, 6, 7, 8, 6, 7, 2, 3, 4]
    x: Any = np.random.default_rng(0).integers(2, 9, (4, 12))
    if kind == "strings":
        pool, x = [str(p) for p in pool], x.astype(str).astype(object)
    node = helper.make_node(
        "TfIdfVectorizer", ["x"], ["y"], mode=mode, min_gram_length=lengths[0], max_gram_length=lengths[1],
        max_skip_count=skips, ngram_counts=[0, 4, 10], ngram_indexes=[0, 2, 1, 6, 3, 4, 5, 7],
        weights=[0.5, 1.5, 2.0, 3.0, 1.0, 0.25, 2.0, 7.0], **{f"pool_{kind}": pool},
    )  # fmt: skip
    if kind == "int64s":
        like_onnxruntime(node, {"x": x}, opset=20)
        like_onnxruntime(node, {"x": x[0].astype(np.int32)}, opset=20)
        return
    numbers = helper.make_node("TfIdfVectorizer", ["x"], ["y"])
    numbers.CopyFrom(node)
    next(a for a in numbers.attribute if a.name == "pool_strings").CopyFrom(
        helper.make_attribute("pool_int64s", [int(p) for p in pool])
    )
    np.testing.assert_array_equal(Backend.run_node(node, [x])[0], Backend.run_node(numbers, [x.astype(int)])[0])
