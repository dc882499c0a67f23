"""Regular expressions: the same language as Python's where the two agree, RE2's where they do not, and no long time."""

import doctest
import re
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from hpdlf.errors import ModelError
from hpdlf.exec.backend import Backend
from hpdlf.exec.operators import regular
from hpdlf.exec.operators.regular import Machine

ATOMS = st.sampled_from(
    ["a", "b", "ab", ".", r"\d", r"\W", "[ab]", "[^a]", "[0-9b-]", r"\.", r"\b", "^", "$", r"[\d\s]", ""]
)


def grown(parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.builds("({}){}".format, parts, st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{2,}", "*?", "+?"])),
        st.builds("(?:{}|{})".format, parts, parts),
        st.builds("{}{}".format, parts, parts),
        st.builds("(?i:{})".format, parts),
    )


@settings(deadline=None)
@given(st.recursive(ATOMS, grown, max_leaves=6), st.text("abAB1. \n", max_size=5))
def test_the_same_language_as_python(pattern: str, text: str) -> None:
    # Python's $ is also before a line's end at the end of the text.
    theirs = re.compile(pattern.replace("$", r"\Z"), re.ASCII)
    assert Machine(pattern).matches(text) == (theirs.fullmatch(text) is not None)


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        (r"(?P<year>\d{4})-(?<month>\d\d)", ["2026-11"], ["26-11"]),
        (r"[[:upper:]][^[:digit:]]+", ["Abc"], ["A1", "abc"]),
        (r"[[:^digit:]]", ["a"], ["1"]),
        (r"\pL\p{Lu}\PL\p{^L}", ["éÄ1-", "xX._"], ["11aa"]),
        (r"(?s).(?-s).", ["\nx"], ["x\n"]),
        (r"(?m)a$\n^b", ["a\nb"], ["ab"]),
        (r"a\n$", ["a\n"], ["a", "a\n\n"]),
        (r"\Qa.b*\E+", ["a.b*", "a.b**"], ["aab"]),
        (r"\x41\x{1F600}\101", ["A\U0001f600A"], ["A"]),
        (r"(?i)straße", ["STRAßE", "straße"], ["x"]),
        (r"a{,2}", ["a{,2}"], ["aa"]),
        (r"\Aa\z|\Bb", ["a"], ["b"]),
        (r"[]a]+[a\]-]", ["]a-", "a]"], ["b"]),
        ("", [""], ["a"]),
        (r"(?U)a+b", ["aab"], ["b"]),
    ],
)
def test_expressions_of_re2(pattern: str, yes: list[str], no: list[str]) -> None:
    machine = Machine(pattern)
    assert [machine.matches(text) for text in yes] == [True] * len(yes)
    assert [machine.matches(text) for text in no] == [False] * len(no)


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        (r"(a)\1", "refers back"),
        ("(?=a)", "nothing that RE2 has"),
        ("(?<=a)", "nothing that RE2 has"),
        ("a**", "repeated at once"),
        ("*a", "repeats nothing"),
        ("(a", "is not closed"),
        ("a)", "closes nothing"),
        ("[a", "is not closed"),
        ("[b-a]", "no range"),
        ("[[:nope:]]", "no class"),
        (r"\p{Greek}", "no class of characters known"),
        (r"\y", "means nothing"),
        ("a{3,2}", "no repetition"),
        ("a{1001}", "at most 1000"),
        ("((a{100}){100}){100}", "repeat less"),
        ("(" * 5000 + ")" * 5000, "nested too deep"),
        ("a\\", "stands at the end"),
        (r"\x{FFFFFFFF}", "the number of no character"),
    ],
)
def test_what_is_no_expression_says_why(pattern: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Machine(pattern)


def test_nested_repetition_takes_no_long_time() -> None:
    start = time.process_time()
    assert not Machine("((a*)*)*b").matches("a" * 2000)
    assert time.process_time() - start < 5


def test_as_an_operator() -> None:
    def run(pattern: str) -> list[list[bool]]:
        node = helper.make_node("RegexFullMatch", ["x"], ["y"], pattern=pattern)
        return Backend.run_node(node, [np.array([["aa", "b"], ["", "é"]], object)])[0].tolist()

    assert run("a+|.") == [[True, True], [False, True]]
    with pytest.raises(ModelError, match=r"'\(\?!a\)' is no expression of RE2"):
        run("(?!a)")


def test_examples_in_docstrings() -> None:
    assert doctest.testmod(regular).failed == 0
