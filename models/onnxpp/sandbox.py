"""A process for what onnx's C++ code does with files from anywhere: with a time and a memory limit, and restarted when it dies.

onnx checks, inlines, converts and infers in C++ that was not written for hostile files: some hang it, some take all memory,
some crash it. Here such a call runs in a worker process, one for all models, that starts while the file is being parsed.
What goes in and comes out are bytes (:mod:`.tasks` has the calls); every way of dying is one sentence.

>>> from onnx import helper
>>> node = helper.make_node("Relu", ["x"], ["y"])
>>> ends = [helper.make_tensor_value_info(name, 1, [2]) for name in ("x", "y")]
>>> model = helper.make_model(helper.make_graph([node], "g", ends[:1], ends[1:]))
>>> run_limited("check", model.SerializeToString(), place="m.onnx", nodes=1)
b''
"""

from __future__ import annotations

import atexit
import json
import os
import selectors
import struct
import subprocess
import sys
import time
from threading import Lock, local
from typing import Any

from ...errors import ModelError

__all__ = ["SECONDS", "SECONDS_PER_NODE", "begin", "run_limited", "start"]

# An import's calls share this time. One of 400 nodes takes a tenth of a second, so this is generous even on a busy machine.
SECONDS = 8.0
SECONDS_PER_NODE = 0.002
MEMORY_BYTES = 2**30
# A parsed model takes 9 times its file, what inference says of it as much again, and both are copied once.
MEMORY_PER_BYTE = 32
HEADER = struct.Struct("<II")
# Nothing else of the environment reaches the worker. One thread: every further one reserves memory.
PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV", "TMPDIR")
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
BOOTSTRAP = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from hpdlf.models.onnxpp.tasks import serve; serve()"
)


class _DiedError(Exception):
    """The worker is gone, or silent for too long (`timed_out`)."""

    def __init__(self, *, timed_out: bool) -> None:
        super().__init__()
        self.timed_out = timed_out


