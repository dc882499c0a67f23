"""The chain of a network's segments as one rank sees it: what lies between two of them, and how gradients are gathered up.

Between segment i and the next lie the tensors that cross the cut. Most are handed over in one buffer, ``act.i``; what an exchange
changes on the way has a buffer of its own, and so has the gradient that another brings back (:class:`Between`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from ...errors import PlanError
from ..cost import residual_bytes, workspace_bytes
from ..cost.memo import memo_of
from ..cost.residuals import residual_tensors
from ..onnxpp.graph import Graph, item_bytes
from ..plan.blocks import find_blocks
from ..plan.partition import Partition
from ..plan.strategy import Strategy
from .instruction import Exchange, Phase, Segment
from .mesh import Group, Mesh
from .segments import build_segments

__all__ = ["SCALAR_BYTES", "Between", "Bucket", "Chain", "Crossed"]

SCALAR_BYTES = 8
LEAST_DEALT = 1 << 16  # elements


class Crossed(NamedTuple):
    """An exchange between two segments and its buffers: what it reads and writes forward and backward ("" for no buffer of its own:
    the tensor is part of ``act.i``, or nothing is communicated).
    """

    number: int
    exchange: Exchange
    reads: str
    writes: str
    back_reads: str
    back_writes: str


@dataclass(frozen=True, kw_only=True)
class Between:
    """What lies between a segment and the next of its stage.

    tensors     handed over as they are
    gradients   whose gradients are handed back as they are
    given       {buffer: tensor} that the first segment writes for exchanges
    made        {buffer: tensor} that the second reads from them
    back_given  {buffer: tensor} whose gradients the second writes for exchanges
    back_made   {buffer: tensor} whose gradients the first reads from them
    """

    tensors: tuple[str, ...]
    gradients: tuple[str, ...]
    crossed: tuple[Crossed, ...] = ()
    given: Mapping[str, str]
    made: Mapping[str, str]
    back_given: Mapping[str, str]
    back_made: Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Bucket:
    """Segments of one stage whose gradients are reduced together.

    parameters   trainable tensors of all its segments
    constants    frozen ones, where they are dealt out like parameters
    experts      whether they are weights of experts, of which other replicas hold other ones
    """

    name: str
    segments: tuple[Segment, ...]
    parameters: tuple[str, ...]
    constants: tuple[str, ...]
    experts: bool


@dataclass(frozen=True, kw_only=True)
class Chain:
    """All segments of a graph in order, cut into stages by a strategy.

    experts   parameters of which every rank of an expert group holds other ones
    fused     element-wise operators are computed again from what came before them, not kept
    """

    graph: Graph
    strategy: Strategy
    segments: tuple[Segment, ...]
    mesh: Mesh
    experts: frozenset[str]
    fused: bool = False

    @classmethod
    def build(
        cls,
        graph: Graph,
        partition: Partition,
        strategy: Strategy,
        *,
        experts: frozenset[str] = frozenset(),
        fused: bool = False,
    ) -> Chain:
        """Raises PlanError where the partition does not follow the graph or the strategy, or the graph's batch is fixed at
        another.
        """
        fixed = graph.fixed_batch
        if fixed is not None and fixed != strategy.microbatch_samples:
            raise PlanError(
                f"{graph.name} was exported for a batch of {fixed}, which nothing can change: a microbatch has that many "
                f"samples, not {strategy.microbatch_samples}. Let `--batch` be {fixed} for each replica and microbatch."
            )
        by_block = strategy.recompute != "none" or strategy.zero == 3
        blocks = find_blocks(graph) if by_block else None
        segments = build_segments(graph, partition, blocks=blocks, untied=bool(strategy.simulated_only))
        stages = 1 + max(s.stage for s in segments)
        if stages != strategy.stages:
            raise PlanError(
                f"{graph.name} is partitioned into {stages} stages, the strategy has {strategy.stages}: plan it again."
            )
        return cls(
            graph=graph, strategy=strategy, segments=segments, mesh=mesh_of(strategy), experts=experts, fused=fused
        )

    # Groups

    @cached_property
    def everyone(self) -> Group:
        """All ranks."""
        return Group(axes=tuple(self.mesh.axes))

    def replicas(self, *, experts: bool = False) -> Group:
        """The ranks that hold the same parameters and see other samples (or other parts of the same)."""
        axes = ("data", "context") if experts else ("data", "expert", "context")
        return Group(axes=tuple(a for a in axes if a in self.mesh.axes))

    def zero_of(self, bucket: Bucket) -> int:
        """What the ranks that hold the same bucket share of it: the strategy's `zero`, nothing where there is one such rank."""
        return self.strategy.zero if self.copies(bucket) > 1 else 0

    def copies(self, bucket: Bucket) -> int:
        """How many ranks hold the same parameters."""
        return self.mesh.group_size(self.replicas(experts=bucket.experts))

    def along(self, axis: str) -> Group:
        """The ranks that an exchange goes over."""
        if axis == "expert":
            beyond = self.strategy.expert > self.strategy.data
            axes = ("expert", "context") if beyond else ("expert",)
            return Group(axes=tuple(a for a in axes if a in self.mesh.axes))
        return Group(axes=(axis,))

    # Order

    @cached_property
    def _by_stage(self) -> Mapping[int, tuple[Segment, ...]]:
        found: dict[int, list[Segment]] = {}
        for segment in self.segments:
            found.setdefault(segment.stage, []).append(segment)
        return {stage: tuple(members) for stage, members in found.items()}

    def of_stage(self, stage: int) -> tuple[Segment, ...]:
        """The stage's segments."""
        return self._by_stage[stage]

    def stages_of(self, place: int) -> tuple[int, ...]:
        """The stages on the rank at `place` of the pipeline: dealt round, so that neighbours follow each other."""
        return tuple(range(place, self.strategy.stages, self.strategy.pipeline))

    def after(self, segment: Segment) -> Segment | None:
        """The segment that follows, in this stage or the next."""
        return self.segments[segment.number + 1] if segment.number + 1 < len(self.segments) else None

    def before(self, segment: Segment) -> Segment | None:
        """The segment that precedes, in this stage or the one before."""
        return self.segments[segment.number - 1] if segment.number else None

    def returns_gradient(self, segment: Segment) -> bool:
        """Whether the next segment hands gradients back to `segment`."""
        successor = self.after(segment)
        return successor is not None and successor.backward and bool(successor.differentiable)

    def recomputed(self, segment: Segment) -> bool:
        """Whether `segment` is computed again with the rest of its block before its backward pass."""
        return self.strategy.recompute == "full" and segment.block is not None and segment.backward

    # Buckets

    @cached_property
    def buckets(self) -> Mapping[int, tuple[Bucket, ...]]:
        """By stage, the buckets in the order of the forward pass."""
        return {stage: tuple(self._buckets(members)) for stage, members in self._by_stage.items()}

    @cached_property
    def bucket_of(self) -> Mapping[int, tuple[Bucket, ...]]:
        """By segment number, the buckets that its parameters belong to (dense ones and those of experts apart)."""
        found: dict[int, list[Bucket]] = {}
        for buckets in self.buckets.values():
            for bucket in buckets:
                for segment in bucket.segments:
                    found.setdefault(segment.number, []).append(bucket)
        return {number: tuple(buckets) for number, buckets in found.items()}

    @cached_property
    def users(self) -> Mapping[str, tuple[Segment, ...]]:
        """By the name of a bucket, the segments that use its parameters: its own, and those of its stage that borrow some."""
        found = {bucket.name: list(bucket.segments) for buckets in self.buckets.values() for bucket in buckets}
        for segment in self.segments:
            for name in {self.owner[segment.stage, p].name for p in segment.borrowed}:
                if segment not in found[name]:
                    found[name].append(segment)
        return {name: tuple(sorted(members, key=lambda s: s.number)) for name, members in found.items()}

    def used_by(self, segment: Segment) -> tuple[Bucket, ...]:
        """The buckets whose parameters a segment uses, its own or borrowed ones."""
        borrowed = (self.owner[segment.stage, p] for p in segment.borrowed)
        return tuple({b.name: b for b in (*self.bucket_of.get(segment.number, ()), *borrowed)}.values())

    @cached_property
    def owner(self) -> Mapping[tuple[int, str], Bucket]:
        """By stage and parameter, its bucket."""
        return {
            (stage, p): bucket
            for stage, buckets in self.buckets.items()
            for bucket in buckets
            for p in bucket.parameters
        }

    def _buckets(self, members: tuple[Segment, ...]) -> list[Bucket]:
        """Dense parameters and those of experts apart: other ranks hold the same of the one and of the other."""
        found = [*self._filled(members, experts=False), *self._filled(members, experts=True)]
        return sorted(found, key=lambda b: (b.segments[0].number, b.experts))

    def _filled(self, members: tuple[Segment, ...], *, experts: bool) -> Iterator[Bucket]:
        """From the back, until one is full; where blocks are gathered at once, one a block."""
        pending: list[Segment] = []
        filled = 0
        for i, segment in enumerate(reversed(members)):
            pending.insert(0, segment)
            filled += sum(self.graph.tensors[p].nbytes(1) for p in self._held(segment, experts))
            before = members[-i - 2] if i + 1 < len(members) else None
            by_block = self.strategy.zero == 3
            full = before is None or (
                before.block != segment.block if by_block else filled >= self.strategy.bucket_bytes
            )
            if full:
                if any(self._held(s, experts) or (not experts and self._dealt(s)) for s in pending):
                    yield self._bucket(tuple(pending), experts)
                pending, filled = [], 0

    def _held(self, segment: Segment, experts: bool) -> tuple[str, ...]:
        return tuple(p for p in segment.parameters if (p in self.experts) == experts)

    @cached_property
    def _users(self) -> Mapping[str, tuple[int, ...]]:
        """By constant, the segments that read it."""
        found: dict[str, tuple[int, ...]] = {}
        for segment in self.segments:
            for constant in segment.constants:
                found[constant] = (*found.get(constant, ()), segment.number)
        return found

    def _dealt(self, segment: Segment) -> tuple[str, ...]:
        """Frozen weights, which full sharding deals out as well: the large constants of one segment."""
        if self.strategy.zero < 3 or self.mesh.group_size(self.replicas()) == 1:
            return ()
        large = (c for c in segment.constants if self.graph.tensors[c].elements(1) >= LEAST_DEALT)
        return tuple(c for c in large if len(self._users[c]) == 1)

    def kept_constants(self, segment: Segment) -> tuple[str, ...]:
        """The constants that every rank has for `segment`; what several read lies with the first of them."""
        dealt = self._dealt(segment)
        return tuple(c for c in segment.constants if c not in dealt and self._users[c][0] == segment.number)

    def _bucket(self, segments: tuple[Segment, ...], experts: bool) -> Bucket:
        return Bucket(
            name=segments[0].name + (".experts" if experts else ""),
            segments=segments,
            parameters=tuple(p for s in segments for p in self._held(s, experts)),
            constants=() if experts else tuple(dict.fromkeys(c for s in segments for c in self._dealt(s))),
            experts=experts,
        )

    # Between segments

    def between(self, segment: Segment) -> Between:
        """What lies between `segment` and the one after it."""
        if segment.number not in self._betweens:
            self._betweens[segment.number] = self._between(segment)
        return self._betweens[segment.number]

    @cached_property
    def _betweens(self) -> dict[int, Between]:
        return {}

    def _between(self, segment: Segment) -> Between:
        after = self.after(segment)
        made = {e.made: e for e in segment.exchanges}
        # What is no other tensor forward (a copy, a part) is the tensor that it is made of; likewise gradients.
        same = {e.made: e.given for e in segment.exchanges if not e.forward}
        same_back = {e.made: e.given for e in segment.exchanges if not e.backward}
        needed = after.inputs if after else segment.outputs
        wanted = after.differentiable if after else ()
        kept = list(dict.fromkeys(_root(t, same) for t in needed))
        kept_back = list(dict.fromkeys(_root(t, same_back) for t in wanted))
        crossed: list[Crossed] = []
        given: dict[str, str] = {}
        arrived: dict[str, str] = {}
        back_given: dict[str, str] = {}
        back_arrived: dict[str, str] = {}
        where: dict[str, str] = {}  # buffers of what exchanges made
        for i, exchange in enumerate(segment.exchanges):
            name = f"{segment.name}.{i}"
            reads = writes = ""
            source = _root(exchange.given, same)
            if exchange.forward:
                if source in where:
                    reads = where[source]
                elif source not in kept:
                    reads = f"x.{name}"
                    given[reads] = source
                writes = reads if exchange.forward == "all_reduce" and reads else f"y.{name}"
                where[exchange.made] = writes
            crossed.append(Crossed(i, exchange, reads, writes, "", ""))
        for t in kept:
            if t in where:
                arrived[where[t]] = t
        for i, c in reversed(list(enumerate(crossed))):  # gradients come back the other way
            if not c.exchange.backward:
                continue
            made_here = c.exchange.made
            onward = next(
                (d for d in crossed[i + 1 :] if d.back_writes and _root(d.exchange.given, same_back) == made_here), None
            )
            if onward is None and made_here not in kept_back:
                crossed[i] = c._replace(back_reads="", back_writes="")
                continue
            reads = onward.back_writes if onward else f"dy.{segment.name}.{i}"
            writes = reads if c.exchange.backward == "all_reduce" else f"dx.{segment.name}.{i}"
            crossed[i] = c._replace(back_reads=reads, back_writes=writes)
            if onward is None:
                back_given[reads] = made_here
        for c in crossed:
            onward_read = any(d.back_reads == c.back_writes for d in crossed if d is not c)
            if c.back_writes and not onward_read:
                back_arrived[c.back_writes] = c.exchange.given
        return Between(
            tensors=tuple(t for t in kept if t not in made),
            gradients=tuple(t for t in kept_back if t not in made),
            crossed=tuple(crossed),
            given=given,
            made=arrived,
            back_given=back_given,
            back_made=back_arrived,
        )

    # Sizes

    def nbytes(self, tensors: tuple[str, ...], *, samples: int | None = None, precision: str | None = None) -> int:
        """Bytes of `tensors` for `samples` (one microbatch) in the working precision."""
        count = self.strategy.microbatch_samples if samples is None else samples
        stored = precision or self.working
        tensor = self.graph.tensors
        return self._once(
            ("nbytes", tensors, count, stored), lambda: sum(tensor[t].nbytes(count, stored) for t in tensors)
        )

    @property
    def working(self) -> str:
        """What working copies are stored in: products in float8 work on bfloat16 copies, tf32 rounds in the matrix unit only."""
        return {"float8": "bfloat16", "tf32": "float32"}.get(self.strategy.precision, self.strategy.precision)

    def gradient_bytes(self, tensors: tuple[str, ...]) -> int:
        """Bytes of the gradients of `tensors` as they add up."""
        return self.nbytes(tensors, samples=1, precision="float32" if self.strategy.mixed else None)

    def state_bytes(self, tensors: tuple[str, ...], copies: int) -> int:
        """Bytes of `copies` optimiser states of `tensors`, and of a float32 copy where the training is mixed."""
        if not self.strategy.mixed:
            return copies * self.nbytes(tensors, samples=1)
        master = item_bytes(self.working) < item_bytes("float32")
        return (copies + master) * self.nbytes(tensors, samples=1, precision="float32")

    def residual_bytes(self, segment: Segment) -> int:
        """What a segment's forward pass keeps of a microbatch for its backward pass. Of what tensor ranks gathered, each keeps its
        part and gathers again (Korthikanti et al. 2022, section 4.2.2).
        """
        names, batch, fused = segment.operators, self.strategy.microbatch_samples, self.fused
        precision = self.working
        whole = self._once(
            ("residual_bytes", names, batch, precision, fused),
            lambda: residual_bytes(self.graph, names, batch=batch, precision=precision, fused=fused),
        )
        previous = self.before(segment)
        gathered = [
            e
            for e in (previous.exchanges if previous else ())
            if e.axis == "tensor" and e.forward == "all_gather" and e.backward == "reduce_scatter"
        ]
        if not gathered:
            return whole
        kept = residual_tensors(self.graph, names, fused=fused)
        return whole - sum(self.nbytes((e.made,)) - self.nbytes((e.given,)) for e in gathered if e.made in kept)

    def workspace_bytes(self, segment: Segment, phase: Phase) -> int:
        """What a segment's pass over a microbatch needs while it runs."""
        names, batch, precision = segment.operators, self.strategy.microbatch_samples, self.strategy.precision
        return self._once(
            ("workspace_bytes", names, batch, phase, precision),
            lambda: workspace_bytes(self.graph, names, batch=batch, phase=phase.value, precision=precision),
        )

    def _once(self, key: tuple[object, ...], count: Callable[[], int]) -> int:
        """A size of the graph, counted once for all the strategies that are tried on it."""
        memo = memo_of(self.graph)
        if key not in memo:
            memo[key] = count()
        found: int = memo[key]
        return found


def mesh_of(strategy: Strategy) -> Mesh:
    """Neighbours share what they talk about most: tensor innermost, then context, experts, replicas, and stages outermost."""
    dealt = strategy.expert if strategy.data % strategy.expert == 0 else strategy.data
    axes = {"pipeline": strategy.pipeline, "data": strategy.data // dealt}
    more = {"expert": dealt, "context": strategy.context, "tensor": strategy.tensor}
    return Mesh(axes={**axes, **{axis: size for axis, size in more.items() if size > 1}})


def _root(tensor: str, same: Mapping[str, str]) -> str:
    while tensor in same:
        tensor = same[tensor]
    return tensor
