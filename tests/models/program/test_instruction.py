from __future__ import annotations

import pytest

from hpdlf.models.program import Group, Instruction, Kind, Role
from hpdlf.models.program.instruction import Buffer, Content, Phase, Scope


@pytest.mark.parametrize(
    ("kind", "reads", "writes"),
    [
        (Kind.REDUCE_SCATTER, "whole", "part"),
        (Kind.ALL_GATHER, "part", "whole"),
        (Kind.ALL_REDUCE, "whole", "whole"),
        (Kind.ALL_TO_ALL, "whole", "whole"),
    ],
)
def test_a_collective_counts_the_whole_buffer_whichever_side_it_is_on(kind: Kind, reads: str, writes: str) -> None:
    """What the alpha-beta formulas call n: the operand of a reduce-scatter, the result of an all-gather."""
    buffers = tuple(
        Buffer(name=name, content=Content.GRADIENTS, nbytes=nbytes, scope=Scope.STEP)
        for name, nbytes in (("whole", 800), ("part", 100))
    )
    instruction = Instruction(
        id="c",
        kind=kind,
        phase=Phase.UPDATE,
        stream="reduce",
        group=Group(axes=("data",)),
        reads=(reads,),
        writes=(writes,),
    )
    role = Role.in_order(name="r", coordinates={}, buffers=buffers, instructions=(instruction,), order=())
    assert role.payload_bytes(instruction) == 800
