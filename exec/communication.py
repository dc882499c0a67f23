"""Communicating instructions over MPI: what a send, a receive, a collective or a one-sided access of a program comes to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..models.onnxpp.graph import Graph
from ..models.program import Instruction, Kind, Program, Role, Task
from .interpreter import Action, Values
from .transport import SharedVector, Transport

__all__ = ["CommunicationActions", "communicators"]


class CommunicationActions:
    """The communicating instructions of one rank's role.

    A message's tag is its place among the program's messages times the number of microbatches, plus the microbatch: so matching
    does not depend on the order in which streams run. Bytes are noted as they are really moved.
    """

    def __init__(
        self,
        program: Program,
        role: Role,
        graph: Graph,
        transport: Transport,
        *,
        dtype: np.dtype[Any],
        moved: dict[tuple[str, int | None, int], int],
        shared: SharedVector | None = None,
    ) -> None:
        self.program, self.role, self.graph, self.transport = program, role, graph, transport
        self.dtype, self.moved, self.shared = dtype, moved, shared
        messages = sorted({i.message for r in program.roles for i in r.instructions if i.message})
        self._tags = {message: n * program.microbatches for n, message in enumerate(messages)}
        self._version = 0
        self.staleness: list[int] = []

    def actions(self) -> dict[str, Action]:
        """By kind."""
        return {
            Kind.SEND.value: self._send,
            Kind.RECEIVE.value: self._receive,
            Kind.ALL_REDUCE.value: self._all_reduce,
            Kind.GET.value: self._get,
            Kind.PUT.value: self._put,
            Kind.NOTIFY.value: self._notify,
        }

    def _note(self, instruction: Instruction, task: Task, step: int, nbytes: int) -> None:
        self.moved[instruction.id, task.microbatch, step] = nbytes

    def _partner(self, instruction: Instruction) -> int:
        assert instruction.peer is not None
        return self.transport.mesh.peer(self.transport.rank, instruction.peer)

    def _tag(self, instruction: Instruction, task: Task) -> int:
        return self._tags[instruction.message] + (task.microbatch or 0)

    def _send(self, instruction: Instruction, task: Task, step: int, values: Values) -> Values:
        (buffer,) = instruction.reads
        arrays = [values[buffer][t] for t in self.role.buffer[buffer].tensors]
        nbytes = self.transport.send(_pair(instruction), self._partner(instruction), self._tag(instruction, task), arrays)
        self._note(instruction, task, step, nbytes)
        return {}

    def _receive(self, instruction: Instruction, task: Task, step: int, values: Values) -> Values:
        (buffer,) = instruction.writes
        names = self.role.buffer[buffer].tensors
        shapes = [self._shape(name) for name in names]
        arrays = self.transport.receive(_pair(instruction), self._partner(instruction), self._tag(instruction, task), shapes)
        self._note(instruction, task, step, sum(a.nbytes for a in arrays))
        return {buffer: dict(zip(names, arrays, strict=True))}

    def _shape(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        tensor = self.graph.tensors[name]
        return tensor.dims(self.program.microbatch_samples), self.dtype if tensor.is_float else np.dtype(tensor.dtype)

    def _all_reduce(self, instruction: Instruction, task: Task, step: int, values: Values) -> Values:
        (buffer,) = instruction.writes
        assert instruction.group is not None
        given = values.get(buffer)
        if isinstance(given, Mapping):
            arrays = list(given.values())
        else:  # a few numbers for the host; a rank that has none adds zero
            size = self.role.buffer[buffer].nbytes // 8
            arrays = [np.zeros(size) if given is None else np.asarray(given, dtype=np.float64).reshape(size)]
        summed = self.transport.all_reduce(instruction.stream, instruction.group, arrays)
        self._note(instruction, task, step, sum(a.nbytes for a in summed))
        if isinstance(given, Mapping):
            return {buffer: dict(zip(given, summed, strict=True))}
        return {buffer: summed[0]}

    def _get(self, instruction: Instruction, task: Task, step: int, values: Values) -> Values:
        assert self.shared is not None
        arrays, self._version = self.shared.read()
        self._note(instruction, task, step, sum(a.nbytes for a in arrays.values()))
        return {b: {n: arrays[n].copy() for n in self.role.buffer[b].tensors} for b in instruction.writes}

    def _put(self, instruction: Instruction, task: Task, step: int, values: Values) -> Values:
        assert self.shared is not None
        (buffer,) = instruction.reads
        arrays = {n: np.asarray(a) for n, a in values[buffer].items()}
        self.shared.add(arrays)
        self._note(instruction, task, step, sum(a.nbytes for a in arrays.values()))
        return {}

    def _notify(self, instruction: Instruction, task: Task, step: int, values: Values) -> Values:
        assert self.shared is not None
        self.staleness.append(self.shared.count() - self._version)
        return {}


def _pair(instruction: Instruction) -> str:
    """The communicator that both ends of a message share: it is named after the message."""
    return f"message.{instruction.message}"


def communicators(program: Program) -> list[str]:
    """Names of the communicators that a program needs, the same on every rank."""
    return sorted(
        {
            _pair(i) if i.kind in (Kind.SEND, Kind.RECEIVE) else i.stream
            for role in program.roles
            for i in role.instructions
            if i.kind.communicates
        }
    )
