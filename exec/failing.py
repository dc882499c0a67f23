"""What goes wrong inside an operator, as one sentence that names it: files from anywhere hold anything."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import HpdlfError, ModelError
from ..models.onnxpp.graph import Operator
from ..models.onnxpp.tasks import plain_sentence

__all__ = ["in_a_sentence", "named"]

# What lowerings, JAX and NumPy raise where operands, attributes and shapes do not fit together.
MISFITS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)


@contextmanager
def named(node: Operator) -> Iterator[None]:
    """Errors from inside carry the operator's name; they stay what they are, as some of them are caught further out."""
    try:
        yield
    except MISFITS as error:
        if not isinstance(error, ModelError):
            error.add_note(f"node {node.name!r} ({node.op_type})")
        raise


@contextmanager
def in_a_sentence(place: object = "the model") -> Iterator[None]:
    """Errors from inside are a ModelError, which names the innermost operator that :func:`named` saw."""
    try:
        yield
    except HpdlfError:
        raise
    except MISFITS as error:
        notes = [note for note in getattr(error, "__notes__", ()) if note.startswith("node ")]
        where = f", {notes[0]}" if notes else ""
        why = plain_sentence(error) or type(error).__name__
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            raise ModelError(
                f"{place}{where} needs more memory than there is ({why}); give it smaller inputs, or run it on a larger "
                "machine"
            ) from error
        raise ModelError(
            f"{place}{where} cannot be computed ({type(error).__name__}: {why}); what it is given does not fit what it "
            "computes: see the shapes of its inputs, or export the model again"
        ) from error
