"""A role while it is being written, and a program put together of finished roles."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from ..onnxpp.gradients import sums_over_samples
from .chain import Chain
from .checking import check
from .fuse import fuse, join
from .instruction import Buffer, Content, Instruction, Kind, Part, Pass, Program, Role, Scope
from .mesh import Group

__all__ = ["Draft", "assemble"]


@dataclass
class Draft:
    """The role at `place` of the pipeline being written: a buffer or an instruction exists from its first mention, passes stand in
    the order of calls. `updated`: elements that its update changes.
    """

    place: int
    updated: int = 0
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
                    name=f"stage{self.place}",
                    coordinates={"pipeline": self.place},
                    buffers=tuple(self.buffers.values()),
                    instructions=tuple(self.instructions.values()),
                    passes=dict(self.passes),
                    schedule=tuple(self.schedule),
                )
            )
        )


def assemble(name: str, chain: Chain, drafts: Sequence[Draft]) -> Program:
    """The program of all roles, checked."""
    strategy = chain.strategy
    averaged_over = strategy.microbatches * (strategy.data if strategy.solver == "synchronous" else 1)
    if sums_over_samples(chain.graph):
        averaged_over = 1
    roles = tuple(d.role() for d in drafts)
    program = Program(
        name=name,
        mesh=chain.mesh,
        microbatches=strategy.microbatches,
        microbatch_samples=strategy.microbatch_samples,
        loss_weight=1.0 / averaged_over,
        roles=roles,
        segments={s.name: s for s in chain.segments},
        updated={role.name: draft.updated for role, draft in zip(roles, drafts, strict=True)},
    )
    problems = check(program)
    assert not problems, "\n".join(problems)  # a wrong program is our own bug, never the user's
    return program
