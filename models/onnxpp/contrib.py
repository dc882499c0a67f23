"""Operators of onnxruntime's own domain, written out in standard ones.

Files that onnxruntime's optimiser or quantiser wrote fuse what the standard writes as several operators. Each has a rule,
in one of the modules contrib_…, that writes it out again: a function of a :class:`Rewriting`, registered by its name. What
has none is refused by name.

The definitions are those of onnxruntime's contrib operators (docs/ContribOperators.md of that project).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from .kept import put_aside, restore

__all__ = ["DOMAIN", "SUPPORTED", "Rewriting", "rewrite_contrib", "rewrites", "trimmed"]

DOMAIN = "com.microsoft"
Rule = Callable[["Rewriting"], None]
RULES: dict[str, Rule] = {}
# onnxruntime takes these in the standard's domain too, whatever the operator set.
STANDARD_SINCE = {"LayerNormalization": 17, "SimplifiedLayerNormalization": 10**6, "Gelu": 20}


def rewrites(*names: str) -> Callable[[Rule], Rule]:
    """Register the rule of operators by name."""

    def register(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, rule))
        return rule

    return register


class Rewriting:
    """One node that is written out: its operands and attributes, and the nodes that take its place."""

    def __init__(self, node: NodeProto, model: ModelProto, taken: set[str], version: int) -> None:
        self.node, self.model, self.taken, self.version = node, model, taken, version
        self.inputs = [*node.input, *[""] * 12]
        self.outputs = [*node.output, *[""] * 8]
        self.attributes: dict[str, Any] = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        self.nodes: list[NodeProto] = []
        self.prefix = node.name or next(filter(None, node.output), node.op_type)

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute, text as text."""
        value = self.attributes.get(name, default)
        return value.decode(errors="replace") if isinstance(value, bytes) else value

    def name(self, wanted: str) -> str:
        """A name that nobody has."""
        from .normalise import unique_name

        return unique_name(f"{self.prefix}.{wanted}", self.taken)

    def op(self, op_type: str, *operands: str, result: str = "", count: int = 1, **attributes: Any) -> str:
        """Append a standard node; returns its first result."""
        results = [result or self.name(op_type)] + [self.name(op_type) for _ in range(count - 1)]
        self.nodes.append(
            helper.make_node(op_type, list(operands), results, name=self.name(f"{op_type}_"), **attributes)
        )
        return results[0]

    def several(self, op_type: str, count: int, *operands: str, **attributes: Any) -> list[str]:
        """Append a standard node of several results."""
        self.op(op_type, *operands, count=count, **attributes)
        return list(self.nodes[-1].output)

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        """An initializer."""
        name = self.name("constant")
        self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def number(self, value: float, like: str) -> str:
        """A number of the type of a tensor."""
        return self.like(self.constant(value, np.float32), like)

    def like(self, x: str, other: str) -> str:
        """`x` in the type of `other`, a floating-point tensor."""
        if self.version >= 15:
            return self.op("CastLike", x, other)
        # Older sets have no such operator: the type is that of the node's weights.
        floats = (TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.DOUBLE)
        held = {t.data_type for t in self.model.graph.initializer if t.name in self.node.input}
        return self.op("Cast", x, to=next((kind for kind in floats if kind in held), TensorProto.FLOAT))

    def tensor(self, name: str) -> TensorProto | None:
        """The initializer of that name."""
        return next((t for t in self.model.graph.initializer if t.name == name), None)

    def mean(self, x: str) -> str:
        """The mean over the last axis, which stays as 1."""
        return (
            self.op("ReduceMean", x, self.constant([-1])) if self.version >= 18 else self.op("ReduceMean", x, axes=[-1])
        )

    def split(self, x: str, parts: int, axis: int) -> list[str]:
        """Equal parts."""
        extra = {"num_outputs": parts} if self.version >= 18 else {}
        return self.several("Split", parts, x, axis=axis, **extra)

    def unsqueeze(self, x: str, *axes: int) -> str:
        """New axes of extent 1."""
        return (
            self.op("Unsqueeze", x, self.constant(list(axes)))
            if self.version >= 13
            else self.op("Unsqueeze", x, axes=axes)
        )


def rewrite_contrib(model: ModelProto) -> list[str]:
    """Write out every contrib operator of the main graph that has a rule, in place; the names of those that have none."""
    graph = model.graph
    version = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)

    def concerns(node: NodeProto) -> bool:
        old = node.op_type in STANDARD_SINCE and not node.domain and version < STANDARD_SINCE[node.op_type]
        return node.domain == DOMAIN or old

    if not any(concerns(node) for node in graph.node):
        return []
    kept = put_aside(model)
    functions = {(f.domain, f.name) for f in model.functions}
    taken = {name for node in graph.node for name in (*node.output, node.name)}
    taken |= {t.name for t in graph.initializer} | {v.name for v in graph.input}
    unknown: dict[str, None] = {}
    ordered: list[NodeProto] = []
    for node in graph.node:
        rule = RULES.get(node.op_type)
        if not concerns(node) or (node.domain, node.op_type) in functions:
            ordered.append(node)
        elif rule is None:
            unknown[node.op_type] = None
            ordered.append(node)
        else:
            rewriting = Rewriting(node, model, taken, version)
            rule(rewriting)
            ordered.extend(rewriting.nodes)
    copies = [NodeProto.FromString(node.SerializeToString()) for node in ordered]
    del graph.node[:]
    graph.node.extend(copies)
    restore(model, kept)
    return list(unknown)


def trimmed(*names: str) -> list[str]:
    """Operands without the absent ones at the end."""
    kept = list(names)
    while kept and not kept[-1]:
        kept.pop()
    return kept


def _register() -> None:
    """The rules register themselves when their modules are read."""
    from . import contrib_attention, contrib_layers, contrib_quantised, contrib_recurrent  # noqa: F401


_register()
SUPPORTED = frozenset(RULES)
