"""Shapes: what counts as the same work at another size."""

import numpy as np
import pytest

from hpdlf.models.cost.operation import Operation
from hpdlf.models.cost.shapes import log_ratios, shape, shape_key


def op(*dims: int, family: str = "matmul", op: str = "linear", **more: object) -> Operation:
    fields: dict = {"flops": 1.0, "read_bytes": 1.0, "write_bytes": 1.0}
    return Operation(family=family, op=op, dims=dims, **(fields | more))


def segment(batch: int, width: int = 64) -> tuple[Operation, ...]:
    """A layer and its gradients: the batch is m, then m again, then k; the transposed weight does not grow."""
    return (
        op(1, batch, width, 32),
        op(batch, width, family="elementwise", op="relu"),
        op(1, batch, 32, width, phase="backward_input"),
        op(1, 32, width, batch, phase="backward_weight"),
        op(width, 32, family="movement", op="transpose"),
    )


def ratio(a: tuple[Operation, ...], b: tuple[Operation, ...]) -> float:
    here, starts = shape("k", a)
    return float(np.exp(log_ratios(shape("k", b)[0][None], here, starts))[0])


def test_another_batch_is_the_same_work_at_another_size() -> None:
    assert ratio(segment(8), segment(24)) == pytest.approx(3)
    assert ratio(segment(24), segment(8)) == pytest.approx(1 / 3)
    assert ratio(segment(8), segment(8)) == 1
    assert shape_key("segment", "f1", segment(8)) == shape_key("segment", "f2", segment(24))


def test_another_width_is_other_work() -> None:
    assert np.isnan(ratio(segment(8), segment(16, width=128)))
    # Two dimensions of one operation, though by one ratio; and two operations by two.
    assert np.isnan(ratio((op(1, 8, 8, 8),), (op(1, 16, 16, 8),)))
    assert np.isnan(ratio((op(1, 8, 8, 8), op(1, 8, 8, 8)), (op(1, 16, 8, 8), op(1, 24, 8, 8))))


def test_the_key_tells_operators_phases_and_precisions_apart() -> None:
    base = op(1, 8, 8, 8)
    others = [
        op(1, 8, 8, 8, op="bmm"),
        op(1, 8, 8, 8, phase="backward_input"),
        op(1, 8, 8, 8, precision="bfloat16"),
        op(1, 8, 8, 8, item_bytes=2),
    ]
    keys = {shape_key("operator", "f", (each,)) for each in (base, *others)}
    assert len(keys) == 5
    assert shape_key("segment", "f", (base,)) not in keys


def test_an_update_behind_a_backward_pass_keeps_its_size() -> None:
    keys = [shape_key("segment", f"abc+adam:{n}:float32", segment(8)) for n in (10, 20)]
    assert keys[0] != keys[1]


def test_messages_have_their_size_in_the_key() -> None:
    assert shape_key("collective", "all_reduce:4096:8/2") == shape_key("collective", "all_reduce:8192:8/2")
    assert shape_key("collective", "all_reduce:4096:8/2") != shape_key("collective", "all_reduce:4096:16/2")
    assert shape_key("update", "adam:10:float32") == shape_key("update", "adam:99:float32")
    here, starts = shape("transfer:1000")
    assert np.exp(log_ratios(shape("transfer:4000")[0][None], here, starts))[0] == pytest.approx(4)
    here, starts = shape("abcdef")
    assert log_ratios(shape("abcdef")[0][None], here, starts)[0] == 0
