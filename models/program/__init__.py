"""The program: what each role of a training run does, for the simulator and the executor alike."""

from .checking import check
from .dependencies import Dependency, dependencies
from .instruction import (
    Buffer,
    Content,
    Earlier,
    Instruction,
    Kind,
    Part,
    Pass,
    Phase,
    Program,
    Role,
    Scope,
    Segment,
    Task,
)
from .memory import MemoryPeak, peak_memory
from .mesh import Group, Mesh, Peer

__all__ = [
    "Buffer",
    "Content",
    "Dependency",
    "Earlier",
    "Group",
    "Instruction",
    "Kind",
    "MemoryPeak",
    "Mesh",
    "Part",
    "Pass",
    "Peer",
    "Phase",
    "Program",
    "Role",
    "Scope",
    "Segment",
    "Task",
    "check",
    "dependencies",
    "peak_memory",
]
