"""What the tasks of a role wait for, pass by pass: the order that streams do not give by themselves.

The same as :func:`.dependencies.dependencies`, told for passes instead of tasks, and only what another stream has to do: a stream
serves its own tasks in order, so a wait for one of its tasks is one for all before it. A step of a thousand microbatches repeats
two or three *kinds* of passes, so this is short and is found without writing the tasks out:

* what a buffer of a microbatch orders is the same for all microbatches that go through the same passes: one life is followed;
* what buffers of the step and the run order is found along the schedule, where a pass that leaves everything as it found it
  needs no second look: the places it touched move along with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from .instruction import Instruction, Role, Scope

__all__ = ["PassKind", "Wait", "Waits", "waits"]


class Wait(NamedTuple):
    """The task of `instruction` in the pass so many passes ago, counted along the schedule and back over steps; 0: this pass."""

    instruction: str
    passes_back: int


class PassKind(NamedTuple):
    """A pass by its name, and for each of its instructions what it waits for on other streams."""

    name: str
    waits: tuple[tuple[Wait, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Waits:
    """The kinds of passes of a role, and for every pass of the schedule its kind."""

    kinds: tuple[PassKind, ...]
    of_pass: tuple[int, ...]


def waits(role: Role) -> Waits:
    """What the tasks of `role` wait for. A wait that reaches before the first step holds from the step on that has it; so does
    one for an instruction that did not run in the step it points to.
    """
    memo = vars(role)  # a role never changes, and every rank that plays it asks
    if "_waits" not in memo:
        memo["_waits"] = _Analysis(role).run()
    found: Waits = memo["_waits"]
    return found


class _At(NamedTuple):
    """An instruction by its number in the pass `name` at `position` of the schedule (below 0: of the step before)."""

    position: int
    entry: int
    name: str


class _Last(NamedTuple):
    """An instruction by its number in the last pass that is called `name`."""

    entry: int
    name: str


_Place = _At | _Last


@dataclass(slots=True)
class _Slot:
    """Who touched a slot last, by stream, `every` and steps back. A later task of a stream stands for the earlier ones, but one that
    does not run in every step only for those of its own step.
    """

    writers: dict[tuple[str, int, int], _Place] = field(default_factory=dict)
    readers: dict[tuple[str, int, int], _Place] = field(default_factory=dict)

    def touch(self, here: _Place, stream: str, every: int, changes: bool) -> None:
        if not changes:
            self.readers[stream, every, 0] = here
        elif every > 1:
            self.writers[stream, every, 0] = here
        else:
            self.writers, self.readers = {(stream, every, 0): here}, {}

    def before(self, changes: bool) -> list[_Place]:
        """What a task that reads the slot, or changes it, has to wait for."""
        return [*self.writers.values(), *self.readers.values()] if changes else [*self.writers.values()]

    def copy(self) -> _Slot:
        return _Slot(dict(self.writers), dict(self.readers))


class _Touch(NamedTuple):
    """What one instruction of a pass does to the slots that are looked at: (slot, whether it changes it), each once."""

    entry: int
    instruction: Instruction
    slots: tuple[tuple[str, bool], ...]


Needs = Mapping[int, list[_At]]  # by the instruction's number in the pass


class _Analysis:
    def __init__(self, role: Role) -> None:
        self.role, self.schedule = role, role.schedule
        self.members = {n: [role.instruction[i] for i in ids] for n, ids in role.passes.items()}
        users: dict[str, set[str]] = {}
        for i in role.instructions:
            for buffer in (*i.reads, *i.writes, *i.accumulates, *i.frees):
                users.setdefault(buffer, set()).add(i.stream)
        scope = {b.name: b.scope for b in role.buffers if len(users.get(b.name, ())) > 1}
        # What each instruction does to the buffers that several streams touch: buffer, its scope, whether it changes.
        self.touched: dict[str, tuple[tuple[str, Scope, bool], ...]] = {}
        for i in role.instructions:
            changed = {b: True for b in (*i.writes, *i.accumulates, *i.frees) if b in scope}
            named = {b: False for b in i.reads if b in scope} | changed
            if named:
                self.touched[i.id] = tuple([(b, scope[b], changes) for b, changes in named.items()])
        self.positions: dict[int | None, list[int]] = {}  # of the passes of a microbatch
        for position, (_, microbatch) in enumerate(role.schedule):
            self.positions.setdefault(microbatch, []).append(position)
        self.last = {name: position for position, (name, _) in enumerate(role.schedule)}
        # The instructions of a pass that state their order by hand.
        self.by_hand = {n: e for n, e in ((n, self._stating(m)) for n, m in self.members.items()) if e}
        # For each pair of streams, the latest task of the second that the first has waited for.
        self.known: dict[tuple[str, str], _At] = {}

    @staticmethod
    def _stating(members: Sequence[Instruction]) -> list[int]:
        return [entry for entry, i in enumerate(members) if i.after or i.after_earlier]

    def run(self) -> Waits:
        lives: dict[tuple[str, ...], list[Needs]] = {}
        of_life: list[Needs] = [{}] * len(self.schedule)  # what each pass waits for because of its microbatch's buffers
        for microbatch, positions in self.positions.items():
            names = tuple([self.schedule[p].name for p in positions])
            if names not in lives:
                lives[names] = self._life(names) if microbatch is not None else [{} for _ in names]
            for position, needs in zip(positions, lives[names], strict=True):
                of_life[position] = needs
        of_step = self._steps()
        kinds: dict[PassKind, int] = {}
        plain: dict[tuple[str, int], int] = {}  # the kind where nothing but the life of the microbatch orders
        of_pass: list[int] = []
        for position, (within, (name, _)) in enumerate(zip(of_life, self.schedule, strict=True)):
            key = (name, id(within))
            if key in plain and position not in of_step:
                of_pass.append(plain[key])
                continue
            kind = PassKind(name, self._waits(position, within, of_step.get(position, {})))
            of_pass.append(kinds.setdefault(kind, len(kinds)))
            # A wait for another pass that was known here may be none in another microbatch, so what counts is what was asked.
            mine = self.positions[self.schedule[position].microbatch]
            elsewhere = any(mine[p.position] != position for places in within.values() for p in places)
            if position not in of_step and name not in self.by_hand and not elsewhere:
                plain[key] = of_pass[-1]
        return Waits(kinds=tuple(kinds), of_pass=tuple(of_pass))

    def _touches(self, name: str, wanted: Callable[[Instruction, Scope], bool]) -> list[_Touch]:
        """What a pass does to those buffers, of the ones that several streams touch, that are `wanted`."""
        touches = []
        for entry, i in enumerate(self.members[name]):
            if i.id in self.touched:
                slots = tuple([(b, changes) for b, scope, changes in self.touched[i.id] if wanted(i, scope)])
                if slots:
                    touches.append(_Touch(entry, i, slots))
        return touches

    def _life(self, names: tuple[str, ...]) -> list[Needs]:
        """For each pass of a microbatch, what the microbatch's buffers make it wait for; positions count the microbatch's passes."""
        slots: dict[str, _Slot] = {}
        found: list[Needs] = []
        known: dict[tuple[str, str], _At] = {}
        for k, name in enumerate(names):
            touches = self._touches(name, lambda i, scope: scope is Scope.MICROBATCH and not i.once)
            needs: dict[int, list[_At]] = {}
            for entry, places in self._pass(touches, slots, name, k).items():
                mine, needs[entry] = self.members[name][entry], []
                for place in sorted((p for p in places if isinstance(p, _At)), reverse=True):
                    other = self.members[place.name][place.entry]
                    pair = (mine.stream, other.stream)
                    if pair in known and place <= known[pair]:
                        continue
                    if mine.every == other.every == 1:
                        known[pair] = place
                    needs[entry].append(place)
            found.append(needs)
        return found

    def _steps(self) -> dict[int, Needs]:
        """What all other buffers make passes wait for, by position."""
        slots: dict[str, _Slot] = {}
        if any(scope is Scope.RUN for touched in self.touched.values() for _, scope, _ in touched):
            self._walk(slots, (Scope.RUN,))
        for slot in slots.values():  # what they say now is of the step before
            slot.writers, slot.readers = self._a_step_ago(slot.writers), self._a_step_ago(slot.readers)
        return self._walk(slots, tuple(Scope))

    def _a_step_ago(self, places: Mapping[tuple[str, int, int], _Place]) -> dict[tuple[str, int, int], _Place]:
        return {
            (stream, every, 1): _At(self.last[place.name] - len(self.schedule), place.entry, place.name)
            for (stream, every, _), place in places.items()
        }

    def _walk(self, slots: dict[str, _Slot], scopes: Sequence[Scope]) -> dict[int, Needs]:
        touches = {
            (name, alone): self._touches(name, partial(_of_the_step, scopes, alone))
            for name, alone in dict.fromkeys((name, microbatch is None) for name, microbatch in self.schedule)
        }
        settled: dict[tuple[str, bool], tuple[int, Mapping[int, list[_Place]]]] = {}
        last: dict[str, int] = {}
        found: dict[int, Needs] = {}
        changes = 0  # of what slots say
        for position, (name, microbatch) in enumerate(self.schedule):
            key = (name, microbatch is None)
            if not touches[key]:
                continue
            if key in settled and settled[key][0] == changes:
                needs = settled[key][1]
            else:
                touched = {slot for touch in touches[key] for slot, _ in touch.slots}
                before = {slot: slots[slot].copy() for slot in touched if slot in slots}
                needs = self._pass(touches[key], slots, name)
                if all(slots[slot] == before.get(slot) for slot in touched):
                    settled[key] = changes, needs
                else:
                    changes += 1
            if needs:
                found[position] = {
                    entry: [self._resolved(place, name, entry, position, last) for place in places]
                    for entry, places in needs.items()
                }
            last[name] = position
        return found

    @staticmethod
    def _resolved(place: _Place, name: str, entry: int, position: int, last: Mapping[str, int]) -> _At:
        """Where a place is for instruction number `entry` of the pass `name` at `position`."""
        if isinstance(place, _At):
            return place
        in_this_pass = place.name == name and place.entry < entry
        return _At(position if in_this_pass else last[place.name], place.entry, place.name)

    def _pass(
        self, touches: Sequence[_Touch], slots: dict[str, _Slot], name: str, position: int | None = None
    ) -> dict[int, list[_Place]]:
        """Let the pass `name` touch its slots; what its instructions wait for on other streams."""
        members = self.members
        needs: dict[int, list[_Place]] = {}
        for entry, instruction, touched in touches:
            found: list[_Place] = []
            for slot, changes in touched:
                if slot in slots:
                    found += slots[slot].before(changes)
                else:
                    slots[slot] = _Slot()
            if found:
                others = [p for p in dict.fromkeys(found) if members[p.name][p.entry].stream != instruction.stream]
                if others:
                    needs[entry] = others
            here = _Last(entry, name) if position is None else _At(position, entry, name)
            for slot, changes in touched:
                slots[slot].touch(here, instruction.stream, instruction.every, changes)
        return needs

    def _waits(self, position: int, within: Needs, lasting: Needs) -> tuple[tuple[Wait, ...], ...]:
        """The waits of one pass."""
        name, microbatch = self.schedule[position]
        mine, members = self.positions[microbatch], self.members[name]
        found: list[tuple[Wait, ...]] = [()] * len(members)
        for entry in sorted({*within, *lasting, *self.by_hand.get(name, ())}):
            instruction = members[entry]
            places = [_At(mine[p.position], p.entry, p.name) for p in within.get(entry, ())]
            places += lasting.get(entry, ())
            places += self._stated(instruction, None if instruction.once else microbatch)
            found[entry] = self._latest(position, instruction, places)
        return tuple(found)

    def _latest(self, position: int, instruction: Instruction, places: Sequence[_At]) -> tuple[Wait, ...]:
        """Without what follows from others: of every stream the latest, and only if the stream has not waited for it before."""
        kept = []
        covered: set[str] = set()
        for place in sorted(set(places), reverse=True):
            other = self.members[place.name][place.entry]
            pair = (instruction.stream, other.stream)
            if other.stream == instruction.stream or other.stream in covered:
                continue
            if other.every == 1:
                covered.add(other.stream)
            if place.position != position:
                if pair in self.known and place <= self.known[pair]:
                    continue
                if instruction.every == other.every == 1:
                    self.known[pair] = place
            kept.append(Wait(other.id, position - place.position))
        return tuple(kept)

    def _stated(self, instruction: Instruction, microbatch: int | None) -> Iterator[_At]:
        """What `after` and `after_earlier` name."""
        stated = [(other, 0) for other in instruction.after]
        stated += [(e.instruction, e.steps_back) for e in instruction.after_earlier]
        for other, steps_back in stated:
            place = self._task(other, microbatch)
            yield place._replace(position=place.position - steps_back * len(self.schedule))

    def _task(self, instruction: str, microbatch: int | None) -> _At:
        """The task of `instruction` for the same microbatch where both have one, else the last of them."""
        passes = self.role.passes
        if microbatch is not None and not self.role.instruction[instruction].once:
            for position in self.positions[microbatch]:
                name = self.schedule[position].name
                if instruction in passes[name]:
                    return _At(position, passes[name].index(instruction), name)
        position, name = max((p, n) for n, p in self.last.items() if instruction in passes[n])
        return _At(position, passes[name].index(instruction), name)


def _of_the_step(scopes: Sequence[Scope], alone: bool, instruction: Instruction, scope: Scope) -> bool:
    """Whether a buffer that `instruction` touches is not the microbatch's own. `alone`: the pass has no microbatch."""
    return scope in scopes and (scope is not Scope.MICROBATCH or alone or instruction.once)
