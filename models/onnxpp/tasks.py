"""What the sandbox's worker does (:mod:`.sandbox`): takes a request from its standard input, works within limits, answers.

A task is a function of (bytes, options) that returns bytes; ModelError is what it found wrong with them. Only what stands in
:data:`TASKS` can be asked for.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, BinaryIO

import onnx
from onnx import ModelProto

from ...errors import ModelError

__all__ = ["TASKS", "plain_sentence", "serve"]

LONGEST_SENTENCE = 400
# Kinds of errors, and the places in onnx's source where they arose.
NOISE = re.compile(r"\[\w*(?:Inference|Parse)Error\]|\S*onnx/\S+\.(?:cc|h):\d+:?|\b\w+: (?=\[)")


def plain_sentence(error: object) -> str:
    """What an error of onnx's C++ code says, as one line without places in its source.

    >>> plain_sentence(ValueError("[ShapeInferenceError] (op_type:Add): onnx/defs.cc:12: bad\\n\\n==> Context: node x"))
    '(op_type:Add): bad (node x)'
    """
    text = " ".join(NOISE.sub("", str(error)).split())
    text = re.sub(r"==> Context: (.*)", r"(\1)", text)
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= LONGEST_SENTENCE else text[:LONGEST_SENTENCE] + " …"


def _check(request: bytes, options: Mapping[str, Any]) -> bytes:
    try:
        onnx.checker.check_model(request)
    except MemoryError:
        raise
    except Exception as error:  # the checker raises several unrelated types
        raise ModelError(f"onnx's checker says: {plain_sentence(error)}; export the model again") from None
    return b""


def _convert(request: bytes, options: Mapping[str, Any]) -> bytes:
    try:
        converted = onnx.version_converter.convert_version(ModelProto.FromString(request), options["target"])
    except MemoryError:
        raise
    except Exception as error:  # RuntimeError, and the converter's own types
        raise ModelError(plain_sentence(error)) from None
    return bytes(converted.SerializeToString())


def _inline(request: bytes, options: Mapping[str, Any]) -> bytes:
    from onnx.inliner import inline_local_functions

    try:
        return bytes(inline_local_functions(ModelProto.FromString(request)).SerializeToString())
    except MemoryError:
        raise
    except Exception as error:  # the inliner raises RuntimeError and its own types
        raise ModelError(
            f"its functions cannot be written out: {plain_sentence(error)}; export without functions"
        ) from None


def _walk(request: bytes, options: Mapping[str, Any]) -> bytes:
    from .walk import Walk

    release = options["release"]
    found = Walk(ModelProto.FromString(request), tuple(options["sizes"]), release).run()
    return json.dumps(found, default=int).encode()  # NumPy's integers


TASKS: Mapping[str, Callable[[bytes, Mapping[str, Any]], bytes]] = {
    "check": _check,
    "convert": _convert,
    "inline": _inline,
    "walk": _walk,
}


def serve() -> None:
    """The worker's loop: answers until its standard input ends."""
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what C++ prints is no reply
    _forbid()
    while True:
        frame = _read(requests)
        if frame is None:
            return
        header, request = frame
        status, text, payload = _answer(header, request)
        del request
        _lift()
        _write(replies, {"status": status, "text": text}, payload)
        if status == "memory":
            return  # what failed may have left anything behind


def _answer(header: Mapping[str, Any], request: bytes) -> tuple[str, str, bytes]:
    _limit(header["seconds"], header["memory"])
    try:
        return "done", "", TASKS[header["task"]](request, header["options"])
    except ModelError as error:
        return "wrong", str(error), b""
    except MemoryError:
        return "memory", "", b""
    except RecursionError:
        return "wrong", "its graphs nest too deep; export the model again", b""
    except Exception as error:  # a boundary: whatever a file can bring about here is said, and nothing else happens
        kind = type(error).__name__
        return "wrong", f"it cannot be understood ({kind}: {plain_sentence(error)}); export the model again", b""


def _read(stream: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    from .sandbox import HEADER

    sizes = stream.read(HEADER.size)
    if len(sizes) < HEADER.size:
        return None
    told, held = HEADER.unpack(sizes)
    header = json.loads(stream.read(told))
    return header, stream.read(held)


def _write(stream: Any, header: Mapping[str, Any], payload: bytes) -> None:
    from .sandbox import HEADER

    told = json.dumps(header).encode()
    for part in (HEADER.pack(len(told), len(payload)) + told, payload):
        rest = memoryview(part)
        while rest:
            rest = rest[stream.write(rest) :]


def _forbid() -> None:
    """No file is written and no memory dumped from here."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def _limit(seconds: float, memory_bytes: int) -> None:
    """Processor time and memory from here on; the parent's clock is a third limit."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        usage = resource.getrusage(resource.RUSAGE_SELF)
        limit_s = int(usage.ru_utime + usage.ru_stime + seconds) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (limit_s, resource.getrlimit(resource.RLIMIT_CPU)[1]))
        with open("/proc/self/statm", "rb") as file:
            have = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (have + memory_bytes, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _lift() -> None:
    """The next request may be larger than what this one was allowed."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        most = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