class _Worker:
    """The process and the two pipes to it."""

    def __init__(self) -> None:
        paths = [os.path.abspath(path) for path in sys.path]
        self.process = subprocess.Popen(
            [sys.executable, "-c", BOOTSTRAP, json.dumps(paths)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={**{k: v for k, v in os.environ.items() if k in PASSED_ON}, **ONE_THREAD},
            cwd=os.sep,
            start_new_session=True,  # Ctrl-C is the parent's
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.into, self.out = self.process.stdin.fileno(), self.process.stdout.fileno()
        os.set_blocking(self.into, False)
        os.set_blocking(self.out, False)
        self.pid = os.getpid()
        self.used = False

    def kill(self) -> None:
        """Ends it, now."""
        if self.pid != os.getpid():
            return  # of the process that this one was forked from
        self.process.kill()
        self.process.communicate()

    def ask(self, header: dict[str, Any], payload: bytes, until_s: float) -> tuple[dict[str, Any], bytes]:
        """Sends one request and waits for its reply; raises :class:`_DiedError`."""
        told = json.dumps(header).encode()
        waiting = [memoryview(HEADER.pack(len(told), len(payload)) + told), memoryview(payload)]
        reply = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(self.out, selectors.EVENT_READ)
            selector.register(self.into, selectors.EVENT_WRITE)
            while True:
                left_s = until_s - time.monotonic()
                if left_s <= 0:
                    raise _DiedError(timed_out=True)
                for key, _ in selector.select(left_s):
                    if key.fd == self.out:
                        part = os.read(self.out, 1 << 20)
                        if not part:
                            raise _DiedError(timed_out=False)
                        reply += part
                        if (whole := _whole(reply)) is not None:
                            return whole
                    elif not self._write(waiting):
                        selector.unregister(self.into)

    def _write(self, waiting: list[memoryview]) -> bool:
        """Writes what the pipe takes; whether anything is left."""
        while waiting:
            if not waiting[0]:
                del waiting[0]
                continue
            try:
                waiting[0] = waiting[0][os.write(self.into, waiting[0]) :]
            except BlockingIOError:
                return True
            except BrokenPipeError:
                raise _DiedError(timed_out=False) from None
        return False


def _whole(reply: bytearray) -> tuple[dict[str, Any], bytes] | None:
    """Header and payload of a reply, once all of it is there."""
    if len(reply) < HEADER.size:
        return None
    told, held = HEADER.unpack_from(reply)
    if len(reply) < HEADER.size + told + held:
        return None
    header = json.loads(reply[HEADER.size : HEADER.size + told])
    return header, bytes(reply[HEADER.size + told : HEADER.size + told + held])


_lock = Lock()
_worker: _Worker | None = None
_clock = local()


def _ready() -> _Worker:
    global _worker
    if _worker is None or _worker.pid != os.getpid() or _worker.process.poll() is not None:
        _worker = _Worker()
    return _worker


def start() -> None:
    """Starts the worker, if there is none, without waiting for it."""
    with _lock:
        _ready()


def begin() -> None:
    """A new import: its time starts now."""
    _clock.spent_s = 0.0


def run_limited(task: str, request: bytes, *, place: object, nodes: int, **options: Any) -> bytes:
    """What `task` (of :mod:`.tasks`) answers to `request`; `place` names the file in messages.

    All calls since :func:`begin` together may take :data:`SECONDS` and some more for each of `nodes`. Raises ModelError
    where the time, the memory or the worker is over, or the task found something wrong.
    """
    limit_s = SECONDS + SECONDS_PER_NODE * nodes
    memory_bytes = MEMORY_BYTES + MEMORY_PER_BYTE * len(request)
    with _lock:
        started_s = time.monotonic()
        left_s = max(limit_s - getattr(_clock, "spent_s", 0.0), 0.1)
        header = {"task": task, "options": options, "seconds": left_s, "memory": memory_bytes}
        worker = _ready()
        try:
            reply, payload = _asked(worker, header, request, started_s + left_s)
        except _DiedError as died:
            _restart()
            raise ModelError(f"{place} cannot be imported: {_why(task, died, limit_s)}") from None
        except BaseException:
            _restart()  # half a reply may be under way
            raise
        finally:
            _clock.spent_s = getattr(_clock, "spent_s", 0.0) + time.monotonic() - started_s
    if reply["status"] == "memory":
        limit = f"{memory_bytes / 2**30:.1f} GiB"
        raise ModelError(
            f"{place} cannot be imported: {_doing(task)} takes more than {limit} of memory; export a smaller graph"
        )
    if reply["status"] == "wrong":
        raise ModelError(f"{place} cannot be imported: {reply['text']}")
    return payload


def _asked(worker: _Worker, header: dict[str, Any], request: bytes, until_s: float) -> tuple[dict[str, Any], bytes]:
    used, worker.used = worker.used, True
    try:
        return worker.ask(header, request, until_s)
    except _DiedError as died:
        # One that had answered before may have been ended by somebody else meanwhile: then a new one answers.
        if died.timed_out or not used:
            raise
        _restart()
        worker = _ready()
        worker.used = True
        return worker.ask(header, request, until_s)


def _restart() -> None:
    """Ends the worker; the next call starts another one."""
    global _worker
    if _worker is not None:
        _worker.kill()
        _worker = None


def _doing(task: str) -> str:
    doing = {
        "check": "checking it",
        "convert": "converting its operator set",
        "inline": "writing its functions out",
        "walk": "finding its shapes",
    }
    return doing.get(task, task)


def _why(task: str, died: _DiedError, limit_s: float) -> str:
    if died.timed_out:
        return f"{_doing(task)} takes more than {limit_s:.0f} s, which no sound model of its size does; export a simpler graph"
    return f"{_doing(task)} crashed onnx, as damaged files do; export the model again"


def _close() -> None:
    if _worker is not None:
        _worker.kill()


atexit.register(_close)
