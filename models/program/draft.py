"""A role while it is being written, and the chain of segments that every role looks into."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ...errors import PlanError
from ..cost import residual_bytes, workspace_bytes
from ..cost.memo import memo_of
from ..onnxpp.graph import Graph
from ..plan.partition import Partition
from ..plan.strategy import Strategy
from .checking import check
from .fuse import fuse, join
from .instruction import Buffer, Content, Instruction, Kind, Part, Pass, Phase, Program, Role, Scope, Segment
from .mesh import Group, Mesh
from .segments import build_segments

__all__ = ["DATA", "EVERYONE", "SCALAR_BYTES", "Chain", "Draft", "assemble"]

DATA = Group(axes=("data",))
EVERYONE = Group(axes=("pipeline", "data"))
SCALAR_BYTES = 8


@dataclass(frozen=True, kw_only=True)
class Chain:
    """All segments of a graph in order, cut into stages by a strategy."""

    graph: Graph
    strategy: Strategy
    segments: tuple[Segment, ...]

    @classmethod
    def build(cls, graph: Graph, partition: Partition, strategy: Strategy) -> Chain:
        """Raises PlanError where the partition does not follow the graph or the strategy."""
        segments = build_segments(graph, partition)
        stages = 1 + max(s.stage for s in segments)
        if stages != strategy.pipeline:
            raise PlanError(
                f"{graph.name} is partitioned into {stages} stages, the strategy has {strategy.pipeline}: plan it again."
            )
        return cls(graph=graph, strategy=strategy, segments=segments)

    def of_stage(self, stage: int) -> tuple[Segment, ...]:
        """The stage's segments."""
        return tuple(s for s in self.segments if s.stage == stage)

    def after(self, segment: Segment) -> Segment | None:
        """The segment that follows, in this stage or the next."""
        return self.segments[segment.number + 1] if segment.number + 1 < len(self.segments) else None

    def nbytes(self, tensors: tuple[str, ...], *, samples: int | None = None) -> int:
        """Bytes of `tensors` for `samples` (one microbatch) in the working precision."""
        count, precision = self.strategy.microbatch_samples if samples is None else samples, self.strategy.precision
        tensor = self.graph.tensors
        return self._once(
            ("nbytes", tensors, count, precision), lambda: sum(tensor[t].nbytes(count, precision) for t in tensors)
        )

    def residual_bytes(self, segment: Segment) -> int:
        """What a segment's forward pass keeps of a microbatch for its backward pass."""
        names, batch, precision = segment.operators, self.strategy.microbatch_samples, self.strategy.precision
        return self._once(
            ("residual_bytes", names, batch, precision),
            lambda: residual_bytes(self.graph, names, batch=batch, precision=precision),
        )

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


@dataclass
class Draft:
    """A role being written: a buffer or an instruction exists from its first mention, passes stand in the order of calls."""

    stage: int
    buffers: dict[str, Buffer] = field(default_factory=dict)
    instructions: dict[str, Instruction] = field(default_factory=dict)
    passes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    schedule: list[Pass] = field(default_factory=list)
    _writing: list[str] = field(default_factory=list)

    def buffer(
        self,
        name: str,
        content: Content,
        scope: Scope,
        nbytes: int,
        tensors: tuple[str, ...] = (),
        shared: Group | None = None,
    ) -> str:
        """Mention a buffer; returns its name."""
        new = Buffer(name=name, content=content, scope=scope, nbytes=nbytes, tensors=tensors, shared=shared)
        old = self.buffers.setdefault(name, new)
        assert old == new, f"buffer {name} mentioned as {old} and as {new}"
        return name

    def run(self, name: str, microbatch: int | None, write: Callable[[], None]) -> None:
        """Append the pass `name` for `microbatch`; `write` says what it does, when it is first mentioned."""
        if name not in self.passes:
            assert not self._writing, f"pass {name} begins inside another"
            write()
            self.passes[name] = tuple(self._writing)
            self._writing.clear()
        if self.passes[name]:
            self.schedule.append(Pass(name, microbatch))

    def do(self, instruction: Instruction) -> None:
        """Append an instruction to the pass that is being written."""
        old = self.instructions.setdefault(instruction.id, instruction)
        assert old == instruction, f"instruction {instruction.id} mentioned as {old} and as {instruction}"
        self._writing.append(instruction.id)

    def compute(
        self,
        id: str,
        parts: tuple[Part, ...],
        *,
        workspace_bytes: int,
        reads: Iterable[str],
        writes: Iterable[str] = (),
        accumulates: Iterable[str] = (),
        frees: Iterable[str] = (),
        once: bool = False,
    ) -> None:
        """Append a compute instruction; its workspace lives while it runs."""
        scope = Scope.STEP if once else Scope.MICROBATCH
        workspace = (self.buffer(f"work.{id}", Content.WORKSPACE, scope, workspace_bytes),) if workspace_bytes else ()
        self.do(
            Instruction(
                id=id,
                kind=Kind.COMPUTE,
                stream="compute",
                phase=parts[-1].phase,
                parts=parts,
                reads=tuple(dict.fromkeys(reads)),
                writes=(*writes, *workspace),
                accumulates=tuple(accumulates),
                frees=(*frees, *workspace),
                once=once,
            )
        )

    def role(self) -> Role:
        """The finished role, neighbours joined and fused."""
        return fuse(
            join(
                Role(
                    name=f"stage{self.stage}",
                    coordinates={"pipeline": self.stage},
                    buffers=tuple(self.buffers.values()),
                    instructions=tuple(self.instructions.values()),
                    passes=dict(self.passes),
                    schedule=tuple(self.schedule),
                )
            )
        )


def assemble(name: str, chain: Chain, drafts: Iterable[Draft]) -> Program:
    """The program of all roles, checked."""
    strategy = chain.strategy
    averaged_over = strategy.data if strategy.solver == "synchronous" else 1
    program = Program(
        name=name,
        mesh=Mesh(axes={"pipeline": strategy.pipeline, "data": strategy.data}),
        microbatches=strategy.microbatches,
        microbatch_samples=strategy.microbatch_samples,
        loss_weight=1.0 / (strategy.microbatches * averaged_over),
        roles=tuple(d.role() for d in drafts),
        segments={s.name: s for s in chain.segments},
    )
    problems = check(program)
    assert not problems, "\n".join(problems)  # a wrong program is our own bug, never the user's
    return program
