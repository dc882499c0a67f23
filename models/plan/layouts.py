"""What sharding an operator over ranks asks of its operands and makes of its results: one rule per kind of operator.

A :data:`Layout` says how ranks along one axis hold a tensor: None (whole on each), a dim (split along it), :data:`PARTIAL` (as a sum
still to be formed) or :class:`Experts` (split by expert, with everybody's rows). See :mod:`.sharding` for what is done where a
tensor is held otherwise than wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from ..onnxpp.graph import Operator
from .reach import LEAST_ELEMENTS, Reach, axis_of

__all__ = ["PARTIAL", "Experts", "Layout", "Rules", "Wanted"]

PARTIAL: Final = "partial"


class Experts(NamedTuple):
    """Split along the dim `expert`; `rows` is the dim that holds the rows of all ranks in return."""

    expert: int
    rows: int

    def __str__(self) -> str:
        return f"experts{self.expert}"


Layout = int | str | Experts | None


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Layouts of an operator's operands and results; `shared`: whole operands meet a split weight, so gradients add up."""

    inputs: tuple[Layout, ...]
    outputs: tuple[Layout, ...]
    shared: bool = False
    attributes: Mapping[str, Any] = field(default_factory=dict)


class Rules(Reach):
    """The rules for one graph and one axis."""

    def of(self, operator: Operator, held: Sequence[Layout], layout: Mapping[str, Layout]) -> Wanted:
        """What `operator` wants, given how its operands are held."""
        if operator.outputs[0] in self.fixed:
            return self._whole(operator)
        if all(h is None for h in held) and self.axis == "context":
            return self._whole(operator)
        rule = _RULES.get(operator.op_type) or _BY_FAMILY.get(operator.family, Rules._aligned)
        return rule(self, operator, held)

    def _whole(self, operator: Operator) -> Wanted:
        return Wanted(inputs=(None,) * len(operator.inputs), outputs=(None,) * len(operator.outputs))

    def _alone(self, operator: Operator, held: Sequence[Layout]) -> Wanted:
        """No way to share it is known: every rank does it all."""
        return self._whole(operator)

    def _measured(self, operator: Operator, held: Sequence[Layout]) -> Wanted:
        """Only the shape is asked for: however the data are held."""
        return Wanted(inputs=(held[0],), outputs=(None,))

    def _rotated(self, operator: Operator, held: Sequence[Layout]) -> Wanted:
        """Positions turned into the data: by heads, or along the sequence, whose positions are split with it."""
        name, rest = operator.inputs[0], len(operator.inputs) - 1
        have = self._between(held[0], name)
        heads, sequence = (1, 2) if self.rank(name) == 4 else (2, 1)
        if have == heads and int(operator.attributes.get("num_heads", self.size)) % self.size == 0:
            count = operator.attributes.get("num_heads")
            local = {"num_heads": int(count) // self.size} if count else {}
            return Wanted(inputs=(have, *(None,) * rest), outputs=(have,), attributes=local)
        if have == sequence:
            return Wanted(inputs=(have, *(None,) * rest), outputs=(have,))
        return self._whole(operator)

    def _between(self, held: Layout, name: str) -> Layout:
        """Where nothing speaks for a split, a partial sum becomes whole, or is split along the sequence."""
        if held != PARTIAL:
            return held
        return self._sequence_dim(name)

    def _sequence_dim(self, name: str) -> Layout:
        shape = self.graph.tensors[name].shape
        if self.sequence and len(shape) == 3 and not shape[1].per_sample and shape[1].fixed % self.size == 0:
            return 1
        return None

    # Rules

    def _aligned(self, operator: Operator, held: Sequence[Layout]) -> Wanted:
        """Element by element, with broadcasting: every operand is split where the result is."""
        out = operator.outputs[0]
        rank = self.rank(out)
        target: Layout = None
        for name, have in zip(operator.inputs, held, strict=True):
            have = self._between(have, name) if name else None
            if isinstance(have, Experts):
                target = have
                break
            if isinstance(have, int) and self.rank(name) <= rank:
                target = have + rank - self.rank(name)
                break
        if isinstance(target, Experts) and not all(
            self._goes_along(n, h, rank) for n, h in zip(operator.inputs, held, strict=True)
        ):
            return self._whole(operator)  # one way back is cheaper than another operand's way there
        if isinstance(target, Experts):
            wanted = tuple(self._dealt(n, target, rank) for n in operator.inputs)
            return Wanted(inputs=wanted, outputs=(target,) * len(operator.outputs))
        inputs = tuple(self.aligned_to(name, target, rank) for name in operator.inputs)
        outputs = tuple(target if n and self.rank(n) == rank else None for n in operator.outputs)
        return Wanted(inputs=inputs, outputs=outputs)

    def _goes_along(self, name: str, held: Layout, rank: int) -> bool:
        """Whether an operand is where an expert's rows are already."""
        return not name or name in self.fixed or self.rank(name) < rank or isinstance(held, Experts)

    def _dealt(self, name: str, target: Experts, rank: int) -> Layout:
        if not name or self.rank(name) != rank:
            return None
        if name not in self.fixed:
            return target
        return target.expert if self.dim(name, target.expert).fixed > 1 else None

    def _normalised(self, operator: Operator, held: Sequence[Layout]) -> Wanted:
        """Over the dims from `axis` on: any other may be split. A batch normalisation goes by channel."""
        have = self._between(held[0], operator.inputs[0])
        rest = len(operator.inputs) - 1
        if operator.op_type in ("BatchNormalization", "InstanceNormalization"):
            split = have if have == 1 else None
            outputs = (split, *((0 if split == 1 else None) for _ in operator.outputs[1:]))
            return Wanted(inputs=(split, *((0 if split == 1 else None),) * rest), outputs=outputs)
        axis = axis_of(operator, -1, self.rank(operator.inputs[0]))
        kept = have if isinstance(have, int) and have < axis else None
        return Wanted(inputs=(kept, *(None,) * rest), outputs=(kept,) * len(operator.outputs))

    def _pooled(self, operator: Operator, held: Sequence[Layout]) -> Wanted:
        """Channel by channel."""
        kept = 1 if self._between(held[0], operator.inputs[0]) == 1 else None
        return Wanted(inputs=(kept, *(None,) * (len(operator.inputs) - 1)), outputs=(kept,) * len(operator.outputs))

    def _along(self, operator: Operator, held: Sequence[Layout]) -> Wanted:
        """One operand, over one axis that must be whole."""
        have = self._between(held[0], operator.inputs[0])
        axis = axis_of(operator, -1, self.rank(operator.inputs[0]))
        kept = have if isinstance(have, int) and have != axis else None
        return Wanted(inputs=(kept, *(None,) * (len(operator.inputs) - 1)), outputs=(kept,) * len(operator.outputs))

    def _viewed(self, operator: Operator, held: Sequence[Layout]) -> Wanted:
        """A reshape keeps a split dim that leads the dims that it is joined with or taken apart into."""
        name = operator.inputs[0]
        have = self._between(held[0], name)
        new: Layout = None
        if isinstance(have, int):
            new = self.through_reshape(name, operator.outputs[0], have)
        kept = have if new is not None else None
        rest = (None,) * (len(operator.inputs) - 1)
        return Wanted(inputs=(kept, *rest), outputs=(new, *(None,) * (len(operator.outputs) - 1)))

    def _transposed(self, operator: Operator, held: Sequence[Layout]) -> Wanted:
        have = self._between(held[0], operator.inputs[0])
        rank = self.rank(operator.inputs[0])
        order = list(operator.attributes.get("perm") or reversed(range(rank)))
        new = order.index(have) if isinstance(have, int) else None
        return Wanted(inputs=(have if new is not None else None,), outputs=(new,))

    def _cut(self, operator: Operator, held: Sequence[Layout]) -> Wanted:
        """Split, Slice, Concat, Pad and the like: along any other dim, and along the split one if all parts divide."""
        have: Layout = None
        for name, h in zip(operator.inputs, held, strict=True):
            if name and name not in self.fixed and isinstance(self._between(h, name), int):
                have = self._between(h, name)
                break
        rank = self.rank(operator.outputs[0])
        axis = axis_of(operator, 0 if operator.op_type == "Split" else None, rank)
        along = axis is None or axis == have
        outs = [o for o in operator.outputs if o]
        divides = (
            all(self.dim(o, have).at(1) % self.size == 0 for o in outs)
            if isinstance(have, int) and have < rank
            else False
        )
        if operator.op_type not in ("Split", "Concat"):
            unchanged = (
                isinstance(have, int) and have < rank and self.dim(outs[0], have) == self.dim(operator.inputs[0], have)
            )
            along, divides = not unchanged, False
        if have is None or (along and not divides):
            return self._whole(operator)
        data = (
            {n for n in operator.inputs if n and self.rank(n) == rank}
            if operator.op_type == "Concat"
            else {operator.inputs[0]}
        )
        return Wanted(
            inputs=tuple(have if n in data else None for n in operator.inputs), outputs=(have,) * len(operator.outputs)
        )

    def _gathered(self, operator: Operator, held: Sequence[Layout]) -> Wanted:
        """A look-up: by rows of a large table (the vocabulary), or along the dims of the indices."""
        if operator.op_type != "Gather":
            return self._whole(operator)
        table, indices = operator.inputs[:2]
        axis = axis_of(operator, 0, self.rank(table)) or 0
        have = held[1]
        if isinstance(have, int) and table in self.fixed:
            return Wanted(inputs=(None, have), outputs=(have + axis,))
        if self.axis == "tensor" and table in self.fixed and axis == 0 and self.rank(table) == 2:
            shape = self.graph.tensors[table]
            if table in self.graph.trainable and shape.elements(1) >= LEAST_ELEMENTS and indices not in self.fixed:
                return Wanted(inputs=(0, None), outputs=(PARTIAL,))
        kept = self._between(held[0], table)
        if isinstance(kept, int) and kept != axis and indices in self.fixed:
            shift = self.rank(indices) - 1 if kept > axis else 0
            return Wanted(inputs=(kept, None), outputs=(kept + shift,))
        return self._whole(operator)

    def _reduced(self, operator: Operator, held: Sequence[Layout]) -> Wanted:
        name, out = operator.inputs[0], operator.outputs[0]
        have = self._between(held[0], name)
        if self.rank(out) == self.rank(name) and isinstance(have, int) and self.dim(out, have) == self.dim(name, have):
            return Wanted(inputs=(have, *(None,) * (len(operator.inputs) - 1)), outputs=(have,) * len(operator.outputs))
        return self._whole(operator)

    def _lost(self, operator: Operator, held: Sequence[Layout]) -> Wanted:
        """A loss takes its rows split, or the classes (each rank its part of the normaliser): its result is a scalar for all."""
        logits, labels = operator.inputs[0], operator.inputs[1]
        have = self._between(held[0], logits)
        labelled = (
            have
            if isinstance(have, int) and have < self.rank(labels) and self.rank(labels) == self.rank(logits)
            else None
        )
        if isinstance(have, int) and have != 1 and have - 1 < self.rank(labels):
            labelled = have if have == 0 else have - 1
        rest = (None,) * (len(operator.inputs) - 2)
        return Wanted(inputs=(have, labelled, *rest), outputs=(None,) * len(operator.outputs))

    def _product(self, operator: Operator, held: Sequence[Layout]) -> Wanted:
        a, b = operator.inputs[:2]
        if b in self.fixed and a not in self.fixed:
            return self._weighted(operator, held)
        if a in self.fixed or self.rank(a) < 3 or self.rank(b) < 3:
            return self._whole(operator)
        return self._of_data(operator, held)

    def _weighted(self, operator: Operator, held: Sequence[Layout]) -> Wanted:
        """Data times a weight: by columns where a product by rows follows, by rows where the data comes split, by expert."""
        a, weight, *bias = operator.inputs
        rank, weight_rank = self.rank(a), self.rank(weight)
        flipped = bool(operator.attributes.get("transB"))
        columns, rows = (weight_rank - 2, weight_rank - 1) if flipped else (weight_rank - 1, weight_rank - 2)
        have = self._between(held[0], a)
        out_rank = self.rank(operator.outputs[0])
        if self.axis == "expert":
            if weight_rank < 3 or self.dim(weight, 0).fixed % self.size:
                return self._kept(operator, held)
            dealt = Experts(rank - 3, rank - 2)
            return Wanted(inputs=(dealt, 0, *(None for _ in bias)), outputs=(Experts(out_rank - 3, out_rank - 2),))
        if isinstance(held[0], Experts):
            return self._kept(operator, held)
        if have == rank - 1:
            return Wanted(inputs=(have, rows, *(None for _ in bias)), outputs=(PARTIAL,))
        sequence = self.axis == "tensor" and (have is None or (self.sequence and have == 1 and held[0] is not None))
        if sequence and self.worth(operator, weight, columns):
            parts = tuple(0 if self.rank(n) == 1 else None for n in bias)
            return Wanted(inputs=(None, columns, *parts), outputs=(out_rank - 1,), shared=True)
        return self._kept(operator, held)

    def _kept(self, operator: Operator, held: Sequence[Layout]) -> Wanted:
        """The weight is whole; rows of the data may be split."""
        name = operator.inputs[0]
        have = self._between(held[0], name)
        kept = have if isinstance(have, int) and have < self.rank(name) - 1 else None
        return Wanted(inputs=(kept, *(None,) * (len(operator.inputs) - 1)), outputs=(kept,))

    def _of_data(self, operator: Operator, held: Sequence[Layout]) -> Wanted:
        """Data times data (attention spelt out): split alike along a batch dim, or by rows of the first."""
        a, b = operator.inputs
        rank = self.rank(operator.outputs[0])
        first, second = self._between(held[0], a), self._between(held[1], b)
        for have in (first, second):
            if isinstance(have, int) and have < rank - 2 and self.rank(a) == self.rank(b):
                return Wanted(inputs=(have, have), outputs=(have,))
        if first == rank - 2:
            return Wanted(inputs=(first, None), outputs=(first,), shared=True)
        if first == rank - 1 and second == rank - 2:
            return Wanted(inputs=(first, second), outputs=(PARTIAL,))
        if second == rank - 1:
            return Wanted(inputs=(None, second), outputs=(second,), shared=True)
        return self._whole(operator)

    def _attended(self, operator: Operator, held: Sequence[Layout]) -> Wanted:
        """Fused attention: split by heads; along the sequence queries are split, keys and values gathered."""
        query = operator.inputs[0]
        heads, sequence = (1, 2) if self.rank(query) == 4 else (2, 1)
        rest = (None,) * (len(operator.inputs) - 3)
        more_out = (None,) * (len(operator.outputs) - 1)
        have = held[0]
        if have == sequence:
            # Parts are dealt so that all ranks' queries see equally many keys (a stripe of the front and one of the back each).
            return Wanted(
                inputs=(sequence, None, None, *rest),
                outputs=(sequence, *more_out),
                shared=True,
                attributes={"queries_shared": self.size},
            )
        if have == heads and self.kv_divides(operator):
            local = {
                key: operator.attributes[key] // self.size
                for key in ("q_num_heads", "kv_num_heads")
                if key in operator.attributes
            }
            return Wanted(inputs=(heads,) * 3 + rest, outputs=(heads, *more_out), attributes=local)
        return self._whole(operator)

    def _convolved(self, operator: Operator, held: Sequence[Layout]) -> Wanted:
        """A convolution by output channels, then by input channels; a depthwise one channel by channel."""
        x, weight, *bias = operator.inputs
        have = self._between(held[0], x)
        groups = int(operator.attributes.get("group", 1))
        of_bias = tuple(0 for _ in bias)
        none_of_bias = tuple(None for _ in bias)
        if self.axis != "tensor" or weight not in self.fixed:
            return self._whole(operator)
        if groups > 1:
            if have == 1 and groups % self.size == 0:
                return Wanted(inputs=(1, 0, *of_bias), outputs=(1,), attributes={"group": groups // self.size})
            return self._whole(operator)
        flipped = operator.op_type == "ConvTranspose"
        outward, inward = (1, 0) if flipped else (0, 1)
        if have == 1:
            return Wanted(inputs=(1, inward, *none_of_bias), outputs=(PARTIAL,))
        if self.worth(operator, weight, outward, dim=1):
            return Wanted(inputs=(None, outward, *of_bias), outputs=(1,), shared=True)
        return self._whole(operator)


Rule = Callable[[Rules, Operator, Sequence[Layout]], Wanted]
_BY_FAMILY: Mapping[str, Rule] = {
    "matmul": Rules._product,
    "conv": Rules._convolved,
    "normalisation": Rules._normalised,
    "softmax": Rules._along,
    "pooling": Rules._pooled,
    "gather": Rules._gathered,
    "reduction": Rules._reduced,
    "movement": Rules._cut,
    "view": Rules._viewed,
    "loss": Rules._lost,
    "rnn": Rules._alone,
}
_RULES: Mapping[str, Rule] = {
    "Attention": Rules._attended,
    "RotaryEmbedding": Rules._rotated,
    "Shape": Rules._measured,
    "Size": Rules._measured,
    "Transpose": Rules._transposed,
    "Cast": Rules._aligned,
    "CastLike": Rules._aligned,
    "Identity": Rules._aligned,
    "Expand": Rules._aligned,
}
