"""The operators of ai.onnx.ml: random models against onnxruntime, the rest against what the standard says."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import NodeProto, helper, numpy_helper

from hpdlf.errors import ModelError
from hpdlf.exec.backend import Backend

Compare = Callable[..., list[np.ndarray]]
ML = "ai.onnx.ml"


def rows(count: int = 6, features: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, features)).astype(np.float32)


def floats(*shape: int, seed: int = 1) -> list[float]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32).reshape(-1).tolist()


def ml(op: str, **attributes: Any) -> NodeProto:
    """A node with one input."""
    outputs = ["y", "z"] if op.endswith("Classifier") else ["y"]
    return helper.make_node(op, ["x"], outputs, domain=ML, **attributes)


def forest(
    trees: int, classes: int, prefix: str, *, seed: int = 0, positive: bool = False, only: Any = None
) -> dict[str, Any]:
    """Random trees of depth up to 4 over 4 features, with votes at the leaves."""
    rng = np.random.default_rng(seed)
    lists: dict[str, list[Any]] = {}

    def add(**values: Any) -> None:
        for name, value in values.items():
            lists.setdefault(name, []).append(value)

    for tree in range(trees):
        waiting, count = [(0, 0)], 1
        while waiting:
            node, depth = waiting.pop()
            inner = depth < 4 and (depth == 0 or rng.uniform() < 0.7)
            yes, no = (count, count + 1) if inner else (0, 0)
            mode = rng.choice(["BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT"]) if inner else "LEAF"
            add(
                nodes_treeids=tree,
                nodes_nodeids=node,
                nodes_modes=str(mode),
                nodes_featureids=int(rng.integers(4)),
                nodes_values=float(np.float32(rng.standard_normal() / 2)),
                nodes_truenodeids=yes,
                nodes_falsenodeids=no,
                nodes_missing_value_tracks_true=int(rng.integers(2)),
            )
            if inner:
                waiting += [(yes, depth + 1), (no, depth + 1)]
                count += 2
                continue
            for target in range(classes) if only is None else only:
                weight = float(np.float32(rng.uniform(0 if positive else -1, 1) / trees))
                add(
                    **{
                        f"{prefix}_treeids": tree,
                        f"{prefix}_nodeids": node,
                        f"{prefix}_ids": target,
                        f"{prefix}_weights": weight,
                    }
                )
    return lists


@pytest.mark.parametrize("transform", ["NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO"])
@pytest.mark.parametrize("only", [None, (0, 2)])
def test_classifying_trees(transform: str, only: Any, like_onnxruntime: Compare) -> None:
    node = ml(
        "TreeEnsembleClassifier",
        post_transform=transform,
        classlabels_int64s=[5, 7, 9],
        **forest(7, 3, "class", only=only),
    )
    like_onnxruntime(node, {"x": rows(20)}, opset=15, domain=ML, version=3)


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("transform", ["NONE", "LOGISTIC"])
@pytest.mark.parametrize("base", [{}, {"base_values": [0.1]}])
def test_two_classes_and_votes_for_one(
    positive: bool, transform: str, base: dict[str, Any], like_onnxruntime: Compare
) -> None:
    node = ml(
        "TreeEnsembleClassifier",
        post_transform=transform,
        classlabels_int64s=[5, 7],
        **base,
        **forest(7, 2, "class", positive=positive, only=(0,)),
    )
    like_onnxruntime(node, {"x": rows(20)}, opset=15, domain=ML, version=3)


@pytest.mark.parametrize("aggregate", ["SUM", "AVERAGE", "MIN", "MAX"])
@pytest.mark.parametrize(("targets", "only"), [(1, None), (3, None), (3, (0, 2))])
def test_trees_of_regression(aggregate: str, targets: int, only: Any, like_onnxruntime: Compare) -> None:
    base = {"base_values": floats(targets)} if targets == 3 and only is None else {}
    node = ml(
        "TreeEnsembleRegressor",
        n_targets=targets,
        aggregate_function=aggregate,
        **base,
        **forest(5, targets, "target", only=only),
    )
    x = rows(20)
    x[::5, 1] = np.nan
    like_onnxruntime(node, {"x": x}, opset=15, domain=ML, version=3)


def test_trees_that_vote_for_a_class_each(like_onnxruntime: Compare) -> None:
    lists = forest(6, 3, "class", only=(0,))
    lists["class_ids"] = [tree % 3 for tree in lists["class_treeids"]]
    node = ml(
        "TreeEnsembleClassifier", classlabels_int64s=[1, 2, 3], base_values=floats(3), post_transform="SOFTMAX", **lists
    )
    like_onnxruntime(node, {"x": rows(20)}, opset=15, domain=ML, version=3)


@pytest.mark.parametrize("dtype", [np.float64, np.int64, np.int32])
def test_trees_of_other_types(dtype: Any, like_onnxruntime: Compare) -> None:
    lists = forest(5, 3, "class")
    if dtype is np.float64:
        for name in ("nodes_values", "class_weights"):
            lists[f"{name}_as_tensor"] = numpy_helper.from_array(np.array(lists.pop(name), np.float64), name)
    node = ml("TreeEnsembleClassifier", classlabels_int64s=[3, 2, 1], **lists)
    like_onnxruntime(node, {"x": (rows(20) * 2).astype(dtype)}, opset=15, domain=ML, version=3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_operator_for_all_trees(dtype: Any, like_onnxruntime: Compare) -> None:
    def tensor(values: Any, kind: Any = dtype) -> Any:
        return numpy_helper.from_array(np.array(values, kind), "t")

    node = ml(
        "TreeEnsemble",
        n_targets=2,
        aggregate_function=1,
        post_transform=0,
        tree_roots=[0, 2],
        nodes_splits=tensor([0.1, -0.3, 0.4]),
        nodes_featureids=[0, 2, 1],
        nodes_modes=tensor([0, 3, 1], np.uint8),
        nodes_truenodeids=[1, 0, 3],
        nodes_trueleafs=[0, 1, 1],
        nodes_falsenodeids=[2, 1, 4],
        nodes_falseleafs=[1, 1, 1],
        leaf_targetids=[0, 1, 0, 1, 0],
        leaf_weights=tensor([1.5, -2, 3, 4, 5]),
    )
    like_onnxruntime(node, {"x": rows(20).astype(dtype)}, opset=21, domain=ML, version=5)


def test_names_of_classes_are_put_in_on_the_host() -> None:
    node = ml("TreeEnsembleClassifier", classlabels_strings=["a", "b", "c"], **forest(3, 3, "class"))
    numbers = ml("TreeEnsembleClassifier", classlabels_int64s=[0, 1, 2], **forest(3, 3, "class"))
    names, scores = Backend.run_node(node, [rows(9)], opset_version=3)
    places, same = Backend.run_node(numbers, [rows(9)], opset_version=3)
    assert names.tolist() == ["abc"[p] for p in places]
    np.testing.assert_array_equal(scores, same)


def test_a_forest_that_leads_round_is_refused() -> None:
    lists = forest(1, 1, "target")
    inner = next(i for i, mode in enumerate(lists["nodes_modes"]) if i and mode != "LEAF")
    lists["nodes_truenodeids"][inner] = lists["nodes_nodeids"][inner]
    node = ml("TreeEnsembleRegressor", n_targets=1, **lists)
    with pytest.raises(ModelError, match=r"is no forest: (a path through a tree leads round|its trees do not have)"):
        Backend.run_node(node, [rows()], opset_version=3)


@pytest.mark.parametrize("transform", ["NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO"])
@pytest.mark.parametrize("classes", [1, 3])
def test_linear_classifiers(transform: str, classes: int, like_onnxruntime: Compare) -> None:
    node = ml(
        "LinearClassifier",
        post_transform=transform,
        coefficients=floats(classes, 4),
        intercepts=floats(classes, seed=2),
        classlabels_ints=[4, 6, 8][: max(classes, 2)],
    )
    like_onnxruntime(node, {"x": rows(20)}, opset=15, domain=ML)


@pytest.mark.parametrize("transform", ["NONE", "SOFTMAX", "LOGISTIC"])
def test_linear_regression(transform: str, like_onnxruntime: Compare) -> None:
    node = ml(
        "LinearRegressor", post_transform=transform, targets=3, coefficients=floats(3, 4), intercepts=floats(3, seed=2)
    )
    like_onnxruntime(node, {"x": rows(20)}, opset=15, domain=ML)


KERNELS = {"LINEAR": [0.0, 0.0, 0.0], "POLY": [0.5, 0.3, 3.0], "RBF": [0.4, 0.0, 0.0], "SIGMOID": [0.2, 0.1, 0.0]}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("extra", [{}, {"one_class": 1}])
def test_svm_regression(kernel: str, extra: dict[str, Any], like_onnxruntime: Compare) -> None:
    node = ml(
        "SVMRegressor",
        kernel_type=kernel,
        kernel_params=KERNELS[kernel],
        n_supports=5,
        support_vectors=floats(5, 4),
        coefficients=floats(5),
        rho=[0.3],
        **extra,
    )
    like_onnxruntime(node, {"x": rows(20)}, opset=15, domain=ML)


@pytest.mark.parametrize("kernel", ["LINEAR", "RBF"])
@pytest.mark.parametrize("classes", [2, 3, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("chances", [False, True])
def test_svm_classifiers(kernel: str, classes: int, chances: bool, like_onnxruntime: Compare) -> None:
    counts = [3, 2, 4, 2][:classes]
    pairs = classes * (classes - 1) // 2
    extra = {"prob_a": [-abs(v) for v in floats(pairs, seed=4)], "prob_b": floats(pairs, seed=5)} if chances else {}
    node = ml(
        "SVMClassifier",
        kernel_type=kernel,
        kernel_params=KERNELS[kernel],
        vectors_per_class=counts,
        support_vectors=floats(sum(counts), 4),
        coefficients=floats(classes - 1, sum(counts)),
        rho=floats(pairs, seed=3),
        classlabels_ints=[1, 3, 5, 7][:classes],
        **extra,
    )
    like_onnxruntime(node, {"x": rows(20)}, opset=15, domain=ML, rtol=1e-4)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("transform", ["NONE", "SOFTMAX", "LOGISTIC"])
def test_svm_classifiers_without_vectors(classes: int, transform: str, like_onnxruntime: Compare) -> None:
    node = ml(
        "SVMClassifier",
        kernel_params=[0.0, 0.0, 0.0],
        post_transform=transform,
        coefficients=floats(classes, 4),
        rho=[0.1],
        classlabels_ints=[1, 3, 5][:classes],
    )
    like_onnxruntime(node, {"x": rows(20)}, opset=15, domain=ML)


@pytest.mark.parametrize(
    ("op", "attributes", "dtype"),
    [
        ("Binarizer", {"threshold": 0.2}, np.float32),
        ("Imputer", {"imputed_value_floats": [9.0], "replaced_value_float": float("nan")}, np.float32),
        ("Imputer", {"imputed_value_floats": [1.0, 2.0, 3.0, 4.0], "replaced_value_float": 0.5}, np.float32),
        ("Imputer", {"imputed_value_int64s": [7], "replaced_value_int64": 1}, np.int64),
        ("Normalizer", {"norm": "MAX"}, np.float32),
        ("Normalizer", {"norm": "L1"}, np.float32),
        ("Normalizer", {"norm": "L2"}, np.float32),
        ("Scaler", {"offset": [0.5], "scale": [2.0]}, np.float32),
        ("Scaler", {"offset": [0.1, 0.2, 0.3, 0.4], "scale": [1.0, 2.0, 3.0, 4.0]}, np.int64),
        ("OneHotEncoder", {"cats_int64s": [0, 1, 5]}, np.int64),
        ("OneHotEncoder", {"cats_int64s": [0, 1, 5]}, np.float32),
        ("LabelEncoder", {"keys_int64s": [0, 1, -1], "values_floats": [0.5, 1.5, 3.5], "default_float": 9.0}, np.int64),
        (
            "LabelEncoder",
            {"keys_floats": [0.5, float("nan")], "values_int64s": [3, 4], "default_int64": -7},
            np.float32,
        ),
    ],
)
def test_features(op: str, attributes: dict[str, Any], dtype: Any, like_onnxruntime: Compare) -> None:
    x = (rows(5) * 2).astype(dtype)
    if dtype is np.float32:
        x[0, 1], x[2, 2], x[3] = (np.nan if op in ("Imputer", "LabelEncoder") else 0.5), 0.5, 0
    node = ml(op, **attributes)
    like_onnxruntime(node, {"x": x}, opset=15, domain=ML, version=4 if op == "LabelEncoder" else 3)


def test_features_side_by_side(like_onnxruntime: Compare) -> None:
    node = helper.make_node("FeatureVectorizer", ["x", "y"], ["z"], domain=ML, inputdimensions=[4, 2])
    like_onnxruntime(node, {"x": rows(5), "y": rows(5, 2)}, opset=15, domain=ML)
    node = helper.make_node("ArrayFeatureExtractor", ["x", "i"], ["z"], domain=ML)
    like_onnxruntime(node, {"x": rows(5), "i": np.array([2, 0], np.int64)}, opset=15, domain=ML)


def run(op: str, *values: Any, version: int = 3, **attributes: Any) -> Any:
    names = [f"x{i}" for i in range(len(values))]
    return Backend.run_node(
        helper.make_node(op, names, ["y"], domain=ML, **attributes), list(values), opset_version=version
    )[0]


def test_labels_of_strings() -> None:
    words = np.array([["b", "a"], ["z", "b"]], object)
    assert run(
        "LabelEncoder", words, keys_strings=["a", "b"], values_int64s=[5, 6], default_int64=-1, version=4
    ).tolist() == [[6, 5], [-1, 6]]
    assert run("LabelEncoder", np.array([6, 1]), keys_int64s=[5, 6], values_strings=["a", "b"]).tolist() == [
        "b",
        "_Unused",
    ]
    assert run("LabelEncoder", np.array([1, 2]), classes_strings=["a", "b"], version=1).tolist() == ["b", "_Unused"]
    assert run("LabelEncoder", np.array(["b"], object), classes_strings=["a", "b"], version=1).tolist() == [1]
    assert run("CategoryMapper", words, cats_strings=["a", "b"], cats_int64s=[3, 4]).tolist() == [[4, 3], [-1, 4]]
    assert run("OneHotEncoder", words, cats_strings=["a", "b"]).tolist() == [[[0, 1], [1, 0]], [[0, 0], [0, 1]]]
    assert run("ArrayFeatureExtractor", words, np.array([1])).tolist() == [["a"], ["b"]]


def test_of_a_repeated_key_the_last_counts() -> None:
    keys = {"keys_int64s": [0, 1, 1], "values_int64s": [5, 6, 7]}
    assert run("LabelEncoder", np.array([1, 0, 2]), version=4, **keys).tolist() == [7, 5, -1]
    keys = {"keys_strings": ["a", "b", "b"], "values_int64s": [5, 6, 7]}
    assert run("LabelEncoder", np.array(["b", "a", ""], object), version=4, **keys).tolist() == [7, 5, -1]


def test_an_unknown_category_is_refused_where_asked_for() -> None:
    with pytest.raises(ModelError, match="3 is none of its categories"):
        run("OneHotEncoder", np.array([3], np.int64), cats_int64s=[1], zeros=0)
    assert run("OneHotEncoder", np.array([1], np.int64), cats_int64s=[1, 2], zeros=0).tolist() == [[1, 0]]


def test_maps() -> None:
    assert run("CastMap", {3: 0.5, 1: 2.0}).tolist() == [[2.0, 0.5]]
    assert run("CastMap", {3: 0.5, 1: 2.0}, map_form="SPARSE", max_map=5).tolist() == [[0, 2.0, 0, 0.5, 0]]
    assert run("CastMap", {1: "2"}, cast_to="TO_INT64").tolist() == [[2]]
    assert run(
        "DictVectorizer", {"a": np.int64(4), "c": np.int64(8)}, string_vocabulary=["a", "c", "b", "z"]
    ).tolist() == [[4, 8, 0, 0]]
    zipped = run("ZipMap", np.float32([[0.25, 0.75], [1, 0]]), classlabels_strings=["no", "yes"])
    assert zipped == [{"no": 0.25, "yes": 0.75}, {"no": 1.0, "yes": 0.0}]
    with pytest.raises(ModelError, match="2 classes for 3 columns"):
        run("ZipMap", np.zeros((1, 3), np.float32), classlabels_int64s=[1, 2])


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("nodes_treeids", [0], "nodes_treeids has 1 values"),
        ("nodes_values", [], "nodes_values has 0 values"),
        ("nodes_modes", None, "lacks its attribute nodes_modes"),
        ("nodes_featureids", [2**40], "nodes_featureids has"),
        ("target_ids", [0, 0, -1], "target_ids goes from -1"),
        ("target_nodeids", [0], "target_nodeids has 1 values"),
        ("nodes_truenodeids", [99], "has no node 99"),
        ("n_targets", 0, "a vote for score 0 of 0"),
        ("base_values", [1.0, 2.0, 3.0], "3 base values for 2 scores"),
    ],
)
def test_forests_whose_lists_do_not_fit_are_refused(name: str, value: Any, words: str) -> None:
    lists: dict[str, Any] = {"n_targets": 2, **forest(2, 1, "target"), name: value}
    if name in ("nodes_featureids", "nodes_truenodeids", "target_ids"):
        lists[name] = (value + forest(2, 1, "target")[name])[: len(forest(2, 1, "target")[name])]
    with pytest.raises(ModelError, match=words):
        Backend.run_node(
            ml("TreeEnsembleRegressor", **{k: v for k, v in lists.items() if v not in (None, [])}),
            [rows()],
            opset_version=3,
        )


@pytest.mark.parametrize(
    ("op", "attributes", "words"),
    [
        ("Scaler", {"offset": [1.0, 2.0]}, "2 offset; it needs 1 or 4"),
        ("LinearRegressor", {"targets": 2, "coefficients": [1.0]}, r"1 coefficients; it needs \(2, 4\)"),
        ("LinearClassifier", {"classlabels_ints": [1, 2]}, "0 coefficients for 4 features"),
        ("LinearClassifier", {"coefficients": [1.0] * 4}, "names no classes"),
        ("SVMRegressor", {"coefficients": [1.0] * 4, "kernel_params": [1.0]}, "1 kernel_params; it needs 3"),
        ("Imputer", {"imputed_value_floats": [1.0, 2.0]}, "needs imputed_value_floats"),
        ("Normalizer", {"norm": "L3"}, "the norm 'L3'"),
        ("LabelEncoder", {"keys_floats": [1.0], "values_floats": [1.0, 2.0]}, "1 keys and 2 values"),
    ],
)
def test_lists_of_the_wrong_length_are_refused(op: str, attributes: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        Backend.run_node(ml(op, **attributes), [rows()], opset_version=4)
