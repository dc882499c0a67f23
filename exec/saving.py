"""Checkpoints as the program writes them: every stage its shard, then, when all have, one rank the manifest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..models.plan import Recipe
from ..models.program import Instruction, Role, Scope, Task
from .checkpoint import Shard, write_manifest, write_shard
from .contents import parameter_name, state_name
from .interpreter import Action, Interpreter, Values
from .optimizer_state import pack
from .run_folder import RunFolder

if TYPE_CHECKING:
    from .transport import Transport

__all__ = ["Saver"]


class Saver:
    """Writes this rank's part of the run's checkpoints.

    Replicas of a stage hold the same parameters, so its first one writes. What they do not share is the first replica's
    too: running statistics and, in an asynchronous run, the optimiser's state.

    trained     names of the parameters that the optimiser's state is about
    epoch_of    the epoch that a step belongs to
    identity    what a later run must have in common to go on from here
    """

    def __init__(
        self,
        folder: RunFolder,
        role: Role,
        *,
        writes: bool,
        transport: Transport | None,
        recipe: Recipe,
        plan_sha256: str,
        trained: tuple[str, ...],
        epoch_of: Callable[[int], int],
        identity: Mapping[str, Any],
    ) -> None:
        self.folder, self.role, self.writes, self.transport = folder, role, writes, transport
        self.recipe, self.plan_sha256, self.trained = recipe, plan_sha256, trained
        self.epoch_of, self.identity = epoch_of, identity
        self._shard: Shard | None = None

    def actions(self) -> dict[str, Action]:
        """By instruction id."""
        return {"checkpoint": self._checkpoint, "commit": self._commit}

    def save(self, interpreter: Interpreter, step: int) -> None:
        """Write a checkpoint after `step` steps, between runs of the interpreter."""
        held = {b.name: interpreter.get(b.name) for b in self.role.buffers if b.scope is Scope.RUN}
        self._write(step, held)
        self._publish(step)

    def _checkpoint(self, instruction: Instruction, task: Task, step: int, values: Values) -> Values:
        self._write(step + 1, values)
        return {"written": np.ones(1)}

    def _commit(self, instruction: Instruction, task: Task, step: int, values: Values) -> Values:
        self._publish(step + 1)
        return {}

    def _write(self, step: int, values: Values) -> None:
        if self.writes:
            self._shard = write_shard(
                self.folder.checkpoints, step=step, name=self.role.name, tensors=self._tensors(values)
            )

    def _tensors(self, values: Values) -> dict[str, np.ndarray]:
        tensors: dict[str, np.ndarray] = {}
        for buffer, held in values.items():
            match buffer.partition(".")[0]:
                case "params":
                    tensors |= {parameter_name(t): np.asarray(a) for t, a in held.items()}
                case "state":
                    tensors |= {state_name(t): np.asarray(a) for t, a in held.items()}
                case "optimizer":
                    tensors |= pack(held, self.trained)
        if "shared" in values:  # newer than the copies that this rank computes with
            tensors |= {parameter_name(t): a for t, a in values["shared"].read()[0].items()}
        return tensors

    def _publish(self, step: int) -> None:
        """Rank 0 learns of all shards, which are written by now, and makes the checkpoint exist."""
        shards = self.transport.gather(self._shard) if self.transport else [self._shard]
        if shards is not None:
            write_manifest(
                self.folder.checkpoints,
                step=step,
                epoch=self.epoch_of(step),
                seed=self.recipe.seed,
                plan_sha256=self.plan_sha256,
                shards=[s for s in shards if s],
                about=self.identity,
                keep=self.recipe.keep_checkpoints,
            )
