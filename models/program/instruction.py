"""The one language of both back ends: instructions over buffers, per role.

A *program* holds one small task graph per *role*: the ranks that do the same (a pipeline stage, say). It never mentions ranks:
peers and groups are mesh coordinates. A role has

* **buffers**, each with the bytes it holds and a scope: ``RUN`` buffers live through the run (parameters, optimiser state),
  ``STEP`` buffers through one step (gradient accumulators), ``MICROBATCH`` buffers exist once per microbatch and step;
* **instructions**, each on a *stream* (a queue that is served in order: a process in the simulator, a thread in the executor),
  with the buffers that it reads, writes and frees;
* **passes**: what it does at one go (the forward pass of a microbatch, say), as instructions in order;
* a **schedule**: the passes of one step, each with the microbatch that it works on. Written out, it is the order of the step's
  *tasks*, each an instruction for a microbatch: a valid sequential execution; what may run at the same time follows from
  streams and dependencies.

A step of a thousand microbatches has two or three passes and a schedule of a few thousand entries: who only looks at what a
pass does, not at every task, does little whatever the number of microbatches.

Dependencies are not written down: they follow from the buffers (see :mod:`.dependencies`). Only an order that no buffer carries
is stated by hand, as ``after`` (this step) and ``after_earlier`` (a step before).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import NamedTuple

from .mesh import Group, Mesh, Peer

__all__ = [
    "Buffer",
    "Content",
    "Earlier",
    "Exchange",
    "Instruction",
    "Kind",
    "Part",
    "Pass",
    "Phase",
    "Program",
    "Role",
    "Scope",
    "Segment",
    "Task",
]


class Kind(StrEnum):
    """What an instruction does."""

    COMPUTE = "compute"
    SEND = "send"
    RECEIVE = "receive"
    ALL_REDUCE = "all_reduce"
    ALL_GATHER = "all_gather"
    REDUCE_SCATTER = "reduce_scatter"
    ALL_TO_ALL = "all_to_all"
    BROADCAST = "broadcast"
    PUT = "put"
    GET = "get"
    NOTIFY = "notify"
    WAIT = "wait"
    COMPRESS = "compress"
    DECOMPRESS = "decompress"
    LOAD = "load"
    CHECKPOINT = "checkpoint"
    REPORT = "report"

    @property
    def is_collective(self) -> bool:
        """Whether every rank of the group must take part before anyone is done."""
        return self in _COLLECTIVES

    @property
    def is_one_sided(self) -> bool:
        """Whether it reads or changes memory that other ranks expose, without their help."""
        return self in (Kind.PUT, Kind.GET, Kind.NOTIFY)

    @property
    def communicates(self) -> bool:
        """Whether bytes leave the rank."""
        return self.is_collective or self.is_one_sided or self in (Kind.SEND, Kind.RECEIVE)


_COLLECTIVES = frozenset({Kind.ALL_REDUCE, Kind.ALL_GATHER, Kind.REDUCE_SCATTER, Kind.ALL_TO_ALL, Kind.BROADCAST})


class Phase(StrEnum):
    """The part of a training step that an instruction belongs to."""

    FORWARD = "forward"
    BACKWARD = "backward"  # for inputs and weights together
    BACKWARD_INPUT = "backward_input"
    BACKWARD_WEIGHT = "backward_weight"
    RECOMPUTE = "recompute"
    UPDATE = "update"
    HOST = "host"  # loading, checkpoints, reports


class Scope(StrEnum):
    """How long a buffer lives."""

    RUN = "run"
    STEP = "step"
    MICROBATCH = "microbatch"


class Content(StrEnum):
    """What a buffer holds: the rows of a memory report."""

    PARAMETERS = "parameters"
    STATE = "state"
    GRADIENTS = "gradients"
    OPTIMIZER = "optimizer state"
    ACTIVATIONS = "activations"
    RESIDUALS = "residuals"
    INPUTS = "inputs"
    WORKSPACE = "workspace"


@dataclass(frozen=True, kw_only=True, slots=True)
class Buffer:
    """`nbytes` bytes of `content` under a name; `tensors` are the ONNX tensors in it, in order.

    `shared` buffers lie in memory that the group's ranks expose to each other, each rank holding an equal part.
    """

    name: str
    content: Content
    scope: Scope
    nbytes: int
    tensors: tuple[str, ...] = ()
    shared: Group | None = None


class Exchange(NamedTuple):
    """Communication between two segments: `given` becomes `made`, by a collective along `axis` forward and another backward ("":
    by none, the tensor stays what it is).
    """

    axis: str
    forward: str
    backward: str
    given: str
    made: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """A run of operators compiled together.

    inputs, outputs   tensors that cross its borders (an output may be an input that is only passed on)
    differentiable    the inputs that want gradients
    data              the model's inputs and labels that it reads
    parameters        trainable tensors that it owns
    borrowed          trainable tensors that an earlier segment of its stage owns (tied ones)
    constants         tensors that it reads and nobody changes
    state             tensors that its forward pass replaces
    backward          whether it has a backward pass at all
    exchanges         what is done to its outputs before the next segment of its stage reads them, in order
    block             number of the network's block that it belongs to; None: of the stem or the head
    core              whether it is the inside of attention, cheap to compute again and large to keep
    """

    number: int
    stage: int
    operators: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    differentiable: tuple[str, ...]
    data: tuple[str, ...]
    parameters: tuple[str, ...]
    constants: tuple[str, ...]
    state: tuple[str, ...]
    has_loss: bool
    backward: bool
    borrowed: tuple[str, ...] = ()
    exchanges: tuple[Exchange, ...] = ()
    block: int | None = None
    core: bool = False

    @property
    def name(self) -> str:
        """Its number, as the names of instructions and buffers carry it."""
        return str(self.number)


class Earlier(NamedTuple):
    """The task of `instruction`, for the same microbatch where both have one, `steps_back` steps ago."""

    instruction: str
    steps_back: int


class Part(NamedTuple):
    """One segment in one phase; a compute instruction runs one part or several that are compiled as one.

    The optimiser's update of all that the role owns is the part ("", UPDATE).
    """

    segment: str
    phase: Phase


@dataclass(frozen=True, kw_only=True, slots=True)
class Instruction:
    """One thing that a role does, once per step or once per microbatch.

    `accumulates` names buffers that are added to: the first task of the step (of the microbatch) defines them. A buffer that an
    instruction both writes and frees never leaves it: it is memory that the instruction needs while it runs.
    A communicating instruction moves the buffers that it names: a send or a put those it reads, any other those it writes.
    Partners find each other by `message`. `once`: a single task a step, though it stands in the pass of a microbatch.
    `every` > 1: only in steps whose number + 1 is a multiple.
    """

    id: str
    kind: Kind
    stream: str
    phase: Phase
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    accumulates: tuple[str, ...] = ()
    frees: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()
    group: Group | None = None
    peer: Peer | None = None
    message: str = ""
    after: tuple[str, ...] = ()
    after_earlier: tuple[Earlier, ...] = ()
    every: int = 1
    once: bool = False

    def runs_in(self, step: int) -> bool:
        """Whether step number `step` (from 0) contains this instruction."""
        return (step + 1) % self.every == 0


class Task(NamedTuple):
    """An instruction for one microbatch (None: for the step as a whole)."""

    instruction: str
    microbatch: int | None = None

    def __str__(self) -> str:
        return self.instruction if self.microbatch is None else f"{self.instruction}[{self.microbatch}]"


class Pass(NamedTuple):
    """What a role does at one go, by its name, and the microbatch that it does it for (None: for the step as a whole)."""

    name: str
    microbatch: int | None = None


@dataclass(frozen=True, kw_only=True)
class Role:
    """What all ranks at `coordinates` do in one step. Axes that `coordinates` leaves out tell no ranks apart.

    passes     by name, the ids of the instructions that a pass consists of, in order
    schedule   the passes of one step, in order
    """

    name: str
    coordinates: Mapping[str, int]
    buffers: tuple[Buffer, ...]
    instructions: tuple[Instruction, ...]
    passes: Mapping[str, tuple[str, ...]]
    schedule: tuple[Pass, ...]

    @classmethod
    def in_order(
        cls,
        *,
        name: str,
        coordinates: Mapping[str, int],
        buffers: tuple[Buffer, ...],
        instructions: tuple[Instruction, ...],
        order: Sequence[Task],
    ) -> Role:
        """A role whose tasks are given one by one: each is a pass of its own."""
        role = cls(
            name=name, coordinates=coordinates, buffers=buffers, instructions=instructions, passes={}, schedule=()
        )
        return role.reordered(order)

    def reordered(self, order: Sequence[Task]) -> Role:
        """This role with its tasks given one by one."""
        return replace(
            self,
            passes={task.instruction: (task.instruction,) for task in order},
            schedule=tuple(Pass(task.instruction, task.microbatch) for task in order),
        )

    @cached_property
    def order(self) -> tuple[Task, ...]:
        """The tasks of one step, written out."""
        once = {i.id for i in self.instructions if i.once}
        return tuple(
            Task(instruction, None if instruction in once else microbatch)
            for name, microbatch in self.schedule
            for instruction in self.passes[name]
        )

    @cached_property
    def buffer(self) -> Mapping[str, Buffer]:
        """Buffers by name."""
        return {b.name: b for b in self.buffers}

    @cached_property
    def instruction(self) -> Mapping[str, Instruction]:
        """Instructions by id."""
        return {i.id: i for i in self.instructions}

    @cached_property
    def streams(self) -> tuple[str, ...]:
        """The streams, in the order of their first task."""
        used = dict.fromkeys(name for name, _ in self.schedule)
        return tuple(dict.fromkeys(self.instruction[i].stream for name in used for i in self.passes[name]))

    def payload_bytes(self, instruction: Instruction) -> int:
        """Bytes of the whole buffer that a communicating instruction is about, on this rank; 0 for others.

        That is what is sent or put, received or got; the operand of a reduce-scatter and the result of an all-gather,
        whose other sides are a rank's part; what an all-to-all writes, as much as it reads; and what is summed or
        broadcast. The cost of a collective is a formula of this number (:mod:`hpdlf.models.cost.algorithms`).
        """
        if not instruction.kind.communicates:
            return 0
        given = (Kind.SEND, Kind.PUT, Kind.REDUCE_SCATTER)
        moved = instruction.reads if instruction.kind in given else instruction.writes
        return sum(self.buffer[b].nbytes for b in moved)


@dataclass(frozen=True, kw_only=True)
class Program:
    """The roles of one training step (or evaluation) over a mesh, and the segments that their compute instructions run.

    The loss of a step is the sum over microbatches and ranks of `loss_weight` times the microbatch's loss: a mean over
    its samples, or their sum, which is weighed with 1.
    `updated`: by role, the elements that the update of each of its ranks changes.
    """

    name: str
    mesh: Mesh
    microbatches: int
    microbatch_samples: int
    loss_weight: float
    roles: tuple[Role, ...]
    segments: Mapping[str, Segment]
    updated: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def _role_of(self) -> Mapping[int, Role]:
        return {rank: role for role in reversed(self.roles) for rank in self.ranks_of(role)}

    def role_of(self, rank: int) -> Role:
        """The role that `rank` plays. Raises IndexError for a rank outside the mesh."""
        if rank not in self._role_of:
            at = self.mesh.coordinates(rank)
            raise AssertionError(f"no role covers rank {rank} at {at}")
        return self._role_of[rank]

    def ranks_of(self, role: Role) -> tuple[int, ...]:
        """The ranks that play `role`, ascending."""
        return tuple(self.mesh.ranks_at(role.coordinates))
