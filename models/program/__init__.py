"""The program: what each role of a training run does, for the simulator and the executor alike."""

from .dependencies import Dependency, MemoryPeak, check, dependencies, peak_memory
from .instruction import Buffer, Content, Earlier, Instruction, Kind, Part, Phase, Program, Role, Scope, Segment, Task
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
