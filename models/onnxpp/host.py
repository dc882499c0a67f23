"""Operators that no compiler can take: they run on the host, in NumPy, between compiled parts of a graph.

What they give has no shape that is known before the run, or is no tensor of numbers. A graph with them runs; whatever
lies behind them cannot be trained. Operators that are on the host only for some operands (sequences that are inputs of
the graph, strings, loops that change shapes) are not listed: the executor finds those out when it runs.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["HOST", "WHY", "on_host"]

WHY: Mapping[str, Mapping[str, str]] = {
    "": {
        "Compress": "the result has as many elements as a mask selects",
        "ImageDecoder": "decodes image files",
        "NonMaxSuppression": "keeps as many boxes as do not overlap",
        "NonZero": "the result has as many elements as are not zero",
        "RegexFullMatch": "strings",
        "StringConcat": "strings",
        "StringNormalizer": "strings",
        "StringSplit": "strings",
        "TfIdfVectorizer": "looks n-grams up in a dictionary, of words as a rule",
        "Unique": "the result has as many elements as there are different ones",
    },
    "ai.onnx.ml": {
        "CastMap": "maps",
        "CategoryMapper": "strings",
        "DictVectorizer": "maps",
        "ZipMap": "maps",
    },
}
"""Why, by domain ("" is the standard's own) and operator."""

HOST: Mapping[str, frozenset[str]] = {domain: frozenset(operators) for domain, operators in WHY.items()}
"""The names of these operators by domain."""


def on_host(op_type: str, domain: str = "") -> bool:
    """Whether an operator runs on the host whatever its operands are.

    >>> on_host("NonZero"), on_host("ZipMap", "ai.onnx.ml"), on_host("Conv")
    (True, True, False)
    """
    return op_type in HOST.get("" if domain == "ai.onnx" else domain, frozenset())
