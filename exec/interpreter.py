"""The interpreter in real time: a rank's role, every stream a thread, every task timed.

It is the twin of ``sim/engine.py``: the same program, the same dependencies, the same trace. Streams that mostly wait
(messages, data, reports) are threads of their own; the stream ``compute`` is the calling thread. A failure on any
stream stops the rank.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from ..errors import HpdlfError
from ..models.program import Instruction, Role, Scope, Task, dependencies
from ..models.trace import Event

__all__ = ["Action", "Interpreter", "Moved", "Values"]

Values = dict[str, Any]
"""Buffer contents by buffer name."""

Moved = dict[tuple[str, int | None, int], int]
"""Bytes that communicating actions moved, by (instruction, microbatch, step); the interpreter takes them out."""

LOOK_S = 0.2


class Action(Protocol):
    """What an instruction does: it gets the buffers that it reads (and adds to, once defined) and returns those that it
    writes."""

    def __call__(self, instruction: Instruction, task: Task, step: int, values: Values) -> Values: ...


class Interpreter:
    """Runs a role step after step.

    actions   by instruction id, else by kind
    clock     seconds since the run's common zero
    record    receives every task's event, from any thread; None: nothing is kept
    moved     where communicating actions note the bytes that they moved
    """

    def __init__(
        self,
        role: Role,
        rank: int,
        actions: Mapping[str, Action],
        *,
        clock: Callable[[], float] = time.perf_counter,
        record: Callable[[Event], None] | None = None,
        attempt: int = 0,
        moved: Moved | None = None,
    ) -> None:
        self.role, self.rank, self.clock, self.record, self.attempt = role, rank, clock, record, attempt
        self.needs = dependencies(role)
        self.actions = {i.id: actions.get(i.id) or actions[i.kind.value] for i in role.instructions}
        self.values: dict[tuple[str, int | None, int | None], Any] = {}
        self.moved = {} if moved is None else moved
        self._streams = {
            stream: [(p, t) for p, t in enumerate(role.order) if role.instruction[t.instruction].stream == stream]
            for stream in role.streams
        }
        # A stream serves its tasks in order, so the last step in which a task ended says all about the steps before.
        self._ended = [-1] * len(role.order)
        self._lock = threading.Lock()
        self._awake = {stream: threading.Condition(self._lock) for stream in self._streams}
        self._awaited: dict[str, tuple[int, int]] = {}
        self._failure: BaseException | None = None

    def put(self, buffer: str, value: Any) -> None:
        """Set a RUN buffer."""
        self.values[buffer, None, None] = value

    def get(self, buffer: str) -> Any:
        """The contents of a RUN buffer."""
        return self.values[buffer, None, None]

    def stopping(self) -> bool:
        """Whether a stream has failed: whoever waits outside should give up."""
        return self._failure is not None

    def run(self, first: int, last: int) -> None:
        """Steps first..last-1.

        Raises what a task raised first. Other streams are told to stop; one that is inside a call that never returns is
        left behind, so the process should end.
        """
        self._ended = [first - 1] * len(self.role.order)
        others = [s for s in self._streams if s != "compute"]
        threads = [
            threading.Thread(target=self._guarded, args=(s, first, last), name=f"hpdlf-{s}", daemon=True)
            for s in others
        ]
        for thread in threads:
            thread.start()
        if "compute" in self._streams:
            self._guarded("compute", first, last)
        for thread in threads:
            while thread.is_alive() and not self._failure:
                thread.join(timeout=LOOK_S)
        if self._failure:
            raise self._failure

    def serve(self, step: int) -> None:
        """One step on the calling thread, the tasks of all streams in the program's order: for a rank that waits for no other,
        where starting threads would cost more than they gain. Nothing is recorded.
        """
        for task in self.role.order:
            instruction = self.role.instruction[task.instruction]
            if instruction.runs_in(step):
                self._perform(instruction, task, step)

    def _guarded(self, stream: str, first: int, last: int) -> None:
        try:
            for step in range(first, last):
                self._step(stream, step, first)
        except BaseException as error:  # a thread's error belongs to the caller of run, Ctrl-C included
            with self._lock:
                if self._failure is None:
                    self._failure = error
                for awake in self._awake.values():
                    awake.notify_all()

    def _step(self, stream: str, step: int, first: int) -> None:
        for position, task in self._streams[stream]:
            instruction = self.role.instruction[task.instruction]
            if not instruction.runs_in(step):
                continue
            for need in self.needs[position]:
                if step - need.steps_back >= first:
                    self._wait(stream, step - need.steps_back, need.position)
            if self._failure:
                raise StoppedError("another stream of this rank failed")
            start_s = self.clock()
            self._perform(instruction, task, step)
            end_s = self.clock()
            self._tell(position, step)
            moved_bytes = self.moved.pop((instruction.id, task.microbatch, step), 0)
            if self.record:
                self.record(self._event(instruction, task, step, start_s, end_s, moved_bytes))

    def _wait(self, stream: str, step: int, position: int) -> None:
        if self._ended[position] >= step:
            return
        if not self.role.instruction[self.role.order[position].instruction].runs_in(step):
            return
        with self._lock:
            self._awaited[stream] = position, step
            while self._ended[position] < step:
                if self._failure:
                    raise StoppedError("another stream of this rank failed")
                self._awake[stream].wait()
            del self._awaited[stream]

    def _tell(self, position: int, step: int) -> None:
        """A task has ended: wake the streams that wait for just this, since every other one would only cost time."""
        with self._lock:
            self._ended[position] = step
            for stream, awaited in self._awaited.items():
                if awaited == (position, step):
                    self._awake[stream].notify()

    def _perform(self, instruction: Instruction, task: Task, step: int) -> None:
        given: Values = {}
        for buffer in (*instruction.reads, *instruction.accumulates):
            slot = self._slot(buffer, task, step)
            if slot in self.values:
                given[buffer] = self.values[slot]
        written = self.actions[instruction.id](instruction, task, step, given)
        for buffer, value in written.items():
            self.values[self._slot(buffer, task, step)] = value
        for buffer in instruction.frees:
            self.values.pop(self._slot(buffer, task, step), None)

    def _slot(self, buffer: str, task: Task, step: int) -> tuple[str, int | None, int | None]:
        match self.role.buffer[buffer].scope:
            case Scope.RUN:
                return buffer, None, None
            case Scope.STEP:
                return buffer, None, step
            case Scope.MICROBATCH:
                return buffer, task.microbatch, step

    def _event(
        self, instruction: Instruction, task: Task, step: int, start_s: float, end_s: float, moved_bytes: int
    ) -> Event:
        return Event(
            role=self.role.name,
            rank=self.rank,
            step=step,
            microbatch=task.microbatch,
            instruction=task.instruction,
            attempt=self.attempt,
            stream=instruction.stream,
            kind=instruction.kind.value,
            phase=instruction.phase.value,
            start_s=start_s,
            end_s=end_s,
            payload_bytes=moved_bytes,
        )


class StoppedError(HpdlfError):
    """A stream ended because another one failed; never the first failure."""

    exit_code = 1
