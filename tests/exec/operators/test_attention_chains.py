"""Attention in parts computes what its operators compute one by one, and only what is attention is joined."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hpdlf.exec.operators import attention_chains, lowering, step_context
from hpdlf.exec.operators.attention_chains import chains, joined
from hpdlf.exec.operators.interpret import Step, interpret
from hpdlf.models.onnxpp.graph import Operator

LOWEST = np.array(np.finfo(np.float32).min, np.float64)
OUTPUT = "y"


@pytest.fixture(autouse=True)
def x64() -> Iterator[None]:
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts and blocks as small as the shapes here."""
    monkeypatch.setattr(attention_chains, "PART_BYTES", 1)
    monkeypatch.setattr(attention_chains, "BLOCK_ROWS", 2)


@dataclass(frozen=True, kw_only=True)
class Case:
    """Operators between the products of an attention, from "a" to "z"; what they read besides, constant or not."""

    between: tuple[tuple[str, tuple[str, ...], str], ...] = ()
    constants: Mapping[str, Any] = field(default_factory=dict)
    given: Mapping[str, Any] = field(default_factory=dict)
    q: tuple[int, ...] = (4, 3, 6, 5)
    k: tuple[int, ...] = (4, 3, 5, 8)
    v: tuple[int, ...] = (4, 3, 8, 7)
    axis: int = -1

    def steps(self) -> list[Step]:
        told = [
            ("MatMul", ("q", "k"), "a"),
            *self.between,
            ("Softmax", (self.between[-1][2] if self.between else "a",), "p"),
            ("MatMul", ("p", "v"), OUTPUT),
        ]
        nodes = [
            Operator(
                name=f"make {output}",
                op_type=op_type,
                family="elementwise",
                inputs=inputs,
                outputs=(output,),
                attributes={"axis": self.axis} if op_type == "Softmax" else {},
            )
            for op_type, inputs, output in told
        ]
        return [(node, lowering(node, 21)) for node in nodes]

    def values(self) -> dict[str, jax.Array]:
        draw = np.random.default_rng(0)
        shapes = {"q": self.q, "k": self.k, "v": self.v}
        made = {name: draw.standard_normal(shape) for name, shape in shapes.items()}
        return {name: jnp.asarray(value) for name, value in {**made, **self.given}.items()}

    def results(self, steps: list[Step]) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The output, and the gradients of a loss that weighs its elements differently."""
        moving = {n: v for n, v in self.values().items() if jnp.issubdtype(v.dtype, jnp.floating)}
        still = {n: v for n, v in self.values().items() if n not in moving}

        def run(moving: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
            inner: dict[str, Any] = {**self.constants, **still, **moving}
            interpret(steps, inner, step_context(0, 0, np.arange(4)), {})
            y = inner[OUTPUT]
            return jnp.sum(jnp.sin(y) * jnp.arange(y.size).reshape(y.shape)), y

        gradients, y = jax.jit(jax.grad(run, has_aux=True))(moving)
        return y, gradients


def causal(rows: int, keys: int) -> np.ndarray:
    return np.tri(rows, keys, keys - rows, dtype=bool)


SCALED = ("Mul", ("a", "scale"), "b")
SCALE = {"scale": np.array(0.3)}
CASES = {
    "bare": Case(),
    "scaled": Case(between=(SCALED,), constants=SCALE),
    "divided": Case(between=(("Div", ("a", "scale"), "b"),), constants=SCALE),
    "causal": Case(
        between=(SCALED, ("Where", ("mask", "b", "low"), "c")),
        constants={**SCALE, "mask": causal(6, 8), "low": LOWEST},
    ),
    "causal, hidden where true": Case(
        between=(("Where", ("mask", "low", "a"), "c"),), constants={"mask": ~causal(6, 8), "low": LOWEST}
    ),
    "causal by numbers": Case(
        between=(("Add", ("mask", "a"), "c"),), constants={"mask": np.where(causal(6, 8), 0.1, -np.inf)[None, None]}
    ),
    "causal, hidden a little": Case(
        between=(("Add", ("a", "mask"), "c"),), constants={"mask": np.where(causal(6, 8), 0.0, -2.0)}
    ),
    "padded": Case(
        between=(SCALED, ("Add", ("b", "mask"), "c")),
        constants=SCALE,
        given={"mask": np.where(np.arange(8) < np.arange(5, 9)[:, None], 0.0, -1e9)[:, None, None]},
    ),
    "a bias of heads": Case(between=(("Add", ("a", "bias"), "c"),), given={"bias": np.arange(3.0).reshape(3, 1, 1)}),
    "odd samples": Case(q=(5, 3, 6, 5), k=(5, 3, 5, 8), v=(5, 3, 8, 7)),
    "one sample": Case(q=(1, 3, 6, 5), k=(1, 3, 5, 8), v=(1, 3, 8, 7)),
    "shared keys": Case(k=(4, 1, 5, 8), v=(4, 1, 8, 7)),
    "heads as samples": Case(q=(12, 6, 5), k=(12, 5, 8), v=(12, 8, 7)),
    "keys of all samples": Case(k=(5, 8), v=(8, 7)),
    "axis by number": Case(axis=3),
    "a constant bias of queries": Case(
        between=(("Add", ("a", "bias"), "c"),), constants={"bias": np.arange(6.0).reshape(1, 1, 6, 1)}
    ),
    "one learned query": Case(
        between=(("Add", ("a", "bias"), "c"),), constants={"bias": np.ones((1, 1))}, q=(4, 3, 1, 5)
    ),
    "a column of nothing hidden": Case(
        between=(("Where", ("mask", "a", "low"), "c"),), constants={"mask": np.ones((6, 1), bool), "low": LOWEST}
    ),
    "causal and padded on the left": Case(
        between=(("Where", ("mask", "a", "low"), "b"), ("Add", ("b", "padding"), "c")),
        constants={"mask": causal(6, 8), "low": np.array(-1e9)},
        given={"padding": np.where(np.arange(8) < np.arange(2, 6)[:, None], -1e9, 0.0)[:, None, None]},
    ),
    "causal with a bias": Case(
        between=(("Add", ("a", "bias"), "b"), ("Where", ("mask", "b", "low"), "c")),
        constants={"mask": causal(6, 8), "low": LOWEST, "bias": np.arange(8.0)},
    ),
    "queries without dims before": Case(q=(5,), k=(5, 8), v=(8, 7)),
}


@pytest.mark.parametrize("name", CASES)
def test_parts_compute_what_the_operators_do(name: str) -> None:
    case = CASES[name]
    steps = case.steps()
    parts = joined(steps, {OUTPUT}, case.constants)
    assert [node.op_type for node, _ in parts] == ["Attention"]
    y, gradients = case.results(steps)
    got, got_gradients = case.results(parts)
    np.testing.assert_allclose(got, y, rtol=1e-12, atol=1e-14)
    assert got_gradients.keys() == gradients.keys()
    for tensor, gradient in gradients.items():
        np.testing.assert_allclose(got_gradients[tensor], gradient, rtol=1e-10, atol=1e-12, err_msg=tensor)


def test_softmax_over_another_axis_is_computed_as_it_stands() -> None:
    case = Case(axis=1)
    np.testing.assert_allclose(
        case.results(joined(case.steps(), {OUTPUT}, {}))[0], case.results(case.steps())[0], rtol=1e-12
    )


def products(case: Case) -> set[tuple[int, ...]]:
    """The shapes of scores that are computed."""

    def run(values: Mapping[str, jax.Array]) -> Any:
        inner: dict[str, Any] = {**case.constants, **values}
        interpret(joined(case.steps(), {OUTPUT}, case.constants), inner, step_context(0, 0, np.arange(4)), {})
        return inner[OUTPUT]

    text = jax.jit(run).lower(case.values()).as_text()
    made = re.findall(r"dot_general.*-> tensor<([\dx]+)xf64>", text)
    return {dims for dims in (tuple(map(int, m.split("x"))) for m in made) if dims[-1] != case.v[-1]}


def test_hidden_keys_are_left_away() -> None:
    assert products(CASES["causal"]) == {(1, 3, 2, 4), (1, 3, 2, 6), (1, 3, 2, 8)}
    assert products(CASES["causal by numbers"]) == {(1, 3, 2, 4), (1, 3, 2, 6), (1, 3, 2, 8)}
    assert products(CASES["causal with a bias"]) == {(1, 3, 2, 4), (1, 3, 2, 6), (1, 3, 2, 8)}
    assert products(CASES["causal and padded on the left"]) == {(1, 3, 6, 8)}
    assert products(CASES["padded"]) == {(1, 3, 6, 8)}  # what it hides is known in the run alone
    assert products(CASES["causal, hidden a little"]) == {(1, 3, 6, 8)}


@pytest.mark.parametrize(
    ("mask", "seen"),
    [
        (causal(3, 3), (1, 2, 3)),
        (np.ones((3, 3), bool), None),
        (np.ones((3, 1), bool), None),
        (np.array([[True, False, True], [True, True, False]]), (3, 2)),
        (np.array([[False] * 3, [True] * 3]), None),  # its first query would share its weight among all keys
        (causal(3, 3)[None, None], (1, 2, 3)),
        (np.stack([causal(3, 3)] * 2), None),
        (np.array([True, False, True]), None),
    ],
)
def test_what_queries_see(mask: np.ndarray, seen: tuple[int, ...] | None) -> None:
    case = Case(between=(("Where", ("mask", "a", "low"), "c"),))
    (chain,) = chains(case.steps(), {OUTPUT}, {"mask": mask, "low": LOWEST})
    assert chain.seen == seen


@pytest.mark.parametrize("low", [np.array(0.0), np.array(-1e4), np.array([-1e9, 0.0])])
def test_what_is_not_surely_hidden_is_computed(low: np.ndarray) -> None:
    case = Case(between=(("Where", ("mask", "a", "low"), "c"),))
    (chain,) = chains(case.steps(), {OUTPUT}, {"mask": causal(3, 3), "low": low})
    assert chain.seen is None


def test_only_attention_is_joined() -> None:
    steps = Case(between=(SCALED,)).steps()
    assert len(joined(steps, {OUTPUT, "p"}, {})) == 4  # somebody wants the probabilities
    assert len(joined(steps, {OUTPUT, "a"}, {})) == 4
    for other in (
        Case(between=(("Div", ("scale", "a"), "b"),)),
        Case(between=(("Exp", ("a",), "b"),)),
        Case(between=(("Where", ("a", "scale", "scale"), "b"),)),
        Case(between=(("Add", ("a", "q"), "b"),)),  # the queries are a bias, too
    ):
        assert len(joined(other.steps(), {OUTPUT}, {})) == 4
    reader = Operator(name="more", op_type="Relu", family="elementwise", inputs=("p",), outputs=("r",))
    assert len(joined([*steps, (reader, lowering(reader, 21))], {OUTPUT, "r"}, {})) == 5


def test_what_ends_one_attention_begins_no_other() -> None:
    first = Case().steps()
    more = [
        Operator(name="second", op_type="Softmax", family="softmax", inputs=(OUTPUT,), outputs=("s",)),
        Operator(name="third", op_type="MatMul", family="matmul", inputs=("s", "w"), outputs=("z",)),
    ]
    steps = [*first, *((node, lowering(node, 21)) for node in more)]
    assert [node.name for node, _ in joined(steps, {"z"}, {})] == ["make y", "second", "third"]


def test_operands_of_early_opsets_are_not_cut() -> None:
    steps = Case(between=(("Add", ("a", "bias"), "b"),)).steps()
    early = replace(steps[1][0], attributes={"broadcast": 1, "axis": 1})
    assert len(joined([steps[0], (early, lowering(early, 6)), *steps[2:]], {OUTPUT}, {})) == 4


@pytest.mark.parametrize(("samples", "parts"), [(8, [4, 4]), (7, [3, 4]), (1, [1])])
def test_as_many_parts_as_cores(samples: int, parts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_chains, "allowed_cpus", lambda: [0, 1])
    monkeypatch.setattr(attention_chains, "PART_BYTES", 1 << 30)
    assert [s.stop - s.start for s in attention_chains._shares(samples, 1000)] == parts


def test_parts_are_not_too_many() -> None:
    assert len(attention_chains._shares(1000, 1 << 40)) == attention_chains.MOST_PARTS


def test_others_keep_their_places() -> None:
    before = Operator(name="before", op_type="Relu", family="elementwise", inputs=("x",), outputs=("q",))
    after = Operator(name="after", op_type="Relu", family="elementwise", inputs=(OUTPUT,), outputs=("z",))
    steps = [(before, lowering(before, 21)), *Case().steps(), (after, lowering(after, 21))]
    assert [node.name for node, _ in joined(steps, {"z"}, {})] == ["before", "make y", "after"]


@pytest.mark.parametrize(("part_bytes", "followed"), [(1, False), (1 << 30, True)])
def test_ways_that_were_chosen_for_whole_products_are_not_those_of_parts(
    part_bytes: int, followed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hpdlf.exec.operators import matmul

    monkeypatch.setattr(attention_chains, "PART_BYTES", part_bytes)
    monkeypatch.setattr(attention_chains, "allowed_cpus", lambda: [0])
    told = {"forward": "turned", "left": "turned", "right": "swapped"}
    case, seen = CASES["bare"], []
    plain, choose = case.steps(), matmul.ways_of

    def ways_of(node: Operator, shape: Any, dtype: Any) -> tuple[str, str, str]:
        seen.append(choose(node, shape, dtype))
        return seen[-1]

    monkeypatch.setattr(matmul, "ways_of", ways_of)
    steps = [(replace(n, lowering=told) if n.op_type == "MatMul" else n, f) for n, f in plain]
    found = case.results(joined(steps, (), {}))
    assert (set(seen) == {tuple(told.values())}) == followed
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(case.results(plain)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-10)
