"""The graph as one rank of an axis sees it: tensors of local shapes, and the communication in between as operators.

Ranks along a mesh axis share the work on every sample. :func:`shard` walks the operators in order and keeps for every tensor how the
ranks hold it (its *layout*): whole on each (``None``), one dim split over them (the dim), or as a sum still to be formed
(:data:`PARTIAL`). What an operator wants of its operands and what becomes of its results are the rules of :mod:`.layouts`. Where a
tensor is held otherwise than wanted, an operator of the family "collective" changes it:

| from | to | forward | backward |
|---|---|---|---|
| partial | whole | all-reduce | nothing: every rank has the gradient |
| partial | split | reduce-scatter | all-gather |
| split | whole, for a product whose weight is split | all-gather | reduce-scatter |
| whole | the same, for such a product | nothing | all-reduce |
| split | whole, for anything else | all-gather | nothing: every rank cuts out its part |
| whole | split | nothing: every rank cuts out its part | all-gather |
| every rank its own rows for all experts | all rows for its own experts | all-to-all | all-to-all |

Axis by axis this gives

* **tensor**: products split by columns, then by rows, with one all-reduce behind each pair (Shoeybi et al. 2019, arXiv 1909.08053):
  perceptrons, heads of attention, convolutions by channel; the vocabulary of embeddings and heads; with `sequence` what lies between
  two pairs is split along the sequence (Korthikanti et al. 2022, arXiv 2205.05198);
* **context**: every sample's sequence is split; attention gathers keys and values round a ring (Liu et al. 2023, arXiv 2310.01889);
* **expert**: weights with one matrix an expert are dealt out; their rows travel there and back.

Dims that do not divide are padded to the next multiple.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ...errors import PlanError
from ..onnxpp.graph import Dim, Graph, Operator, Tensor
from .layouts import PARTIAL, Experts, Layout, Rules
from .strategy import Strategy

__all__ = ["COLLECTIVE", "Axis", "Local", "is_collective", "localise", "shard"]

Axis = Literal["tensor", "context", "expert"]
COLLECTIVE = "collective"


def is_collective(operator: Operator) -> bool:
    """Whether an operator is communication that :func:`shard` put into a graph; its attributes say along which `axis`, and which
    collectives it is `forward` and `backward` ("" where it is none).
    """
    return operator.family == COLLECTIVE


@dataclass(frozen=True, kw_only=True)
class Local:
    """A graph as one rank sees it, and the parameters of which the ranks of an expert group hold different ones."""

    graph: Graph
    experts: frozenset[str] = frozenset()


def localise(graph: Graph, strategy: Strategy) -> Local:
    """`graph` as each rank of `strategy` sees it.

    Raises:
        PlanError: the strategy splits along an axis that the graph does not have.
    """
    local = shard(graph, axis="context", size=strategy.context)
    dealt = shard(local, axis="expert", size=strategy.expert)
    experts = frozenset(p for p in graph.parameters if dealt.tensors[p] != local.tensors[p])
    shared = shard(dealt, axis="tensor", size=strategy.tensor, sequence=strategy.sequence_parallel)
    return Local(graph=shared, experts=experts)


def shard(graph: Graph, *, axis: Axis, size: int, sequence: bool = False) -> Graph:
    """`graph` as each of `size` ranks along `axis` sees it.

    sequence   of the axis "tensor": split the sequence between the products

    Raises:
        PlanError: the graph has nothing that the axis could split.
    """
    if size == 1:
        return graph
    sharded = _Sharding(graph, axis, size, sequence).run()
    if not sharded.layouts_found:
        what = {
            "tensor": "no product that tensor parallelism could split",
            "context": "no sequence that context parallelism could split: its inputs are not [batch, sequence]",
            "expert": "no experts: no product has one weight matrix each",
        }[axis]
        raise PlanError(f"{graph.name} has {what}. Leave `{axis}` at 1.")
    return sharded.graph


@dataclass(frozen=True, kw_only=True)
class _Sharded:
    graph: Graph
    layouts_found: bool


class _Sharding:
    def __init__(self, graph: Graph, axis: Axis, size: int, sequence: bool) -> None:
        self.graph, self.axis, self.size, self.sequence = graph, axis, size, sequence
        self.rules = Rules(graph, axis, size, sequence)
        self.layout: dict[str, Layout] = {}  # of data, by the names of the new graph
        self.local: dict[str, Layout] = {}  # of what is fixed: parameters, constants, state
        self.operators: list[Operator] = []
        self.tensors: dict[str, Tensor] = dict(graph.tensors)
        self.form: dict[tuple[str, Layout, bool], str] = {}  # a tensor in another layout, once made
        self.resolved: dict[str, str] = {}  # what became of a partial sum

    def run(self) -> _Sharded:
        if self.axis == "context":
            self._split_inputs()
        for operator in self.graph.operators:
            self._place(operator)
        self._split_origins()
        for name, layout in self.local.items():
            self.tensors[name] = self._part(self.graph.tensors[name], layout)
        found = any(layout is not None for layout in (*self.layout.values(), *self.local.values()))
        return _Sharded(
            graph=replace(self.graph, operators=tuple(self.operators), tensors=self.tensors), layouts_found=found
        )

    def _split_origins(self) -> None:
        """A part of a transposed weight is a transposed part of the weight."""
        for operator in reversed(self.graph.operators):
            layout = self.local.get(operator.outputs[0]) if operator.outputs[0] in self.rules.fixed else None
            if isinstance(layout, int):
                origin = operator.inputs[0]
                if operator.op_type == "Transpose":
                    rank = self.rules.rank(origin)
                    layout = list(operator.attributes.get("perm") or reversed(range(rank)))[layout]
                self.local[origin] = layout

    def _split_inputs(self) -> None:
        """A sample's sequence is the first dim behind the batch of its indices [batch, sequence], or of what is embedded already
        [batch, sequence, width]; what else a model is given is split if it is as long.
        """
        given = (*self.graph.inputs, *self.graph.targets)
        tensors = self.graph.tensors
        length = {
            n: s[1].fixed
            for n in given
            if len(s := tensors[n].shape) in (2, 3) and s[0].per_sample and not s[1].per_sample
        }
        sequences = {
            length[n] for n in length if n in self.graph.inputs and (len(tensors[n].shape) == 3) == tensors[n].is_float
        }
        for name, size in length.items():
            if size in sequences and size >= self.size:
                self.layout[name] = 1
                self.tensors[name] = self._part(self.tensors[name], 1)

    def _place(self, operator: Operator) -> None:
        """Append `operator`, its operands brought into the layouts that it wants."""
        held = tuple(self._held(name) for name in operator.inputs)
        wanted = self.rules.of(operator, held, self.layout)
        operands: list[str] = []
        for name, have, want in zip(operator.inputs, held, wanted.inputs, strict=True):
            if not name:
                operands.append(name)
            elif name in self.rules.fixed:
                whole = self.axis == "context" and name in self.graph.trainable  # every rank learns all positions
                if want is not None and not whole and self.local.setdefault(name, want) != want:
                    # Two users want different parts: the later one cuts its own out of what it has.
                    self.local[name] = None
                operands.append(name)
            else:
                operands.append(self._as(name, have, want, shared=wanted.shared and want is None))
        attributes = {**operator.attributes, **wanted.attributes} if wanted.attributes else operator.attributes
        self.operators.append(replace(operator, inputs=tuple(operands), attributes=attributes))
        for name, layout in zip(operator.outputs, wanted.outputs, strict=True):
            if name:
                self.layout[name] = layout
                self.tensors[name] = self._part(self.graph.tensors[name], layout)

    def _held(self, name: str) -> Layout:
        if not name or name in self.rules.fixed:
            return None
        return self.layout.get(self.resolved.get(name, name))

    def _as(self, name: str, have: Layout, want: Layout, *, shared: bool) -> str:
        """`name` in layout `want`; `shared`: for a product of which every rank computes a part, so that gradients add up."""
        name = self.resolved.get(name, name)
        if have == want and not shared:
            return name
        if (name, want, shared) in self.form:
            return self.form[name, want, shared]
        forward, backward = _exchange(have, want, shared)
        if name.partition(f"/{self.axis}.")[0] not in self.rules.trained:
            backward = ""  # there is no gradient to bring back
        if not forward and not backward:
            return name if have == want else self._cut_out(name, want)
        if have == PARTIAL and shared:
            # The sum is formed for all, then handed to the product.
            whole = self._as(name, have, None, shared=False)
            return self._as(whole, None, want, shared=True)
        kind = {"": "Copy", "all_reduce": "AllReduce", "all_gather": "AllGather"}.get(forward, "")
        kind = kind or {"reduce_scatter": "ReduceScatter", "all_to_all": "AllToAll"}[forward]
        if not forward and have != want:
            kind = "Part"
        made = f"{name}/{self.axis}.{kind}{'' if want is None else f'.{want}'}{'.shared' if shared else ''}"
        self.tensors[made] = replace(self._part(self._whole(name), want), name=made)
        self.layout[made] = want
        self.operators.append(
            Operator(
                name=made,
                op_type=kind,
                domain="hpdlf",
                family=COLLECTIVE,
                inputs=(name,),
                outputs=(made,),
                attributes={"axis": self.axis, "forward": forward, "backward": backward},
            )
        )
        self.form[name, want, shared] = made
        if have == PARTIAL:
            self.resolved[name] = made
        return made

    def _cut_out(self, name: str, want: Layout) -> str:
        """A rank's part of what it has whole, which costs nothing."""
        made = f"{name}/{self.axis}.Part.{want}"
        if made not in self.layout:
            self.tensors[made] = replace(self._part(self._whole(name), want), name=made)
            self.layout[made] = want
            self.operators.append(
                Operator(name=made, op_type="Part", domain="hpdlf", family="view", inputs=(name,), outputs=(made,))
            )
        return made

    def _whole(self, name: str) -> Tensor:
        """The tensor as the ranks together have it."""
        origin = name.partition(f"/{self.axis}.")[0]
        return self.graph.tensors[origin]

    def _part(self, tensor: Tensor, layout: Layout) -> Tensor:
        """What one rank holds."""
        if layout is None or isinstance(layout, str):
            return tensor
        shape = list(tensor.shape)
        if isinstance(layout, Experts):
            shape[layout.expert] = _divided(shape[layout.expert], self.size)
            rows = shape[layout.rows]
            shape[layout.rows] = Dim(rows.fixed * self.size, rows.per_sample * self.size)
        else:
            shape[layout] = _divided(shape[layout], self.size)
        return replace(tensor, shape=tuple(shape))


def _divided(dim: Dim, size: int) -> Dim:
    return Dim(-(-dim.fixed // size), -(-dim.per_sample // size))


def _exchange(have: Layout, want: Layout, shared: bool) -> tuple[str, str]:
    """The collectives, forward and backward, of the module's table."""
    if isinstance(have, Experts) or isinstance(want, Experts):
        return "all_to_all", "all_to_all"
    if have == PARTIAL:
        return ("all_reduce", "") if want is None else ("reduce_scatter", "all_gather")
    if have is None:
        return ("", "all_reduce") if want is None else ("", "all_gather")
    if want is None:
        return "all_gather", "reduce_scatter" if shared else ""
    return "all_to_all", "all_to_all"  # from one split dim to another
