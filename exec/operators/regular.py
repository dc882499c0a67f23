r"""Regular expressions of RE2 (https://github.com/google/re2/wiki/Syntax), matched in time linear in the text.

An expression becomes a machine that is in several states at once (Thompson 1968), so that no pattern, however nested,
takes long. Whether all of a text matches is all that is asked, so groups capture nothing and lazy repetition is as good
as greedy.

>>> machine = Machine(r"(\w+\.)*\w+@[[:alpha:]]+\.(?i:com|org)")
>>> machine.matches("first.last@example.ORG"), machine.matches("first.@example.org")
(True, False)
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import Any, NamedTuple

__all__ = ["Machine"]

SIZE = 20_000
"""Steps that an expression may have: {n,m} multiplies what it repeats."""
REPEAT = 1000
"""RE2's own limit of repetitions."""

Ranges = tuple[tuple[str, str], ...]
PERL: dict[str, Ranges] = {
    "d": (("0", "9"),),
    "s": (("\t", "\n"), ("\f", "\r"), (" ", " ")),
    "w": (("0", "9"), ("A", "Z"), ("_", "_"), ("a", "z")),
}
POSIX: dict[str, Ranges] = {
    "alnum": (("0", "9"), ("A", "Z"), ("a", "z")),
    "alpha": (("A", "Z"), ("a", "z")),
    "ascii": (("\0", "\x7f"),),
    "blank": (("\t", "\t"), (" ", " ")),
    "cntrl": (("\0", "\x1f"), ("\x7f", "\x7f")),
    "digit": PERL["d"],
    "graph": (("!", "~"),),
    "lower": (("a", "z"),),
    "print": ((" ", "~"),),
    "punct": (("!", "/"), (":", "@"), ("[", "`"), ("{", "~")),
    "space": (("\t", "\r"), (" ", " ")),
    "upper": (("A", "Z"),),
    "word": PERL["w"],
    "xdigit": (("0", "9"), ("A", "F"), ("a", "f")),
}
ESCAPES = {"a": "\a", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


class _Characters(NamedTuple):
    """A set of characters: ranges and Unicode categories (with True for those that are excluded), all turned round by
    `negated`; `folded` takes either case for the other."""

    ranges: Ranges
    categories: tuple[tuple[str, bool], ...] = ()
    others: tuple[_Characters, ...] = ()
    negated: bool = False
    folded: bool = False

    def holds(self, character: str) -> bool:
        cases = (character, character.lower(), character.upper()) if self.folded else (character,)
        return any(self._has(c) for c in cases) != self.negated

    def _has(self, c: str) -> bool:
        return (
            any(low <= c <= high for low, high in self.ranges)
            or any(unicodedata.category(c[0]).startswith(name) != excluded for name, excluded in self.categories)
            or any(other.holds(c) for other in self.others)
        )


class _Flags(NamedTuple):
    i: bool = False
    m: bool = False
    s: bool = False
    U: bool = False


# A tree of an expression: ("set", _Characters), ("at", kind), ("and", parts), ("or", parts), ("repeat", part, least, most).
Tree = tuple[Any, ...]


class Machine:
    """An expression that is ready to match. Raises ValueError where it is none of RE2."""

    def __init__(self, pattern: str) -> None:
        try:
            tree = _Parser(pattern).tree()
        except RecursionError:
            raise ValueError("it is nested too deep") from None
        # Steps: ("set", characters) and ("at", kind) go on to the next, ("to", steps) to any of several.
        self.steps: list[tuple[str, Any]] = []
        self._add(tree)
        self.steps.append(("end", None))

    def _add(self, tree: Tree) -> None:
        kind, *rest = tree
        if len(self.steps) > SIZE:
            raise ValueError(f"it has more than {SIZE} steps: repeat less")
        if kind in ("set", "at"):
            self.steps.append((kind, rest[0]))
        elif kind == "and":
            for part in rest[0]:
                self._add(part)
        elif kind == "or":
            fork = len(self.steps)
            self.steps.append(("to", []))
            starts, ends = [], []
            for part in rest[0]:
                starts.append(len(self.steps))
                self._add(part)
                ends.append(len(self.steps))
                self.steps.append(("to", []))
            self.steps[fork] = ("to", starts)
            for end in ends:
                self.steps[end] = ("to", [len(self.steps)])
        else:
            part, least, most = rest
            for _ in range(least):
                self._add(part)
            if most is None:
                fork = len(self.steps)
                self.steps.append(("to", []))
                self._add(part)
                self.steps.append(("to", [fork]))
                self.steps[fork] = ("to", [fork + 1, len(self.steps)])
            else:
                forks = []
                for _ in range(most - least):
                    forks.append(len(self.steps))
                    self.steps.append(("to", []))
                    self._add(part)
                for fork in forks:
                    self.steps[fork] = ("to", [fork + 1, len(self.steps)])

    def matches(self, text: str) -> bool:
        """Whether all of `text` is in the language of the expression."""
        states = self._closed([0], text, 0)
        for at, character in enumerate(text):
            states = self._closed(
                [s + 1 for s in states if self.steps[s][0] == "set" and self.steps[s][1].holds(character)], text, at + 1
            )
            if not states:
                return False
        return len(self.steps) - 1 in states

    def _closed(self, states: Iterable[int], text: str, at: int) -> list[int]:
        """All states that are reached without reading a character."""
        waiting, seen = list(states), set(states)
        while waiting:
            state = waiting.pop()
            kind, what = self.steps[state]
            following = what if kind == "to" else [state + 1] if kind == "at" and _is_at(what, text, at) else []
            fresh = [s for s in following if s not in seen]
            seen.update(fresh)
            waiting.extend(fresh)
        return sorted(seen)


def _is_at(kind: str, text: str, at: int) -> bool:
    """Whether a place in a text is its begin or end, that of a line, or of a word."""
    if kind == "begin":
        return at == 0
    if kind == "end":
        return at == len(text)
    if kind == "line begin":
        return at == 0 or text[at - 1] == "\n"
    if kind == "line end":
        return at == len(text) or text[at] == "\n"
    word = _Characters(PERL["w"])
    before, after = at > 0 and word.holds(text[at - 1]), at < len(text) and word.holds(text[at])
    return (before != after) == (kind == "word")


class _Parser:
    def __init__(self, pattern: str) -> None:
        self.text, self.at, self.flags = pattern, 0, _Flags()

    def tree(self) -> Tree:
        tree = self._either()
        if self.at < len(self.text):
            raise ValueError("a ) closes nothing")
        return tree

    def _next(self, word: str) -> bool:
        """Goes on behind `word` if it comes next."""
        found = self.text.startswith(word, self.at)
        self.at += len(word) if found else 0
        return found

    def _either(self) -> Tree:
        parts = [self._sequence()]
        while self._next("|"):
            parts.append(self._sequence())
        return parts[0] if len(parts) == 1 else ("or", parts)

    def _sequence(self) -> Tree:
        parts: list[Tree] = []
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            if self._next(r"\Q"):
                end = self.text.find(r"\E", self.at)
                end = len(self.text) if end < 0 else end
                parts += [self._character(c) for c in self.text[self.at : end]]
                self.at = min(end + 2, len(self.text))
                if parts:
                    parts[-1] = self._repeated(parts[-1])
                continue
            part = self._part()
            parts.append(self._repeated(part) if part[0] != "flags" else ("and", []))
        return ("and", parts)

    def _repeated(self, part: Tree) -> Tree:
        bounds = self._bounds()
        if bounds is None:
            return part
        self._next("?")
        if self._bounds() is not None:
            raise ValueError("what is repeated is repeated at once again; RE2 has no such thing")
        return ("repeat", part, *bounds)

    def _bounds(self) -> tuple[int, int | None] | None:
        """The numbers of a repetition if one comes next; {n} with anything else than numbers is plain text."""
        for sign, bounds in {"*": (0, None), "+": (1, None), "?": (0, 1)}.items():
            if self._next(sign):
                return bounds
        end = self.text.find("}", self.at)
        if not self.text.startswith("{", self.at) or end < 0:
            return None
        least, comma, most = self.text[self.at + 1 : end].partition(",")
        if not (least.isascii() and least.isdecimal() and (not most or (most.isascii() and most.isdecimal()))):
            return None
        self.at = end + 1
        high = int(most) if most else None if comma else int(least)
        if max(int(least), high or 0) > REPEAT or (high is not None and high < int(least)):
            raise ValueError(f"{{{least}{comma}{most}}} is no repetition: at most {REPEAT}, the smaller number first")
        return int(least), high

    def _part(self) -> Tree:
        c = self.text[self.at]
        if c in "*+?":
            raise ValueError(f"{c} repeats nothing")
        if self._next("("):
            return self._group()
        if self._next("["):
            return ("set", self._set())
        if self._next("."):
            return ("set", _Characters(() if self.flags.s else (("\n", "\n"),), negated=True))
        if self._next("^"):
            return ("at", "line begin" if self.flags.m else "begin")
        if self._next("$"):
            return ("at", "line end" if self.flags.m else "end")
        for sign, kind in {r"\A": "begin", r"\z": "end", r"\b": "word", r"\B": "no word"}.items():
            if self._next(sign):
                return ("at", kind)
        if c == "\\":
            found = self._escape()
            return self._character(found) if isinstance(found, str) else ("set", found)
        self.at += 1
        return self._character(c)

    def _character(self, c: str) -> Tree:
        return ("set", _Characters(((c, c),), folded=self.flags.i))

    def _group(self) -> Tree:
        before = self.flags
        if self._next("?"):
            if self._next("P<") or (
                self.text.startswith("<", self.at) and self.text[self.at + 1 : self.at + 2] not in "=!"
            ):
                name, _, _ = self.text[self.at :].removeprefix("<").partition(">")
                if not name.isidentifier():
                    raise ValueError(f"a group cannot be named {name!r}")
                self.at = self.text.index(">", self.at) + 1
            else:
                end = next((i for i in range(self.at, len(self.text)) if self.text[i] in ":)"), len(self.text))
                on, _, off = self.text[self.at : end].partition("-")
                if end == len(self.text) or set(on + off) - set(_Flags._fields):
                    raise ValueError(f"(?{self.text[self.at : self.at + 2]} is nothing that RE2 has")
                flags = self.flags._replace(**dict.fromkeys(on, True))._replace(**dict.fromkeys(off, False))
                self.at, self.flags = end + 1, flags
                if self.text[end] == ")":
                    return ("flags",)
        tree = self._either()
        if not self._next(")"):
            raise ValueError("a ( is not closed")
        self.flags = before
        return tree

    def _set(self) -> _Characters:
        negated = self._next("^")
        ranges: list[tuple[str, str]] = []
        others: list[_Characters] = []
        first = True
        while first or not self._next("]"):
            first = False
            low = self._member(others)
            if low is None:
                continue
            high = low
            if self.text.startswith("-", self.at) and self.text[self.at + 1 : self.at + 2] not in ("]", ""):
                self.at += 1
                high = self._member([]) or ""
            if high < low:
                raise ValueError(f"{low}-{high} is no range of characters")
            ranges.append((low, high))
        return _Characters(tuple(ranges), others=tuple(others), negated=negated, folded=self.flags.i)

    def _member(self, others: list[_Characters]) -> str | None:
        """A character of a set; None where it was a class, which is added to `others`."""
        if self.at >= len(self.text):
            raise ValueError("a [ is not closed")
        if self._next("[:"):
            name, found, _ = self.text[self.at :].partition(":]")
            negated = name.startswith("^")
            if not found or name.removeprefix("^") not in POSIX:
                raise ValueError(f"[:{name[:20]}:] is no class of characters")
            others.append(_Characters(POSIX[name.removeprefix("^")], negated=negated))
            self.at += len(name) + 2
            return None
        if self.text[self.at] == "\\":
            found_set = self._escape()
            if isinstance(found_set, str):
                return found_set
            others.append(found_set)
            return None
        self.at += 1
        return self.text[self.at - 1]

    def _escape(self) -> str | _Characters:
        r"""What a \ stands for: a character, or a class of them."""
        rest = self.text[self.at + 1 :]
        self.at += 2
        if not rest:
            raise ValueError("a \\ stands at the end")
        c = rest[0]
        if c.lower() in PERL:
            return _Characters(PERL[c.lower()], negated=c.isupper())
        if c in "pP":
            name = rest[2 : rest.index("}")] if rest[1:2] == "{" and "}" in rest else rest[1:2]
            self.at += len(name) + 2 * (rest[1:2] == "{")
            plain = name.removeprefix("^")
            if plain not in CATEGORIES:
                raise ValueError(f"\\{c}{name} is no class of characters known here (categories of Unicode are)")
            return _Characters((), categories=((plain, False),), negated=(c == "P") != name.startswith("^"))
        if c in ESCAPES:
            return ESCAPES[c]
        if c == "x":
            digits = rest[2 : rest.index("}")] if rest[1:2] == "{" and "}" in rest else rest[1:3]
            self.at += len(digits) + 2 * (rest[1:2] == "{")
            return _code(digits, 16)
        if c in "01234567":
            digits = next(rest[:n] for n in (3, 2, 1) if all(d in "01234567" for d in rest[:n]) and len(rest) >= n)
            if c != "0" and len(digits) < 2:
                raise ValueError(f"\\{c} refers back to a group; RE2 does not")
            self.at += len(digits) - 1
            return _code(digits, 8)
        if c.isalnum() and c.isascii():
            raise ValueError(f"\\{c} means nothing")
        return c


CATEGORIES = frozenset(
    {"C", "Cc", "Cf", "Co", "Cs", "L", "Ll", "Lm", "Lo", "Lt", "Lu", "M", "Mc", "Me", "Mn", "N", "Nd", "Nl", "No",
     "P", "Pc", "Pd", "Pe", "Pf", "Pi", "Po", "Ps", "S", "Sc", "Sk", "Sm", "So", "Z", "Zl", "Zp", "Zs"}
)  # fmt: skip


def _code(digits: str, base: int) -> str:
    try:
        return chr(int(digits, base))
    except (ValueError, OverflowError):
        raise ValueError(f"{digits!r} is the number of no character") from None
