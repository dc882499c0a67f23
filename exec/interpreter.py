"""The interpreter in real time: a rank's role, every stream a thread, every task timed.

It is the twin of ``sim/engine.py``: the same program, the same dependencies, the same trace. Streams that mostly wait (messages,
data, reports) are threads of their own; the stream ``compute`` is the calling thread. A failure on any stream stops the rank.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from ..errors import HpdlfError
from ..models.program import Instruction, Role, Scope, Task, dependencies
from ..models.trace import Event

__all__ = ["Action", "Interpreter", "Values"]

Values = dict[str, Any]
"""Buffer contents by buffer name."""

class Action(Protocol):
    """What an instruction does: given the buffers that it reads (and what it adds to, once defined), returns what it writes."""

    def __call__(self, instruction: Instruction, task: Task, step: int, values: Values) -> Values: ...


class Interpreter:
    """Runs a role step after step.

    actions   by instruction id, else by kind
    clock     seconds since the run's common zero
    record    receives every task's event; None: nothing is kept
    moved     where communicating actions note the bytes that they moved, by (instruction, microbatch, step)
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
        moved: dict[tuple[str, int | None, int], int] | None = None,
    ) -> None:
        self.role, self.rank, self.clock, self.record, self.attempt = role, rank, clock, record, attempt
        self.needs = dependencies(role)
        self.actions = {i.id: actions.get(i.id) or actions[i.kind.value] for i in role.instructions}
        self.values: dict[tuple[str, int | None, int | None], Any] = {}
        self.moved = {} if moved is None else moved
        self._done: set[tuple[int, int]] = set()
        self._changed = threading.Condition()
        self._failure: BaseException | None = None
        self._streams = {
            stream: [(p, t) for p, t in enumerate(role.order) if role.instruction[t.instruction].stream == stream]
            for stream in role.streams
        }

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

        Raises whatever a task raised first; other streams are told to stop.
        """
        self._done.clear()
        others = [s for s in self._streams if s != "compute"]
        threads = [
            threading.Thread(target=self._guarded, args=(s, first, last), name=f"hpdlf-{s}", daemon=True) for s in others
        ]
        for thread in threads:
            thread.start()
        if "compute" in self._streams:
            self._guarded("compute", first, last)
        for thread in threads:
            while thread.is_alive() and not self._failure:
                thread.join(timeout=0.2)
        if self._failure:
            raise self._failure

    def _guarded(self, stream: str, first: int, last: int) -> None:
        try:
            for step in range(first, last):
                self._step(stream, step, first)
        except BaseException as error:  # a thread's error belongs to the caller of run, Ctrl-C included
            with self._changed:
                if self._failure is None:
                    self._failure = error
                self._changed.notify_all()

    def _step(self, stream: str, step: int, first: int) -> None:
        for position, task in self._streams[stream]:
            instruction = self.role.instruction[task.instruction]
            if not instruction.runs_in(step):
                continue
            for need in self.needs[position]:
                if step - need.steps_back >= first:
                    self._wait(step - need.steps_back, need.position)
            if self._failure:
                raise Stopped("another stream of this rank failed")
            start_s = self.clock()
            self._perform(instruction, task, step)
            end_s = self.clock()
            with self._changed:
                self._done.add((step, position))
                self._changed.notify_all()
            if self.record:
                self.record(self._event(instruction, task, step, start_s, end_s))

    def _wait(self, step: int, position: int) -> None:
        key = (step, position)
        if key in self._done:
            return
        if not self.role.instruction[self.role.order[position].instruction].runs_in(step):
            return
        with self._changed:
            while key not in self._done:
                if self._failure:
                    raise Stopped("another stream of this rank failed")
                self._changed.wait()

    def _perform(self, instruction: Instruction, task: Task, step: int) -> None:
        given = {b: self.values[self._slot(b, task, step)] for b in instruction.reads if self._has(b, task, step)}
        given |= {b: self.values[self._slot(b, task, step)] for b in instruction.accumulates if self._has(b, task, step)}
        written = self.actions[instruction.id](instruction, task, step, given)
        for buffer, value in written.items():
            self.values[self._slot(buffer, task, step)] = value
        for buffer in instruction.frees:
            self.values.pop(self._slot(buffer, task, step), None)
        self._forget(step)

    def _has(self, buffer: str, task: Task, step: int) -> bool:
        return self._slot(buffer, task, step) in self.values

    def _slot(self, buffer: str, task: Task, step: int) -> tuple[str, int | None, int | None]:
        match self.role.buffer[buffer].scope:
            case Scope.RUN:
                return buffer, None, None
            case Scope.STEP:
                return buffer, None, step
            case Scope.MICROBATCH:
                return buffer, task.microbatch, step

    def _forget(self, step: int) -> None:
        """Nobody asks for tasks of more than a few steps ago: keep the set small in a long run."""
        if len(self._done) > 64 * len(self.role.order):
            with self._changed:
                self._done = {key for key in self._done if key[0] >= step - 8}

    def _event(self, instruction: Instruction, task: Task, step: int, start_s: float, end_s: float) -> Event:
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
            payload_bytes=self.sent_bytes(instruction, task, step),
        )

    def sent_bytes(self, instruction: Instruction, task: Task, step: int) -> int:
        """Bytes that the task really moved, as its action counted them."""
        return self.moved.pop((instruction.id, task.microbatch, step), 0)


class Stopped(HpdlfError):
    """A stream ended because another one failed; never the first failure."""

    exit_code = 1

